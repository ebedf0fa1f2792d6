// From bytes to a decoded instruction with its handler, in 16-, 32- and 64-bit code.
// Source: Intel SDM volume 2, chapter 2 (prefixes, ModRM, SIB, REX, VEX), appendix A.
// Modelled: all lengths, the 15-byte limit, LOCK's validity, VEX; not modelled: EVEX, XOP.
// A repeated group 1 prefix: the last of F2 and F3 counts, as on the hardware.

internal import CProcessor

/// Reads an instruction's bytes and what has been learned from them.
struct Decoder {
    let bytes: UnsafePointer<UInt8>
    let available: Int
    let codeSize: UInt8
    let isProtected: Bool
    let isFlat: Bool
    var at = 0
    /// A byte behind `available` was asked for.
    var isShort = false
    var isValid = true
    var rex: UInt8 = 0
    var override: UInt8 = 0xFF

    mutating func byte() -> UInt8 {
        guard at < available else {
            isShort = true
            return 0
        }
        defer { at += 1 }
        return bytes[at]
    }
    var peek: UInt8? { at < available ? bytes[at] : nil }

    mutating func little(_ count: Int) -> UInt64 {
        var value: UInt64 = 0
        for index in 0..<count { value |= UInt64(byte()) &<< UInt64(index * 8) }
        return value
    }
    mutating func signed(_ count: Int) -> UInt64 {
        let shift = UInt64(64 - count * 8)
        return UInt64(bitPattern: Int64(bitPattern: little(count) &<< shift) &>> Int64(shift))
    }

    /// Takes legacy prefixes and REX; returns the opcode's first byte.
    mutating func prefixes(_ insn: UnsafeMutablePointer<apus_insn>) -> UInt8 {
        while true {
            let next = byte()
            if isShort { return 0 }
            switch next {
            case 0xF0: insn.pointee.prefixes |= UInt8(APUS_PREFIX_LOCK)
            case 0xF2:
                insn.pointee.prefixes &= ~UInt8(APUS_PREFIX_REP)
                insn.pointee.prefixes |= UInt8(APUS_PREFIX_REPNE)
            case 0xF3:
                insn.pointee.prefixes &= ~UInt8(APUS_PREFIX_REPNE)
                insn.pointee.prefixes |= UInt8(APUS_PREFIX_REP)
            case 0x66: insn.pointee.prefixes |= UInt8(APUS_PREFIX_66)
            case 0x67: insn.pointee.prefixes |= UInt8(APUS_PREFIX_67)
            case 0x26, 0x2E, 0x36, 0x3E:
                // 64-bit mode ignores these, also as the last of several overrides.
                if codeSize != 8 { override = next >> 3 & 3 }
                insn.pointee.prefixes |= UInt8(APUS_PREFIX_SEGMENT)
            case 0x64, 0x65:
                override = next & 7
                insn.pointee.prefixes |= UInt8(APUS_PREFIX_SEGMENT)
            case 0x40...0x4F where codeSize == 8:
                rex = next
                continue
            default: return next
            }
            rex = 0
        }
    }

    /// Takes ModRM, SIB and displacement.
    mutating func modRM(_ insn: UnsafeMutablePointer<apus_insn>, registersOnly: Bool) {
        let modrm = byte()
        insn.pointee.modrm = modrm
        insn.pointee.reg = modrm >> 3 & 7 | (rex & 4) << 1
        let mod = registersOnly ? 3 : modrm >> 6
        let rm = modrm & 7
        if mod == 3 {
            insn.pointee.rm = rm | (rex & 1) << 3
            return
        }
        insn.pointee.mem = 1
        if insn.pointee.addr_size == 2 { address16(insn, mod, rm) } else { address32(insn, mod, rm) }
    }

    private mutating func address16(_ insn: UnsafeMutablePointer<apus_insn>, _ mod: UInt8, _ rm: UInt8) {
        let none = UInt8(APUS_NO_REG)
        let pairs: (base: UInt8, index: UInt8)
        switch rm {
        case 0: pairs = (3, 6)
        case 1: pairs = (3, 7)
        case 2: pairs = (5, 6)
        case 3: pairs = (5, 7)
        case 4: pairs = (6, none)
        case 5: pairs = (7, none)
        case 6: pairs = (mod == 0 ? none : 5, none)
        default: pairs = (3, none)
        }
        (insn.pointee.base, insn.pointee.index) = pairs
        insn.pointee.segment = UInt8(pairs.base == 5 ? segmentSS : segmentDS)
        if mod == 1 {
            insn.pointee.disp = Int32(truncatingIfNeeded: signed(1))
        } else if mod == 2 || mod == 0 && rm == 6 {
            insn.pointee.disp = Int32(truncatingIfNeeded: signed(2))
        }
    }

    private mutating func address32(_ insn: UnsafeMutablePointer<apus_insn>, _ mod: UInt8, _ rm: UInt8) {
        var low = rm
        if rm == 4 {
            let sib = byte()
            insn.pointee.scale = sib >> 6
            let index = sib >> 3 & 7 | (rex & 2) << 2
            insn.pointee.index = index == 4 ? UInt8(APUS_NO_REG) : index
            low = sib & 7
        }
        let base = low | (rex & 1) << 3
        if mod == 0, low == 5 {
            insn.pointee.base = UInt8(rm == 5 && codeSize == 8 ? APUS_RIP : APUS_NO_REG)
            insn.pointee.disp = Int32(truncatingIfNeeded: signed(4))
        } else {
            insn.pointee.base = base
            if base == 4 || base == 5 { insn.pointee.segment = UInt8(segmentSS) }
            if mod == 1 { insn.pointee.disp = Int32(truncatingIfNeeded: signed(1)) }
            if mod == 2 { insn.pointee.disp = Int32(truncatingIfNeeded: signed(4)) }
        }
    }

    /// Takes a VEX prefix whose first byte is `first`; returns the opcode.
    mutating func vex(_ insn: UnsafeMutablePointer<apus_insn>, _ first: UInt8) -> (map: Int, opcode: UInt8) {
        let forbidden = APUS_PREFIX_LOCK | APUS_PREFIX_REP | APUS_PREFIX_REPNE | APUS_PREFIX_66
        if insn.pointee.prefixes & UInt8(forbidden) != 0 || rex != 0 { isValid = false }
        var second = byte()
        var map = 1
        rex = 0x40 | (~second >> 5 & 4)
        var wide: UInt8 = 0
        if first == 0xC4 {
            map = Int(second & 31)
            rex = 0x40 | (~second >> 5 & 7)
            second = byte()
            wide = second >> 7
        }
        if codeSize != 8 { rex = 0 }
        if wide != 0, codeSize == 8 { rex |= 8 }
        insn.pointee.vvvv = ~second >> 3 & (codeSize == 8 ? 15 : 7)
        insn.pointee.vex = 1 | (second >> 2 & 1) << 1 | wide << 2
        switch second & 3 {
        case 1: insn.pointee.prefixes |= UInt8(APUS_PREFIX_66)
        case 2: insn.pointee.prefixes |= UInt8(APUS_PREFIX_REP)
        case 3: insn.pointee.prefixes |= UInt8(APUS_PREFIX_REPNE)
        default: break
        }
        if map < 1 || map > 3 {
            isValid = false
            map = 1
        }
        return (map, byte())
    }

    /// Takes the opcode behind the prefixes.
    mutating func opcode(_ insn: UnsafeMutablePointer<apus_insn>, _ first: UInt8) -> (map: Int, opcode: UInt8) {
        if first == 0x0F {
            let second = byte()
            if second == 0x38 { return (2, byte()) }
            if second == 0x3A { return (3, byte()) }
            return (1, second)
        }
        if first == 0xC4 || first == 0xC5, let second = peek {
            if codeSize == 8 || isProtected && second >= 0xC0 { return vex(insn, first) }
        }
        return (0, first)
    }
}

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// Decodes the instruction at `bytes`. Length 0: it needs more than `available` bytes.
    /// `ends` tells that nothing behind it is reached by falling through.
    func decode(
        _ insn: UnsafeMutablePointer<apus_insn>, _ bytes: UnsafePointer<UInt8>, available: Int
    ) -> (length: Int, ends: Bool) {
        insn.initialize(to: .empty)
        insn.pointee.segment = UInt8(segmentDS)
        var decoder = Decoder(
            bytes: bytes, available: min(available, 15), codeSize: self.pointee.code_size,
            isProtected: self.pointee.protected_mode, isFlat: self.pointee.flat_data)
        let first = decoder.prefixes(insn)
        let (map, opcode) = decoder.opcode(insn, first)
        if decoder.isShort { return (0, true) }
        insn.pointee.opcode = UInt16(truncatingIfNeeded: map << 8) | UInt16(opcode)
        let form = decoderTables[map << 8 | Int(opcode)]
        setSizes(insn, form, decoder)
        if form.contains(.modRM) {
            decoder.modRM(insn, registersOnly: form.contains(.registersOnly))
            if map == 0 { adjustGroup(insn, opcode) }
        } else if form.contains(.register) {
            insn.pointee.rm = opcode & 7 | (decoder.rex & 1) << 3
            insn.pointee.modrm = 0xC0
        }
        takeImmediate(insn, form, &decoder)
        if decoder.isShort { return (0, true) }
        if decoder.override != 0xFF { insn.pointee.segment = decoder.override }
        setPlaces(insn, form, decoder)
        if decoder.codeSize == 8, form.contains(.not64), insn.pointee.vex == 0 { decoder.isValid = false }
        return (decoder.at, choose(insn, form, isValid: decoder.isValid))
    }

    private func setSizes(_ insn: UnsafeMutablePointer<apus_insn>, _ form: Form, _ decoder: Decoder) {
        let prefixes = insn.pointee.prefixes
        let has66 = prefixes & UInt8(APUS_PREFIX_66) != 0 && insn.pointee.vex == 0
        let has67 = prefixes & UInt8(APUS_PREFIX_67) != 0
        if decoder.rex != 0 { insn.pointee.prefixes |= UInt8(APUS_PREFIX_REX) }
        if decoder.rex & 8 != 0 { insn.pointee.prefixes |= UInt8(APUS_PREFIX_REXW) }
        switch decoder.codeSize {
        case 8:
            insn.pointee.addr_size = has67 ? 4 : 8
            insn.pointee.op_size = decoder.rex & 8 != 0 ? 8 : has66 ? 2 : 4
            if form.contains(.force64) { insn.pointee.op_size = 8 }
            if form.contains(.default64) { insn.pointee.op_size = has66 && decoder.rex & 8 == 0 ? 2 : 8 }
        case 4:
            insn.pointee.addr_size = has67 ? 2 : 4
            insn.pointee.op_size = has66 ? 2 : 4
        default:
            insn.pointee.addr_size = has67 ? 4 : 2
            insn.pointee.op_size = has66 ? 4 : 2
        }
        if form.contains(.registersOnly) { insn.pointee.op_size = decoder.codeSize == 8 ? 8 : 4 }
        if form.contains(.byte) { insn.pointee.op_size = 1 }
        insn.pointee.addr_mask =
            insn.pointee.addr_size == 8 ? .max : insn.pointee.addr_size == 4 ? 0xFFFF_FFFF : 0xFFFF
    }

    /// FF /2, /4 and /6 have the operand size of near branches and of the stack.
    private func adjustGroup(_ insn: UnsafeMutablePointer<apus_insn>, _ opcode: UInt8) {
        guard opcode == 0xFF, self.pointee.code_size == 8 else { return }
        switch insn.pointee.modrm >> 3 & 7 {
        case 2, 4: insn.pointee.op_size = 8
        case 6: insn.pointee.op_size = insn.pointee.op_size == 2 ? 2 : 8
        default: break
        }
    }

    private func takeImmediate(_ insn: UnsafeMutablePointer<apus_insn>, _ form: Form, _ decoder: inout Decoder) {
        let size = Int(insn.pointee.op_size)
        if form.contains(.byteImmediate) {
            insn.pointee.imm = form.contains(.zero) ? decoder.little(1) : decoder.signed(1)
        } else if form.contains(.immediate) {
            insn.pointee.imm = decoder.signed(immediateSize(insn, size))
        } else if form.contains(.wordImmediate) {
            insn.pointee.imm = decoder.little(2)
            if insn.pointee.opcode == 0xC8 { insn.pointee.imm |= decoder.little(1) << 16 }
        } else if form.contains(.wideImmediate) {
            insn.pointee.imm = size == 8 ? decoder.little(8) : decoder.signed(size)
        } else if form.contains(.offset) {
            insn.pointee.imm = decoder.little(Int(insn.pointee.addr_size))
        } else if form.contains(.farPointer) {
            insn.pointee.imm = decoder.little(size == 2 ? 2 : 4)
            insn.pointee.imm |= decoder.little(2) << 32
        } else if insn.pointee.opcode == 0xF6, insn.pointee.modrm >> 4 & 3 == 0 {
            insn.pointee.imm = decoder.signed(1)
        } else if insn.pointee.opcode == 0xF7, insn.pointee.modrm >> 4 & 3 == 0 {
            insn.pointee.imm = decoder.signed(min(size, 4))
        }
    }

    /// Bytes of an immediate. Near branches in 64-bit mode have 32 bits even with 66.
    private func immediateSize(_ insn: UnsafeMutablePointer<apus_insn>, _ size: Int) -> Int { min(size, 4) }

    private func setPlaces(_ insn: UnsafeMutablePointer<apus_insn>, _ form: Form, _ decoder: Decoder) {
        let isByte = insn.pointee.op_size == 1
        let hasREX = insn.pointee.prefixes & UInt8(APUS_PREFIX_REX) != 0
        insn.pointee.reg_at = registerPlace(insn.pointee.reg, isByte: isByte, hasREX: hasREX)
        insn.pointee.rm_at = registerPlace(
            insn.pointee.rm, isByte: isByte || form.contains(.byteSource), hasREX: hasREX)
        let segment = Int(insn.pointee.segment)
        if decoder.codeSize == 8 {
            insn.pointee.flat = segment < segmentFS ? 1 : 0
        } else {
            insn.pointee.flat = decoder.isFlat && segment != segmentCS && segment < segmentFS ? 1 : 0
        }
    }

    private func registerPlace(_ n: UInt8, isByte: Bool, hasREX: Bool) -> UInt8 {
        isByte && !hasREX && n >= 4 && n < 8 ? (n & 3) * 8 + 1 : (n & 15) * 8
    }

    /// Finds the handler; tells whether the block ends here.
    private func choose(_ insn: UnsafeMutablePointer<apus_insn>, _ form: Form, isValid: Bool) -> Bool {
        let isLocked = insn.pointee.prefixes & UInt8(APUS_PREFIX_LOCK) != 0
        guard isValid, !isLocked || isLockable(insn) else {
            insn.pointee.handler = undefinedInstruction
            return true
        }
        let handler =
            insn.pointee.vex != 0
            ? vectorHandler(insn) : integerHandler(insn) ?? systemHandler(insn) ?? vectorHandler(insn)
        guard let handler else {
            insn.pointee.handler = undefinedInstruction
            return true
        }
        insn.pointee.handler = handler
        if insn.pointee.vex != 0 { return false }
        if insn.pointee.opcode == 0xFF {
            let which = insn.pointee.modrm >> 3 & 7
            return which >= 2 && which <= 5
        }
        return form.contains(.ends)
    }

    /// LOCK is valid with a memory destination of these (SDM vol. 2, LOCK).
    private func isLockable(_ insn: UnsafeMutablePointer<apus_insn>) -> Bool {
        guard insn.pointee.mem != 0, insn.pointee.vex == 0 else { return false }
        let which = insn.pointee.modrm >> 3 & 7
        switch insn.pointee.opcode {
        case 0x00...0x37: return insn.pointee.opcode & 7 < 2
        case 0x80...0x83: return which != 7
        case 0x86, 0x87: return true
        case 0xF6, 0xF7: return which == 2 || which == 3
        case 0xFE, 0xFF: return which < 2
        case 0x1AB, 0x1B3, 0x1BB, 0x1B0, 0x1B1, 0x1C0, 0x1C1: return true
        case 0x1BA: return which >= 5
        case 0x1C7: return which == 1
        default: return false
        }
    }
}

/// #UD.
let undefinedInstruction: apus_handler = { cpu, _ in
    _ = cpu.raise(6)
    return Status.fault
}
