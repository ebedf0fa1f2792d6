// What the operands of each VEX instruction on vector registers are.
// Source: Intel SDM volume 2, opcode maps (appendix A, tables) and the instruction pages.
// Modelled: AVX, AVX2, FMA, F16C, AES, VAES, (V)PCLMULQDQ, GFNI. Not modelled: EVEX, XOP, FMA4, AVX-VNNI.
// Quirks: a form that is absent here does not exist: the guest gets #UD.

internal import CProcessor

/// The operands of one VEX instruction.
struct VEXForm {
    enum Shape: UInt8 {
        /// REG from R/M.
        case load
        /// R/M from REG.
        case store
        /// REG from VEX.vvvv and R/M; with `.store`, R/M from VEX.vvvv and REG.
        case three
        /// REG from VEX.vvvv, R/M and the register that the immediate names.
        case four
        /// VEX.vvvv from R/M by an immediate; ModRM.reg extends the opcode.
        case shift
        /// Elements that a mask in VEX.vvvv selects, of memory.
        case maskedLoad, maskedStore
        /// Elements of memory at addresses with an index each.
        case gather
        /// VZEROUPPER and VZEROALL.
        case zero
    }
    var shape: Shape
    var reg: OperandKind = .xmm
    var rm: OperandKind = .xmm
    var traits: VectorForm.Traits = []
    /// Size of the memory operand with VEX.L clear and set; nil: no such form.
    var short: UInt8? = 16
    var long: UInt8? = 32
    /// VEX.L means nothing.
    var isScalar = false
    /// What VEX.W must be; nil: anything.
    var w: UInt8?
    /// VEX.W tells the elements' size.
    var usesW = false
    /// APUS_HOST_* needed, and what VEX.L set needs besides.
    var feature = Int32(truncatingIfNeeded: APUS_HOST_AVX)
    var longFeature: Int32 = 0

    init(_ shape: Shape, _ traits: VectorForm.Traits = []) { (self.shape, self.traits) = (shape, traits) }

    // MARK: Variations

    private func with(_ traits: VectorForm.Traits) -> VEXForm {
        var form = self
        form.traits.formUnion(traits)
        return form
    }
    /// Sizes of the memory operand by VEX.L.
    private func sized(_ short: UInt8?, _ long: UInt8?) -> VEXForm {
        var form = self
        (form.short, form.long) = (short, long)
        return form
    }
    private func scalar(_ bytes: UInt8) -> VEXForm {
        var form = sized(bytes, bytes)
        form.isScalar = true
        return form
    }
    private func general(reg: Bool = false, _ traits: VectorForm.Traits = []) -> VEXForm {
        var form = with(traits)
        if reg { form.reg = .general } else { form.rm = .general }
        return form
    }
    private func w(_ value: UInt8) -> VEXForm {
        var form = self
        form.w = value
        return form
    }
    private var sizedByW: VEXForm {
        var form = self
        form.usesW = true
        return form
    }
    private func needs(_ feature: Int, long: Int = 0) -> VEXForm {
        var form = self
        form.feature = Int32(truncatingIfNeeded: feature)
        form.longFeature = Int32(truncatingIfNeeded: long)
        return form
    }
    private static var load: VEXForm { VEXForm(.load) }
    private static var store: VEXForm { VEXForm(.store, .store) }
    private static var three: VEXForm { VEXForm(.three) }
    /// On integers: 256 bits wide since AVX2.
    private static var loadInteger: VEXForm { load.needs(APUS_HOST_AVX, long: APUS_HOST_AVX2) }
    private static var threeInteger: VEXForm { three.needs(APUS_HOST_AVX, long: APUS_HOST_AVX2) }
    /// PS, PD by prefix, with three operands; SS, SD.
    private static func arithmetic(_ prefix: UInt8, _ traits: VectorForm.Traits = .floating) -> VEXForm {
        switch prefix {
        case 0xF3: three.with(traits).scalar(4)
        case 0xF2: three.with(traits).scalar(8)
        default: three.with(traits)
        }
    }

    // MARK: Tables

    /// The form of a decoded instruction.
    static func of(_ insn: Insn) -> VEXForm? {
        find(
            opcode: insn.pointee.opcode, prefix: CPU.mandatoryPrefix(insn.pointee.prefixes),
            group: insn.pointee.modrm >> 3 & 7, isMemory: insn.pointee.mem != 0, w: insn.pointee.vex >> 2 & 1)
    }

    static func find(opcode: UInt16, prefix: UInt8, group: UInt8, isMemory: Bool, w: UInt8) -> VEXForm? {
        let byte = UInt8(truncatingIfNeeded: opcode)
        let found: VEXForm?
        switch Int(opcode >> 8) {
        case APUS_MAP_0F:
            switch byte {
            case 0x10...0x17, 0x28...0x2F: found = move(byte, prefix, isMemory)
            case 0x50...0x5F: found = floating(byte, prefix)
            case 0x60...0x7F: found = integerLow(byte, prefix, group)
            case 0xC2...0xC6: found = shuffle(byte, prefix)
            case 0xD0...0xFE: found = integerHigh(byte, prefix)
            default: found = nil
            }
        case APUS_MAP_0F38: found = prefix == 0x66 ? map38(byte, w, isMemory) : nil
        case APUS_MAP_0F3A: found = prefix == 0x66 ? map3A(byte) : nil
        default: found = nil
        }
        guard let form = found, form.w == nil || form.w == w else { return nil }
        if isMemory ? form.traits.contains(.registerOnly) : form.traits.contains(.memoryOnly) { return nil }
        return form
    }

    private static func move(_ byte: UInt8, _ prefix: UInt8, _ isMemory: Bool) -> VEXForm? {
        let isPacked = prefix == 0 || prefix == 0x66
        let scalar: UInt8 = prefix == 0xF3 ? 4 : 8
        switch byte {
        case 0x10: return isPacked ? load : isMemory ? load.scalar(scalar) : three.scalar(scalar)
        case 0x11: return isPacked ? store : isMemory ? store.scalar(scalar) : three.with(.store).scalar(scalar)
        case 0x12 where prefix == 0xF2: return load.sized(8, 32)
        case 0x12 where prefix == 0xF3, 0x16 where prefix == 0xF3: return load
        case 0x12 where isPacked, 0x16 where isPacked:
            return three.sized(8, nil).with(prefix == 0x66 ? .memoryOnly : [])
        case 0x13 where isPacked, 0x17 where isPacked: return store.sized(8, nil).with(.memoryOnly)
        case 0x14 where isPacked, 0x15 where isPacked: return three
        case 0x28 where isPacked: return load.with(.aligned)
        case 0x29 where isPacked: return store.with(.aligned)
        case 0x2A where !isPacked: return three.general([.floating, .generalWidth]).scalar(4)
        case 0x2B where isPacked: return store.with([.memoryOnly, .aligned])
        case 0x2C where !isPacked, 0x2D where !isPacked: return load.general(reg: true, .floating).scalar(scalar)
        case 0x2E where isPacked, 0x2F where isPacked:
            return load.with([.floating, .flags, .noResult]).scalar(prefix == 0 ? 4 : 8)
        default: return nil
        }
    }

    private static func floating(_ byte: UInt8, _ prefix: UInt8) -> VEXForm? {
        let isPacked = prefix == 0 || prefix == 0x66
        switch byte {
        case 0x50: return isPacked ? load.general(reg: true, .registerOnly) : nil
        case 0x51: return isPacked ? load.with(.floating) : arithmetic(prefix)
        case 0x52...0x53: return prefix == 0 ? load : prefix == 0xF3 ? three.scalar(4) : nil
        case 0x54...0x57: return isPacked ? three : nil
        case 0x5A where prefix == 0: return load.with(.floating).sized(8, 16)
        case 0x5A where prefix == 0x66: return load.with(.floating)
        case 0x5B: return prefix == 0xF2 ? nil : load.with(.floating)
        default: return arithmetic(prefix)
        }
    }

    private static func integerLow(_ byte: UInt8, _ prefix: UInt8, _ group: UInt8) -> VEXForm? {
        switch (byte, prefix) {
        case (0x60...0x6D, 0x66), (0x74...0x76, 0x66): return threeInteger
        case (0x6E, 0x66): return load.general(.generalWidth).sized(4, nil)
        case (0x6F, 0x66): return load.with(.aligned)
        case (0x6F, 0xF3): return load
        case (0x70, 0x66), (0x70, 0xF3), (0x70, 0xF2): return loadInteger.with(.immediate)
        case (0x71...0x73, 0x66): return shift(byte, group)
        case (0x77, 0): return VEXForm(.zero)
        case (0x7C...0x7D, 0x66), (0x7C...0x7D, 0xF2): return three.with(.floating)
        case (0x7E, 0x66): return store.general(.generalWidth).sized(4, nil)
        case (0x7E, 0xF3): return load.sized(8, nil)
        case (0x7F, 0x66): return store.with(.aligned)
        case (0x7F, 0xF3): return store
        default: return nil
        }
    }

    private static func shift(_ byte: UInt8, _ group: UInt8) -> VEXForm? {
        switch (byte, group) {
        case (0x71...0x72, 2), (0x71...0x72, 4), (0x71...0x72, 6), (0x73, 2...3), (0x73, 6...7):
            return VEXForm(.shift, [.group, .immediate, .registerOnly]).needs(APUS_HOST_AVX, long: APUS_HOST_AVX2)
        default: return nil
        }
    }

    private static func shuffle(_ byte: UInt8, _ prefix: UInt8) -> VEXForm? {
        switch (byte, prefix) {
        case (0xC2, _): return arithmetic(prefix, [.floating, .immediate])
        case (0xC4, 0x66): return three.general(.immediate).sized(2, nil)
        case (0xC5, 0x66): return load.general(reg: true, [.immediate, .registerOnly]).sized(0, nil)
        case (0xC6, 0), (0xC6, 0x66): return three.with(.immediate)
        default: return nil
        }
    }

    private static func integerHigh(_ byte: UInt8, _ prefix: UInt8) -> VEXForm? {
        switch (byte, prefix) {
        case (0xD0, 0x66), (0xD0, 0xF2): return three.with(.floating)
        case (0xD6, 0x66): return store.sized(8, nil)
        case (0xD7, 0x66):
            return load.general(reg: true, .registerOnly).needs(APUS_HOST_AVX, long: APUS_HOST_AVX2)
        case (0xE6, 0xF3): return load.with(.floating).sized(8, 16)
        case (0xE6, 0x66), (0xE6, 0xF2): return load.with(.floating)
        case (0xE7, 0x66): return store.with([.memoryOnly, .aligned])
        case (0xF0, 0xF2): return load.with(.memoryOnly)
        // Shifts by a count in an XMM register.
        case (0xD1...0xD3, 0x66), (0xE1...0xE2, 0x66), (0xF1...0xF3, 0x66): return threeInteger.sized(16, 16)
        case (0xD0, _), (0xD6...0xD7, _), (0xE6...0xE7, _), (0xF0, _), (0xF7, _): return nil
        default: return prefix == 0x66 ? threeInteger : nil
        }
    }

    private static func map38(_ byte: UInt8, _ w: UInt8, _ isMemory: Bool) -> VEXForm? {
        let avx2 = APUS_HOST_AVX2
        // Broadcasts of registers, too, came with AVX2.
        let broadcast = isMemory ? APUS_HOST_AVX : avx2
        switch byte {
        case 0x00...0x0B, 0x28...0x29, 0x2B, 0x37...0x40: return threeInteger
        case 0x0C...0x0D: return three.w(0)
        case 0x0E...0x0F: return load.with([.flags, .noResult]).w(0)
        case 0x13: return load.with(.floating).sized(8, 16).w(0).needs(APUS_HOST_F16C)
        case 0x16, 0x36: return three.sized(nil, 32).w(0).needs(avx2)
        case 0x17: return load.with([.flags, .noResult])
        case 0x18: return load.sized(4, 4).w(0).needs(broadcast)
        case 0x19: return load.sized(nil, 8).w(0).needs(broadcast)
        case 0x1A: return load.with(.memoryOnly).sized(nil, 16).w(0)
        case 0x1C...0x1E: return loadInteger
        case 0x20, 0x23, 0x25, 0x30, 0x33, 0x35: return loadInteger.sized(8, 16)
        case 0x21, 0x24, 0x31, 0x34: return loadInteger.sized(4, 8)
        case 0x22, 0x32: return loadInteger.sized(2, 4)
        case 0x2A: return loadInteger.with([.memoryOnly, .aligned])
        case 0x2C...0x2D: return VEXForm(.maskedLoad, .memoryOnly).w(0)
        case 0x2E...0x2F: return VEXForm(.maskedStore, [.memoryOnly, .store]).w(0)
        case 0x41: return load.sized(16, nil)
        case 0x45, 0x47: return three.sizedByW.needs(avx2)
        case 0x46: return three.w(0).needs(avx2)
        case 0x58: return load.sized(4, 4).w(0).needs(avx2)
        case 0x59: return load.sized(8, 8).w(0).needs(avx2)
        case 0x5A: return load.with(.memoryOnly).sized(nil, 16).w(0).needs(avx2)
        case 0x78: return load.sized(1, 1).w(0).needs(avx2)
        case 0x79: return load.sized(2, 2).w(0).needs(avx2)
        case 0x8C: return VEXForm(.maskedLoad, .memoryOnly).sizedByW.needs(avx2)
        case 0x8E: return VEXForm(.maskedStore, [.memoryOnly, .store]).sizedByW.needs(avx2)
        case 0x90...0x93: return VEXForm(.gather, .memoryOnly).sizedByW.needs(avx2)
        case 0x96...0x9F, 0xA6...0xAF, 0xB6...0xBF:
            let isScalar = byte & 8 != 0 && byte & 1 != 0
            let form = three.with(.floating).sizedByW.needs(APUS_HOST_FMA)
            return isScalar ? form.scalar(w == 0 ? 4 : 8) : form
        case 0xCF: return three.w(0).needs(APUS_HOST_GFNI)
        case 0xDB: return load.sized(16, nil).needs(APUS_HOST_AES)
        case 0xDC...0xDF: return three.needs(APUS_HOST_AES, long: APUS_HOST_VAES)
        default: return nil
        }
    }

    private static func map3A(_ byte: UInt8) -> VEXForm? {
        let avx2 = APUS_HOST_AVX2
        switch byte {
        case 0x00...0x01: return load.with(.immediate).sized(nil, 32).w(1).needs(avx2)
        case 0x02: return three.with(.immediate).w(0).needs(avx2)
        case 0x04...0x05: return load.with(.immediate).w(0)
        case 0x06: return three.with(.immediate).sized(nil, 32).w(0)
        case 0x08...0x09: return load.with([.immediate, .floating])
        case 0x0A: return three.with([.immediate, .floating]).scalar(4)
        case 0x0B: return three.with([.immediate, .floating]).scalar(8)
        case 0x0C...0x0D: return three.with(.immediate)
        case 0x0E...0x0F, 0x42: return threeInteger.with(.immediate)
        case 0x14: return store.general(.immediate).sized(1, nil)
        case 0x15: return store.general(.immediate).sized(2, nil)
        case 0x16: return store.general([.immediate, .generalWidth]).sized(4, nil)
        case 0x17: return store.general(.immediate).sized(4, nil)
        case 0x18: return three.with(.immediate).sized(nil, 16).w(0)
        case 0x19: return store.with(.immediate).sized(nil, 16).w(0)
        case 0x1D: return store.with([.immediate, .floating]).sized(8, 16).w(0).needs(APUS_HOST_F16C)
        case 0x20: return three.general(.immediate).sized(1, nil)
        case 0x21: return three.with(.immediate).sized(4, nil)
        case 0x22: return three.general([.immediate, .generalWidth]).sized(4, nil)
        case 0x38: return three.with(.immediate).sized(nil, 16).w(0).needs(avx2)
        case 0x39: return store.with(.immediate).sized(nil, 16).w(0).needs(avx2)
        case 0x40: return three.with([.immediate, .floating])
        case 0x41: return three.with([.immediate, .floating]).sized(16, nil)
        case 0x44: return three.with(.immediate).needs(APUS_HOST_PCLMUL, long: APUS_HOST_VPCLMUL)
        case 0x46: return three.with(.immediate).sized(nil, 32).w(0).needs(avx2)
        case 0x4A...0x4B: return VEXForm(.four, .immediate).w(0)
        case 0x4C: return VEXForm(.four, .immediate).w(0).needs(APUS_HOST_AVX, long: avx2)
        case 0x60...0x63: return load.with([.immediate, .flags, .string, .noResult]).sized(16, nil)
        case 0xCE...0xCF: return three.with(.immediate).w(1).needs(APUS_HOST_GFNI)
        case 0xDF: return load.with(.immediate).sized(16, nil).needs(APUS_HOST_AES)
        default: return nil
        }
    }
}
