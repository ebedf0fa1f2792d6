// What translated code keeps where between two instructions: guest registers, vector and x87 state, flags.
// Source: our own design; Intel SDM volume 2 for the instructions that are emitted.
// Modelled: state that only some blocks use is loaded when such a block begins.
// Quirks: flags stay in the host's until something else must use those.

internal import CProcessor

extension Translation {
    // MARK: XMM registers

    /// A vector instruction comes before the next handler.
    func needsVector(_ start: Int) -> Bool {
        for index in start..<count {
            if plans[index].form == .handler { return false }
            if plans[index].form == .vector || plans[index].form == .control { return true }
            if plans[index].form == .wide || plans[index].form == .mmx && usesXMM(index) { return true }
        }
        return false
    }

    /// An x87 or MMX instruction comes before the next handler.
    func needsX87(_ start: Int) -> Bool {
        for index in start..<count {
            if plans[index].form == .handler { return false }
            if plans[index].form == .x87 || plans[index].form == .mmx { return true }
        }
        return false
    }

    /// A VEX instruction on vector registers comes before the next handler.
    func needsUpper(_ start: Int) -> Bool {
        for index in start..<count {
            if plans[index].form == .handler { return false }
            if plans[index].form == .wide { return true }
        }
        return false
    }

    /// Has the XMM registers loaded at the block's start, out of line; where.
    mutating func enterVector() -> (UnsafeMutablePointer<UInt8>, UnsafeMutablePointer<UInt8>) {
        isVector = true
        hasUpper = needsUpper(0)
        emitter.insn(0x83, 4, 7, .state(hasUpper ? StateOffset.upperLive : StateOffset.vectorLive))
        emitter.byte(0)
        let jump = emitter.jump(if: 4)
        return (jump, emitter.at)
    }

    mutating func emitVectorEntry(_ entry: (UnsafeMutablePointer<UInt8>, UnsafeMutablePointer<UInt8>)) {
        emitter.aim(entry.0, emitter.at)
        var loaded: UnsafeMutablePointer<UInt8>?
        if needsUpper(0) {
            emitter.insn(0x83, 4, 7, .state(StateOffset.vectorLive))
            emitter.byte(0)
            loaded = emitter.jump(if: 5)
        }
        emitter.call(common.loadVector)
        if let loaded {
            let refused = emitter.jump(if: 5)
            emitter.aim(loaded, emitter.at)
            emitter.call(common.loadUpper)
            emitter.jump(to: entry.1)
            emitter.aim(refused, emitter.at)
        } else {
            emitter.jump(if: 4, to: entry.1)
        }
        settle()
        if lag != 0 { moveRIP(lag) }
        emitter.loadConstant(HostRegister.scratch, UInt64(UInt(bitPattern: block)))
        emitter.jump(to: common.interpret)
    }

    /// Loads the XMM registers behind an instruction that a handler ran; flags are saved.
    mutating func loadVector(_ index: Int, upper: Bool) {
        emitter.call(common.loadVector)
        refusals.append((emitter.jump(if: 5), index))
        if upper { emitter.call(common.loadUpper) }
    }

    /// Has the x87 registers loaded at the block's start, out of line; where.
    mutating func enterX87() -> (UnsafeMutablePointer<UInt8>, UnsafeMutablePointer<UInt8>) {
        hasX87 = true
        emitter.insn(0x83, 4, 7, .state(StateOffset.x87Live))
        emitter.byte(0)
        let jump = emitter.jump(if: 4)
        return (jump, emitter.at)
    }

    mutating func emitX87Entry(_ entry: (UnsafeMutablePointer<UInt8>, UnsafeMutablePointer<UInt8>)) {
        emitter.aim(entry.0, emitter.at)
        emitter.call(common.loadX87)
        emitter.jump(if: 4, to: entry.1)
        settle()
        if lag != 0 { moveRIP(lag) }
        emitter.loadConstant(HostRegister.scratch, UInt64(UInt(bitPattern: block)))
        emitter.jump(to: common.interpret)
    }

    /// Loads the x87 registers behind an instruction that a handler ran; flags are saved.
    mutating func loadX87(_ index: Int) {
        emitter.call(common.loadX87)
        refusals.append((emitter.jump(if: 5), index))
    }

    // MARK: Flags

    private static let (carry, overflow): (UInt32, UInt32) = (1, 0x800)

    /// Saves the guest's flags that `live` names, at least, unless that is done. Carry chains have just CF or OF alive,
    /// which have shorter forms.
    mutating func saveFlags(_ live: UInt32 = NativePlan.allFlags) {
        guard isNative, !isSaved else { return }
        isSaved = true
        if live & ~(Self.carry | Self.overflow) == 0 {
            if live & Self.carry != 0 { emitter.insn(0x192, 1, 0, .state(StateOffset.flags + 1)) }
            if live & Self.overflow != 0 { emitter.insn(0x190, 1, 0, .state(StateOffset.flags)) }
            return
        }
        emitter.move(HostRegister.scratch, 0)
        emitter.bytes(0x9F, 0x0F, 0x90, 0xC0)  // lahf; seto al
        emitter.insn(0x89, 4, 0, .state(StateOffset.flags))
        emitter.move(0, HostRegister.scratch)
    }

    /// Makes the host's flags that `live` names, at least, what was saved.
    mutating func emitRestore(_ live: UInt32) {
        let scratch = HostRegister.scratch
        if live & ~(Self.carry | Self.overflow) == 0 {
            if live & Self.carry != 0 {
                emitter.insn(0x1B6, 4, scratch, .state(StateOffset.flags + 1))
                emitter.insn(0xD1, 4, 5, .register(scratch))  // shr r11d, 1
            }
            if live & Self.overflow != 0 {
                emitter.insn(0x1B6, 4, scratch, .state(StateOffset.flags))
                emitter.insn(0x8D, 4, scratch, .memory(scratch, 0x7E))
                emitter.insn(0xFE, 1, 0, .register(scratch))  // inc r11b, which leaves CF
            }
            return
        }
        emitter.move(scratch, 0)
        emitter.insn(0x8B, 4, 0, .state(StateOffset.flags))
        emitter.bytes(0x04, 0x7F, 0x9E)  // add al, 127; sahf
        emitter.move(0, scratch)
    }

    /// Makes those of the host's flags that are alive the guest's.
    mutating func restoreFlags(_ live: UInt32) {
        guard !isNative else { return }
        emitRestore(live)
        isNative = true
    }

    /// The host's flags are about to be used for something else.
    mutating func clobberFlags(_ plan: NativePlan) {
        if plan.liveIn != 0 { saveFlags(plan.liveIn) }
        isNative = false
    }

    // MARK: Registers

    /// The host register that holds a guest register all through the block.
    func pinned(_ register: UInt8) -> UInt8? {
        let host = hosts[Int(register)]
        return host == Self.inMemory ? nil : host
    }

    /// The host register that holds a guest register now: `spare` if none does always.
    mutating func guest(_ register: UInt8, _ spare: UInt8) -> UInt8 {
        if let host = pinned(register) { return host }
        emitter.load(spare, .state(Int32(register) * 8))
        return spare
    }

    /// Puts back what `guest` gave, if it was only lent.
    mutating func giveBack(_ register: UInt8, _ host: UInt8) {
        if pinned(register) == nil { emitter.store(host, .state(Int32(register) * 8)) }
    }
}
