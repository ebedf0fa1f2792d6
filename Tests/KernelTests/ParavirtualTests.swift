import CXen
import Processor
import Testing

@testable import Kernel

/// What hypercalls did to a vCPU.
final class FakeParavirtual: ParavirtualCPU {
    var actions: [String] = []
    func take() -> [String] {
        defer { actions = [] }
        return actions
    }
    func start(_ start: ParavirtualStart) { actions.append("start at \(start.rip)") }
    func useInfo(_ info: UnsafeMutableRawPointer) {}
    func setTrap(_ vector: UInt8, _ trap: ParavirtualTrap) {
        actions.append("trap \(vector) to \(trap.address) level \(trap.level) masks \(trap.masksEvents)")
    }
    func clearTraps() { actions.append("no traps") }
    func setCallback(_ callback: ParavirtualCallback, _ trap: ParavirtualTrap) {
        actions.append("\(callback) to \(trap.address) masks \(trap.masksEvents)")
    }
    func setKernelStack(_ pointer: UInt64) { actions.append("stack \(pointer)") }
    func setGDT(frames: [UInt64], entries: Int) { actions.append("gdt \(frames) \(entries)") }
    func setLDT(base: UInt64, entries: Int) { actions.append("ldt \(base) \(entries)") }
    func setKernelTables(_ root: UInt64) {
        kernelTables = root
        actions.append("kernel tables \(root >> 12)")
    }
    func setUserTables(_ root: UInt64) { actions.append("user tables \(root >> 12)") }
    func flushAll() { actions.append("flush all") }
    func flushPage(_ linear: UInt64) { actions.append("flush \(linear)") }
    func setBase(_ base: ParavirtualBase, _ value: UInt64) -> Bool {
        actions.append("\(base) \(value)")
        return value >> 48 == 0
    }
    func setUserGS(_ selector: UInt16) { actions.append("gs \(selector)") }
    func setTaskSwitched(_ isSet: Bool) { actions.append("ts \(isSet)") }
    func setDebugRegister(_ number: Int, _ value: UInt64) -> Bool { number < 8 }
    func debugRegister(_ number: Int) -> UInt64? { number < 8 ? UInt64(number) : nil }
    var portLevel: UInt8 = 0
    var isGuestKernel = true
    var kernelTables: UInt64 = 0
}

/// A PV guest that makes hypercalls.
final class PVCaller {
    let guest: Caller
    let cpu = FakeParavirtual()
    init(vcpus: Int = 2) { guest = Caller(vcpus: vcpus, flavour: .pv) }

    func call(_ number: UInt64, _ arguments: UInt64...) -> Int64 {
        var call = guest.call
        call.cpu = cpu
        return call.result(number, arguments + [UInt64](repeating: 0, count: 5 - arguments.count))
    }
    /// mmu_update of one entry.
    func update(_ place: UInt64, _ value: UInt64) -> Int64 {
        guest.put([(place, 8), (value, 8)], at: 0x1000)
        return call(1, 0x1000, 1, 0, 0x7FF0)
    }
    /// mmuext_op of one command.
    func extended(_ command: UInt64, _ first: UInt64 = 0, _ second: UInt64 = 0) -> Int64 {
        guest.put([(command, 8), (first, 8), (second, 8)], at: 0x1000)
        return call(26, 0x1000, 1, 0x1100, 0x7FF0)
    }
    func entry(_ frame: UInt64, _ slot: UInt64, _ value: UInt64) {
        guest.put([(value, 8)], at: frame << 12 + slot * 8)
    }
    /// Tables in frames 20 to 23 that map linear address 0 to frame 24; pinned.
    func pinTables() {
        for frame in UInt64(20)..<24 { entry(frame, 0, (frame + 1) << 12 | 7) }
        #expect(extended(3, 20) == 0)
        #expect(extended(5, 20) == 0)
        _ = cpu.take()
    }
}

@Suite("PV page tables") struct PVTableTests {
    @Test("Pinning notes tables of all levels, unpinning forgets them")
    func pins() throws {
        let pv = PVCaller()
        pv.pinTables()
        let known = try #require(pv.guest.machine.paravirtual)
        #expect((20...24).map { known[$0] } == [4, 3, 2, 1, 0])
        #expect(pv.extended(4, 20) == 0)
        #expect((20...24).map { known[$0] } == [0, 0, 0, 0, 0])
        #expect(pv.extended(3, 64) == -22, "there is no frame 64")
        #expect(pv.guest.u32(0x1100) == 0, "none was done")
    }

    @Test("An entry leads to the domain's own memory or is refused")
    func updates() throws {
        let pv = PVCaller()
        pv.pinTables()
        #expect(pv.update(23 << 12 | 8, 30 << 12 | 3) == 0)
        #expect(pv.guest.u64(23 << 12 | 8) == 30 << 12 | 3)
        #expect(pv.update(23 << 12 | 8, 64 << 12 | 3) == 0, "shared info, behind RAM")
        #expect(pv.update(23 << 12 | 8, 128 << 12 | 3) == 0, "the last grant frame")
        #expect(pv.update(23 << 12 | 8, 129 << 12 | 3) == -22)
        #expect(pv.update(23 << 12 | 8, 1 << 51 | 3) == -22)
        #expect(pv.update(23 << 12 | 8, 1 << 51 | 2) == 0, "it is not present")
        #expect(pv.update(64 << 12, 0) == -22, "there is no such table")
        #expect(pv.update(22 << 12 | 16, 30 << 12 | 0x83) == -22, "a large page")
        #expect(pv.update(20 << 12 | 256 * 8, 21 << 12 | 7) == -22, "the hypervisor's slot")
        let known = try #require(pv.guest.machine.paravirtual)
        #expect(pv.update(22 << 12 | 16, 31 << 12 | 7) == 0)
        #expect(known[31] == 1, "a new table")
    }

    @Test("PRESERVE_AD keeps accessed and dirty, other updates do not")
    func marks() {
        let pv = PVCaller()
        pv.pinTables()
        pv.entry(23, 1, 30 << 12 | 0x63)
        #expect(pv.update(23 << 12 | 8 | 2, 30 << 12 | 1) == 0)
        #expect(pv.guest.u64(23 << 12 | 8) == 30 << 12 | 0x61)
        #expect(pv.update(23 << 12 | 8, 30 << 12 | 1) == 0)
        #expect(pv.guest.u64(23 << 12 | 8) == 30 << 12 | 1)
    }

    @Test("A list stops at its first wrong entry, and says how far it came")
    func list() {
        let pv = PVCaller()
        pv.pinTables()
        pv.guest.put(
            [(23 << 12, 8), (3, 8), (64 << 12, 8), (3, 8), (23 << 12 | 8, 8), (3, 8)], at: 0x1000)
        #expect(pv.call(1, 0x1000, 3, 0x1100, 0x7FF0) == -22)
        #expect(pv.guest.u32(0x1100) == 1)
        #expect(pv.call(1, 0x1000, 1, 0x1100, 3) == -3, "another domain's")
    }

    @Test("update_va_mapping finds the entry, and flushes here or everywhere")
    func mapping() {
        let pv = PVCaller()
        pv.pinTables()
        #expect(pv.call(14, 0x3000, 30 << 12 | 3, 2) == 0)
        #expect(pv.guest.u64(23 << 12 | 24) == 30 << 12 | 3)
        #expect(pv.cpu.take() == ["flush \(0x3000)"])
        #expect(pv.call(14, 0x3000, 0, 1 | 4) == 0)
        #expect(pv.cpu.take() == ["flush all"])
        #expect(pv.guest.machine.take() == ["flush all of \(UInt64.max - 1)"])
        #expect(pv.call(14, 1 << 39, 0, 0) == -22, "no table leads there")
    }

    @Test("Flushes of some vCPUs tell those, and this one only if it is among them")
    func flushes() {
        let pv = PVCaller()
        pv.guest.put([(2, 8)], at: 0x1200)
        #expect(pv.extended(9, 0x5000, 0x1200) == 0)
        #expect(pv.cpu.take() == [] && pv.guest.machine.take() == ["flush \(0x5000) of 2"])
        pv.guest.put([(1, 8)], at: 0x1200)
        #expect(pv.extended(8, 0, 0x1200) == 0)
        #expect(pv.cpu.take() == ["flush all"] && pv.guest.machine.take() == [])
    }
}

@Suite("PV processor calls") struct PVProcessorTests {
    @Test("Traps, callbacks, stack, segments and descriptor tables go to the vCPU")
    func state() {
        let pv = PVCaller()
        pv.guest.put(
            [(14, 1), (4, 1), (0, 6), (0x1234, 8), (3, 1), (3, 1), (0, 6), (0x99, 8), (0, 8), (0, 8)], at: 0x1000)
        #expect(pv.call(0, 0x1000) == 0)
        #expect(
            pv.cpu.take() == [
                "trap 14 to \(0x1234) level 0 masks true", "trap 3 to \(0x99) level 3 masks false",
            ])
        #expect(pv.call(3, 0xE02B, 0x7000) == 0 && pv.cpu.take() == ["stack \(0x7000)"])
        #expect(pv.call(25, 0, 0x10) == 0 && pv.cpu.take() == ["fs 16"])
        #expect(pv.call(25, 2, 1 << 50) == -22 && pv.cpu.take() == ["gsKernel \(1 << 50)"])
        #expect(pv.call(25, 4, 0) == -22)
        pv.guest.put([(5, 8), (6, 8)], at: 0x1000)
        #expect(pv.call(2, 0x1000, 600) == 0 && pv.cpu.take() == ["gdt [5, 6] 600"])
        #expect(pv.call(2, 0x1000, 7169) == -22, "Xen's own entries begin there")
        #expect(pv.extended(13, 0x8000, 3) == 0 && pv.cpu.take() == ["ldt \(0x8000) 3"])
        pv.guest.put([(0, 2), (1, 2), (0, 4), (0x4444, 8)], at: 0x1000)
        #expect(pv.call(30, 0, 0x1000) == 0 && pv.cpu.take() == ["event to \(0x4444) masks true"])
        #expect(pv.call(5, 1) == 0 && pv.cpu.take() == ["ts true"])
        #expect(pv.call(9, 6) == 6 && pv.call(9, 9) == -22)
        #expect(pv.call(21, 0, 2) == 0 && pv.call(21, 0, 9) == -22)
    }

    @Test("A descriptor is written where it belongs, but not into a page table")
    func descriptor() {
        let pv = PVCaller()
        pv.pinTables()
        #expect(pv.call(10, 40 << 12 | 16, 0x1122) == 0)
        #expect(pv.guest.u64(40 << 12 | 16) == 0x1122)
        #expect(pv.call(10, 23 << 12, 0) == -22)
        #expect(pv.call(10, 64 << 12, 0) == -22)
    }

    @Test("The context of a further vCPU lies where the header has it")
    func context() throws {
        typealias Context = vcpu_guest_context_t
        #expect(MemoryLayout<Context>.size == GuestContext.bytes)
        #expect(MemoryLayout<Context>.offset(of: \.flags) == GuestContext.flags)
        #expect(MemoryLayout<Context>.offset(of: \.user_regs) == GuestContext.registers)
        #expect(MemoryLayout<Context>.offset(of: \.trap_ctxt) == GuestContext.traps)
        #expect(MemoryLayout<Context>.offset(of: \.ldt_base) == GuestContext.ldt)
        #expect(MemoryLayout<Context>.offset(of: \.gdt_frames) == GuestContext.gdtFrames)
        #expect(MemoryLayout<Context>.offset(of: \.gdt_ents) == GuestContext.gdtEntries)
        #expect(MemoryLayout<Context>.offset(of: \.kernel_sp) == GuestContext.kernelStack)
        #expect(MemoryLayout<Context>.offset(of: \.ctrlreg) == GuestContext.control)
        #expect(MemoryLayout<Context>.offset(of: \.event_callback_eip) == GuestContext.callbacks)
        #expect(MemoryLayout<Context>.offset(of: \.fs_base) == GuestContext.bases)
    }

    @Test("A further vCPU is initialised, brought up, taken down, and goes on where it was")
    func further() {
        let pv = PVCaller()
        for offset in UInt64(0)..<2 { pv.guest.put([(0, 8)], at: 0x2000 + offset * 4096) }
        pv.guest.put([(20 << 12, 8)], at: 0x2000 + UInt64(GuestContext.control) + 24)
        pv.guest.put([(0x5678, 8)], at: 0x2000 + UInt64(GuestContext.registers) + 128)
        #expect(pv.call(24, 1, 1) == -22, "not initialised")
        #expect(pv.call(24, 0, 1, 0x2000) == 0)
        #expect(pv.guest.machine.paravirtual?[20] == 4)
        #expect(pv.call(24, 1, 1) == 0 && pv.call(24, 2, 1) == 0 && pv.call(24, 1, 1) == 0)
        #expect(pv.guest.machine.take() == ["up 1 at \(0x5678)", "down 1", "up 1 again"])
        pv.guest.put([(99 << 12, 8)], at: 0x2000 + UInt64(GuestContext.control) + 24)
        #expect(pv.call(24, 0, 1, 0x2000) == -22, "its tables are not the domain's")
    }

    @Test("SCHEDOP_block opens events; frames behind RAM are the grant table's")
    func block() {
        let pv = PVCaller()
        #expect(pv.guest.page.load(1, as: UInt8.self) == 1)
        #expect(pv.call(29, 1) == 0)
        #expect(pv.guest.page.load(1, as: UInt8.self) == 0)
        pv.guest.put([(0x7FF0, 2), (0, 2), (2, 4), (0, 8), (0x1100, 8)], at: 0x1000)
        #expect(pv.call(20, 2, 0x1000, 1) == 0)
        #expect((pv.guest.u64(0x1100), pv.guest.u64(0x1108)) == (65, 66))
    }
}
