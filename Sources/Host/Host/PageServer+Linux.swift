// A page of text for one visitor at a time, by HTTP: on a Unix socket, or on a port of 127.0.0.1.
// Source: RFC 9112 as far as scrapers use it; socket(7), tcp(7), unix(7).
// Modelled: GET with any header, one answer a connection. Not modelled: anything kept alive, TLS, other addresses.
// Quirks: a visitor that sends nothing for five seconds is sent away.
internal import CHost
internal import Glibc

public final class PageServer {
    public enum Place: Equatable, Sendable {
        case path(String)
        /// 0: any that is free.
        case port(UInt16)

        /// "unix:PATH", a path with a slash, "127.0.0.1:PORT", or a port alone.
        public init?(_ text: String) {
            let local = ["127.0.0.1:", "localhost:"].first { text.hasPrefix($0) }
            if text.hasPrefix("unix:"), text.utf8.count > 5 {
                self = .path(String(text.dropFirst(5)))
            } else if text.contains("/") {
                self = .path(text)
            } else if let port = UInt16(text.dropFirst(local?.count ?? 0)) {
                self = .port(port)
            } else {
                return nil
            }
        }
    }

    private let listener: Descriptor
    private let place: Place

    public init(_ place: Place) throws(HostFailure) {
        self.place = place
        switch place {
        case .path(let path): listener = try StreamSocket.listen(path)
        case .port(let port): listener = try Self.listen(port)
        }
    }

    deinit { if case .path(let path) = place { HostFile.remove(path) } }

    private static func listen(_ port: UInt16) throws(HostFailure) -> Descriptor {
        let number = socket(AF_INET, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        guard number >= 0 else { throw HostFailure("make", "a socket", code: errno) }
        let listener = Descriptor(owning: number)
        var yes: Int32 = 1
        setsockopt(number, SOL_SOCKET, SO_REUSEADDR, &yes, socklen_t(MemoryLayout<Int32>.size))
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = port.bigEndian
        address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
        let result = withUnsafeBytes(of: &address) { bytes in
            bind(
                number, bytes.baseAddress?.assumingMemoryBound(to: sockaddr.self),
                socklen_t(MemoryLayout<sockaddr_in>.size))
        }
        guard result == 0, Glibc.listen(number, 8) == 0 else {
            throw HostFailure("listen on", "127.0.0.1:\(port)", code: errno)
        }
        return listener
    }

    /// The port it listens on; nil for a path.
    public var port: UInt16? {
        guard case .port = place else { return nil }
        var address = sockaddr_in()
        var length = socklen_t(MemoryLayout<sockaddr_in>.size)
        let result = withUnsafeMutableBytes(of: &address) { bytes in
            getsockname(listener.number, bytes.baseAddress?.assumingMemoryBound(to: sockaddr.self), &length)
        }
        return result == 0 ? UInt16(bigEndian: address.sin_port) : nil
    }

    /// Waits for a visitor and answers: `page` gives what is at a path, nil if nothing is.
    public func serveOne(_ page: (String) -> String?) {
        let number = accept(listener.number, nil, nil)
        guard number >= 0 else { return }
        let visitor = Descriptor(owning: number)
        let answer: String
        switch Self.target(Self.request(visitor)) {
        case nil: answer = Self.answer("400 Bad Request", "this is no HTTP request\n")
        case .some(nil): answer = Self.answer("405 Method Not Allowed", "GET only\n")
        case .some(.some(let path)):
            if let body = page(path) {
                answer = Self.answer("200 OK", body)
            } else {
                answer = Self.answer("404 Not Found", "there is nothing at \(path)\n")
            }
        }
        Self.send(Array(answer.utf8), to: visitor)
    }

    /// The head of a request, 8 KiB at most.
    private static func request(_ visitor: Descriptor) -> [UInt8] {
        var wait = timeval(tv_sec: 5, tv_usec: 0)
        for option in [SO_RCVTIMEO, SO_SNDTIMEO] {
            setsockopt(visitor.number, SOL_SOCKET, option, &wait, socklen_t(MemoryLayout<timeval>.size))
        }
        var head: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 2048)
        while head.count < 8192,
            !head.contains(10) || !(head.suffix(4) == [13, 10, 13, 10] || head.suffix(2) == [10, 10])
        {
            let count = recv(visitor.number, &chunk, chunk.count, 0)
            guard count > 0 else { break }
            head += chunk.prefix(count)
        }
        return head
    }

    /// The path that is asked for; nil inside if it is asked for otherwise than by GET, nil if this is no request.
    private static func target(_ head: [UInt8]) -> String?? {
        let line = head.prefix { $0 != 10 && $0 != 13 }
        let words = String(decoding: line, as: UTF8.self).split(separator: " ")
        guard words.count == 3, words[2].hasPrefix("HTTP/") else { return nil }
        guard words[0] == "GET" else { return .some(nil) }
        return .some(String(words[1].prefix { $0 != "?" }))
    }

    private static func answer(_ status: String, _ body: String) -> String {
        "HTTP/1.1 \(status)\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
            + "Content-Length: \(body.utf8.count)\r\nConnection: close\r\n\r\n\(body)"
    }

    private static func send(_ bytes: [UInt8], to visitor: Descriptor) {
        var done = 0
        while done < bytes.count {
            let count = bytes[done...].withUnsafeBytes { Glibc.send(visitor.number, $0.baseAddress, $0.count, 0x4000) }
            guard count > 0 else { return }
            done += count
        }
    }
}
