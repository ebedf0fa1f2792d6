// How translated code reaches memory: by a slot in front of the TLB, by the TLB itself, or by the handler.
// Source: our own design; docs/decisions/0004.md.
// Modelled: what a slot misses is counted, so that places which alternate between pages do without.
// Quirks: an access that misses both levels of the TLB is left to the instruction's handler as a whole.

internal import CProcessor

extension Translation {
    /// What a look into the TLB leaves in r10.
    enum Translated {
        /// The operand's address in the host.
        case address
        /// How far the host's addresses of the page are from the guest's: the operand's own registers need not wait.
        case distance

        /// ADD or MOV from a field of the entry.
        fileprivate var opcode: UInt16 { self == .address ? 0x03 : 0x8B }
        fileprivate var field: Int32 { self == .address ? 8 : 16 }
    }

    /// Compares what r10, or another register, holds with the size of a page less the operand's; the condition that it
    /// does not fit.
    private mutating func compareOffset(
        _ size: Int32, aligned: Bool, in register: UInt8 = HostRegister.address
    ) -> UInt8 {
        if aligned {
            emitter.insn(0xF7, 8, 0, .register(register))  // test: all but a page's multiples of the size
            emitter.long(size - 1 - 4096)
            return 5
        }
        emitter.insn(0x81, 8, 7, .register(register))  // cmp
        emitter.long(4096 - size)
        return 7
    }

    /// Turns the linear address in r10 into what `form` says by the slot in front of the TLB.
    private mutating func translateNear(
        _ size: Int32, write: Bool, aligned: Bool, _ slot: Int, _ form: Translated, leads: Bool
    ) {
        let place = StateOffset.near(tlbMode, write: write, slot: slot)
        compareNear(size, write: write, aligned: aligned, place, leads: leads)
        emitter.insn(form.opcode, 8, HostRegister.address, .state(place + form.field))
    }

    /// Compares the linear address in r10 with the slot at `place`. `start`: where the address began to be computed; then
    /// it is in r11, too, and stays in r10.
    private mutating func compareNear(
        _ size: Int32, write: Bool, aligned: Bool, _ place: Int32, leads: Bool,
        from start: UnsafeMutablePointer<UInt8>? = nil
    ) {
        let register = start == nil ? HostRegister.address : HostRegister.scratch
        emitter.insn(0x33, 8, register, .state(place))
        let jump = emitter.jump(if: compareOffset(size, aligned: aligned, in: register))
        misses.append(
            Miss(
                jump: jump, back: start ?? emitter.at, isKept: start != nil, index: index, slot: place,
                refill: common.refills[Int(tlbMode) * 2 + (write ? 1 : 0)], size: size, aligned: aligned,
                isApart: isApart, leads: leads))
    }

    /// Counts the executions of a block on trial; where it goes at the end, and comes back.
    mutating func emitTrial() -> (jump: UnsafeMutablePointer<UInt8>, back: UnsafeMutablePointer<UInt8>) {
        let number = block - cpu.engine.pointee.blocks.blocks
        emitter.insn(0x83, 4, 5, .state(StateOffset.trial(number)))
        emitter.byte(1)
        let jump = emitter.jump(if: 4)
        return (jump, emitter.at)
    }

    /// The number of a place with a count of misses.
    static func site(_ physical: UInt64) -> UInt32 {
        UInt32(truncatingIfNeeded: physical ^ physical &>> 12) & UInt32(APUS_NEAR_SITES - 1)
    }

    mutating func callPlainly(_ number: Int) {
        settle()
        emitter.loadConstant(HostRegister.scratch, UInt64(UInt(bitPattern: common.plainly + number)))
        emitter.loadConstant(HostRegister.address, UInt64(UInt(bitPattern: block)) | 1 << 48)
        emitter.call(common.handlers)
        borrow()
    }

    mutating func emitMisses() {
        let allowed = block.pointee.trial != 0 ? Translator.trialMisses : Translator.usualMisses
        for miss in misses {
            emitter.aim(miss.jump, emitter.at)
            if miss.isKept { emitter.move(HostRegister.address, HostRegister.scratch) }
            if let slot = miss.slot {
                emitter.insn(0xC7, 4, 0, .register(HostRegister.scratch))
                emitter.long(slot)
            }
            emitter.call(miss.refill)
            let slow = slows.firstIndex { $0.index == miss.index && $0.isApart == (miss.isApart || miss.leads) }
            let condition = compareOffset(miss.size, aligned: miss.aligned)
            if miss.leads {
                failures.append((emitter.jump(if: condition), miss.index))
            } else if let slow {
                joins.append((emitter.jump(if: condition), slow))
            }
            guard miss.slot != nil else {
                emitter.jump(to: miss.back)
                continue
            }
            let site = Self.site(block.pointee.physical &+ UInt64(insn(miss.index).pointee.start))
            apus_allow_misses(cpu, site, allowed)
            emitter.insn(0x83, 2, 5, .state(StateOffset.nearMisses + Int32(bitPattern: site) * 2))
            emitter.byte(1)
            emitter.jump(if: 5, to: miss.back)
            callPlainly(miss.index)
            if let slow { joins.append((emitter.jump(), slow)) }
        }
        for failure in failures {
            emitter.aim(failure.jump, emitter.at)
            enterApart(failure.index)
        }
    }

    /// Turns the linear address in r10 into a host address or its distance, or gives up. `slot`: which slot in front of
    /// the TLB.
    mutating func translateAddress(
        _ size: UInt8, write: Bool, aligned: Bool = false, slot: Int = 4, _ form: Translated = .address
    ) {
        let isWatched = block.pointee.mode_key & ModeKey.alignmentCheck.rawValue != 0
        if !isWatched, !isPlain(index) {
            return translateNear(Int32(size), write: write, aligned: aligned, slot, form, leads: false)
        }
        if isWatched {
            giveUp(if: lookUp(Int32(size), write: false, aligned: aligned))
        } else {
            lookUpPlainly(Int32(size), write: write, aligned: aligned, leads: false)
        }
        takeEntry(form, write: write && !isWatched)
    }

    /// The same for a group's range: what does not fit goes on in the second version.
    mutating func translateRange(_ bytes: Int32, write: Bool, slot: Int, _ form: Translated) {
        if !isPlain(index) { return translateNear(bytes, write: write, aligned: false, slot, form, leads: true) }
        lookUpPlainly(bytes, write: write, aligned: false, leads: true)
        takeEntry(form, write: write)
    }

    /// Has r11 lead to the TLB's entry for the linear address in r10, and r10 be the offset within the page.
    private mutating func lookUpPlainly(_ size: Int32, write: Bool, aligned: Bool, leads: Bool) {
        let jump = emitter.jump(if: lookUp(size, write: write, aligned: aligned))
        misses.append(
            Miss(
                jump: jump, back: emitter.at, isKept: false, index: index, slot: nil,
                refill: common.seconds[Int(tlbMode) * 2 + (write ? 1 : 0)], size: size, aligned: aligned,
                isApart: isApart, leads: leads))
    }

    /// Adds the page's host address to r10, or loads its distance, from the TLB's entry that r11 leads to.
    private mutating func takeEntry(_ form: Translated, write: Bool) {
        emitter.bytes(0x4E, UInt8(form.opcode), 0x94, 0x1C)  // add or mov r10, [rsp + r11 + ...]
        emitter.long(tlbOffset(write: write) + form.field)
    }

    /// Loads the distance from the TLB's entry that r11 leads to into r11.
    mutating func takeDistance(write: Bool) {
        emitter.bytes(0x4E, 0x8B, 0x9C, 0x1C)  // mov r11, [rsp + r11 + distance]
        emitter.long(tlbOffset(write: write) + Translated.distance.field)
    }

    /// Whether an instruction does without the slots.
    func isPlain(_ index: Int) -> Bool { block.pointee.plain &>> UInt64(index) & 1 != 0 }
    private func tlbOffset(write: Bool) -> Int32 { tlb + (write ? StateOffset.tlbBytes : 0) }

    /// Compares the linear address in r10 with the TLB's entry, whose offset r11 has then; the condition that it does
    /// not fit.
    private mutating func lookUp(_ size: Int32, write: Bool, aligned: Bool) -> UInt8 {
        if apus_host_features() & UInt32(APUS_HOST_BMI2) != 0 {
            emitter.bytes(0xC4, 0x43, 0x7B, 0xF0, 0xDA, StateOffset.tlbShift)  // rorx r11d, r10d, ...
        } else {
            emitter.bytes(0x4D, 0x89, 0xD3, 0x49, 0xC1, 0xEB, StateOffset.tlbShift)  // mov r11, r10; shr r11, ...
        }
        emitter.bytes(0x41, 0x81, 0xE3)  // and r11d, ...
        emitter.long(StateOffset.tlbMask)
        emitter.bytes(0x4E, 0x33, 0x94, 0x1C)  // xor r10, [rsp + r11 + tag]
        emitter.long(tlbOffset(write: write))
        return compareOffset(size, aligned: aligned)
    }

    /// Operands by the same register are likely to lie in the same page.
    func nearSlot(_ insn: Insn) -> Int {
        if width == 2 { return Int(insn.pointee.segment & 7) << 2 | Int(insn.pointee.base & 3) }
        if insn.pointee.flat == 0 { return 24 + Int(insn.pointee.segment & 1) }
        switch insn.pointee.base {
        case UInt8(APUS_RIP):
            return 16 + Int(
                truncatingIfNeeded: (block.pointee.physical &>> 12)
                    &+ UInt64(bitPattern: Int64(insn.pointee.disp &>> 12))) & 7
        case UInt8(APUS_NO_REG): return 26 + Int(insn.pointee.index & 1)
        case let base where insn.pointee.index != UInt8(APUS_NO_REG): return 28 + Int(base & 3)
        case let base: return Int(base & 15)
        }
    }

    /// The memory operand as a place; flags are the host's own afterwards.
    mutating func memory(
        _ insn: Insn, _ size: UInt8, write: Bool, _ plan: NativePlan, aligned: Bool = false
    ) -> HostPlace {
        if let place = shared(insn.pointee.base, insn.pointee.disp, plan) { return place }
        clobberFlags(plan)
        let start = emitter.at
        loadAddress(insn)
        addSegment(insn, size)
        let slot = nearSlot(insn)
        if insn.pointee.addr_size == 8, insn.pointee.flat != 0, insn.pointee.index == UInt8(APUS_NO_REG),
            insn.pointee.base < 16, let base = pinned(insn.pointee.base)
        {
            translateAddress(size, write: write, aligned: aligned, slot: slot, .distance)
            return .indexed(HostRegister.address, base, insn.pointee.disp)
        }
        if leavesScratch(insn, plan) {
            return keptAddress(insn, size, write: write, aligned: aligned, slot, from: start)
        }
        translateAddress(size, write: write, aligned: aligned, slot: slot)
        return .memory(HostRegister.address, 0)
    }

    /// Nothing but an operand at two registers needs r11 in this instruction.
    private func leavesScratch(_ insn: Insn, _ plan: NativePlan) -> Bool {
        guard insn.pointee.addr_size == 8, insn.pointee.flat != 0, insn.pointee.base < 16, insn.pointee.index < 16,
            block.pointee.mode_key & ModeKey.alignmentCheck.rawValue == 0, pinned(insn.pointee.base) != nil,
            pinned(insn.pointee.index) != nil, !needsFlags(plan)
        else { return false }
        switch plan.form {
        case .load, .store: return pinned(insn.pointee.reg) != nil && !plan.isLocked && !plan.hasHighBytes
        case .vector: return VectorForm.of(insn).map { $0.reg != .general } ?? false
        case .wide: return VEXForm.of(insn).map { $0.reg != .general } ?? false
        default: return false
        }
    }

    /// The memory operand with its address in r10 and the page's distance in r11: the access need not wait for the TLB's
    /// tag.
    private mutating func keptAddress(
        _ insn: Insn, _ size: UInt8, write: Bool, aligned: Bool, _ slot: Int, from start: UnsafeMutablePointer<UInt8>
    ) -> HostPlace {
        let (address, scratch) = (HostRegister.address, HostRegister.scratch)
        if isPlain(index) {
            lookUpPlainly(Int32(size), write: write, aligned: aligned, leads: false)
            takeDistance(write: write)
            loadAddress(insn)
        } else {
            let place = StateOffset.near(tlbMode, write: write, slot: slot)
            emitter.move(scratch, address)
            compareNear(Int32(size), write: write, aligned: aligned, place, leads: false, from: start)
            emitter.load(scratch, .state(place + Translated.distance.field))
        }
        return .indexed(address, scratch, 0)
    }
}
