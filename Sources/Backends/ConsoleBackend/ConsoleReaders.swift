// Those who look at a console: a terminal, and any number of clients of a socket.
// Source: pty(7), unix(7); xenconsoled's ways (a terminal that nobody reads keeps the last bytes for who comes).
// Modelled: bounded queues, history for each new client. Not modelled: who may type (all may).
// Quirks: the terminal is one stream: two programs that read it share the bytes. Clients of the socket get all each.
public import Host

/// The host's side of one console. Everything happens on the reactor's thread.
public final class ConsoleReaders {
    /// Bytes that wait for the terminal's reader.
    static let terminalLimit = 1 << 16

    public let terminal: PseudoTerminal
    private let reactor: Reactor
    private let server: StreamServer?
    private var clients: Set<StreamServer.Client> = []
    private var waiting: [UInt8] = []
    /// What somebody has typed.
    public var onInput: ([UInt8]) -> Void = { _ in }
    /// What a new client sees first.
    public var history: () -> [UInt8] = { [] }

    /// With `socket`, serves clients there too.
    public init(socket: String? = nil, reactor: Reactor) throws(HostFailure) {
        terminal = try PseudoTerminal()
        self.reactor = reactor
        if let socket { server = try StreamServer(path: socket, reactor: reactor) } else { server = nil }
        server?.onConnect = { [weak self] client in
            guard let self else { return }
            clients.insert(client)
            server?.send(history(), to: client)
        }
        server?.onDisconnect = { [weak self] in self?.clients.remove($0) }
        server?.onBytes = { [weak self] _, bytes in self?.onInput(Array(bytes)) }
        watch()
    }

    /// Shows bytes to everybody.
    public func show(_ bytes: [UInt8]) {
        for client in clients { server?.send(bytes, to: client) }
        waiting += bytes
        flush()
        if waiting.count > Self.terminalLimit { waiting.removeFirst(waiting.count - Self.terminalLimit) }
        watch()
    }

    public func close() {
        reactor.unwatch(terminal.master.number)
        server?.close()
        clients = []
    }

    private func watch() {
        let events = waiting.isEmpty ? Reactor.readable : Reactor.readable | Reactor.writable
        reactor.watch(terminal.master.number, for: events) { [weak self] events in
            guard let self else { return }
            if events & Reactor.writable != 0 {
                flush()
                if waiting.isEmpty { watch() }
            }
            if events & Reactor.readable != 0 {
                let bytes = NonBlocking.read(terminal.master.number, limit: 4096)
                if !bytes.isEmpty { onInput(bytes) }
            }
        }
    }

    private func flush() {
        while !waiting.isEmpty {
            let count = NonBlocking.write(waiting[...], to: terminal.master.number)
            guard count > 0 else { return }
            waiting.removeFirst(count)
        }
    }
}
