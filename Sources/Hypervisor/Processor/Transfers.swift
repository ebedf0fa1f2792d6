// Far jumps and calls, call gates, and the handlers of all far transfers.
// Source: Intel SDM vol. 2 (JMP, CALL, RET, INT n, IRET), vol. 3 §5.8.
// Modelled: all checks and stack switches, task gates; not modelled: CET. The way back is in FarReturns.swift.
// Every function throws before it changes a register.

internal import CProcessor

/// Where an event or transfer goes that leads to another task.
enum TaskSwitchCause { case jump, call, gate, interruptReturn }

// MARK: - Jumps and calls

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// RIP behind `insn`.
    @inline(__always) func following(_ insn: Insn) -> UInt64 {
        let rip = pointee.rip &+ UInt64(insn.pointee.next)
        switch pointee.code_size {
        case 8: return rip
        case 4: return rip & 0xFFFF_FFFF
        default: return rip & 0xFFFF
        }
    }

    /// Far JMP; `offset` is as wide as the operand size.
    func jumpFar(_ selector: UInt16, _ offset: UInt64, next: UInt64) throws(Fault) {
        guard pointee.protected_mode else {
            try jumpReal(selector, offset)
            return
        }
        let descriptor = try targetDescriptor(selector)
        if !descriptor.isSystem {
            try jumpToCode(selector, descriptor, offset)
            return
        }
        try checkGatePrivilege(selector, descriptor)
        switch descriptor.type {
        case 4 where !pointee.long_mode, 12:
            let (target, code, entry) = try openCallGate(selector, descriptor)
            try jumpToCode(target & 0xFFFC, code, entry)
        case 5 where !pointee.long_mode:
            try requirePresent(selector, descriptor)
            try switchTask(descriptor.gateSelector, cause: .jump, returnTo: next)
        case 1 where !pointee.long_mode, 9 where !pointee.long_mode:
            try switchTask(selector, cause: .jump, returnTo: next)
        default: throw raise(Vector.generalProtection, error: UInt32(selector & 0xFFFC))
        }
    }

    /// Far CALL; `size` is the operand size.
    func callFar(_ selector: UInt16, _ offset: UInt64, size: UInt8, next: UInt64) throws(Fault) {
        guard pointee.protected_mode else {
            var stack = Stack(current: self)
            try stack.push(UInt64(segment(Seg.cs).pointee.selector), size: size)
            try stack.push(next, size: size)
            try jumpReal(selector, offset)
            stack.commitPointer()
            return
        }
        var descriptor = try targetDescriptor(selector)
        if !descriptor.isSystem {
            try checkSamePrivilege(selector, descriptor)
            try checkTarget(offset, descriptor)
            var stack = Stack(current: self)
            try stack.push(UInt64(segment(Seg.cs).pointee.selector), size: size)
            try stack.push(next, size: size)
            try markAccessed(selector, &descriptor)
            stack.commitPointer()
            finish(selector, descriptor, cpl: pointee.cpl, rip: offset)
            return
        }
        try checkGatePrivilege(selector, descriptor)
        switch descriptor.type {
        case 4 where !pointee.long_mode, 12: try callGate(selector, descriptor, next: next)
        case 5 where !pointee.long_mode:
            try requirePresent(selector, descriptor)
            try switchTask(descriptor.gateSelector, cause: .call, returnTo: next)
        case 1 where !pointee.long_mode, 9 where !pointee.long_mode:
            try switchTask(selector, cause: .call, returnTo: next)
        default: throw raise(Vector.generalProtection, error: UInt32(selector & 0xFFFC))
        }
    }

    func jumpReal(_ selector: UInt16, _ offset: UInt64) throws(Fault) {
        guard offset <= UInt64(isVirtual8086 ? 0xFFFF : segment(Seg.cs).pointee.limit) else {
            throw raise(Vector.generalProtection, error: 0)
        }
        loadRealSegment(Seg.cs, selector: selector)
        pointee.rip = offset
        updateMode()
    }

    /// The descriptor a far jump or call names.
    func targetDescriptor(_ selector: UInt16) throws(Fault) -> Descriptor {
        guard selector & 0xFFFC != 0 else { throw raise(Vector.generalProtection, error: 0) }
        return try readDescriptor(selector)
    }

    func requirePresent(_ selector: UInt16, _ descriptor: Descriptor) throws(Fault) {
        guard descriptor.isPresent else { throw raise(Vector.notPresent, error: UInt32(selector & 0xFFFC)) }
    }

    private func checkGatePrivilege(_ selector: UInt16, _ descriptor: Descriptor) throws(Fault) {
        guard descriptor.dpl >= max(privilege, UInt8(selector & 3)) else {
            throw raise(Vector.generalProtection, error: UInt32(selector & 0xFFFC))
        }
    }

    /// The checks of a jump or call that keeps the privilege level.
    func checkSamePrivilege(_ selector: UInt16, _ descriptor: Descriptor) throws(Fault) {
        try checkCodeType(descriptor, selector)
        let allowed =
            descriptor.isConforming
            ? descriptor.dpl <= privilege : UInt8(selector & 3) <= privilege && descriptor.dpl == privilege
        guard allowed else { throw raise(Vector.generalProtection, error: UInt32(selector & 0xFFFC)) }
        try requirePresent(selector, descriptor)
    }

    private func jumpToCode(_ selector: UInt16, _ descriptor: Descriptor, _ offset: UInt64) throws(Fault) {
        var descriptor = descriptor
        try checkSamePrivilege(selector, descriptor)
        try checkTarget(offset, descriptor)
        try markAccessed(selector, &descriptor)
        finish(selector, descriptor, cpl: pointee.cpl, rip: offset)
    }

    func finish(_ selector: UInt16, _ descriptor: Descriptor, cpl: UInt8, rip: UInt64) {
        setCode(selector, descriptor, cpl: cpl)
        pointee.rip = rip
        updateMode()
    }

    /// What a call gate leads to: selector, code segment, entry point.
    private func openCallGate(
        _ selector: UInt16, _ gate: Descriptor
    ) throws(Fault) -> (selector: UInt16, code: Descriptor, entry: UInt64) {
        var gate = gate
        try requirePresent(selector, gate)
        if pointee.long_mode { try readHigh(selector, &gate) }
        let target = gate.gateSelector
        guard target & 0xFFFC != 0 else { throw raise(Vector.generalProtection, error: 0) }
        var code = try readDescriptor(target)
        guard code.isCode, code.dpl <= pointee.cpl, !pointee.long_mode || (code.isLong && !code.isBig) else {
            throw raise(Vector.generalProtection, error: UInt32(target & 0xFFFC))
        }
        try requirePresent(target, code)
        try markAccessed(target, &code)
        let entry = gate.type == 4 ? gate.gateOffset & 0xFFFF : gate.gateOffset
        try checkTarget(entry, code)
        return (target, code, entry)
    }

    private func callGate(_ selector: UInt16, _ gate: Descriptor, next: UInt64) throws(Fault) {
        let (target, code, entry) = try openCallGate(selector, gate)
        let size: UInt8 = pointee.long_mode ? 8 : gate.type == 12 ? 4 : 2
        let cpl = code.isConforming ? pointee.cpl : code.dpl
        let old = segment(Seg.ss).pointee.selector
        guard cpl < pointee.cpl else {
            var stack = Stack(current: self)
            if pointee.long_mode {
                stack = Stack(self, stack.segment, cpl: cpl, pointer: pointee.gpr.4, width: 8, error: 0)
            }
            try stack.push(UInt64(segment(Seg.cs).pointee.selector), size: size)
            try stack.push(next, size: size)
            stack.commitPointer()
            finish(target, code, cpl: cpl, rip: entry)
            return
        }
        var stack: Stack
        if pointee.long_mode {
            let null = apus_segment(base: 0, limit: 0, selector: UInt16(cpl), access: 0)
            let top = try longStack(at: 4 + UInt64(cpl) * 8, external: 0)
            stack = Stack(self, null, cpl: cpl, pointer: top, width: 8, error: 0)
        } else {
            stack = try privilegedStack(cpl, external: 0)
        }
        var parameters = Stack(current: self)
        try stack.push(UInt64(old), size: size)
        try stack.push(pointee.gpr.4, size: size)
        if !pointee.long_mode {
            let count = gate.parameters
            parameters.skip(UInt64(count) * UInt64(size))
            for _ in 0..<count {
                parameters.skip(0 &- UInt64(size))
                var slot = parameters
                try stack.push(try slot.pop(size: size), size: size)
            }
        }
        try stack.push(UInt64(segment(Seg.cs).pointee.selector), size: size)
        try stack.push(next, size: size)
        stack.commit()
        finish(target, code, cpl: cpl, rip: entry)
    }
}

// MARK: - Handlers

/// The far pointer in an instruction's immediate: the offset in the lower, the selector in the upper half.
@inline(__always) private func farPointer(_ insn: Insn) -> (selector: UInt16, offset: UInt64) {
    (UInt16(truncatingIfNeeded: insn.pointee.imm >> 32), insn.pointee.imm & 0xFFFF_FFFF)
}

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// The far pointer in an instruction's memory operand.
    func loadFarPointer(_ insn: Insn) throws(Fault) -> (selector: UInt16, offset: UInt64) {
        let (segment, address) = (Int(insn.pointee.segment), effectiveAddress(insn))
        let selectorAddress = (address &+ UInt64(insn.pointee.op_size)) & addressMask(insn)
        let offset: UInt64
        switch insn.pointee.op_size {
        case 2: offset = UInt64(try load(segment, address, as: UInt16.self))
        case 4: offset = UInt64(try load(segment, address, as: UInt32.self))
        default: offset = try load(segment, address, as: UInt64.self)
        }
        return (try load(segment, selectorAddress, as: UInt16.self), offset)
    }

    @inline(__always) func addressMask(_ insn: Insn) -> UInt64 {
        switch insn.pointee.addr_size {
        case 2: return 0xFFFF
        case 4: return 0xFFFF_FFFF
        default: return .max
        }
    }
}

/// Handlers of far transfers.
func transferHandler(_ insn: UnsafeMutablePointer<apus_insn>) -> apus_handler? {
    let isMemory = insn.pointee.mem != 0
    switch insn.pointee.opcode {
    case 0xEA:
        return { cpu, insn in
            attempt { () throws(Fault) in
                let target = farPointer(insn)
                try cpu.jumpFar(target.selector, target.offset, next: cpu.following(insn))
                return Status.jump
            }
        }
    case 0x9A:
        return { cpu, insn in
            attempt { () throws(Fault) in
                let target = farPointer(insn)
                try cpu.callFar(
                    target.selector, target.offset, size: insn.pointee.op_size, next: cpu.following(insn))
                return Status.jump
            }
        }
    case 0xFF where isMemory && (insn.pointee.modrm >> 3) & 7 == 3:
        return { cpu, insn in
            attempt { () throws(Fault) in
                let target = try cpu.loadFarPointer(insn)
                try cpu.callFar(
                    target.selector, target.offset, size: insn.pointee.op_size, next: cpu.following(insn))
                return Status.jump
            }
        }
    case 0xFF where isMemory && (insn.pointee.modrm >> 3) & 7 == 5:
        return { cpu, insn in
            attempt { () throws(Fault) in
                let target = try cpu.loadFarPointer(insn)
                try cpu.jumpFar(target.selector, target.offset, next: cpu.following(insn))
                return Status.jump
            }
        }
    case 0xCA, 0xCB:
        return { cpu, insn in
            attempt { () throws(Fault) in
                let bytes = insn.pointee.opcode == 0xCA ? insn.pointee.imm & 0xFFFF : 0
                try cpu.returnFar(size: insn.pointee.op_size, dropping: bytes)
                return Status.jump
            }
        }
    case 0xCF:
        return { cpu, insn in
            attempt { () throws(Fault) in
                try cpu.returnFromInterrupt(size: insn.pointee.op_size, next: cpu.following(insn))
                cpu.serialize()
                return Status.jump
            }
        }
    default: return softwareInterruptHandler(insn)
    }
}

private func softwareInterruptHandler(_ insn: UnsafeMutablePointer<apus_insn>) -> apus_handler? {
    switch insn.pointee.opcode {
    case 0xCC:
        return { cpu, insn in
            attempt { () throws(Fault) in
                try cpu.softwareInterrupt(Vector.breakpoint, .software, next: cpu.following(insn))
            }
        }
    case 0xCD:
        return { cpu, insn in
            attempt { () throws(Fault) in
                if cpu.isVirtual8086, cpu.iopl < 3 { throw cpu.raise(Vector.generalProtection, error: 0) }
                return try cpu.softwareInterrupt(
                    UInt8(truncatingIfNeeded: insn.pointee.imm), .software, next: cpu.following(insn))
            }
        }
    case 0xCE:
        return { cpu, insn in
            attempt { () throws(Fault) in
                if cpu.is64Bit { throw cpu.raise(Vector.invalidOpcode) }
                guard cpu.pointee.arith_flags & 0x800 != 0 else { return Status.next }
                return try cpu.softwareInterrupt(Vector.overflow, .software, next: cpu.following(insn))
            }
        }
    case 0xF1:
        return { cpu, insn in
            attempt { () throws(Fault) in
                try cpu.softwareInterrupt(Vector.debug, .trap, next: cpu.following(insn))
            }
        }
    default: return nil
    }
}

/// Runs a handler's body; a fault becomes APUS_FAULT.
@inline(__always) func attempt(_ body: () throws(Fault) -> UInt32) -> UInt32 {
    do { return try body() } catch { return Status.fault }
}
