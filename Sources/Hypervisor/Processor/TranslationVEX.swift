// Native forms of VEX instructions, and of the late legacy ones on general registers.
// Source: Intel SDM volume 2; what the operands are is in VEXForms.swift.
// Modelled: all of AVX, AVX2, FMA, F16C and their relatives but gathers and VZEROALL; BMI1, BMI2, ADX, MOVBE,
// CRC32.
// Quirks: upper halves are loaded when a block that uses them begins and saved on the way to handlers; behind
// VZEROUPPER they count as zero in the vCPU, and neither happens.

internal import CProcessor

extension NativePlan {
    /// The plan of a VEX instruction.
    static func wide(_ insn: Insn) -> NativePlan {
        switch Int32(insn.pointee.vector) {
        case Int32(APUS_NATIVE_VEX):
            guard let form = VEXForm.of(insn) else { return NativePlan() }
            return form.traits.contains(.flags) ? .flags(.wide, insn.pointee.opcode) : .plain(.wide)
        case Int32(APUS_NATIVE_ZERO): return .plain(.zeroUpper)
        case Int32(APUS_NATIVE_CONTROL): return .plain(.control)
        case Int32(APUS_NATIVE_GENERAL):
            let prefixes = insn.pointee.prefixes & UInt8(APUS_PREFIX_66 | APUS_PREFIX_REP | APUS_PREFIX_REPNE)
            let setsFlags = prefixes == 0 && insn.pointee.opcode >> 8 == 2
            return setsFlags ? .flags(.wideGeneral, insn.pointee.opcode) : .plain(.wideGeneral)
        default: return NativePlan()
        }
    }

    /// MOVBE, CRC32, ADCX and ADOX.
    static func extended(_ insn: Insn) -> NativePlan {
        let isMemory = insn.pointee.mem != 0
        func hosts(_ feature: Int, _ plan: NativePlan) -> NativePlan {
            apus_host_features() & UInt32(feature) != 0 ? plan : NativePlan()
        }
        switch (insn.pointee.opcode, CPU.mandatoryPrefix(insn.pointee.prefixes)) {
        case (0x2F0, 0) where isMemory, (0x2F1, 0) where isMemory: return hosts(APUS_HOST_MOVBE, .plain(.extended))
        // Byte registers 4 to 7 depend on REX.
        case (0x2F0, 0xF2) where isMemory || insn.pointee.rm < 4, (0x2F1, 0xF2) where insn.pointee.op_size >= 4:
            return hosts(APUS_HOST_SSE42, .plain(.extended))
        case (0x2F6, 0x66): return hosts(APUS_HOST_ADX, .flags(.extended, 0x2F6, reads: 1, writes: 1))
        case (0x2F6, 0xF3): return hosts(APUS_HOST_ADX, .flags(.extended, 0x2F6, reads: 0x800, writes: 0x800))
        default: return NativePlan()
        }
    }
}

extension Translator {
    /// Saves the upper halves if they are in the host's registers, which are clean afterwards.
    static func saveUpper(_ emitter: inout Emitter) {
        guard apus_host_features() & UInt32(APUS_HOST_AVX) != 0 else { return }
        emitter.insn(0x83, 4, 7, .state(StateOffset.upperLive))
        emitter.byte(0)
        let skip = emitter.jump(if: 4)
        emitter.insn(0xC7, 4, 0, .state(StateOffset.upperLive))
        emitter.long(0)
        emitter.insn(0xC7, 4, 0, .state(StateOffset.upperZero))
        emitter.long(0)
        for number in 0..<16 as Range<UInt8> {
            // vextractf128
            emitter.vex(0x319, pp: 1, w: false, long: true, number, 0, .state(StateOffset.upper(number)))
            emitter.byte(1)
        }
        emitter.bytes(0xC5, 0xF8, 0x77)  // vzeroupper
        emitter.aim(skip, emitter.at)
    }

    /// Loads the upper halves; the lower ones are there.
    static func emitLoadUpper(_ emitter: inout Emitter) {
        guard apus_host_features() & UInt32(APUS_HOST_AVX) != 0 else { return emitter.byte(0xC3) }
        emitter.stackDepth = 8
        defer { emitter.stackDepth = 0 }
        emitter.insn(0x83, 4, 7, .state(StateOffset.upperZero))
        emitter.byte(0)
        let load = emitter.jump(if: 4)
        emitter.bytes(0xC5, 0xF8, 0x77)  // vzeroupper
        let done = emitter.jump()
        emitter.aim(load, emitter.at)
        for number in 0..<16 as Range<UInt8> {
            // vinsertf128
            emitter.vex(0x318, pp: 1, w: false, long: true, number, number, .state(StateOffset.upper(number)))
            emitter.byte(1)
        }
        emitter.aim(done, emitter.at)
        emitter.insn(0xC7, 4, 0, .state(StateOffset.upperLive))
        emitter.long(1)
        emitter.byte(0xC3)
    }
}

extension Translation {
    private func prefixCode(_ insn: Insn) -> UInt8 {
        switch CPU.mandatoryPrefix(insn.pointee.prefixes) {
        case 0x66: return 1
        case 0xF3: return 2
        case 0xF2: return 3
        default: return 0
        }
    }

    /// Has the upper halves loaded where VZEROUPPER came before in the block.
    private mutating func needUpper(_ plan: NativePlan) {
        guard !hasUpper else { return }
        clobberFlags(plan)
        emitter.call(common.loadUpper)
        hasUpper = true
    }

    mutating func emitZeroUpper() {
        emitter.bytes(0xC5, 0xF8, 0x77)
        emitter.insn(0xC7, 4, 0, .state(StateOffset.upperZero))
        emitter.long(1)
        emitter.insn(0xC7, 4, 0, .state(StateOffset.upperLive))
        emitter.long(0)
        hasUpper = false
    }

    /// Bytes of the memory operand, and whether they must be aligned.
    func operand(_ insn: Insn, _ form: VEXForm) -> (UInt8, aligned: Bool) {
        let isMasked = form.shape == .maskedLoad || form.shape == .maskedStore
        let isLong = insn.pointee.vex & 2 != 0 && !form.isScalar
        return (isMasked ? (isLong ? 32 : 16) : form.bytes(insn), form.traits.contains(.aligned))
    }

    mutating func emitWide(_ insn: Insn, _ plan: NativePlan) {
        guard let form = VEXForm.of(insn) else { return }
        needUpper(plan)
        let traits = form.traits
        let isLong = insn.pointee.vex & 2 != 0 && !form.isScalar
        let isStore = traits.contains(.store)
        var (rm, reg) = (insn.pointee.rm, insn.pointee.reg)
        let place: HostPlace
        if insn.pointee.mem != 0 {
            let (bytes, aligned) = operand(insn, form)
            place = memory(insn, bytes, write: isStore, plan, aligned: aligned)
        } else {
            if form.rm == .general { rm = guest(rm, HostRegister.address) }
            place = .register(rm)
        }
        prepareFlags(plan)
        if traits.contains(.group) {
            reg = insn.pointee.modrm >> 3 & 7
        } else if form.reg == .general {
            reg = guest(reg, HostRegister.scratch)
        }
        emitter.vex(
            insn.pointee.opcode, pp: prefixCode(insn), w: form.encodedW(insn), long: isLong, reg, insn.pointee.vvvv,
            place)
        if traits.contains(.immediate) { emitter.byte(insn.pointee.immediate) }
        if form.reg == .general, !isStore { giveBack(insn.pointee.reg, reg) }
        if form.rm == .general, isStore, insn.pointee.mem == 0 { giveBack(insn.pointee.rm, rm) }
    }

    /// BMI1 and BMI2. A guest register without a host register is lent one, or is read where it lies.
    mutating func emitWideGeneral(_ insn: Insn, _ plan: NativePlan) {
        let isWide = Int(insn.pointee.prefixes) & APUS_PREFIX_REXW != 0
        let place: HostPlace
        if insn.pointee.mem != 0 {
            place = memory(insn, isWide ? 8 : 4, write: false, plan)
        } else {
            place = pinned(insn.pointee.rm).map { .register($0) } ?? .state(Int32(insn.pointee.rm) * 8)
        }
        prepareFlags(plan)
        let (address, scratch) = (HostRegister.address, HostRegister.scratch)
        let isGroup = insn.pointee.opcode == 0x2F3
        let isMultiply = insn.pointee.opcode == 0x2F6
        var third: UInt8 = 0
        if insn.pointee.opcode != 0x3F0 {
            let isTarget = isGroup || isMultiply
            // MULX has two results; its source is read before either is written.
            let spare = isMultiply ? address : scratch
            third = isTarget ? pinned(insn.pointee.vvvv) ?? spare : guest(insn.pointee.vvvv, spare)
        }
        let reg = isGroup ? insn.pointee.modrm >> 3 & 7 : pinned(insn.pointee.reg) ?? scratch
        emitter.vex(insn.pointee.opcode, pp: prefixCode(insn), w: isWide, long: false, reg, third, place)
        if insn.pointee.opcode == 0x3F0 { emitter.byte(UInt8(truncatingIfNeeded: insn.pointee.imm)) }
        if isGroup || isMultiply { giveBack(insn.pointee.vvvv, third) }
        if !isGroup { giveBack(insn.pointee.reg, reg) }
    }

    mutating func emitExtended(_ insn: Insn, _ plan: NativePlan) {
        let isSum = insn.pointee.opcode == 0x2F6
        let isByteSwap = CPU.mandatoryPrefix(insn.pointee.prefixes) == 0 && !isSum
        let isStore = isByteSwap && insn.pointee.opcode == 0x2F1
        let isWide = Int(insn.pointee.prefixes) & APUS_PREFIX_REXW != 0
        let isByte = !isByteSwap && insn.pointee.opcode == 0x2F0
        let size: UInt8 = isByte ? 1 : isWide ? 8 : 4
        let place: HostPlace
        if insn.pointee.mem != 0 {
            place = memory(insn, size, write: isStore, plan)
        } else {
            place = .register(guest(insn.pointee.rm, HostRegister.address))
        }
        prepareFlags(plan)
        let reg = guest(insn.pointee.reg, HostRegister.scratch)
        emitter.vector(
            insn.pointee.opcode, prefix: CPU.mandatoryPrefix(insn.pointee.prefixes), wide: isWide, reg, place)
        if !isStore { giveBack(insn.pointee.reg, reg) }
    }
}
