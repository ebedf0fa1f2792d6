// Tests of real, protected and virtual-8086 mode: exceptions, transfers, task switches, ports.
// Source: Intel SDM vol. 2 and 3; the sentence of each test is the rule.
// Programs are bytes with their mnemonics beside them.

import CProcessor
import Testing

@testable import Processor

@Suite struct SystemRealModeTests {
    @Test func interruptPushesFlagsCodeSegmentAndPointer() {
        let guest = SystemGuest()
        guest.real()
        // int 0x21
        #expect(guest.run([0xCD, 0x21]) == .halt)
        #expect(guest.vector == 0x21)
        #expect(guest.cpu.pointee.gpr.4 == Place.kernelStack - 6)
        #expect(guest.stack16(0) == 0x8002)
        #expect(guest.stack16(1) == 0)
    }

    @Test func divisionByZeroReturnsToTheInstruction() {
        let guest = SystemGuest()
        guest.real()
        // xor cx, cx; div cx
        guest.run([0x31, 0xC9, 0xF7, 0xF1])
        #expect(guest.vector == 0)
        #expect(guest.stack16(0) == 0x8002)
    }

    @Test func farCallAndReturnKeepTheStack() {
        let guest = SystemGuest()
        guest.real()
        guest.put(bytes: [0xCB], 0x9010)
        // call 0x0900:0x0010; hlt
        guest.run([0x9A, 0x10, 0x00, 0x00, 0x09, 0xF4])
        #expect(guest.cpu.pointee.rip == 0x8006)
        #expect(guest.cpu.pointee.gpr.4 == Place.kernelStack)
    }

    @Test func protectedModeIsEnteredAndLeftWithItsLimits() {
        let guest = SystemGuest()
        guest.real()
        guest.protectedTablesForRealMode()
        // lgdt [0x7000]; mov eax, cr0; or al, 1; mov cr0, eax; mov bx, 0x10; mov ds, bx; and al, 0xFE; mov cr0, eax;
        // xor bx, bx; mov ds, bx; mov eax, [dword 0x200000]; hlt
        guest.put(UInt32(0x1234_5678), 0x20_0000)
        let exit = guest.run([
            0x0F, 0x01, 0x16, 0x00, 0x70, 0x0F, 0x20, 0xC0, 0x0C, 0x01, 0x0F, 0x22, 0xC0, 0xBB, 0x10, 0x00, 0x8E,
            0xDB, 0x24, 0xFE, 0x0F, 0x22, 0xC0, 0x31, 0xDB, 0x8E, 0xDB, 0x67, 0x66, 0xA1, 0x00, 0x00, 0x20, 0x00, 0xF4,
        ])
        #expect(exit == .halt)
        #expect(guest.cpu.pointee.gpr.0 == 0x1234_5678)
        #expect(!guest.cpu.pointee.protected_mode)
    }

    @Test func aShortInterruptTableShutsDown() {
        let guest = SystemGuest()
        guest.real()
        guest.cpu.pointee.idtr = apus_table(base: 0, limit: 0)
        #expect(guest.run([0xCD, 0x21]) == .shutdown)
    }
}

@Suite struct SystemProtectedModeTests {
    @Test func loadingAnAbsentSegmentIsNotPresent() {
        let guest = SystemGuest()
        guest.protected()
        // mov ax, 0x80; mov ds, ax
        guest.run([0x66, 0xB8, 0x80, 0x00, 0x8E, 0xD8])
        #expect(guest.vector == 11)
        #expect(guest.stack32(0) == 0x80)
        #expect(guest.stack32(1) == 0x8004)
        #expect(guest.stack32(3) & 0x1_0000 != 0)
    }

    @Test func loadingASelectorBehindTheTableIsAGeneralProtectionFault() {
        let guest = SystemGuest()
        guest.protected()
        // mov ax, 0x208; mov es, ax
        guest.run([0x66, 0xB8, 0x08, 0x02, 0x8E, 0xC0])
        #expect(guest.vector == 13)
        #expect(guest.stack32(0) == 0x208)
    }

    @Test func aNullStackSegmentIsRefused() {
        let guest = SystemGuest()
        guest.protected()
        // xor eax, eax; mov ss, ax
        guest.run([0x31, 0xC0, 0x8E, 0xD0])
        #expect(guest.vector == 13)
        #expect(guest.stack32(0) == 0)
    }

    @Test func interruptsFromUserCodeSwitchStacks() {
        let guest = SystemGuest()
        guest.protected(user: true)
        guest.run([0xCD, 0x80])
        #expect(guest.vector == 0x80)
        #expect(guest.cpu.pointee.cpl == 0)
        #expect(guest.cpu.pointee.gpr.4 == Place.kernelStack - 20)
        #expect(guest.stack32(0) == 0x8002)
        #expect(guest.stack32(1) == UInt32(Selector.userCode32))
        #expect(guest.stack32(3) == UInt32(Place.userStack))
        #expect(guest.stack32(4) == UInt32(Selector.userData32))
    }

    @Test func softwareInterruptsMindTheGatesPrivilege() {
        let guest = SystemGuest()
        guest.protected(user: true, gateType: 0x8E)
        guest.run([0xCD, 0x30])
        #expect(guest.vector == 13)
        #expect(guest.stack32(0) == 0x30 * 8 + 2)
        #expect(guest.stack32(1) == 0x8000)
    }

    @Test func breakpointReturnsBehindItself() {
        let guest = SystemGuest()
        guest.protected()
        guest.run([0xCC])
        #expect(guest.vector == 3)
        #expect(guest.stack32(0) == 0x8001)
    }

    @Test func haltInUserCodeIsRefused() {
        let guest = SystemGuest()
        guest.protected(user: true)
        guest.run([0xF4])
        #expect(guest.vector == 13)
        #expect(guest.stack32(0) == 0)
    }

    @Test func returnFromInterruptReachesUserCode() {
        let guest = SystemGuest()
        guest.protected()
        guest.put(bytes: [0xCD, 0x81], Place.other)
        // push 0x23; push 0xC000; push 0x3202; push 0x1B; push 0xA000; iretd
        guest.run([
            0x6A, 0x23, 0x68, 0x00, 0xC0, 0x00, 0x00, 0x68, 0x02, 0x32, 0x00, 0x00, 0x6A, 0x1B, 0x68, 0x00, 0xA0, 0x00,
            0x00, 0xCF,
        ])
        #expect(guest.vector == 0x81)
        #expect(guest.stack32(0) == 0xA002)
        #expect(guest.stack32(1) == 0x1B)
        #expect(guest.stack32(2) & 0x3200 == 0x3200)
        // DS, a segment of level 0, did not survive.
        #expect(guest.cpu.segment(3).pointee.access == 0)
    }

    @Test func aFaultWithoutHandlerBecomesADoubleFault() {
        let guest = SystemGuest()
        guest.protected()
        guest.put(UInt64(0), Place.idt + 13 * 8)
        // mov ax, 0x208; mov es, ax
        guest.run([0x66, 0xB8, 0x08, 0x02, 0x8E, 0xC0])
        #expect(guest.vector == 8)
        #expect(guest.stack32(0) == 0)
    }

    @Test func aDoubleFaultWithoutHandlerShutsDown() {
        let guest = SystemGuest()
        guest.protected()
        guest.cpu.pointee.idtr = apus_table(base: 0, limit: 0)
        #expect(guest.run([0xCC]) == .shutdown)
    }

    @Test func aCallGateCopiesParametersToTheInnerStack() {
        let guest = SystemGuest()
        guest.protected(user: true)
        guest.gate(Place.gdt + UInt64(Selector.callGate), Selector.code32, Place.other, type: 0xEC, parameters: 2)
        guest.put(bytes: [0xF4], Place.other)
        // push 0x11; push 0x22; call 0x73:0
        guest.run([0x6A, 0x11, 0x6A, 0x22, 0x9A, 0, 0, 0, 0, 0x73, 0x00])
        #expect(guest.cpu.pointee.rip == Place.other + 1)
        #expect(guest.cpu.pointee.cpl == 0)
        #expect(guest.stack32(0) == 0x800B)
        #expect(guest.stack32(1) == 0x1B)
        #expect(guest.stack32(2) == 0x22)
        #expect(guest.stack32(3) == 0x11)
        #expect(guest.stack32(4) == UInt32(Place.userStack - 8))
        #expect(guest.stack32(5) == 0x23)
    }

    @Test func farReturnThroughAGateDropsParametersOnBothStacks() {
        let guest = SystemGuest()
        guest.protected(user: true)
        guest.gate(Place.gdt + UInt64(Selector.callGate), Selector.code32, Place.other, type: 0xEC, parameters: 2)
        // retf 8
        guest.put(bytes: [0xCA, 8, 0], Place.other)
        // push 0x11; push 0x22; call 0x73:0; int 0x82
        guest.run([0x6A, 0x11, 0x6A, 0x22, 0x9A, 0, 0, 0, 0, 0x73, 0x00, 0xCD, 0x82])
        #expect(guest.vector == 0x82)
        #expect(guest.stack32(3) == UInt32(Place.userStack))
    }

    @Test func farJumpsToATaskSwitchAndLoadEverything() {
        let guest = SystemGuest()
        guest.protected()
        guest.describe(Selector.otherTSS, base: Place.otherTSS, limit: 0x67, type: 0x89, flags: 0)
        guest.otherTask(rip: Place.other)
        guest.put(bytes: [0xF4], Place.other)
        // jmp 0x60:0
        guest.run([0xEA, 0, 0, 0, 0, 0x60, 0x00])
        #expect(guest.cpu.pointee.rip == Place.other + 1)
        #expect(guest.cpu.pointee.gpr.3 == 0xB0B0)
        #expect(guest.cpu.segment(7).pointee.selector == Selector.otherTSS)
        // Old task saved and no longer busy; the new one is; TS is set.
        #expect(guest.get(Place.tss + 0x20, as: UInt32.self) == 0x8007)
        #expect(guest.get(Place.gdt + 0x28 + 5, as: UInt8.self) == 0x89)
        #expect(guest.get(Place.gdt + 0x60 + 5, as: UInt8.self) == 0x8B)
        #expect(guest.cpu.pointee.cr0 & 8 != 0)
    }

    @Test func aNestedTaskReturnsToItsCaller() {
        let guest = SystemGuest()
        guest.protected()
        guest.describe(Selector.otherTSS, base: Place.otherTSS, limit: 0x67, type: 0x89, flags: 0)
        guest.gate(Place.gdt + UInt64(Selector.taskGate), Selector.otherTSS, 0, type: 0xE5)
        guest.otherTask(rip: Place.other)
        guest.put(bytes: [0xCF], Place.other)
        // mov ebx, 0x77; call 0x68:0; hlt
        guest.run([0xBB, 0x77, 0, 0, 0, 0x9A, 0, 0, 0, 0, 0x68, 0x00, 0xF4])
        #expect(guest.cpu.pointee.rip == 0x800D)
        #expect(guest.cpu.pointee.gpr.3 == 0x77)
        #expect(guest.get(Place.otherTSS, as: UInt16.self) == Selector.tss)
        #expect(guest.cpu.pointee.system_flags & 0x4000 == 0)
    }

    @Test func aDoubleFaultMayBeATask() {
        let guest = SystemGuest()
        guest.protected()
        guest.describe(Selector.otherTSS, base: Place.otherTSS, limit: 0x67, type: 0x89, flags: 0)
        guest.gate(Place.idt + 8 * 8, Selector.otherTSS, 0, type: 0x85)
        guest.put(UInt64(0), Place.idt + 13 * 8)
        guest.otherTask(rip: Place.other)
        guest.put(bytes: [0xF4], Place.other)
        // mov ax, 0x208; mov es, ax
        guest.run([0x66, 0xB8, 0x08, 0x02, 0x8E, 0xC0])
        #expect(guest.cpu.pointee.rip == Place.other + 1)
        #expect(guest.stack32(0) == 0)
        #expect(guest.get(Place.tss + 0x20, as: UInt32.self) == 0x8004)
    }

    @Test func thePortBitmapDecidesAboveIOPL() {
        let guest = SystemGuest()
        guest.protected(user: true)
        guest.describe(Selector.tss, base: Place.tss, limit: 0x67 + 0x2000, type: 0x8B, flags: 0)
        guest.cpu.segment(7).pointee.limit = 0x2067
        guest.put(UInt16(0x68), Place.tss + 0x66)
        for index in 0..<0x200 as Range<UInt64> { guest.put(UInt8(0xFF), Place.tss + 0x68 + index) }
        guest.put(UInt8(0xFE), Place.tss + 0x68 + 0x10)
        guest.bus.ports[0x80] = 0x5A
        // in al, 0x80; in ax, 0x80
        guest.run([0xE4, 0x80, 0x66, 0xE5, 0x80])
        #expect(guest.cpu.pointee.gpr.0 & 0xFF == 0x5A)
        #expect(guest.vector == 13)
        #expect(guest.stack32(1) == 0x8002)
    }

    @Test func userCodeCannotOpenInterruptsByPopf() {
        let guest = SystemGuest()
        guest.protected(user: true)
        // push 0x3202; popfd; int 0x80
        guest.run([0x68, 0x02, 0x32, 0, 0, 0x9D, 0xCD, 0x80])
        #expect(guest.stack32(2) & 0x3200 == 0)
    }

    @Test func segmentLimitsAndRightsCanBeAsked() {
        let guest = SystemGuest()
        guest.protected()
        // mov ax, 0x38; lsl ebx, ax; lar ecx, ax; verr ax; hlt
        guest.run([0x66, 0xB8, 0x38, 0, 0x0F, 0x03, 0xD8, 0x0F, 0x02, 0xC8, 0x0F, 0x00, 0xE0, 0xF4])
        #expect(guest.cpu.pointee.gpr.3 == 0xFFFF)
        #expect(guest.cpu.pointee.gpr.1 == 0x9B00)
        #expect(guest.cpu.pointee.arith_flags & 0x40 != 0)
    }

    @Test func repeatedInputMovesAPageAtOnce() {
        let guest = SystemGuest()
        guest.protected()
        guest.bus.ports[0x1F0] = 0xABCD
        // mov edi, 0xB0000... in RAM at 0x20000; mov ecx, 256; mov dx, 0x1f0; cld; rep insw; hlt
        guest.run([
            0xBF, 0x00, 0x00, 0x02, 0x00, 0xB9, 0, 1, 0, 0, 0x66, 0xBA, 0xF0, 0x01, 0xFC, 0xF3, 0x66, 0x6D, 0xF4,
        ])
        #expect(guest.bus.transfers == 1)
        #expect(guest.cpu.pointee.gpr.1 == 0)
        #expect(guest.cpu.pointee.gpr.7 == 0x20200)
        #expect(guest.get(0x201FE, as: UInt16.self) == 0xABCD)
    }
}

@Suite struct SystemVirtual8086Tests {
    /// Enters virtual-8086 mode at 0A00:0000 with `iopl`, running `program` there.
    private func enter(_ guest: SystemGuest, iopl: UInt32, _ program: [UInt8]) {
        guest.protected()
        guest.put(bytes: program, Place.other)
        for (index, value) in [
            0, UInt32(0x0A00), 0x20002 | iopl << 12, 0x1000, 0x0C00, 0x111, 0x722, 0x333, 0x444,
        ].enumerated() {
            guest.put(value, Place.kernelStack - 36 + UInt64(index) * 4)
        }
        guest.cpu.pointee.gpr.4 = Place.kernelStack - 36
        // iretd
        guest.run([0xCF])
    }

    @Test func interruptsLeaveItThroughTheProtectedTable() {
        let guest = SystemGuest()
        // int 0x15
        enter(guest, iopl: 3, [0xCD, 0x15])
        #expect(guest.vector == 0x15)
        #expect(!guest.cpu.isVirtual8086)
        #expect(guest.cpu.pointee.cpl == 0)
        #expect(guest.stack32(0) == 2)
        #expect(guest.stack32(1) == 0x0A00)
        #expect(guest.stack32(2) & 0x20000 != 0)
        #expect((3..<9).map { guest.stack32($0) } == [0x1000, 0x0C00, 0x111, 0x722, 0x333, 0x444])
        #expect(guest.cpu.segment(3).pointee.access == 0)
    }

    @Test func sensitiveInstructionsFaultBelowIOPL3() {
        for program: [UInt8] in [[0xCD, 0x15], [0xFA], [0x9C], [0xCF]] {
            let guest = SystemGuest()
            enter(guest, iopl: 0, program)
            #expect(guest.vector == 13)
            #expect(guest.stack32(0) == 0)
            #expect(guest.stack32(1) == 0)
        }
    }

    @Test func segmentsAreSixteenTimesTheirSelector() {
        let guest = SystemGuest()
        guest.put(UInt16(0xBEEF), 0x7220 + 4)
        // mov ax, [4]; int 0x15  (DS = 0x722)
        enter(guest, iopl: 3, [0xA1, 0x04, 0x00, 0xCD, 0x15])
        #expect(guest.cpu.pointee.gpr.0 & 0xFFFF == 0xBEEF)
    }
}

extension SystemGuest {
    /// A GDT at 0x1000 and its pseudo-descriptor at 0x7000.
    fileprivate func protectedTablesForRealMode() {
        describe(Selector.data32, type: 0x93)
        put(UInt16(0xFF), 0x7000)
        put(UInt32(Place.gdt), 0x7002)
    }

    /// A second task in `otherTSS` with EBX 0xB0B0.
    fileprivate func otherTask(rip: UInt64) {
        put(UInt32(rip), Place.otherTSS + 0x20)
        put(UInt32(2), Place.otherTSS + 0x24)
        put(UInt32(0xB0B0), Place.otherTSS + 0x34)
        put(UInt32(Place.interruptStack), Place.otherTSS + 0x38)
        for offset: UInt64 in [0x48, 0x50, 0x54, 0x58, 0x5C] { put(UInt32(Selector.data32), Place.otherTSS + offset) }
        put(UInt32(Selector.code32), Place.otherTSS + 0x4C)
        put(UInt16(0x68), Place.otherTSS + 0x66)
    }
}
