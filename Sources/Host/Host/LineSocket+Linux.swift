// Unix sockets that carry lines of text: one request, one answer.
// Source: unix(7).
// Modelled: a client with a deadline, and a server in a reactor; descriptors that go with a line. Not modelled: more
// than one request in flight.
// Quirks: paths longer than sockaddr_un's 107 bytes work.
internal import CHost
internal import Glibc

/// A question to a `LineServer`: sent when it is made, answered later.
public struct LineQuestion: Sendable {
    private let socket: Descriptor
    private let path: String

    /// Sends one line, and `descriptors` with it, to the server at `path`.
    public init(_ line: String, descriptors: [Int32] = [], at path: String) throws(HostFailure) {
        let result = chost_unix_connect(path)
        guard result >= 0 else { throw HostFailure("reach", path, result: Int(result)) }
        (socket, self.path) = (Descriptor(owning: result), path)
        let bytes = Array((line + "\n").utf8)
        let sent = chost_send_descriptors(socket.number, bytes, bytes.count, descriptors, Int32(descriptors.count))
        guard sent == bytes.count else { throw HostFailure("send to", path, result: min(sent, 0)) }
    }

    /// Waits for the answer.
    public func answer(seconds: Double) throws(HostFailure) -> String {
        let deadline = monotonicNanoseconds() + UInt64(max(0, seconds) * 1e9)
        var answer: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 4096)
        while answer.count < 1 << 20 {
            let now = monotonicNanoseconds()
            var watch = pollfd(fd: socket.number, events: Int16(POLLIN), revents: 0)
            let milliseconds = now < deadline ? Int32((deadline - now) / 1_000_000 + 1) : 0
            let ready = poll(&watch, 1, milliseconds)
            if ready < 0 && errno == EINTR { continue }
            guard ready > 0 else { throw HostFailure("get an answer from", path, code: ETIMEDOUT) }
            let count = recv(socket.number, &chunk, chunk.count, 0)
            guard count > 0 else { throw HostFailure("get an answer from", path, code: count < 0 ? errno : EPIPE) }
            answer += chunk.prefix(count)
            if let end = answer.firstIndex(of: 10) { return String(decoding: answer[..<end], as: UTF8.self) }
        }
        throw HostFailure("read the answer of", path, code: EMSGSIZE)
    }
}

/// A client of a `LineServer`.
public enum LineClient {
    /// Asks the server at `path` and waits for its answer.
    public static func request(
        _ line: String, descriptors: [Int32] = [], at path: String, seconds: Double = 5
    ) throws(HostFailure) -> String {
        try LineQuestion(line, descriptors: descriptors, at: path).answer(seconds: seconds)
    }
}

/// Serves lines on a Unix socket, in a reactor's thread. The socket file goes with it.
public final class LineServer {
    /// Takes a line and a way to answer it, now or later, once.
    public typealias Handler = (_ line: String, _ answer: @escaping (String) -> Void) -> Void
    /// A longer line ends its connection.
    private static let longest = 1 << 16

    private let path: String
    private let reactor: Reactor
    private let listener: Descriptor
    private let handler: Handler
    private var clients: [Int32: (socket: Descriptor, pending: [UInt8], enclosed: [Descriptor])] = [:]
    /// What came with the line that is being handled.
    public private(set) var enclosed: [Descriptor] = []

    public init(path: String, reactor: Reactor, handler: @escaping Handler) throws(HostFailure) {
        let result = chost_unix_listen(path)
        guard result >= 0 else { throw HostFailure("listen on", path, result: Int(result)) }
        (self.path, self.reactor, self.handler) = (path, reactor, handler)
        listener = Descriptor(owning: result)
        reactor.watch(result) { [weak self] _ in self?.accept() }
    }

    /// Serves what was sent before now, without waiting for more: whoever asked in time gets an answer before a `close`.
    public func serveReceived() {
        while !HostFile.waitReadable([listener.number], milliseconds: 0).isEmpty, accept() {}
        for client in Array(clients.keys) {
            // One that has hung up is dropped, and is none of the clients then.
            while clients[client] != nil, !HostFile.waitReadable([client], milliseconds: 0).isEmpty { receive(client) }
        }
    }

    public func close() {
        reactor.unwatch(listener.number)
        for client in clients.keys { reactor.unwatch(client) }
        clients = [:]
        unlink(path)
    }

    @discardableResult private func accept() -> Bool {
        let number = chost_accept(listener.number)
        guard number >= 0 else { return false }
        clients[number] = (Descriptor(owning: number), [], [])
        reactor.watch(number) { [weak self] _ in self?.receive(number) }
        return true
    }

    private func receive(_ number: Int32) {
        var chunk = [UInt8](repeating: 0, count: 4096)
        var descriptors = [Int32](repeating: -1, count: Int(CHOST_MOST_DESCRIPTORS))
        var held: Int32 = 0
        let count = chost_receive_descriptors(number, &chunk, chunk.count, &descriptors, &held)
        let new = descriptors.prefix(Int(held)).map { Descriptor(owning: $0) }
        if count == -Int(EAGAIN) || count == -Int(EINTR) { return }
        guard count > 0, var client = clients[number], client.pending.count < Self.longest else { return drop(number) }
        client.pending += chunk.prefix(count)
        // They come with the first bytes of their line, which may come in pieces.
        client.enclosed = (client.enclosed + new).suffix(Int(CHOST_MOST_DESCRIPTORS))
        var lines: [String] = []
        while let end = client.pending.firstIndex(of: 10) {
            lines.append(String(decoding: client.pending[..<end], as: UTF8.self))
            client.pending.removeFirst(end + 1)
        }
        if !lines.isEmpty { (enclosed, client.enclosed) = (client.enclosed, []) }
        defer { enclosed = [] }
        clients[number] = client
        let socket = client.socket
        for line in lines { handler(line) { answer in Self.send(answer, to: socket) } }
    }

    /// Answers are short; a client that does not take one loses it.
    private static func send(_ answer: String, to socket: Descriptor) {
        let bytes = Array((answer + "\n").utf8)
        _ = Glibc.send(socket.number, bytes, bytes.count, Int32(MSG_NOSIGNAL))
    }

    private func drop(_ number: Int32) {
        reactor.unwatch(number)
        clients[number] = nil
    }
}

/// Unix stream sockets for other uses than lines.
public enum StreamSocket {
    /// The socket file is made anew.
    public static func listen(_ path: String) throws(HostFailure) -> Descriptor {
        let result = chost_unix_listen(path)
        guard result >= 0 else { throw HostFailure("listen on", path, result: Int(result)) }
        return Descriptor(owning: result)
    }

    public static func connect(_ path: String) throws(HostFailure) -> Descriptor {
        let result = chost_unix_connect(path)
        guard result >= 0 else { throw HostFailure("reach", path, result: Int(result)) }
        return Descriptor(owning: result)
    }

    /// Two connected ends; they never block unless that is wanted.
    public static func pair(isBlocking: Bool = false) throws(HostFailure) -> (Descriptor, Descriptor) {
        var ends: [Int32] = [-1, -1]
        var type = Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue)
        if !isBlocking { type |= Int32(SOCK_NONBLOCK.rawValue) }
        guard socketpair(AF_UNIX, type, 0, &ends) == 0 else { throw HostFailure("make", "a socket pair", code: errno) }
        return (Descriptor(owning: ends[0]), Descriptor(owning: ends[1]))
    }

    /// The next connection; it never blocks a writer.
    public static func accept(_ listener: Descriptor) throws(HostFailure) -> Descriptor {
        let result = chost_accept(listener.number)
        guard result >= 0 else { throw HostFailure("accept on", "a socket", result: Int(result)) }
        return Descriptor(owning: result)
    }
}
