// BT, BTS, BTR, BTC, BSF, BSR, TZCNT, LZCNT, POPCNT, CMPXCHG, CMPXCHG8B/16B, XADD, ADCX, ADOX, BMI1 and BMI2.
// Source: Intel SDM volume 2.
// Modelled: bit offsets of registers reach beyond the operand; a failed CMPXCHG writes the old value back.
// The flags that BT leaves undefined keep their values, as on Intel's processors.

internal import CProcessor

// MARK: - Bit tests

/// What BT, BTS, BTR and BTC do to a bit.
@inline(__always) private func changed<T: Operand>(_ which: UInt8, _ a: T, _ bit: T) -> T {
    switch which {
    case 1: return a | bit
    case 2: return a & ~bit
    case 3: return a ^ bit
    default: return a
    }
}

@inline(__always) private func bitTest<T: Operand>(_ cpu: CPU, _ insn: Insn, _: T.Type) -> UInt32 {
    let byImmediate = insn.pointee.opcode == 0x1BA
    // A3, AB, B3, BB and BA /4 ... /7: BT, BTS, BTR, BTC.
    let which =
        byImmediate ? insn.pointee.modrm >> 3 & 3 : UInt8(truncatingIfNeeded: insn.pointee.opcode >> 3 & 3)
    let position = byImmediate ? T(truncatingIfNeeded: insn.pointee.imm) : cpu.register(insn.pointee.reg_at, T.self)
    let bit = T(1) &<< position
    if insn.pointee.mem == 0 {
        let a = cpu.register(insn.pointee.rm_at, T.self)
        if which != 0 { cpu.setRegister(insn.pointee.rm_at, changed(which, a, bit)) }
        cpu.pointee.arith_flags = cpu.pointee.arith_flags & ~1 | (a & bit != 0 ? 1 : 0)
        return Status.next
    }
    return cpu.attempt { () throws(Fault) in
        var offset = cpu.effectiveAddress(insn)
        if !byImmediate {
            // A register's offset is signed and reaches other operands of the same size.
            let shift = UInt64(64 - T.bitWidth)
            let signed = Int64(bitPattern: UInt64(truncatingIfNeeded: position) &<< shift) &>> Int64(shift)
            let element = signed &>> Int64(T.bitWidth.trailingZeroBitCount)
            let bytes = element &* Int64(MemoryLayout<T>.size)
            offset = (offset &+ UInt64(bitPattern: bytes)) & insn.pointee.addr_mask
        }
        let segment = Int(insn.pointee.segment)
        let linear = try cpu.linearAddress(segment, offset, MemoryLayout<T>.size, write: which != 0)
        var old: T = 0
        if which == 0 {
            old = try cpu.loadLinear(linear, as: T.self, segment: segment)
        } else if insn.pointee.prefixes & UInt8(APUS_PREFIX_LOCK) != 0 {
            try cpu.modifyLocked(at: linear, segment: segment, T.self) { found, _ in
                old = found
                return changed(which, found, bit)
            }
        } else {
            try cpu.modify(at: linear, segment: segment, T.self) { found, _ in
                old = found
                return changed(which, found, bit)
            }
        }
        cpu.pointee.arith_flags = cpu.pointee.arith_flags & ~1 | (old & bit != 0 ? 1 : 0)
    }
}

func bitTestHandler(_ insn: UnsafeMutablePointer<apus_insn>) -> apus_handler {
    if insn.pointee.opcode == 0x1BA, insn.pointee.modrm >> 3 & 7 < 4 { return undefinedInstruction }
    return sized(
        insn.pointee.op_size, undefinedInstruction, { bitTest($0, $1, UInt16.self) },
        { bitTest($0, $1, UInt32.self) }, { bitTest($0, $1, UInt64.self) })
}

// MARK: - Bit scans

@inline(__always) private func scan<T: WideOperand>(
    _ cpu: CPU, _ insn: Insn, _: T.Type, _ body: (T, T, inout UInt32) -> T
) -> UInt32 {
    cpu.attempt { () throws(Fault) in
        let b = insn.pointee.mem != 0 ? try cpu.loadOperand(insn, T.self) : cpu.register(insn.pointee.rm_at, T.self)
        var flags = cpu.pointee.arith_flags
        let result = body(cpu.register(insn.pointee.reg_at, T.self), b, &flags)
        cpu.pointee.arith_flags = flags
        // BSF and BSR of zero leave the whole register alone, its upper half too.
        let isBitScan = insn.pointee.opcode != 0x1B8 && insn.pointee.prefixes & UInt8(APUS_PREFIX_REP) == 0
        if b == 0, isBitScan { return }
        cpu.setRegister(insn.pointee.reg_at, result)
    }
}

/// BSF, BSR, TZCNT, LZCNT and POPCNT share opcodes; F3 tells them apart.
@inline(__always) private func scanned<T: WideOperand>(_ cpu: CPU, _ insn: Insn, _: T.Type) -> UInt32 {
    scan(cpu, insn, T.self) { a, b, flags in
        let repeated = insn.pointee.prefixes & UInt8(APUS_PREFIX_REP) != 0
        switch (insn.pointee.opcode, repeated) {
        case (0x1B8, _): return T.popcnt(a, b, &flags)
        case (0x1BC, false): return T.bsf(a, b, &flags)
        case (0x1BC, true): return T.tzcnt(a, b, &flags)
        case (_, false): return T.bsr(a, b, &flags)
        default: return T.lzcnt(a, b, &flags)
        }
    }
}
func scanHandler(_ insn: UnsafeMutablePointer<apus_insn>) -> apus_handler {
    if insn.pointee.opcode == 0x1B8, insn.pointee.prefixes & UInt8(APUS_PREFIX_REP) == 0 {
        return undefinedInstruction
    }
    return sized(
        insn.pointee.op_size, undefinedInstruction, { scanned($0, $1, UInt16.self) },
        { scanned($0, $1, UInt32.self) }, { scanned($0, $1, UInt64.self) })
}

// MARK: - CMPXCHG and XADD

@inline(__always) private func compareExchange<T: Operand>(_ cpu: CPU, _ insn: Insn, _: T.Type) -> UInt32 {
    let accumulator = cpu.register(0, T.self)
    let new = cpu.register(insn.pointee.reg_at, T.self)
    if insn.pointee.mem == 0 {
        let old = cpu.register(insn.pointee.rm_at, T.self)
        cpu.pointee.arith_flags = T.cmp(accumulator, old)
        if old == accumulator {
            cpu.setRegister(insn.pointee.rm_at, new)
        } else {
            cpu.setRegister(0, old)
        }
        return Status.next
    }
    return cpu.attempt { () throws(Fault) in
        var old: T = 0
        try cpu.modifyLocked(insn, T.self) { found, flags in
            old = found
            flags = T.cmp(accumulator, found)
            return found == accumulator ? new : found
        }
        if old != accumulator { cpu.setRegister(0, old) }
    }
}

@inline(__always) private func exchangeAdd<T: Operand>(_ cpu: CPU, _ insn: Insn, _: T.Type) -> UInt32 {
    let b = cpu.register(insn.pointee.reg_at, T.self)
    if insn.pointee.mem == 0 {
        var flags = cpu.pointee.arith_flags
        let a = cpu.register(insn.pointee.rm_at, T.self)
        let sum = T.add(a, b, &flags)
        cpu.setRegister(insn.pointee.reg_at, a)
        cpu.setRegister(insn.pointee.rm_at, sum)
        cpu.pointee.arith_flags = flags
        return Status.next
    }
    return cpu.attempt { () throws(Fault) in
        var old: T = 0
        try cpu.modifyLocked(insn, T.self) { found, flags in
            old = found
            return T.add(found, b, &flags)
        }
        cpu.setRegister(insn.pointee.reg_at, old)
    }
}

func compareExchangeHandler(_ size: UInt8) -> apus_handler {
    sized(
        size, { compareExchange($0, $1, UInt8.self) }, { compareExchange($0, $1, UInt16.self) },
        { compareExchange($0, $1, UInt32.self) }, { compareExchange($0, $1, UInt64.self) })
}
func exchangeAddHandler(_ size: UInt8) -> apus_handler {
    sized(
        size, { exchangeAdd($0, $1, UInt8.self) }, { exchangeAdd($0, $1, UInt16.self) },
        { exchangeAdd($0, $1, UInt32.self) }, { exchangeAdd($0, $1, UInt64.self) })
}

/// CMPXCHG8B: EDX:EAX against the operand, ECX:EBX into it.
let compareExchange8: apus_handler = { cpu, insn in
    cpu.attempt { () throws(Fault) in
        let expected = cpu.gpr[2] << 32 | cpu.gpr[0] & 0xFFFF_FFFF
        let new = cpu.gpr[1] << 32 | cpu.gpr[3] & 0xFFFF_FFFF
        var old: UInt64 = 0
        try cpu.modifyLocked(insn, UInt64.self) { found, _ in
            old = found
            return found == expected ? new : found
        }
        if old == expected {
            cpu.pointee.arith_flags |= 0x40
        } else {
            cpu.pointee.arith_flags &= ~0x40
            cpu.writeGPR(0, size: 4, old)
            cpu.writeGPR(2, size: 4, old >> 32)
        }
    }
}

/// CMPXCHG16B: the operand must be aligned to 16 bytes, so it lies in one page.
let compareExchange16: apus_handler = { cpu, insn in
    cpu.attempt { () throws(Fault) in
        let linear = try cpu.operandAddress(insn, 16, write: true)
        guard linear & 15 == 0 else { throw cpu.raise(13, error: 0) }
        let target = try cpu.writeTarget(linear, 16, segment: Int(insn.pointee.segment))
        var (low, high) = (cpu.gpr[0], cpu.gpr[2])
        let isEqual: Bool
        if target.low.isWritable, let host = target.low.host {
            isEqual = apus_cas128(host, &low, &high, cpu.gpr[3], cpu.gpr[1])
            if let code = target.low.code, code.pointee != 0 { cpu.codeWritten(target.low.physical, 16) }
        } else {
            var upper = target.low
            upper.physical &+= 8
            upper.host = upper.host.map { $0 + 8 }
            let found = (cpu.loadPlace(target.low, 8), cpu.loadPlace(upper, 8))
            isEqual = found.0 == low && found.1 == high
            cpu.storePlace(isEqual ? cpu.gpr[3] : found.0, target.low, 8)
            cpu.storePlace(isEqual ? cpu.gpr[1] : found.1, upper, 8)
            (low, high) = found
        }
        if isEqual {
            cpu.pointee.arith_flags |= 0x40
        } else {
            cpu.pointee.arith_flags &= ~0x40
            (cpu.gpr[0], cpu.gpr[2]) = (low, high)
        }
    }
}

// MARK: - ADCX, ADOX

/// ADCX (66) and ADOX (F3): add with one flag as carry, the others untouched.
@inline(__always) private func addCarry<T: Operand>(_ cpu: CPU, _ insn: Insn, _: T.Type) -> UInt32 {
    cpu.attempt { () throws(Fault) in
        let b = insn.pointee.mem != 0 ? try cpu.loadOperand(insn, T.self) : cpu.register(insn.pointee.rm_at, T.self)
        let flag: UInt32 = insn.pointee.prefixes & UInt8(APUS_PREFIX_66) != 0 ? 1 : 0x800
        let a = cpu.register(insn.pointee.reg_at, T.self)
        let carry: T = cpu.pointee.arith_flags & flag != 0 ? 1 : 0
        let (first, overflow1) = a.addingReportingOverflow(b)
        let (sum, overflow2) = first.addingReportingOverflow(carry)
        cpu.setRegister(insn.pointee.reg_at, sum)
        cpu.pointee.arith_flags = cpu.pointee.arith_flags & ~flag | (overflow1 || overflow2 ? flag : 0)
    }
}
func addCarryHandler(_ insn: UnsafeMutablePointer<apus_insn>) -> apus_handler {
    if insn.pointee.prefixes & UInt8(APUS_PREFIX_REXW) != 0 { return { addCarry($0, $1, UInt64.self) } }
    return { addCarry($0, $1, UInt32.self) }
}
