// How long threads look before they sleep.
// Source: decision 0003.
// Covered: streaks of short waits, long ones, what is remembered of them, the processor wanted by others.

import Testing

@testable import Ioreq

@Suite("Patience") struct PatienceTests {
    @Test("Four short waits in a row are looked for, half as long again as the longest of them") func streak() {
        var patience = Patience(least: 0, isUseful: true)
        for waited: UInt64 in [40_000, 80_000, 60_000] {
            patience.note(waited: waited)
            #expect(patience.nanoseconds(at: 1) == 0)
        }
        patience.note(waited: 60_000)
        #expect(patience.nanoseconds(at: 1) > 100_000 && patience.nanoseconds(at: 1) <= 120_000)
    }

    @Test("A wait longer than any look ends it; two short ones bring it back") func long() {
        var patience = Patience(least: 30_000, isUseful: true)
        for _ in 0..<10 { patience.note(waited: 50_000) }
        #expect(patience.nanoseconds(at: 1) == 75_000)
        patience.note(waited: 4_000_000)
        #expect(patience.nanoseconds(at: 1) == 30_000)
        patience.note(waited: 50_000)
        #expect(patience.nanoseconds(at: 1) == 30_000)
        patience.note(waited: 50_000)
        #expect(patience.nanoseconds(at: 1) > 60_000)
    }

    @Test("It never looks for longer than the limit, and forgets what is not short any more") func bounds() {
        var patience = Patience(least: 0, isUseful: true)
        for _ in 0..<8 { patience.note(waited: 190_000) }
        #expect(patience.nanoseconds(at: 1) == Patience.limit)
        for _ in 0..<100 { patience.note(waited: 10_000) }
        #expect(patience.nanoseconds(at: 1) < 20_000)
    }

    @Test("With one processor nobody looks") func alone() {
        var patience = Patience(least: 30_000, isUseful: false)
        for _ in 0..<8 { patience.note(waited: 50_000) }
        #expect(patience.nanoseconds(at: 1) == 0)
    }

    @Test("Where others take the processor, looks are brief for a while") func crowding() {
        var patience = Patience(least: 30_000, isUseful: true)
        for _ in 0..<8 { patience.note(waited: 100_000) }
        patience.note(gap: 20_000, at: 1_000_000)
        #expect(patience.nanoseconds(at: 1_000_001) == 150_000)
        patience.note(gap: 700_000, at: 2_000_000)
        #expect(patience.nanoseconds(at: 2_000_001) == Patience.brief)
        #expect(patience.nanoseconds(at: 11_999_999) == Patience.brief)
        #expect(patience.nanoseconds(at: 12_000_000) == 150_000)
    }
}
