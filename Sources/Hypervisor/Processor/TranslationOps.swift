// The native forms of single instructions within a translated block.
// Source: Intel SDM volume 2.
// Modelled: the forms that NativePlan names.
// Quirks: checks that may fail come before anything the guest can see is changed.

internal import CProcessor

extension Translation {
    mutating func emitInstruction(_ insn: Insn, _ plan: NativePlan) {
        emitter.hasHighBytes = false
        if plan.hasHighBytes { return emitHighBytes(insn, plan) }
        switch plan.form {
        case .handler, .nothing: break
        case .store: emitStore(insn, plan)
        case .load: emitLoad(insn, plan)
        case .single: emitSingle(insn, plan)
        case .loadAddress: emitLoadAddress(insn)
        case .moveImmediate: emitMoveImmediate(insn)
        case .moveOffset: emitMoveOffset(insn, plan)
        case .convert: emitConvert(insn)
        case .setIf: emitSetIf(insn, plan)
        case .byteSwap: emitByteSwap(insn)
        case .exchange: emitExchange(insn)
        case .push, .pushImmediate: emitPush(insn, plan)
        case .pop: emitPop(insn, plan)
        case .leave: emitLeave(plan)
        case .jumpIf:
            restoreFlags(plan.liveIn)
            branch(if: UInt8(truncatingIfNeeded: insn.pointee.opcode), to: relative(insn))
        case .loop: emitLoop(insn, plan)
        case .jump: leave(relative(insn))
        case .call: emitCall(insn, plan)
        case .callIndirect: emitCallIndirect(insn, plan)
        case .jumpIndirect:
            loadTarget(insn, plan)
            leaveUnchecked(stack: nil)
        case .callReturn: emitReturn(insn, plan)
        case .exchangeMemory: emitExchangeMemory(insn, plan)
        case .divide: emitDivide(insn, plan)
        case .doubleShift: emitDoubleShift(insn, plan)
        case .fence: emitter.bytes(0x0F, 0xAE, insn.pointee.modrm)
        case .vector, .mmx: emitVector(insn, plan)
        case .control: emitControl(insn, plan)
        case .wide: emitWide(insn, plan)
        case .zeroUpper: emitZeroUpper()
        case .wideGeneral: emitWideGeneral(insn, plan)
        case .extended: emitExtended(insn, plan)
        case .x87: emitX87(insn, plan)
        case .clearInterrupts, .setInterrupts, .pushFlags, .swapBases, .userAccess, .timeStamp, .pushMemory, .bitMemory,
            .direction, .readState, .readBase, .writeBase, .systemCall, .systemReturn:
            emitSystem(insn, plan)
        }
    }

    func relative(_ insn: Insn) -> Int {
        Int(insn.pointee.next) &+ Int(truncatingIfNeeded: Int64(bitPattern: insn.pointee.imm))
    }

    /// Makes the host's flags the guest's if the instruction needs them, or leaves some as they are.
    mutating func prepareFlags(_ plan: NativePlan) {
        if needsFlags(plan) { restoreFlags(plan.liveIn) }
    }
    func needsFlags(_ plan: NativePlan) -> Bool {
        plan.reads != 0 || plan.changesFlags && plan.liveOut & ~plan.writes != 0
    }

    /// Bytes of the R/M operand.
    func sourceSize(_ insn: Insn) -> UInt8 {
        switch insn.pointee.opcode {
        case 0x1B6, 0x1BE: return 1
        case 0x1B7, 0x1BF: return 2
        case 0x63: return 4
        default: return insn.pointee.op_size
        }
    }

    func writesPlace(_ plan: NativePlan) -> Bool {
        switch plan.opcode {
        case 0x38...0x3B, 0x84, 0x85, 0x1A3: return false
        case 0x80, 0x81: return plan.extensionCode != 7
        case 0xF6, 0xF7: return plan.extensionCode == 2 || plan.extensionCode == 3
        case 0x1BA: return plan.extensionCode != 4
        default: return true
        }
    }

    private func prefix(_ insn: Insn) -> UInt8 {
        let isScan = insn.pointee.opcode == 0x1B8 || insn.pointee.opcode == 0x1BC || insn.pointee.opcode == 0x1BD
        return isScan && insn.pointee.prefixes & UInt8(APUS_PREFIX_REP) != 0 ? 0xF3 : 0
    }

    private mutating func emitStore(_ insn: Insn, _ plan: NativePlan) {
        let size = insn.pointee.op_size
        let writes = writesPlace(plan)
        if insn.pointee.mem != 0 {
            let place = memory(insn, size, write: writes, plan)
            prepareFlags(plan)
            let source = guest(insn.pointee.reg, HostRegister.scratch)
            if plan.isLocked { emitter.byte(0xF0) }
            emitter.insn(plan.opcode, size, source, place)
            return
        }
        prepareFlags(plan)
        let (rm, reg) = (insn.pointee.rm, insn.pointee.reg)
        if pinned(reg) == nil, let target = pinned(rm), let opcode = loadForm(plan.opcode) {
            return emitter.insn(opcode, size, target, .state(Int32(reg) * 8))
        }
        let source = guest(reg, HostRegister.scratch)
        // With memory, BT and its like would take the whole bit number.
        if plan.opcode < 0x100, worksInPlace(rm, size, writes: writes) {
            return emitter.insn(plan.opcode, size, source, .state(Int32(rm) * 8))
        }
        let target =
            plan.opcode == 0x89 && size == 4 ? pinned(rm) ?? HostRegister.address : guest(rm, HostRegister.address)
        emitter.insn(plan.opcode, size, source, .register(target))
        if writes { giveBack(rm, target) }
    }

    /// Whether an operation may work on a guest register where it lies in the vCPU. None may write less than all of it: a
    /// load of 64 bits soon behind a shorter store has to wait until that has reached the cache, some 20 ns.
    private func worksInPlace(_ register: UInt8, _ size: UInt8, writes: Bool) -> Bool {
        pinned(register) == nil && (size == 8 || size == 4 && !writes)
    }

    /// The opcode whose R/M operand is the source; TEST has but one.
    private func loadForm(_ opcode: UInt16) -> UInt16? {
        switch opcode {
        case 0x00...0x3B, 0x88, 0x89: return opcode | 2
        case 0x84, 0x85: return opcode
        default: return nil
        }
    }

    private mutating func emitLoad(_ insn: Insn, _ plan: NativePlan) {
        let size = insn.pointee.op_size
        let from = sourceSize(insn)
        var place: HostPlace
        if insn.pointee.mem != 0 {
            place = memory(insn, from, write: false, plan)
            prepareFlags(plan)
        } else {
            prepareFlags(plan)
            let rm = insn.pointee.rm
            place = pinned(rm).map { .register($0) } ?? .state(Int32(rm) * 8)
        }
        let target =
            overwrites(plan, size)
            ? pinned(insn.pointee.reg) ?? HostRegister.scratch
            : guest(insn.pointee.reg, HostRegister.scratch)
        if plan.opcode == 0x69 {
            emitter.insn(0x69, size, target, place)
            immediate(insn, size)
        } else {
            emitter.insn(plan.opcode, size, target, place, byteSource: from == 1, prefix: prefix(insn))
        }
        let isCompare = plan.opcode == 0x3A || plan.opcode == 0x3B
        if !isCompare { giveBack(insn.pointee.reg, target) }
    }

    /// The destination's old value does not count.
    private func overwrites(_ plan: NativePlan, _ size: UInt8) -> Bool {
        guard size >= 4 else { return false }
        switch plan.opcode {
        case 0x8B, 0x63, 0x69, 0x1B6, 0x1B7, 0x1BE, 0x1BF: return true
        default: return false
        }
    }

    private mutating func emitSingle(_ insn: Insn, _ plan: NativePlan) {
        let size = insn.pointee.op_size
        let writes = writesPlace(plan)
        var place: HostPlace
        var target: UInt8 = 0
        var isInPlace = false
        if insn.pointee.mem != 0 {
            place = memory(insn, size, write: writes, plan)
            prepareFlags(plan)
        } else {
            prepareFlags(plan)
            let rm = insn.pointee.rm
            isInPlace = worksInPlace(rm, size, writes: writes)
            target = isInPlace ? rm : guest(rm, HostRegister.address)
            place = isInPlace ? .state(Int32(rm) * 8) : .register(target)
        }
        if plan.isLocked { emitter.byte(0xF0) }
        if plan.opcode == 0x81,
            insn.pointee.imm == UInt64(bitPattern: Int64(Int8(truncatingIfNeeded: insn.pointee.imm)))
        {
            emitter.insn(0x83, size, plan.extensionCode, place)
            emitter.byte(UInt8(truncatingIfNeeded: insn.pointee.imm))
            if insn.pointee.mem == 0, writes, !isInPlace { giveBack(insn.pointee.rm, target) }
            return
        }
        emitter.insn(plan.opcode, size, plan.extensionCode, place)
        switch plan.opcode {
        case 0x80, 0x81, 0xC6, 0xC7: immediate(insn, size)
        case 0xF6, 0xF7: if plan.extensionCode < 2 { immediate(insn, size) }
        case 0xC0, 0xC1:
            emitter.byte(insn.pointee.opcode >= 0xD0 ? 1 : UInt8(truncatingIfNeeded: insn.pointee.imm))
        case 0x1BA: emitter.byte(UInt8(truncatingIfNeeded: insn.pointee.imm))
        default: break
        }
        if insn.pointee.mem == 0, writes, !isInPlace { giveBack(insn.pointee.rm, target) }
    }

    mutating func immediate(_ insn: Insn, _ size: UInt8) {
        switch size {
        case 1: emitter.byte(UInt8(truncatingIfNeeded: insn.pointee.imm))
        case 2:
            emitter.byte(UInt8(truncatingIfNeeded: insn.pointee.imm))
            emitter.byte(UInt8(truncatingIfNeeded: insn.pointee.imm &>> 8))
        default: emitter.long(Int32(truncatingIfNeeded: insn.pointee.imm))
        }
    }

    private mutating func emitLoadAddress(_ insn: Insn) {
        let reg = insn.pointee.reg
        let size = min(insn.pointee.op_size, insn.pointee.addr_size)
        if width == 2 {
            loadAddress(insn, into: HostRegister.address, 4)
            if insn.pointee.addr_size == 2 { truncate(HostRegister.address) }
            let target = pinned(reg) ?? HostRegister.scratch
            return emitter.insn(0x89, insn.pointee.op_size, HostRegister.address, .register(target))
        }
        if let target = pinned(reg) { return loadAddress(insn, into: target, size) }
        loadAddress(insn, into: HostRegister.address, size)
        emitter.store(HostRegister.address, .state(Int32(reg) * 8))
    }

    private mutating func emitMoveImmediate(_ insn: Insn) {
        let size = insn.pointee.op_size
        let rm = insn.pointee.rm
        let value = insn.pointee.imm
        if size < 4 {
            let target = guest(rm, HostRegister.scratch)
            emitter.insn(size == 1 ? 0xC6 : 0xC7, size, 0, .register(target))
            immediate(insn, size)
            return giveBack(rm, target)
        }
        let wanted = size == 4 ? value & 0xFFFF_FFFF : value
        if UInt64(bitPattern: Int64(Int32(truncatingIfNeeded: wanted))) == wanted {
            let place = pinned(rm).map { HostPlace.register($0) } ?? .state(Int32(rm) * 8)
            emitter.insn(0xC7, 8, 0, place)
            emitter.long(Int32(truncatingIfNeeded: wanted))
            return
        }
        let target = pinned(rm) ?? HostRegister.scratch
        emitter.loadConstant(target, wanted)
        giveBack(rm, target)
    }

    /// MOV of AL, AX, EAX or RAX and memory at an address within the instruction.
    private mutating func emitMoveOffset(_ insn: Insn, _ plan: NativePlan) {
        let size = insn.pointee.op_size
        clobberFlags(plan)
        emitter.loadConstant(HostRegister.address, insn.pointee.imm)
        addSegment(insn, size)
        translateAddress(size, write: plan.opcode & 2 == 0, slot: nearSlot(insn))
        emitter.insn(plan.opcode, size, 0, .memory(HostRegister.address, 0))
    }

    private mutating func emitConvert(_ insn: Insn) {
        if insn.pointee.op_size == 2 { emitter.byte(0x66) }
        if insn.pointee.op_size == 8 { emitter.byte(0x48) }
        emitter.byte(UInt8(truncatingIfNeeded: insn.pointee.opcode))
    }

    private mutating func emitSetIf(_ insn: Insn, _ plan: NativePlan) {
        guard insn.pointee.mem == 0 else {
            let place = memory(insn, 1, write: true, plan)
            prepareFlags(plan)
            return emitter.insn(plan.opcode, 1, 0, place)
        }
        prepareFlags(plan)
        let target = guest(insn.pointee.rm, HostRegister.scratch)
        emitter.insn(plan.opcode, 1, 0, .register(target))
        giveBack(insn.pointee.rm, target)
    }

    private mutating func emitByteSwap(_ insn: Insn) {
        let target = guest(insn.pointee.rm, HostRegister.scratch)
        let wide: UInt8 = insn.pointee.op_size == 8 ? 0x48 : 0x40
        emitter.bytes(wide | target >> 3, 0x0F, 0xC8 | target & 7)
        giveBack(insn.pointee.rm, target)
    }

    private mutating func emitExchange(_ insn: Insn) {
        let target = guest(insn.pointee.rm, HostRegister.address)
        let isAccumulator = insn.pointee.opcode != 0x87
        let reg = isAccumulator ? 0 : insn.pointee.reg
        let source = guest(reg, HostRegister.scratch)
        emitter.insn(0x87, insn.pointee.op_size, source, .register(target))
        giveBack(insn.pointee.rm, target)
        giveBack(reg, source)
    }
}
