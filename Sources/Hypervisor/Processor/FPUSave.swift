// FXSAVE, XSAVE, MXCSR, and the older x87 environments in their four layouts.
// Source: Intel SDM volume 1 §8.1.10 (figures 8-9 to 8-12), §10.5, §13.4-13.11; volume 2 instruction pages.
// Modelled: XSAVE, XSAVEOPT, XSAVEC, XRSTOR for x87 and SSE. Not modelled: XSAVES, init and modified optimisation.
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
        insn.pointee.vector = group == 2 || group == 3 ? 2 : 0
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

    private func isWide(_ insn: Insn) -> Bool { is64Bit && Int(insn.pointee.prefixes) & APUS_PREFIX_REXW != 0 }

    private func loadMXCSR(_ insn: Insn) throws(Fault) {
        let value = try load(Int(insn.pointee.segment), effectiveAddress(insn), as: UInt32.self)
        if value & ~apus_host_mxcsr_mask() != 0 { throw raise(Vector.generalProtection, error: 0) }
        mxcsr = value
    }

    /// The first `bytes` of the image as FXSAVE stores it, into `target`.
    private func writeLegacyImage(_ target: UnsafeMutableRawPointer, wide: Bool) {
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

    private func withImage(_ body: (UnsafeMutableRawPointer) throws(Fault) -> Void) throws(Fault) {
        var image = apus_fpu()
        let result = withUnsafeMutableBytes(of: &image) { bytes -> Bool in
            guard let start = bytes.baseAddress else { return false }
            do throws(Fault) { try body(start) } catch { return false }
            return true
        }
        if !result { throw Fault() }
    }

    private func readX87(_ image: UnsafeMutableRawPointer) {
        fpuImage.copyMemory(from: image, byteCount: FXSAVEOffset.mxcsr)
        fpuImage.storeBytes(of: 0, toByteOffset: 5, as: UInt8.self)
        (fpuImage + FXSAVEOffset.st).copyMemory(from: image + FXSAVEOffset.st, byteCount: 128)
        x87Control = x87Control & 0x1F3F | 0x40
        updateX87Summary()
    }

    private func readSSE(_ image: UnsafeMutableRawPointer) {
        let offset = FXSAVEOffset.xmm
        (fpuImage + offset).copyMemory(from: image + offset, byteCount: is64Bit ? 256 : 128)
    }

    /// XSAVE, XSAVEOPT, XSAVEC. Only x87 (bit 0) and SSE (bit 1) exist.
    private func xsave(_ insn: Insn) throws(Fault) {
        let (segment, address) = (Int(insn.pointee.segment), effectiveAddress(insn))
        let isCompact = insn.pointee.opcode == 0x1C7
        let base = is64Bit && segment < Seg.fs ? 0 : self.segment(segment).pointee.base
        if (base &+ address) & 63 != 0 { throw raise(Vector.generalProtection, error: 0) }
        let wanted = (pointee.gpr.0 & 0xFFFF_FFFF | pointee.gpr.2 << 32) & pointee.xcr0 & 3
        try withImage { image throws(Fault) in
            try copyIn(segment, address, into: image, bytes: 576)
            try probeWrite(segment, address, 576)
            let old = image.load(fromByteOffset: 512, as: UInt64.self)
            withUnsafeTemporaryAllocation(byteCount: 512, alignment: 16) { legacy in
                guard let legacy = legacy.baseAddress else { return }
                writeLegacyImage(legacy, wide: isWide(insn))
                if wanted & 1 != 0 {
                    image.copyMemory(from: legacy, byteCount: FXSAVEOffset.mxcsr)
                    (image + FXSAVEOffset.st).copyMemory(from: legacy + FXSAVEOffset.st, byteCount: 128)
                }
                if wanted & 2 != 0 {
                    (image + 24).copyMemory(from: legacy + 24, byteCount: 8)
                    (image + FXSAVEOffset.xmm).copyMemory(
                        from: legacy + FXSAVEOffset.xmm, byteCount: is64Bit ? 256 : 128)
                }
            }
            image.storeBytes(of: isCompact ? wanted : old & ~wanted | wanted, toByteOffset: 512, as: UInt64.self)
            if isCompact { image.storeBytes(of: wanted | 1 << 63, toByteOffset: 520, as: UInt64.self) }
            try copyOut(segment, address, from: image, bytes: isCompact ? 528 : 520)
        }
    }

    private func xrstor(_ insn: Insn) throws(Fault) {
        let (segment, address) = (Int(insn.pointee.segment), effectiveAddress(insn))
        let base = is64Bit && segment < Seg.fs ? 0 : self.segment(segment).pointee.base
        if (base &+ address) & 63 != 0 { throw raise(Vector.generalProtection, error: 0) }
        let wanted = (pointee.gpr.0 & 0xFFFF_FFFF | pointee.gpr.2 << 32) & pointee.xcr0 & 3
        try withImage { image throws(Fault) in
            try copyIn(segment, address, into: image, bytes: 576)
            let present = image.load(fromByteOffset: 512, as: UInt64.self)
            let compact = image.load(fromByteOffset: 520, as: UInt64.self)
            let value = image.load(fromByteOffset: FXSAVEOffset.mxcsr, as: UInt32.self)
            // The header's reserved bytes; XCOMP_BV may only be 0 or the compacted form's.
            var reserved: UInt64 = 0
            for offset in stride(from: 528, to: 576, by: 8) {
                reserved |= image.load(fromByteOffset: offset, as: UInt64.self)
            }
            let isCompact = compact >> 63 != 0
            let isBad = isCompact ? present & ~compact != 0 || compact & 0x7FFF_FFFF_FFFF_FFFC != 0 : compact != 0
            if present & ~pointee.xcr0 != 0 || isBad || reserved != 0
                || (wanted & 2 != 0 && value & ~apus_host_mxcsr_mask() != 0)
            {
                throw raise(Vector.generalProtection, error: 0)
            }
            if wanted & 1 != 0 {
                if present & 1 != 0 {
                    readX87(image)
                } else {
                    initializeX87()
                    (fpuImage + FXSAVEOffset.st).initializeMemory(as: UInt8.self, repeating: 0, count: 128)
                }
            }
            if wanted & 2 != 0 {
                mxcsr = isCompact && present & 2 == 0 ? 0x1F80 : value
                if present & 2 == 0 {
                    (image + FXSAVEOffset.xmm).initializeMemory(as: UInt8.self, repeating: 0, count: 256)
                }
                readSSE(image)
            }
        }
    }
}
