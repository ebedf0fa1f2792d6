// Exceptions and interrupts: from a pending event to the first instruction of its handler.
// Source: Intel SDM vol. 3 §6 (delivery, double faults), §20.1.4 (real mode), §21.3 (virtual-8086), §6.14 (64-bit).
// Modelled: IVT and IDT, task gates, stack switches, IST, double and triple faults, error codes with EXT;
// not modelled: VME's redirection bitmap, shadow stacks.

internal import CProcessor

/// What is being delivered; decides about gate privilege, EXT and the resume flag.
enum EventSource {
    /// An interrupt or NMI.
    case external
    /// A fault: RIP is at the instruction, RF is set in the pushed flags.
    case fault
    /// A trap: RIP is behind the instruction.
    case trap
    /// INT n, INT3 or INTO: the gate's DPL counts and errors carry no EXT.
    case software

    var external: UInt32 { self == .software ? 0 : 1 }
}

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// Delivers the pending exception; `rip` has been set to what it is to push.
    /// False: triple fault, `exit_reason` says so.
    @discardableResult func deliverPending() -> Bool {
        let source: EventSource
        switch pointee.pending_kind {
        case 0: source = .fault
        case 1, 4: source = .trap
        default: source = .software
        }
        let vector = pointee.pending_vector
        if pointee.cpl == 3 { pointee.departures &+= 1 }
        noteAddress()
        return deliver(vector, source, error: pointee.pending_has_error ? pointee.pending_error : nil)
    }

    /// Delivers an external interrupt. False: triple fault.
    @discardableResult func deliverInterrupt(vector: UInt8) -> Bool {
        deliver(vector, .external, error: nil)
    }

    /// Delivers an NMI and blocks further ones until IRET. False: triple fault.
    @discardableResult func deliverNMI() -> Bool {
        pointee.nmi_pending = false
        pointee.nmi_blocked = true
        return deliver(Vector.nmi, .external, error: nil)
    }

    /// Moves what `raise` noted beside the vector into CR2 or DR6.
    private func noteAddress() {
        if pointee.pending_vector == Vector.pageFault { pointee.cr2 = pointee.pending_cr2 }
        if pointee.pending_vector == Vector.debug {
            pointee.dr.6 = pointee.dr.6 & ~0xF | pointee.pending_dr6 | 0xFFFF_0FF0
            pointee.dr.7 &= ~(1 << 13)
        }
    }

    /// Delivers one event and, as long as that faults, what the fault turns it into (SDM vol. 3 table 6-5).
    private func deliver(_ vector: UInt8, _ source: EventSource, error: UInt32?) -> Bool {
        if isParavirtual { return deliverParavirtual(vector, source, error: error) }
        var (vector, source, error) = (vector, source, error)
        pointee.halted = false
        pointee.interrupt_shadow = false
        for _ in 0..<8 {
            do {
                try enter(vector, source, error: error, returnTo: pointee.rip)
                return true
            } catch {}
            let second = pointee.pending_vector
            if source == .fault, vector == Vector.doubleFault { break }
            if source == .fault, isDoubleFault(vector, second) {
                (vector, error) = (Vector.doubleFault, 0)
            } else {
                noteAddress()
                (vector, error) = (second, pointee.pending_has_error ? pointee.pending_error : nil)
            }
            source = .fault
        }
        pointee.exit_reason = UInt8(APUS_EXIT_SHUTDOWN)
        return false
    }

    private func isDoubleFault(_ first: UInt8, _ second: UInt8) -> Bool {
        func isContributory(_ vector: UInt8) -> Bool { vector == 0 || (10...13).contains(vector) }
        if isContributory(first) { return isContributory(second) }
        return first == Vector.pageFault && (second == Vector.pageFault || isContributory(second))
    }

    /// Enters the handler of `vector`. Throws without having changed a register.
    func enter(_ vector: UInt8, _ source: EventSource, error: UInt32?, returnTo rip: UInt64) throws(Fault) {
        if pointee.cr0 & CR0.protection == 0 {
            try enterReal(vector, source, returnTo: rip)
        } else if pointee.long_mode {
            try enterLong(vector, source, error: error, returnTo: rip)
        } else {
            try enterProtected(vector, source, error: error, returnTo: rip)
        }
    }

    /// Flags as the handler's frame holds them.
    private func pushedFlags(_ source: EventSource) -> UInt64 {
        switch source {
        case .fault: return rflags | RFLAGS.resume
        // RF is kept up to date while there are breakpoints; else no instruction but IRET leaves it set.
        case .external where hasBreakpoints: return rflags
        case .external, .trap, .software: return rflags & ~RFLAGS.resume
        }
    }

    private func enterReal(_ vector: UInt8, _ source: EventSource, returnTo rip: UInt64) throws(Fault) {
        let offset = UInt64(vector) * 4
        guard offset + 3 <= UInt64(pointee.idtr.limit) else { throw raise(Vector.generalProtection) }
        let entry = try loadSystem(linear(pointee.idtr.base &+ offset), as: UInt32.self)
        var stack = Stack(current: self)
        try stack.push(rflags & 0xFFFF, size: 2)
        try stack.push(UInt64(segment(Seg.cs).pointee.selector), size: 2)
        try stack.push(rip & 0xFFFF, size: 2)
        stack.commitPointer()
        clearFlags(RFLAGS.interrupt | RFLAGS.trap | RFLAGS.alignmentCheck | RFLAGS.resume)
        loadRealSegment(Seg.cs, selector: UInt16(truncatingIfNeeded: entry >> 16))
        pointee.rip = UInt64(entry & 0xFFFF)
        updateMode()
    }

    /// Clears bits of the system flags; `updateMode` is left to the caller.
    func clearFlags(_ mask: UInt64) {
        pointee.system_flags &= ~UInt32(truncatingIfNeeded: mask)
    }

    private func enterProtected(
        _ vector: UInt8, _ source: EventSource, error: UInt32?, returnTo rip: UInt64
    ) throws(Fault) {
        let gateError = UInt32(vector) * 8 + 2 + source.external
        let offset = UInt64(vector) * 8
        guard offset + 7 <= UInt64(pointee.idtr.limit) else { throw raise(Vector.generalProtection, error: gateError) }
        let gate = Descriptor(raw: try loadSystem(linear(pointee.idtr.base &+ offset), as: UInt64.self))
        guard gate.isSystem, [5, 6, 7, 14, 15].contains(gate.type),
            source != .software || gate.dpl >= pointee.cpl
        else { throw raise(Vector.generalProtection, error: gateError) }
        guard gate.isPresent else { throw raise(Vector.notPresent, error: gateError) }
        if gate.type == 5 {
            try switchTask(
                gate.gateSelector, cause: .gate, returnTo: rip, error: error, external: source.external,
                resume: source == .fault)
            return
        }
        let selector = gate.gateSelector
        let code = try handlerCode(selector, source.external)
        let size: UInt8 = gate.type & 8 != 0 ? 4 : 2
        let flags = pushedFlags(source)
        let entry = size == 4 ? gate.gateOffset : gate.gateOffset & 0xFFFF
        let cpl = code.isConforming ? pointee.cpl : code.dpl
        let isVirtual = isVirtual8086
        var stack: Stack
        if cpl < pointee.cpl {
            if isVirtual, cpl != 0 {
                throw raise(Vector.generalProtection, error: UInt32(selector & 0xFFFC) | source.external)
            }
            stack = try privilegedStack(cpl, external: source.external)
            try checkTarget(entry, code, external: source.external)
            if isVirtual {
                for index in [Seg.gs, Seg.fs, Seg.ds, Seg.es] {
                    try stack.push(UInt64(segment(index).pointee.selector), size: size)
                }
            }
            try stack.push(UInt64(segment(Seg.ss).pointee.selector), size: size)
            try stack.push(pointee.gpr.4, size: size)
        } else {
            if isVirtual { throw raise(Vector.generalProtection, error: UInt32(selector & 0xFFFC) | source.external) }
            stack = Stack(current: self, external: source.external)
            try checkTarget(entry, code, external: source.external)
        }
        try stack.push(flags, size: size)
        try stack.push(UInt64(segment(Seg.cs).pointee.selector), size: size)
        try stack.push(rip, size: size)
        if let error { try stack.push(UInt64(error), size: size) }
        if cpl < pointee.cpl { stack.commit() } else { stack.commitPointer() }
        if isVirtual { for index in [Seg.gs, Seg.fs, Seg.ds, Seg.es] { segment(index).pointee = apus_segment() } }
        enterCode(selector, code, cpl: cpl, entry: entry, isInterruptGate: gate.type & 1 == 0)
    }

    /// Reads and checks the code segment of an interrupt or trap gate.
    private func handlerCode(_ selector: UInt16, _ external: UInt32) throws(Fault) -> Descriptor {
        guard selector & 0xFFFC != 0 else { throw raise(Vector.generalProtection, error: external) }
        var code = try readDescriptor(selector, external: external)
        guard code.isCode, code.dpl <= pointee.cpl else {
            throw raise(Vector.generalProtection, error: UInt32(selector & 0xFFFC) | external)
        }
        if pointee.long_mode, !code.isLong || code.isBig {
            throw raise(Vector.generalProtection, error: UInt32(selector & 0xFFFC) | external)
        }
        guard code.isPresent else { throw raise(Vector.notPresent, error: UInt32(selector & 0xFFFC) | external) }
        try markAccessed(selector, &code)
        return code
    }

    /// The last step of entering a handler through a gate.
    private func enterCode(
        _ selector: UInt16, _ code: Descriptor, cpl: UInt8, entry: UInt64, isInterruptGate: Bool
    ) {
        var cleared = RFLAGS.trap | RFLAGS.virtual8086 | RFLAGS.resume | RFLAGS.nestedTask
        if isInterruptGate { cleared |= RFLAGS.interrupt }
        clearFlags(cleared)
        setCode(selector, code, cpl: cpl)
        pointee.rip = entry
        updateLevel()
    }

    private func enterLong(
        _ vector: UInt8, _ source: EventSource, error: UInt32?, returnTo rip: UInt64
    ) throws(Fault) {
        let gateError = UInt32(vector) * 8 + 2 + source.external
        let offset = UInt64(vector) * 16
        guard offset + 15 <= UInt64(pointee.idtr.limit) else { throw raise(Vector.generalProtection, error: gateError) }
        let address = pointee.idtr.base &+ offset
        let gate = Descriptor(
            raw: try loadSystem(address, as: UInt64.self), high: try loadSystem(address &+ 8, as: UInt64.self))
        guard gate.isSystem, gate.type == 14 || gate.type == 15, source != .software || gate.dpl >= pointee.cpl else {
            throw raise(Vector.generalProtection, error: gateError)
        }
        guard gate.isPresent else { throw raise(Vector.notPresent, error: gateError) }
        let selector = gate.gateSelector
        let code = try handlerCode(selector, source.external)
        let cpl = code.isConforming ? pointee.cpl : code.dpl
        guard isCanonical(gate.gateOffset) else { throw raise(Vector.generalProtection, error: source.external) }
        var top = pointee.gpr.4
        if gate.interruptStack != 0 {
            top = try longStack(at: 0x1C + UInt64(gate.interruptStack) * 8, external: source.external)
        } else if cpl < pointee.cpl {
            top = try longStack(at: 4 + UInt64(cpl) * 8, external: source.external)
        }
        let null = apus_segment(base: 0, limit: 0, selector: UInt16(cpl), access: 0)
        var stack = Stack(self, null, cpl: cpl, pointer: top & ~15, width: 8, error: source.external)
        try stack.push(UInt64(segment(Seg.ss).pointee.selector), size: 8)
        try stack.push(pointee.gpr.4, size: 8)
        try stack.push(pushedFlags(source), size: 8)
        try stack.push(UInt64(segment(Seg.cs).pointee.selector), size: 8)
        try stack.push(rip, size: 8)
        if let error { try stack.push(UInt64(error), size: 8) }
        if cpl < pointee.cpl { stack.commit() } else { stack.commitPointer() }
        enterCode(selector, code, cpl: cpl, entry: gate.gateOffset, isInterruptGate: gate.type & 1 == 0)
    }

    /// A stack pointer out of the 64-bit TSS.
    func longStack(at offset: UInt64, external: UInt32) throws(Fault) -> UInt64 {
        let tss = segment(Seg.tr).pointee
        guard tss.access & Access.present != 0, offset + 7 <= UInt64(tss.limit) else {
            throw raise(Vector.invalidTSS, error: UInt32(tss.selector & 0xFFFC) | external)
        }
        let pointer = try loadSystem(tss.base &+ offset, as: UInt64.self)
        guard isCanonical(pointer) else { throw raise(Vector.stack, error: external) }
        return pointer
    }

    /// The stack for privilege level `cpl` out of a 16- or 32-bit TSS.
    func privilegedStack(_ cpl: UInt8, external: UInt32) throws(Fault) -> Stack {
        let tss = segment(Seg.tr).pointee
        let isWide = tss.access & 8 != 0
        let offset = isWide ? 4 + UInt64(cpl) * 8 : 2 + UInt64(cpl) * 4
        guard tss.access & Access.present != 0, offset + (isWide ? 5 : 3) <= UInt64(tss.limit) else {
            throw raise(Vector.invalidTSS, error: UInt32(tss.selector & 0xFFFC) | external)
        }
        let address = linear(tss.base &+ offset)
        let pointer: UInt64
        let selector: UInt16
        if isWide {
            pointer = UInt64(try loadSystem(address, as: UInt32.self))
            selector = try loadSystem(linear(address &+ 4), as: UInt16.self)
        } else {
            pointer = UInt64(try loadSystem(address, as: UInt16.self))
            selector = try loadSystem(linear(address &+ 2), as: UInt16.self)
        }
        let loaded = try stackSegment(
            selector, cpl: cpl, fault: Vector.invalidTSS, external: external, to64Bit: false)
        return Stack(
            new: self, loaded, cpl: cpl, pointer: pointer, error: UInt32(selector & 0xFFFC) | external)
    }
}
