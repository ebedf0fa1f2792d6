// The host's side of COM1: a pseudo-terminal or a file.
// Source: xl.cfg(5), "serial".
// Modelled: "pty", "file:PATH", "none". Not modelled: TCP and Unix sockets.
// Quirks: what nobody reads is kept up to 64 KiB, oldest first; then the oldest is lost, and the guest never waits.

internal import Host

/// Where a UART's bytes go, and where they come from.
final class SerialPort {
    private let reactor: Reactor
    private let output: Descriptor?
    /// Kept open for its life.
    private let terminal: PseudoTerminal?
    /// Path of the pseudo-terminal.
    var path: String? { terminal?.path }
    private var pending: [UInt8] = []
    private var isWaiting = false
    private var isFull = false
    private static let limit = 65_536
    weak var uart: UART16550?

    /// - Parameter target: xl.cfg's value.
    init(_ target: String?, reactor: Reactor) throws(HostFailure) {
        self.reactor = reactor
        switch target {
        case "pty":
            let terminal = try PseudoTerminal()
            (self.terminal, output) = (terminal, terminal.master)
        case let path? where path.hasPrefix("file:"):
            terminal = nil
            output = try HostFile.open(String(path.dropFirst(5)), [.write, .create, .append, .nonBlocking])
        default: (terminal, output) = (nil, nil)
        }
        watch()
    }

    func transmit(_ byte: UInt8) {
        guard output != nil else { return }
        pending.append(byte)
        if pending.count > Self.limit { pending.removeFirst(Self.limit / 4) }
        if !isWaiting { flush() }
    }

    /// Takes input up again once the guest has made room.
    func guestRead() {
        guard isFull, let uart, uart.room > 0 else { return }
        isFull = false
        watch()
    }

    private func flush() {
        guard let output, !pending.isEmpty else { return }
        pending.removeFirst(NonBlocking.write(pending[...], to: output.number))
        let waits = !pending.isEmpty
        guard waits != isWaiting, terminal != nil else { return }
        isWaiting = waits
        watch()
    }

    private func watch() {
        guard let terminal else { return }
        let events = (isFull ? 0 : Reactor.readable) | (isWaiting ? Reactor.writable : 0)
        reactor.watch(terminal.master.number, for: events) { [unowned self] ready in
            if ready & Reactor.writable != 0 { flush() }
            if ready & Reactor.readable != 0 { receive() }
        }
    }

    private func receive() {
        guard let terminal, let uart else { return }
        let room = uart.room
        if room > 0 { uart.receive(NonBlocking.read(terminal.master.number, limit: room)) }
        guard uart.room == 0 else { return }
        isFull = true
        watch()
    }
}
