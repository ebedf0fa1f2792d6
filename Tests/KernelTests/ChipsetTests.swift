import Chips
import Ioreq
import Machine
import Testing

@testable import Kernel

@Suite("Interrupt fabric") struct ChipsetTests {
    let pages: IoreqPages
    let chipset: Chipset

    init() throws {
        pages = try IoreqPages.make()
        chipset = Chipset(vcpus: 2, tsc: TickRate(hertz: 1_000_000_000), hasHPET: true, pages: pages)
        for (port, values) in [(UInt16(0x20), [0x11, 0x08, 4, 1]), (0xA0, [0x11, 0x70, 2, 1])] {
            chipset.writePort(port, .byte, UInt64(values[0]), vcpu: 0)
            for value in values.dropFirst() { chipset.writePort(port + 1, .byte, UInt64(value), vcpu: 0) }
        }
    }

    private func local(_ offset: UInt64, _ value: UInt64, vcpu: Int = 0) {
        chipset.writeLocal(offset, .long, value, vcpu: vcpu)
    }

    private func redirect(_ line: UInt64, _ low: UInt64, to id: UInt64 = 0) {
        chipset.writeMemory(0xFEC0_0000, .long, 0x11 + line * 2, vcpu: 0)
        chipset.writeMemory(0xFEC0_0010, .long, id << 24, vcpu: 0)
        chipset.writeMemory(0xFEC0_0000, .long, 0x10 + line * 2, vcpu: 0)
        chipset.writeMemory(0xFEC0_0010, .long, low, vcpu: 0)
    }

    private func raise(_ line: Int) {
        _ = pages.driveLine(line, true)
        chipset.takeLines(vcpu: 0)
    }

    @Test("The PIC reaches the boot processor only through an open LINT0, or with its APIC disabled")
    func virtualWire() {
        raise(4)
        #expect(!chipset.work(vcpu: 0).hasInterrupt, "LINT0 is masked at power-on")
        local(0xF0, 0x1FF)
        local(0x350, 0x700)
        #expect(chipset.work(vcpu: 0).hasInterrupt)
        #expect(!chipset.work(vcpu: 1).hasInterrupt)
        local(0x350, 0x1_0700)
        #expect(!chipset.work(vcpu: 0).hasInterrupt)
        #expect(chipset.writeMSR(0x1B, 0xFEE0_0000, vcpu: 0))
        #expect(chipset.localWindow(vcpu: 0) == nil)
        #expect(chipset.acknowledge(vcpu: 0).vector == 0x0C)
    }

    @Test("An I/O APIC input is a vector at the local APIC with that id, and the vCPU is called")
    func routing() {
        local(0xF0, 0x1FF, vcpu: 1)
        _ = pages.takeAttention(1)
        redirect(9, 0x8039, to: 2)
        raise(9)
        #expect(pages.takeAttention(1))
        #expect(chipset.acknowledge(vcpu: 1).vector == 0x39)
        _ = pages.driveLine(9, false)
        chipset.takeLines(vcpu: 0)
        local(0xB0, 0, vcpu: 1)
        #expect(!chipset.work(vcpu: 1).hasInterrupt)
    }

    @Test("A level that is still high interrupts again after its EOI")
    func levelAgain() {
        local(0xF0, 0x1FF)
        redirect(20, 0x8041)
        raise(20)
        #expect(chipset.acknowledge(vcpu: 0).vector == 0x41)
        local(0xB0, 0)
        #expect(chipset.acknowledge(vcpu: 0).vector == 0x41)
    }

    @Test("A pulse between two looks is not lost")
    func pulse() {
        local(0xF0, 0x1FF)
        redirect(12, 0x51)
        _ = pages.driveLine(12, true)
        _ = pages.driveLine(12, false)
        chipset.takeLines(vcpu: 0)
        #expect(chipset.acknowledge(vcpu: 0).vector == 0x51)
        local(0xB0, 0)
        raise(12)
        #expect(chipset.acknowledge(vcpu: 0).vector == 0x51)
        local(0xB0, 0)
        _ = pages.driveLine(12, false)
        raise(12)
        #expect(chipset.acknowledge(vcpu: 0).vector == 0x51, "high, low, high is one more edge")
    }

    @Test("INIT and start-up IPIs become signals of the target")
    func startup() {
        local(0xF0, 0x1FF)
        local(0x310, 2 << 24)
        local(0x300, 0x4500)
        #expect(chipset.work(vcpu: 1).signals.initialise)
        local(0x300, 0x4610)
        #expect(chipset.work(vcpu: 1).signals.startup == 0x10)
        #expect(chipset.work(vcpu: 1).signals.isEmpty)
        local(0x300, 0xC_0400)
        #expect(chipset.work(vcpu: 1).signals.nonMaskable)
        #expect(!chipset.work(vcpu: 0).signals.nonMaskable)
    }

    @Test("The 8254 is IRQ 0 of the PIC and input 2 of the I/O APIC, until the HPET replaces it")
    func timer() {
        local(0xF0, 0x1FF)
        redirect(2, 0x30)
        chipset.writePort(0x43, .byte, 0x30, vcpu: 0)
        chipset.writePort(0x40, .byte, 1, vcpu: 0)
        chipset.writePort(0x40, .byte, 0, vcpu: 0)
        let start = pages.guestNanoseconds
        while pages.guestNanoseconds < start + 10_000 {}
        _ = chipset.readPort(0x61, .byte, vcpu: 0)
        #expect(chipset.acknowledge(vcpu: 0).vector == 0x30)
        local(0xB0, 0)
        chipset.writeMemory(0xFED0_0010, .long, 3, vcpu: 0)
        chipset.writePort(0x43, .byte, 0x30, vcpu: 0)
        chipset.writePort(0x40, .byte, 1, vcpu: 0)
        chipset.writePort(0x40, .byte, 0, vcpu: 0)
        let again = pages.guestNanoseconds
        while pages.guestNanoseconds < again + 10_000 {}
        _ = chipset.readPort(0x61, .byte, vcpu: 0)
        #expect(!chipset.work(vcpu: 0).hasInterrupt)
    }

    @Test("CR8 and TPR are one register")
    func taskPriority() {
        chipset.setTaskPriority(9, vcpu: 0)
        #expect(chipset.readLocal(0x80, .long, vcpu: 0) == 0x90)
        local(0x80, 0x35)
        #expect(chipset.taskPriority(vcpu: 0) == 3)
    }
}
