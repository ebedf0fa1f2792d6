import DeviceContract
import Machine
import PCI
import Testing

@testable import PCBoard

@Suite("PIIX4 power management") struct PowerTests {
    let sci = Wire()

    @Test func contract() throws {
        try expectContract { PIIX4Power(sci: Wire(), powerOff: {}) }
    }
    @Test func functionContract() throws {
        try expectContract {
            let board = Board()
            let slot = board.attachUnmapped("pm", PIIX4Power(sci: Wire(), powerOff: {}))
            return PIIX4Power.function(slot, on: board, memory: TestMemory())
        }
    }
    @Test func resetContract() throws { try expectContract { ResetControl { _ in } } }
    @Test func debugContract() throws { try expectContract { DebugPorts { _ in } } }

    @Test("The power button interrupts in ACPI mode until its status is cleared by a one")
    func powerButton() {
        let power = PIIX4Power(sci: sci, powerOff: {})
        let slot = Slot("pm", power)
        slot.write(0x0100, Access(offset: 2, width: .word))
        power.pressPowerButton()
        #expect(!sci.isHigh, "still in legacy mode")
        slot.write(0xF1, Access(region: PIIX4Power.RegionIndex.apm, offset: 0))
        #expect(sci.isHigh)
        #expect(slot.read(Access(offset: 4, width: .word)) == 1)
        #expect(slot.read(Access(offset: 0, width: .word)) & 0x100 != 0)
        slot.write(0x0100, Access(offset: 0, width: .word))
        #expect(!sci.isHigh)
    }

    @Test("Sleep type 0 with sleep enable turns the machine off, once")
    func softOff() {
        var offs = 0
        let slot = Slot("pm", PIIX4Power(sci: sci) { offs += 1 })
        slot.write(0x2400, Access(offset: 4, width: .word))
        #expect(offs == 0)
        slot.write(0x2001, Access(offset: 4, width: .word))
        #expect(offs == 1)
        _ = slot.read(Access(offset: 4, width: .word))
        #expect(offs == 1)
        #expect(slot.read(Access(offset: 4, width: .word)) == 1, "sleep enable reads as zero")
    }

    @Test("The timer counts at 3.579545 MHz, and its carry can interrupt")
    func timer() throws {
        let power = PIIX4Power(sci: sci, powerOff: {})
        let slot = Slot("pm", power)
        #expect(slot.read(Access(offset: 8, width: .long), at: Instant(nanoseconds: 1_000_000_000)) == 3_579_545)
        slot.write(1, Access(offset: 4, width: .word))
        slot.write(1, Access(offset: 2, width: .word))
        let deadline = try #require(power.deadline)
        #expect((2_343_000_000...2_344_000_000).contains(deadline.nanoseconds), "2^23 ticks")
        power.advance(to: deadline)
        power.settle()
        #expect(sci.isHigh)
    }

    @Test("PMBASE moves the registers, and its enable bit shows them")
    func relocation() {
        let board = Board()
        let slot = board.attachUnmapped("pm", PIIX4Power(sci: sci, powerOff: {}))
        let config = Slot("function", PIIX4Power.function(slot, on: board, memory: TestMemory()))
        config.write(0x601, Access(offset: 0x40, width: .long))
        #expect(board.ports.read(0x604, .word, at: .zero) == 0xFFFF)
        config.write(1, Access(offset: 0x80))
        #expect(board.ports.read(0x604, .word, at: .zero) == 0)
        #expect(config.read(Access(offset: 0x40, width: .long)) == 0x601)
        #expect(config.read(Access(offset: 0x5B)) == 2, "SMM is taken")
    }

    @Test("Nobody answers on the SMBus")
    func smbus() {
        let slot = Slot("pm", PIIX4Power(sci: sci, powerOff: {}))
        slot.write(0x48, Access(region: 1, offset: 2))
        #expect(slot.read(Access(region: 1, offset: 0)) == 4)
        slot.write(4, Access(region: 1, offset: 0))
        #expect(slot.read(Access(region: 1, offset: 0)) == 0)
    }

    @Test("Port CF9 resets when bit 2 rises")
    func resetPort() {
        var causes: [ResetCause] = []
        let slot = Slot("reset", ResetControl { causes.append($0) })
        slot.write(2, Access(offset: 0))
        #expect(causes.isEmpty)
        slot.write(6, Access(offset: 0))
        slot.write(6, Access(offset: 0))
        #expect(causes == [.powerOn])
    }
}
