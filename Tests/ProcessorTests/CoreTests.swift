// Tests of the core: paging rights, accessed and dirty bits, stores that cross pages, code that is written.
// Source: Intel SDM vol. 3 §4.6-4.8, §8.1.3, §11.6; the sentence of each test is the rule.
// Programs are bytes with their mnemonics beside them.

import CProcessor
import Testing

@testable import Processor

/// Long mode with a table of 4 KiB pages at 2 MiB; `entries` go to its first pages.
private func paged(user: Bool = false, _ entries: [UInt64]) -> SystemGuest {
    let guest = SystemGuest()
    guest.long(user: user)
    guest.put(UInt64(Place.pages + 0x3007), Place.pages + 0x2008)
    for (index, entry) in entries.enumerated() { guest.put(entry, Place.pages + 0x3000 + UInt64(index) * 8) }
    guest.cpu.flushTLB(keepGlobal: false)
    return guest
}

private func entry(_ guest: SystemGuest, _ index: UInt64) -> UInt64 {
    guest.get(Place.pages + 0x3000 + index * 8, as: UInt64.self)
}

@Suite struct CorePagingTests {
    @Test func loadsSetAccessedAndStoresSetDirty() {
        let guest = paged([0x30_0007, 0x30_1007])
        // mov al, [0x200000]; mov [0x201000], al; hlt
        guest.run([0x8A, 0x04, 0x25, 0, 0, 0x20, 0, 0x88, 0x04, 0x25, 0, 0x10, 0x20, 0, 0xF4])
        #expect(entry(guest, 0) == 0x30_0027)
        #expect(entry(guest, 1) == 0x30_1067)
    }

    @Test func aLoadBeforeAStoreDoesNotHideTheDirtyBit() {
        let guest = paged([0x30_0007])
        // mov al, [0x200000]; mov [0x200000], al; hlt
        guest.run([0x8A, 0x04, 0x25, 0, 0, 0x20, 0, 0x88, 0x04, 0x25, 0, 0, 0x20, 0, 0xF4])
        #expect(entry(guest, 0) == 0x30_0067)
    }

    @Test func supervisorStoresObeyWriteProtectOnlyWithWP() {
        for protects in [false, true] {
            let guest = paged([0x30_0005])
            if protects { guest.cpu.pointee.cr0 |= 1 << 16 }
            // mov [0x200000], al; hlt
            guest.run([0x88, 0x04, 0x25, 0, 0, 0x20, 0, 0xF4])
            #expect(guest.vector == (protects ? 14 : nil))
            if protects { #expect(guest.stack64(0) == 3) }
        }
    }

    @Test func usersMayNotTouchSupervisorPages() {
        let guest = paged(user: true, [0x30_0003])
        guest.run([0x8A, 0x04, 0x25, 0, 0, 0x20, 0, 0xF4])
        #expect(guest.vector == 14)
        #expect(guest.stack64(0) == 5)
    }

    @Test func noExecutePagesFaultOnFetchOnly() {
        let guest = paged([0x8000_0000_0030_0007])
        // mov al, [0x200000]; mov eax, 0x200000; jmp rax
        guest.run([0x8A, 0x04, 0x25, 0, 0, 0x20, 0, 0xB8, 0, 0, 0x20, 0, 0xFF, 0xE0])
        #expect(guest.vector == 14)
        #expect(guest.stack64(0) == 0x11)
        #expect(guest.stack64(1) == 0x20_0000)
    }

    @Test func reservedBitsAreTold() {
        let guest = paged([0x0008_0000_0030_0007])
        guest.run([0x8A, 0x04, 0x25, 0, 0, 0x20, 0, 0xF4])
        #expect(guest.vector == 14)
        #expect(guest.stack64(0) == 9)
    }

    @Test func accessesAreSplitOverPages() {
        let guest = paged([0x30_0007, 0x31_0007])
        // mov rax, 0x8877665544332211; mov [0x200FFD], rax; mov rbx, [0x200FFD]; hlt
        guest.run([
            0x48, 0xB8, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x48, 0x89, 0x04, 0x25, 0xFD, 0x0F, 0x20, 0,
            0x48, 0x8B, 0x1C, 0x25, 0xFD, 0x0F, 0x20, 0, 0xF4,
        ])
        #expect(guest.cpu.pointee.gpr.3 == 0x8877_6655_4433_2211)
        #expect(guest.get(0x30_0FFD, as: UInt8.self) == 0x11)
        #expect(guest.get(0x31_0000, as: UInt8.self) == 0x44)
    }

    @Test func aSplitStoreThatFaultsStoresNothing() {
        let guest = paged([0x30_0007, 0])
        // mov eax, -1; mov [0x200FFE], eax; hlt
        guest.run([0xB8, 0xFF, 0xFF, 0xFF, 0xFF, 0x89, 0x04, 0x25, 0xFE, 0x0F, 0x20, 0, 0xF4])
        #expect(guest.vector == 14)
        #expect(guest.cpu.pointee.cr2 == 0x20_1000)
        #expect(guest.get(0x30_0FFE, as: UInt16.self) == 0)
    }

    @Test func aSplitReadModifyWriteFaultsAsAStore() {
        let guest = paged([0x30_0007, 0x31_0005])
        guest.cpu.pointee.cr0 |= 1 << 16
        // inc dword [0x200FFE]; hlt
        guest.run([0xFF, 0x04, 0x25, 0xFE, 0x0F, 0x20, 0, 0xF4])
        #expect(guest.vector == 14)
        #expect(guest.stack64(0) == 3)
        #expect(guest.get(0x30_0FFE, as: UInt16.self) == 0)
    }

    @Test func INVLPGForgetsATranslation() {
        let guest = paged([0x30_0007])
        guest.put(UInt8(0x11), 0x30_0000)
        guest.put(UInt8(0x22), 0x31_0000)
        // mov al,[0x200000]; mov dword [entry],0x310007; invlpg [0x200000]; mov bl,[0x200000]; hlt
        guest.run([
            0x8A, 0x04, 0x25, 0, 0, 0x20, 0, 0xC7, 0x04, 0x25, 0, 0x30, 0x10, 0, 7, 0, 0x31, 0, 0x0F, 0x01, 0x3C, 0x25,
            0, 0, 0x20, 0, 0x8A, 0x1C, 0x25, 0, 0, 0x20, 0, 0xF4,
        ])
        #expect(guest.cpu.pointee.gpr.0 & 0xFF == 0x11)
        #expect(guest.cpu.pointee.gpr.3 & 0xFF == 0x22)
    }

    @Test func anInstructionMayCrossPages() {
        let guest = paged([0x30_0007, 0x31_0007])
        // At 0x200FFD: mov eax, 0x12345678; hlt
        guest.put(bytes: [0xB8, 0x78, 0x56], 0x30_0FFD)
        guest.put(bytes: [0x34, 0x12, 0xF4], 0x31_0000)
        guest.run([0xB8, 0xFD, 0x0F, 0x20, 0, 0xFF, 0xE0])
        #expect(guest.cpu.pointee.gpr.0 == 0x1234_5678)
    }

    @Test func anInstructionThatEndsInAnAbsentPageFaultsThere() {
        let guest = paged([0x30_0007, 0])
        guest.put(bytes: [0xB8, 0x78, 0x56], 0x30_0FFD)
        guest.run([0xB8, 0xFD, 0x0F, 0x20, 0, 0xFF, 0xE0])
        #expect(guest.vector == 14)
        #expect(guest.cpu.pointee.cr2 == 0x20_1000)
        #expect(guest.stack64(1) == 0x20_0FFD)
    }
}

@Suite struct CoreCodeTests {
    @Test func aStoreIntoTheRunningBlockTakesEffectAtOnce() {
        let guest = SystemGuest()
        guest.protected()
        // mov byte [0x8008], 2; mov al, 1 (becomes mov al, 2); hlt
        guest.run([0xC6, 0x05, 0x08, 0x80, 0, 0, 2, 0xB0, 1, 0xF4])
        #expect(guest.cpu.pointee.gpr.0 & 0xFF == 2)
    }

    @Test func writtenCodeIsDecodedAgain() {
        let guest = SystemGuest()
        guest.protected()
        guest.put(bytes: [0xB0, 1, 0xC3], Place.other)
        // call other; mov bl, al; mov byte [other + 1], 7; call other; hlt
        guest.run([
            0xE8, 0xFB, 0x1F, 0, 0, 0x88, 0xC3, 0xC6, 0x05, 0x01, 0xA0, 0, 0, 7, 0xE8, 0xED, 0x1F, 0, 0, 0xF4,
        ])
        #expect(guest.cpu.pointee.gpr.3 & 0xFF == 1)
        #expect(guest.cpu.pointee.gpr.0 & 0xFF == 7)
    }

    @Test func codeWrittenByOthersIsForgottenWhenTold() {
        let guest = SystemGuest()
        guest.protected()
        guest.run([0xB0, 1, 0xF4])
        guest.put(bytes: [0xB0, 9, 0xF4], Place.code)
        guest.engine.codeChanged(at: Place.code, bytes: 3)
        guest.cpu.pointee.rip = Place.code
        guest.cpu.pointee.halted = false
        #expect(guest.engine.run() == .halt)
        #expect(guest.cpu.pointee.gpr.0 & 0xFF == 9)
    }

    @Test func repeatedMovesOverlapAsSingleOnesDo() {
        let guest = SystemGuest()
        guest.protected()
        guest.put(bytes: [1, 2, 3, 0, 0, 0, 0, 0, 0], 0x9000)
        // mov esi, 0x9000; mov edi, 0x9003; mov ecx, 6; rep movsb; hlt
        guest.run([
            0xBE, 0, 0x90, 0, 0, 0xBF, 3, 0x90, 0, 0, 0xB9, 6, 0, 0, 0, 0xF3, 0xA4, 0xF4,
        ])
        #expect((0..<9).map { guest.get(0x9000 + UInt64($0), as: UInt8.self) } == [1, 2, 3, 1, 2, 3, 1, 2, 3])
        #expect(guest.cpu.pointee.gpr.1 == 0)
        #expect(guest.cpu.pointee.gpr.7 == 0x9009)
    }

    @Test func repeatedStoresCrossPagesAndStopAtFaults() {
        let guest = paged([0x30_0007, 0])
        // mov edi, 0x200FF8; mov ecx, 5; mov eax, -1; rep stosd; hlt
        guest.run([0xBF, 0xF8, 0x0F, 0x20, 0, 0xB9, 5, 0, 0, 0, 0xB8, 0xFF, 0xFF, 0xFF, 0xFF, 0xF3, 0xAB, 0xF4])
        #expect(guest.vector == 14)
        #expect(guest.cpu.pointee.gpr.1 == 3)
        #expect(guest.cpu.pointee.gpr.7 == 0x20_1000)
        #expect(guest.get(0x30_0FFC, as: UInt32.self) == .max)
    }

    @Test func LOCKNeedsAMemoryDestination() {
        let guest = SystemGuest()
        guest.protected()
        // lock add eax, ebx
        guest.run([0xF0, 0x01, 0xD8])
        #expect(guest.vector == 6)
    }

    @Test func instructionsOfSixteenBytesAreGeneralProtectionFaults() {
        let guest = SystemGuest()
        guest.protected()
        guest.run([UInt8](repeating: 0x66, count: 15) + [0x90])
        #expect(guest.vector == 13)
    }

    @Test func attentionEndsALoop() {
        let guest = SystemGuest()
        guest.protected()
        guest.attention.pointee = 1
        // jmp $
        #expect(guest.run([0xEB, 0xFE]) == .attention)
    }

    @Test func interruptWindowsOpenBehindTheShadowOfSTI() {
        let guest = SystemGuest()
        guest.protected()
        guest.engine.wantsInterruptWindow = true
        // sti; inc eax; hlt
        #expect(guest.run([0xFB, 0x40, 0xF4]) == .interruptWindow)
        #expect(guest.cpu.pointee.gpr.0 == 1)
        #expect(guest.cpu.pointee.rip == Place.code + 2)
    }

    @Test func singleStepsTrapBehindEachInstruction() {
        let guest = SystemGuest()
        guest.protected()
        // pushf; or dword [esp], 0x100; popf; nop
        guest.run([0x9C, 0x81, 0x0C, 0x24, 0, 1, 0, 0, 0x9D, 0x90, 0x90])
        #expect(guest.vector == 1)
        #expect(guest.stack32(0) == UInt32(Place.code) + 10)
    }
}
