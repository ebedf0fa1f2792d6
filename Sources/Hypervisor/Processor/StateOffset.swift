// Where translated code finds the vCPU's fields.
// Source: `apus_vcpu` in cprocessor.h.
// Modelled: offsets from the vCPU's first byte, which RSP points to.
// Quirks: Swift does not see the jump cache and the trials, arrays of too many elements; C says where they are.

internal import CProcessor

/// Offsets of the vCPU's fields. By RSP, because hosts then rename what was stored and is loaded again soon.
enum StateOffset {
    private static func place(_ path: PartialKeyPath<apus_vcpu>) -> Int32 {
        Int32(truncatingIfNeeded: MemoryLayout<apus_vcpu>.offset(of: path) ?? 0)
    }
    static let rip = place(\.rip)
    static let modeKey = place(\.mode_key)
    static let attention = place(\.attention)
    /// The executions left of block `number`, if it is on trial.
    static func trial(_ number: Int) -> Int32 { Int32(truncatingIfNeeded: apus_trials_offset() + number * 4) }
    static let jumps = Int32(truncatingIfNeeded: apus_jump_cache_offset())
    static let flags = place(\.native_flags)
    static let target = place(\.native_target)
    static let vectorLive = place(\.vector_live)
    static let upperLive = place(\.upper_live)
    static let upperZero = place(\.upper_zero)
    static let x87Live = place(\.x87_live)
    static let x87Block = place(\.x87_block)
    static let x87Last = place(\.x87_last)
    static let x87Data = place(\.x87_data)
    static let hostMXCSR = place(\.host_mxcsr)
    static let current = place(\.current)
    static let hostStack = place(\.host_stack)
    static let fpu = place(\.fpu)
    static let mxcsr = fpu + Int32(FXSAVEOffset.mxcsr)
    static func xmm(_ number: UInt8) -> Int32 { fpu + Int32(FXSAVEOffset.xmm) + Int32(number) * 16 }
    static func upper(_ number: UInt8) -> Int32 { fpu + Int32(FXSAVEOffset.upper) + Int32(number) * 16 }
    static let tlb = place(\.tlb)
    static let shared = place(\.shared_distance)
    static let nearSaved = place(\.near_saved)
    static let nearMisses = place(\.near_misses)
    static let jumpGeneration = place(\.jump_generation)
    static func near(_ mode: UInt8, write: Bool, slot: Int) -> Int32 {
        place(\.near) + ((Int32(mode) * 2 + (write ? 1 : 0)) * Int32(APUS_NEAR_SLOTS) + Int32(slot))
            * Int32(MemoryLayout<apus_near>.stride)
    }
    static let systemFlags = place(\.system_flags)
    static let kernelBase = place(\.kernel_gs_base)
    static let tlbMode = place(\.tlb_mode)
    static let tlbRead = place(\.tlb_read)
    static let tlbWrite = place(\.tlb_write)
    static let cr4 = control(4)
    /// CR0, 2, 3 or 4.
    static func control(_ number: UInt8) -> Int32 {
        switch number {
        case 0: place(\.cr0)
        case 2: place(\.cr2)
        case 3: place(\.cr3)
        default: place(\.cr4)
        }
    }
    static let timeStampOffset = place(\.tsc_offset)
    static let timeStampAux = place(\.tsc_aux)
    /// The entries for loads of one mode; those for stores lie behind them.
    static func tlbSet(_ mode: UInt8) -> Int32 { tlb + Int32(mode) * 2 * tlbBytes }
    /// Of one set for loads, or for stores.
    static let tlbBytes = Int32(APUS_TLB_ENTRIES) * Int32(MemoryLayout<apus_tlb_entry>.stride)
    /// How far an address goes right, and what is kept of it then, to be an entry's place in its set.
    static let tlbShift = UInt8(12 - MemoryLayout<apus_tlb_entry>.stride.trailingZeroBitCount)
    static let tlbMask = tlbBytes - Int32(MemoryLayout<apus_tlb_entry>.stride)
    static func segmentBase(_ index: UInt8) -> Int32 { Int32(APUS_SEGMENTS_OFFSET) + Int32(index) * 16 }
    static func segmentLimit(_ index: UInt8) -> Int32 { segmentBase(index) + 8 }
    static func segmentSelector(_ index: UInt8) -> Int32 { segmentBase(index) + 12 }
    static func segmentAccess(_ index: UInt8) -> Int32 { segmentBase(index) + 14 }
}
