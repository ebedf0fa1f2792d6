// How long a halted vCPU looks for its next event before it sleeps in the host's kernel.
// Source: decision 0003: waking a thread costs 12 to 14 microseconds, looking at a word nothing.
// Modelled: a guest that waits for its disk or network, request after request. Quirks: nobody looks on a host with one CPU.

internal import Host

struct Impatience {
    /// Waits for a disk or a peer are shorter than this; waits for timers are not.
    private static let short: UInt64 = 150_000
    private static let limit: UInt64 = 60_000
    private static let isUseful = Affinity.read(0).count > 1
    private var shortSleeps = 0

    /// How long to look.
    var nanoseconds: UInt64 { shortSleeps >= 4 ? Self.limit : 0 }

    /// Four short sleeps in a row, and looking pays; a long one, and it does not.
    mutating func note(slept: UInt64) {
        guard Self.isUseful else { return }
        shortSleeps = slept < Self.short ? min(shortSleeps + 1, 4) : max(0, shortSleeps - 2)
    }
}
