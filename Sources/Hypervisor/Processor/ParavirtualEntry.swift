// Into the kernel of a PV guest and out of it: exceptions, events, system calls, and the iret hypercall.
// Source: Xen xen/arch/x86/x86_64/entry.S (create_bounce_frame), pv/traps.c, pv/iret.c; public/arch-x86/xen-x86_64.h.
// Modelled: frames as Xen builds them, failsafe callback, NMIs. Not modelled: architectural IOPL in frames.
// Quirks: RFLAGS.IF is always set while a PV guest runs; what it sees of it in frames is its vCPU's event mask.

internal import CProcessor

/// Selectors that Xen keeps in every GDT.
enum XenSelector {
    @inline(__always) static var code32: UInt16 { 0xE023 }
    @inline(__always) static var data: UInt16 { 0xE02B }
    @inline(__always) static var code64: UInt16 { 0xE033 }
}

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// The engine's part of a PV guest's vCPU. There is one wherever `paravirtual` is set.
    @inline(__always) var pv: UnsafeMutablePointer<ParavirtualState> {
        guard let state = engine.pointee.paravirtual else { preconditionFailure("not a PV guest's vCPU") }
        return state
    }
    @inline(__always) var isParavirtual: Bool { pointee.paravirtual != 0 }
    /// A PV guest's kernel runs.
    @inline(__always) var isGuestKernel: Bool { pointee.paravirtual != 0 && pointee.cpl != 3 }

    /// The domain cannot go on.
    func crash(_ reason: ParavirtualCrash) {
        pv.pointee.crash = reason
        pointee.exit_reason = UInt8(APUS_EXIT_CRASH)
    }

    // MARK: between kernel and programs

    private func swapBases() {
        let base = segment(Seg.gs).pointee.base
        segment(Seg.gs).pointee.base = pointee.kernel_gs_base
        pointee.kernel_gs_base = base
    }

    private func enterKernel() {
        if pointee.cpl == 3 { swapBases() }
        pointee.cpl = 1
    }

    private func leaveKernel() {
        if pointee.cpl != 3 { swapBases() }
        pointee.cpl = 3
    }

    /// Code and stack segments of Xen's own GDT entries.
    static var flatCode64: apus_segment {
        apus_segment(base: 0, limit: .max, selector: XenSelector.code64, access: 0xA0FB)
    }
    static var flatData: apus_segment {
        apus_segment(base: 0, limit: .max, selector: XenSelector.data, access: 0xC0F3)
    }

    // MARK: in

    /// What a bounce frame tells of where the guest was.
    private struct Origin {
        var rip: UInt64
        var codeSelector: UInt16
        var flags: UInt64
        var stackPointer: UInt64
        var stackSelector: UInt16
    }

    private func origin(_ rip: UInt64, _ flags: UInt64) -> Origin {
        Origin(
            rip: rip, codeSelector: segment(Seg.cs).pointee.selector, flags: flags, stackPointer: pointee.gpr.4,
            stackSelector: segment(Seg.ss).pointee.selector)
    }

    /// Enters the guest's kernel at an entry point of its own. false: the domain has crashed.
    private func bounce(
        to entry: ParavirtualTrap, from origin: Origin, error: UInt32? = nil, isFailsafe: Bool = false
    ) -> Bool {
        guard entry.address != 0 else {
            crash(.noHandler(origin.rip))
            return false
        }
        let (pv, isUser) = (pv, pointee.cpl == 3)
        let isMasked = pv.pointee.areEventsMasked
        let flags = origin.flags & ~(RFLAGS.iopl | RFLAGS.interrupt) | (isMasked ? 0 : RFLAGS.interrupt)
        let code = UInt64(origin.codeSelector & 0xFFFC) | (isUser ? 3 : 0) | (isMasked ? 1 << 32 : 0)
        var stack = (isUser ? pv.pointee.kernelStack : pointee.gpr.4) & ~15
        guard !HypervisorHole.contains(stack &- 1) else {
            crash(.foreignStack(stack))
            return false
        }
        do throws(Fault) {
            for value in [UInt64(origin.stackSelector), origin.stackPointer, flags, code, origin.rip] {
                try push(value, on: &stack)
            }
            if let error { try push(UInt64(error), on: &stack) }
            if isFailsafe {
                for index in [Seg.gs, Seg.fs, Seg.es, Seg.ds] {
                    try push(UInt64(segment(index).pointee.selector), on: &stack)
                }
            }
            try push(pointee.gpr.11, on: &stack)
            try push(pointee.gpr.1, on: &stack)
        } catch {
            crash(.badStack(stack))
            return false
        }
        enterKernel()
        pointee.gpr.4 = stack
        (segment(Seg.cs).pointee, segment(Seg.ss).pointee) = (Self.flatCode64, Self.flatData)
        clearFlags(
            RFLAGS.trap | RFLAGS.nestedTask | RFLAGS.resume | RFLAGS.virtual8086 | RFLAGS.alignmentCheck)
        if entry.masksEvents { pv.pointee.areEventsMasked = true }
        pointee.rip = entry.address
        (pointee.halted, pointee.interrupt_shadow) = (false, false)
        updateMode()
        return true
    }

    private func push(_ value: UInt64, on stack: inout UInt64) throws(Fault) {
        try storeLinear(value, stack &- 8, cpl: 0)
        stack &-= 8
    }

    /// Delivers an exception or an NMI. false: the domain has crashed.
    func deliverParavirtual(_ vector: UInt8, _ source: EventSource, error: UInt32?) -> Bool {
        if vector == Vector.pageFault { pv.pointee.faultAddress = pointee.cr2 }
        let flags = source == .fault ? rflags | RFLAGS.resume : rflags
        guard pv.pointee.traps[Int(vector)].address != 0 else {
            crash(.exception(vector, error ?? 0, pointee.cr2, pointee.rip))
            return false
        }
        // As Xen does for its guests: the one who handles it needs no CLTS (do_device_not_available).
        if vector == Vector.deviceNotAvailable { pointee.cr0 &= ~CR0.taskSwitched }
        return bounce(to: pv.pointee.traps[Int(vector)], from: origin(pointee.rip, flags), error: error)
    }

    /// INT n: the trap's level counts, as a gate's does.
    func softwareParavirtual(_ vector: UInt8, next: UInt64) throws(Fault) -> UInt32 {
        let trap = pv.pointee.traps[Int(vector)]
        let isAllowed = vector == Vector.breakpoint || trap.level >= (isGuestKernel ? 1 : 3)
        guard isAllowed, trap.address != 0 else {
            throw raise(Vector.generalProtection, error: UInt32(vector) << 3 | 2)
        }
        return bounce(to: trap, from: origin(next, rflags)) ? Status.jump : Status.exit
    }

    /// Enters the event callback if an event waits and none is held back. false: the domain has crashed.
    func takeParavirtualEvent() -> Bool {
        guard pv.pointee.hasEvent else { return true }
        if pointee.cpl == 3 { noteProgramInterrupt() }
        var entry = pv.pointee[.event]
        entry.masksEvents = true
        return bounce(to: entry, from: origin(pointee.rip, rflags))
    }

    /// SYSCALL: of the guest's kernel, a hypercall; of its programs, the kernel's.
    func paravirtualCall(_ insn: Insn) throws(Fault) -> UInt32 {
        let next = following(insn)
        if isGuestKernel {
            if pointee.gpr.0 & 0xFFFF_FFFF == 23 { return paravirtualReturn() }
            (pointee.gpr.1, pointee.gpr.11) = (next, rflags)
            pointee.rip = next
            return callOut()
        }
        let entry = pv.pointee[is64Bit ? .systemCall : .systemCall32]
        guard entry.address != 0 else { throw raise(Vector.invalidOpcode) }
        let flags = rflags & ~RFLAGS.resume
        (pointee.gpr.1, pointee.gpr.11) = (next, flags)
        return bounce(to: entry, from: origin(next, flags)) ? Status.jump : Status.exit
    }

    /// Out of line: it speaks to the machine.
    @inline(never) private func callOut() -> UInt32 {
        if bus.hypercall(pointee.gpr.0) { return takeParavirtualEvent() ? Status.jump : Status.exit }
        pointee.exit_reason = UInt8(APUS_EXIT_HYPERCALL)
        return Status.exit
    }

    /// SYSENTER of a program, which tells neither where it was nor where its stack is.
    func paravirtualEnter() throws(Fault) -> UInt32 {
        let entry = pv.pointee[.systemEnter]
        guard pointee.cpl == 3, entry.address != 0 else { throw raise(Vector.generalProtection, error: 0) }
        let origin = Origin(
            rip: 0, codeSelector: 3, flags: rflags & ~RFLAGS.virtual8086, stackPointer: 0,
            stackSelector: XenSelector.data)
        return bounce(to: entry, from: origin) ? Status.jump : Status.exit
    }

    // MARK: out

    /// HYPERVISOR_iret: struct iret_context lies on the kernel's stack.
    private func paravirtualReturn() -> UInt32 {
        let stack = pointee.gpr.4
        var frame: [9 of UInt64] = [0, 0, 0, 0, 0, 0, 0, 0, 0]
        do throws(Fault) {
            for index in 0..<9 { frame[index] = try loadLinear(stack &+ UInt64(index) * 8, as: UInt64.self, cpl: 0) }
        } catch {
            crash(.badFrame(stack))
            return Status.exit
        }
        let (selector, flags) = (UInt16(truncatingIfNeeded: frame[5]), frame[6])
        let isUser = selector & 3 == 3
        guard !isUser || pointee.user_cr3 != 0 else {
            crash(.noTables)
            return Status.exit
        }
        pointee.gpr.0 = frame[0]
        if frame[3] & 0x100 == 0 { (pointee.gpr.11, pointee.gpr.1) = (frame[1], frame[2]) }
        pv.pointee.areEventsMasked = flags & RFLAGS.interrupt == 0
        pointee.nmi_blocked = false
        let stackSelector = UInt16(truncatingIfNeeded: frame[8])
        guard let code = returnCode(selector, frame[4]), let data = returnStack(stackSelector, code) else {
            return failReturn(frame, isUser: isUser)
        }
        if isUser { leaveKernel() } else { enterKernel() }
        (segment(Seg.cs).pointee, segment(Seg.ss).pointee) = (code, data)
        pointee.rip = frame[4]
        pointee.gpr.4 = code.access & Access.long != 0 ? frame[7] : frame[7] & 0xFFFF_FFFF
        loadParavirtualFlags(flags)
        updateMode()
        noteProgram()
        return takeParavirtualEvent() ? Status.jump : Status.exit
    }

    private func loadParavirtualFlags(_ flags: UInt64) {
        let kept = RFLAGS.implemented & ~(RFLAGS.iopl | RFLAGS.virtual8086 | RFLAGS.resume | RFLAGS.nestedTask)
        let value = flags & kept | RFLAGS.interrupt
        pointee.arith_flags = UInt32(truncatingIfNeeded: value & RFLAGS.arithmetic)
        pointee.system_flags = UInt32(truncatingIfNeeded: value & ~RFLAGS.arithmetic) | 2
    }

    /// What IRET of the processor's own found wrong is the failsafe callback's to handle.
    private func failReturn(_ frame: [9 of UInt64], isUser: Bool) -> UInt32 {
        let origin = Origin(
            rip: frame[4], codeSelector: UInt16(truncatingIfNeeded: frame[5]), flags: frame[6],
            stackPointer: frame[7], stackSelector: UInt16(truncatingIfNeeded: frame[8]))
        if isUser { leaveKernel() }
        return bounce(to: pv.pointee[.failsafe], from: origin, isFailsafe: true) ? Status.jump : Status.exit
    }

    /// The code segment that iret names, whatever its level; nil: it cannot be returned to.
    private func returnCode(_ selector: UInt16, _ rip: UInt64) -> apus_segment? {
        if selector | 3 == XenSelector.code64 { return isCanonical(rip) ? Self.flatCode64 : nil }
        guard selector & 0xFFFC != 0, let code = paravirtualDescriptor(selector), code.isCode, code.isPresent,
            !(code.isLong && code.isBig), code.isLong ? isCanonical(rip) : rip <= UInt64(code.limit)
        else { return nil }
        return code.segment(selector: selector | 3)
    }

    private func returnStack(_ selector: UInt16, _ code: apus_segment) -> apus_segment? {
        if selector | 3 == XenSelector.data { return Self.flatData }
        guard selector & 0xFFFC != 0, let data = paravirtualDescriptor(selector), data.isWritableData, data.isPresent
        else { return nil }
        return data.segment(selector: selector | 3)
    }
}
