// A tiny machine for tests of the system half: 4 MiB of RAM, a port latch, one vCPU, tables ready to use.
// Source: Intel SDM vol. 3 §3.5 (descriptors), §6.11 (gates), §7.2 (TSS).
// Every interrupt gate leads to a HLT of its own, so that RIP after `run` tells which vector was taken.

import CProcessor

@testable import Processor

/// Ports and registers of the test machine.
final class LatchBus: GuestBus {
    /// What FERR# did.
    var numericErrors: [Bool] = []
    func signalFloatingPointError(_ isPending: Bool) { numericErrors.append(isPending) }
    /// What was written: port, size, value.
    var writes: [(port: UInt16, size: Int, value: UInt32)] = []
    /// What each port reads as.
    var ports: [UInt16: UInt32] = [:]
    var transfers = 0
    var ram: UnsafeMutableRawPointer?
    var taskPriority: UInt8 = 0
    var tscFrequency: UInt64 { 1_000_000_000 }

    func readPort(_ port: UInt16, size: Int) -> UInt32 { ports[port] ?? .max }
    func writePort(_ port: UInt16, size: Int, value: UInt32) { writes.append((port, size, value)) }
    func transferPort(_ port: UInt16, size: Int, count: Int, address: UInt64, isRead: Bool, descending: Bool) {
        transfers += 1
        for index in 0..<count where isRead {
            var value = readPort(port, size: size)
            ram?.advanced(by: Int(address) + index * size).copyMemory(from: &value, byteCount: size)
        }
    }
    func readMemory(_ address: UInt64, size: Int) -> UInt64 { .max }
    func writeMemory(_ address: UInt64, size: Int, value: UInt64) {}
    func readMSR(_ number: UInt32) -> UInt64? { nil }
    func writeMSR(_ number: UInt32, _ value: UInt64) -> Bool { false }
    func cpuid(leaf: UInt32, subleaf: UInt32, _ own: CPUIDResult) -> CPUIDResult? { nil }
}

/// Selectors of the guest's GDT.
enum Selector {
    static let code32: UInt16 = 0x08
    static let data32: UInt16 = 0x10
    static let userCode32: UInt16 = 0x1B
    static let userData32: UInt16 = 0x23
    static let tss: UInt16 = 0x28
    static let code16: UInt16 = 0x38
    static let data16: UInt16 = 0x40
    static let code64: UInt16 = 0x48
    static let userData64: UInt16 = 0x53
    static let userCode64: UInt16 = 0x5B
    static let otherTSS: UInt16 = 0x60
    static let taskGate: UInt16 = 0x68
    static let callGate: UInt16 = 0x70
    static let absent: UInt16 = 0x80
}

/// Where things lie in the guest's RAM.
enum Place {
    static let gdt: UInt64 = 0x1000
    static let idt: UInt64 = 0x2000
    static let tss: UInt64 = 0x4000
    static let otherTSS: UInt64 = 0x5000
    static let handlers: UInt64 = 0x6000
    static let code: UInt64 = 0x8000
    static let other: UInt64 = 0xA000
    static let userStack: UInt64 = 0xC000
    static let kernelStack: UInt64 = 0xE000
    static let interruptStack: UInt64 = 0xF000
    static let pages: UInt64 = 0x10_0000
}

final class SystemGuest {
    static let bytes = 4 << 20
    let ram: UnsafeMutableRawPointer
    let bus = LatchBus()
    let attention: UnsafeMutablePointer<UInt32>
    let map: PhysicalMap
    let engine: SoftwareCPU
    let cpu: CPU

    /// A further processor on the memory of `first`.
    init(beside first: SystemGuest) {
        (ram, map) = (first.ram, first.map)
        attention = .allocate(capacity: 1)
        attention.initialize(to: 0)
        bus.ram = ram
        engine = SoftwareCPU(index: 1, map: map, bus: bus, attention: attention)
        cpu = engine.cpu
        engine.reset(powerOn: true, isBootProcessor: true)
    }

    init() {
        ram = .allocate(byteCount: Self.bytes, alignment: 4096)
        ram.initializeMemory(as: UInt8.self, repeating: 0, count: Self.bytes)
        attention = .allocate(capacity: 1)
        attention.initialize(to: 0)
        let codeMap = UnsafeMutablePointer<UInt8>.allocate(capacity: Self.bytes >> 12)
        codeMap.initialize(repeating: 0, count: Self.bytes >> 12)
        map = PhysicalMap()
        map.replace(with: [
            PhysicalRegion(start: 0, bytes: UInt64(Self.bytes), host: ram, isWritable: true, codeMap: codeMap)
        ])
        bus.ram = ram
        engine = SoftwareCPU(index: 0, map: map, bus: bus, attention: attention)
        cpu = engine.cpu
        engine.reset(powerOn: true, isBootProcessor: true)
    }

    // MARK: Memory

    func put<T>(_ value: T, _ address: UInt64) { ram.storeBytes(of: value, toByteOffset: Int(address), as: T.self) }
    func put(bytes: [UInt8], _ address: UInt64) {
        for (index, byte) in bytes.enumerated() { put(byte, address + UInt64(index)) }
    }
    func get<T>(_ address: UInt64, as: T.Type) -> T { ram.loadUnaligned(fromByteOffset: Int(address), as: T.self) }

    /// Makes the tables of an address space at `top` and behind: the first 4 MiB as they are, linear 400000 being `target`;
    /// `flags` are that page's.
    func mapPage(_ target: UInt64, in top: UInt64, flags: UInt64 = 7) {
        put(top + 0x1007, top)
        put(top + 0x2007, top + 0x1000)
        put(UInt64(0x87), top + 0x2000)
        put(UInt64(0x20_0087), top + 0x2008)
        put(top + 0x3007, top + 0x2010)
        put(target | flags, top + 0x3000)
    }

    /// Writes a descriptor; `flags` are G, D, L, AVL.
    func describe(_ selector: UInt16, base: UInt64 = 0, limit: UInt64 = 0xFFFFF, type: UInt64, flags: UInt64 = 0xC) {
        let low = limit & 0xFFFF | (base & 0xFF_FFFF) << 16 | type << 40
        put(low | (limit >> 16 & 15) << 48 | flags << 52 | (base >> 24 & 0xFF) << 56, Place.gdt + UInt64(selector & ~7))
    }

    /// Writes a gate of 8 bytes; `type` includes P and DPL.
    func gate(_ address: UInt64, _ selector: UInt16, _ offset: UInt64, type: UInt64, parameters: UInt64 = 0) {
        let low = offset & 0xFFFF | UInt64(selector) << 16 | parameters << 32 | type << 40
        put(low | (offset >> 16 & 0xFFFF) << 48, address)
    }

    private func tables() {
        describe(Selector.code32, type: 0x9B)
        describe(Selector.data32, type: 0x93)
        describe(Selector.userCode32, type: 0xFB)
        describe(Selector.userData32, type: 0xF3)
        describe(Selector.code16, limit: 0xFFFF, type: 0x9B, flags: 0)
        describe(Selector.data16, limit: 0xFFFF, type: 0x93, flags: 0)
        describe(Selector.code64, type: 0x9B, flags: 0xA)
        describe(Selector.userData64, type: 0xF3, flags: 0xC)
        describe(Selector.userCode64, type: 0xFB, flags: 0xA)
        describe(Selector.absent, type: 0x13)
        for vector in 0..<256 as Range<UInt64> { put(UInt8(0xF4), Place.handlers + vector) }
        cpu.pointee.gdtr = apus_table(base: Place.gdt, limit: 0xFF)
        cpu.pointee.idtr = apus_table(base: Place.idt, limit: 0xFFF)
    }

    private func load(_ index: Int, _ selector: UInt16) {
        let raw = get(Place.gdt + UInt64(selector & ~7), as: UInt64.self)
        let high = index >= 6 && cpu.pointee.long_mode ? get(Place.gdt + UInt64(selector & ~7) + 8, as: UInt64.self) : 0
        cpu.segment(index).pointee = Descriptor(raw: raw, high: high).segment(selector: selector)
    }

    // MARK: Modes

    /// Real mode, CS:IP = 0000:8000, SS:SP = 0000:E000, the vectors lead to `handlers`.
    func real() {
        for vector in 0..<256 as Range<UInt64> {
            put(UInt8(0xF4), Place.handlers + vector)
            put(UInt32(Place.handlers + vector), vector * 4)
        }
        cpu.segment(1).pointee = apus_segment(base: 0, limit: 0xFFFF, selector: 0, access: 0x93)
        cpu.pointee.gpr.4 = Place.kernelStack
        cpu.updateMode()
    }

    /// Flat 32-bit protected mode at privilege level 0 or 3, a TSS loaded, interrupt gates for all vectors.
    func protected(user: Bool = false, gateType: UInt64 = 0xEE) {
        tables()
        for vector in 0..<256 as Range<UInt64> {
            gate(Place.idt + vector * 8, Selector.code32, Place.handlers + vector, type: gateType)
        }
        describe(Selector.tss, base: Place.tss, limit: 0x67, type: 0x8B, flags: 0)
        put(UInt32(Place.kernelStack), Place.tss + 4)
        put(UInt32(Selector.data32), Place.tss + 8)
        put(UInt16(0x68), Place.tss + 0x66)
        cpu.pointee.cr0 |= 1
        segments(user ? Selector.userCode32 : Selector.code32, user ? Selector.userData32 : Selector.data32)
        cpu.pointee.gpr.4 = user ? Place.userStack : Place.kernelStack
    }

    /// 64-bit mode with the first 4 MiB mapped one to one for everybody, a 64-bit TSS and gates for all vectors.
    func long(user: Bool = false) {
        tables()
        for vector in 0..<256 as Range<UInt64> {
            gate(Place.idt + vector * 16, Selector.code64, Place.handlers + vector, type: 0xEE)
            put(UInt64(0), Place.idt + vector * 16 + 8)
        }
        put(UInt64(Place.pages + 0x1007), Place.pages)
        put(UInt64(Place.pages + 0x2007), Place.pages + 0x1000)
        put(UInt64(0x87), Place.pages + 0x2000)
        put(UInt64(0x20_0087), Place.pages + 0x2008)
        cpu.pointee.cr3 = Place.pages
        cpu.pointee.cr4 = 0x20
        cpu.pointee.efer = 0xD01
        cpu.pointee.cr0 = 0x8000_0011
        describe(Selector.tss, base: Place.tss, limit: 0x67, type: 0x8B, flags: 0)
        put(UInt64(0), Place.gdt + UInt64(Selector.tss) + 8)
        put(UInt64(Place.kernelStack), Place.tss + 4)
        put(UInt64(Place.interruptStack), Place.tss + 0x24)
        put(UInt16(0x68), Place.tss + 0x66)
        cpu.pointee.long_mode = true
        segments(user ? Selector.userCode64 : Selector.code64, user ? Selector.userData64 : Selector.data32)
        cpu.pointee.gpr.4 = user ? Place.userStack : Place.kernelStack
        cpu.flushTLB(keepGlobal: false)
    }

    private func segments(_ code: UInt16, _ data: UInt16) {
        load(1, code)
        for index in [0, 2, 3, 4, 5] { load(index, data) }
        load(7, Selector.tss)
        cpu.pointee.cpl = UInt8(code & 3)
        cpu.updateMode()
    }

    // MARK: Running

    /// Runs `program` from `Place.code` until it halts or fails.
    @discardableResult func run(_ program: [UInt8]) -> EngineExit {
        put(bytes: program, Place.code)
        cpu.pointee.rip = Place.code
        return engine.run()
    }

    /// The vector whose handler halted, or nil.
    var vector: UInt64? {
        let at = cpu.segment(1).pointee.base + cpu.pointee.rip
        return at > Place.handlers && at <= Place.handlers + 256 ? at - 1 - Place.handlers : nil
    }

    /// 32-bit word `index` of the stack.
    func stack32(_ index: UInt64) -> UInt32 { get(cpu.pointee.gpr.4 + index * 4, as: UInt32.self) }
    func stack64(_ index: UInt64) -> UInt64 { get(cpu.pointee.gpr.4 + index * 8, as: UInt64.self) }
    func stack16(_ index: UInt64) -> UInt16 { get(cpu.pointee.gpr.4 + index * 2, as: UInt16.self) }
}
