// The generic bodies of two-operand instructions: where operands come from and where results go.
// Source: Intel SDM volume 2, chapter 3 (operand forms), LOCK prefix.
// Modelled: stores that fault leave registers and flags alone; LOCK is atomic on host memory.
// A locked access that crosses a page, or lies in no RAM, is atomic towards others of its kind only.

internal import CProcessor

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// Runs a body that may fault.
    @inline(__always) func attempt(_ body: () throws(Fault) -> Void) -> UInt32 {
        do throws(Fault) {
            try body()
            return Status.next
        } catch {
            return Status.fault
        }
    }

    /// Replaces the memory operand by what `body` makes of it and of the flags.
    @inline(__always) func modify<T: Operand>(
        _ insn: Insn, _: T.Type, _ body: (T, inout UInt32) -> T
    ) throws(Fault) {
        let linear = try operandAddress(insn, MemoryLayout<T>.size, write: true)
        try modify(at: linear, segment: Int(insn.pointee.segment), T.self, body)
    }
    @inline(__always) func modify<T: Operand>(
        at linear: UInt64, segment: Int, _: T.Type, _ body: (T, inout UInt32) -> T
    ) throws(Fault) {
        var flags = self.pointee.arith_flags
        if let host = lookUp(self.pointee.tlb_write, linear, T.self) {
            let result = body(host.loadUnaligned(as: T.self), &flags)
            host.storeBytes(of: result, as: T.self)
        } else {
            let target = try writeTarget(linear, MemoryLayout<T>.size, segment: segment)
            let result = body(T(truncatingIfNeeded: load(from: target)), &flags)
            store(UInt64(truncatingIfNeeded: result), to: target)
        }
        self.pointee.arith_flags = flags
    }

    /// The same in one atomic step, as LOCK asks.
    @inline(__always) func modifyLocked<T: Operand>(
        _ insn: Insn, _: T.Type, _ body: (T, inout UInt32) -> T
    ) throws(Fault) {
        let linear = try operandAddress(insn, MemoryLayout<T>.size, write: true)
        try modifyLocked(at: linear, segment: Int(insn.pointee.segment), T.self, body)
    }
    @inline(__always) func modifyLocked<T: Operand>(
        at linear: UInt64, segment: Int, _: T.Type, _ body: (T, inout UInt32) -> T
    ) throws(Fault) {
        var host = lookUp(self.pointee.tlb_write, linear, T.self)
        var target: WriteTarget?
        if host == nil {
            let found = try writeTarget(linear, MemoryLayout<T>.size, segment: segment)
            target = found
            if found.high == nil, found.low.isWritable { host = found.low.host }
        }
        if let host {
            var old = host.loadUnaligned(as: T.self)
            while true {
                var flags = self.pointee.arith_flags
                let result = body(old, &flags)
                if T.exchange(host, &old, result) {
                    self.pointee.arith_flags = flags
                    break
                }
            }
            if let low = target?.low, let code = low.code, code.pointee != 0 {
                codeWritten(low.physical, UInt64(MemoryLayout<T>.size))
            }
        } else if let target {
            lockBus()
            defer { unlockBus() }
            var flags = self.pointee.arith_flags
            let result = body(T(truncatingIfNeeded: load(from: target)), &flags)
            store(UInt64(truncatingIfNeeded: result), to: target)
            self.pointee.arith_flags = flags
        }
    }
}

/// Where a store goes that the TLB did not know: one page, or two.
struct WriteTarget {
    var low: Place
    var high: Place?
    /// Bytes in the first page.
    var first: Int
    var bytes: Int
}

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// Translates for a store; from here on it cannot fault.
    @inline(never) func writeTarget(_ linear: UInt64, _ bytes: Int, segment: Int) throws(Fault) -> WriteTarget {
        let (low, high) = try writePlaces(linear, bytes, segment: segment)
        let first = min(bytes, 4096 - Int(truncatingIfNeeded: linear & 0xFFF))
        return WriteTarget(low: low, high: high, first: first, bytes: bytes)
    }
    /// Held around a locked access that the host cannot make in one.
    @inline(never) func lockBus() { engine.pointee.map.engines.lockBus() }
    @inline(never) func unlockBus() { engine.pointee.map.engines.unlockBus() }
    @inline(never) func load(from target: WriteTarget) -> UInt64 {
        guard let high = target.high else { return loadPlace(target.low, target.bytes) }
        let upper = loadPlace(high, target.bytes - target.first)
        return loadPlace(target.low, target.first) | upper &<< UInt64(target.first * 8)
    }
    @inline(never) func store(_ value: UInt64, to target: WriteTarget) {
        storePlace(value, target.low, target.first)
        guard let high = target.high else { return }
        storePlace(value &>> UInt64(target.first * 8), high, target.bytes - target.first)
    }
}

// MARK: - Two operands

// The short forms are not inlined: the compiler calls C functions from a closure's C entry out of line.

@inline(never) func binaryRR<O: Binary, T: Operand>(_ cpu: CPU, _ insn: Insn, _: O.Type, _: T.Type) -> UInt32 {
    var flags = cpu.pointee.arith_flags
    let a = cpu.register(insn.pointee.rm_at, T.self)
    cpu.setRegister(insn.pointee.rm_at, O.apply(a, cpu.register(insn.pointee.reg_at, T.self), &flags))
    cpu.pointee.arith_flags = flags
    return Status.next
}
@inline(never) func binaryRI<O: Binary, T: Operand>(_ cpu: CPU, _ insn: Insn, _: O.Type, _: T.Type) -> UInt32 {
    var flags = cpu.pointee.arith_flags
    let a = cpu.register(insn.pointee.rm_at, T.self)
    cpu.setRegister(insn.pointee.rm_at, O.apply(a, T(truncatingIfNeeded: insn.pointee.imm), &flags))
    cpu.pointee.arith_flags = flags
    return Status.next
}
@inline(__always) func binaryRM<O: Binary, T: Operand>(_ cpu: CPU, _ insn: Insn, _: O.Type, _: T.Type) -> UInt32 {
    cpu.attempt { () throws(Fault) in
        let b = try cpu.loadOperand(insn, T.self)
        var flags = cpu.pointee.arith_flags
        let a = cpu.register(insn.pointee.reg_at, T.self)
        cpu.setRegister(insn.pointee.reg_at, O.apply(a, b, &flags))
        cpu.pointee.arith_flags = flags
    }
}
@inline(__always) func binaryMR<O: Binary, T: Operand>(_ cpu: CPU, _ insn: Insn, _: O.Type, _: T.Type) -> UInt32 {
    cpu.attempt { () throws(Fault) in
        let b = cpu.register(insn.pointee.reg_at, T.self)
        try cpu.modify(insn, T.self) { O.apply($0, b, &$1) }
    }
}
@inline(__always) func binaryMI<O: Binary, T: Operand>(_ cpu: CPU, _ insn: Insn, _: O.Type, _: T.Type) -> UInt32 {
    cpu.attempt { () throws(Fault) in
        let b = T(truncatingIfNeeded: insn.pointee.imm)
        try cpu.modify(insn, T.self) { O.apply($0, b, &$1) }
    }
}

@inline(never) func compareRR<O: Comparison, T: Operand>(
    _ cpu: CPU, _ insn: Insn, _: O.Type, _: T.Type
) -> UInt32 {
    let a = cpu.register(insn.pointee.rm_at, T.self)
    cpu.pointee.arith_flags = O.apply(a, cpu.register(insn.pointee.reg_at, T.self))
    return Status.next
}
@inline(never) func compareRI<O: Comparison, T: Operand>(
    _ cpu: CPU, _ insn: Insn, _: O.Type, _: T.Type
) -> UInt32 {
    let a = cpu.register(insn.pointee.rm_at, T.self)
    cpu.pointee.arith_flags = O.apply(a, T(truncatingIfNeeded: insn.pointee.imm))
    return Status.next
}
@inline(__always) func compareRM<O: Comparison, T: Operand>(
    _ cpu: CPU, _ insn: Insn, _: O.Type, _: T.Type
) -> UInt32 {
    cpu.attempt { () throws(Fault) in
        let b = try cpu.loadOperand(insn, T.self)
        cpu.pointee.arith_flags = O.apply(cpu.register(insn.pointee.reg_at, T.self), b)
    }
}
@inline(__always) func compareMR<O: Comparison, T: Operand>(
    _ cpu: CPU, _ insn: Insn, _: O.Type, _: T.Type
) -> UInt32 {
    cpu.attempt { () throws(Fault) in
        let a = try cpu.loadOperand(insn, T.self)
        cpu.pointee.arith_flags = O.apply(a, cpu.register(insn.pointee.reg_at, T.self))
    }
}
@inline(__always) func compareMI<O: Comparison, T: Operand>(
    _ cpu: CPU, _ insn: Insn, _: O.Type, _: T.Type
) -> UInt32 {
    cpu.attempt { () throws(Fault) in
        let a = try cpu.loadOperand(insn, T.self)
        cpu.pointee.arith_flags = O.apply(a, T(truncatingIfNeeded: insn.pointee.imm))
    }
}

// MARK: - LOCK

/// Operation `which` of opcode bits 5-3 on a memory operand, atomically.
@inline(__always) private func locked<T: Operand>(
    _ cpu: CPU, _ insn: Insn, _ which: UInt8, _ b: T, _: T.Type
) -> UInt32 {
    cpu.attempt { () throws(Fault) in
        try cpu.modifyLocked(insn, T.self) { a, flags in
            switch which & 7 {
            case 0: return T.add(a, b, &flags)
            case 1: return T.or(a, b, &flags)
            case 2: return T.adc(a, b, &flags)
            case 3: return T.sbb(a, b, &flags)
            case 4: return T.and(a, b, &flags)
            case 5: return T.sub(a, b, &flags)
            default: return T.xor(a, b, &flags)
            }
        }
    }
}

/// LOCK ADD ... XOR: the operation in opcode bits 5-3, or in ModRM.reg with an immediate.
@inline(__always) private func lockedBody<T: Operand>(_ cpu: CPU, _ insn: Insn, _: T.Type) -> UInt32 {
    if insn.pointee.opcode >= 0x80 {
        return locked(cpu, insn, insn.pointee.modrm >> 3, T(truncatingIfNeeded: insn.pointee.imm), T.self)
    }
    let which = UInt8(truncatingIfNeeded: insn.pointee.opcode >> 3)
    return locked(cpu, insn, which, cpu.register(insn.pointee.reg_at, T.self), T.self)
}

func lockedArithmetic(_ size: UInt8) -> apus_handler {
    sized(
        size, { lockedBody($0, $1, UInt8.self) }, { lockedBody($0, $1, UInt16.self) },
        { lockedBody($0, $1, UInt32.self) }, { lockedBody($0, $1, UInt64.self) })
}
