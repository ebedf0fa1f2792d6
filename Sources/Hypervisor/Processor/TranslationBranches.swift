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
        loadStackAddress(low, bytes)
        guard width == 8 else {
            translateAddress(bytes, write: write, slot: stackSlot)
            return .memory(HostRegister.address, 0)
        }
        translateAddress(bytes, write: write, .distance)
        return .indexed(HostRegister.address, stack, low)
    }

    /// The slot in front of the TLB for the stack.
    var stackSlot: Int { width == 2 ? segmentSS << 2 : 4 }

    /// The linear address of `bytes` bytes in the stack segment, `low` from a register, in r10; clobbers flags.
    mutating func loadStackAddress(_ low: Int32, _ bytes: UInt8, from register: UInt8 = HostRegister.stack) {
        emitter.insn(0x8D, registerWidth, HostRegister.address, .memory(register, low))
        guard width == 2 else { return }
        truncate(HostRegister.address)
        addRealSegment(UInt8(segmentSS), Int32(bytes), short: true)
    }

    /// Loads a word as wide as instruction pointers, zero-extended.
    mutating func loadWord(_ register: UInt8, _ place: HostPlace) {
        emitter.insn(width == 2 ? 0x1B7 : 0x8B, registerWidth, register, place)
    }

    mutating func moveStack(_ bytes: Int32) { emitter.insn(0x8D, width, stack, .memory(stack, bytes)) }

    mutating func emitPush(_ insn: Insn, _ plan: NativePlan) {
        let bytes = Int32(width)
        let place = stackPlace(-bytes, width, write: true, plan)
        if plan.form == .pushImmediate {
            emitter.insn(0xC7, width, 0, place)
            immediate(insn, width)
        } else {
            let source = guest(insn.pointee.rm, HostRegister.scratch)
            emitter.insn(0x89, width, source, place)
        }
        moveStack(-bytes)
    }

    mutating func emitPop(_ insn: Insn, _ plan: NativePlan) {
        let place = stackPlace(0, width, write: false, plan)
        let target = pinned(insn.pointee.rm) ?? HostRegister.scratch
        emitter.insn(0x8B, width, target, place)
        giveBack(insn.pointee.rm, target)
        if target != stack { moveStack(Int32(width)) }
    }

    /// Pushes, or pops, of several registers with one look into the TLB.
    mutating func emitStackRun(_ index: Int, _ number: Int) {
        let plan = plans[index]
        let bytes = Int32(number) * Int32(width)
        if plan.form == .push {
            let lowest = stackPlace(-bytes, UInt8(bytes), write: true, plan)
            for (place, register) in (index..<index + number).reversed().enumerated() {
                let source = guest(insn(register).pointee.rm, HostRegister.scratch)
                emitter.insn(0x89, width, source, lowest.behind(Int32(place) * Int32(width)))
            }
            return moveStack(-bytes)
        }
        let lowest = stackPlace(0, UInt8(bytes), write: false, plan)
        for place in 0..<number {
            let rm = insn(index + place).pointee.rm
            let target = pinned(rm) ?? HostRegister.scratch
            emitter.insn(0x8B, width, target, lowest.behind(Int32(place) * Int32(width)))
            giveBack(rm, target)
        }
        moveStack(bytes)
    }

    mutating func emitLeave(_ plan: NativePlan) {
        clobberFlags(plan)
        loadStackAddress(0, width, from: 5)
        translateAddress(width, write: false, slot: stackSlot)
        emitter.insn(0x8D, width, stack, .memory(5, Int32(width)))
        emitter.insn(0x8B, width, 5, .memory(HostRegister.address, 0))
    }

    /// LOOP and JECXZ, whose counter is as wide as addresses.
    mutating func emitLoop(_ insn: Insn, _ plan: NativePlan) {
        let size = insn.pointee.addr_size
        clobberFlags(plan)
        isSaved = true
        let isCounting = insn.pointee.opcode == 0xE2
        if isCounting { emitter.insn(0x8D, size, 1, .memory(1, -1)) }
        emitter.insn(0x85, size, 1, .register(1))
        branch(if: isCounting ? 5 : 4, to: relative(insn))
    }

    // MARK: - Calls and indirect branches

    /// Pushes the address behind the instruction.
    mutating func pushReturn(_ insn: Insn, _ place: HostPlace) {
        emitter.load(HostRegister.scratch, .state(StateOffset.rip))
        emitter.insn(
            0x8D, registerWidth, HostRegister.scratch, .memory(HostRegister.scratch, Int32(insn.pointee.next) + lag))
        emitter.insn(0x89, width, HostRegister.scratch, place)
        moveStack(-Int32(width))
    }

    mutating func emitCall(_ insn: Insn, _ plan: NativePlan) {
        pushReturn(insn, stackPlace(-Int32(width), width, write: true, plan))
        leave(relative(insn), returning: returning(insn))
    }

    /// The target of an indirect branch in r10; flags are saved.
    mutating func loadTarget(_ insn: Insn, _ plan: NativePlan) {
        clobberFlags(plan)
        if insn.pointee.mem != 0 {
            let place = memory(insn, width, write: false, plan)
            loadWord(HostRegister.address, place)
        } else {
            let source = guest(insn.pointee.rm, HostRegister.address)
            if source != HostRegister.address {
                emitter.insn(0x89, registerWidth, source, .register(HostRegister.address))
            }
            if width == 2 { truncate(HostRegister.address) }
        }
    }

    /// Gives up unless r10 is canonical; 32 bits always lie within a flat segment's limit.
    mutating func checkTarget() {
        if width == 8 { checkCanonical(HostRegister.address) }
    }

    /// Gives up unless a register is canonical; r11 is what it is then.
    mutating func checkCanonical(_ register: UInt8) {
        emitter.move(HostRegister.scratch, register)
        emitter.bytes(0x49, 0xC1, 0xE3, 16, 0x49, 0xC1, 0xFB, 16)  // shl r11, 16; sar r11, 16
        emitter.insn(0x39, 8, register, .register(HostRegister.scratch))
        giveUp(if: 5)
    }

    mutating func emitCallIndirect(_ insn: Insn, _ plan: NativePlan) {
        loadTarget(insn, plan)
        checkTarget()
        emitter.store(HostRegister.address, .state(StateOffset.target))
        loadStackAddress(-Int32(width), width)
        translateAddress(width, write: true, slot: stackSlot)
        pushReturn(insn, .memory(HostRegister.address, 0))
        emitter.load(HostRegister.address, .state(StateOffset.target))
        emitter.store(HostRegister.address, .state(StateOffset.rip))
        settle()
        dispatch(returning: returning(insn))
    }

    mutating func emitReturn(_ insn: Insn, _ plan: NativePlan) {
        let place = stackPlace(0, width, write: false, plan)
        clobberFlags(plan)
        loadWord(HostRegister.address, place)
        leaveUnchecked(stack: Int32(width) + Int32(insn.pointee.imm & 0xFFFF))
    }
}
