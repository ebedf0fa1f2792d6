// The host's end of a terminal that programs open by name.
// Source: pty(7).
// Modelled: raw mode, non-blocking ends. Not modelled: window sizes.
// Quirks: the slave stays open here too, so that it survives a moment without a user.
internal import CHost
internal import Glibc

/// A pseudo-terminal.
public final class PseudoTerminal: Sendable {
    /// Non-blocking.
    public let master: Descriptor
    private let slave: Descriptor
    /// /dev/pts/N.
    public let path: String

    public init() throws(HostFailure) {
        var name = [CChar](repeating: 0, count: 128)
        let result = chost_open_terminal(&name, name.count)
        guard result >= 0 else { throw HostFailure("make", "a pseudo-terminal", result: Int(result)) }
        master = Descriptor(owning: result)
        path = String(decoding: name.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
        slave = try HostFile.open(path, [.readWrite, .noTerminal])
        var mode = termios()
        guard tcgetattr(slave.number, &mode) == 0 else { throw HostFailure("set up", path, code: errno) }
        cfmakeraw(&mode)
        guard tcsetattr(slave.number, TCSANOW, &mode) == 0 else { throw HostFailure("set up", path, code: errno) }
    }
}

/// Bytes to and from a descriptor that never blocks its thread.
public enum NonBlocking {
    /// Bytes that could be read now, at most `limit`; empty if there are none.
    public static func read(_ descriptor: Int32, limit: Int) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: limit)
        let count = Glibc.read(descriptor, &bytes, limit)
        return Array(bytes.prefix(max(0, count)))
    }

    /// How many of `bytes` could be written now.
    public static func write(_ bytes: ArraySlice<UInt8>, to descriptor: Int32) -> Int {
        bytes.withUnsafeBytes { max(0, Glibc.write(descriptor, $0.baseAddress, $0.count)) }
    }
}

/// Wall-clock time, for a chip that shows it.
public func wallClockSeconds() -> Int64 { Int64(time(nil)) }
