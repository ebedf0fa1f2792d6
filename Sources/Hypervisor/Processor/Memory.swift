// Guest memory as instructions reach it: segment checks, the soft TLB, accesses that cross pages.
// Source: Intel SDM vol. 3 §3.4, §5.3 (segments), §4 (paging), vol. 1 §3.3.7 (canonical addresses).
// Modelled: limits, types, canonical form, all-or-nothing stores; not modelled: memory types.
// A TLB entry exists only for RAM or ROM, and for stores only while no code was decoded from the page.

internal import CProcessor

/// An operand that memory holds and that arithmetic works on.
typealias Word = FixedWidthInteger & UnsignedInteger

let segmentES = 0
let segmentCS = 1
let segmentSS = 2
let segmentDS = 3
let segmentFS = 4
let segmentGS = 5

// MARK: - Registers

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// The general registers as bytes; behind the sixteen lie RIP, a zero and 4 GiB (APUS_RIP, APUS_NO_REG, APUS_FAR).
    @inline(__always) var registers: UnsafeMutableRawPointer { UnsafeMutableRawPointer(self) }
    /// The general registers in hardware order.
    @inline(__always) var gpr: UnsafeMutablePointer<UInt64> {
        UnsafeMutableRawPointer(self).assumingMemoryBound(to: UInt64.self)
    }

    /// Register `n` with the rule of an instruction without REX: bytes 4...7 are AH, CH, DH, BH.
    @inline(__always) func readGPR(_ n: UInt8, size: UInt8, rex: Bool = true) -> UInt64 {
        switch size {
        case 1:
            if !rex, n >= 4 { return gpr[Int(n & 3)] >> 8 & 0xFF }
            return gpr[Int(n & 15)] & 0xFF
        case 2: return gpr[Int(n & 15)] & 0xFFFF
        case 4: return gpr[Int(n & 15)] & 0xFFFF_FFFF
        default: return gpr[Int(n & 15)]
        }
    }

    /// Writes register `n`: 32 bits clear the upper half, 8 and 16 leave the rest.
    @inline(__always) func writeGPR(_ n: UInt8, size: UInt8, _ value: UInt64, rex: Bool = true) {
        switch size {
        case 1:
            let at = !rex && n >= 4 ? Int(n & 3) * 8 + 1 : Int(n & 15) * 8
            registers.storeBytes(of: UInt8(truncatingIfNeeded: value), toByteOffset: at, as: UInt8.self)
        case 2:
            registers.storeBytes(
                of: UInt16(truncatingIfNeeded: value), toByteOffset: Int(n & 15) * 8, as: UInt16.self)
        case 4: gpr[Int(n & 15)] = value & 0xFFFF_FFFF
        default: gpr[Int(n & 15)] = value
        }
    }

    /// The register operand at byte offset `at` (`reg_at`, `rm_at`).
    @inline(__always) func register<T: Word>(_ at: UInt8, _: T.Type) -> T {
        registers.loadUnaligned(fromByteOffset: Int(at), as: T.self)
    }
    @inline(__always) func setRegister<T: Word>(_ at: UInt8, _ value: T) {
        if MemoryLayout<T>.size == 4 {
            registers.storeBytes(of: UInt64(truncatingIfNeeded: value), toByteOffset: Int(at), as: UInt64.self)
        } else {
            registers.storeBytes(of: value, toByteOffset: Int(at), as: T.self)
        }
    }

    @inline(__always) func segmentPointer(_ index: Int) -> UnsafeMutablePointer<apus_segment> {
        UnsafeMutableRawPointer(self).advanced(by: segmentsOffset).assumingMemoryBound(to: apus_segment.self) + index
    }
}

/// Where `seg` lies in a vCPU.
private let segmentsOffset = Int(APUS_SEGMENTS_OFFSET)

// MARK: - Addresses

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// Offset of a memory operand within its segment.
    @inline(__always) func effectiveAddress(_ insn: Insn) -> UInt64 {
        let r = gpr
        let base = r[Int(insn.pointee.base)]
        let index = r[Int(insn.pointee.index)] &<< UInt64(insn.pointee.scale)
        return (base &+ index &+ UInt64(bitPattern: Int64(insn.pointee.disp))) & insn.pointee.addr_mask
    }

    /// The linear address of an access, after the segment's checks.
    @inline(__always) func linearAddress(
        _ segment: Int, _ offset: UInt64, _ bytes: Int, write: Bool
    ) throws(Fault) -> UInt64 {
        let part = segmentPointer(segment)
        if self.pointee.code_size == 8 {
            return segment >= segmentFS ? part.pointee.base &+ offset : offset
        }
        let last = offset &+ UInt64(truncatingIfNeeded: bytes &- 1)
        let access = part.pointee.access
        // Present, not expand-down; writable data to store, anything but execute-only code to load.
        let simple =
            write ? access & 0x8E == 0x82 : access & 0x8C == 0x80 || access & 0x8A == 0x8A
        if simple, last <= UInt64(part.pointee.limit) { return (part.pointee.base &+ offset) & 0xFFFF_FFFF }
        return try checkedLinearAddress(segment, offset, bytes, write: write)
    }

    /// The segment checks in full.
    @inline(never) func checkedLinearAddress(
        _ segment: Int, _ offset: UInt64, _ bytes: Int, write: Bool
    ) throws(Fault) -> UInt64 {
        let part = segmentPointer(segment).pointee
        let type = part.access & 0xF
        let last = offset &+ UInt64(truncatingIfNeeded: bytes &- 1)
        var allowed = part.access & 0x80 != 0
        if self.pointee.cr0 & CR0.protection == 0 {
            // In real mode only the limit counts: code may be written through CS.
            allowed = true
        } else if write {
            allowed = allowed && type & 0xA == 2
        } else {
            allowed = allowed && type & 0xA != 8
        }
        if type & 0xC == 4 {
            // Expand-down data: valid above the limit, up to 64 KiB or 4 GiB.
            let top: UInt64 = part.access & 0x4000 != 0 ? 0xFFFF_FFFF : 0xFFFF
            allowed = allowed && offset > UInt64(part.limit) && last <= top
        } else {
            allowed = allowed && last <= UInt64(part.limit)
        }
        // A flat segment has no limit: an access over its end wraps.
        if !allowed, part.limit == .max, part.access & 0x80 != 0, type & 0xC != 4, last > 0xFFFF_FFFF {
            allowed = write ? type & 0xA == 2 : type & 0xA != 8
        }
        guard allowed else { throw raise(segment == segmentSS ? 12 : 13, error: 0) }
        return (part.base &+ offset) & 0xFFFF_FFFF
    }

    /// The linear address of the memory operand of `insn`.
    @inline(__always) func operandAddress(_ insn: Insn, _ bytes: Int, write: Bool) throws(Fault) -> UInt64 {
        let offset = effectiveAddress(insn)
        if insn.pointee.flat != 0 { return offset }
        return try linearAddress(Int(insn.pointee.segment), offset, bytes, write: write)
    }
}

// MARK: - Loads and stores

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// The host address of a linear address if the TLB `entries` know it and `T` fits its page.
    @inline(__always) func lookUp<T: Word>(
        _ entries: UnsafeMutablePointer<apus_tlb_entry>, _ linear: UInt64, _: T.Type
    ) -> UnsafeMutableRawPointer? {
        let entry = entries + Int(truncatingIfNeeded: linear &>> 12 & UInt64(APUS_TLB_ENTRIES - 1))
        let distance = linear ^ entry.pointee.tag
        guard distance <= UInt64(4096 - MemoryLayout<T>.size) else { return nil }
        return UnsafeMutableRawPointer(bitPattern: UInt(truncatingIfNeeded: distance &+ entry.pointee.host))
    }

    /// Loads with the rights of the current privilege level. `segment` only tells #SS from #GP.
    @inline(__always) func loadLinear<T: Word>(
        _ linear: UInt64, as: T.Type, segment: Int = 3
    ) throws(Fault) -> T {
        if let host = lookUp(self.pointee.tlb_read, linear, T.self) { return host.loadUnaligned(as: T.self) }
        return T(
            truncatingIfNeeded: try loadSlow(
                linear, MemoryLayout<T>.size, mode: self.pointee.tlb_mode, segment: segment))
    }

    /// Stores with the rights of the current privilege level.
    @inline(__always) func storeLinear<T: Word>(
        _ value: T, _ linear: UInt64, segment: Int = 3
    ) throws(Fault) {
        if let host = lookUp(self.pointee.tlb_write, linear, T.self) {
            host.storeBytes(of: value, as: T.self)
            return
        }
        try storeSlow(
            UInt64(truncatingIfNeeded: value), linear, MemoryLayout<T>.size, mode: self.pointee.tlb_mode,
            segment: segment)
    }

    /// Loads and stores with the rights of `cpl`: interrupt stacks, call gates, task switches.
    func loadLinear<T: Word>(_ linear: UInt64, as: T.Type, cpl: UInt8, segment: Int = 2) throws(Fault) -> T {
        let mode = systemMode(cpl)
        if let host = lookUp(tlbSet(mode, write: false), linear, T.self) { return host.loadUnaligned(as: T.self) }
        return T(truncatingIfNeeded: try loadSlow(linear, MemoryLayout<T>.size, mode: mode, segment: segment))
    }
    func storeLinear<T: Word>(_ value: T, _ linear: UInt64, cpl: UInt8, segment: Int = 2) throws(Fault) {
        let mode = systemMode(cpl)
        if let host = lookUp(tlbSet(mode, write: true), linear, T.self) {
            host.storeBytes(of: value, as: T.self)
            return
        }
        try storeSlow(
            UInt64(truncatingIfNeeded: value), linear, MemoryLayout<T>.size, mode: mode, segment: segment)
    }
    private func systemMode(_ cpl: UInt8) -> UInt8 {
        if cpl == 3 { return UInt8(APUS_TLB_USER) }
        return self.pointee.tlb_mode == UInt8(APUS_TLB_SUPERVISOR_AC)
            ? UInt8(APUS_TLB_SUPERVISOR_AC) : UInt8(APUS_TLB_SUPERVISOR)
    }

    /// Loads and stores that the processor makes by itself with supervisor rights: descriptor tables, TSS.
    func loadSystem<T: Word>(_ linear: UInt64, as: T.Type) throws(Fault) -> T {
        let entries = tlbSet(UInt8(APUS_TLB_SUPERVISOR), write: false)
        if let host = lookUp(entries, linear, T.self) { return host.loadUnaligned(as: T.self) }
        return T(
            truncatingIfNeeded: try loadSlow(
                linear, MemoryLayout<T>.size, mode: UInt8(APUS_TLB_SUPERVISOR), segment: segmentDS))
    }
    func storeSystem<T: Word>(_ value: T, _ linear: UInt64) throws(Fault) {
        try storeSlow(
            UInt64(truncatingIfNeeded: value), linear, MemoryLayout<T>.size, mode: UInt8(APUS_TLB_SUPERVISOR),
            segment: segmentDS)
    }

    /// Loads from `segment`:`offset` with all checks.
    @inline(__always) func load<T: Word>(_ segment: Int, _ offset: UInt64, as: T.Type) throws(Fault) -> T {
        try loadLinear(
            try linearAddress(segment, offset, MemoryLayout<T>.size, write: false), as: T.self, segment: segment)
    }
    /// Stores to `segment`:`offset` with all checks.
    @inline(__always) func store<T: Word>(_ value: T, _ segment: Int, _ offset: UInt64) throws(Fault) {
        try storeLinear(
            value, try linearAddress(segment, offset, MemoryLayout<T>.size, write: true), segment: segment)
    }

    /// Loads the memory operand of `insn`.
    @inline(__always) func loadOperand<T: Word>(_ insn: Insn, _: T.Type) throws(Fault) -> T {
        try loadLinear(
            try operandAddress(insn, MemoryLayout<T>.size, write: false), as: T.self,
            segment: Int(insn.pointee.segment))
    }
    /// Stores to the memory operand of `insn`.
    @inline(__always) func storeOperand<T: Word>(_ insn: Insn, _ value: T) throws(Fault) {
        try storeLinear(
            value, try operandAddress(insn, MemoryLayout<T>.size, write: true), segment: Int(insn.pointee.segment))
    }
}

// MARK: - Stack

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// The stack pointer as wide as the stack segment says.
    @inline(__always) var stackPointer: UInt64 {
        get {
            let value = gpr[4]
            switch self.pointee.stack_size {
            case 8: return value
            case 4: return value & 0xFFFF_FFFF
            default: return value & 0xFFFF
            }
        }
        nonmutating set {
            switch self.pointee.stack_size {
            case 8: gpr[4] = newValue
            case 4: gpr[4] = newValue & 0xFFFF_FFFF
            default: gpr[4] = gpr[4] & ~0xFFFF | newValue & 0xFFFF
            }
        }
    }
    /// `pointer` moved by `bytes` within the stack segment's width.
    @inline(__always) func stackOffset(_ pointer: UInt64, _ bytes: Int) -> UInt64 {
        let moved = pointer &+ UInt64(bitPattern: Int64(bytes))
        switch self.pointee.stack_size {
        case 8: return moved
        case 4: return moved & 0xFFFF_FFFF
        default: return moved & 0xFFFF
        }
    }

    /// Pushes `value`; the stack pointer moves only when the store succeeds.
    @inline(__always) func push<T: Word>(_ value: T) throws(Fault) {
        let pointer = stackOffset(gpr[4], -MemoryLayout<T>.size)
        try store(value, segmentSS, pointer)
        stackPointer = pointer
    }
    /// Pops one element; the stack pointer moves only when the load succeeds.
    @inline(__always) func pop<T: Word>(_: T.Type = T.self) throws(Fault) -> T {
        let pointer = stackPointer
        let value = try load(segmentSS, pointer, as: T.self)
        stackPointer = stackOffset(pointer, MemoryLayout<T>.size)
        return value
    }
    /// Pops one element of `size` bytes (2, 4 or 8).
    func pop(size: UInt8) throws(Fault) -> UInt64 {
        switch size {
        case 2: return UInt64(try pop(UInt16.self))
        case 4: return UInt64(try pop(UInt32.self))
        default: return try pop(UInt64.self)
        }
    }
    /// Pushes one element of `size` bytes (2, 4 or 8).
    func push(_ value: UInt64, size: UInt8) throws(Fault) {
        switch size {
        case 2: try push(UInt16(truncatingIfNeeded: value))
        case 4: try push(UInt32(truncatingIfNeeded: value))
        default: try push(value)
        }
    }
}
