// XSAVE, XSAVEOPT, XSAVEC and XRSTOR.
// Source: Intel SDM volume 1 §13.4 (areas), §13.6 (tracking), §13.7-13.10; volume 2 instruction pages.
// Modelled: x87 (bit 0), SSE (bit 1), AVX (bit 2), standard and compacted form. Not modelled: XSAVES.
// Quirks: x87 and SSE state always count as in use; AVX state does when an upper half is not zero. What is in the
// area's place is saved even if XSAVEOPT knows that nothing changed.

internal import CProcessor

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// XINUSE: the states that are not known to be as after initialisation.
    var statesInUse: UInt64 { usesUpper ? 7 : 3 }

    /// RFBM: the requested states that XCR0 enables.
    private var requestedStates: UInt64 { (pointee.gpr.0 & 0xFFFF_FFFF | pointee.gpr.2 << 32) & pointee.xcr0 }

    /// Bytes of YMM state that the mode reaches.
    private var upperBytes: Int { is64Bit ? 256 : 128 }

    func xsave(_ insn: Insn) throws(Fault) {
        let (segment, address) = (Int(insn.pointee.segment), effectiveAddress(insn))
        try checkAlignment(segment, address, to: 64)
        let wanted = requestedStates
        let isCompact = insn.pointee.opcode == 0x1C7
        // XSAVE writes a state that is not in use; the others only note that it is not.
        let isPlain = !isCompact && insn.pointee.modrm >> 3 & 7 == 4
        let saved = wanted & statesInUse
        let bytes = (isPlain ? wanted : saved) & 4 != 0 ? FXSAVEOffset.upperEnd : FXSAVEOffset.upper
        try withImage { image throws(Fault) in
            try copyIn(segment, address, into: image, bytes: bytes)
            try probeWrite(segment, address, bytes)
            let old = image.load(fromByteOffset: 512, as: UInt64.self)
            writeStates(image, wanted, isCompact: isCompact, wide: isWide(insn))
            if bytes > FXSAVEOffset.upper {
                settleUpper()
                (image + FXSAVEOffset.upper).copyMemory(from: fpuImage + FXSAVEOffset.upper, byteCount: upperBytes)
            }
            image.storeBytes(of: isCompact ? saved : old & ~wanted | saved, toByteOffset: 512, as: UInt64.self)
            if isCompact { image.storeBytes(of: wanted | 1 << 63, toByteOffset: 520, as: UInt64.self) }
            try copyOut(segment, address, from: image, bytes: bytes)
        }
    }

    /// x87 and SSE state into an area.
    private func writeStates(_ image: UnsafeMutableRawPointer, _ wanted: UInt64, isCompact: Bool, wide: Bool) {
        withUnsafeTemporaryAllocation(byteCount: 512, alignment: 16) { legacy in
            guard let legacy = legacy.baseAddress else { return }
            writeLegacyImage(legacy, wide: wide)
            if wanted & 1 != 0 {
                image.copyMemory(from: legacy, byteCount: FXSAVEOffset.mxcsr)
                (image + FXSAVEOffset.st).copyMemory(from: legacy + FXSAVEOffset.st, byteCount: 128)
            }
            // MXCSR belongs to AVX state as well in the standard form (SDM vol. 1 §13.7).
            if wanted & (isCompact ? 2 : 6) != 0 { (image + 24).copyMemory(from: legacy + 24, byteCount: 8) }
            if wanted & 2 != 0 {
                (image + FXSAVEOffset.xmm).copyMemory(from: legacy + FXSAVEOffset.xmm, byteCount: is64Bit ? 256 : 128)
            }
        }
    }

    func xrstor(_ insn: Insn) throws(Fault) {
        let (segment, address) = (Int(insn.pointee.segment), effectiveAddress(insn))
        try checkAlignment(segment, address, to: 64)
        let wanted = requestedStates
        try withImage { image throws(Fault) in
            try copyIn(segment, address, into: image, bytes: FXSAVEOffset.upper)
            let present = image.load(fromByteOffset: 512, as: UInt64.self)
            let isCompact = image.load(fromByteOffset: 520, as: UInt64.self) >> 63 != 0
            try checkHeader(image, wanted)
            // In the compacted form, too, YMM state comes first behind the header.
            if wanted & present & 4 != 0 {
                try copyIn(segment, address, into: image, bytes: FXSAVEOffset.upperEnd)
            }
            if wanted & 1 != 0 { restoreX87(image, isPresent: present & 1 != 0) }
            let value = image.load(fromByteOffset: FXSAVEOffset.mxcsr, as: UInt32.self)
            if isCompact ? wanted & 2 != 0 : wanted & 6 != 0 { mxcsr = isCompact && present & 2 == 0 ? 0x1F80 : value }
            if wanted & 2 != 0 {
                if present & 2 == 0 {
                    (image + FXSAVEOffset.xmm).initializeMemory(as: UInt8.self, repeating: 0, count: 256)
                }
                readSSE(image)
            }
            if wanted & 4 != 0 { restoreUpper(image, isPresent: present & 4 != 0) }
        }
    }

    /// The header's rules (SDM vol. 1 §13.8): reserved bits, states that XCR0 lacks, MXCSR.
    private func checkHeader(_ image: UnsafeMutableRawPointer, _ wanted: UInt64) throws(Fault) {
        let present = image.load(fromByteOffset: 512, as: UInt64.self)
        let compact = image.load(fromByteOffset: 520, as: UInt64.self)
        var reserved: UInt64 = 0
        for offset in stride(from: 528, to: 576, by: 8) {
            reserved |= image.load(fromByteOffset: offset, as: UInt64.self)
        }
        let isCompact = compact >> 63 != 0
        let known = compact & ~(1 << 63)
        let isBad = isCompact ? present & ~known != 0 || known & ~pointee.xcr0 != 0 : compact != 0
        let value = image.load(fromByteOffset: FXSAVEOffset.mxcsr, as: UInt32.self)
        let takesMXCSR = isCompact ? wanted & present & 2 != 0 : wanted & 6 != 0
        if present & ~pointee.xcr0 != 0 || isBad || reserved != 0
            || takesMXCSR && value & ~apus_host_mxcsr_mask() != 0
        {
            throw raise(Vector.generalProtection, error: 0)
        }
    }

    private func restoreX87(_ image: UnsafeMutableRawPointer, isPresent: Bool) {
        if isPresent { return readX87(image) }
        initializeX87()
        (fpuImage + FXSAVEOffset.st).initializeMemory(as: UInt8.self, repeating: 0, count: 128)
    }

    private func restoreUpper(_ image: UnsafeMutableRawPointer, isPresent: Bool) {
        guard isPresent else { return clearUpper(count: upperBytes / 16) }
        settleUpper()
        (fpuImage + FXSAVEOffset.upper).copyMemory(from: image + FXSAVEOffset.upper, byteCount: upperBytes)
    }
}
