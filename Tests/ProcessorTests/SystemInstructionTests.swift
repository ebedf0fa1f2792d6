// Tests of system instructions one by one: segment moves, descriptor tables, SYSENTER, control registers.
// Source: Intel SDM vol. 2; the sentence of each test is the rule.
// Programs are bytes with their mnemonics beside them.

import CProcessor
import Testing

@testable import Processor

@Suite struct SystemInstructionTests {
    @Test func sysenterAndSysexitAreInverse() {
        let guest = SystemGuest()
        guest.protected(user: true)
        guest.cpu.pointee.sysenter_cs = UInt64(Selector.code32)
        guest.cpu.pointee.sysenter_esp = Place.kernelStack
        guest.cpu.pointee.sysenter_eip = Place.other
        // mov edx, 0x8002; mov ecx, 0xC000; sysexit
        guest.put(bytes: [0xBA, 0x02, 0x80, 0, 0, 0xB9, 0x00, 0xC0, 0, 0, 0x0F, 0x35], Place.other)
        // sysenter; int 0x80
        guest.run([0x0F, 0x34, 0xCD, 0x80])
        #expect(guest.vector == 0x80)
        #expect(guest.stack32(0) == 0x8004)
        #expect(guest.stack32(1) == UInt32(Selector.userCode32))
        #expect(guest.stack32(3) == 0xC000)
        #expect(guest.stack32(4) == UInt32(Selector.userData32))
    }

    @Test func sysenterWithoutASelectorIsRefused() {
        let guest = SystemGuest()
        guest.protected(user: true)
        guest.run([0x0F, 0x34])
        #expect(guest.vector == 13)
    }

    @Test func segmentsCanComeFromALocalTable() {
        let guest = SystemGuest()
        guest.protected()
        guest.describe(Selector.absent, base: 0x9000, limit: 0x0F, type: 0x82, flags: 0)
        // Entry 1 of the local table: data at 0x9100.
        guest.put(UInt64(0x0040_9300_9100_00FF), 0x9008)
        guest.put(UInt32(0xFEED), 0x9110)
        // mov ax, 0x80; lldt ax; mov ax, 0x0C; mov ds, ax; mov ebx, [0x10]; sldt ecx; hlt
        guest.run([
            0x66, 0xB8, 0x80, 0, 0x0F, 0x00, 0xD0, 0x66, 0xB8, 0x0C, 0, 0x8E, 0xD8, 0x8B, 0x1D, 0x10, 0, 0, 0, 0x0F,
            0x00, 0xC1, 0xF4,
        ])
        #expect(guest.cpu.pointee.gpr.3 == 0xFEED)
        #expect(guest.cpu.pointee.gpr.1 == 0x80)
    }

    @Test func accessesBehindALimitFault() {
        let guest = SystemGuest()
        guest.protected()
        guest.describe(Selector.absent, base: 0x9000, limit: 0xFF, type: 0x93, flags: 4)
        // mov ax, 0x80; mov ds, ax; mov ebx, [0xFD]
        guest.run([0x66, 0xB8, 0x80, 0, 0x8E, 0xD8, 0x8B, 0x1D, 0xFD, 0, 0, 0])
        #expect(guest.vector == 13)
        #expect(guest.stack32(1) == 0x8006)
    }

    @Test func loadingASegmentMarksItAccessed() {
        let guest = SystemGuest()
        guest.protected()
        guest.describe(Selector.absent, type: 0x92)
        // mov ax, 0x80; mov es, ax; hlt
        guest.run([0x66, 0xB8, 0x80, 0, 0x8E, 0xC0, 0xF4])
        #expect(guest.get(Place.gdt + 0x80 + 5, as: UInt8.self) == 0x93)
        #expect(guest.cpu.segment(0).pointee.access & 1 == 1)
    }

    @Test func farPointersLoadSegmentAndRegister() {
        let guest = SystemGuest()
        guest.protected()
        guest.put(UInt32(0x1234), 0x9000)
        guest.put(Selector.data16, 0x9004)
        // les ebx, [0x9000]; hlt
        guest.run([0xC4, 0x1D, 0x00, 0x90, 0, 0, 0xF4])
        #expect(guest.cpu.pointee.gpr.3 == 0x1234)
        #expect(guest.cpu.segment(0).pointee.selector == Selector.data16)
        #expect(guest.cpu.segment(0).pointee.limit == 0xFFFF)
    }

    @Test func aFaultingPopLeavesTheStackPointer() {
        let guest = SystemGuest()
        guest.protected()
        // push 0x80; pop ds
        guest.run([0x6A, 0x7F, 0x6A, 0x7C, 0x1F])
        #expect(guest.vector == 13)
        #expect(guest.cpu.pointee.gpr.4 + 16 == Place.kernelStack - 8)
    }

    @Test func boundsAreInclusiveAndSigned() {
        let guest = SystemGuest()
        guest.protected()
        guest.put(Int32(-5), 0x9000)
        guest.put(Int32(5), 0x9004)
        // mov eax, -5; bound eax, [0x9000]; mov eax, 6; bound eax, [0x9000]
        guest.run([
            0xB8, 0xFB, 0xFF, 0xFF, 0xFF, 0x62, 0x05, 0, 0x90, 0, 0, 0xB8, 6, 0, 0, 0, 0x62, 0x05, 0, 0x90, 0, 0,
        ])
        #expect(guest.vector == 5)
        #expect(guest.stack32(0) == 0x8010)
    }

    @Test func lmswSetsButNeverClearsProtection() {
        let guest = SystemGuest()
        guest.protected()
        // mov ax, 8; lmsw ax; smsw ebx; clts; smsw ecx; hlt
        guest.run([
            0x66, 0xB8, 8, 0, 0x0F, 0x01, 0xF0, 0x0F, 0x01, 0xE3, 0x0F, 0x06, 0x0F, 0x01, 0xE1, 0xF4,
        ])
        #expect(guest.cpu.pointee.gpr.3 & 0xF == 9)
        #expect(guest.cpu.pointee.gpr.1 & 0xF == 1)
    }

    @Test func reservedBitsOfCR4AreRefused() {
        let guest = SystemGuest()
        guest.protected()
        // mov eax, 0x80000000; mov cr4, eax
        guest.run([0xB8, 0, 0, 0, 0x80, 0x0F, 0x22, 0xE0])
        #expect(guest.vector == 13)
        #expect(guest.cpu.pointee.cr4 == 0)
    }

    @Test func debugRegistersFourAndFiveAreAliases() {
        let guest = SystemGuest()
        guest.protected()
        // mov eax, dr4; mov ebx, dr5; hlt
        guest.run([0x0F, 0x21, 0xE0, 0x0F, 0x21, 0xEB, 0xF4])
        #expect(guest.cpu.pointee.gpr.0 == 0xFFFF_0FF0)
        #expect(guest.cpu.pointee.gpr.3 == 0x400)
    }

    @Test func tablesAreStoredAsTheyWereLoaded() {
        let guest = SystemGuest()
        guest.protected()
        guest.put(UInt16(0x7FF), 0x9000)
        guest.put(UInt32(0x0012_3450), 0x9002)
        // lidt [0x9000]; sidt [0x9010]; hlt
        guest.run([0x0F, 0x01, 0x1D, 0, 0x90, 0, 0, 0x0F, 0x01, 0x0D, 0x10, 0x90, 0, 0, 0xF4])
        #expect(guest.cpu.pointee.idtr.base == 0x12_3450)
        #expect(guest.get(0x9010, as: UInt16.self) == 0x7FF)
        #expect(guest.get(0x9012, as: UInt32.self) == 0x12_3450)
    }

    @Test func arplRaisesTheRequestedLevel() {
        let guest = SystemGuest()
        guest.protected()
        // mov ax, 0x10; mov cx, 3; arpl ax, cx; hlt
        guest.run([0x66, 0xB8, 0x10, 0, 0x66, 0xB9, 3, 0, 0x63, 0xC8, 0xF4])
        #expect(guest.cpu.pointee.gpr.0 & 0xFFFF == 0x13)
        #expect(guest.cpu.pointee.arith_flags & 0x40 != 0)
    }

    @Test func basesOfFSAndGSAreUserAccessibleWithFSGSBASE() {
        let guest = SystemGuest()
        guest.long(user: true)
        guest.cpu.pointee.cr4 |= 1 << 16
        guest.cpu.updateMode()
        // mov rax, 0x7000; wrgsbase rax; rdgsbase rbx; int 0x80
        guest.run([
            0x48, 0xC7, 0xC0, 0x00, 0x70, 0, 0, 0xF3, 0x48, 0x0F, 0xAE, 0xD8, 0xF3, 0x48, 0x0F, 0xAE, 0xCB, 0xCD, 0x80,
        ])
        #expect(guest.vector == 0x80)
        #expect(guest.cpu.pointee.gpr.3 == 0x7000)
    }

    @Test func trapsFollowEachInstructionWithTF() {
        let guest = SystemGuest()
        guest.protected()
        // push 0x102; popfd; nop; nop
        guest.run([0x68, 0x02, 0x01, 0, 0, 0x9D, 0x90, 0x90])
        #expect(guest.vector == 1)
        #expect(guest.stack32(0) == 0x8007)
        #expect(guest.cpu.pointee.dr.6 & 1 << 14 != 0)
    }

    @Test func aFailedInterruptDeliveryShutsDown() {
        let guest = SystemGuest()
        guest.protected()
        guest.cpu.pointee.idtr = apus_table(base: 0, limit: 0)
        // sti; hlt
        #expect(guest.run([0xFB, 0xF4]) == .halt)
        guest.engine.inject(vector: 0x20)
        #expect(guest.engine.run() == .shutdown)
    }

    @Test func anInterruptWaitsForTheInstructionBehindSTI() {
        let guest = SystemGuest()
        guest.protected()
        guest.engine.wantsInterruptWindow = true
        // sti; inc eax; inc eax; hlt
        #expect(guest.run([0xFB, 0x40, 0x40, 0xF4]) == .interruptWindow)
        #expect(guest.cpu.pointee.gpr.0 == 1)
        #expect(guest.cpu.pointee.rip == 0x8002)
    }

    @Test func nonMaskableInterruptsDoNotNest() {
        let guest = SystemGuest()
        guest.protected()
        guest.engine.injectNMI()
        guest.run([0xF4])
        #expect(guest.vector == 2)
        guest.engine.injectNMI()
        #expect(guest.engine.run() == .halt)
        #expect(guest.stack32(0) == 0x8000)
    }
}
