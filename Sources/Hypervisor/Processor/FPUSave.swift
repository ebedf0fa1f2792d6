// FXSAVE, MXCSR, and the choice of a handler for all that saves and restores state.
// Source: Intel SDM volume 1 §10.5; volume 2 instruction pages.
// Modelled: group 15 and XSAVEC; the XSAVE family is in ExtendedSave.swift. Not modelled: XSAVES.
// Quirks: FXSAVE leaves bytes 416 to 511 of the operand as they are.

internal import CProcessor

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// Handlers of group 15 and XSAVEC; nil for the rest of it (FS and GS base are the system part's).
    func stateHandler(_ insn: UnsafeMutablePointer<apus_insn>) -> apus_handler? {
        let prefixes = Int(insn.pointee.prefixes)
        let prefixed = prefixes & (APUS_PREFIX_REP | APUS_PREFIX_REPNE | APUS_PREFIX_LOCK) != 0
        let group = (insn.pointee.modrm >> 3) & 7
        let key = ModeKey(rawValue: pointee.mode_key)
        if insn.pointee.opcode == 0x1C7, group == 4, insn.pointee.mem != 0, !prefixed {
            return key.contains(.osXSAVE) ? (key.contains(.taskSwitched) ? Self.notAvailable : Self.xsave) : nil
        }
        guard insn.pointee.opcode == 0x1AE, !prefixed else { return nil }
        // The fences, and CLFLUSH, CLFLUSHOPT, CLWB, which need a readable operand.
        if insn.pointee.mem == 0 { return group >= 5 && prefixes & APUS_PREFIX_66 == 0 ? Self.fence : nil }
        if group == 7 || (group == 6 && prefixes & APUS_PREFIX_66 != 0) { return Self.flushLine }
        if prefixes & APUS_PREFIX_66 != 0 { return nil }
        if group >= 4, !key.contains(.osXSAVE) { return nil }
        if group <= 3, key.contains(.emulation) { return group <= 1 ? Self.notAvailable : nil }
        if group == 2 || group == 3, !key.contains(.osFXSR) { return nil }
        if key.contains(.taskSwitched) { return Self.notAvailable }
        insn.pointee.vector = group == 2 || group == 3 ? UInt8(APUS_NATIVE_CONTROL) : 0
        switch group {
        case 0: return { cpu, insn in Self.status { () throws(Fault) in try cpu.fxsave(insn) } }
        case 1: return { cpu, insn in Self.status { () throws(Fault) in try cpu.fxrstor(insn) } }
        case 2: return { cpu, insn in Self.status { () throws(Fault) in try cpu.loadMXCSR(insn) } }
        case 3:
            return { cpu, insn in
                Self.status { () throws(Fault) in
                    try cpu.store(cpu.mxcsr, Int(insn.pointee.segment), cpu.effectiveAddress(insn))
                }
            }
        case 5: return { cpu, insn in Self.status { () throws(Fault) in try cpu.xrstor(insn) } }
        default: return Self.xsave
        }
    }

    @inline(__always) static func status(_ body: () throws(Fault) -> Void) -> UInt32 {
        do throws(Fault) { try body() } catch { return Status.fault }
        return Status.next
    }

    private static var xsave: apus_handler {
        { cpu, insn in Self.status { () throws(Fault) in try cpu.xsave(insn) } }
    }
    private static var fence: apus_handler { { _, _ in Status.next } }
    private static var flushLine: apus_handler {
        { cpu, insn in
            Self.status { () throws(Fault) in
                _ = try cpu.load(Int(insn.pointee.segment), cpu.effectiveAddress(insn), as: UInt8.self)
            }
        }
    }

    func isWide(_ insn: Insn) -> Bool { is64Bit && Int(insn.pointee.prefixes) & APUS_PREFIX_REXW != 0 }

    private func loadMXCSR(_ insn: Insn) throws(Fault) {
        let value = try load(Int(insn.pointee.segment), effectiveAddress(insn), as: UInt32.self)
        if value & ~apus_host_mxcsr_mask() != 0 { throw raise(Vector.generalProtection, error: 0) }
        mxcsr = value
    }

    /// The first `bytes` of the image as FXSAVE stores it, into `target`.
    func writeLegacyImage(_ target: UnsafeMutableRawPointer, wide: Bool) {
        target.copyMemory(from: fpuImage, byteCount: FXSAVEOffset.end)
        target.storeBytes(of: apus_host_mxcsr_mask(), toByteOffset: FXSAVEOffset.mxcsrMask, as: UInt32.self)
        target.storeBytes(of: 0, toByteOffset: 5, as: UInt8.self)
        if wide || !is64Bit { return }
        // Selectors in place of the pointers' upper halves: 64-bit mode has none to tell.
        target.storeBytes(of: 0, toByteOffset: FXSAVEOffset.instruction + 4, as: UInt32.self)
        target.storeBytes(of: 0, toByteOffset: FXSAVEOffset.data + 4, as: UInt32.self)
    }

    private func fxsave(_ insn: Insn) throws(Fault) {
        let (segment, address) = (Int(insn.pointee.segment), effectiveAddress(insn))
        try checkAlignment(segment, address)
        try withImage { image throws(Fault) in
            writeLegacyImage(image, wide: isWide(insn))
            // Outside 64-bit mode XMM8 to XMM15 are not written (SDM vol. 2, FXSAVE).
            try probeWrite(segment, address, 512)
            try copyOut(segment, address, from: image, bytes: is64Bit ? FXSAVEOffset.end : 288)
        }
    }

    private func fxrstor(_ insn: Insn) throws(Fault) {
        let (segment, address) = (Int(insn.pointee.segment), effectiveAddress(insn))
        try checkAlignment(segment, address)
        try withImage { image throws(Fault) in
            try copyIn(segment, address, into: image, bytes: 512)
            let value = image.load(fromByteOffset: FXSAVEOffset.mxcsr, as: UInt32.self)
            if value & ~apus_host_mxcsr_mask() != 0 { throw raise(Vector.generalProtection, error: 0) }
            readX87(image)
            readSSE(image)
            mxcsr = value
        }
    }

    func withImage(_ body: (UnsafeMutableRawPointer) throws(Fault) -> Void) throws(Fault) {
        var image = apus_fpu()
        let result = withUnsafeMutableBytes(of: &image) { bytes -> Bool in
            guard let start = bytes.baseAddress else { return false }
            do throws(Fault) { try body(start) } catch { return false }
            return true
        }
        if !result { throw Fault() }
    }

    func readX87(_ image: UnsafeMutableRawPointer) {
        fpuImage.copyMemory(from: image, byteCount: FXSAVEOffset.mxcsr)
        fpuImage.storeBytes(of: 0, toByteOffset: 5, as: UInt8.self)
        // Ten bytes of each slot are a register; what lies between them is not kept.
        for slot in 0..<8 {
            let (to, from) = (fpuImage + FXSAVEOffset.st + 16 * slot, image + FXSAVEOffset.st + 16 * slot)
            to.storeBytes(of: from.loadUnaligned(as: UInt64.self), as: UInt64.self)
            let exponent = from.loadUnaligned(fromByteOffset: 8, as: UInt16.self)
            to.storeBytes(of: UInt64(exponent), toByteOffset: 8, as: UInt64.self)
        }
        x87Control = x87Control & 0x1F3F | 0x40
        updateX87Summary()
    }

    func readSSE(_ image: UnsafeMutableRawPointer) {
        let offset = FXSAVEOffset.xmm
        (fpuImage + offset).copyMemory(from: image + offset, byteCount: is64Bit ? 256 : 128)
    }
}
