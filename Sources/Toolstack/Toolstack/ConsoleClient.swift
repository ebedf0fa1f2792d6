// A user at a domain's serial console.
// Source: xl(1), "console": ctrl-] leaves.
// Modelled: several users at once, all of whom see the same and may type.
// Quirks: a pty gives each byte to one reader only, so the first user passes on what it reads to the others
//     over a socket beside the link; when it leaves, the next one takes its place.

internal import Foundation
internal import Host

/// Connects standard input and output with a domain's console.
struct ConsoleClient {
    private enum End { case left, hubLeft, domainEnded }
    /// ctrl-]
    private static let escape: UInt8 = 0x1D

    /// The console's link to its pty; its users meet beside it.
    private let terminal: String
    private var socket: String { terminal + ".sock" }

    init(_ directory: DomainDirectory, terminal: String? = nil) {
        self.terminal = terminal ?? directory.console
    }

    /// Until the user leaves or the domain ends. The exit code.
    func run() throws(ToolstackError) -> Int32 {
        let terminal = RawTerminal(0)
        defer { terminal.restore() }
        var attached = false
        do {
            for attempt in 0... {
                guard FileManager.default.fileExists(atPath: self.terminal) else {
                    if attached { return 0 }
                    throw ToolstackError("the domain has no console (set serial='pty')")
                }
                guard let lock = try? HostFile.open(self.terminal + ".lock", [.readWrite, .create]) else {
                    return 0
                }
                let end: End
                if try HostFile.lock(lock, wait: false) {
                    end = try serve(attached: &attached)
                } else if let hub = try? StreamSocket.connect(socket) {
                    attached = true
                    end = try follow(hub)
                } else {
                    // The first user has the lock and not yet the socket, or just left.
                    if attempt > 200 { throw ToolstackError("another console of this domain hangs") }
                    Thread.sleep(forTimeInterval: 0.02)
                    continue
                }
                if end != .hubLeft { return 0 }
            }
        } catch let error as ToolstackError {
            throw error
        } catch {
            throw ToolstackError("\(error)")
        }
        return 0
    }

    /// What comes from the keyboard up to the escape; nil in `keys` at the end of input.
    private func keys() -> (keys: [UInt8]?, leaves: Bool) {
        guard let bytes = try? HostFile.readAvailable(0, limit: 4096), !bytes.isEmpty else { return (nil, false) }
        guard let end = bytes.firstIndex(of: Self.escape) else { return (bytes, false) }
        return (Array(bytes[..<end]), true)
    }

    /// As the first user: between the pty, the own terminal and the other users.
    private func serve(attached: inout Bool) throws -> End {
        let pty = try HostFile.open(terminal, [.readWrite, .noTerminal])
        attached = true
        let raw = RawTerminal(pty.number)
        defer { withExtendedLifetime(raw) {} }
        let listener = try StreamSocket.listen(socket)
        defer { HostFile.remove(socket) }
        var others: [Descriptor] = []
        var hasInput = true
        while true {
            let watched = (hasInput ? [0] : []) + [pty.number, listener.number] + others.map(\.number)
            let ready = HostFile.waitReadable(watched)
            if ready.contains(pty.number) {
                guard let bytes = try? HostFile.readAvailable(pty.number), !bytes.isEmpty else { return .domainEnded }
                try? HostFile.write(bytes, to: 1)
                others.removeAll { (try? HostFile.write(bytes, to: $0.number)) == nil }
            }
            if ready.contains(0) {
                let (typed, leaves) = keys()
                if let typed { try? HostFile.write(typed, to: pty.number) } else { hasInput = false }
                if leaves { return .left }
            }
            for other in others where ready.contains(other.number) {
                let typed = (try? HostFile.readAvailable(other.number)) ?? []
                if typed.isEmpty { others.removeAll { $0 === other } }
                try? HostFile.write(typed, to: pty.number)
            }
            if ready.contains(listener.number), let other = try? StreamSocket.accept(listener) { others.append(other) }
        }
    }

    /// As one of the others: through the first user.
    private func follow(_ hub: Descriptor) throws -> End {
        var hasInput = true
        while true {
            let ready = HostFile.waitReadable((hasInput ? [0] : []) + [hub.number])
            if ready.contains(hub.number) {
                guard let bytes = try? HostFile.readAvailable(hub.number), !bytes.isEmpty else { return .hubLeft }
                try? HostFile.write(bytes, to: 1)
            }
            if ready.contains(0) {
                let (typed, leaves) = keys()
                if let typed { try? HostFile.write(typed, to: hub.number) } else { hasInput = false }
                if leaves { return .left }
            }
        }
    }
}
