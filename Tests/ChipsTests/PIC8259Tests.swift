import Chips
import DeviceContract
import Machine
import Testing

@Suite("8259A pair") struct PIC8259Tests {
    let intr = Wire()
    let pic: PIC8259Pair
    let slot: Slot

    init() {
        pic = PIC8259Pair(intr: intr)
        slot = Slot("pic", pic)
        for (region, base, wiring) in [(0, 0x08, 4), (1, 0x70, 2)] {
            slot.out(region, 0, 0x11)
            slot.out(region, 1, UInt64(base))
            slot.out(region, 1, UInt64(wiring))
            slot.out(region, 1, 0x01)
        }
    }

    @Test func contract() throws { try expectContract { PIC8259Pair(intr: Wire()) } }

    @Test("The lower line of the master wins and blocks those below until EOI")
    func priority() {
        pic.input(3, true)
        pic.input(1, true)
        #expect(intr.isHigh)
        #expect(pic.acknowledge() == 0x09)
        #expect(!intr.isHigh, "IRQ 3 waits behind IRQ 1")
        slot.out(0, 0, 0x20)
        #expect(intr.isHigh)
        #expect(pic.acknowledge() == 0x0B)
    }

    @Test("A slave's request reaches the CPU through IR2 and needs two EOIs")
    func cascade() {
        pic.input(14, true)
        #expect(pic.acknowledge() == 0x76)
        pic.input(12, true)
        #expect(!intr.isHigh, "IR2 of the master is still in service")
        slot.out(1, 0, 0x20)
        slot.out(0, 0, 0x20)
        #expect(pic.acknowledge() == 0x74)
    }

    @Test("A masked line is remembered and not signalled")
    func mask() {
        slot.out(0, 1, 0x10)
        pic.input(4, true)
        #expect(!intr.isHigh)
        #expect(slot.get(0, 0) == 0x10)
        slot.out(0, 1, 0x00)
        #expect(intr.isHigh)
    }

    @Test("An edge interrupts once, a level until it falls")
    func triggering() {
        pic.input(5, true)
        _ = pic.acknowledge()
        slot.out(0, 0, 0x20)
        #expect(!intr.isHigh)
        slot.out(2, 0, 0xFF)
        #expect(slot.get(2, 0) == 0xF8, "IRQ 0-2 have no level mode")
        #expect(intr.isHigh)
        pic.input(5, false)
        #expect(!intr.isHigh)
    }

    @Test("An acknowledge without a request is IR7")
    func spurious() { #expect(pic.acknowledge() == 0x0F) }

    @Test("Rotation on EOI gives the served line the lowest priority")
    func rotation() {
        pic.input(0, true)
        _ = pic.acknowledge()
        slot.out(0, 0, 0xA0)
        pic.input(0, false)
        pic.input(0, true)
        pic.input(7, true)
        #expect(pic.acknowledge() == 0x0F)
    }

    @Test("Poll reads acknowledge; OCW3 selects ISR")
    func poll() {
        pic.input(6, true)
        slot.out(0, 0, 0x0C)
        #expect(slot.get(0, 0) == 0x86)
        slot.out(0, 0, 0x0B)
        #expect(slot.get(0, 0) == 0x40)
    }

    @Test("Special mask mode lets lower lines pass while one is in service")
    func specialMask() {
        pic.input(1, true)
        _ = pic.acknowledge()
        slot.out(0, 1, 0x02)
        slot.out(0, 0, 0x68)
        pic.input(4, true)
        #expect(pic.acknowledge() == 0x0C)
    }
}
