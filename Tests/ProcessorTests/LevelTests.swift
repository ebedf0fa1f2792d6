// Tests of what translated code does by itself around system calls and in front of the interpreter: SYSCALL and SYSRET, state
// that is read without a handler, the second level of the TLB, both entries of a set of the jump cache.
// Source: Intel SDM vol. 2 (SYSCALL, SYSRET, RDFSBASE, WRGSBASE, MOV from control and segment registers), vol. 3 §4.10.
// Programs run by handlers alone (heat 0), and translated at once (heat 1).

import CProcessor
import Testing

@testable import Processor

@Suite struct LevelTests {
    private func caller(heat: UInt32) -> SystemGuest {
        let guest = SystemGuest()
        guest.long(user: true)
        guest.cpu.engine.pointee.blocks.heat = heat
        guest.cpu.pointee.star = UInt64(Selector.code64) << 32 | 0x4B << 48
        guest.cpu.pointee.lstar = Place.other
        guest.cpu.pointee.sfmask = 0x4_0600
        guest.cpu.pointee.system_flags |= 0x200
        return guest
    }

    /// What depends on the level, as it is and as it would be derived anew.
    private func expectDerived(_ cpu: CPU) {
        func state() -> [UInt64] {
            [
                UInt64(cpu.pointee.mode_key), UInt64(cpu.pointee.jump_generation), UInt64(cpu.pointee.tlb_mode),
                UInt64(UInt(bitPattern: cpu.pointee.tlb_read)), UInt64(UInt(bitPattern: cpu.pointee.tlb_write)),
                UInt64(cpu.pointee.code_size), UInt64(cpu.pointee.stack_size), cpu.pointee.flat_data ? 1 : 0,
            ]
        }
        let quick = state()
        cpu.updateMode()
        #expect(quick == state())
    }

    @Test(arguments: [0, 1] as [UInt32]) func aThousandCallsKeepRegistersAndFlags(heat: UInt32) {
        let guest = caller(heat: heat)
        // add rsi,1; sysretq
        guest.put(bytes: [0x48, 0x83, 0xC6, 1, 0x48, 0x0F, 0x07], Place.other)
        // mov ebx,1000; xor esi,esi; l: stc; syscall; adc rdi,0; dec ebx; jnz l; std; syscall; pushfq; pop rax; int 0x90
        guest.run([
            0xBB, 0xE8, 3, 0, 0, 0x31, 0xF6, 0xF9, 0x0F, 5, 0x48, 0x83, 0xD7, 0, 0xFF, 0xCB, 0x75, 0xF5, 0xFD, 0x0F, 5,
            0x9C,
            0x58, 0xCD, 0x90,
        ])
        #expect(guest.vector == 0x90)
        #expect(guest.cpu.pointee.gpr.6 == 1001)
        #expect(guest.cpu.pointee.gpr.7 == 1000)
        #expect(guest.cpu.pointee.gpr.0 & 0x600 == 0x600)
        #expect(guest.cpu.pointee.gpr.1 == Place.code + 21)
        #expect(guest.cpu.pointee.gpr.11 & 0x600 == 0x600)
        #expect(guest.stack64(1) == UInt64(Selector.userCode64))
        #expect(guest.stack64(4) == UInt64(Selector.userData64))
        expectDerived(guest.cpu)
    }

    @Test func bothDirectionsLeaveTheStateOfTheirLevel() {
        let guest = caller(heat: 0)
        let cpu = guest.cpu
        cpu.pointee.native_flags = 0x0101
        #expect(apus_system_call(cpu, 0x1234) == 1)
        #expect(cpu.pointee.cpl == 0 && cpu.pointee.rip == Place.other && cpu.pointee.gpr.1 == 0x1234)
        #expect(cpu.pointee.gpr.11 == 0xA03 && cpu.pointee.system_flags & 0x200 == 0)
        expectDerived(cpu)
        #expect(apus_system_return(cpu, 0) == 1)
        #expect(cpu.pointee.cpl == 3 && cpu.pointee.rip == 0x1234)
        #expect(cpu.pointee.native_flags == 0x0101 && cpu.pointee.system_flags & 0x200 != 0)
        expectDerived(cpu)
        // Level 3 cannot return to itself.
        #expect(apus_system_return(cpu, 0) == 0)
    }

    @Test func whatIsNotPlainIsLeftToTheHandlers() {
        let cpu = caller(heat: 0)
        cpu.cpu.pointee.efer &= ~1
        #expect(apus_system_call(cpu.cpu, 0x1234) == 0)
        cpu.cpu.pointee.efer |= 1
        cpu.cpu.pointee.system_flags |= 1 << 18
        cpu.cpu.pointee.sfmask = 0
        #expect(apus_system_call(cpu.cpu, 0x1234) == 0)
        cpu.cpu.pointee.sfmask = 1 << 18
        #expect(apus_system_call(cpu.cpu, 0x1234) == 1)
        for (flags, target) in [(0x100, 0x1000), (1 << 18, 0x1000), (2, 1 << 62)] as [(UInt64, UInt64)] {
            (cpu.cpu.pointee.gpr.11, cpu.cpu.pointee.gpr.1) = (flags, target)
            #expect(apus_system_return(cpu.cpu, 0) == 0)
        }
        #expect(cpu.cpu.pointee.cpl == 0)
    }

    @Test(arguments: [0, 1] as [UInt32]) func stateIsReadAsItIs(heat: UInt32) throws {
        let guest = SystemGuest()
        guest.long()
        guest.cpu.engine.pointee.blocks.heat = heat
        try guest.cpu.setCR4(guest.cpu.pointee.cr4 | CR4.fsgsBase)
        guest.cpu.pointee.cr2 = 0x1234_5678_9ABC_DEF0
        guest.cpu.segment(Seg.fs).pointee.base = 0xFFFF_8000_1111_2222
        // mov eax,cs; or rbx,-1; mov bx,cs; mov rsi,cr2; mov r9,cr3; rdfsbase rcx; or rdx,-1; rdfsbase edx; mov edi,0x77;
        // wrgsbase rdi; rdgsbase r11; std; pushfq; pop rbp; cld; pushfq; pop r8; hlt
        guest.run([
            0x8C, 0xC8, 0x48, 0x83, 0xCB, 0xFF, 0x66, 0x8C, 0xCB, 0x0F, 0x20, 0xD6, 0x41, 0x0F, 0x20, 0xD9, 0xF3, 0x48,
            0x0F,
            0xAE, 0xC1, 0x48, 0x83, 0xCA, 0xFF, 0xF3, 0x0F, 0xAE, 0xC2, 0xBF, 0x77, 0, 0, 0, 0xF3, 0x48, 0x0F, 0xAE,
            0xDF,
            0xF3, 0x49, 0x0F, 0xAE, 0xCB, 0xFD, 0x9C, 0x5D, 0xFC, 0x9C, 0x41, 0x58, 0xF4,
        ])
        #expect(guest.vector == nil)
        let registers = guest.cpu.pointee.gpr
        #expect(registers.0 == UInt64(Selector.code64))
        #expect(registers.3 == 0xFFFF_FFFF_FFFF_0000 | UInt64(Selector.code64))
        #expect(registers.6 == 0x1234_5678_9ABC_DEF0)
        #expect(registers.9 == Place.pages)
        #expect(registers.1 == 0xFFFF_8000_1111_2222)
        #expect(registers.2 == 0x1111_2222)
        #expect(registers.11 == 0x77)
        #expect(registers.5 & 0x400 != 0)
        #expect(registers.8 & 0x400 == 0)
    }

    @Test(arguments: [0, 1] as [UInt32]) func basesAreCheckedAndNeedTheirBit(heat: UInt32) throws {
        for (bit, value, vector) in [(CR4.fsgsBase, 1 << 62, 13), (0, 0x1000, 6)] as [(UInt64, UInt64, UInt64)] {
            let guest = SystemGuest()
            guest.long()
            guest.cpu.engine.pointee.blocks.heat = heat
            try guest.cpu.setCR4(guest.cpu.pointee.cr4 & ~CR4.fsgsBase | bit)
            guest.cpu.pointee.gpr.7 = value
            // mov eax,1; mov ecx,2; wrfsbase rdi; hlt
            guest.run([0xB8, 1, 0, 0, 0, 0xB9, 2, 0, 0, 0, 0xF3, 0x48, 0x0F, 0xAE, 0xD7, 0xF4])
            #expect(guest.vector == vector)
            #expect(guest.cpu.segment(Seg.fs).pointee.base == 0)
        }
    }

    // MARK: The TLB's second level

    @Test func theSecondLevelFillsTheFirst() throws {
        let guest = SystemGuest()
        guest.long()
        let cpu = guest.cpu
        let (page, other) = (0x30_0000 as UInt64, 0x30_1000 as UInt64)
        _ = try cpu.place(page, write: false, mode: 0)
        _ = try cpu.place(other, write: true, mode: 0)
        cpu.guardPage(other)
        // Another address space and back, both of which keep what is known.
        cpu.pointee.cr4 |= CR4.processContext
        try cpu.setCR3(1 << 63 | Place.pages | 1)
        #expect(apus_refill(cpu, other + 8, 0) == 0)
        try cpu.setCR3(1 << 63 | Place.pages)
        let entries = cpu.tlbSet(0, write: false)
        let index = Int(page >> 12) & (Int(APUS_TLB_ENTRIES) - 1)
        #expect(entries[index].tag != page)
        #expect(apus_refill(cpu, page + 8, 0) == 1)
        #expect(entries[index].tag == page)
        #expect(entries[index].host == UInt64(UInt(bitPattern: guest.ram)) + page)
        // Stores to code are looked at each time.
        #expect(apus_refill(cpu, other + 8, 0) == 1)
        #expect(apus_refill(cpu, other + 8, 1) == 0)
    }

    // MARK: The jump cache

    @Test(arguments: [0, 1] as [UInt32]) func twoAddressesOfASetAreKnownBesideEachOther(heat: UInt32) throws {
        let guest = SystemGuest()
        guest.long()
        guest.cpu.engine.pointee.blocks.heat = heat
        let first: UInt64 = 0x20_0000
        let place: UInt64 = try #require(
            (0..<0x10_0000 as Range<UInt64>).first { guest.cpu.jumpSet(0x21_0000 + $0) == guest.cpu.jumpSet(first) })
        let second = 0x21_0000 + place
        guest.put(bytes: [0x83, 0xC0, 1, 0xC3], first)
        guest.put(bytes: [5, 0, 0, 1, 0, 0xC3], second)
        func address(_ value: UInt64) -> [UInt8] { (0..<4).map { UInt8(truncatingIfNeeded: value >> ($0 * 8)) } }
        // xor eax,eax; mov esi,first; mov edi,second; mov ecx,1000; l: call rsi; call rdi; dec ecx; jnz l; hlt
        guest.run(
            [0x31, 0xC0, 0xBE] + address(first) + [0xBF] + address(second)
                + [0xB9, 0xE8, 3, 0, 0, 0xFF, 0xD6, 0xFF, 0xD7, 0xFF, 0xC9, 0x75, 0xF8, 0xF4])
        #expect(guest.cpu.pointee.gpr.0 == 1000 + 1000 << 16)
        for target in [first, second] {
            #expect(guest.cpu.knownJump(target)?.pointee.block?.pointee.physical == target)
        }
    }

    @Test(arguments: [0, 1] as [UInt32]) func anotherAddressSpacesBlockCountsOnlyForTheSameMemory(heat: UInt32) throws {
        let guest = SystemGuest()
        guest.long()
        guest.cpu.engine.pointee.blocks.heat = heat
        let table = Place.pages + 0x1_0000
        for (top, target) in [(Place.pages, 0x30_0000), (table, 0x30_1000)] as [(UInt64, UInt64)] {
            guest.mapPage(target, in: top)
        }
        guest.put(bytes: [0x83, 0xC0, 1, 0xC3], 0x30_0000)
        guest.put(bytes: [5, 0, 0, 1, 0, 0xC3], 0x30_1000)
        // xor eax,eax; mov esi,400000; mov ebx,pages; mov edi,table; mov ecx,100; l: call rsi; mov cr3,rdi; call rsi;
        // mov cr3,rbx; dec ecx; jnz l; hlt
        guest.run([
            0x31, 0xC0, 0xBE, 0, 0, 0x40, 0, 0xBB, 0, 0, 0x10, 0, 0xBF, 0, 0, 0x11, 0, 0xB9, 100, 0, 0, 0, 0xFF, 0xD6,
            0x0F,
            0x22, 0xDF, 0xFF, 0xD6, 0x0F, 0x22, 0xDB, 0xFF, 0xC9, 0x75, 0xF2, 0xF4,
        ])
        #expect(guest.vector == nil)
        #expect(guest.cpu.pointee.gpr.0 == 100 + 100 << 16)
    }
}
