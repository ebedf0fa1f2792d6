// What happens in a domain, counted: exits of each vCPU by kind, what they waited for, events, interrupts.
// Source: our own; the kinds are those of xentrace's and kvm_stat's exits as far as they exist here.
// Modelled: counts since the domain's start, and a histogram of how long the device model took to answer.
// Quirks: one writer each (the vCPU's thread), so counting is a load and a store; readers may see a moment ago.

internal import CProcessor
internal import Synchronization

/// Numbers that one thread adds to and others read.
@safe final class CounterBlock: @unchecked Sendable {
    // Invariant: the memory lives as long as the block; each word is only touched through its atomic.
    private let base: UnsafeMutablePointer<Atomic<UInt64>>
    let count: Int

    init(_ count: Int) {
        self.count = count
        unsafe base = .allocate(capacity: count)
        for index in 0..<count { unsafe (base + index).initialize(to: Atomic<UInt64>(0)) }
    }
    deinit {
        unsafe base.deinitialize(count: count)
        unsafe base.deallocate()
    }

    /// Adds on the writer's thread.
    @inline(__always) func add(_ index: Int, _ amount: UInt64 = 1) {
        guard index >= 0, index < count else { return }
        let old = unsafe base[index].load(ordering: .relaxed)
        unsafe base[index].store(old &+ amount, ordering: .relaxed)
    }
    subscript(index: Int) -> UInt64 {
        guard index >= 0, index < count else { return 0 }
        return unsafe base[index].load(ordering: .relaxed)
    }
}

/// One vCPU's.
final class VCPUCounters: Sendable {
    /// Why guest code was left, or what it got.
    enum Kind: Int, CaseIterable, Sendable {
        /// Accesses that the device model answers.
        case portRead, portWrite, memoryRead, memoryWrite, configuration
        /// Writes to the VGA window, which nobody waits for.
        case posted
        /// Reads of IDE registers that the device model had shown before.
        case mirrored
        /// Accesses to chips of this process: interrupt controllers, timers.
        case chip
        case hypercall, halt, attention, interruptWindow
        /// Interrupts and events that were delivered.
        case interrupt, callback
    }
    /// Hypercall numbers that are counted apart; what lies above is counted as the last.
    static let hypercalls = 64
    /// Answers of the device model by their time: bucket n holds those of less than 2^n nanoseconds.
    static let buckets = 32

    private let kinds = CounterBlock(Kind.allCases.count)
    let numbers = CounterBlock(hypercalls)
    let latencies = CounterBlock(buckets)
    private let waited = CounterBlock(1)

    @inline(__always) func count(_ kind: Kind) { kinds.add(kind.rawValue) }
    func countHypercall(_ number: UInt64) {
        kinds.add(Kind.hypercall.rawValue)
        numbers.add(Int(min(number, UInt64(Self.hypercalls - 1))))
    }
    /// Counts an answer that took so long.
    func countAnswer(nanoseconds: UInt64) {
        latencies.add(min(64 - nanoseconds.leadingZeroBitCount, Self.buckets - 1))
        waited.add(0, nanoseconds)
    }

    subscript(kind: Kind) -> UInt64 { kinds[kind.rawValue] }
    var waitedNanoseconds: UInt64 { waited[0] }

    /// How often guest code was left for something of the host.
    var exits: UInt64 {
        Kind.allCases.filter { $0 != .interrupt && $0 != .callback }.reduce(0) { $0 &+ self[$1] }
    }
}

/// Ticks of the host's time stamp counter as nanoseconds, without a division.
struct TickScale: Sendable {
    private let multiplier: UInt64

    init(hertz: UInt64) { multiplier = (1_000_000_000 << 32) / max(hertz, 1) }

    static var now: UInt64 { apus_host_tsc() }
    /// Right up to some seconds.
    func nanoseconds(since start: UInt64) -> UInt64 { ((apus_host_tsc() &- start) &* multiplier) >> 32 }
}

/// Events of a domain, whichever thread makes them.
final class EventCounters: Sendable {
    let sent = Atomic<UInt64>(0)
    let delivered = Atomic<UInt64>(0)
    let fromBackends = Atomic<UInt64>(0)
    let toBackends = Atomic<UInt64>(0)
}
