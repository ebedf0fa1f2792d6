// Tests of hardware breakpoints, alignment checks and PAE's top entries.
// Source: Intel SDM vol. 3 §17.2, §17.3.1, §6.15 (interrupt 17), §4.4.1; the sentence of each test is the rule.
// Programs are bytes with their mnemonics beside them.

import CProcessor
import Testing

@testable import Processor

@Suite struct BreakpointTests {
    /// Sets DR0 and DR7: `kind` is R/W0, `length` is LEN0.
    private func arm(_ guest: SystemGuest, _ address: UInt64, kind: UInt64, length: UInt64 = 0) {
        guest.cpu.pointee.dr.0 = address
        guest.cpu.pointee.dr.7 = 0x401 | kind << 16 | length << 18
        guest.cpu.updateMode()
    }

    /// Vector 1 leads to `inc dword [0x9000]; iretd`.
    private func countTraps(_ guest: SystemGuest) {
        guest.put(bytes: [0xFF, 0x05, 0x00, 0x90, 0x00, 0x00, 0xCF], Place.other)
        guest.gate(Place.idt + 8, Selector.code32, Place.other, type: 0x8E)
    }

    @Test func anInstructionBreakpointIsAFaultBeforeItsInstruction() {
        let guest = SystemGuest()
        guest.protected()
        arm(guest, Place.code + 1, kind: 0)
        // nop; inc eax; hlt
        guest.run([0x90, 0x40, 0xF4])
        #expect(guest.vector == 1)
        #expect(guest.stack32(0) == 0x8001)
        #expect(guest.stack32(2) & 0x1_0000 != 0, "RF is set, so that the return goes on")
        #expect(guest.cpu.pointee.gpr.0 == 0)
        #expect(guest.cpu.pointee.dr.6 & 0xF == 1)
    }

    @Test func theResumeFlagLastsForOneInstruction() {
        let guest = SystemGuest()
        guest.protected()
        countTraps(guest)
        arm(guest, Place.code + 5, kind: 0)
        // mov ecx, 3; again: nop; loop again; hlt
        #expect(guest.run([0xB9, 3, 0, 0, 0, 0x90, 0xE2, 0xFD, 0xF4]) == .halt)
        #expect(guest.cpu.pointee.rip == 0x8009)
        #expect(guest.get(0x9000, as: UInt32.self) == 3)
    }

    @Test func aWriteBreakpointTrapsBehindTheStoreThatTouchesItsRange() {
        let guest = SystemGuest()
        guest.protected()
        arm(guest, 0x9100, kind: 1, length: 3)
        guest.cpu.pointee.gpr.0 = 0x55
        // mov ebx, [0x9100]; mov [0x9104], eax; mov [0x9103], al; hlt
        guest.run([0x8B, 0x1D, 0, 0x91, 0, 0, 0xA3, 4, 0x91, 0, 0, 0xA2, 3, 0x91, 0, 0, 0xF4])
        #expect(guest.vector == 1)
        #expect(guest.stack32(0) == 0x8010)
        #expect(guest.stack32(2) & 0x1_0000 == 0)
        #expect(guest.get(0x9103, as: UInt8.self) == 0x55)
        #expect(guest.cpu.pointee.dr.6 & 0xF == 1)
    }

    @Test func anAccessBreakpointTrapsBehindLoadsToo() {
        let guest = SystemGuest()
        guest.protected()
        arm(guest, 0x9100, kind: 3, length: 1)
        // mov al, [0x90FF]; mov eax, [0x90FF]; hlt
        guest.run([0xA0, 0xFF, 0x90, 0, 0, 0xA1, 0xFF, 0x90, 0, 0, 0xF4])
        #expect(guest.vector == 1)
        #expect(guest.stack32(0) == 0x800A)
    }

    @Test func aReadModifyWriteOnABreakpointTrapsOnce() {
        let guest = SystemGuest()
        guest.protected()
        countTraps(guest)
        arm(guest, 0x9100, kind: 1, length: 3)
        // lock inc dword [0x9100]; push 1; hlt
        #expect(guest.run([0xF0, 0xFF, 0x05, 0, 0x91, 0, 0, 0x6A, 1, 0xF4]) == .halt)
        #expect(guest.get(0x9100, as: UInt32.self) == 1)
        #expect(guest.get(0x9000, as: UInt32.self) == 1)
    }

    @Test(arguments: [true, false]) func portBreakpointsNeedDebugExtensions(enabled: Bool) {
        let guest = SystemGuest()
        guest.protected()
        guest.cpu.pointee.cr4 = enabled ? CR4.debugExtensions : 0
        arm(guest, 0x60, kind: 2)
        // out 0x60, al; nop; hlt
        guest.run([0xE6, 0x60, 0x90, 0xF4])
        #expect(guest.bus.writes.count == 1)
        #expect(guest.vector == (enabled ? 1 : nil))
        if enabled { #expect(guest.stack32(0) == 0x8002) }
    }

    @Test func aStepAndABreakpointAreOneTrap() {
        let guest = SystemGuest()
        guest.protected()
        guest.cpu.pointee.system_flags |= 0x100
        arm(guest, 0x9100, kind: 1)
        // mov [0x9100], al; hlt
        guest.run([0xA2, 0, 0x91, 0, 0, 0xF4])
        #expect(guest.vector == 1)
        #expect(guest.cpu.pointee.dr.6 & 0xE00F == 0x4001)
    }

    @Test func generalDetectGuardsTheDebugRegisters() {
        let guest = SystemGuest()
        guest.protected()
        guest.cpu.pointee.dr.7 = 0x2400
        // mov eax, dr0
        guest.run([0x0F, 0x21, 0xC0])
        #expect(guest.vector == 1)
        #expect(guest.stack32(0) == 0x8000)
        #expect(guest.cpu.pointee.dr.6 & 0xE00F == 0x2000)
        #expect(guest.cpu.pointee.dr.7 & 0x2000 == 0)
    }
}

@Suite struct AlignmentTests {
    private func user(_ guest: SystemGuest) {
        guest.cpu.pointee.cr0 |= CR0.alignmentMask
        guest.cpu.pointee.system_flags |= UInt32(RFLAGS.alignmentCheck)
        guest.cpu.updateMode()
    }

    @Test func userCodeThatAsksForItFaultsAtAnAddressThatIsNotAligned() {
        let guest = SystemGuest()
        guest.protected(user: true)
        user(guest)
        // mov eax, [0x9004]; mov al, [0x9001]; mov ax, [0x9001]
        guest.run([0xA1, 4, 0x90, 0, 0, 0xA0, 1, 0x90, 0, 0, 0x66, 0xA1, 1, 0x90, 0, 0])
        #expect(guest.vector == 17)
        #expect(guest.stack32(0) == 0)
        #expect(guest.stack32(1) == 0x800A)
    }

    @Test func supervisorCodeIsNotChecked() {
        let guest = SystemGuest()
        guest.protected()
        user(guest)
        // mov eax, [0x9001]; hlt
        #expect(guest.run([0xA1, 1, 0x90, 0, 0, 0xF4]) == .halt)
        #expect(guest.vector == nil)
    }

    @Test func translatedCodeIsCheckedToo() {
        let guest = SystemGuest()
        guest.long(user: true)
        user(guest)
        guest.cpu.pointee.gpr.3 = 0x9000
        // mov ecx, 100; again: mov rax, [rbx]; dec ecx; jnz again; inc ebx; jmp again
        guest.run([0xB9, 100, 0, 0, 0, 0x48, 0x8B, 0x03, 0xFF, 0xC9, 0x75, 0xF9, 0xFF, 0xC3, 0xEB, 0xF5])
        #expect(guest.vector == 17)
        #expect(guest.stack64(1) == 0x8005)
        #expect(guest.cpu.pointee.gpr.1 == 0)
    }

    @Test func callsByFSAreCheckedAndFoundToo() {
        // The call asks for FS's limit and rights, and twice for a page: mov eax,7B; mov fs,eax; mov ecx,100; mov ebx,100h;
        // again: call fs:[ebx]; dec ecx; jnz again; hlt   8100: inc edx; ret
        let guest = SystemGuest()
        guest.protected(user: true)
        guest.describe(0x78, base: 0xD000, type: 0xF3, flags: 0xC)
        guest.cpu.engine.pointee.blocks.heat = 1
        user(guest)
        guest.put(UInt32(0x8100), 0xD100)
        guest.put(bytes: [0x42, 0xC3], 0x8100)
        guest.cpu.pointee.gpr.2 = 0
        guest.run([
            0xB8, 0x7B, 0, 0, 0, 0x8E, 0xE0, 0xB9, 100, 0, 0, 0, 0xBB, 0, 1, 0, 0, 0x64, 0xFF, 0x13, 0x49, 0x75, 0xFA,
            0xF4,
        ])
        #expect(guest.vector == 13)
        #expect(guest.stack32(1) == 0x8017)
        #expect(guest.cpu.pointee.gpr.2 == 100)
    }
}

@Suite struct AddressLineTests {
    private func closeA20(_ guest: SystemGuest) {
        let map = guest.cpu.engine.pointee.map
        map.replace(with: map.regions, addressMask: ~0x10_0000)
        guest.engine.memoryMapChanged()
    }

    @Test func aClosedGateMakesOddMegabytesTheEvenOnesBelow() {
        let guest = SystemGuest()
        guest.protected()
        guest.put(UInt32(0x1111_1111), 0x20_9000)
        guest.put(UInt32(0x2222_2222), 0x30_9000)
        closeA20(guest)
        // mov eax, [0x309000]; mov [0x109000], eax; hlt
        guest.run([0xA1, 0, 0x90, 0x30, 0, 0xA3, 0, 0x90, 0x10, 0, 0xF4])
        #expect(guest.cpu.pointee.gpr.0 == 0x1111_1111)
        #expect(guest.get(0x9000, as: UInt32.self) == 0x1111_1111)
    }

    @Test func pageTablesAndCodeLieBehindTheGateToo() {
        let guest = SystemGuest()
        guest.protected()
        guest.put(UInt32(0x83), 0x4_0000)  // 4 MiB one to one
        guest.cpu.pointee.cr3 = 0x14_0000
        guest.cpu.pointee.cr4 = CR4.pageSizeExtension
        closeA20(guest)
        guest.put(bytes: [0xB3, 0x77, 0xF4], 0x9000)  // mov bl, 0x77; hlt
        // mov eax, cr0; or eax, 0x80000000; mov cr0, eax; mov eax, 0x109000; jmp eax
        guest.run([
            0x0F, 0x20, 0xC0, 0x0D, 0, 0, 0, 0x80, 0x0F, 0x22, 0xC0, 0xB8, 0, 0x90, 0x10, 0, 0xFF, 0xE0,
        ])
        #expect(guest.cpu.pointee.gpr.3 & 0xFF == 0x77)
    }
}

@Suite struct DirectoryPointerTests {
    private func pageAddressExtension() -> SystemGuest {
        let guest = SystemGuest()
        guest.protected()
        guest.put(UInt64(Place.pages + 0x1001), Place.pages)
        guest.put(UInt64(0x87), Place.pages + 0x1000)
        guest.put(UInt64(0x20_0087), Place.pages + 0x1008)
        guest.cpu.pointee.cr3 = Place.pages
        guest.cpu.pointee.cr4 = CR4.physicalAddressExtension
        return guest
    }
    /// mov eax, cr0; or eax, 0x80000000; mov cr0, eax
    private let startPaging: [UInt8] = [0x0F, 0x20, 0xC0, 0x0D, 0, 0, 0, 0x80, 0x0F, 0x22, 0xC0]

    @Test func theyAreLoadedWithPagingAndKeptUntilTheNextLoad() {
        let guest = pageAddressExtension()
        guest.put(UInt32(0x1234_5678), 0x9000)
        // mov dword [0x100000], 0; invlpg [0x9000]; mov eax, [0x9000]; hlt
        let exit = guest.run(
            startPaging + [
                0xC7, 0x05, 0, 0, 0x10, 0, 0, 0, 0, 0, 0x0F, 0x01, 0x3D, 0, 0x90, 0, 0, 0xA1, 0, 0x90, 0, 0, 0xF4,
            ])
        #expect(exit == .halt)
        #expect(guest.cpu.pointee.gpr.0 == 0x1234_5678)
    }

    @Test func reservedBitsAreAGeneralProtectionFaultWhereTheyAreLoaded() {
        let guest = pageAddressExtension()
        guest.put(UInt64(3), Place.pages + 8)
        guest.run(startPaging)
        #expect(guest.vector == 13)
        #expect(guest.stack32(0) == 0)
        #expect(guest.stack32(1) == 0x8008)
        #expect(guest.cpu.pointee.cr0 & CR0.paging == 0)
    }

    @Test func absentOnesMayHoldAnything() {
        let guest = pageAddressExtension()
        guest.put(UInt64.max - 1, Place.pages + 8)
        #expect(guest.run(startPaging + [0xF4]) == .halt)
        #expect(guest.vector == nil)
    }
}
