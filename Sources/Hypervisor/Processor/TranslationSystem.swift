// Native forms of what kernels do all the time: interrupts on and off, SWAPGS, STAC, time stamps, bits in memory, system
// calls, reading control and segment registers.
// Source: Intel SDM volume 2, one entry an instruction.
// Modelled: CLI, STI, PUSHF, SWAPGS, CLAC, STAC, MOV from CR of supervisors; SYSCALL and SYSRET of 64-bit code; RDTSC, RDTSCP,
// CLD, STD, MOV from segment registers, RDFSBASE and its like, PUSH and BT, BTS, BTR, BTC with memory.
// Quirks: interrupts are taken at the start of blocks, so STI's shadow needs nothing but another instruction behind it.

internal import CProcessor

extension NativePlan {
    /// The plan of an instruction that only translated code of some modes has a form for.
    static func system(_ insn: Insn, mode: UInt32) -> NativePlan? {
        let width = UInt8(ModeKey(rawValue: mode).codeSize)
        let isSupervisor = mode & (ModeKey.user.rawValue | ModeKey.middle.rawValue) == 0
        switch insn.pointee.opcode {
        case 0xFA where isSupervisor: return .plain(.clearInterrupts)
        case 0xFB where isSupervisor: return .plain(.setInterrupts)
        case 0x9C where width >= 4 && insn.pointee.op_size == width:
            return .plain(.pushFlags, reads: allFlags)
        case 0x131: return .plain(.timeStamp)
        case 0xFC, 0xFD: return .plain(.direction)
        case 0x8C where insn.pointee.mem == 0 && insn.pointee.modrm >> 3 & 7 <= UInt8(Seg.gs): return .plain(.readState)
        case 0x120 where isSupervisor && width >= 4 && [0, 2, 3, 4].contains(insn.pointee.reg):
            return .plain(.readState)
        case 0x1AE where width == 8 && insn.pointee.mem == 0 && isBaseAccess(insn):
            return .plain(insn.pointee.modrm >> 3 & 7 < 2 ? .readBase : .writeBase)
        case 0x105 where width == 8: return .plain(.systemCall, reads: allFlags)
        case 0x107 where width == 8 && insn.pointee.op_size == 8 && isSupervisor:
            return .plain(.systemReturn, reads: allFlags)
        case 0x101 where insn.pointee.mem == 0: return group7(insn.pointee.modrm, isSupervisor)
        case 0x1A3 where hasMemoryBits(insn, locked: false), 0x1AB where hasMemoryBits(insn, locked: true),
            0x1B3 where hasMemoryBits(insn, locked: true), 0x1BB where hasMemoryBits(insn, locked: true):
            var plan = NativePlan.flags(.bitMemory, insn.pointee.opcode, writes: 1)
            plan.isLocked = insn.pointee.prefixes & UInt8(APUS_PREFIX_LOCK) != 0
            return plan
        default: return nil
        }
    }

    /// RDFSBASE, RDGSBASE, WRFSBASE or WRGSBASE.
    private static func isBaseAccess(_ insn: Insn) -> Bool {
        insn.pointee.prefixes & UInt8(APUS_PREFIX_REP) != 0 && insn.pointee.modrm >> 3 & 7 < 4
    }

    private static func hasMemoryBits(_ insn: Insn, locked: Bool) -> Bool {
        insn.pointee.mem != 0 && insn.pointee.op_size >= 4
            && (locked || insn.pointee.prefixes & UInt8(APUS_PREFIX_LOCK) == 0)
    }

    private static func group7(_ modrm: UInt8, _ isSupervisor: Bool) -> NativePlan? {
        switch modrm {
        case 0xCA where isSupervisor, 0xCB where isSupervisor: return .plain(.userAccess)
        case 0xF8 where isSupervisor: return .plain(.swapBases)
        case 0xF9: return .plain(.timeStamp)
        default: return nil
        }
    }
}

extension Translation {
    private var address: UInt8 { HostRegister.address }
    private var scratch: UInt8 { HostRegister.scratch }

    /// The forms of `NativePlan.system`. Those that change the host's flags leave none of the guest's in them.
    mutating func emitSystem(_ insn: Insn, _ plan: NativePlan) {
        switch plan.form {
        case .clearInterrupts:
            clobberFlags(plan)
            emitter.insn(0x81, 4, 4, .state(StateOffset.systemFlags))
            emitter.long(Int32(truncatingIfNeeded: ~RFLAGS.interrupt))
        case .setInterrupts:
            clobberFlags(plan)
            emitter.insn(0x81, 4, 1, .state(StateOffset.systemFlags))
            emitter.long(Int32(truncatingIfNeeded: RFLAGS.interrupt))
        case .swapBases:
            emitter.load(address, .state(StateOffset.segmentBase(UInt8(segmentGS))))
            emitter.load(scratch, .state(StateOffset.kernelBase))
            emitter.store(address, .state(StateOffset.kernelBase))
            emitter.store(scratch, .state(StateOffset.segmentBase(UInt8(segmentGS))))
        case .userAccess: emitUserAccess(plan, sets: insn.pointee.modrm == 0xCB)
        case .timeStamp: emitTimeStamp(insn, plan)
        case .direction:
            clobberFlags(plan)
            let sets = insn.pointee.opcode == 0xFD
            let bit = Int32(truncatingIfNeeded: RFLAGS.direction)
            emitter.insn(0x81, 4, sets ? 1 : 4, .state(StateOffset.systemFlags))
            emitter.long(sets ? bit : ~bit)
        case .readState: emitReadState(insn)
        case .readBase, .writeBase: emitBase(insn, plan)
        case .systemCall: emitLevelChange(common.systemCall)
        case .systemReturn: emitLevelChange(common.systemReturn)
        case .pushFlags: emitPushFlags(plan)
        case .pushMemory:
            let place = memory(insn, width, write: false, plan)
            loadWord(address, place)
            pushValue()
        default: emitBitMemory(insn, plan)
        }
    }

    /// MOV from a control or segment register.
    private mutating func emitReadState(_ insn: Insn) {
        let target = guest(insn.pointee.rm, scratch)
        if insn.pointee.opcode == 0x8C {
            let selector = StateOffset.segmentSelector(insn.pointee.modrm >> 3 & 7)
            // A word leaves the rest of the register alone.
            let isWord = insn.pointee.op_size == 2
            emitter.insn(isWord ? 0x8B : 0x1B7, isWord ? 2 : 4, target, .state(selector))
        } else {
            emitter.insn(0x8B, width, target, .state(StateOffset.control(insn.pointee.reg)))
        }
        giveBack(insn.pointee.rm, target)
    }

    /// RDFSBASE, RDGSBASE, WRFSBASE and WRGSBASE.
    private mutating func emitBase(_ insn: Insn, _ plan: NativePlan) {
        clobberFlags(plan)
        emitter.insn(0xF7, 4, 0, .state(StateOffset.cr4))
        emitter.long(Int32(truncatingIfNeeded: CR4.fsgsBase))
        giveUp(if: 4)
        let size: UInt8 = insn.pointee.op_size == 8 ? 8 : 4
        let group = insn.pointee.modrm >> 3 & 7
        let base = StateOffset.segmentBase(UInt8(group & 1 == 0 ? Seg.fs : Seg.gs))
        if plan.form == .readBase {
            let target = pinned(insn.pointee.rm) ?? scratch
            emitter.insn(0x8B, size, target, .state(base))
            return giveBack(insn.pointee.rm, target)
        }
        let value = guest(insn.pointee.rm, address)
        if size == 8 { checkCanonical(value) } else { emitter.insn(0x8B, 4, scratch, .register(value)) }
        emitter.store(scratch, .state(base))
    }

    /// SYSCALL or SYSRET: goes on at its target, unless the handler must do it.
    private mutating func emitLevelChange(_ code: UnsafeMutablePointer<UInt8>) {
        saveFlags()
        isNative = false
        if !cpu.isParavirtual {
            settle()
            emitter.load(address, .state(StateOffset.rip))
            emitter.insn(0x8D, 8, address, .memory(address, Int32(insn(index).pointee.next) + lag))
            let refused = emitCallee()
            emitter.store(scratch, .state(StateOffset.target))
            emitter.jump(to: code)
            emitter.aim(refused, emitter.at)
            borrow()
        }
        callHandlers(index, 1)
    }

    /// Pushes r10; the host's flags are clobbered already.
    private mutating func pushValue() {
        emitter.store(address, .state(StateOffset.target))
        loadStackAddress(-Int32(width), width)
        translateAddress(width, write: true, slot: stackSlot)
        emitter.load(scratch, .state(StateOffset.target))
        emitter.insn(0x89, width, scratch, .memory(address, 0))
        moveStack(-Int32(width))
    }

    private mutating func emitPushFlags(_ plan: NativePlan) {
        saveFlags()
        isNative = false
        emitter.insn(0x1B6, 4, scratch, .state(StateOffset.flags + 1))
        emitter.insn(0x81, 4, 4, .register(scratch))
        emitter.long(0xD5)
        emitter.insn(0x1B6, 4, address, .state(StateOffset.flags))
        emitter.insn(0xC1, 4, 4, .register(address))
        emitter.byte(11)
        emitter.insn(0x09, 4, scratch, .register(address))
        emitter.insn(0x0B, 4, address, .state(StateOffset.systemFlags))
        emitter.insn(0x81, 4, 4, .register(address))
        emitter.long(Int32(truncatingIfNeeded: ~(RFLAGS.virtual8086 | RFLAGS.resume)))
        pushValue()
    }

    /// RFLAGS.AC, and with SMAP what else depends on it: the rest of the block runs in another mode.
    private mutating func emitUserAccess(_ plan: NativePlan, sets: Bool) {
        clobberFlags(plan)
        let bit = Int32(truncatingIfNeeded: RFLAGS.alignmentCheck)
        emitter.insn(0x81, 4, sets ? 1 : 4, .state(StateOffset.systemFlags))
        emitter.long(sets ? bit : ~bit)
        guard key & ModeKey.accessPrevention.rawValue != 0 else { return }
        let user = ModeKey.userAccess.rawValue
        key = sets ? key | user : key & ~user
        emitter.insn(0xC7, 4, 0, .state(StateOffset.modeKey))
        emitter.long(Int32(bitPattern: key))
        let mode = UInt8(sets ? APUS_TLB_SUPERVISOR_AC : APUS_TLB_SUPERVISOR)
        emitter.insn(0xC6, 1, 0, .state(StateOffset.tlbMode))
        emitter.byte(mode)
        let set = StateOffset.tlbSet(mode)
        emitter.insn(0x8D, 8, scratch, .state(set))
        emitter.store(scratch, .state(StateOffset.tlbRead))
        emitter.insn(0x8D, 8, scratch, .state(set + StateOffset.tlbBytes))
        emitter.store(scratch, .state(StateOffset.tlbWrite))
        tlb = set
        tlbMode = mode
    }

    private mutating func emitTimeStamp(_ insn: Insn, _ plan: NativePlan) {
        clobberFlags(plan)
        if key & (ModeKey.user.rawValue | ModeKey.middle.rawValue) != 0 {
            emitter.insn(0xF7, 4, 0, .state(StateOffset.cr4))
            emitter.long(Int32(truncatingIfNeeded: CR4.timeStampDisable))
            giveUp(if: 5)
        }
        emitter.bytes(0x0F, 0x31)  // rdtsc
        emitter.bytes(0x48, 0xC1, 0xE2, 32, 0x48, 0x09, 0xD0)  // shl rdx, 32; or rax, rdx
        emitter.insn(0x03, 8, 0, .state(StateOffset.timeStampOffset))
        emitter.bytes(0x48, 0x89, 0xC2, 0x48, 0xC1, 0xEA, 32, 0x89, 0xC0)  // mov rdx, rax; shr rdx, 32; mov eax, eax
        if insn.pointee.opcode == 0x101 { emitter.insn(0x8B, 4, 1, .state(StateOffset.timeStampAux)) }
    }

    /// BT, BTS, BTR and BTC with a bit number that reaches beyond the operand.
    private mutating func emitBitMemory(_ insn: Insn, _ plan: NativePlan) {
        let size = insn.pointee.op_size
        clobberFlags(plan)
        loadAddress(insn)
        let reg = insn.pointee.reg
        let number = pinned(reg).map { HostPlace.register($0) } ?? .state(Int32(reg) * 8)
        emitter.insn(size == 8 ? 0x8B : 0x63, 8, scratch, number)
        emitter.insn(0xC1, 8, 7, .register(scratch))
        emitter.byte(3)
        emitter.insn(0x81, 8, 4, .register(scratch))
        emitter.long(-Int32(size))
        emitter.insn(0x01, max(4, insn.pointee.addr_size), scratch, .register(address))
        if insn.pointee.addr_size == 2 { truncate(address) }
        addSegment(insn, size)
        translateAddress(size, write: plan.opcode != 0x1A3, slot: nearSlot(insn))
        emitter.insn(0x8B, 4, scratch, number)
        emitter.insn(0x83, 4, 4, .register(scratch))
        emitter.byte(size * 8 - 1)
        if plan.liveOut & ~plan.writes != 0 {
            emitter.store(scratch, .state(StateOffset.target))
            prepareFlags(plan)
            emitter.load(scratch, .state(StateOffset.target))
        }
        if plan.isLocked { emitter.byte(0xF0) }
        emitter.insn(plan.opcode, size, scratch, .memory(address, 0))
    }

    /// MOV of AH, CH, DH or BH to memory, which no instruction does beside r10.
    mutating func emitStoreHighByte(_ insn: Insn, _ plan: NativePlan) {
        let place = memory(insn, 1, write: true, plan)
        emitter.move(scratch, insn.pointee.reg_at >> 3)
        emitter.insn(0xC1, 4, 5, .register(scratch))
        emitter.byte(8)
        emitter.insn(0x88, 1, scratch, place)
    }
}

extension Translator {
    /// With r10 = address behind SYSCALL or SYSRET, which `function` carries out with the guest's vector registers in the
    /// host's: goes on at its target, or where `native_target` leads if it does not. No call: the host's prediction of
    /// returns is the guest's.
    static func emitLevelChange(
        _ emitter: inout Emitter, _ function: UInt64, dispatch: UnsafeMutablePointer<UInt8>
    ) {
        storeGuest(&emitter)
        emitter.insn(0x8D, 8, 7, .state(0))
        emitter.move(6, HostRegister.address)
        emitter.loadConstant(0, function)
        emitter.bytes(0xFF, 0xD0, 0x85, 0xC0)  // call rax; test eax, eax
        loadGuest(&emitter)
        emitter.jump(if: 5, to: dispatch)
        emitter.insn(0xFF, 4, 4, .state(StateOffset.target))  // jmp
    }
}
