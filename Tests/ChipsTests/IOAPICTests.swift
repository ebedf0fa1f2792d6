import Chips
import DeviceContract
import Machine
import Testing

@Suite("I/O APIC") struct IOAPICTests {
    let bus = Recorder()
    let apic: IOAPIC
    let slot: Slot
    init() {
        apic = IOAPIC(bus: bus)
        slot = Slot("ioapic", apic)
    }

    @Test func contract() throws { try expectContract { IOAPIC(bus: Recorder()) } }

    private func set(_ line: UInt64, low: UInt64, high: UInt64 = 0) {
        slot.out(0, 0, 0x11 + line * 2)
        slot.out(0, 0x10, high, .long)
        slot.out(0, 0, 0x10 + line * 2)
        slot.out(0, 0x10, low, .long)
    }

    @Test("Version register names 48 inputs")
    func version() {
        slot.out(0, 0, 1)
        #expect(slot.get(0, 0x10, .long) == 0x002F_0011)
    }

    @Test("An edge is one message; an edge on a masked input is lost")
    func edge() {
        apic.input(4, true)
        apic.input(4, false)
        set(4, low: 0x31, high: 0x0100_0000)
        #expect(bus.messages.isEmpty)
        apic.input(4, true)
        apic.input(4, true)
        #expect(bus.messages == [InterruptMessage(.fixed, vector: 0x31, to: .physical(1))])
    }

    @Test("A level waits for its EOI and comes again while asserted")
    func level() {
        set(20, low: 0x8841, high: 0x0300_0000)
        apic.input(20, true)
        #expect(bus.messages == [InterruptMessage(.fixed, vector: 0x41, to: .logical(3), isLevel: true)])
        slot.out(0, 0, 0x10 + 40)
        #expect(slot.get(0, 0x10, .long) & 0x4000 != 0, "remote IRR")
        apic.endOfInterrupt(vector: 0x41)
        #expect(bus.messages.count == 2)
        apic.input(20, false)
        apic.endOfInterrupt(vector: 0x41)
        #expect(bus.messages.count == 2)
    }

    @Test("Unmasking an asserted level input interrupts")
    func unmask() {
        apic.input(17, true)
        set(17, low: 0x8051)
        #expect(bus.messages.count == 1)
    }
}
