import Foundation
import Glibc

/// A small VNC viewer for tests: RFB 3.8, raw encoding, DesktopSize (RFC 6143).
final class VNCClient {
    struct Failure: Error, CustomStringConvertible {
        var description: String
        init(_ description: String) { self.description = description }
    }

    private(set) var width = 0
    private(set) var height = 0
    /// Desktop name the server gave.
    private(set) var name = ""
    /// Rows of 0x00RRGGBB.
    private(set) var pixels: [UInt32] = []
    private let socket: Int32

    init(port: Int, timeout seconds: Int = 20) throws {
        socket = Glibc.socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        var limit = timeval(tv_sec: seconds, tv_usec: 0)
        setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = in_port_t(port).bigEndian
        address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
        let connected = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(socket, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        guard connected == 0 else { throw Failure("nothing listens on port \(port)") }
        try handshake()
    }

    deinit { close(socket) }

    private func handshake() throws {
        guard try receive(12).starts(with: Array("RFB 003.".utf8)) else { throw Failure("no RFB greeting") }
        try send(Array("RFB 003.008\n".utf8))
        let count = Int(try receive(1)[0])
        let types = try receive(count)
        guard types.contains(1) else { throw Failure("the server wants authentication: \(types)") }
        try send([1])
        guard try number(4) == 0 else { throw Failure("security handshake refused") }
        try send([1])  // shared
        width = try number(2)
        height = try number(2)
        _ = try receive(16)
        name = String(decoding: try receive(try number(4)), as: UTF8.self)
        pixels = [UInt32](repeating: 0, count: width * height)
        // 32 bits a pixel, depth 24, little-endian, true colour, 8 bits each at 16, 8, 0.
        try send([0, 0, 0, 0, 32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0])
        try send([2, 0, 0, 2, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0x21])  // raw, DesktopSize
    }

    /// Asks for the whole screen and takes it, however often its size changes meanwhile.
    func refresh() throws {
        let size = [UInt8(width >> 8), UInt8(width & 255), UInt8(height >> 8), UInt8(height & 255)]
        try send([3, 0, 0, 0, 0, 0] + size)
        while true {
            switch try receive(1)[0] {
            case 0:
                if try update() { return try refresh() }
                return
            case 1:  // colour map
                _ = try receive(3)
                _ = try receive(6 * (try number(2)))
            case 2: continue  // bell
            case 3:  // cut text
                _ = try receive(3)
                _ = try receive(try number(4))
            case let type: throw Failure("message type \(type)")
            }
        }
    }

    /// One FramebufferUpdate; true if the size changed.
    private func update() throws -> Bool {
        _ = try receive(1)
        var resized = false
        for _ in 0..<(try number(2)) {
            let (x, y, w, h) = (try number(2), try number(2), try number(2), try number(2))
            let encoding = Int32(truncatingIfNeeded: try number(4))
            if encoding == -223 {
                (width, height) = (w, h)
                pixels = [UInt32](repeating: 0, count: w * h)
                resized = true
                continue
            }
            guard encoding == 0 else { throw Failure("encoding \(encoding)") }
            let bytes = try receive(w * h * 4)
            for row in 0..<h where y + row < height {
                for column in 0..<w where x + column < width {
                    let at = (row * w + column) * 4
                    pixels[(y + row) * width + x + column] =
                        UInt32(bytes[at]) | UInt32(bytes[at + 1]) << 8 | UInt32(bytes[at + 2]) << 16
                }
            }
        }
        return resized
    }

    /// Presses and releases a key, by X keysym, perhaps while Control is held.
    func key(_ keysym: UInt32, control: Bool = false) throws {
        if control { try event(Keysym.control, isDown: true) }
        try event(keysym, isDown: true)
        try event(keysym, isDown: false)
        if control { try event(Keysym.control, isDown: false) }
    }

    private func event(_ keysym: UInt32, isDown: Bool) throws {
        let bytes = (0..<4).map { UInt8(truncatingIfNeeded: keysym >> (24 - 8 * UInt32($0))) }
        try send([4, isDown ? 1 : 0, 0, 0] + bytes)
        usleep(60_000)
    }

    /// Types printable ASCII; a newline is Return.
    func type(_ text: String) throws {
        for scalar in text.unicodeScalars { try key(scalar == "\n" ? Keysym.enter : scalar.value) }
    }

    /// The screen as a binary PPM, `scale` times as large.
    func ppm(scale: Int = 1) -> Data {
        var data = Data("P6 \(width * scale) \(height * scale) 255\n".utf8)
        data.reserveCapacity(width * height * 3 * scale * scale + 32)
        for y in 0..<(height * scale) {
            for x in 0..<(width * scale) {
                let pixel = pixels[y / scale * width + x / scale]
                data.append(contentsOf: [UInt8(pixel >> 16 & 255), UInt8(pixel >> 8 & 255), UInt8(pixel & 255)])
            }
        }
        return data
    }

    private func number(_ bytes: Int) throws -> Int { try receive(bytes).reduce(0) { $0 << 8 | Int($1) } }

    private func send(_ bytes: [UInt8]) throws {
        guard Glibc.send(socket, bytes, bytes.count, Int32(MSG_NOSIGNAL)) == bytes.count else {
            throw Failure("the server hung up")
        }
    }

    private func receive(_ count: Int) throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        var have = 0
        while have < count {
            let got = bytes.withUnsafeMutableBytes { recv(socket, $0.baseAddress.map { $0 + have }, count - have, 0) }
            guard got > 0 else { throw Failure("the server hung up or says nothing") }
            have += got
        }
        return bytes
    }
}

enum Keysym {
    static let enter: UInt32 = 0xFF0D
    static let control: UInt32 = 0xFFE3
    static let escape: UInt32 = 0xFF1B
    static let tab: UInt32 = 0xFF09
    static let up: UInt32 = 0xFF52
    static let down: UInt32 = 0xFF54
}
