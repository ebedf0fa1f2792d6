// The words that all parts of the engine share: what a handler returns, the bits
// of RFLAGS, CR0, CR4 and EFER, and the mode that decoding depends on.
// Source: Intel SDM vol. 3 §2.2-2.5, §3.4.5; `apus_vcpu` in cprocessor.h.
// Not modelled: VME and PVI (CPUID does not offer them), PKU, CET.

public import CProcessor

/// One vCPU's state; every part of the engine is an extension of it.
public typealias CPU = UnsafeMutablePointer<apus_vcpu>
/// A decoded instruction as its handler sees it.
public typealias Insn = UnsafePointer<apus_insn>

/// An exception is pending; `pending_vector` and its neighbours describe it.
public struct Fault: Error {
    @inlinable public init() {}
}

/// What a handler returns: APUS_NEXT ... APUS_END in the type that handlers have.
public enum Status {
    @inlinable @inline(__always) public static var next: UInt32 { 0 }
    @inlinable @inline(__always) public static var jump: UInt32 { 1 }
    @inlinable @inline(__always) public static var fault: UInt32 { 2 }
    @inlinable @inline(__always) public static var exit: UInt32 { 3 }
    @inlinable @inline(__always) public static var end: UInt32 { 4 }
    /// Translated code cannot run the current block now: its handlers must.
    @inlinable @inline(__always) static var interpret: UInt32 { 5 }
    /// That was no instruction of the guest: translated code goes on.
    @inlinable @inline(__always) static var resume: UInt32 { 6 }
}

/// Indices into `apus_vcpu.seg`.
enum Seg {
    @inline(__always) static var es: Int { 0 }
    @inline(__always) static var cs: Int { 1 }
    @inline(__always) static var ss: Int { 2 }
    @inline(__always) static var ds: Int { 3 }
    @inline(__always) static var fs: Int { 4 }
    @inline(__always) static var gs: Int { 5 }
    @inline(__always) static var ldtr: Int { 6 }
    @inline(__always) static var tr: Int { 7 }
}

/// Exception vectors. SDM vol. 3 table 6-1.
enum Vector {
    @inline(__always) static var divide: UInt8 { 0 }
    @inline(__always) static var debug: UInt8 { 1 }
    @inline(__always) static var nmi: UInt8 { 2 }
    @inline(__always) static var breakpoint: UInt8 { 3 }
    @inline(__always) static var overflow: UInt8 { 4 }
    @inline(__always) static var bound: UInt8 { 5 }
    @inline(__always) static var invalidOpcode: UInt8 { 6 }
    @inline(__always) static var deviceNotAvailable: UInt8 { 7 }
    @inline(__always) static var doubleFault: UInt8 { 8 }
    @inline(__always) static var invalidTSS: UInt8 { 10 }
    @inline(__always) static var notPresent: UInt8 { 11 }
    @inline(__always) static var stack: UInt8 { 12 }
    @inline(__always) static var generalProtection: UInt8 { 13 }
    @inline(__always) static var pageFault: UInt8 { 14 }
    @inline(__always) static var floatingPoint: UInt8 { 16 }
    @inline(__always) static var alignment: UInt8 { 17 }
    @inline(__always) static var simd: UInt8 { 19 }
}

/// Bits of RFLAGS. SDM vol. 1 §3.4.3.
enum RFLAGS {
    @inline(__always) static var arithmetic: UInt64 { 0x8D5 }
    @inline(__always) static var trap: UInt64 { 1 << 8 }
    @inline(__always) static var interrupt: UInt64 { 1 << 9 }
    @inline(__always) static var direction: UInt64 { 1 << 10 }
    @inline(__always) static var iopl: UInt64 { 3 << 12 }
    @inline(__always) static var nestedTask: UInt64 { 1 << 14 }
    @inline(__always) static var resume: UInt64 { 1 << 16 }
    @inline(__always) static var virtual8086: UInt64 { 1 << 17 }
    @inline(__always) static var alignmentCheck: UInt64 { 1 << 18 }
    @inline(__always) static var virtualInterrupt: UInt64 { 1 << 19 }
    @inline(__always) static var virtualPending: UInt64 { 1 << 20 }
    @inline(__always) static var id: UInt64 { 1 << 21 }
    /// Every bit that exists but VIF and VIP, which come with VME only.
    @inline(__always) static var implemented: UInt64 {
        arithmetic | trap | interrupt | direction | iopl | nestedTask | resume | virtual8086 | alignmentCheck | id
    }
}

/// Bits of CR0. SDM vol. 3 §2.5.
enum CR0 {
    @inline(__always) static var protection: UInt64 { 1 }
    @inline(__always) static var monitorCoprocessor: UInt64 { 1 << 1 }
    @inline(__always) static var emulation: UInt64 { 1 << 2 }
    @inline(__always) static var taskSwitched: UInt64 { 1 << 3 }
    @inline(__always) static var extensionType: UInt64 { 1 << 4 }
    @inline(__always) static var numericError: UInt64 { 1 << 5 }
    @inline(__always) static var writeProtect: UInt64 { 1 << 16 }
    @inline(__always) static var alignmentMask: UInt64 { 1 << 18 }
    @inline(__always) static var notWriteThrough: UInt64 { 1 << 29 }
    @inline(__always) static var cacheDisable: UInt64 { 1 << 30 }
    @inline(__always) static var paging: UInt64 { 1 << 31 }
}

/// Bits of CR4. SDM vol. 3 §2.5.
enum CR4 {
    @inline(__always) static var timeStampDisable: UInt64 { 1 << 2 }
    @inline(__always) static var debugExtensions: UInt64 { 1 << 3 }
    @inline(__always) static var pageSizeExtension: UInt64 { 1 << 4 }
    @inline(__always) static var physicalAddressExtension: UInt64 { 1 << 5 }
    @inline(__always) static var machineCheck: UInt64 { 1 << 6 }
    @inline(__always) static var pageGlobal: UInt64 { 1 << 7 }
    @inline(__always) static var performanceCounter: UInt64 { 1 << 8 }
    @inline(__always) static var osFXSR: UInt64 { 1 << 9 }
    @inline(__always) static var osXMMException: UInt64 { 1 << 10 }
    @inline(__always) static var userInstructionPrevention: UInt64 { 1 << 11 }
    @inline(__always) static var fsgsBase: UInt64 { 1 << 16 }
    @inline(__always) static var processContext: UInt64 { 1 << 17 }
    @inline(__always) static var osXSAVE: UInt64 { 1 << 18 }
    @inline(__always) static var smep: UInt64 { 1 << 20 }
    @inline(__always) static var smap: UInt64 { 1 << 21 }
}

/// Bits of EFER. SDM vol. 3 §2.2.1.
enum EFER {
    @inline(__always) static var syscall: UInt64 { 1 }
    @inline(__always) static var longModeEnable: UInt64 { 1 << 8 }
    @inline(__always) static var longModeActive: UInt64 { 1 << 10 }
    @inline(__always) static var noExecute: UInt64 { 1 << 11 }
    /// AMD's: restricts nothing that the engine does.
    @inline(__always) static var automaticIBRS: UInt64 { 1 << 21 }
}

/// Bits of a segment's `access`, and of descriptors once shifted. SDM vol. 3 §3.4.5.
enum Access {
    @inline(__always) static var accessed: UInt16 { 1 }
    /// Writable (data) or readable (code).
    @inline(__always) static var writable: UInt16 { 2 }
    /// Expand-down (data) or conforming (code).
    @inline(__always) static var conforming: UInt16 { 4 }
    @inline(__always) static var code: UInt16 { 8 }
    @inline(__always) static var nonSystem: UInt16 { 0x10 }
    @inline(__always) static var present: UInt16 { 0x80 }
    @inline(__always) static var long: UInt16 { 1 << 13 }
    @inline(__always) static var big: UInt16 { 1 << 14 }
    @inline(__always) static var granularity: UInt16 { 1 << 15 }
}

/// `mode_key`: all of the machine's mode that decoding and the choice of a handler may depend on.
public struct ModeKey: OptionSet {
    public var rawValue: UInt32
    @inlinable public init(rawValue: UInt32) { self.rawValue = rawValue }
    // Bits 0-1: log2 of the code size (1, 2, 3); bits 2-3: log2 of the stack size.
    @inline(__always) static var user: ModeKey { ModeKey(rawValue: UInt32(APUS_KEY_USER)) }
    @inline(__always) static var protected: ModeKey { ModeKey(rawValue: UInt32(APUS_KEY_PROTECTED)) }
    @inline(__always) static var virtual8086: ModeKey { ModeKey(rawValue: 1 << 6) }
    /// Instruction by instruction: RFLAGS.TF, or breakpoints.
    @inline(__always) static var trap: ModeKey { ModeKey(rawValue: UInt32(APUS_KEY_TRAP)) }
    @inline(__always) static var flatData: ModeKey { ModeKey(rawValue: UInt32(APUS_KEY_FLAT_DATA)) }
    @inline(__always) static var taskSwitched: ModeKey { ModeKey(rawValue: 1 << 9) }
    @inline(__always) static var emulation: ModeKey { ModeKey(rawValue: 1 << 10) }
    @inline(__always) static var monitorCoprocessor: ModeKey { ModeKey(rawValue: 1 << 11) }
    @inline(__always) static var osFXSR: ModeKey { ModeKey(rawValue: 1 << 12) }
    @inline(__always) static var osXSAVE: ModeKey { ModeKey(rawValue: 1 << 13) }
    /// Alignment is checked: CR0.AM, RFLAGS.AC, CPL 3.
    @inline(__always) static var alignmentCheck: ModeKey { ModeKey(rawValue: UInt32(APUS_KEY_ALIGNMENT)) }
    @inline(__always) static var paging: ModeKey { ModeKey(rawValue: 1 << 15) }
    /// EFER.LMA, compatibility mode included.
    @inline(__always) static var longMode: ModeKey { ModeKey(rawValue: UInt32(APUS_KEY_LONG)) }
    /// CS has base 0 and a limit of 4 GiB (or 64-bit mode).
    @inline(__always) static var flatCode: ModeKey { ModeKey(rawValue: UInt32(APUS_KEY_FLAT_CODE)) }
    /// RFLAGS.AC lets supervisor code reach user pages.
    @inline(__always) static var userAccess: ModeKey { ModeKey(rawValue: UInt32(APUS_KEY_USER_ACCESS)) }
    /// VEX on vector registers: CR4.OSXSAVE, XCR0 with SSE and AVX, protected mode.
    @inline(__always) static var avx: ModeKey { ModeKey(rawValue: 1 << 19) }
    /// Real or virtual-8086 mode, no segment shorter than 64 KiB.
    @inline(__always) static var wholeSegments: ModeKey { ModeKey(rawValue: 1 << 20) }
    /// CPL 1 or 2.
    @inline(__always) static var middle: ModeKey { ModeKey(rawValue: UInt32(APUS_KEY_MIDDLE)) }
    /// CR4.SMAP: it needs that to.
    @inline(__always) static var accessPrevention: ModeKey { ModeKey(rawValue: 1 << 24) }

    /// Default operand size of CS in bytes: 2, 4 or 8.
    @inline(__always) var codeSize: Int { 1 << Int(rawValue & 3) }
    /// Width of the stack pointer in bytes: 2, 4 or 8.
    @inline(__always) var stackSize: Int { 1 << Int((rawValue >> 2) & 3) }
}

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// RFLAGS as PUSHF sees it, VM and RF included.
    @inline(__always) var rflags: UInt64 { UInt64(pointee.system_flags | pointee.arith_flags) | 2 }

    /// Replaces the bits of RFLAGS that `mask` names, and what depends on them.
    func setRFLAGS(_ value: UInt64, writable mask: UInt64) {
        let mask = mask & RFLAGS.implemented
        let old = rflags
        let new = (old & ~mask) | (value & mask) | 2
        pointee.arith_flags = UInt32(truncatingIfNeeded: new & RFLAGS.arithmetic)
        pointee.system_flags = UInt32(truncatingIfNeeded: new & ~RFLAGS.arithmetic)
        if (old ^ new) & (RFLAGS.trap | RFLAGS.virtual8086 | RFLAGS.alignmentCheck) != 0 { updateMode() }
    }

    @inline(__always) var isVirtual8086: Bool {
        UInt64(pointee.system_flags) & RFLAGS.virtual8086 != 0
    }
    @inline(__always) var is64Bit: Bool { pointee.code_size == 8 }
    @inline(__always) var iopl: UInt8 { UInt8((pointee.system_flags >> 12) & 3) }

    @inline(__always) func segment(_ index: Int) -> UnsafeMutablePointer<apus_segment> {
        apus_segment_at(self, UInt32(truncatingIfNeeded: index))
    }

    /// Derives everything that handlers and the block key take from control registers, RFLAGS,
    /// `cpl` and the segment registers. To be called after any of these changed.
    func updateMode() {
        let protection = pointee.cr0 & CR0.protection != 0
        let virtual = protection && isVirtual8086
        if !protection { pointee.cpl = 0 } else if virtual { pointee.cpl = 3 }
        pointee.protected_mode = protection && !virtual
        pointee.long_mode = pointee.efer & EFER.longModeActive != 0
        pointee.paging = pointee.cr0 & CR0.paging != 0
        let code = segment(Seg.cs).pointee
        let stack = segment(Seg.ss).pointee
        var key = ModeKey()
        if pointee.long_mode, code.access & Access.long != 0 {
            (pointee.code_size, pointee.stack_size) = (8, 8)
            key.rawValue = 3 | 3 << 2
            key.insert([.flatData, .flatCode])
        } else {
            pointee.code_size = code.access & Access.big != 0 ? 4 : 2
            pointee.stack_size = stack.access & Access.big != 0 ? 4 : 2
            key.rawValue = UInt32(pointee.code_size >> 1) | UInt32(pointee.stack_size >> 1) << 2
            if isFlat(Seg.ds), isFlat(Seg.es), isFlat(Seg.ss) { key.insert(.flatData) }
            if code.base == 0, code.limit == .max { key.insert(.flatCode) }
            if !pointee.protected_mode, hasWholeSegments { key.insert(.wholeSegments) }
        }
        pointee.flat_data = key.contains(.flatData)
        if pointee.cpl == 3 { key.insert(.user) } else if pointee.cpl != 0 { key.insert(.middle) }
        if pointee.protected_mode { key.insert(.protected) }
        if virtual { key.insert(.virtual8086) }
        if pointee.long_mode { key.insert(.longMode) }
        if pointee.paging { key.insert(.paging) }
        insertControlBits(&key)
        pointee.mode_key = key.rawValue
        selectJumps()
        selectTLB()
    }

    /// The same once CS, SS, RFLAGS and `cpl` of code in 64-bit mode are loaded, and nothing else has changed.
    func updateLevel() {
        let isLong = segment(Seg.cs).pointee.access & Access.long != 0
        guard isLong, pointee.cpl == 0 || pointee.cpl == 3, apus_is_plain_level(self, pointee.system_flags) else {
            return updateMode()
        }
        apus_enter_level(self)
    }

    private func insertControlBits(_ key: inout ModeKey) {
        let (cr0, cr4) = (pointee.cr0, pointee.cr4)
        if cr0 & CR0.taskSwitched != 0 { key.insert(.taskSwitched) }
        if cr0 & CR0.emulation != 0 { key.insert(.emulation) }
        if cr0 & CR0.monitorCoprocessor != 0 { key.insert(.monitorCoprocessor) }
        if cr4 & CR4.osFXSR != 0 { key.insert(.osFXSR) }
        if cr4 & CR4.osXSAVE != 0 {
            key.insert(.osXSAVE)
            if pointee.xcr0 & 6 == 6, pointee.protected_mode { key.insert(.avx) }
        }
        if cr4 & CR4.smap != 0 { key.insert(.accessPrevention) }
        if UInt64(pointee.system_flags) & RFLAGS.trap != 0 || hasBreakpoints { key.insert(.trap) }
        if pointee.cpl == 3, cr0 & CR0.alignmentMask != 0,
            UInt64(pointee.system_flags) & RFLAGS.alignmentCheck != 0
        {
            key.insert(.alignmentCheck)
        }
    }

    /// Chooses the TLB set by CPL and, with SMAP, by RFLAGS.AC.
    func selectTLB() {
        var mode = UInt8(APUS_TLB_SUPERVISOR)
        if pointee.cpl == 3 {
            mode = UInt8(APUS_TLB_USER)
        } else if pointee.cr4 & CR4.smap != 0, UInt64(pointee.system_flags) & RFLAGS.alignmentCheck != 0 {
            mode = UInt8(APUS_TLB_SUPERVISOR_AC)
        }
        apus_select_tlb(self, mode)
        let user = ModeKey.userAccess.rawValue
        pointee.mode_key = pointee.mode_key & ~user | (mode == UInt8(APUS_TLB_SUPERVISOR_AC) ? user : 0)
        if pointee.mode_key & ModeKey.alignmentCheck.rawValue != 0 || hasDataBreakpoints { apus_select_watched(self) }
    }

    /// Whether all segments, each of which real mode may read and write, reach from 0 to 64 KiB at least.
    private var hasWholeSegments: Bool {
        for index in Seg.es...Seg.gs {
            let segment = segment(index).pointee
            // Expand-down data: what protected mode left behind.
            if segment.limit < 0xFFFF || segment.access & (Access.code | Access.conforming) == Access.conforming {
                return false
            }
        }
        return true
    }

    /// Whether the segment is readable and writable data from 0 to 4 GiB.
    private func isFlat(_ index: Int) -> Bool {
        let segment = segment(index).pointee
        return segment.base == 0 && segment.limit == .max
            && segment.access & (Access.present | Access.nonSystem | Access.code | Access.conforming | Access.writable)
                == Access.present | Access.nonSystem | Access.writable
    }

    /// Notes an exception (a fault unless `pending_kind` is changed) for `deliverPending`.
    @inline(never) func raise(_ vector: UInt8, error: UInt32? = nil) -> Fault {
        pointee.pending_vector = vector
        pointee.pending_kind = 0
        pointee.pending_has_error = error != nil
        pointee.pending_error = error ?? 0
        pointee.pending_dr6 = 0
        return Fault()
    }

    /// Notes a page fault at a linear address, with its error code (SDM vol. 3 §4.7).
    @inline(never) func raisePageFault(_ linear: UInt64, error: UInt32) -> Fault {
        pointee.pending_cr2 = linear
        return raise(Vector.pageFault, error: error)
    }
}
