import DeviceContract
import Machine
import Testing

@testable import PCBoard

@Suite("MC146818A RTC") struct RTCTests {
    /// 2026-11-22 23:59:58 UTC, a Sunday.
    static let time: Int64 = 1_795_391_998
    let irq = Wire()

    private func make() -> (RTC146818, Slot) {
        let rtc = RTC146818(irq: irq, time: Self.time, contents: [0x10: 0x40])
        return (rtc, Slot("rtc", rtc))
    }
    private func read(_ slot: Slot, _ index: UInt64, at milliseconds: UInt64) -> UInt64 {
        let now = Instant(nanoseconds: milliseconds * 1_000_000)
        slot.write(index, Access(offset: 0), at: now)
        return slot.read(Access(offset: 1), at: now)
    }
    private func write(_ slot: Slot, _ index: UInt64, _ value: UInt64, at milliseconds: UInt64 = 0) {
        let now = Instant(nanoseconds: milliseconds * 1_000_000)
        slot.write(index, Access(offset: 0), at: now)
        slot.write(value, Access(offset: 1), at: now)
    }

    @Test func contract() throws {
        try expectContract(survivesReset: true) { RTC146818(irq: Wire(), time: Self.time) }
    }

    @Test("Time is shown in BCD and goes over midnight, month and year")
    func calendar() {
        let (_, slot) = make()
        #expect(
            [0, 2, 4, 6, 7, 8, 9, 0x32].map { read(slot, $0, at: 10) } == [0x58, 0x59, 0x23, 1, 0x22, 0x11, 0x26, 0x20])
        #expect([0, 2, 4, 6, 7].map { read(slot, $0, at: 2_010) } == [0, 0, 0, 2, 0x23])
        let days: UInt64 = 39
        #expect([7, 8, 9].map { read(slot, $0, at: 2_010 + days * 86_400_000) } == [1, 1, 0x27])
    }

    @Test("Binary and 12-hour modes count as the datasheet's table 3 has it")
    func modes() {
        let (_, slot) = make()
        write(slot, 0x0B, 0x82)
        write(slot, 4, 0x12)
        write(slot, 0x0B, 0x80)
        write(slot, 4, 0x92)
        write(slot, 2, 0x59)
        write(slot, 0, 0x59)
        write(slot, 0x0B, 0x00)
        #expect(read(slot, 4, at: 1_100) == 0x81, "12:59:59 PM becomes 1 PM")
        write(slot, 0x0B, 0x86, at: 1_100)
        write(slot, 0, 58, at: 1_100)
        write(slot, 0x0B, 0x06, at: 1_100)
        #expect(read(slot, 0, at: 2_100) == 59)
    }

    @Test("The periodic interrupt comes at its rate once for each reading of register C")
    func periodic() {
        let (rtc, slot) = make()
        write(slot, 0x0B, 0x42)
        #expect(rtc.deadline == Instant(nanoseconds: 976_562), "1024 Hz")
        rtc.advance(to: Instant(nanoseconds: 976_562))
        rtc.settle()
        #expect(irq.isHigh)
        #expect(rtc.deadline == nil, "nothing new can come before it is acknowledged")
        #expect(read(slot, 0x0C, at: 1) == 0xC0)
        #expect(!irq.isHigh)
        #expect(rtc.deadline == Instant(nanoseconds: 1_953_124))
    }

    @Test("The alarm matches bytes or anything")
    func alarm() {
        let (rtc, slot) = make()
        write(slot, 1, 0x00)
        write(slot, 3, 0xC0)
        write(slot, 5, 0xFF)
        write(slot, 0x0B, 0x22)
        rtc.advance(to: Instant(nanoseconds: 1_000_000_000))
        rtc.settle()
        #expect(!irq.isHigh)
        rtc.advance(to: Instant(nanoseconds: 2_000_000_000))
        rtc.settle()
        #expect(irq.isHigh)
        #expect(read(slot, 0x0C, at: 2_000) & 0xA0 == 0xA0)
    }

    @Test("Update in progress shows just before the second ends")
    func updateInProgress() {
        let (rtc, slot) = make()
        #expect(read(slot, 0x0A, at: 999) == 0x26)
        rtc.advance(to: Instant(nanoseconds: 999_900_000))
        #expect(slot.read(Access(offset: 1), at: Instant(nanoseconds: 999_900_000)) == 0xA6)
        #expect(read(slot, 0x0A, at: 1_000) == 0x26)
    }

    @Test("RAM and time outlive a reset; interrupt enables do not")
    func reset() {
        let (rtc, slot) = make()
        write(slot, 0x40, 0x77)
        write(slot, 0x0B, 0x72)
        rtc.state.reset(.powerOn)
        #expect(read(slot, 0x40, at: 0) == 0x77)
        #expect(read(slot, 0x10, at: 0) == 0x40)
        #expect(read(slot, 0x0B, at: 0) == 0x02)
    }
}
