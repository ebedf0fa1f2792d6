// What PV guests alone do with memory: exchange of frames, maps of own grants.
// Source: Xen public/memory.h, public/grant_table.h; xen/common/memory.c and grant_table.c for errors.
// Covered: orders, limits, chunks that fail; handles, entries, marks of several maps of one grant.

import Testing

@testable import Kernel

@Suite("PV memory") struct ParavirtualMemoryTests {
    /// XENMEM_exchange of `given` (order `first`) for frames of `second`, that are to be known as `names`.
    private func exchange(
        _ pv: PVCaller, _ given: [UInt64], _ first: UInt64, for names: [UInt64], _ second: UInt64, bits: UInt64 = 0,
        done: UInt64 = 0
    ) -> Int64 {
        pv.guest.put(given.map { ($0, 8) }, at: 0x1200)
        pv.guest.put(names.map { ($0, 8) }, at: 0x1300)
        let list = { (place: UInt64, count: Int, order: UInt64, flags: UInt64) -> [(UInt64, Int)] in
            [(place, 8), (UInt64(count), 8), (order, 4), (flags, 4), (0x7FF0, 8)]
        }
        pv.guest.put(
            list(0x1200, given.count, first, 0) + list(0x1300, names.count, second, bits) + [(done, 8)], at: 0x1000)
        return pv.call(12, 11, 0x1000)
    }

    @Test("Frames are exchanged for others that lie side by side, or stay as they were")
    func exchanges() {
        let pv = PVCaller()
        pv.pinTables()
        _ = pv.guest.machine.take()
        #expect(exchange(pv, [31, 30], 0, for: [40], 1) == 0)
        #expect(pv.guest.u64(0x1300) == 30 && pv.guest.u64(0x1040) == 2)
        let said = pv.guest.machine.take()
        #expect(said.filter { $0.hasPrefix("discard") } == ["discard 31", "discard 30"])
        #expect(Array(said.suffix(2)) == ["frame 30 is 40", "frame 31 is 41"])
        // The domain has all of its memory: nothing else is free.
        #expect(exchange(pv, [30, 33], 0, for: [40], 1) == -12)
        #expect(pv.guest.u64(0x1040) == 0 && pv.guest.machine.take() == [])
        #expect(pv.guest.xen.reservation.missing == 0)
        #expect(exchange(pv, [30, 33], 0, for: [40, 41], 0, bits: 12) == -12, "no frame lies below 4096 bytes")
        #expect(exchange(pv, [23, 33], 0, for: [40, 41], 0) == -22, "a page table")
        #expect(exchange(pv, [30, 64], 0, for: [40, 41], 0) == -22, "there is no frame 64")
        #expect(exchange(pv, [30, 33], 0, for: [40, 41], 1) == -22, "two for four")
        #expect(exchange(pv, [30], 0, for: [40], 10) == -1)
        #expect(pv.guest.xen.reservation.missing == 0)
    }

    @Test("A large one becomes small ones, and what was done before stays done")
    func chunks() {
        let pv = PVCaller()
        #expect(exchange(pv, [32], 2, for: [50, 51, 52, 53], 0) == 0)
        #expect((0..<4).map { pv.guest.u64(0x1300 + $0 * 8) } == [32, 33, 34, 35])
        // The second pair has no neighbours; the first was exchanged.
        #expect(exchange(pv, [32, 33, 40, 43], 0, for: [50, 52], 1) == -12)
        #expect(pv.guest.u64(0x1040) == 2 && pv.guest.u64(0x1300) == 32 && pv.guest.u64(0x1308) == 52)
        #expect(exchange(pv, [32, 33, 40, 41], 0, for: [50, 52], 1, done: 2) == 0)
        #expect(pv.guest.u64(0x1308) == 40 && pv.guest.u64(0x1040) == 4)
    }

    // MARK: grants

    private func grant(_ pv: PVCaller, _ reference: Int, _ frame: UInt32, flags: UInt16 = 1) {
        pv.guest.page.store(frame, at: 4096 + reference * 8 + 4)
        pv.guest.page.store(UInt16(7), at: 4096 + reference * 8 + 2)
        pv.guest.page.store(flags, at: 4096 + reference * 8)
    }
    private func flags(_ pv: PVCaller, _ reference: Int) -> UInt16 { pv.guest.page.load(4096 + reference * 8) }
    private func map(
        _ pv: PVCaller, _ address: UInt64, _ flags: UInt64, _ reference: UInt64, domid: UInt64 = 7
    ) -> Int16 {
        pv.guest.put([(address, 8), (flags, 4), (reference, 4), (domid, 2), (1, 2), (0, 4), (0, 8)], at: 0x1000)
        #expect(pv.call(20, 0, 0x1000, 1) == 0)
        return Int16(bitPattern: pv.guest.u16(0x1012))
    }
    private func unmap(_ pv: PVCaller, _ address: UInt64, _ handle: UInt64) -> Int16 {
        pv.guest.put([(address, 8), (0, 8), (handle, 4), (1, 4)], at: 0x1000)
        #expect(pv.call(20, 1, 0x1000, 1) == 0)
        return Int16(bitPattern: pv.guest.u16(0x1014))
    }

    @Test("Own grants are mapped by address or entry, marked while they are, and refused as Xen does")
    func grants() {
        let pv = PVCaller()
        pv.pinTables()
        pv.cpu.kernelTables = 20 << 12
        grant(pv, 20, 30)
        let data: UInt64 = 1 << 63
        // By address: linear page 5, whose entry lies in frame 23.
        #expect(map(pv, 5 << 12, 2, 20) == 0)
        let handle = UInt64(pv.guest.u32(0x1014))
        #expect(pv.guest.u64(0x1018) == 30 << 12)
        #expect(pv.guest.u64(23 << 12 + 40) == data | 30 << 12 | 0x63)
        #expect(pv.cpu.take() == ["flush \(5 << 12)"] && flags(pv, 20) == 1 | 8 | 16)
        // Once more, by its entry, for programs to read, with a bit of the guest's.
        #expect(map(pv, 23 << 12 + 48, 2 | 4 | 8 | 16 | 1 << 17, 20, domid: 0x7FF0) == 0)
        let second = UInt64(pv.guest.u32(0x1014))
        #expect(second != handle && pv.guest.u64(23 << 12 + 48) == data | 30 << 12 | 0x65 | 1 << 10)
        #expect(unmap(pv, 6 << 12, handle) == -5, "it is mapped elsewhere")
        #expect(unmap(pv, 5 << 12, handle) == 0)
        #expect(pv.guest.u64(23 << 12 + 40) == 0 && flags(pv, 20) == 1 | 8, "it is read still")
        #expect(unmap(pv, 5 << 12, handle) == -4)
        pv.entry(23, 6, 31 << 12 | 1)
        #expect(unmap(pv, 23 << 12 + 48, second) == -1, "the entry shows something else by now")
        pv.entry(23, 6, 30 << 12 | 1)
        #expect(unmap(pv, 23 << 12 + 48, second) == 0 && flags(pv, 20) == 1)

        #expect(map(pv, 5 << 12, 2, 20, domid: 0) == -2, "Domain-0 grants nothing")
        #expect(map(pv, 5 << 12, 0, 20) == -3, "nowhere")
        #expect(map(pv, 5 << 12, 2, 21) == -3, "nothing is granted")
        #expect(map(pv, 1 << 40, 2, 20) == -1, "there is no table")
        #expect(map(pv, 30 << 12, 2 | 16, 20) == -1, "no page table")
        grant(pv, 20, 30, flags: 1 | 4)
        #expect(map(pv, 5 << 12, 2, 20) == -1, "for reading only")
        grant(pv, 20, 9999)
        #expect(map(pv, 5 << 12, 2, 20) == -9, "no memory")
        #expect(flags(pv, 20) == 1, "nothing of it stays")
    }
}
