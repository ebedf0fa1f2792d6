// BMI1 and BMI2: the VEX-encoded instructions on general registers.
// Source: Intel SDM volume 2 (ANDN, BEXTR, BLSI, BLSMSK, BLSR, BZHI, MULX, PDEP, PEXT, RORX, SARX, SHLX, SHRX).
// Modelled: 32- and 64-bit forms, if the host has BMI1 and BMI2: PDEP and PEXT are its own.
// VEX.L must be 0; in real and virtual-8086 mode these are #UD.

internal import CProcessor

@inline(__always) private func source<T: Operand>(_ cpu: CPU, _ insn: Insn, _: T.Type) throws(Fault) -> T {
    insn.pointee.mem != 0 ? try cpu.loadOperand(insn, T.self) : cpu.register(insn.pointee.rm_at, T.self)
}

/// ZF and SF of a result, the other flags clear, CF as given.
@inline(__always) private func setFlags<T: Operand>(_ cpu: CPU, _ result: T, carry: Bool) {
    var flags: UInt32 = carry ? 1 : 0
    if result == 0 { flags |= 0x40 }
    if result >> (T.bitWidth - 1) != 0 { flags |= 0x80 }
    cpu.pointee.arith_flags = flags
}

@inline(__always) private func execute<T: Operand>(_ cpu: CPU, _ insn: Insn, _: T.Type) -> UInt32 {
    cpu.attempt { () throws(Fault) in
        let a = try source(cpu, insn, T.self)
        let other = cpu.register(insn.pointee.vvvv &* 8, T.self)
        let bits = T(truncatingIfNeeded: T.bitWidth)
        switch insn.pointee.opcode {
        case 0x2F2:
            let result = ~other & a
            setFlags(cpu, result, carry: false)
            cpu.setRegister(insn.pointee.reg_at, result)
        case 0x2F3:
            let result: T
            let carry: Bool
            switch insn.pointee.modrm >> 3 & 7 {
            case 1: (result, carry) = (a & (a &- 1), a == 0)
            case 2: (result, carry) = (a ^ (a &- 1), a == 0)
            default: (result, carry) = (a & (0 &- a), a != 0)
            }
            setFlags(cpu, result, carry: carry)
            cpu.setRegister(insn.pointee.vvvv &* 8, result)
        case 0x2F7: try shiftOrExtract(cpu, insn, a, other)
        case 0x2F5: bitField(cpu, insn, a, other)
        case 0x2F6:
            let product = cpu.register(16, T.self).multipliedFullWidth(by: a)
            cpu.setRegister(insn.pointee.vvvv &* 8, T(truncatingIfNeeded: product.low))
            cpu.setRegister(insn.pointee.reg_at, product.high)
        default:
            let count = T(truncatingIfNeeded: insn.pointee.imm) & (bits &- 1)
            cpu.setRegister(insn.pointee.reg_at, a &>> count | a &<< ((bits &- count) & (bits &- 1)))
        }
    }
}

/// BEXTR, SHLX, SARX, SHRX, told apart by the prefix.
@inline(__always) private func shiftOrExtract<T: Operand>(
    _ cpu: CPU, _ insn: Insn, _ a: T, _ other: T
) throws(Fault) {
    let prefixes = insn.pointee.prefixes
    if prefixes & UInt8(APUS_PREFIX_66) != 0 {
        cpu.setRegister(insn.pointee.reg_at, a &<< other)
    } else if prefixes & UInt8(APUS_PREFIX_REPNE) != 0 {
        cpu.setRegister(insn.pointee.reg_at, a &>> other)
    } else if prefixes & UInt8(APUS_PREFIX_REP) != 0 {
        let filled: T = a >> (T.bitWidth - 1) != 0 ? ~(T.max &>> other) : 0
        cpu.setRegister(insn.pointee.reg_at, a &>> other | filled)
    } else {
        let start = other & 0xFF
        let length = other >> 8 & 0xFF
        var result: T = start < T(truncatingIfNeeded: T.bitWidth) ? a &>> start : 0
        if length < T(truncatingIfNeeded: T.bitWidth) { result &= (T(1) &<< length) &- 1 }
        cpu.pointee.arith_flags = result == 0 ? 0x40 : 0
        cpu.setRegister(insn.pointee.reg_at, result)
    }
}

/// BZHI, PDEP, PEXT.
@inline(__always) private func bitField<T: Operand>(_ cpu: CPU, _ insn: Insn, _ a: T, _ other: T) {
    let prefixes = insn.pointee.prefixes
    if prefixes & UInt8(APUS_PREFIX_REPNE) != 0 {
        cpu.setRegister(
            insn.pointee.reg_at,
            T(truncatingIfNeeded: apus_pdep(UInt64(truncatingIfNeeded: other), UInt64(truncatingIfNeeded: a))))
    } else if prefixes & UInt8(APUS_PREFIX_REP) != 0 {
        cpu.setRegister(
            insn.pointee.reg_at,
            T(truncatingIfNeeded: apus_pext(UInt64(truncatingIfNeeded: other), UInt64(truncatingIfNeeded: a))))
    } else {
        let count = other & 0xFF
        let isWhole = count >= T(truncatingIfNeeded: T.bitWidth)
        let result = isWhole ? a : a & ((T(1) &<< count) &- 1)
        setFlags(cpu, result, carry: isWhole)
        cpu.setRegister(insn.pointee.reg_at, result)
    }
}

/// The handler of a VEX instruction on general registers; nil when it is none.
func vexHandler(_ insn: UnsafeMutablePointer<apus_insn>) -> apus_handler? {
    guard insn.pointee.vex & 2 == 0 else { return nil }
    let prefixes = insn.pointee.prefixes & UInt8(APUS_PREFIX_66 | APUS_PREFIX_REP | APUS_PREFIX_REPNE)
    let which = insn.pointee.modrm >> 3 & 7
    let isKnown: Bool
    switch insn.pointee.opcode {
    case 0x2F2: isKnown = prefixes == 0
    case 0x2F3: isKnown = prefixes == 0 && which >= 1 && which <= 3
    case 0x2F5: isKnown = prefixes != UInt8(APUS_PREFIX_66)
    case 0x2F6: isKnown = prefixes == UInt8(APUS_PREFIX_REPNE)
    case 0x3F0: isKnown = prefixes == UInt8(APUS_PREFIX_REPNE) && insn.pointee.vvvv == 0
    case 0x2F7: isKnown = true
    default: isKnown = false
    }
    // ANDN, BLSI and its like, BEXTR came with BMI1.
    let isFirst = insn.pointee.opcode <= 0x2F3 || insn.pointee.opcode == 0x2F7 && prefixes == 0
    guard isKnown, apus_host_features() & UInt32(isFirst ? APUS_HOST_BMI1 : APUS_HOST_BMI2) != 0 else { return nil }
    insn.pointee.vector = UInt8(APUS_NATIVE_GENERAL)
    if insn.pointee.prefixes & UInt8(APUS_PREFIX_REXW) != 0 { return { execute($0, $1, UInt64.self) } }
    return { execute($0, $1, UInt32.self) }
}
