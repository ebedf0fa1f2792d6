// Far returns, IRET in every mode, and the entry of software interrupts.
// Source: Intel SDM vol. 2 (RET, IRET, INT n), vol. 3 §5.8, §6.14.3, §21.2 (virtual-8086).
// Modelled: all checks and stack switches, returns to virtual-8086 mode and to another task; not modelled: VME, CET.
// Every function throws before it changes a register.

internal import CProcessor

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// Far RET that drops `bytes` of parameters.
    func returnFar(size: UInt8, dropping bytes: UInt64) throws(Fault) {
        var stack = Stack(current: self)
        let offset = try stack.pop(size: size)
        let selector = UInt16(truncatingIfNeeded: try stack.pop(size: size))
        guard pointee.protected_mode else {
            try jumpReal(selector, offset)
            stack.skip(bytes)
            stack.commitPointer()
            return
        }
        var code = try returnDescriptor(selector, offset)
        let cpl = isParavirtual ? pointee.cpl : UInt8(selector & 3)
        stack.skip(bytes)
        if cpl == pointee.cpl {
            try markAccessed(selector, &code)
            stack.commitPointer()
            finish(selector, code, cpl: cpl, rip: offset)
            return
        }
        let pointer = try stack.pop(size: size)
        let stackSelector = UInt16(truncatingIfNeeded: try stack.pop(size: size))
        let outer = try stackSegment(
            stackSelector, cpl: cpl, fault: Vector.generalProtection, to64Bit: pointee.long_mode && code.isLong)
        try markAccessed(selector, &code)
        finish(selector, code, cpl: cpl, rip: offset)
        setOuterStack(outer, pointer, dropping: bytes)
        dropPrivilegedSegments()
        updateMode()
    }

    /// Reads and checks the code segment that a far return names.
    private func returnDescriptor(_ selector: UInt16, _ offset: UInt64) throws(Fault) -> Descriptor {
        guard selector & 0xFFFC != 0 else { throw raise(Vector.generalProtection, error: 0) }
        let code = try readDescriptor(selector)
        let rpl = UInt8(selector & 3)
        try checkCodeType(code, selector)
        guard rpl >= privilege, code.isConforming ? code.dpl <= rpl : code.dpl == rpl else {
            throw raise(Vector.generalProtection, error: UInt32(selector & 0xFFFC))
        }
        try requirePresent(selector, code)
        try checkTarget(offset, code)
        return code
    }

    /// Loads SS and the stack pointer of an outer privilege level; CS has been loaded.
    private func setOuterStack(_ outer: apus_segment, _ pointer: UInt64, dropping bytes: UInt64) {
        segment(Seg.ss).pointee = outer
        let isLong = pointee.long_mode && segment(Seg.cs).pointee.access & Access.long != 0
        let moved = pointer &+ bytes
        if isLong {
            pointee.gpr.4 = moved
        } else if outer.access & Access.big != 0 {
            pointee.gpr.4 = moved & 0xFFFF_FFFF
        } else {
            pointee.gpr.4 = (pointer & 0xFFFF_0000 | moved & 0xFFFF) & 0xFFFF_FFFF
        }
    }

    /// A program that ran by itself has gone to another code segment, or loaded another stack segment; 0: it has not.
    func takeSegments(code selector: UInt16, stack: UInt16) throws(Fault) {
        if selector != 0 {
            var code = try returnDescriptor(selector, pointee.rip)
            try markAccessed(selector, &code)
            setCode(selector, code, cpl: pointee.cpl)
        }
        if stack != 0 { segment(Seg.ss).pointee = try stackSegment(stack, cpl: 3, fault: Vector.generalProtection) }
        updateMode()
    }

    /// IRET with operand size `size`; `next` is the address behind it.
    func returnFromInterrupt(size: UInt8, next: UInt64) throws(Fault) {
        guard pointee.cr0 & CR0.protection != 0 else {
            try returnReal(size: size)
            return
        }
        if isVirtual8086 {
            guard iopl == 3 else { throw raise(Vector.generalProtection, error: 0) }
            try returnReal(size: size)
            return
        }
        if UInt64(pointee.system_flags) & RFLAGS.nestedTask != 0 {
            guard !pointee.long_mode else { throw raise(Vector.generalProtection, error: 0) }
            try returnToTask(next: next)
            return
        }
        try returnProtected(size: size)
    }

    private func returnReal(size: UInt8) throws(Fault) {
        var stack = Stack(current: self)
        let offset = try stack.pop(size: size)
        let selector = UInt16(truncatingIfNeeded: try stack.pop(size: size))
        let flags = try stack.pop(size: size)
        try jumpReal(selector, offset)
        stack.commitPointer()
        var mask = RFLAGS.implemented & ~RFLAGS.virtual8086
        if isVirtual8086 { mask &= ~RFLAGS.iopl }
        if size == 2 { mask &= 0xFFFF }
        setRFLAGS(flags, writable: mask)
        pointee.nmi_blocked = false
    }

    private func returnProtected(size: UInt8) throws(Fault) {
        var stack = Stack(current: self)
        let offset = try stack.pop(size: size)
        let selector = UInt16(truncatingIfNeeded: try stack.pop(size: size))
        let flags = try stack.pop(size: size)
        if size == 4, flags & RFLAGS.virtual8086 != 0, pointee.cpl == 0, !pointee.long_mode {
            try returnToVirtual8086(stack, offset, selector, flags)
            return
        }
        var mask = RFLAGS.implemented & ~RFLAGS.virtual8086
        if pointee.cpl != 0 { mask &= ~RFLAGS.iopl }
        if pointee.cpl > iopl { mask &= ~RFLAGS.interrupt }
        if size == 2 { mask &= 0xFFFF }
        var code = try returnDescriptor(selector, offset)
        let cpl = isParavirtual ? pointee.cpl : UInt8(selector & 3)
        if cpl == pointee.cpl, !is64Bit {
            try markAccessed(selector, &code)
            stack.commitPointer()
            setCode(selector, code, cpl: cpl)
        } else {
            let pointer = try stack.pop(size: size)
            let stackSelector = UInt16(truncatingIfNeeded: try stack.pop(size: size))
            let outer = try stackSegment(
                stackSelector, cpl: isParavirtual ? 3 : cpl, fault: Vector.generalProtection,
                to64Bit: pointee.long_mode && code.isLong)
            try markAccessed(selector, &code)
            let isOuter = cpl > pointee.cpl
            setCode(selector, code, cpl: cpl)
            setOuterStack(outer, pointer, dropping: 0)
            if isOuter { dropPrivilegedSegments() }
        }
        pointee.rip = offset
        pointee.nmi_blocked = false
        let value = rflags & ~mask | flags & mask
        pointee.arith_flags = UInt32(truncatingIfNeeded: value & RFLAGS.arithmetic)
        pointee.system_flags = UInt32(truncatingIfNeeded: value & ~RFLAGS.arithmetic) | 2
        updateLevel()
        noteProgram()
    }

    private func returnToVirtual8086(
        _ frame: Stack, _ offset: UInt64, _ selector: UInt16, _ flags: UInt64
    ) throws(Fault) {
        var stack = frame
        let pointer = try stack.pop(size: 4)
        var selectors: [5 of UInt16] = [0, 0, 0, 0, 0]
        for index in 0..<5 { selectors[index] = UInt16(truncatingIfNeeded: try stack.pop(size: 4)) }
        pointee.arith_flags = UInt32(truncatingIfNeeded: flags & RFLAGS.arithmetic)
        pointee.system_flags =
            UInt32(truncatingIfNeeded: flags & RFLAGS.implemented & ~RFLAGS.arithmetic) | 2
        pointee.cpl = 3
        for (index, target) in [Seg.ss, Seg.es, Seg.ds, Seg.fs, Seg.gs].enumerated() {
            loadRealSegment(target, selector: selectors[index])
        }
        loadRealSegment(Seg.cs, selector: selector)
        pointee.gpr.4 = pointer
        pointee.rip = offset & 0xFFFF
        pointee.nmi_blocked = false
        updateMode()
    }

    /// INT n, INT3, INTO and ICEBP: enters the handler, or throws what the gate's checks found.
    func softwareInterrupt(_ vector: UInt8, _ source: EventSource, next: UInt64) throws(Fault) -> UInt32 {
        if isParavirtual { return try softwareParavirtual(vector, next: next) }
        try enter(vector, source, error: nil, returnTo: next)
        return Status.jump
    }
}
