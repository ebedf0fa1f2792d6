import Chips
import DeviceContract
import Machine
import Testing

@Suite("HPET and PM timer") struct HPETTests {
    /// What was driven, in order.
    final class Outputs {
        var rises: [HPET.Output] = []
        var high: Set<HPET.Output> = []
        var legacy = false
    }
    let outputs = Outputs()
    let hpet: HPET
    let slot: Slot
    init() {
        let outputs = outputs
        hpet = HPET(
            drive: { output, level in
                if level { outputs.rises.append(output) }
                if level { outputs.high.insert(output) } else { outputs.high.remove(output) }
            }, legacyChanged: { outputs.legacy = $0 })
        slot = Slot("hpet", hpet)
    }

    @Test func contract() throws {
        try expectContract { HPET(drive: { _, _ in }, legacyChanged: { _ in }) }
        try expectContract { PMTimer() }
    }

    @Test("Capabilities: 10 ns, three timers, legacy, 64 bits")
    func capabilities() { #expect(slot.get(0, 0, .quad) == 0x0098_9680_8086_A201) }

    @Test("The counter runs only while enabled")
    func counter() {
        #expect(slot.get(0, 0xF0, .quad, at: microseconds(5)) == 0)
        slot.out(0, 0x10, 1, .long, at: microseconds(5))
        #expect(slot.get(0, 0xF0, .quad, at: microseconds(9)) == 400)
        slot.out(0, 0x10, 0, .long, at: microseconds(9))
        #expect(slot.get(0, 0xF0, .long, at: microseconds(50)) == 400)
    }

    @Test("Legacy replacement: timer 0 is IRQ 0, periodic with the value-set bit")
    func legacy() {
        slot.out(0, 0x10, 3, .long)
        #expect(outputs.legacy)
        slot.out(0, 0x100, 0x4C, .long)
        slot.out(0, 0x108, 1000, .quad)
        slot.out(0, 0x108, 500, .quad)
        #expect(hpet.deadline == microseconds(10))
        hpet.advance(to: microseconds(10))
        #expect(outputs.rises == [.legacy(0)])
        #expect(hpet.deadline == microseconds(15))
        hpet.advance(to: microseconds(32))
        #expect(outputs.rises.count == 2)
        #expect(hpet.deadline == microseconds(35))
    }

    @Test("A level comparator holds its input until its status is cleared")
    func level() {
        slot.out(0, 0x10, 1, .long)
        slot.out(0, 0x120, UInt64(20) << 9 | 0x106, .long)
        slot.out(0, 0x128, 100, .long)
        hpet.advance(to: microseconds(2))
        #expect(outputs.high == [.input(20)])
        #expect(slot.get(0, 0x20, .long, at: microseconds(2)) == 2)
        slot.out(0, 0x20, 2, .long, at: microseconds(3))
        #expect(outputs.high.isEmpty)
    }

    @Test("The PM timer counts 3.579545 MHz in 24 bits")
    func powerManagement() {
        let slot = Slot("pm", PMTimer())
        #expect(slot.get(0, 0, .long, at: microseconds(1_000_000)) == 3_579_545)
        #expect(slot.get(0, 0, .long, at: microseconds(5_000_000)) == (5 * 3_579_545) & 0xFF_FFFF)
    }
}
