// What the operands of each MMX and SSE instruction are.
// Source: Intel SDM volume 2, opcode maps (appendix A, tables) and the instruction pages.
// Modelled: MMX, SSE to SSE4.2, AES, PCLMULQDQ, SHA, GFNI. Not modelled: 3DNow!, SSE4a, EVEX; VEX: VEXForms.swift.
// Quirks: a form that is absent here does not exist: the guest gets #UD.

internal import CProcessor

/// The operands of one vector instruction.
struct VectorForm {
    struct Traits: OptionSet {
        let rawValue: UInt16
        /// Uses MXCSR.
        static let floating = Traits(rawValue: 1)
        /// A memory operand of 16 bytes must be aligned.
        static let aligned = Traits(rawValue: 2)
        /// Writes the arithmetic flags.
        static let flags = Traits(rawValue: 4)
        /// Reads XMM0 besides its two operands.
        static let implicitXMM0 = Traits(rawValue: 8)
        static let memoryOnly = Traits(rawValue: 16)
        static let registerOnly = Traits(rawValue: 32)
        static let immediate = Traits(rawValue: 64)
        /// ModRM.reg extends the opcode.
        static let group = Traits(rawValue: 128)
        /// The R/M operand is the destination.
        static let store = Traits(rawValue: 256)
        /// The REG operand is only read.
        static let noResult = Traits(rawValue: 512)
        /// PCMPESTRI and its relatives: EAX, EDX in, ECX or XMM0 out.
        static let string = Traits(rawValue: 1024)
        /// The R/M memory operand is as wide as a general register of the operand size.
        static let generalWidth = Traits(rawValue: 2048)
    }
    var reg: OperandKind
    var rm: OperandKind
    /// Size of the memory operand.
    var bytes: UInt8
    var traits: Traits
    /// APUS_HOST_* needed; 0: every x86-64 processor has it.
    var feature: Int32 = 0

    init(_ reg: OperandKind, _ rm: OperandKind, _ bytes: UInt8, _ traits: Traits = [], _ feature: Int = 0) {
        (self.reg, self.rm, self.bytes, self.traits) = (reg, rm, bytes, traits)
        self.feature = Int32(truncatingIfNeeded: feature)
    }

    /// XMM, XMM or 16 aligned bytes.
    private static func packed(_ traits: Traits = [], _ feature: Int = 0) -> VectorForm {
        VectorForm(.xmm, .xmm, 16, traits.union(.aligned), feature)
    }
    /// XMM, XMM or a few bytes.
    private static func scalar(_ bytes: UInt8, _ traits: Traits = [], _ feature: Int = 0) -> VectorForm {
        VectorForm(.xmm, .xmm, bytes, traits, feature)
    }
    /// The MMX form without prefix, the XMM form with 66.
    private static func integer(_ prefix: UInt8, _ traits: Traits = [], _ feature: Int = 0) -> VectorForm? {
        switch prefix {
        case 0: VectorForm(.mmx, .mmx, 8, traits, feature)
        case 0x66: packed(traits, feature)
        default: nil
        }
    }
    /// PS, PD, SS, SD by prefix.
    private static func arithmetic(_ prefix: UInt8, _ traits: Traits = [.floating]) -> VectorForm {
        switch prefix {
        case 0xF3: scalar(4, traits)
        case 0xF2: scalar(8, traits)
        default: packed(traits)
        }
    }

    /// The form of a decoded instruction.
    static func of(_ insn: Insn) -> VectorForm? {
        find(
            opcode: insn.pointee.opcode, prefix: CPU.mandatoryPrefix(insn.pointee.prefixes),
            group: insn.pointee.modrm >> 3 & 7, isMemory: insn.pointee.mem != 0)
    }

    /// The form of `opcode` (map << 8 | byte) behind a mandatory prefix (0, 66, F3, F2).
    static func find(opcode: UInt16, prefix: UInt8, group: UInt8, isMemory: Bool) -> VectorForm? {
        // CVTPI2PS and CVTPI2PD from memory touch no MMX register.
        if opcode == 0x12A, prefix == 0 || prefix == 0x66, isMemory { return scalar(8, .floating) }
        let byte = UInt8(truncatingIfNeeded: opcode)
        switch Int(opcode >> 8) {
        case APUS_MAP_0F:
            switch byte {
            case 0x10...0x17, 0x28...0x2F: return move(byte, prefix)
            case 0x50...0x5F: return floating(byte, prefix)
            case 0x60...0x7F: return integerLow(byte, prefix, group)
            case 0xC2...0xC6: return shuffle(byte, prefix)
            case 0xD0...0xFE: return integerHigh(byte, prefix)
            default: return nil
            }
        case APUS_MAP_0F38: return map38(byte, prefix)
        case APUS_MAP_0F3A: return map3A(byte, prefix)
        default: return nil
        }
    }

    private static func move(_ byte: UInt8, _ prefix: UInt8) -> VectorForm? {
        let packedPrefix = prefix == 0 || prefix == 0x66
        switch (byte, prefix) {
        case (0x10, 0xF3): return scalar(4)
        case (0x10, 0xF2): return scalar(8)
        case (0x10, _): return scalar(16)
        case (0x11, 0xF3): return scalar(4, .store)
        case (0x11, 0xF2): return scalar(8, .store)
        case (0x11, _): return scalar(16, .store)
        case (0x12, 0), (0x16, 0): return scalar(8)
        case (0x12, 0x66), (0x16, 0x66): return scalar(8, .memoryOnly)
        case (0x12, 0xF3), (0x16, 0xF3): return packed([], APUS_HOST_SSE3)
        case (0x12, 0xF2): return scalar(8, [], APUS_HOST_SSE3)
        case (0x13, _) where packedPrefix, (0x17, _) where packedPrefix: return scalar(8, [.memoryOnly, .store])
        case (0x14, _) where packedPrefix, (0x15, _) where packedPrefix: return packed()
        case (0x28, _) where packedPrefix: return packed()
        case (0x29, _) where packedPrefix: return packed(.store)
        case (0x2A, _) where packedPrefix: return VectorForm(.xmm, .mmx, 8, .floating)
        case (0x2A, _): return VectorForm(.xmm, .general, 4, [.floating, .generalWidth])
        case (0x2B, _) where packedPrefix: return packed([.store, .memoryOnly])
        case (0x2C, 0), (0x2D, 0): return VectorForm(.mmx, .xmm, 8, .floating)
        case (0x2C, 0x66), (0x2D, 0x66): return VectorForm(.mmx, .xmm, 16, [.floating, .aligned])
        case (0x2C, _), (0x2D, _): return VectorForm(.general, .xmm, prefix == 0xF3 ? 4 : 8, .floating)
        case (0x2E, _) where packedPrefix, (0x2F, _) where packedPrefix:
            return scalar(prefix == 0 ? 4 : 8, [.floating, .flags, .noResult])
        default: return nil
        }
    }

    private static func floating(_ byte: UInt8, _ prefix: UInt8) -> VectorForm? {
        switch (byte, prefix) {
        case (0x50, 0), (0x50, 0x66): return VectorForm(.general, .xmm, 0, .registerOnly)
        case (0x51, _), (0x58, _), (0x59, _), (0x5C...0x5F, _): return arithmetic(prefix)
        case (0x52...0x53, 0), (0x52...0x53, 0xF3): return arithmetic(prefix, [])
        case (0x54...0x57, 0), (0x54...0x57, 0x66): return packed()
        case (0x5A, 0): return scalar(8, .floating)
        case (0x5A, _): return arithmetic(prefix)
        case (0x5B, 0), (0x5B, 0x66), (0x5B, 0xF3): return packed(.floating)
        default: return nil
        }
    }

    private static func integerLow(_ byte: UInt8, _ prefix: UInt8, _ group: UInt8) -> VectorForm? {
        switch (byte, prefix) {
        case (0x60...0x62, 0): return VectorForm(.mmx, .mmx, 4)
        case (0x60...0x6B, _), (0x74...0x76, _): return integer(prefix)
        case (0x6C...0x6D, 0x66): return packed()
        case (0x6E, 0): return VectorForm(.mmx, .general, 4, .generalWidth)
        case (0x6E, 0x66): return VectorForm(.xmm, .general, 4, .generalWidth)
        case (0x6F, 0xF3): return scalar(16)
        case (0x6F, _): return integer(prefix)
        case (0x70, 0xF3), (0x70, 0xF2): return packed(.immediate)
        case (0x70, _): return integer(prefix, .immediate)
        case (0x71...0x73, 0), (0x71...0x73, 0x66): return shift(byte, prefix, group)
        case (0x7C...0x7D, 0x66), (0x7C...0x7D, 0xF2): return packed(.floating, APUS_HOST_SSE3)
        case (0x7E, 0): return VectorForm(.mmx, .general, 4, [.generalWidth, .store])
        case (0x7E, 0x66): return VectorForm(.xmm, .general, 4, [.generalWidth, .store])
        case (0x7E, 0xF3): return scalar(8)
        case (0x7F, 0xF3): return scalar(16, .store)
        case (0x7F, _): return integer(prefix, .store)
        default: return nil
        }
    }

    /// Groups 12 to 14: shifts by an immediate.
    private static func shift(_ byte: UInt8, _ prefix: UInt8, _ group: UInt8) -> VectorForm? {
        switch (byte, group) {
        case (0x71...0x72, 2), (0x71...0x72, 4), (0x71...0x72, 6), (0x73, 2), (0x73, 6): break
        case (0x73, 3) where prefix == 0x66, (0x73, 7) where prefix == 0x66: break
        default: return nil
        }
        let kind: OperandKind = prefix == 0 ? .mmx : .xmm
        return VectorForm(.none, kind, 0, [.group, .immediate, .registerOnly, .store])
    }

    private static func shuffle(_ byte: UInt8, _ prefix: UInt8) -> VectorForm? {
        switch (byte, prefix) {
        case (0xC2, _): return arithmetic(prefix, [.floating, .immediate])
        case (0xC3, 0): return VectorForm(.general, .general, 4, [.generalWidth, .store, .memoryOnly])
        case (0xC4, 0): return VectorForm(.mmx, .general, 2, .immediate)
        case (0xC4, 0x66): return VectorForm(.xmm, .general, 2, .immediate)
        case (0xC5, 0): return VectorForm(.general, .mmx, 0, [.immediate, .registerOnly])
        case (0xC5, 0x66): return VectorForm(.general, .xmm, 0, [.immediate, .registerOnly])
        case (0xC6, 0), (0xC6, 0x66): return packed(.immediate)
        default: return nil
        }
    }

    private static func integerHigh(_ byte: UInt8, _ prefix: UInt8) -> VectorForm? {
        switch (byte, prefix) {
        case (0xD0, 0x66), (0xD0, 0xF2): return packed(.floating, APUS_HOST_SSE3)
        case (0xD0, _): return nil
        case (0xD6, 0x66): return scalar(8, .store)
        case (0xD6, 0xF3): return VectorForm(.xmm, .mmx, 0, .registerOnly)
        case (0xD6, 0xF2): return VectorForm(.mmx, .xmm, 0, .registerOnly)
        case (0xD6, _): return nil
        case (0xD7, 0): return VectorForm(.general, .mmx, 0, .registerOnly)
        case (0xD7, 0x66): return VectorForm(.general, .xmm, 0, .registerOnly)
        case (0xE6, 0xF3): return scalar(8, .floating)
        case (0xE6, 0x66), (0xE6, 0xF2): return packed(.floating)
        case (0xE6, _): return nil
        case (0xE7, _): return integer(prefix, [.store, .memoryOnly])
        case (0xF0, 0xF2): return scalar(16, .memoryOnly, APUS_HOST_SSE3)
        case (0xF0, _), (0xF7, _): return nil
        default: return integer(prefix)
        }
    }

    private static func map38(_ byte: UInt8, _ prefix: UInt8) -> VectorForm? {
        let sse41 = APUS_HOST_SSE41
        switch (byte, prefix) {
        case (0x00...0x0B, _), (0x1C...0x1E, _): return integer(prefix, [], APUS_HOST_SSSE3)
        case (0x10, 0x66), (0x14, 0x66), (0x15, 0x66): return packed(.implicitXMM0, sse41)
        case (0x17, 0x66): return packed([.flags, .noResult], sse41)
        case (0x20, 0x66), (0x23, 0x66), (0x25, 0x66), (0x30, 0x66), (0x33, 0x66), (0x35, 0x66):
            return scalar(8, [], sse41)
        case (0x21, 0x66), (0x24, 0x66), (0x31, 0x66), (0x34, 0x66): return scalar(4, [], sse41)
        case (0x22, 0x66), (0x32, 0x66): return scalar(2, [], sse41)
        case (0x28...0x29, 0x66), (0x2B, 0x66), (0x38...0x41, 0x66): return packed([], sse41)
        case (0x2A, 0x66): return packed(.memoryOnly, sse41)
        case (0x37, 0x66): return packed([], APUS_HOST_SSE42)
        case (0xC8...0xCA, 0), (0xCC...0xCD, 0): return packed([], APUS_HOST_SHA)
        case (0xCB, 0): return packed(.implicitXMM0, APUS_HOST_SHA)
        case (0xCF, 0x66): return packed([], APUS_HOST_GFNI)
        case (0xDB...0xDF, 0x66): return packed([], APUS_HOST_AES)
        default: return nil
        }
    }

    private static func map3A(_ byte: UInt8, _ prefix: UInt8) -> VectorForm? {
        let sse41 = APUS_HOST_SSE41
        if byte == 0x0F { return integer(prefix, .immediate, APUS_HOST_SSSE3) }
        if byte == 0xCC, prefix == 0 { return packed(.immediate, APUS_HOST_SHA) }
        guard prefix == 0x66 else { return nil }
        switch byte {
        case 0x08, 0x09: return packed([.floating, .immediate], sse41)
        case 0x0A: return scalar(4, [.floating, .immediate], sse41)
        case 0x0B: return scalar(8, [.floating, .immediate], sse41)
        case 0x0C...0x0E, 0x42: return packed(.immediate, sse41)
        case 0x14: return VectorForm(.xmm, .general, 1, [.store, .immediate], sse41)
        case 0x15: return VectorForm(.xmm, .general, 2, [.store, .immediate], sse41)
        case 0x16: return VectorForm(.xmm, .general, 4, [.store, .immediate, .generalWidth], sse41)
        case 0x17: return VectorForm(.xmm, .general, 4, [.store, .immediate], sse41)
        case 0x20: return VectorForm(.xmm, .general, 1, .immediate, sse41)
        case 0x21: return scalar(4, .immediate, sse41)
        case 0x22: return VectorForm(.xmm, .general, 4, [.immediate, .generalWidth], sse41)
        case 0x40, 0x41: return packed([.floating, .immediate], sse41)
        case 0x44: return packed(.immediate, APUS_HOST_PCLMUL)
        case 0x60...0x63: return VectorForm(.xmm, .xmm, 16, [.immediate, .flags, .string, .noResult], APUS_HOST_SSE42)
        case 0xCE, 0xCF: return packed(.immediate, APUS_HOST_GFNI)
        case 0xDF: return packed(.immediate, APUS_HOST_AES)
        default: return nil
        }
    }
}
