// Direct branches to other pages: straight to the block that the jump cache has for the target, while that holds.
// Source: our own design; docs/decisions/0004.md.
// Modelled: a guard asks for what the jump cache asks for, the target's address and its address space's number.
// Quirks: a branch is bound once it has missed its guard often enough and its target's trial is over; so are those again
// that many programs run, each at another address.

internal import CProcessor

extension Translation {
    /// A direct branch to another page.
    struct Crossing {
        /// What binds it: `disp` is how many misses it may have till then, `imm` how many it gets the next time, `extra` is
        /// its code, and the number and the displacement in it lie at `start` and `next`; `rm` is how far before its target's
        /// entry it goes.
        let insn: UnsafeMutablePointer<apus_insn>
        /// Where its guard gives up.
        let jumps: (UnsafeMutablePointer<UInt8>, UnsafeMutablePointer<UInt8>)
        /// Where it returns to, if it is a call.
        let returning: Int?
    }

    private static let missesOffset = Int32(MemoryLayout<apus_insn>.offset(of: \.disp) ?? 0)

    /// Goes on at `rip`, in another page; flags are saved. 32-bit code, and blocks that may not run often, ask the jump
    /// cache.
    mutating func leavePage(returning: Int? = nil) {
        guard width == 8, block.pointee.trial == 0, crossingCount < Translator.crossings else {
            emitter.insn(0x8B, registerWidth, HostRegister.address, .state(StateOffset.rip))
            if width == 4 { emitter.store(HostRegister.address, .state(StateOffset.rip)) }
            return dispatch(returning: returning)
        }
        let insn = common.crossings + crossingCount
        crossingCount += 1
        let code = emitter.at
        emitter.loadConstant(HostRegister.address, 0)
        emitter.insn(0x39, 8, HostRegister.address, .state(StateOffset.rip))
        let elsewhere = emitter.jump(if: 5)
        // No address space has this number.
        emitter.insn(0x81, 4, 7, .state(StateOffset.jumpGeneration))
        emitter.long(0)
        let number = emitter.at - 4
        let stale = emitter.jump(if: 5)
        let way = returning == nil ? emitter.jump() : emitCallee()
        if let returning { call(returning: returning) }
        insn.pointee = .empty
        insn.pointee.handler = { cpu, insn in
            cpu.bindCrossing(insn)
            return Status.resume
        }
        insn.pointee.disp = Translator.crossingMisses
        insn.pointee.imm = UInt64(Translator.crossingMisses)
        insn.pointee.extra = UnsafeMutableRawPointer(code)
        insn.pointee.start = UInt16(truncatingIfNeeded: number - code)
        insn.pointee.next = UInt16(truncatingIfNeeded: way - code)
        insn.pointee.rm = UInt8(returning == nil ? 0 : Translator.landingBytes)
        crossings.append(Crossing(insn: insn, jumps: (elsewhere, stale), returning: returning))
    }

    /// Emits the ways of branches that miss their guards.
    mutating func emitCrossings() {
        for crossing in crossings {
            emitter.aim(crossing.jumps.0, emitter.at)
            emitter.aim(crossing.jumps.1, emitter.at)
            emitter.loadConstant(HostRegister.scratch, UInt64(UInt(bitPattern: crossing.insn)))
            emitter.insn(0x83, 4, 5, .memory(HostRegister.scratch, Self.missesOffset))
            emitter.byte(1)
            let few = emitter.jump(if: 5)
            // No instruction of the block: RIP is where it goes on.
            emitter.loadConstant(HostRegister.address, UInt64(UInt(bitPattern: block)))
            emitter.call(common.handlers)
            emitter.aim(few, emitter.at)
            emitter.load(HostRegister.address, .state(StateOffset.rip))
            dispatch(returning: crossing.returning)
        }
    }
}

extension Translator {
    /// Direct branches to other pages that can be bound; more ask the jump cache.
    static let crossings = 1 << 16
    /// Misses of a guard until its branch is bound; twice as many each time it has been.
    static let crossingMisses: Int32 = 32
    static let mostCrossingMisses: UInt64 = 1 << 15

    /// Has a branch go straight to `native` while `rip` and the address space's number are what they are now; nil: only
    /// counts its misses anew.
    func bind(_ crossing: Insn, to native: UnsafeMutableRawPointer?, rip: UInt64, number: UInt32) {
        let insn = common.crossings + (crossing - UnsafePointer(common.crossings))
        defer { insn.pointee.disp = Int32(truncatingIfNeeded: insn.pointee.imm) }
        guard let native, let code = insn.pointee.extra else { return }
        insn.pointee.imm = min(insn.pointee.imm &* 2, Translator.mostCrossingMisses)
        let way = code + Int(insn.pointee.next)
        let distance = native - common.executable - Int(insn.pointee.rm) - (way + 4)
        code.storeBytes(of: rip, toByteOffset: 2, as: UInt64.self)
        code.storeBytes(of: number, toByteOffset: Int(insn.pointee.start), as: UInt32.self)
        way.storeBytes(of: Int32(truncatingIfNeeded: distance), as: Int32.self)
    }
}

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// A branch to `rip` has missed its guard often enough: from now on it goes where the jump cache leads.
    @inline(never) func bindCrossing(_ insn: Insn) {
        let rip = self.pointee.rip
        let number = self.pointee.jump_generation
        var native: UnsafeMutableRawPointer?
        if let block = knownJump(rip)?.pointee.block, block.pointee.bytes != 0, block.pointee.trial == 0 {
            native = block.pointee.native
        }
        engine.pointee.translator?.bind(insn, to: native, rip: rip, number: number)
    }
}
