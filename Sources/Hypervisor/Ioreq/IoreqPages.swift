// The memory that a domain's hypervisor and device model share, besides guest RAM.
// Source: Xen's public/hvm/ioreq.h for pages 0 and 1; pages 2 and 3 are ours.
//
//   page 0   struct shared_iopage: one 32-byte ioreq per vCPU
//   page 1   struct buffered_iopage: ring of posted writes
//   page 2   doorbells: attention words, sleep flag, interrupt lines, clock, mirrors of the IDE channels and COM1
//   page 3   commands from the device model (memory map, power, written code)

public import Host
internal import Synchronization

/// Offsets and sizes within the shared pages, in bytes.
public enum IoreqLayout {
    public static let size = 4 * 4096
    public static let maximumVCPUs = 32
    static let slotSize = 32
    static let buffered = 4096
    /// 511 entries of 8 bytes behind the two pointers (IOREQ_BUFFER_SLOT_NUM).
    static let bufferedSlots: UInt32 = 511
    static let attention = 2 * 4096
    static let attentionStride = 64
    static let asleep = attention + maximumVCPUs * attentionStride
    static let paused = asleep + 4
    static let gone = asleep + 8
    static let levels = asleep + 64
    static let rises = levels + 8
    static let produced = asleep + 128
    static let consumed = asleep + 192
    static let clockOffset = asleep + 256
    static let stoppedAt = asleep + 264
    /// A line for each IDE channel.
    static let mirrors = asleep + 320
    static let serial = mirrors + 128
    static let commands = 3 * 4096
    static let commandSize = 32
    static let commandSlots: UInt32 = 128
}

/// Typed views of the shared pages. Both processes make one over the same memory.
public struct IoreqPages: @unchecked Sendable {
    // Invariant: every word below is only touched through these atomics, or, for request
    // payloads, by the side that the slot's state names as owner.
    public let memory: SharedMemory
    let base: UnsafeMutableRawPointer
    /// The socket to the other process, which hangs up when that is killed.
    public var peer: Descriptor?

    /// New pages for a new domain.
    public static func make() throws(HostFailure) -> IoreqPages {
        IoreqPages(try SharedMemory(named: "apus-ioreq", size: IoreqLayout.size))
    }

    public init(_ memory: SharedMemory) {
        precondition(memory.bytes.count >= IoreqLayout.size, "ioreq pages are too small")
        self.memory = memory
        guard let base = memory.bytes.baseAddress else { preconditionFailure("ioreq pages are not mapped") }
        self.base = base
    }

    @inline(__always) func word(_ offset: Int) -> UnsafeMutablePointer<Atomic<UInt32>> {
        (base + offset).assumingMemoryBound(to: Atomic<UInt32>.self)
    }
    @inline(__always) func long(_ offset: Int) -> UnsafeMutablePointer<Atomic<UInt64>> {
        (base + offset).assumingMemoryBound(to: Atomic<UInt64>.self)
    }
    func futex(_ offset: Int) -> Futex { Futex((base + offset).assumingMemoryBound(to: UInt32.self)) }

    /// The word that calls vCPU `index` out of its loop: non-zero means "look around".
    public func attention(_ index: Int) -> UnsafeMutablePointer<UInt32> {
        (base + IoreqLayout.attention + index * IoreqLayout.attentionStride).assumingMemoryBound(to: UInt32.self)
    }

    /// Calls vCPU `index` out of its loop or out of its sleep. From any thread or process.
    public func kick(_ index: Int) {
        let offset = IoreqLayout.attention + index * IoreqLayout.attentionStride
        // Bit 0 is ours: an engine that sets bit 1 for its like wakes nobody.
        let before = word(offset).pointee.bitwiseOr(1, ordering: .sequentiallyConsistent).oldValue
        guard before & 1 == 0, word(offset + 4).pointee.load(ordering: .sequentiallyConsistent) != 0 else { return }
        futex(offset).wake()
    }

    /// Calls vCPU `index` out of its loop from its own thread, which cannot be asleep.
    public func attend(_ index: Int) {
        word(IoreqLayout.attention + index * IoreqLayout.attentionStride).pointee.store(1, ordering: .releasing)
    }

    /// Takes the call for attention back; true if there was one.
    public func takeAttention(_ index: Int) -> Bool {
        let offset = IoreqLayout.attention + index * IoreqLayout.attentionStride
        return word(offset).pointee.exchange(0, ordering: .sequentiallyConsistent) != 0
    }

    /// Sleeps until vCPU `index` is kicked, at most `nanoseconds`.
    public func sleep(_ index: Int, nanoseconds: UInt64?) {
        let offset = IoreqLayout.attention + index * IoreqLayout.attentionStride
        // The word behind it counts who sleeps, so that a kick knows whether it needs the system call.
        word(offset + 4).pointee.wrappingAdd(1, ordering: .sequentiallyConsistent)
        futex(offset).wait(while: 0, nanoseconds: nanoseconds)
        word(offset + 4).pointee.wrappingSubtract(1, ordering: .relaxed)
    }

    /// Guest time zero on the host's monotonic clock, and its present value, in nanoseconds.
    public var clockOffset: UInt64 {
        get { long(IoreqLayout.clockOffset).pointee.load(ordering: .acquiring) }
        nonmutating set { long(IoreqLayout.clockOffset).pointee.store(newValue, ordering: .releasing) }
    }
    public var guestNanoseconds: UInt64 {
        let stopped = long(IoreqLayout.stoppedAt).pointee.load(ordering: .acquiring)
        let now = stopped != 0 ? stopped : monotonicNanoseconds()
        let offset = clockOffset
        return now > offset ? now - offset : 0
    }

    /// Hypervisor: stops guest time and tells the device model.
    public func pause() {
        guard !isPaused else { return }
        long(IoreqLayout.stoppedAt).pointee.store(monotonicNanoseconds(), ordering: .releasing)
        isPaused = true
    }

    /// Hypervisor: lets guest time go on where it stopped.
    public func unpause() {
        guard isPaused else { return }
        let stopped = long(IoreqLayout.stoppedAt).pointee.load(ordering: .acquiring)
        clockOffset &+= monotonicNanoseconds() &- stopped
        long(IoreqLayout.stoppedAt).pointee.store(0, ordering: .releasing)
        isPaused = false
    }

    /// The domain is paused: guest time stands still, nothing is delivered.
    public var isPaused: Bool {
        get { word(IoreqLayout.paused).pointee.load(ordering: .acquiring) != 0 }
        nonmutating set { word(IoreqLayout.paused).pointee.store(newValue ? 1 : 0, ordering: .releasing) }
    }

    /// The other process has ended; waiting for it makes no sense any more.
    public var isPeerGone: Bool {
        get { word(IoreqLayout.gone).pointee.load(ordering: .acquiring) != 0 }
        nonmutating set {
            word(IoreqLayout.gone).pointee.store(newValue ? 1 : 0, ordering: .releasing)
            for slot in 0..<IoreqLayout.maximumVCPUs { futex(slot * IoreqLayout.slotSize + 28).wake() }
        }
    }
}

/// The levels of the 48 interrupt inputs (IOAPIC numbering: 0-15 ISA, 16-47 PCI) as the
/// device model drives them. A rise is remembered until taken, so no edge is lost.
extension IoreqPages {
    public static let lineCount = 48

    /// Device model: drives one line; true if that was a change the hypervisor must see.
    public func driveLine(_ line: Int, _ high: Bool) -> Bool {
        let bit = UInt64(1) << UInt64(line)
        let levels = long(IoreqLayout.levels)
        if high {
            let before = levels.pointee.bitwiseOr(bit, ordering: .sequentiallyConsistent).oldValue
            if before & bit != 0 { return false }
            _ = long(IoreqLayout.rises).pointee.bitwiseOr(bit, ordering: .sequentiallyConsistent)
            return true
        }
        return levels.pointee.bitwiseAnd(~bit, ordering: .sequentiallyConsistent).oldValue & bit != 0
    }

    /// Hypervisor: the levels now, and which lines rose since the last call.
    public func takeLines() -> (levels: UInt64, rises: UInt64) {
        let rises = long(IoreqLayout.rises).pointee.exchange(0, ordering: .sequentiallyConsistent)
        return (long(IoreqLayout.levels).pointee.load(ordering: .sequentiallyConsistent), rises)
    }
}
