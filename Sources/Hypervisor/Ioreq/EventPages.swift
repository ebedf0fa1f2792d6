// The memory that a domain's hypervisor and back ends share for event channels between them.
// Source: Xen's public/event_channel.h: an event is a bit that stands for any number of sends.
// Modelled: 4096 ports of the back ends' own, both directions. Quirks: the guest's own pending and mask bits stay
// in its shared info page; these bits only carry sends from one process to the other.

public import Host
internal import Synchronization

/// Both processes make one over the same memory.
public struct EventPages: @unchecked Sendable {
    // Invariant: every word is only touched through atomics.
    public static let ports = 4096
    public static let size = 2 * 4096

    private enum Offset {
        static let toBackend = 0
        static let toGuest = 512
        static let backendSummary = 1024
        static let guestSummary = 1088
        static let asleep = 1152
        static let vcpus = 4096
    }

    public let memory: SharedMemory
    private let base: UnsafeMutableRawPointer

    /// New pages for a new domain.
    public static func make() throws(HostFailure) -> EventPages {
        EventPages(try SharedMemory(named: "apus-events", size: size))
    }

    public init(_ memory: SharedMemory) {
        precondition(memory.bytes.count >= Self.size, "event pages are too small")
        self.memory = memory
        guard let base = memory.bytes.baseAddress else { preconditionFailure("event pages are not mapped") }
        self.base = base
    }

    @inline(__always) private func word(_ offset: Int) -> UnsafeMutablePointer<Atomic<UInt64>> {
        (base + offset).assumingMemoryBound(to: Atomic<UInt64>.self)
    }
    private var asleep: UnsafeMutablePointer<Atomic<UInt32>> {
        (base + Offset.asleep).assumingMemoryBound(to: Atomic<UInt32>.self)
    }

    private func set(_ port: Int, _ bits: Int, _ summary: Int) {
        guard port >= 0, port < Self.ports else { return }
        let (index, bit) = (port / 64, UInt64(1) << UInt64(port % 64))
        _ = word(bits + index * 8).pointee.bitwiseOr(bit, ordering: .sequentiallyConsistent)
        _ = word(summary).pointee.bitwiseOr(1 << UInt64(index), ordering: .sequentiallyConsistent)
    }

    private func take(_ bits: Int, _ summary: Int, _ body: (Int) -> Void) -> Bool {
        guard word(summary).pointee.load(ordering: .acquiring) != 0 else { return false }
        var groups = word(summary).pointee.exchange(0, ordering: .sequentiallyConsistent)
        var found = false
        while groups != 0 {
            let index = groups.trailingZeroBitCount
            groups &= groups - 1
            var ports = word(bits + index * 8).pointee.exchange(0, ordering: .sequentiallyConsistent)
            while ports != 0 {
                found = true
                body(index * 64 + ports.trailingZeroBitCount)
                ports &= ports - 1
            }
        }
        return found
    }

    // MARK: from the guest to a back end

    /// Hypervisor: the guest has sent to a back end's `port`. Rings `doorbell` only if the back ends sleep.
    public func signalBackend(_ port: Int, doorbell: HostEvent) {
        set(port, Offset.toBackend, Offset.backendSummary)
        if asleep.pointee.load(ordering: .sequentiallyConsistent) != 0,
            asleep.pointee.exchange(0, ordering: .sequentiallyConsistent) != 0
        {
            doorbell.ring()
        }
    }

    /// Back ends: calls `body` with each port that was signalled; whether there were any.
    public func takeSignals(_ body: (Int) -> Void) -> Bool { take(Offset.toBackend, Offset.backendSummary, body) }

    /// Back ends: says that the doorbell is needed from now on; false if a signal has come meanwhile.
    public func prepareToSleep() -> Bool {
        asleep.pointee.store(1, ordering: .sequentiallyConsistent)
        guard word(Offset.backendSummary).pointee.load(ordering: .sequentiallyConsistent) != 0 else { return true }
        wake()
        return false
    }

    /// Back ends: says that the doorbell is not needed.
    public func wake() { asleep.pointee.store(0, ordering: .sequentiallyConsistent) }

    // MARK: from a back end to the guest

    /// Back ends: sends by their own `port`; the vCPU to kick.
    public func notifyGuest(_ port: Int) -> Int {
        set(port, Offset.toGuest, Offset.guestSummary)
        guard port >= 0, port < Self.ports else { return 0 }
        return min(Int((base + Offset.vcpus).load(fromByteOffset: port, as: UInt8.self)), IoreqLayout.maximumVCPUs - 1)
    }

    /// Hypervisor: whether `takeNotifications` would find any.
    public var hasNotifications: Bool { word(Offset.guestSummary).pointee.load(ordering: .acquiring) != 0 }

    /// Hypervisor: calls `body` with each port that a back end has sent on.
    public func takeNotifications(_ body: (Int) -> Void) { _ = take(Offset.toGuest, Offset.guestSummary, body) }

    /// Hypervisor: the vCPU that gets the events of `port`.
    public func route(_ port: Int, to vcpu: Int) {
        guard port >= 0, port < Self.ports else { return }
        (base + Offset.vcpus).storeBytes(
            of: UInt8(truncatingIfNeeded: vcpu), toByteOffset: port, as: UInt8.self)
    }
}
