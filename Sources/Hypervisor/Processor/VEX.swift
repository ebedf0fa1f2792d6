// Execution of VEX instructions on vector registers: operands in, native thunk, results out.
// Source: Intel SDM volume 1 chapter 14, volume 2 §2.3-2.7 (exception classes) and the instruction pages.
// Modelled: #UD, #NM, #XM, #GP for misaligned operands, upper halves. Not modelled: what VEXForms.swift leaves out.
// Quirks: the upper half of YMM n lies 416 bytes behind XMM n; while `upper_zero` is set, all are zero instead.

internal import CProcessor

extension FXSAVEOffset {
    /// Upper halves of YMM0 to YMM15, as in XSAVE's standard form.
    static var upper: Int { 576 }
    static var upperEnd: Int { 832 }
}

/// What the handler of a VEX instruction needs besides the thunk, packed in `apus_insn.imm`.
struct VEXOperands {
    var rawValue: UInt64
    init(rawValue: UInt64) { self.rawValue = rawValue }

    init(form: VEXForm, bytes: UInt8, regOffset: Int, rmOffset: Int) {
        rawValue = UInt64(truncatingIfNeeded: regOffset >> 3) | UInt64(truncatingIfNeeded: rmOffset >> 3) << 16
        rawValue |= UInt64(bytes) << 32 | UInt64(form.traits.rawValue) << 40
        rawValue |= (form.reg == .general || form.rm == .general ? 1 : 0) << 56
    }
    @inline(__always) var regOffset: Int { Int(truncatingIfNeeded: (rawValue & 0xFFFF) << 3) }
    @inline(__always) var rmOffset: Int { Int(truncatingIfNeeded: ((rawValue >> 16) & 0xFFFF) << 3) }
    @inline(__always) var bytes: Int { Int(truncatingIfNeeded: (rawValue >> 32) & 0xFF) }
    @inline(__always) func has(_ trait: VectorForm.Traits) -> Bool { rawValue & UInt64(trait.rawValue) << 40 != 0 }
    @inline(__always) var isGeneral: Bool { rawValue & 1 << 56 != 0 }
}

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// The handler of a VEX instruction on vector registers; nil when there is none of that kind.
    func wideHandler(_ insn: UnsafeMutablePointer<apus_insn>) -> apus_handler? {
        let key = ModeKey(rawValue: pointee.mode_key)
        let prefix = Self.mandatoryPrefix(insn.pointee.prefixes)
        let isMemory = insn.pointee.mem != 0
        if insn.pointee.opcode == 0x1AE || insn.pointee.opcode == 0x1F7 { return wideOdd(insn, prefix, key) }
        guard key.contains(.avx),
            let form = VEXForm.find(
                opcode: insn.pointee.opcode, prefix: prefix, group: insn.pointee.modrm >> 3 & 7, isMemory: isMemory,
                w: insn.pointee.vex >> 2 & 1),
            Self.isAllowed(form, insn)
        else { return nil }
        if key.contains(.taskSwitched) { return Self.notAvailable }
        insn.pointee.immediate = UInt8(truncatingIfNeeded: insn.pointee.imm)
        if form.shape == .four, !is64Bit { insn.pointee.immediate &= 0x7F }
        let isLong = insn.pointee.vex & 2 != 0
        switch form.shape {
        case .zero:
            insn.pointee.vector = isLong ? 0 : UInt8(APUS_NATIVE_ZERO)
            return isLong ? Self.zeroAll : Self.zeroUpper
        case .gather: return gatherHandler(insn)
        case .maskedLoad, .maskedStore:
            insn.pointee.vector = UInt8(APUS_NATIVE_VEX)
            return maskedHandler(insn, form)
        default: break
        }
        guard let thunk = Self.thunk(form, insn, prefix: prefix) else { return nil }
        insn.pointee.extra = thunk
        insn.pointee.vector = UInt8(APUS_NATIVE_VEX)
        insn.pointee.imm =
            VEXOperands(
                form: form, bytes: form.bytes(insn), regOffset: Self.offset(form.reg, insn.pointee.reg),
                rmOffset: Self.offset(form.rm, insn.pointee.rm)
            ).rawValue
        if isMemory, form.traits.contains(.store) {
            return { cpu, insn in Self.status { () throws(Fault) in try cpu.runWideStore(insn) } }
        }
        return { cpu, insn in Self.status { () throws(Fault) in try cpu.runWide(insn) } }
    }

    /// What the form, the host and the encoding's rules allow.
    private static func isAllowed(_ form: VEXForm, _ insn: Insn) -> Bool {
        let isLong = insn.pointee.vex & 2 != 0
        if (isLong ? form.long : form.short) == nil { return false }
        let needed = UInt32(form.feature) | (isLong && !form.isScalar ? UInt32(form.longFeature) : 0)
        if apus_host_features() & needed != needed { return false }
        switch form.shape {
        // VEX.vvvv, which is kept inverted, must be 1111 where it names no register.
        case .load, .store, .zero: return insn.pointee.vvvv == 0
        default: return true
        }
    }

    /// VLDMXCSR, VSTMXCSR and VMASKMOVDQU: the legacy instructions' work.
    private func wideOdd(
        _ insn: UnsafeMutablePointer<apus_insn>, _ prefix: UInt8, _ key: ModeKey
    ) -> apus_handler? {
        let group = insn.pointee.modrm >> 3 & 7
        guard key.contains(.avx), insn.pointee.vex & 2 == 0, insn.pointee.vvvv == 0 else { return nil }
        let isControl = insn.pointee.opcode == 0x1AE
        guard isControl ? prefix == 0 && insn.pointee.mem != 0 && (group == 2 || group == 3) : prefix == 0x66 else {
            return nil
        }
        return isControl ? stateHandler(insn) : oddHandler(insn)
    }

    // MARK: Upper halves

    /// Writes zeros where `upper_zero` says that they should be.
    @inline(__always) func settleUpper() {
        if pointee.upper_zero != 0 { writeUpperZeros() }
    }
    @inline(never) private func writeUpperZeros() {
        (fpuImage + FXSAVEOffset.upper).initializeMemory(as: UInt8.self, repeating: 0, count: 256)
        pointee.upper_zero = 0
    }

    /// Makes the upper halves of the first registers zero; 32-bit code reaches eight.
    func clearUpper(count: Int) {
        if count == 16 {
            pointee.upper_zero = 1
        } else if pointee.upper_zero == 0 {
            (fpuImage + FXSAVEOffset.upper).initializeMemory(as: UInt8.self, repeating: 0, count: 16 * count)
        }
    }

    /// Whether any upper half is not zero: AVX state is in use (SDM vol. 1 §13.6).
    var usesUpper: Bool {
        if pointee.upper_zero != 0 { return false }
        var all: UInt64 = 0
        for offset in stride(from: FXSAVEOffset.upper, to: FXSAVEOffset.upperEnd, by: 8) {
            all |= fpuImage.load(fromByteOffset: offset, as: UInt64.self)
        }
        return all != 0
    }

    private static var zeroUpper: apus_handler {
        { cpu, _ in
            cpu.clearUpper(count: cpu.is64Bit ? 16 : 8)
            return Status.next
        }
    }
    private static var zeroAll: apus_handler {
        { cpu, _ in
            let count = cpu.is64Bit ? 16 : 8
            cpu.clearUpper(count: count)
            (cpu.fpuImage + FXSAVEOffset.xmm).initializeMemory(as: UInt8.self, repeating: 0, count: 16 * count)
            return Status.next
        }
    }

    // MARK: Execution

    @inline(__always) func vectorPlace(_ number: UInt8) -> UnsafeMutableRawPointer {
        fpuImage + FXSAVEOffset.xmm + 16 * Int(number & 15)
    }

    private func runWide(_ insn: Insn) throws(Fault) {
        let operands = VEXOperands(rawValue: insn.pointee.imm)
        let base = UnsafeMutableRawPointer(self)
        var source = base + operands.rmOffset
        if insn.pointee.mem != 0 {
            source = fpuScratch
            let (segment, address, bytes) = (Int(insn.pointee.segment), effectiveAddress(insn), operands.bytes)
            if operands.has(.aligned) { try checkAlignment(segment, address, to: UInt64(bytes)) }
            switch bytes {
            case 8: source.storeBytes(of: try load(segment, address, as: UInt64.self), as: UInt64.self)
            case 4: source.storeBytes(of: try load(segment, address, as: UInt32.self), as: UInt32.self)
            case 2: source.storeBytes(of: try load(segment, address, as: UInt16.self), as: UInt16.self)
            case 1: source.storeBytes(of: try load(segment, address, as: UInt8.self), as: UInt8.self)
            default: try copyIn(segment, address, into: source, bytes: bytes)
            }
        }
        try runWideThunk(insn, operands, base + operands.regOffset, source)
    }

    private func runWideStore(_ insn: Insn) throws(Fault) {
        let operands = VEXOperands(rawValue: insn.pointee.imm)
        let (segment, address, bytes) = (Int(insn.pointee.segment), effectiveAddress(insn), operands.bytes)
        if operands.has(.aligned) { try checkAlignment(segment, address, to: UInt64(bytes)) }
        let result = fpuScratch
        try runWideThunk(insn, operands, UnsafeMutableRawPointer(self) + operands.regOffset, result)
        switch bytes {
        case 8: try store(result.load(as: UInt64.self), segment, address)
        case 4: try store(result.load(as: UInt32.self), segment, address)
        case 2: try store(result.load(as: UInt16.self), segment, address)
        case 1: try store(result.load(as: UInt8.self), segment, address)
        default: try copyOut(segment, address, from: result, bytes: bytes)
        }
    }

    @inline(__always) private func runWideThunk(
        _ insn: Insn, _ operands: VEXOperands, _ reg: UnsafeMutableRawPointer, _ rm: UnsafeMutableRawPointer
    ) throws(Fault) {
        settleUpper()
        if operands.has(.floating), mxcsr & 0x1F80 != 0x1F80 { return try runWideUnmasked(insn, operands, reg, rm) }
        let flags = callWide(insn, reg, rm)
        if operands.has(.flags) { setArithmeticFlags(flags) }
    }

    @inline(__always) private func callWide(
        _ insn: Insn, _ reg: UnsafeMutableRawPointer, _ rm: UnsafeMutableRawPointer
    ) -> UInt64 {
        apus_call_wide_thunk(
            insn, reg, rm, self, vectorPlace(insn.pointee.vvvv), vectorPlace(insn.pointee.immediate >> 4))
    }

    /// As `runUnmasked` in SIMD.swift; here the destination is put back instead.
    @inline(never) private func runWideUnmasked(
        _ insn: Insn, _ operands: VEXOperands, _ reg: UnsafeMutableRawPointer, _ rm: UnsafeMutableRawPointer
    ) throws(Fault) {
        let saved = mxcsr
        let target = operands.has(.store) ? rm : reg
        let distance = FXSAVEOffset.upper - FXSAVEOffset.xmm
        let isRegister = !operands.has(.noResult) && !(operands.has(.store) && insn.pointee.mem != 0)
        let low = target.load(as: (UInt64, UInt64).self)
        // A general register may only be a destination of eight bytes.
        let isVector = isRegister && !(operands.isGeneral && target < fpuImage)
        let high = isVector ? target.load(fromByteOffset: distance, as: (UInt64, UInt64).self) : (0, 0)
        mxcsr = (saved | 0x1F80) & ~0x3F
        let flags = callWide(insn, reg, rm)
        var raised = mxcsr & 0x3F
        let unmasked = raised & ~(saved >> 7)
        if unmasked & 7 != 0 { raised &= 7 }
        mxcsr = saved | raised
        guard unmasked != 0 else {
            if operands.has(.flags) { setArithmeticFlags(flags) }
            return
        }
        if isVector {
            target.storeBytes(of: low, as: (UInt64, UInt64).self)
            target.storeBytes(of: high, toByteOffset: distance, as: (UInt64, UInt64).self)
        } else if isRegister {
            target.storeBytes(of: low.0, as: UInt64.self)
        }
        throw raise(pointee.cr4 & CR4.osXMMException != 0 ? Vector.simd : Vector.invalidOpcode)
    }
}

extension VEXForm {
    /// VEX.W for the host: clear where it means nothing, because processors differ in what they then accept.
    func encodedW(_ insn: Insn) -> Bool {
        if usesW { return insn.pointee.vex & 4 != 0 }
        let isGeneral =
            traits.contains(.generalWidth) || traits.contains(.string) || reg == .general && traits.contains(.floating)
        // The decoder has adjusted a general register's width to the mode.
        return isGeneral ? Int(insn.pointee.prefixes) & APUS_PREFIX_REXW != 0 : w == 1
    }

    /// Size of an instruction's memory operand.
    func bytes(_ insn: Insn) -> UInt8 {
        if traits.contains(.generalWidth) { return Int(insn.pointee.prefixes) & APUS_PREFIX_REXW != 0 ? 8 : 4 }
        return (insn.pointee.vex & 2 != 0 ? long : short) ?? 0
    }
}
