// Jcc, JMP, CALL, RET, LOOP, JCXZ, SETcc, PUSH, POP, PUSHA, POPA, ENTER, LEAVE.
// Source: Intel SDM volume 2; near transfers only, far ones are in the system part.
// Modelled: targets are checked against CS's limit, or for canonical form, before anything changes.
// 66 on a near branch in 64-bit mode is ignored, as Intel's processors do.

internal import CProcessor

/// Whether condition `code` (opcode bits 3-0) holds. SDM vol. 1 appendix B.
@inline(__always) func condition(_ code: UInt8, _ flags: UInt32) -> Bool {
    let holds: Bool
    switch code >> 1 & 7 {
    case 0: holds = flags & 0x800 != 0
    case 1: holds = flags & 1 != 0
    case 2: holds = flags & 0x40 != 0
    case 3: holds = flags & 0x41 != 0
    case 4: holds = flags & 0x80 != 0
    case 5: holds = flags & 4 != 0
    case 6: holds = (flags >> 4 ^ flags) & 0x80 != 0
    default: holds = (flags >> 4 ^ flags) & 0x80 != 0 || flags & 0x40 != 0
    }
    return holds != (code & 1 != 0)
}

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// The operand size's part of an instruction pointer.
    @inline(__always) func pointerMask(_ size: UInt8) -> UInt64 {
        size == 8 ? .max : size == 4 ? 0xFFFF_FFFF : 0xFFFF
    }

    /// Throws #GP(0) unless a near transfer may go to `target`.
    @inline(__always) func checkTarget(_ target: UInt64) throws(Fault) {
        if self.pointee.code_size == 8 {
            if UInt64(bitPattern: Int64(bitPattern: target &<< 16) &>> 16) != target { throw raise(13, error: 0) }
        } else if target > UInt64(segmentPointer(segmentCS).pointee.limit) {
            throw raise(13, error: 0)
        }
    }

    /// Where a relative branch leads.
    @inline(__always) func relativeTarget(_ insn: Insn) -> UInt64 {
        (self.pointee.rip &+ UInt64(insn.pointee.next) &+ insn.pointee.imm) & pointerMask(insn.pointee.op_size)
    }

    /// Takes a relative branch.
    @inline(__always) func branch(_ insn: Insn) -> UInt32 {
        let target = relativeTarget(insn)
        do throws(Fault) { try checkTarget(target) } catch { return Status.fault }
        self.pointee.rip = target
        return Status.jump
    }

    /// RIP behind the instruction.
    @inline(__always) func nextRIP(_ insn: Insn) -> UInt64 {
        (self.pointee.rip &+ UInt64(insn.pointee.next)) & pointerMask(insn.pointee.op_size)
    }
}

@inline(__always) private func jumpIf(_ cpu: CPU, _ insn: Insn, _ code: UInt8) -> UInt32 {
    guard condition(code, cpu.pointee.arith_flags) else { return Status.next }
    return cpu.branch(insn)
}

func conditionalHandler(_ opcode: UInt16) -> apus_handler {
    switch opcode & 15 {
    case 0: return { jumpIf($0, $1, 0) }
    case 1: return { jumpIf($0, $1, 1) }
    case 2: return { jumpIf($0, $1, 2) }
    case 3: return { jumpIf($0, $1, 3) }
    case 4: return { jumpIf($0, $1, 4) }
    case 5: return { jumpIf($0, $1, 5) }
    case 6: return { jumpIf($0, $1, 6) }
    case 7: return { jumpIf($0, $1, 7) }
    case 8: return { jumpIf($0, $1, 8) }
    case 9: return { jumpIf($0, $1, 9) }
    case 10: return { jumpIf($0, $1, 10) }
    case 11: return { jumpIf($0, $1, 11) }
    case 12: return { jumpIf($0, $1, 12) }
    case 13: return { jumpIf($0, $1, 13) }
    case 14: return { jumpIf($0, $1, 14) }
    default: return { jumpIf($0, $1, 15) }
    }
}

let setIf: apus_handler = { cpu, insn in
    cpu.attempt { () throws(Fault) in
        let value: UInt8 =
            condition(UInt8(truncatingIfNeeded: insn.pointee.opcode), cpu.pointee.arith_flags) ? 1 : 0
        if insn.pointee.mem != 0 {
            try cpu.storeOperand(insn, value)
        } else {
            cpu.setRegister(insn.pointee.rm_at, value)
        }
    }
}

let jumpRelative: apus_handler = { cpu, insn in cpu.branch(insn) }

/// LOOPNE, LOOPE, LOOP and JCXZ; the address size says how wide the counter is.
let loopBranch: apus_handler = { cpu, insn in
    let mask = insn.pointee.addr_mask
    var count = cpu.gpr[1] & mask
    let isZero = cpu.pointee.arith_flags & 0x40 != 0
    let taken: Bool
    if insn.pointee.opcode == 0xE3 {
        taken = count == 0
    } else {
        count = (count &- 1) & mask
        taken =
            count != 0 && (insn.pointee.opcode == 0xE2 || isZero == (insn.pointee.opcode == 0xE1))
    }
    if taken {
        do throws(Fault) { try cpu.checkTarget(cpu.relativeTarget(insn)) } catch { return Status.fault }
    }
    if insn.pointee.opcode != 0xE3 { cpu.writeGPR(1, size: insn.pointee.addr_size, count) }
    return taken ? cpu.branch(insn) : Status.next
}

// MARK: - Calls and returns

@inline(__always) private func call<T: Operand>(_ cpu: CPU, _ insn: Insn, _ target: UInt64, _: T.Type) -> UInt32 {
    do throws(Fault) {
        try cpu.checkTarget(target)
        try cpu.push(T(truncatingIfNeeded: cpu.nextRIP(insn)))
    } catch { return Status.fault }
    cpu.pointee.rip = target
    return Status.jump
}
@inline(__always) private func callRelative<T: Operand>(_ cpu: CPU, _ insn: Insn, _: T.Type) -> UInt32 {
    call(cpu, insn, cpu.relativeTarget(insn), T.self)
}
@inline(__always) private func callIndirect<T: Operand>(_ cpu: CPU, _ insn: Insn, _: T.Type) -> UInt32 {
    do throws(Fault) {
        let target =
            insn.pointee.mem != 0 ? try cpu.loadOperand(insn, T.self) : cpu.register(insn.pointee.rm_at, T.self)
        return call(cpu, insn, UInt64(target), T.self)
    } catch { return Status.fault }
}
@inline(__always) private func jumpIndirect<T: Operand>(_ cpu: CPU, _ insn: Insn, _: T.Type) -> UInt32 {
    do throws(Fault) {
        let target =
            insn.pointee.mem != 0 ? try cpu.loadOperand(insn, T.self) : cpu.register(insn.pointee.rm_at, T.self)
        try cpu.checkTarget(UInt64(target))
        cpu.pointee.rip = UInt64(target)
        return Status.jump
    } catch { return Status.fault }
}
@inline(__always) private func returnNear<T: Operand>(_ cpu: CPU, _ insn: Insn, _: T.Type) -> UInt32 {
    do throws(Fault) {
        let pointer = cpu.stackPointer
        let target = UInt64(try cpu.load(segmentSS, pointer, as: T.self))
        try cpu.checkTarget(target)
        cpu.stackPointer = cpu.stackOffset(
            pointer, MemoryLayout<T>.size &+ Int(truncatingIfNeeded: insn.pointee.imm & 0xFFFF))
        cpu.pointee.rip = target
        return Status.jump
    } catch { return Status.fault }
}

func callHandler(_ size: UInt8) -> apus_handler {
    sized(
        size, undefinedInstruction, { callRelative($0, $1, UInt16.self) }, { callRelative($0, $1, UInt32.self) },
        { callRelative($0, $1, UInt64.self) })
}
func callIndirectHandler(_ size: UInt8) -> apus_handler {
    sized(
        size, undefinedInstruction, { callIndirect($0, $1, UInt16.self) }, { callIndirect($0, $1, UInt32.self) },
        { callIndirect($0, $1, UInt64.self) })
}
func jumpIndirectHandler(_ size: UInt8) -> apus_handler {
    sized(
        size, undefinedInstruction, { jumpIndirect($0, $1, UInt16.self) }, { jumpIndirect($0, $1, UInt32.self) },
        { jumpIndirect($0, $1, UInt64.self) })
}
func returnHandler(_ size: UInt8) -> apus_handler {
    sized(
        size, undefinedInstruction, { returnNear($0, $1, UInt16.self) }, { returnNear($0, $1, UInt32.self) },
        { returnNear($0, $1, UInt64.self) })
}

// MARK: - Stack

@inline(__always) private func pushRegister<T: Operand>(_ cpu: CPU, _ insn: Insn, _: T.Type) -> UInt32 {
    cpu.attempt { () throws(Fault) in try cpu.push(cpu.register(insn.pointee.rm_at, T.self)) }
}
@inline(__always) private func pushImmediate<T: Operand>(_ cpu: CPU, _ insn: Insn, _: T.Type) -> UInt32 {
    cpu.attempt { () throws(Fault) in try cpu.push(T(truncatingIfNeeded: insn.pointee.imm)) }
}
@inline(__always) private func pushMemory<T: Operand>(_ cpu: CPU, _ insn: Insn, _: T.Type) -> UInt32 {
    cpu.attempt { () throws(Fault) in try cpu.push(try cpu.loadOperand(insn, T.self)) }
}
@inline(__always) private func popRegister<T: Operand>(_ cpu: CPU, _ insn: Insn, _: T.Type) -> UInt32 {
    cpu.attempt { () throws(Fault) in cpu.setRegister(insn.pointee.rm_at, try cpu.pop(T.self)) }
}
/// POP to memory: an address that uses rSP sees it as the pop leaves it.
@inline(__always) private func popMemory<T: Operand>(_ cpu: CPU, _ insn: Insn, _: T.Type) -> UInt32 {
    let before = cpu.gpr[4]
    do throws(Fault) {
        let value = try cpu.pop(T.self)
        try cpu.storeOperand(insn, value)
        return Status.next
    } catch {
        cpu.gpr[4] = before
        return Status.fault
    }
}

func pushHandler(_ insn: UnsafeMutablePointer<apus_insn>) -> apus_handler {
    let size = insn.pointee.op_size
    if insn.pointee.opcode == 0x68 || insn.pointee.opcode == 0x6A {
        return sized(
            size, undefinedInstruction, { pushImmediate($0, $1, UInt16.self) },
            { pushImmediate($0, $1, UInt32.self) }, { pushImmediate($0, $1, UInt64.self) })
    }
    if insn.pointee.mem != 0 {
        return sized(
            size, undefinedInstruction, { pushMemory($0, $1, UInt16.self) }, { pushMemory($0, $1, UInt32.self) },
            { pushMemory($0, $1, UInt64.self) })
    }
    return sized(
        size, undefinedInstruction, { pushRegister($0, $1, UInt16.self) }, { pushRegister($0, $1, UInt32.self) },
        { pushRegister($0, $1, UInt64.self) })
}
func popHandler(_ insn: UnsafeMutablePointer<apus_insn>) -> apus_handler {
    let size = insn.pointee.op_size
    if insn.pointee.mem != 0 {
        return sized(
            size, undefinedInstruction, { popMemory($0, $1, UInt16.self) }, { popMemory($0, $1, UInt32.self) },
            { popMemory($0, $1, UInt64.self) })
    }
    return sized(
        size, undefinedInstruction, { popRegister($0, $1, UInt16.self) }, { popRegister($0, $1, UInt32.self) },
        { popRegister($0, $1, UInt64.self) })
}

/// PUSHA: eight registers, checked as one store before any is written.
let pushAll: apus_handler = { cpu, insn in
    cpu.attempt { () throws(Fault) in
        let size = insn.pointee.op_size
        let original = cpu.gpr[4]
        do throws(Fault) {
            for register in 0..<8 {
                try cpu.push(register == 4 ? original : cpu.gpr[register], size: size)
            }
        } catch {
            cpu.gpr[4] = original
            throw error
        }
    }
}
/// POPA: rSP's own slot is skipped.
let popAll: apus_handler = { cpu, insn in
    cpu.attempt { () throws(Fault) in
        let size = insn.pointee.op_size
        let original = cpu.gpr[4]
        var values: (UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0, 0, 0, 0, 0)
        do throws(Fault) {
            values.7 = try cpu.pop(size: size)
            values.6 = try cpu.pop(size: size)
            values.5 = try cpu.pop(size: size)
            values.4 = try cpu.pop(size: size)
            values.3 = try cpu.pop(size: size)
            values.2 = try cpu.pop(size: size)
            values.1 = try cpu.pop(size: size)
            values.0 = try cpu.pop(size: size)
        } catch {
            cpu.gpr[4] = original
            throw error
        }
        cpu.writeGPR(7, size: size, values.7)
        cpu.writeGPR(6, size: size, values.6)
        cpu.writeGPR(5, size: size, values.5)
        cpu.writeGPR(3, size: size, values.3)
        cpu.writeGPR(2, size: size, values.2)
        cpu.writeGPR(1, size: size, values.1)
        cpu.writeGPR(0, size: size, values.0)
    }
}

/// ENTER: frame pointer, up to 31 frame pointers of enclosing procedures, locals.
let enterFrame: apus_handler = { cpu, insn in
    cpu.attempt { () throws(Fault) in
        let size = insn.pointee.op_size
        let level = Int(truncatingIfNeeded: insn.pointee.imm >> 16 & 31)
        let locals = Int(truncatingIfNeeded: insn.pointee.imm & 0xFFFF)
        let (stack, frame) = (cpu.gpr[4], cpu.gpr[5])
        do throws(Fault) {
            try cpu.push(frame, size: size)
            let pointer = cpu.gpr[4]
            if level > 0 {
                var place = frame
                for _ in 1..<max(level, 1) {
                    place = cpu.stackOffset(place, -Int(size))
                    let outer: UInt64
                    switch size {
                    case 2: outer = UInt64(try cpu.load(segmentSS, place, as: UInt16.self))
                    case 4: outer = UInt64(try cpu.load(segmentSS, place, as: UInt32.self))
                    default: outer = try cpu.load(segmentSS, place, as: UInt64.self)
                    }
                    try cpu.push(outer, size: size)
                }
                try cpu.push(pointer, size: size)
            }
            let bottom = cpu.stackOffset(cpu.gpr[4], -locals)
            // The SDM has a store to the new top fault before anything changes.
            try cpu.probeWrite(segmentSS, bottom, Int(size))
            cpu.stackPointer = bottom
            cpu.writeGPR(5, size: size, pointer)
        } catch {
            (cpu.gpr[4], cpu.gpr[5]) = (stack, frame)
            throw error
        }
    }
}
let leaveFrame: apus_handler = { cpu, insn in
    let stack = cpu.gpr[4]
    do throws(Fault) {
        cpu.stackPointer = cpu.gpr[5]
        cpu.writeGPR(5, size: insn.pointee.op_size, try cpu.pop(size: insn.pointee.op_size))
        return Status.next
    } catch {
        cpu.gpr[4] = stack
        return Status.fault
    }
}
