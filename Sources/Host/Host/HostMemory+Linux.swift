internal import CHost
internal import Glibc

/// The host's memory as /proc/meminfo has it (proc(5)).
public enum HostMemory {
    /// Bytes that can be taken without swapping: "MemAvailable" and free swap; nil if the host does not say.
    public static var available: UInt64? {
        guard let bytes = try? HostFile.read("/proc/meminfo") else { return nil }
        let lines = String(decoding: bytes, as: UTF8.self).split(separator: "\n")
        func kibibytes(_ key: String) -> UInt64? {
            guard let line = lines.first(where: { $0.hasPrefix(key + ":") }) else { return nil }
            return line.split(separator: " ").dropFirst().first.flatMap { UInt64($0) }
        }
        return kibibytes("MemAvailable").map { ($0 + (kibibytes("SwapFree") ?? 0)) << 10 }
    }
}

/// An eventfd(2) that one side rings and a reactor watches.
public final class HostEvent: Sendable {
    public let descriptor: Descriptor
    public init() throws(HostFailure) {
        let result = eventfd(0, Int32(EFD_CLOEXEC) | Int32(EFD_NONBLOCK))
        guard result >= 0 else { throw HostFailure("make", "an event descriptor", code: errno) }
        descriptor = Descriptor(owning: result)
    }
    public func ring() {
        var one: UInt64 = 1
        _ = write(descriptor.number, &one, 8)
    }
    /// Takes the rings back.
    public func clear() {
        var count: UInt64 = 0
        _ = read(descriptor.number, &count, 8)
    }
}
