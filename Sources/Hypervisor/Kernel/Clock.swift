// How fast the host's time stamp counter runs.
// Source: Intel SDM volume 3 §18.17 (invariant TSC), leaf 0x15; otherwise measured against CLOCK_MONOTONIC.

internal import CProcessor
internal import Chips
internal import Host

enum Clock {
    static func sample() -> (nanoseconds: UInt64, ticks: UInt64) { (monotonicNanoseconds(), apus_host_tsc()) }

    /// Ticks a second, measured over at least 20 ms from `start` on.
    static func frequency(since start: (nanoseconds: UInt64, ticks: UInt64)) -> TickRate {
        let word = FutexWord()
        var end = sample()
        while end.nanoseconds &- start.nanoseconds < 20_000_000 {
            word.wait(while: 0, nanoseconds: 20_000_000 - (end.nanoseconds &- start.nanoseconds))
            end = sample()
        }
        let (ticks, nanoseconds) = (end.ticks &- start.ticks, end.nanoseconds &- start.nanoseconds)
        let product = ticks.multipliedFullWidth(by: 1_000_000_000)
        guard product.high < nanoseconds else { return TickRate(hertz: 1_000_000_000) }
        // Whole kHz: the error of the measurement is larger.
        let hertz = nanoseconds.dividingFullWidth(product).quotient
        return TickRate(hertz: max(hertz / 1000 * 1000, 1_000_000))
    }
}
