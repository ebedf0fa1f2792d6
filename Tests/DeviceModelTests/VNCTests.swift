import Foundation
import Glibc
import Host
import Machine
import Testing

@testable import Display
@testable import VNC

/// A VNC client made of one socket. The server's loop is turned while the client waits.
private final class Client {
    let socket: Int32
    let reactor: Reactor

    init?(port: Int, reactor: Reactor) {
        self.reactor = reactor
        socket = Glibc.socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        var place = sockaddr_in()
        place.sin_family = sa_family_t(AF_INET)
        place.sin_port = UInt16(port).bigEndian
        inet_pton(AF_INET, "127.0.0.1", &place.sin_addr)
        let result = withUnsafePointer(to: &place) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(socket, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        guard result == 0 else { return nil }
    }
    deinit { close(socket) }

    func send(_ bytes: [UInt8]) { _ = Glibc.send(socket, bytes, bytes.count, 0) }

    /// Turns the server's loop for a while.
    func pump(_ milliseconds: Int = 100) {
        let end = monotonicNanoseconds() + UInt64(milliseconds) * 1_000_000
        while monotonicNanoseconds() < end { reactor.turn() }
    }

    func receive(_ count: Int) -> [UInt8] {
        var bytes: [UInt8] = []
        let end = monotonicNanoseconds() + 3_000_000_000
        while bytes.count < count, monotonicNanoseconds() < end {
            var part = [UInt8](repeating: 0, count: count - bytes.count)
            let got = recv(socket, &part, part.count, Int32(MSG_DONTWAIT))
            if got > 0 { bytes += part.prefix(got) } else { reactor.turn() }
            if got == 0 { break }
        }
        return bytes
    }

    /// An HTTP answer without a body.
    func receiveHead() -> String {
        var text = ""
        while !text.hasSuffix("\r\n\r\n"), let next = receive(1).first { text.unicodeScalars.append(.init(next)) }
        return text
    }

    /// RFC 6143 §7.1-7.3 up to ServerInit; the desktop's size and name.
    func shakeHands() -> (width: Int, height: Int, name: String) {
        #expect(String(decoding: receive(12), as: UTF8.self) == "RFB 003.008\n")
        send(Array("RFB 003.008\n".utf8))
        let types = receive(1)
        #expect(receive(Int(types.first ?? 0)).contains(1), "security type None")
        send([1])
        #expect(receive(4) == [0, 0, 0, 0])
        send([1])
        let start = receive(24)
        guard start.count == 24 else { return (0, 0, "") }
        #expect(start[4] == 32 && Array(start[14...16]) == [16, 8, 0], "32 bits, red at 16, green at 8, blue at 0")
        let name = receive(Int(start[23]))
        return (
            Int(start[0]) << 8 | Int(start[1]), Int(start[2]) << 8 | Int(start[3]),
            String(decoding: name, as: UTF8.self)
        )
    }

    func request(width: Int, height: Int, incremental: Bool = false) {
        send([
            3, incremental ? 1 : 0, 0, 0, 0, 0, UInt8(width >> 8), UInt8(width & 255), UInt8(height >> 8),
            UInt8(height & 255),
        ])
    }

    func setEncodings(_ encodings: [Int32]) {
        var message: [UInt8] = [2, 0, 0, UInt8(encodings.count)]
        for value in encodings {
            for shift: Int32 in [24, 16, 8, 0] { message.append(UInt8(truncatingIfNeeded: value >> shift)) }
        }
        send(message)
    }

    /// The rectangles of one update: place, encoding, raw pixels.
    func update() -> [(x: Int, y: Int, width: Int, height: Int, encoding: Int32, pixels: [UInt8])] {
        let head = receive(4)
        guard head.count == 4, head[0] == 0 else { return [] }
        return (0..<(Int(head[2]) << 8 | Int(head[3]))).map { _ in
            let place = receive(12)
            func word(_ index: Int) -> Int { Int(place[index]) << 8 | Int(place[index + 1]) }
            let encoding = Int32(truncatingIfNeeded: word(8) << 16 | word(10))
            let pixels = encoding == 0 ? receive(word(4) * word(6) * 4) : []
            return (word(0), word(2), word(4), word(6), encoding, pixels)
        }
    }
}

@Suite("VNC server", .serialized) struct VNCTests {
    /// A server on a free port, with a linear screen of the guest's.
    private func serve(_ change: (inout VNCServer.Settings) -> Void = { _ in }) throws -> (Card, Reactor, VNCServer) {
        let card = Card()
        let reactor = try Reactor()
        var settings = VNCServer.Settings(name: "installer")
        settings.display = 700
        change(&settings)
        let server = try VNCServer(settings, screen: Screen(card.vga), reactor: reactor)
        return (card, reactor, server)
    }

    private func setLinear(_ card: Card, _ width: UInt64, _ height: UInt64) {
        card.out(0x3C2, 3)
        _ = card.input(0x3DA)
        card.out(0x3C0, 0x20)
        card.dispi(4, 0)
        for (index, value): (UInt64, UInt64) in [(1, width), (2, height), (3, 32), (4, 0x41)] {
            card.dispi(index, value)
        }
    }

    @Test("A client reads one frame as raw pixels, then only what changed, then the new size")
    func frame() throws {
        let (card, reactor, server) = try serve()
        setLinear(card, 160, 120)
        card.bytes.storeBytes(of: 0x0012_3456, toByteOffset: (160 * 2 + 3) * 4, as: UInt32.self)
        let client = try #require(Client(port: server.port, reactor: reactor))
        let hello = client.shakeHands()
        #expect(hello == (160, 120, "installer"))
        client.setEncodings([0, -223])
        client.request(width: 160, height: 120)
        let first = client.update()
        #expect(first.first?.pixels.count == 160 * 120 * 4)
        #expect(Array(first.first?.pixels.dropFirst((160 * 2 + 3) * 4).prefix(3) ?? []) == [0x56, 0x34, 0x12])

        card.bytes.storeBytes(of: 0x00FF_0000, toByteOffset: (160 * 40 + 70) * 4, as: UInt32.self)
        client.request(width: 160, height: 120, incremental: true)
        let second = client.update()
        #expect(second.count == 1 && second[0].x == 64 && second[0].y == 32 && second[0].width == 64)

        setLinear(card, 200, 100)
        client.request(width: 160, height: 120, incremental: true)
        let third = client.update()
        #expect(third.first?.encoding == -223 && third.first?.width == 200 && third.first?.height == 100)
    }

    @Test("Clients that come at once are all served") func newClients() throws {
        let (_, reactor, server) = try serve()
        let clients = try (0..<4).map { _ in try #require(Client(port: server.port, reactor: reactor)) }
        for client in clients { #expect(client.shakeHands().name == "installer") }
    }

    /// A browser's request for a web socket, from a page of `origin`.
    private func upgrade(origin: String, host: String = "127.0.0.1:5900") -> String {
        "GET / HTTP/1.1\r\nHost: \(host)\r\nOrigin: \(origin)\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            + "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
            + "Sec-WebSocket-Protocol: binary\r\n\r\n"
    }

    @Test("A browser's web socket is served on the same port, a foreign page's is not") func browser() throws {
        let (_, reactor, server) = try serve()
        let client = try #require(Client(port: server.port, reactor: reactor))
        client.send(Array(upgrade(origin: "http://127.0.0.1:6080").utf8))
        // RFC 6455 §1.3 has this key's answer.
        let answer = client.receiveHead()
        #expect(answer.hasPrefix("HTTP/1.1 101 ") && answer.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="))
        // One binary frame: the server's version.
        #expect(client.receive(14).suffix(12) == Array("RFB 003.008\n".utf8)[...])
        let foreign = try #require(Client(port: server.port, reactor: reactor))
        foreign.send(Array(upgrade(origin: "http://example.org").utf8))
        #expect(foreign.receive(1).isEmpty)
        #expect(server.clientCount == 1)
    }

    @Test("Who is let in, and when") func door() {
        func verdict(_ text: String?, _ waited: UInt64 = 0) -> VNCDoor.Verdict {
            VNCDoor.judge(text.map { Array($0.utf8) }, waited: waited)
        }
        #expect(verdict(nil) == .leave && verdict("") == .wait && verdict("", 50_000_000) == .enter(.viewer))
        #expect(verdict("RFB ") == .enter(.viewer) && verdict("GE", 60_000_000) == .wait)
        #expect(verdict("GET / HTTP/1.1\r\n", 6_000_000_000) == .leave)
        #expect(verdict("GET /" + String(repeating: "x", count: 4096)) == .leave)
        for origin in ["http://localhost:8000", "https://[::1]", "file://", "http://127.0.0.1"] {
            #expect(verdict(upgrade(origin: origin)) == .enter(.browser), "\(origin)")
        }
        #expect(verdict(upgrade(origin: "http://10.0.0.1:6080", host: "10.0.0.1:5900")) == .enter(.browser))
        #expect(verdict("GET / HTTP/1.1\r\nHost: a\r\n\r\n") == .enter(.browser), "no browser, so no page")
        for origin in ["null", "http://example.org", "http://127.0.0.1.example.org", "nonsense", "http://10.0.0.2"] {
            #expect(verdict(upgrade(origin: origin, host: "10.0.0.1")) == .leave, "\(origin)")
        }
        // A name that its owner points at this machine.
        #expect(verdict(upgrade(origin: "http://example.org:5900", host: "example.org:5900")) == .leave)
    }

    @Test("Keys come by keysym, and by scan code once the client may; keys go up when it leaves")
    func keys() throws {
        let (_, reactor, server) = try serve()
        var strokes: [String] = []
        server.onKey = { strokes.append(String($0, radix: 16) + ($1 ? "+" : "-")) }
        do {
            let client = try #require(Client(port: server.port, reactor: reactor))
            _ = client.shakeHands()
            for isDown: UInt8 in [1, 0] { client.send([4, isDown, 0, 0, 0, 0, 0, 0x41]) }
            client.pump()
            #expect(strokes == ["2a+", "1e+", "2a-", "1e-"])
            strokes = []
            client.setEncodings([0, -258])
            #expect(client.update().map(\.encoding) == [-258])
            client.send([255, 0, 0, 1, 0, 0, 0xFF, 0x52, 0, 0, 0, 0xC8])
            client.pump()
            #expect(strokes == ["c8+"])
        }
        let end = monotonicNanoseconds() + 1_000_000_000
        while server.clientCount > 0, monotonicNanoseconds() < end { reactor.turn() }
        #expect(server.clientCount == 0 && strokes == ["c8+", "c8-"])
    }

    @Test("The pointer is told as movement and as a place")
    func pointer() throws {
        let (_, reactor, server) = try serve()
        var motions: [VNCServer.Motion] = []
        server.onPointer = { motions.append($0) }
        let client = try #require(Client(port: server.port, reactor: reactor))
        _ = client.shakeHands()
        client.send([5, 0, 0, 100, 0, 100])
        client.send([5, 0b101, 0, 110, 0, 95])
        client.send([5, 0b1000, 0, 110, 0, 95])
        client.pump()
        #expect(motions.map(\.dx) == [0, 10, 0] && motions.map(\.dy) == [0, -5, 0])
        #expect(motions.map(\.buttons) == [0, 0b11, 0] && motions.map(\.wheel) == [0, 0, -1])
        #expect(motions.first?.x == 100 * 32_767 / 639)
    }

    @Test("With a password, the server asks for it")
    func password() throws {
        let (_, reactor, server) = try serve { $0.password = "secret" }
        let client = try #require(Client(port: server.port, reactor: reactor))
        _ = client.receive(12)
        client.send(Array("RFB 003.008\n".utf8))
        #expect(client.receive(2) == [1, 2], "VNC authentication only")
        client.send([2])
        #expect(client.receive(16).count == 16)
        client.send([UInt8](repeating: 0, count: 16))
        #expect(client.receive(4) == [0, 0, 0, 1])
    }

    @Test("A taken port is one clear error, or the next port; other addresses are refused")
    func ports() throws {
        let (_, _, first) = try serve()
        let (_, _, second) = try serve { $0.display = first.port - 5900 }
        #expect(first.address == "127.0.0.1" && second.port > first.port)
        #expect {
            _ = try serve { ($0.display, $0.findsFreePort) = (first.port - 5900, false) }
        } throws: {
            "\($0)" == "cannot listen on VNC port \(first.port) of 127.0.0.1: Address already in use"
        }
        #expect(throws: HostFailure.self) { _ = try serve { $0.address = "nowhere" } }
    }
}
