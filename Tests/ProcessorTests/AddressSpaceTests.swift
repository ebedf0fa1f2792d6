// Tests of address spaces: PCIDs, INVPCID, global pages, INVLPG where large pages are.
// Source: Intel SDM vol. 3 §4.10.1 (PCIDs), §4.10.4 (invalidation), vol. 2 (INVPCID).
// A page table that was changed and not invalidated may count or not; here the old translation is known to be kept.

import CProcessor
import Testing

@testable import Processor

@Suite struct AddressSpaceTests {
    private static let processContext: UInt64 = 1 << 17

    /// Two address spaces: linear 400000 is physical 301000 in that of `Place.pages`, 300000 in that of 110000.
    private func guest(heat: UInt32, global: Bool = false) -> SystemGuest {
        let guest = SystemGuest()
        guest.long()
        guest.cpu.engine.pointee.blocks.heat = heat
        let second: UInt64 = 0x11_0000
        let flags: UInt64 = global ? 0x107 : 7
        for (top, target) in [(Place.pages, 0x30_1000), (second, 0x30_0000)] as [(UInt64, UInt64)] {
            guest.mapPage(target, in: top, flags: flags)
        }
        guest.put(UInt32(0x11), 0x30_0000)
        guest.put(UInt32(0x22), 0x30_1000)
        return guest
    }

    // mov eax,[400000]; CR3 = 110001; mov ecx,[400000]; the first space's page is 300000 now; CR3 = 100000, kept;
    // mov esi,[400000]; xor ebp,ebp; invpcid rbp,[C000]; mov edi,[400000]; hlt
    private static let program: [UInt8] = [
        0x8B, 4, 0x25, 0, 0, 0x40, 0, 0xBB, 1, 0, 0x11, 0, 0x0F, 0x22, 0xDB, 0x8B, 0x0C, 0x25, 0, 0, 0x40, 0, 0xC7, 4,
        0x25, 0, 0x30, 0x10, 0, 7, 0, 0x30, 0, 0x48, 0xBA, 0, 0, 0x10, 0, 0, 0, 0, 0x80, 0x0F, 0x22, 0xDA, 0x8B, 0x34,
        0x25, 0, 0, 0x40, 0, 0x31, 0xED, 0x66, 0x0F, 0x38, 0x82, 0x2C, 0x25, 0, 0xC0, 0, 0, 0x8B, 0x3C, 0x25, 0, 0,
        0x40, 0, 0xF4,
    ]

    @Test(arguments: [0, 1] as [UInt32]) func translationsStayWithTheirPCID(heat: UInt32) throws {
        let guest = guest(heat: heat)
        try guest.cpu.setCR4(guest.cpu.pointee.cr4 | Self.processContext)
        // INVPCID's descriptor: PCID 0, linear 400000.
        guest.put(UInt64(0), 0xC000)
        guest.put(UInt64(0x40_0000), 0xC008)
        #expect(guest.run(Self.program) == .halt)
        #expect(guest.vector == nil)
        let registers = guest.cpu.pointee.gpr
        #expect(registers.0 == 0x22)
        #expect(registers.1 == 0x11)
        #expect(registers.6 == 0x22)
        #expect(registers.7 == 0x11)
        #expect(guest.cpu.pointee.cr3 == 0x10_0000)
    }

    @Test func withoutPCIDsBit63OfCR3IsReserved() {
        let guest = guest(heat: 0)
        #expect(throws: Fault.self) { try guest.cpu.setCR3(1 << 63 | Place.pages) }
    }

    @Test func PCIDsNeedLongModeAndAClearNumber() {
        let guest = guest(heat: 0)
        guest.cpu.pointee.cr3 |= 8
        #expect(throws: Fault.self) { try guest.cpu.setCR4(guest.cpu.pointee.cr4 | Self.processContext) }
        guest.cpu.pointee.cr3 &= ~8
        #expect(throws: Never.self) { try guest.cpu.setCR4(guest.cpu.pointee.cr4 | Self.processContext) }
        #expect(throws: Fault.self) { try guest.cpu.setCR0(guest.cpu.pointee.cr0 & ~(1 << 31)) }
    }

    @Test func globalPagesOutliveCR3() throws {
        let guest = guest(heat: 0, global: true)
        try guest.cpu.setCR4(guest.cpu.pointee.cr4 | CR4.pageGlobal)
        #expect(try guest.cpu.loadSystem(0x40_0000, as: UInt32.self) == 0x22)
        try guest.cpu.setCR3(0x11_0000)
        #expect(try guest.cpu.loadSystem(0x40_0000, as: UInt32.self) == 0x22)
        guest.cpu.flushPage(0x40_0000)
        #expect(try guest.cpu.loadSystem(0x40_0000, as: UInt32.self) == 0x11)
    }

    @Test func INVLPGForgetsAWholeLargePage() throws {
        let guest = guest(heat: 0)
        // Linear 200000 to 3FFFFF is a page of 2 MiB; two parts of it are known.
        #expect(try guest.cpu.loadSystem(0x30_0000, as: UInt32.self) == 0x11)
        #expect(try guest.cpu.loadSystem(0x30_1000, as: UInt32.self) == 0x22)
        guest.put(UInt64(0x87), Place.pages + 0x2008)
        guest.cpu.flushPage(0x20_0000)
        // That leads to the table of page directories now, whose entry has been used.
        #expect(try guest.cpu.loadSystem(0x30_1000, as: UInt32.self) == 0x10_2027)
    }

    @Test func manyPagesOfCodeAreForgottenTogether() {
        var spaces = AddressSpaces()
        defer { spaces.deallocate() }
        var refused = 0
        for page in 0..<40_000 as Range<UInt64> where !spaces.noteCode(page << 12, isUser: false) { refused += 1 }
        #expect(refused >= 1)
        #expect(spaces.hasSupervisorCode(39_999 << 12))
        #expect(!spaces.hasSupervisorCode(1 << 63 | 39_999 << 12))
    }

    @Test func pagesOfCodeAreKnownOfEachAddressSpace() {
        var spaces = AddressSpaces()
        defer { spaces.deallocate() }
        let (first, page) = (spaces.current, 0x40_0000 as UInt64)
        _ = spaces.noteCode(page, isUser: true)
        #expect(spaces.hasUserCode(page))
        spaces.enter(1)
        #expect(!spaces.hasUserCode(page))
        spaces.enter(0)
        #expect(spaces.current == first && spaces.hasUserCode(page))
        // PCID 8 takes its place: what PCID 0 had is forgotten as a whole.
        spaces.enter(8)
        #expect(!spaces.hasUserCode(page))
        spaces.enter(0)
        #expect(spaces.current != first && !spaces.hasUserCode(page))
    }

    @Test func INVPCIDChecksItsDescriptor() {
        for (kind, low, linear) in [(4, 0, 0), (0, 0x1000, 0), (0, 0, 1 << 62), (1, 1, 0)] as [(UInt64, UInt64, UInt64)]
        {
            let guest = guest(heat: 0)
            guest.put(low, 0xC000)
            guest.put(linear, 0xC008)
            guest.cpu.pointee.gpr.5 = kind
            // invpcid rbp,[C000]; hlt
            guest.run([0x66, 0x0F, 0x38, 0x82, 0x2C, 0x25, 0, 0xC0, 0, 0, 0xF4])
            #expect(guest.vector == 13)
        }
    }
}
