// Unix sockets that carry a stream of bytes, served in a reactor's thread.
// Source: unix(7).
// Modelled: many clients, output that waits until a client takes it, up to a limit.
// Quirks: a client that takes nothing while more than the limit waits for it is dropped.
internal import CHost
internal import Glibc

public final class StreamServer {
    /// A connected client; its descriptor's number.
    public typealias Client = Int32
    public var onConnect: (Client) -> Void = { _ in }
    public var onBytes: (Client, ArraySlice<UInt8>) -> Void = { _, _ in }
    public var onDisconnect: (Client) -> Void = { _ in }

    private let path: String
    private let reactor: Reactor
    private let listener: Descriptor
    private let outputLimit: Int
    private var clients: [Client: (socket: Descriptor, output: [UInt8])] = [:]

    public init(path: String, reactor: Reactor, outputLimit: Int = 1 << 20) throws(HostFailure) {
        let result = chost_unix_listen(path)
        guard result >= 0 else { throw HostFailure("listen on", path, result: Int(result)) }
        (self.path, self.reactor, self.outputLimit) = (path, reactor, outputLimit)
        listener = Descriptor(owning: result)
        reactor.watch(result) { [weak self] _ in self?.accept() }
    }

    /// Ends every connection and removes the socket's file.
    public func close() {
        reactor.unwatch(listener.number)
        for client in clients.keys { reactor.unwatch(client) }
        clients = [:]
        unlink(path)
    }

    /// Sends now what the client takes, and the rest when it can.
    public func send(_ bytes: [UInt8], to client: Client) {
        guard let entry = clients[client] else { return }
        guard entry.output.count + bytes.count <= outputLimit else { return drop(client) }
        clients[client]?.output += bytes
        flush(client)
    }

    public func drop(_ client: Client) {
        guard clients.removeValue(forKey: client) != nil else { return }
        reactor.unwatch(client)
        onDisconnect(client)
    }

    private func accept() {
        let number = chost_accept(listener.number)
        guard number >= 0 else { return }
        onConnect(adopt(Descriptor(owning: number)))
    }

    /// Serves a connection that was made elsewhere; `onConnect` is not called for it.
    public func adopt(_ socket: Descriptor) -> Client {
        _ = chost_fcntl(socket.number, F_SETFL, Int(O_NONBLOCK))
        clients[socket.number] = (socket, [])
        watch(socket.number, writing: false)
        return socket.number
    }

    private func watch(_ client: Client, writing: Bool) {
        reactor.watch(client, for: writing ? Reactor.readable | Reactor.writable : Reactor.readable) {
            [weak self] events in
            if events & Reactor.writable != 0 { self?.flush(client) }
            if events & (Reactor.readable | Reactor.hangUp) != 0 { self?.receive(client) }
        }
    }

    private func receive(_ client: Client) {
        guard clients[client] != nil else { return }
        var chunk = [UInt8](repeating: 0, count: 16_384)
        let count = recv(client, &chunk, chunk.count, 0)
        if count < 0 && (errno == EAGAIN || errno == EINTR) { return }
        guard count > 0 else { return drop(client) }
        onBytes(client, chunk.prefix(count))
    }

    private func flush(_ client: Client) {
        guard let output = clients[client]?.output, !output.isEmpty else { return }
        let sent = Glibc.send(client, output, output.count, Int32(MSG_NOSIGNAL))
        if sent < 0 && errno != EAGAIN && errno != EINTR { return drop(client) }
        clients[client]?.output.removeFirst(max(0, sent))
        watch(client, writing: clients[client]?.output.isEmpty == false)
    }
}
