// How long to look for something before sleeping for it in the host's kernel.
// Source: decision 0003; KVM's halt polling, which learns the same way (Linux, Documentation/virt/kvm/halt-polling.rst).
// Modelled: what waits were like of late, and whether others want the processor.
// Quirks: nobody looks on a host with one processor, where that only delays whoever is waited for.

internal import Host

/// What one thread has learnt of its waits for one kind of thing.
public struct Patience {
    /// To look for longer costs more than being woken.
    public static let limit: UInt64 = 200_000
    /// Where others want the processor, a look is no longer than this.
    static let brief: UInt64 = 60_000
    /// So many short waits in a row, and looking pays.
    private static let streak = 4
    /// Interrupts and the turns of the kernel's own threads are shorter than this.
    private static let turn: UInt64 = 50_000
    /// For how long somebody who took the processor is thought to be there still.
    private static let respect: UInt64 = 10_000_000
    private static let isUseful = Affinity.read(0).count > 1
    private let least: UInt64
    private let isUseful: Bool
    private var shortWaits = 0
    /// The longest of the short waits, slowly forgotten.
    private var longest: UInt64 = 0
    private var crowdedUntil: UInt64 = 0

    /// `least`: nanoseconds to look in any case.
    public init(least: UInt64 = 0) { self.init(least: least, isUseful: Self.isUseful) }

    init(least: UInt64, isUseful: Bool) { (self.least, self.isUseful) = (least, isUseful) }

    /// How long to look at `now` on the monotonic clock.
    public func nanoseconds(at now: UInt64) -> UInt64 {
        guard isUseful else { return 0 }
        guard shortWaits == Self.streak else { return least }
        return max(least, min(longest + longest / 2, now < crowdedUntil ? Self.brief : Self.limit))
    }

    /// It took so long until something came, whether that was looked or slept for. Waits that are too long to look for end
    /// a streak, which two short ones take up again.
    public mutating func note(waited: UInt64) {
        guard waited < Self.limit else {
            shortWaits = max(0, shortWaits - 2)
            return
        }
        shortWaits = min(shortWaits + 1, Self.streak)
        longest = max(waited, longest - longest / 16)
    }

    /// Two looks that found nothing were `gap` nanoseconds apart, the second at `now`: did somebody else run meanwhile?
    public mutating func note(gap: UInt64, at now: UInt64) {
        if gap > Self.turn { crowdedUntil = now + Self.respect }
    }
}
