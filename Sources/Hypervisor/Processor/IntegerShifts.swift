// Shifts and rotates, SHLD and SHRD, MUL, IMUL, DIV, IDIV, INC, DEC, NEG, NOT.
// Source: Intel SDM volume 2.
// Modelled: counts are taken modulo 32 (64 for 64-bit operands) by the host's own instruction.
// Group 2's /6 is SHL, as on every processor since the 8086.

internal import CProcessor

@inline(__always) private func shifted<T: Operand>(
    _ which: UInt8, _ a: T, _ count: UInt8, _ flags: inout UInt32
) -> T {
    switch which & 7 {
    case 0: return T.rol(a, count, &flags)
    case 1: return T.ror(a, count, &flags)
    case 2: return T.rcl(a, count, &flags)
    case 3: return T.rcr(a, count, &flags)
    case 5: return T.shr(a, count, &flags)
    case 7: return T.sar(a, count, &flags)
    default: return T.shl(a, count, &flags)
    }
}

/// The count of a group 2 instruction: an immediate, 1 or CL.
@inline(__always) private func shiftCount(_ cpu: CPU, _ insn: Insn) -> UInt8 {
    switch insn.pointee.opcode {
    case 0xC0, 0xC1: return UInt8(truncatingIfNeeded: insn.pointee.imm)
    case 0xD0, 0xD1: return 1
    default: return UInt8(truncatingIfNeeded: cpu.gpr[1])
    }
}

@inline(__always) private func shift<T: Operand>(_ cpu: CPU, _ insn: Insn, _: T.Type) -> UInt32 {
    let which = insn.pointee.modrm >> 3
    let count = shiftCount(cpu, insn)
    if insn.pointee.mem == 0 {
        var flags = cpu.pointee.arith_flags
        let a = cpu.register(insn.pointee.rm_at, T.self)
        cpu.setRegister(insn.pointee.rm_at, shifted(which, a, count, &flags))
        cpu.pointee.arith_flags = flags
        return Status.next
    }
    return cpu.attempt { () throws(Fault) in
        try cpu.modify(insn, T.self) { shifted(which, $0, count, &$1) }
    }
}

/// SHL, SHR and SAR of a register by an immediate, the shifts that compilers emit most.
@inline(__always) private func shiftImmediate<T: Operand>(
    _ cpu: CPU, _ insn: Insn, _ which: UInt8, _: T.Type
) -> UInt32 {
    var flags = cpu.pointee.arith_flags
    let a = cpu.register(insn.pointee.rm_at, T.self)
    cpu.setRegister(insn.pointee.rm_at, shifted(which, a, UInt8(truncatingIfNeeded: insn.pointee.imm), &flags))
    cpu.pointee.arith_flags = flags
    return Status.next
}

func shiftHandler(_ insn: UnsafeMutablePointer<apus_insn>) -> apus_handler {
    let size = insn.pointee.op_size
    if insn.pointee.opcode == 0xC1, insn.pointee.mem == 0, size > 2 {
        switch (insn.pointee.modrm >> 3 & 7, size) {
        case (4, 4), (6, 4): return { shiftImmediate($0, $1, 4, UInt32.self) }
        case (5, 4): return { shiftImmediate($0, $1, 5, UInt32.self) }
        case (7, 4): return { shiftImmediate($0, $1, 7, UInt32.self) }
        case (4, 8), (6, 8): return { shiftImmediate($0, $1, 4, UInt64.self) }
        case (5, 8): return { shiftImmediate($0, $1, 5, UInt64.self) }
        case (7, 8): return { shiftImmediate($0, $1, 7, UInt64.self) }
        default: break
        }
    }
    return sized(
        size, { shift($0, $1, UInt8.self) }, { shift($0, $1, UInt16.self) }, { shift($0, $1, UInt32.self) },
        { shift($0, $1, UInt64.self) })
}

@inline(__always) private func doubleShift<T: WideOperand>(_ cpu: CPU, _ insn: Insn, _: T.Type) -> UInt32 {
    let byImmediate = insn.pointee.opcode & 1 == 0
    let count = UInt8(truncatingIfNeeded: byImmediate ? insn.pointee.imm : cpu.gpr[1])
    let filler = cpu.register(insn.pointee.reg_at, T.self)
    let toLeft = insn.pointee.opcode & 8 == 0
    if insn.pointee.mem == 0 {
        var flags = cpu.pointee.arith_flags
        let a = cpu.register(insn.pointee.rm_at, T.self)
        cpu.setRegister(
            insn.pointee.rm_at, toLeft ? T.shld(a, filler, count, &flags) : T.shrd(a, filler, count, &flags))
        cpu.pointee.arith_flags = flags
        return Status.next
    }
    return cpu.attempt { () throws(Fault) in
        try cpu.modify(insn, T.self) {
            toLeft ? T.shld($0, filler, count, &$1) : T.shrd($0, filler, count, &$1)
        }
    }
}
func doubleShiftHandler(_ size: UInt8) -> apus_handler {
    sized(
        size, undefinedInstruction, { doubleShift($0, $1, UInt16.self) }, { doubleShift($0, $1, UInt32.self) },
        { doubleShift($0, $1, UInt64.self) })
}

// MARK: - INC, DEC, NEG, NOT

@inline(__always) private func step<T: Operand>(
    _ cpu: CPU, _ insn: Insn, _: T.Type, _ body: (T, inout UInt32) -> T
) -> UInt32 {
    if insn.pointee.mem == 0 {
        var flags = cpu.pointee.arith_flags
        let result = body(cpu.register(insn.pointee.rm_at, T.self), &flags)
        cpu.setRegister(insn.pointee.rm_at, result)
        cpu.pointee.arith_flags = flags
        return Status.next
    }
    return cpu.attempt { () throws(Fault) in
        if insn.pointee.prefixes & UInt8(APUS_PREFIX_LOCK) != 0 {
            try cpu.modifyLocked(insn, T.self, body)
        } else {
            try cpu.modify(insn, T.self, body)
        }
    }
}
func incrementHandler(_ size: UInt8) -> apus_handler {
    sized(
        size, { step($0, $1, UInt8.self) { UInt8.inc($0, &$1) } },
        { step($0, $1, UInt16.self) { UInt16.inc($0, &$1) } },
        { step($0, $1, UInt32.self) { UInt32.inc($0, &$1) } }, { step($0, $1, UInt64.self) { UInt64.inc($0, &$1) } })
}
func decrementHandler(_ size: UInt8) -> apus_handler {
    sized(
        size, { step($0, $1, UInt8.self) { UInt8.dec($0, &$1) } },
        { step($0, $1, UInt16.self) { UInt16.dec($0, &$1) } },
        { step($0, $1, UInt32.self) { UInt32.dec($0, &$1) } }, { step($0, $1, UInt64.self) { UInt64.dec($0, &$1) } })
}
private func negateHandler(_ size: UInt8) -> apus_handler {
    sized(
        size, { step($0, $1, UInt8.self) { UInt8.neg($0, &$1) } },
        { step($0, $1, UInt16.self) { UInt16.neg($0, &$1) } },
        { step($0, $1, UInt32.self) { UInt32.neg($0, &$1) } }, { step($0, $1, UInt64.self) { UInt64.neg($0, &$1) } })
}
private func complementHandler(_ size: UInt8) -> apus_handler {
    sized(
        size, { step($0, $1, UInt8.self) { value, _ in ~value } }, { step($0, $1, UInt16.self) { value, _ in ~value } },
        { step($0, $1, UInt32.self) { value, _ in ~value } }, { step($0, $1, UInt64.self) { value, _ in ~value } })
}

// MARK: - Multiplication and division

@inline(__always) private func source<T: Operand>(_ cpu: CPU, _ insn: Insn, _: T.Type) throws(Fault) -> T {
    insn.pointee.mem != 0 ? try cpu.loadOperand(insn, T.self) : cpu.register(insn.pointee.rm_at, T.self)
}

@inline(__always) private func multiply<T: WideOperand>(
    _ cpu: CPU, _ insn: Insn, _: T.Type, signed: Bool
) -> UInt32 {
    cpu.attempt { () throws(Fault) in
        let b = try source(cpu, insn, T.self)
        var low = cpu.register(0, T.self)
        var flags = cpu.pointee.arith_flags
        let high = signed ? T.imulwide(&low, b, &flags) : T.mulwide(&low, b, &flags)
        cpu.setRegister(0, low)
        cpu.setRegister(16, high)
        cpu.pointee.arith_flags = flags
    }
}
private let multiplyByte: apus_handler = { cpu, insn in
    cpu.attempt { () throws(Fault) in
        let b = try source(cpu, insn, UInt8.self)
        let a = cpu.register(0, UInt8.self)
        let isSigned = insn.pointee.modrm >> 3 & 7 == 5
        let result = isSigned ? apus_imulwide8(a, b) : apus_mulwide8(a, b)
        cpu.setRegister(0, result.value)
        cpu.pointee.arith_flags = result.flags
    }
}

/// DIV and IDIV of a double-width dividend; #DE when the quotient does not fit.
@inline(__always) private func divide<T: WideOperand>(
    _ cpu: CPU, _ insn: Insn, _: T.Type, signed: Bool
) -> UInt32 {
    cpu.attempt { () throws(Fault) in
        let divisor = UInt64(truncatingIfNeeded: try source(cpu, insn, T.self))
        let low = UInt64(cpu.register(0, T.self))
        let high = UInt64(cpu.register(16, T.self))
        let bits = T.bitWidth
        let isNegative = signed && high >> UInt64(bits - 1) & 1 != 0
        let byNegative = signed && divisor >> UInt64(bits - 1) & 1 != 0
        let mask = UInt64(T.max)
        // Magnitudes first; the signs come back below.
        let absoluteLow = isNegative ? (0 &- low) & mask : low
        let absoluteHigh = isNegative ? (~high &+ (low == 0 ? 1 : 0)) & mask : high
        let absoluteDivisor = byNegative ? (0 &- divisor) & mask : divisor
        guard absoluteHigh < absoluteDivisor else { throw cpu.raise(0) }
        var quotient: UInt64
        var remainder: UInt64 = 0
        if bits == 64 {
            quotient = apus_div64(absoluteHigh, absoluteLow, absoluteDivisor, &remainder)
        } else {
            let dividend = absoluteHigh &<< UInt64(bits) | absoluteLow
            quotient = dividend / absoluteDivisor
            remainder = dividend % absoluteDivisor
        }
        if signed {
            let limit = (UInt64(1) &<< UInt64(bits - 1)) &- (isNegative != byNegative ? 0 : 1)
            guard quotient <= limit else { throw cpu.raise(0) }
            if isNegative != byNegative { quotient = 0 &- quotient }
            if isNegative { remainder = 0 &- remainder }
        }
        cpu.setRegister(0, T(truncatingIfNeeded: quotient))
        cpu.setRegister(16, T(truncatingIfNeeded: remainder))
    }
}
private let divideByte: apus_handler = { cpu, insn in
    cpu.attempt { () throws(Fault) in
        let divisor = try source(cpu, insn, UInt8.self)
        let dividend = cpu.register(0, UInt16.self)
        guard divisor != 0 else { throw cpu.raise(0) }
        if insn.pointee.modrm >> 3 & 7 == 6 {
            let quotient = dividend / UInt16(divisor)
            guard quotient <= 0xFF else { throw cpu.raise(0) }
            cpu.setRegister(0, quotient | (dividend % UInt16(divisor)) << 8)
        } else {
            let a = Int32(Int16(bitPattern: dividend))
            let b = Int32(Int8(bitPattern: divisor))
            guard a / b >= -128, a / b <= 127 else { throw cpu.raise(0) }
            let quotient = UInt16(UInt8(truncatingIfNeeded: a / b))
            cpu.setRegister(0, quotient | UInt16(UInt8(truncatingIfNeeded: a % b)) << 8)
        }
    }
}

/// Group 3: TEST, NOT, NEG, MUL, IMUL, DIV, IDIV.
func group3Handler(_ insn: UnsafeMutablePointer<apus_insn>) -> apus_handler {
    let size = insn.pointee.op_size
    switch insn.pointee.modrm >> 3 & 7 {
    case 0, 1: return testHandler(insn.pointee.mem != 0 ? .storeImmediate : .immediate, size)
    case 2: return complementHandler(size)
    case 3: return negateHandler(size)
    case 4:
        return sized(
            size, multiplyByte, { multiply($0, $1, UInt16.self, signed: false) },
            { multiply($0, $1, UInt32.self, signed: false) }, { multiply($0, $1, UInt64.self, signed: false) })
    case 5:
        return sized(
            size, multiplyByte, { multiply($0, $1, UInt16.self, signed: true) },
            { multiply($0, $1, UInt32.self, signed: true) }, { multiply($0, $1, UInt64.self, signed: true) })
    case 6:
        return sized(
            size, divideByte, { divide($0, $1, UInt16.self, signed: false) },
            { divide($0, $1, UInt32.self, signed: false) }, { divide($0, $1, UInt64.self, signed: false) })
    default:
        return sized(
            size, divideByte, { divide($0, $1, UInt16.self, signed: true) },
            { divide($0, $1, UInt32.self, signed: true) }, { divide($0, $1, UInt64.self, signed: true) })
    }
}

/// IMUL of a register by a register or memory, or of those by an immediate.
@inline(__always) private func multiplyRegister<T: WideOperand>(_ cpu: CPU, _ insn: Insn, _: T.Type) -> UInt32 {
    cpu.attempt { () throws(Fault) in
        let b = try source(cpu, insn, T.self)
        var flags = cpu.pointee.arith_flags
        let a =
            insn.pointee.opcode == 0x1AF
            ? cpu.register(insn.pointee.reg_at, T.self) : T(truncatingIfNeeded: insn.pointee.imm)
        cpu.setRegister(insn.pointee.reg_at, T.imul(a, b, &flags))
        cpu.pointee.arith_flags = flags
    }
}
func multiplyRegisterHandler(_ size: UInt8) -> apus_handler {
    sized(
        size, undefinedInstruction, { multiplyRegister($0, $1, UInt16.self) },
        { multiplyRegister($0, $1, UInt32.self) }, { multiplyRegister($0, $1, UInt64.self) })
}
