// Execution of MMX and SSE instructions: operands in, native thunk, results out.
// Source: Intel SDM volume 2 (instruction pages), volume 1 §9.2 and §11.5; volume 3 table 2-2.
// Modelled: #UD, #NM, #MF, #XM, #GP for misaligned operands. VEX-encoded instructions are in VEX.swift.
// Quirks: the thunk runs with SIMD exceptions masked; an unmasked one is found in the flags it leaves, so that
// an exact denormal result raises no unmasked underflow.

internal import CProcessor

/// What a handler needs besides the thunk, packed in `apus_insn.imm`: the decoder's immediate is in the thunk.
struct VectorOperands {
    var rawValue: UInt64

    init(rawValue: UInt64) { self.rawValue = rawValue }

    init(form: VectorForm, regOffset: Int, rmOffset: Int, bytes: UInt8) {
        let isMMX = form.reg == .mmx || form.rm == .mmx
        // Registers lie at multiples of eight bytes, beyond what sixteen bits count in bytes.
        rawValue = UInt64(truncatingIfNeeded: regOffset >> 3) | UInt64(truncatingIfNeeded: rmOffset >> 3) << 16
        rawValue |= UInt64(bytes) << 32 | UInt64(form.traits.rawValue) << 40
        rawValue |= (isMMX ? 1 : 0) << 56 | UInt64(form.reg.rawValue) << 58
    }

    @inline(__always) var regOffset: Int { Int(truncatingIfNeeded: (rawValue & 0xFFFF) << 3) }
    @inline(__always) var rmOffset: Int { Int(truncatingIfNeeded: ((rawValue >> 16) & 0xFFFF) << 3) }
    @inline(__always) var bytes: Int { Int(truncatingIfNeeded: (rawValue >> 32) & 0xFF) }
    @inline(__always) func has(_ trait: VectorForm.Traits) -> Bool { rawValue & UInt64(trait.rawValue) << 40 != 0 }
    @inline(__always) var isMMX: Bool { rawValue & 1 << 56 != 0 }
    /// Size of the REG operand's place.
    @inline(__always) var regBytes: Int { (rawValue >> 58) & 3 == UInt64(OperandKind.general.rawValue) ? 8 : 16 }
}

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// The handler of an x87, MMX or SSE instruction; nil when it is none of these.
    func vectorHandler(_ insn: UnsafeMutablePointer<apus_insn>) -> apus_handler? {
        if insn.pointee.vex != 0 { return vexHandler(insn) ?? wideHandler(insn) }
        let opcode = insn.pointee.opcode
        if opcode == 0x9B || opcode & 0xFFF8 == 0xD8 { return x87Handler(insn) }
        guard opcode >= 0x100 else { return nil }
        if let handler = stateHandler(insn) ?? oddHandler(insn) { return handler }
        return simdHandler(insn)
    }

    /// 0, 66, F3 or F2: what selects among the instructions of one opcode. F3 and F2 win over 66.
    static func mandatoryPrefix(_ prefixes: UInt8) -> UInt8 {
        if Int(prefixes) & APUS_PREFIX_REPNE != 0 { return 0xF2 }
        if Int(prefixes) & APUS_PREFIX_REP != 0 { return 0xF3 }
        return Int(prefixes) & APUS_PREFIX_66 != 0 ? 0x66 : 0
    }

    /// Chooses form, operands and thunk.
    private func simdHandler(_ insn: UnsafeMutablePointer<apus_insn>) -> apus_handler? {
        let prefix = Self.mandatoryPrefix(insn.pointee.prefixes)
        let isMemory = insn.pointee.mem != 0
        let group = (insn.pointee.modrm >> 3) & 7
        guard
            let form = VectorForm.find(
                opcode: insn.pointee.opcode, prefix: prefix, group: group, isMemory: isMemory),
            !(isMemory && form.traits.contains(.registerOnly)), !(!isMemory && form.traits.contains(.memoryOnly)),
            form.feature == 0 || apus_host_features() & UInt32(form.feature) != 0,
            Int(insn.pointee.prefixes) & APUS_PREFIX_LOCK == 0
        else { return nil }
        let key = ModeKey(rawValue: pointee.mode_key)
        let usesXMM = form.reg == .xmm || form.rm == .xmm
        if key.contains(.emulation) || (usesXMM && !key.contains(.osFXSR)) { return nil }
        if key.contains(.taskSwitched) { return Self.notAvailable }
        let wide = pointee.code_size == 8 && Int(insn.pointee.prefixes) & APUS_PREFIX_REXW != 0
        guard let thunk = Self.thunk(form, insn, prefix: prefix, wide: wide) else { return nil }
        let bytes = form.traits.contains(.generalWidth) ? (wide ? 8 : 4) : form.bytes
        insn.pointee.extra = thunk
        insn.pointee.immediate = UInt8(truncatingIfNeeded: insn.pointee.imm)
        insn.pointee.vector = UInt8(form.reg == .mmx || form.rm == .mmx ? APUS_NATIVE_MMX : APUS_NATIVE_SSE)
        insn.pointee.imm =
            VectorOperands(
                form: form, regOffset: Self.offset(form.reg, insn.pointee.reg),
                rmOffset: Self.offset(form.rm, insn.pointee.rm), bytes: bytes
            ).rawValue
        return Self.handler(form, isMemory: isMemory)
    }

    /// Where a register lies in `apus_vcpu`. MMX registers lie where ST(n) does when TOP is 0.
    static func offset(_ kind: OperandKind, _ number: UInt8) -> Int {
        let fpu = MemoryLayout<apus_vcpu>.offset(of: \.fpu) ?? 0
        switch kind {
        case .none: return fpu
        case .xmm: return fpu + FXSAVEOffset.xmm + 16 * Int(number & 15)
        case .mmx: return fpu + FXSAVEOffset.st + 16 * Int(number & 7)
        case .general: return 8 * Int(number & 15)
        }
    }

    private static func handler(_ form: VectorForm, isMemory: Bool) -> apus_handler {
        let isPlain = form.traits.intersection([.floating, .flags]).isEmpty && form.reg != .mmx && form.rm != .mmx
        if !isMemory {
            if isPlain {
                return { cpu, insn in
                    let operands = VectorOperands(rawValue: insn.pointee.imm)
                    let base = UnsafeMutableRawPointer(cpu)
                    _ = apus_call_thunk(insn, base + operands.regOffset, base + operands.rmOffset, cpu)
                    return Status.next
                }
            }
            return { cpu, insn in
                do throws(Fault) { try cpu.runRegisterForm(insn) } catch { return Status.fault }
                return Status.next
            }
        }
        if form.traits.contains(.store) {
            return { cpu, insn in
                do throws(Fault) { try cpu.runStoreForm(insn) } catch { return Status.fault }
                return Status.next
            }
        }
        return { cpu, insn in
            do throws(Fault) { try cpu.runLoadForm(insn) } catch { return Status.fault }
            return Status.next
        }
    }

    /// #NM: CR0.TS is set.
    static var notAvailable: apus_handler {
        { cpu, _ in
            _ = cpu.raise(Vector.deviceNotAvailable)
            return Status.fault
        }
    }

    @inline(__always) private func runRegisterForm(_ insn: Insn) throws(Fault) {
        let operands = VectorOperands(rawValue: insn.pointee.imm)
        let base = UnsafeMutableRawPointer(self)
        if operands.isMMX { try enterMMX() }
        try runThunk(insn, operands, base + operands.regOffset, base + operands.rmOffset)
    }

    @inline(__always) private func runLoadForm(_ insn: Insn) throws(Fault) {
        let operands = VectorOperands(rawValue: insn.pointee.imm)
        if operands.isMMX { try checkPendingX87() }
        let source = fpuScratch
        let segment = Int(insn.pointee.segment)
        let address = effectiveAddress(insn)
        switch operands.bytes {
        case 16:
            if operands.has(.aligned) { try checkAlignment(segment, address) }
            try copyIn(segment, address, into: source, bytes: 16)
        case 8: source.storeBytes(of: try load(segment, address, as: UInt64.self), as: UInt64.self)
        case 4: source.storeBytes(of: try load(segment, address, as: UInt32.self), as: UInt32.self)
        case 2: source.storeBytes(of: try load(segment, address, as: UInt16.self), as: UInt16.self)
        default: source.storeBytes(of: try load(segment, address, as: UInt8.self), as: UInt8.self)
        }
        if operands.isMMX { try enterMMX() }
        try runThunk(insn, operands, UnsafeMutableRawPointer(self) + operands.regOffset, source)
    }

    @inline(__always) private func runStoreForm(_ insn: Insn) throws(Fault) {
        let operands = VectorOperands(rawValue: insn.pointee.imm)
        let result = fpuScratch
        let segment = Int(insn.pointee.segment)
        let address = effectiveAddress(insn)
        if operands.isMMX {
            try checkPendingX87()
            try probeWrite(segment, address, operands.bytes)
            try enterMMX()
        }
        _ = apus_call_thunk(insn, UnsafeMutableRawPointer(self) + operands.regOffset, result, self)
        switch operands.bytes {
        case 16:
            if operands.has(.aligned) { try checkAlignment(segment, address) }
            try copyOut(segment, address, from: result, bytes: 16)
        case 8: try store(result.load(as: UInt64.self), segment, address)
        case 4: try store(result.load(as: UInt32.self), segment, address)
        case 2: try store(result.load(as: UInt16.self), segment, address)
        default: try store(result.load(as: UInt8.self), segment, address)
        }
    }

    /// Where memory operands pass through.
    @inline(__always) var fpuScratch: UnsafeMutableRawPointer {
        UnsafeMutableRawPointer(self) + (MemoryLayout<apus_vcpu>.offset(of: \.scratch) ?? 0)
    }

    /// #GP(0) for an operand that is not aligned to its own size (SDM vol. 1 §10.4.1.1).
    @inline(__always) func checkAlignment(_ segment: Int, _ address: UInt64, to bytes: UInt64 = 16) throws(Fault) {
        let base = is64Bit && segment < Seg.fs ? 0 : self.segment(segment).pointee.base
        if (base &+ address) & (bytes &- 1) != 0 { throw raise(Vector.generalProtection, error: 0) }
    }

    /// Runs the thunk, with #XM for what MXCSR leaves unmasked.
    @inline(__always) private func runThunk(
        _ insn: Insn, _ operands: VectorOperands, _ reg: UnsafeMutableRawPointer, _ rm: UnsafeMutableRawPointer
    ) throws(Fault) {
        if operands.has(.floating), mxcsr & 0x1F80 != 0x1F80 { return try runUnmasked(insn, operands, reg, rm) }
        let flags = apus_call_thunk(insn, reg, rm, self)
        if operands.has(.flags) { setArithmeticFlags(flags) }
    }

    @inline(__always) func setArithmeticFlags(_ flags: UInt64) {
        pointee.arith_flags = UInt32(truncatingIfNeeded: flags & RFLAGS.arithmetic)
    }

    @inline(__always) var mxcsr: UInt32 {
        get { fpuImage.load(fromByteOffset: FXSAVEOffset.mxcsr, as: UInt32.self) }
        nonmutating set { fpuImage.storeBytes(of: newValue, toByteOffset: FXSAVEOffset.mxcsr, as: UInt32.self) }
    }

    /// Some SIMD exception is unmasked: the operation runs on a copy of its destination, masked, with clear flags.
    @inline(never) private func runUnmasked(
        _ insn: Insn, _ operands: VectorOperands, _ reg: UnsafeMutableRawPointer, _ rm: UnsafeMutableRawPointer
    ) throws(Fault) {
        let saved = mxcsr
        let copy = fpuScratch + 64
        copy.copyMemory(from: reg, byteCount: operands.regBytes)
        mxcsr = (saved | 0x1F80) & ~0x3F
        let flags = apus_call_thunk(insn, copy, rm, self)
        var raised = mxcsr & 0x3F
        let unmasked = raised & ~(saved >> 7)
        // Invalid, denormal and zero-divide are found before anything is computed: then no result is flagged.
        if unmasked & 7 != 0 { raised &= 7 }
        mxcsr = saved | raised
        if unmasked != 0 {
            throw raise(pointee.cr4 & CR4.osXMMException != 0 ? Vector.simd : Vector.invalidOpcode)
        }
        if operands.has(.flags) { setArithmeticFlags(flags) }
        if !operands.has(.noResult) { reg.copyMemory(from: copy, byteCount: operands.regBytes) }
    }

    /// The thunk of a form.
    private static func thunk(
        _ form: VectorForm, _ insn: UnsafeMutablePointer<apus_insn>, prefix: UInt8, wide: Bool
    ) -> UnsafeMutableRawPointer? {
        let isMemory = insn.pointee.mem != 0
        let traits = form.traits
        let usesWide = wide && (form.reg == .general || form.rm == .general || traits.contains(.string))
        var key = ThunkKey(opcode: insn.pointee.opcode, prefix: prefix, isMemory: isMemory, isWide: usesWide)
        if traits.contains(.immediate) {
            key.immediate = UInt8(truncatingIfNeeded: insn.pointee.imm)
            key.hasImmediate = true
        }
        let digit = (insn.pointee.modrm >> 3) & 7
        if traits.contains(.group) { key.modrm = digit << 3 }
        let number: UInt8 = traits.contains(.group) ? digit : form.reg == .general ? 0 : 2
        let modrm = number << 3 | (isMemory ? 0x06 : 0xC1)
        return ThunkStore.shared.thunk(key) { code in
            if traits.contains(.floating) { code.loadGuestMXCSR() }
            code.loadReg(form.reg)
            if !isMemory { code.loadRM(form.rm) }
            if traits.contains(.implicitXMM0) { code.loadImplicitXMM0() }
            if traits.contains(.string) { code.loadLengths() }
            code.opcode(key.opcode, prefix: prefix, wide: usesWide)
            code.emit(modrm)
            if key.hasImmediate { code.emit(key.immediate) }
            if traits.contains(.string) {
                code.storeStringResult(isMask: key.opcode & 1 == 0)
            } else if traits.contains(.store) {
                if !isMemory { code.storeRM(form.rm) }
            } else if !traits.contains(.noResult) {
                code.storeReg(form.reg)
            }
            if traits.contains(.flags) { code.storeFlags() }
            if form.reg == .mmx || form.rm == .mmx { code.emit(0x0F, 0x77) }
            if traits.contains(.floating) {
                code.storeGuestMXCSR()
                code.loadHostMXCSR()
            }
            code.finish()
        }
    }
}
