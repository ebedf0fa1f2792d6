import Chips
import DeviceContract
import Machine
import Testing

@Suite("Local APIC") struct LocalAPICTests {
    let bus = Recorder()
    let apic: LocalAPIC
    let slot: Slot
    init() {
        apic = LocalAPIC(
            index: 0, id: 2, isBootProcessor: true, tsc: TickRate(hertz: 2_000_000_000), bus: bus, changed: {})
        slot = Slot("lapic", apic)
        slot.out(0, 0xF0, 0x1FF, .long)
    }

    @Test func contract() throws {
        try expectContract {
            LocalAPIC(
                index: 0, id: 0, isBootProcessor: true, tsc: TickRate(hertz: 1_000_000_000), bus: Recorder(),
                changed: {})
        }
    }

    @Test("The highest vector above the processor priority is delivered first")
    func priority() {
        apic.accept(vector: 0x35, isLevel: false)
        apic.accept(vector: 0x52, isLevel: false)
        #expect(apic.acknowledge() == 0x52)
        #expect(apic.pending == nil, "0x35 is below the class in service")
        slot.out(0, 0xB0, 0, .long)
        #expect(apic.pending == 0x35)
        slot.out(0, 0x80, 0x30, .long)
        #expect(apic.pending == nil, "TPR blocks its own class")
    }

    @Test("EOI of a level interrupt is told to the I/O APIC, of an edge not")
    func endOfInterrupt() {
        apic.accept(vector: 0x41, isLevel: true)
        _ = apic.acknowledge()
        slot.out(0, 0xB0, 0, .long)
        apic.accept(vector: 0x42, isLevel: false)
        _ = apic.acknowledge()
        slot.out(0, 0xB0, 0, .long)
        #expect(bus.ended == [0x41])
    }

    @Test("The ICR sends IPIs")
    func commands() {
        slot.out(0, 0x310, 0x0400_0000, .long)
        slot.out(0, 0x300, 0x0000_4500, .long)
        slot.out(0, 0x300, 0x000C_4699, .long)
        #expect(
            bus.messages == [
                InterruptMessage(.initialise, vector: 0, to: .physical(4)),
                InterruptMessage(.startup, vector: 0x99, to: .everybodyElse),
            ])
    }

    @Test("One-shot: counts down at 10 ns and fires once")
    func oneShot() {
        slot.out(0, 0x3E0, 0xB, .long)
        slot.out(0, 0x320, 0x60, .long)
        slot.out(0, 0x380, 1000, .long, at: microseconds(5))
        #expect(slot.get(0, 0x390, .long, at: microseconds(9)) == 600)
        #expect(apic.deadline == microseconds(15))
        apic.advance(to: microseconds(15))
        #expect(apic.pending == 0x60)
        #expect(apic.deadline == nil)
    }

    @Test("Periodic: goes on, and late periods are one interrupt")
    func periodic() {
        slot.out(0, 0x3E0, 0x3, .long)  // divide by 16: 160 ns
        slot.out(0, 0x320, 0x20061, .long)
        slot.out(0, 0x380, 1000, .long)
        #expect(apic.deadline == microseconds(160))
        apic.advance(to: microseconds(500))
        #expect(apic.acknowledge() == 0x61)
        #expect(apic.deadline == microseconds(640))
    }

    @Test("TSC deadline: fires when the counter reaches it, then reads zero")
    func deadline() {
        slot.out(0, 0x320, 0x40062, .long)
        #expect(apic.writeMSR(0x6E0, 40_000))
        #expect(apic.deadline == microseconds(20))
        apic.advance(to: microseconds(20))
        #expect(apic.pending == 0x62)
        #expect(apic.readMSR(0x6E0) == 0)
    }

    @Test("x2APIC: entered by the base MSR, id of 32 bits, 64-bit ICR, reserved registers fault")
    func x2() {
        #expect(apic.readMSR(0x802) == nil)
        #expect(!apic.writeMSR(0x1B, 0xFEE0_0400))
        #expect(apic.writeMSR(0x1B, 0xFEE0_0C00))
        #expect(apic.readMSR(0x1B) == 0xFEE0_0D00)
        #expect(apic.readMSR(0x802) == 2)
        #expect(apic.readMSR(0x80D) == 4)
        #expect(apic.readMSR(0x80E) == nil)
        #expect(!apic.writeMSR(0x80B, 1))
        #expect(apic.writeMSR(0x830, 0x0000_0006_0000_0044))
        #expect(bus.messages == [InterruptMessage(.fixed, vector: 0x44, to: .physical(6))])
        #expect(!apic.writeMSR(0x1B, 0xFEE0_0800), "no way back to xAPIC but through disabled")
    }

    @Test("Flat and cluster logical destinations")
    func logical() {
        slot.out(0, 0xD0, 0x0200_0000, .long)
        #expect(apic.state.matches(.logical(0x06), index: 0, sender: nil))
        #expect(!apic.state.matches(.logical(0x04), index: 0, sender: nil))
        slot.out(0, 0xE0, 0x0FFF_FFFF, .long)
        slot.out(0, 0xD0, 0x1200_0000, .long)
        #expect(apic.state.matches(.logical(0x12), index: 0, sender: nil))
        #expect(!apic.state.matches(.logical(0x22), index: 0, sender: nil))
        #expect(apic.state.matches(.physical(2), index: 0, sender: nil))
    }

    @Test("An illegal vector is an error, not an interrupt")
    func illegal() {
        apic.accept(vector: 5, isLevel: false)
        #expect(apic.pending == nil)
        slot.out(0, 0x280, 0, .long)
        #expect(slot.get(0, 0x280, .long) == 0x40)
    }
}
