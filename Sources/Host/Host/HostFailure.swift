internal import Glibc

/// An operation of the host that failed: what was done, to what, and why.
public struct HostFailure: Error, CustomStringConvertible, Sendable {
    public var operation: String
    public var subject: String
    /// errno(3).
    public var code: Int32
    public init(_ operation: String, _ subject: String, code: Int32) {
        (self.operation, self.subject, self.code) = (operation, subject, code)
    }
    /// From a result that is -errno when negative.
    public init(_ operation: String, _ subject: String, result: Int) {
        self.init(operation, subject, code: Int32(truncatingIfNeeded: -result))
    }
    public var description: String { "cannot \(operation) \(subject): \(String(cString: strerror(code)))" }
}

/// A file descriptor that is closed with its owner.
public final class Descriptor: Sendable {
    public let number: Int32
    public init(owning number: Int32) { self.number = number }
    deinit { close(number) }

    /// The other end of a socket or pipe is closed.
    public var hasHungUp: Bool {
        var watch = pollfd(fd: number, events: 0, revents: 0)
        return poll(&watch, 1, 0) > 0
    }
}
