// The native forms of what uses the stack, of calls and of indirect branches.
// Source: Intel SDM volume 2.
// Modelled: pushes or pops in a row share one access.
// Quirks: checks that may fail come before anything the guest can see is changed.

internal import CProcessor

extension Translation {
    private var stack: UInt8 { HostRegister.stack }

    /// A place of `bytes` bytes, `low` from the stack pointer.
    mutating func stackPlace(_ low: Int32, _ bytes: UInt8, write: Bool, _ plan: NativePlan) -> HostPlace {
        if let place = shared(4, low, plan) { return place }
        clobberFlags(plan)
        emitter.insn(0x8D, 8, HostRegister.address, .memory(stack, low))
        translateAddress(bytes, write: write)
        return .memory(HostRegister.address, 0)
    }
    mutating func moveStack(_ bytes: Int32) { emitter.insn(0x8D, 8, stack, .memory(stack, bytes)) }

    mutating func emitPush(_ insn: Insn, _ plan: NativePlan) {
        let place = stackPlace(-8, 8, write: true, plan)
        if plan.form == .pushImmediate {
            emitter.insn(0xC7, 8, 0, place)
            emitter.long(Int32(truncatingIfNeeded: insn.pointee.imm))
        } else {
            let source = guest(insn.pointee.rm, HostRegister.scratch)
            emitter.store(source, place)
        }
        moveStack(-8)
    }

    mutating func emitPop(_ insn: Insn, _ plan: NativePlan) {
        let place = stackPlace(0, 8, write: false, plan)
        let target = pinned(insn.pointee.rm) ?? HostRegister.scratch
        emitter.load(target, place)
        giveBack(insn.pointee.rm, target)
        if target != stack { moveStack(8) }
    }

    /// Pushes, or pops, of several registers with one look into the TLB.
    mutating func emitStackRun(_ index: Int, _ number: Int) {
        let plan = plans[index]
        let bytes = Int32(number * 8)
        if plan.form == .push {
            let lowest = stackPlace(-bytes, UInt8(bytes), write: true, plan)
            for (place, register) in (index..<index + number).reversed().enumerated() {
                let source = guest(insn(register).pointee.rm, HostRegister.scratch)
                emitter.store(source, lowest.behind(Int32(place) * 8))
            }
            return moveStack(-bytes)
        }
        let lowest = stackPlace(0, UInt8(bytes), write: false, plan)
        for place in 0..<number {
            let rm = insn(index + place).pointee.rm
            let target = pinned(rm) ?? HostRegister.scratch
            emitter.load(target, lowest.behind(Int32(place) * 8))
            giveBack(rm, target)
        }
        moveStack(bytes)
    }

    mutating func emitLeave(_ plan: NativePlan) {
        clobberFlags(plan)
        emitter.move(HostRegister.address, 5)
        translateAddress(8, write: false)
        emitter.insn(0x8D, 8, stack, .memory(5, 8))
        emitter.load(5, .memory(HostRegister.address, 0))
    }

    // MARK: - Calls and indirect branches

    /// Pushes the address behind the instruction.
    mutating func pushReturn(_ insn: Insn, _ place: HostPlace) {
        emitter.load(HostRegister.scratch, .state(StateOffset.rip))
        emitter.insn(0x8D, 8, HostRegister.scratch, .memory(HostRegister.scratch, Int32(insn.pointee.next)))
        emitter.store(HostRegister.scratch, place)
        moveStack(-8)
    }

    mutating func emitCall(_ insn: Insn, _ plan: NativePlan, _ index: Int) {
        pushReturn(insn, stackPlace(-8, 8, write: true, plan))
        leave(relative(insn), index + 1)
    }

    /// The target of an indirect branch in r10; flags are saved.
    mutating func loadTarget(_ insn: Insn, _ plan: NativePlan) {
        clobberFlags(plan)
        if insn.pointee.mem != 0 {
            let place = memory(insn, 8, write: false, plan)
            emitter.load(HostRegister.address, place)
        } else {
            let source = guest(insn.pointee.rm, HostRegister.address)
            if source != HostRegister.address { emitter.move(HostRegister.address, source) }
        }
    }

    /// Gives up unless r10 is canonical.
    mutating func checkTarget() {
        emitter.move(HostRegister.scratch, HostRegister.address)
        emitter.bytes(0x49, 0xC1, 0xE3, 16, 0x49, 0xC1, 0xFB, 16)  // shl r11, 16; sar r11, 16
        emitter.insn(0x39, 8, HostRegister.address, .register(HostRegister.scratch))
        giveUp(if: 5)
    }

    mutating func emitCallIndirect(_ insn: Insn, _ plan: NativePlan, _ index: Int) {
        loadTarget(insn, plan)
        checkTarget()
        emitter.store(HostRegister.address, .state(StateOffset.target))
        emitter.insn(0x8D, 8, HostRegister.address, .memory(stack, -8))
        translateAddress(8, write: true)
        pushReturn(insn, .memory(HostRegister.address, 0))
        emitter.load(HostRegister.address, .state(StateOffset.target))
        emitter.store(HostRegister.address, .state(StateOffset.rip))
        leaveIndirect(index + 1)
    }

    mutating func emitReturn(_ insn: Insn, _ plan: NativePlan, _ index: Int) {
        let place = stackPlace(0, 8, write: false, plan)
        clobberFlags(plan)
        emitter.load(HostRegister.address, place)
        leaveUnchecked(index + 1, stack: 8 + Int32(insn.pointee.imm & 0xFFFF))
    }
}
