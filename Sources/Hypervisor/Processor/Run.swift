// The loop: find a block, run its instructions, deliver what they raise, leave when somebody calls.
// Source: Intel SDM vol. 3 §6.6-6.9 (order of events), §17.3 (single step).
// Modelled: interrupt shadow, NMI blocking, single-step traps, breakpoints.
// Attention is looked at between blocks; repeated string instructions look at it themselves.

internal import CProcessor

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// Runs guest code until something outside must act; one of APUS_EXIT_*.
    func runLoop() -> Int {
        enterGuest()
        defer { leaveGuest() }
        while true {
            if self.pointee.nmi_pending, !self.pointee.nmi_blocked, !self.pointee.interrupt_shadow {
                guard deliverNMI() else { return Int(self.pointee.exit_reason) }
            }
            if isParavirtual, !takeParavirtualEvent() { return APUS_EXIT_CRASH }
            if self.pointee.window_wanted, canTakeInterrupt { return APUS_EXIT_INTERRUPT_WINDOW }
            if apus_attention(self.pointee.attention) != 0 {
                // The instruction behind STI or MOV SS comes first, so that the guest gets on.
                if self.pointee.interrupt_shadow, let exit = shadowed() { return exit }
                return APUS_EXIT_ATTENTION
            }
            if self.pointee.interrupt_shadow, self.pointee.window_wanted || self.pointee.nmi_pending {
                if let exit = shadowed() { return exit }
                continue
            }
            self.pointee.interrupt_shadow = false
            if self.pointee.mode_key & ModeKey.trap.rawValue != 0 {
                if let exit = singleStep() { return exit }
                continue
            }
            if self.pointee.direct == UInt32(APUS_DIRECT_ON), self.pointee.cpl == 3 {
                if let exit = runProgram() { return exit }
                continue
            }
            let (status, insn, block) = runBlocks()
            if let exit = settle(status, insn, block) { return exit }
        }
    }

    /// External interrupts are enabled and nothing holds them back.
    var canTakeInterrupt: Bool { self.pointee.system_flags & 0x200 != 0 && !self.pointee.interrupt_shadow }

    /// Runs blocks as long as they end in jumps and nobody calls.
    @inline(never) private func runBlocks() -> (UInt32, Insn?, Block?) {
        let csBase = segmentPointer(segmentCS)
        while true {
            let rip = self.pointee.rip
            let is64 = self.pointee.code_size == 8
            let linear = is64 ? rip : (csBase.pointee.base &+ rip) & 0xFFFF_FFFF
            let entry = knownJump(linear)
            var block: Block
            if let found = entry?.pointee.block, found.pointee.bytes != 0,
                is64 || rip &+ UInt64(found.pointee.bytes) &- 1 <= UInt64(csBase.pointee.limit)
            {
                block = found
            } else {
                do throws(Fault) { block = try findBlock() } catch { return (Status.fault, nil, nil) }
            }
            self.pointee.current = block
            if block.pointee.heat != 0 { warm(block) }
            if let native = block.pointee.native, !self.pointee.window_wanted, !self.pointee.nmi_pending {
                if let entry, entry.pointee.block == block { entry.pointee.native = UnsafeRawPointer(native) }
                let status = apus_run_native(self, engine.pointee.blocks.nativeEntry, native)
                guard status == Status.jump || status == Status.interpret else {
                    return (status, self.pointee.native_insn, self.pointee.current)
                }
                if isWanted { return (Status.jump, nil, nil) }
                guard status == Status.interpret, let current = self.pointee.current else { continue }
                block = current
            }
            var insn = UnsafePointer(block.pointee.insns)
            var status = insn.pointee.handler(self, insn)
            while status == Status.next {
                insn += 1
                status = insn.pointee.handler(self, insn)
            }
            guard status == Status.jump else { return (status, insn, block) }
            if isWanted { return (status, insn, block) }
        }
    }

    /// The loop has something to do before the next block.
    @inline(__always) private var isWanted: Bool {
        apus_attention(self.pointee.attention) != 0 || self.pointee.window_wanted || self.pointee.nmi_pending
            || self.pointee.mode_key & ModeKey.trap.rawValue != 0
            || self.pointee.direct == UInt32(APUS_DIRECT_ON) && self.pointee.cpl == 3
    }

    /// Carries out what the last instruction of a run asks for; an exit, if it is one.
    private func settle(_ status: UInt32, _ insn: Insn?, _ block: Block?) -> Int? {
        switch status {
        case Status.end:
            if let insn { self.pointee.rip = behind(insn) }
        case Status.fault:
            if let insn, self.pointee.pending_kind == 0 {
                self.pointee.rip = (self.pointee.rip &+ UInt64(insn.pointee.start)) & ripMask
            }
            if !deliverPending() { return Int(self.pointee.exit_reason) }
        case Status.exit:
            return Int(self.pointee.exit_reason)
        default: break
        }
        return nil
    }

    private var ripMask: UInt64 { self.pointee.code_size == 8 ? .max : 0xFFFF_FFFF }
    private func behind(_ insn: Insn) -> UInt64 {
        (self.pointee.rip &+ UInt64(insn.pointee.next)) & ripMask
    }

    /// Runs exactly one instruction.
    private func step() -> (status: UInt32, insn: Insn?) {
        let linear: UInt64
        let block: Block
        do throws(Fault) {
            if self.pointee.code_size == 8 {
                linear = self.pointee.rip
                try checkCanonical(linear, segment: segmentCS)
            } else {
                let cs = segmentPointer(segmentCS)
                guard self.pointee.rip <= UInt64(cs.pointee.limit) else { throw raise(13, error: 0) }
                linear = (cs.pointee.base &+ self.pointee.rip) & 0xFFFF_FFFF
            }
            block = try decodeSingle(linear)
        } catch { return (Status.fault, nil) }
        self.pointee.current = block
        let insn = UnsafePointer(block.pointee.insns)
        var status = insn.pointee.handler(self, insn)
        if status == Status.next {
            self.pointee.rip = behind(insn)
            status = Status.jump
        }
        return (status, insn)
    }

    /// Runs the instruction in the shadow of STI or MOV SS.
    private func shadowed() -> Int? {
        self.pointee.interrupt_shadow = false
        if self.pointee.mode_key & ModeKey.trap.rawValue != 0 { return singleStep() }
        let (status, insn) = step()
        return settle(status, insn, nil)
    }

    /// Runs one instruction with RFLAGS.TF set or breakpoints enabled, and traps before or behind it.
    private func singleStep() -> Int? {
        let isTraced = UInt64(self.pointee.system_flags) & RFLAGS.trap != 0
        let rip = self.pointee.rip
        let base = self.pointee.code_size == 8 ? 0 : segmentPointer(segmentCS).pointee.base
        let before = hasBreakpoints ? instructionBreakpoints((base &+ rip) & ripMask) : 0
        if before != 0 { return trapDebug(UInt64(before), kind: 0) }
        let (status, insn) = step()
        if status == Status.fault { self.pointee.debug_hits = 0 } else if let insn { resumed(insn, from: rip) }
        if let exit = settle(status, insn, nil) { return exit }
        let hits = UInt64(self.pointee.debug_hits)
        self.pointee.debug_hits = 0
        // A fault, or an INT, has entered its handler with TF clear already.
        guard status != Status.fault, let insn else { return nil }
        let steps = isTraced && !entersHandler(insn.pointee.opcode) && !self.pointee.interrupt_shadow
        return steps || hits != 0 ? trapDebug(hits | (steps ? 1 << 14 : 0), kind: 1) : nil
    }

    /// RF lasts for one instruction; a repeated one that goes on keeps it. IRET has loaded a new one.
    private func resumed(_ insn: Insn, from rip: UInt64) {
        if insn.pointee.opcode == 0xCF { return }
        let goesOn =
            self.pointee.rip == rip && insn.pointee.prefixes & UInt8(APUS_PREFIX_REP | APUS_PREFIX_REPNE) != 0
            && insn.pointee.opcode < 0x100
        if goesOn { self.pointee.system_flags |= UInt32(RFLAGS.resume) } else { clearFlags(RFLAGS.resume) }
    }

    private func trapDebug(_ causes: UInt64, kind: UInt8) -> Int? {
        _ = raise(1)
        self.pointee.pending_kind = kind
        self.pointee.pending_dr6 = causes
        return deliverPending() ? nil : Int(self.pointee.exit_reason)
    }

    private func entersHandler(_ opcode: UInt16) -> Bool { opcode >= 0xCC && opcode <= 0xCE || opcode == 0xF1 }
}
