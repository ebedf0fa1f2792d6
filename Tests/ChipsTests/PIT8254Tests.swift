import Chips
import DeviceContract
import Machine
import Testing

@Suite("8254") struct PIT8254Tests {
    let irq = Wire()
    let pit: PIT8254
    let slot: Slot
    init() {
        pit = PIT8254(irq: irq)
        slot = Slot("pit", pit)
    }

    @Test func contract() throws { try expectContract { PIT8254(irq: Wire()) } }

    private func program(_ counter: UInt64, mode: UInt64, _ count: UInt64, at now: Instant = .zero) {
        slot.out(0, 3, counter << 6 | 0x30 | mode << 1, at: now)
        slot.out(0, counter, count & 0xFF, at: now)
        slot.out(0, counter, count >> 8, at: now)
    }

    @Test("Mode 2 makes one rising edge a period")
    func rate() {
        program(0, mode: 2, 1193)
        let edges = irq.edges
        var rises = 0
        for _ in 0..<10 {
            guard let deadline = pit.deadline else { break }
            pit.advance(to: deadline)
            rises += 1
        }
        #expect(rises == 10)
        #expect(irq.edges - edges == 20)
        #expect(pit.state.now.nanoseconds / 1000 == 9998, "ten times 1193 ticks of 1193182 Hz")
    }

    @Test("Late periods are one edge")
    func late() {
        program(0, mode: 2, 1000)
        let edges = irq.edges
        pit.advance(to: microseconds(50_000))
        #expect(irq.edges - edges == 2)
        #expect((pit.deadline?.since(pit.state.now) ?? 0) < 840_000)
    }

    @Test("Mode 0 raises OUT at terminal count, once")
    func terminalCount() {
        program(0, mode: 0, 100)
        #expect(!irq.isHigh)
        #expect(pit.deadline != nil)
        pit.advance(to: microseconds(100))
        #expect(irq.isHigh)
        #expect(pit.deadline == nil)
    }

    @Test("A latched count stays until it was read")
    func latch() {
        program(0, mode: 2, 0)
        slot.out(0, 3, 0x00, at: microseconds(1000))
        let low = slot.get(0, 0, at: microseconds(5000))
        let high = slot.get(0, 0, at: microseconds(6000))
        #expect(high << 8 | low == 65536 - 1193)
    }

    @Test("Read-back gives status: OUT, null count, access, mode")
    func status() {
        slot.out(0, 3, 0x34)
        slot.out(0, 3, 0xE2)
        #expect(slot.get(0, 0) == 0xF4, "no count yet")
        slot.out(0, 0, 0x00)
        slot.out(0, 0, 0x10)
        slot.out(0, 3, 0xE2)
        #expect(slot.get(0, 0) == 0xB4)
    }

    @Test("Counter 2 counts only with its gate, and shows OUT at port 0x61")
    func gate() {
        slot.out(1, 0, 0x00)
        program(2, mode: 0, 1193)
        #expect(slot.get(1, 0, at: microseconds(10_000)) & 0x20 == 0)
        slot.out(1, 0, 0x01, at: microseconds(10_000))
        #expect(slot.get(1, 0, at: microseconds(10_900)) & 0x20 == 0)
        #expect(slot.get(1, 0, at: microseconds(11_100)) & 0x20 != 0)
    }

    @Test("A count written in mode 2 takes over at the end of the period")
    func reload() {
        program(0, mode: 2, 1193)
        slot.out(0, 0, 0x00, at: microseconds(100))
        slot.out(0, 0, 0x10, at: microseconds(100))
        let first = pit.deadline?.nanoseconds ?? 0
        #expect(first / 1000 == 999)
        pit.advance(to: Instant(nanoseconds: first))
        #expect((pit.deadline?.nanoseconds ?? 0) / 1000 == (1193 + 4096) * 1_000_000 / 1_193_182)
    }

    @Test("BCD counts down in decimal")
    func decimal() {
        slot.out(0, 3, 0x35)
        slot.out(0, 0, 0x00)
        slot.out(0, 0, 0x20)
        slot.out(0, 3, 0x00, at: microseconds(839))
        let low = slot.get(0, 0, at: microseconds(839))
        let high = slot.get(0, 0, at: microseconds(839))
        #expect(high << 8 | low == 0x0999, "2000 less 1001 ticks")
    }

    @Test("Mode 3 is high for half the period")
    func square() {
        program(2, mode: 3, 1192)
        slot.out(1, 0, 0x01)
        #expect(slot.get(1, 0, at: microseconds(400)) & 0x20 != 0)
        #expect(slot.get(1, 0, at: microseconds(600)) & 0x20 == 0)
    }
}
