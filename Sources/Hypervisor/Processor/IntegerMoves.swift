// MOV, MOVZX, MOVSX, LEA, XCHG, CMOVcc, BSWAP, MOVBE, XLAT, conversions, PUSH, POP, ENTER, LEAVE.
// Source: Intel SDM volume 2.
// Modelled: all forms of general registers and memory; segment registers are in the system part.
// XCHG with memory is always atomic; CMOV loads its source even if it does not move.

internal import CProcessor

@inline(__always) private func moveRR<T: Operand>(_ cpu: CPU, _ insn: Insn, _: T.Type) -> UInt32 {
    cpu.setRegister(insn.pointee.rm_at, cpu.register(insn.pointee.reg_at, T.self))
    return Status.next
}
@inline(__always) private func moveRM<T: Operand>(_ cpu: CPU, _ insn: Insn, _: T.Type) -> UInt32 {
    cpu.attempt { () throws(Fault) in cpu.setRegister(insn.pointee.reg_at, try cpu.loadOperand(insn, T.self)) }
}
@inline(__always) private func moveMR<T: Operand>(_ cpu: CPU, _ insn: Insn, _: T.Type) -> UInt32 {
    cpu.attempt { () throws(Fault) in try cpu.storeOperand(insn, cpu.register(insn.pointee.reg_at, T.self)) }
}
@inline(__always) private func moveRI<T: Operand>(_ cpu: CPU, _ insn: Insn, _: T.Type) -> UInt32 {
    cpu.setRegister(insn.pointee.rm_at, T(truncatingIfNeeded: insn.pointee.imm))
    return Status.next
}
@inline(__always) private func moveMI<T: Operand>(_ cpu: CPU, _ insn: Insn, _: T.Type) -> UInt32 {
    cpu.attempt { () throws(Fault) in try cpu.storeOperand(insn, T(truncatingIfNeeded: insn.pointee.imm)) }
}

func moveHandler(_ form: OperandForm, _ size: UInt8) -> apus_handler {
    switch form {
    case .registers:
        return sized(
            size, { moveRR($0, $1, UInt8.self) }, { moveRR($0, $1, UInt16.self) },
            { moveRR($0, $1, UInt32.self) }, { moveRR($0, $1, UInt64.self) })
    case .load:
        return sized(
            size, { moveRM($0, $1, UInt8.self) }, { moveRM($0, $1, UInt16.self) },
            { moveRM($0, $1, UInt32.self) }, { moveRM($0, $1, UInt64.self) })
    case .store:
        return sized(
            size, { moveMR($0, $1, UInt8.self) }, { moveMR($0, $1, UInt16.self) },
            { moveMR($0, $1, UInt32.self) }, { moveMR($0, $1, UInt64.self) })
    case .immediate:
        return sized(
            size, { moveRI($0, $1, UInt8.self) }, { moveRI($0, $1, UInt16.self) },
            { moveRI($0, $1, UInt32.self) }, { moveRI($0, $1, UInt64.self) })
    case .storeImmediate:
        return sized(
            size, { moveMI($0, $1, UInt8.self) }, { moveMI($0, $1, UInt16.self) },
            { moveMI($0, $1, UInt32.self) }, { moveMI($0, $1, UInt64.self) })
    }
}

// MARK: - Extension

/// Zero- or sign-extends a source of type `S` to a register of type `T`.
@inline(__always) private func extend<S: Operand, T: Operand>(
    _ cpu: CPU, _ insn: Insn, _: S.Type, _: T.Type, signed: Bool
) -> UInt32 {
    cpu.attempt { () throws(Fault) in
        let source =
            insn.pointee.mem != 0 ? try cpu.loadOperand(insn, S.self) : cpu.register(insn.pointee.rm_at, S.self)
        var value = T(truncatingIfNeeded: source)
        if signed {
            let shift = T(truncatingIfNeeded: T.bitWidth - S.bitWidth)
            let filled = (value &<< shift)
            value = filled &>> shift
            if source >> (S.bitWidth - 1) != 0, T.bitWidth > S.bitWidth {
                value |= T.max &<< T(truncatingIfNeeded: S.bitWidth)
            }
        }
        cpu.setRegister(insn.pointee.reg_at, value)
    }
}

func extendHandler(_ opcode: UInt16, _ size: UInt8) -> apus_handler {
    switch opcode {
    case 0x1B6:
        return sized(
            size, undefinedInstruction, { extend($0, $1, UInt8.self, UInt16.self, signed: false) },
            { extend($0, $1, UInt8.self, UInt32.self, signed: false) },
            { extend($0, $1, UInt8.self, UInt64.self, signed: false) })
    case 0x1BE:
        return sized(
            size, undefinedInstruction, { extend($0, $1, UInt8.self, UInt16.self, signed: true) },
            { extend($0, $1, UInt8.self, UInt32.self, signed: true) },
            { extend($0, $1, UInt8.self, UInt64.self, signed: true) })
    case 0x1B7:
        return sized(
            size, undefinedInstruction, { extend($0, $1, UInt16.self, UInt16.self, signed: false) },
            { extend($0, $1, UInt16.self, UInt32.self, signed: false) },
            { extend($0, $1, UInt16.self, UInt64.self, signed: false) })
    case 0x1BF:
        return sized(
            size, undefinedInstruction, { extend($0, $1, UInt16.self, UInt16.self, signed: true) },
            { extend($0, $1, UInt16.self, UInt32.self, signed: true) },
            { extend($0, $1, UInt16.self, UInt64.self, signed: true) })
    default:  // MOVSXD
        return sized(
            size, undefinedInstruction, { extend($0, $1, UInt16.self, UInt16.self, signed: false) },
            { extend($0, $1, UInt32.self, UInt32.self, signed: false) },
            { extend($0, $1, UInt32.self, UInt64.self, signed: true) })
    }
}

// MARK: - LEA, XCHG, CMOV, BSWAP

@inline(__always) private func loadAddress<T: Operand>(_ cpu: CPU, _ insn: Insn, _: T.Type) -> UInt32 {
    cpu.setRegister(insn.pointee.reg_at, T(truncatingIfNeeded: cpu.effectiveAddress(insn)))
    return Status.next
}
@inline(__always) private func exchange<T: Operand>(_ cpu: CPU, _ insn: Insn, _: T.Type) -> UInt32 {
    let value = cpu.register(insn.pointee.reg_at, T.self)
    if insn.pointee.mem == 0 {
        let other = cpu.register(insn.pointee.rm_at, T.self)
        cpu.setRegister(insn.pointee.rm_at, value)
        cpu.setRegister(insn.pointee.reg_at, other)
        return Status.next
    }
    return cpu.attempt { () throws(Fault) in
        var old: T = 0
        try cpu.modifyLocked(insn, T.self) { found, _ in
            old = found
            return value
        }
        cpu.setRegister(insn.pointee.reg_at, old)
    }
}
@inline(__always) private func moveIf<T: Operand>(_ cpu: CPU, _ insn: Insn, _: T.Type) -> UInt32 {
    cpu.attempt { () throws(Fault) in
        let source =
            insn.pointee.mem != 0 ? try cpu.loadOperand(insn, T.self) : cpu.register(insn.pointee.rm_at, T.self)
        let holds = condition(UInt8(truncatingIfNeeded: insn.pointee.opcode), cpu.pointee.arith_flags)
        // A 32-bit destination has its upper half cleared either way.
        cpu.setRegister(insn.pointee.reg_at, holds ? source : cpu.register(insn.pointee.reg_at, T.self))
    }
}
@inline(__always) private func moveSwapped<T: Operand>(_ cpu: CPU, _ insn: Insn, _: T.Type) -> UInt32 {
    cpu.attempt { () throws(Fault) in
        if insn.pointee.opcode & 1 == 0 {
            cpu.setRegister(insn.pointee.reg_at, try cpu.loadOperand(insn, T.self).byteSwapped)
        } else {
            try cpu.storeOperand(insn, cpu.register(insn.pointee.reg_at, T.self).byteSwapped)
        }
    }
}

/// Handlers of single instructions that come in several sizes.
func moveLikeHandler(_ insn: UnsafeMutablePointer<apus_insn>) -> apus_handler? {
    let size = insn.pointee.op_size
    switch insn.pointee.opcode {
    case 0x8D:
        guard insn.pointee.mem != 0 else { return undefinedInstruction }
        return sized(
            size, undefinedInstruction, { loadAddress($0, $1, UInt16.self) }, { loadAddress($0, $1, UInt32.self) },
            { loadAddress($0, $1, UInt64.self) })
    case 0x86, 0x87:
        return exchangeHandler(size)
    case 0x140...0x14F:
        return sized(
            size, undefinedInstruction, { moveIf($0, $1, UInt16.self) }, { moveIf($0, $1, UInt32.self) },
            { moveIf($0, $1, UInt64.self) })
    case 0x1C8...0x1CF:
        if size == 8 {
            return { cpu, insn in
                cpu.setRegister(insn.pointee.rm_at, cpu.register(insn.pointee.rm_at, UInt64.self).byteSwapped)
                return Status.next
            }
        }
        if size == 2 {
            // Undefined by the SDM; processors clear the register.
            return { cpu, insn in
                cpu.setRegister(insn.pointee.rm_at, UInt16(0))
                return Status.next
            }
        }
        return { cpu, insn in
            cpu.setRegister(insn.pointee.rm_at, cpu.register(insn.pointee.rm_at, UInt32.self).byteSwapped)
            return Status.next
        }
    case 0x2F0, 0x2F1:
        let prefixes = insn.pointee.prefixes & UInt8(APUS_PREFIX_REPNE | APUS_PREFIX_REP)
        guard insn.pointee.mem != 0, prefixes == 0, insn.pointee.vex == 0 else { return nil }
        return sized(
            size, undefinedInstruction, { moveSwapped($0, $1, UInt16.self) }, { moveSwapped($0, $1, UInt32.self) },
            { moveSwapped($0, $1, UInt64.self) })
    case 0x1C3:
        guard insn.pointee.mem != 0, size > 2 else { return undefinedInstruction }
        return moveHandler(.store, size)
    default: return nil
    }
}

func exchangeHandler(_ size: UInt8) -> apus_handler {
    sized(
        size, { exchange($0, $1, UInt8.self) }, { exchange($0, $1, UInt16.self) }, { exchange($0, $1, UInt32.self) },
        { exchange($0, $1, UInt64.self) })
}

// MARK: - Conversions and XLAT

func conversionHandler(_ opcode: UInt16, _ size: UInt8) -> apus_handler {
    if opcode == 0x98 {
        switch size {
        case 2:
            return { cpu, _ in
                cpu.writeGPR(0, size: 2, UInt64(bitPattern: Int64(Int8(truncatingIfNeeded: cpu.gpr[0]))))
                return Status.next
            }
        case 4:
            return { cpu, _ in
                cpu.writeGPR(0, size: 4, UInt64(bitPattern: Int64(Int16(truncatingIfNeeded: cpu.gpr[0]))))
                return Status.next
            }
        default:
            return { cpu, _ in
                cpu.gpr[0] = UInt64(bitPattern: Int64(Int32(truncatingIfNeeded: cpu.gpr[0])))
                return Status.next
            }
        }
    }
    switch size {
    case 2:
        return { cpu, _ in
            cpu.writeGPR(2, size: 2, cpu.gpr[0] & 0x8000 != 0 ? 0xFFFF : 0)
            return Status.next
        }
    case 4:
        return { cpu, _ in
            cpu.writeGPR(2, size: 4, cpu.gpr[0] & 0x8000_0000 != 0 ? 0xFFFF_FFFF : 0)
            return Status.next
        }
    default:
        return { cpu, _ in
            cpu.gpr[2] = cpu.gpr[0] >> 63 != 0 ? .max : 0
            return Status.next
        }
    }
}

/// XLAT: AL = [rBX + AL].
let translateByte: apus_handler = { cpu, insn in
    cpu.attempt { () throws(Fault) in
        let offset = (cpu.gpr[3] &+ cpu.gpr[0] & 0xFF) & insn.pointee.addr_mask
        cpu.writeGPR(0, size: 1, UInt64(try cpu.load(Int(insn.pointee.segment), offset, as: UInt8.self)))
    }
}

// MARK: - Offsets

@inline(__always) private func moveOffset<T: Operand>(_ cpu: CPU, _ insn: Insn, _: T.Type) -> UInt32 {
    cpu.attempt { () throws(Fault) in
        let segment = Int(insn.pointee.segment)
        if insn.pointee.opcode < 0xA2 {
            cpu.setRegister(0, try cpu.load(segment, insn.pointee.imm, as: T.self))
        } else {
            try cpu.store(cpu.register(0, T.self), segment, insn.pointee.imm)
        }
    }
}
func offsetHandler(_ size: UInt8) -> apus_handler {
    sized(
        size, { moveOffset($0, $1, UInt8.self) }, { moveOffset($0, $1, UInt16.self) },
        { moveOffset($0, $1, UInt32.self) }, { moveOffset($0, $1, UInt64.self) })
}
