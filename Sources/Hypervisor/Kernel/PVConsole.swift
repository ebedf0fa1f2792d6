// The guest's Xen console on a pseudo-terminal, and in a log.
// Source: Xen public/io/console.h (struct xencons_interface).
// Modelled: both directions, a log of all output. Not modelled: several readers at once (the terminal has one).
// Quirks: output that no reader takes is dropped from the terminal, not from the log.

internal import Host

/// Belongs to the reactor's thread; `signal` may be called from any.
final class PVConsole {
    // Offsets in the page: input ring of 1024 bytes, output ring of 2048, four indices.
    private enum Field {
        static let input = 0
        static let output = 1024
        static let inputConsumed = 3072
        static let inputProduced = 3076
        static let outputConsumed = 3080
        static let outputProduced = 3084
    }

    private let page: GuestArea
    private let terminal: PseudoTerminal
    private let log: Descriptor
    private let bell: HostEvent
    private let notify: () -> Void
    private var waiting: [UInt8] = []

    /// `directory` gets the link `console` and the log; `notify` signals the guest.
    init(_ page: GuestArea, directory: String, notify: @escaping () -> Void) throws {
        (self.page, self.notify) = (page, notify)
        terminal = try PseudoTerminal()
        log = try HostFile.open(directory + "/guest-console.log", [.write, .create, .append])
        bell = try HostEvent()
        try HostFile.link(directory + "/console", to: terminal.path)
    }

    /// What the guest's end of the event channel does.
    var signal: @Sendable () -> Void { { [bell] in bell.ring() } }

    func attach(to reactor: Reactor) {
        reactor.watch(bell.descriptor.number) { [unowned self, unowned reactor] _ in
            bell.clear()
            let (hasOutput, hasInput) = (drain(), feed())
            if hasOutput || hasInput { notify() }
            if hasInput { watchTerminal(reactor) }
        }
        watchTerminal(reactor)
    }

    /// With the input ring full, what is typed stays in the terminal's buffer.
    private func watchTerminal(_ reactor: Reactor) {
        reactor.watch(terminal.master.number) { [unowned self, unowned reactor] _ in
            waiting += NonBlocking.read(terminal.master.number, limit: 512)
            if feed() { notify() }
            if !waiting.isEmpty { reactor.unwatch(terminal.master.number) }
        }
    }

    /// Takes what the guest wrote; whether there was anything.
    private func drain() -> Bool {
        let consumed = page.acquire(Field.outputConsumed)
        let produced = page.acquire(Field.outputProduced)
        let count = Int(produced &- consumed)
        guard count > 0, count <= 2048 else { return false }
        let bytes = (0..<count).map {
            page.load(Field.output + Int((consumed &+ UInt32($0)) & 2047), as: UInt8.self)
        }
        page.release(produced, at: Field.outputConsumed)
        _ = NonBlocking.write(bytes[...], to: terminal.master.number)
        try? HostFile.write(bytes, to: log.number)
        return true
    }

    /// Gives the guest what was typed; whether any of it found room.
    private func feed() -> Bool {
        let consumed = page.acquire(Field.inputConsumed)
        let produced = page.acquire(Field.inputProduced)
        let used = Int(produced &- consumed)
        guard !waiting.isEmpty, used < 1024 else { return false }
        let bytes = waiting.prefix(1024 - used)
        for (index, byte) in bytes.enumerated() {
            page.store(byte, at: Field.input + Int((produced &+ UInt32(index)) & 1023))
        }
        page.release(produced &+ UInt32(bytes.count), at: Field.inputProduced)
        waiting.removeFirst(bytes.count)
        return true
    }
}
