// Vector-map instructions that follow no operand pattern: EMMS, MASKMOV, CRC32, MOVBE, prefetches.
// Source: Intel SDM volume 2, instruction pages.
// Modelled: all of these. Not modelled: nothing known.
// Quirks: MASKMOVDQU writes byte by byte after every page it touches was probed.

internal import CProcessor

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    func oddHandler(_ insn: UnsafeMutablePointer<apus_insn>) -> apus_handler? {
        let prefixes = Int(insn.pointee.prefixes)
        if prefixes & APUS_PREFIX_LOCK != 0 { return nil }
        let isRepeated = prefixes & (APUS_PREFIX_REP | APUS_PREFIX_REPNE) != 0
        let key = ModeKey(rawValue: pointee.mode_key)
        switch insn.pointee.opcode {
        case 0x177 where !isRepeated && prefixes & APUS_PREFIX_66 == 0:
            if key.contains(.emulation) { return nil }
            if key.contains(.taskSwitched) { return Self.notAvailable }
            insn.pointee.vector = UInt8(APUS_NATIVE_MMX)
            return { cpu, _ in
                Self.status { () throws(Fault) in
                    try cpu.checkPendingX87()
                    cpu.rotateRegisters(to: 0)
                    cpu.x87Tags = 0
                }
            }
        case 0x1F7 where insn.pointee.mem == 0 && !isRepeated:
            let isMMX = prefixes & APUS_PREFIX_66 == 0
            if key.contains(.emulation) || (!isMMX && !key.contains(.osFXSR)) { return nil }
            if key.contains(.taskSwitched) { return Self.notAvailable }
            return isMMX
                ? { cpu, insn in Self.status { () throws(Fault) in try cpu.maskedMove(insn, isMMX: true) } }
                : { cpu, insn in Self.status { () throws(Fault) in try cpu.maskedMove(insn, isMMX: false) } }
        case 0x10D, 0x118: return insn.pointee.mem != 0 ? { _, _ in Status.next } : nil
        case 0x2F0, 0x2F1:
            if prefixes & APUS_PREFIX_REPNE != 0 { return checksumHandler(insn) }
            if insn.pointee.opcode == 0x2F0, insn.pointee.mem != 0, prefixes & APUS_PREFIX_REP == 0 {
                return { cpu, insn in Self.status { () throws(Fault) in try cpu.moveSwappedLoad(insn) } }
            }
            if insn.pointee.opcode == 0x2F1, insn.pointee.mem != 0, prefixes & APUS_PREFIX_REP == 0 {
                return { cpu, insn in Self.status { () throws(Fault) in try cpu.moveSwappedStore(insn) } }
            }
            return nil
        default: return nil
        }
    }

    /// MASKMOVQ and MASKMOVDQU: bytes whose mask has its top bit go to DS:rDI.
    private func maskedMove(_ insn: Insn, isMMX: Bool) throws(Fault) {
        let count = isMMX ? 8 : 16
        let registers = fpuImage + (isMMX ? FXSAVEOffset.st : FXSAVEOffset.xmm)
        if isMMX { try enterMMX() }
        let source = registers + 16 * Int(insn.pointee.reg & (isMMX ? 7 : 15))
        let mask = registers + 16 * Int(insn.pointee.rm & (isMMX ? 7 : 15))
        let width: UInt64 = insn.pointee.addr_size == 8 ? .max : insn.pointee.addr_size == 4 ? 0xFFFF_FFFF : 0xFFFF
        let segment = Int(insn.pointee.segment)
        var selected: UInt32 = 0
        for index in 0..<count where mask.load(fromByteOffset: index, as: UInt8.self) & 0x80 != 0 {
            selected |= 1 << index
            try probeWrite(segment, (pointee.gpr.7 &+ UInt64(index)) & width, 1)
        }
        for index in 0..<count where selected & 1 << index != 0 {
            let byte = source.load(fromByteOffset: index, as: UInt8.self)
            try store(byte, segment, (pointee.gpr.7 &+ UInt64(index)) & width)
        }
    }

    /// CRC32: Castagnoli's polynomial, reflected (SDM vol. 2, CRC32).
    private func checksumHandler(_ insn: UnsafeMutablePointer<apus_insn>) -> apus_handler? {
        guard apus_host_features() & UInt32(APUS_HOST_SSE42) != 0 else { return nil }
        return { cpu, insn in Self.status { () throws(Fault) in try cpu.checksum(insn) } }
    }

    private func checksum(_ insn: Insn) throws(Fault) {
        let size = insn.pointee.opcode == 0x2F0 ? 1 : Int(insn.pointee.op_size)
        var value: UInt64
        if insn.pointee.mem != 0 {
            let (segment, address) = (Int(insn.pointee.segment), effectiveAddress(insn))
            switch size {
            case 1: value = UInt64(try load(segment, address, as: UInt8.self))
            case 2: value = UInt64(try load(segment, address, as: UInt16.self))
            case 4: value = UInt64(try load(segment, address, as: UInt32.self))
            default: value = try load(segment, address, as: UInt64.self)
            }
        } else {
            let isHighByte =
                size == 1 && insn.pointee.rm >= 4 && insn.pointee.rm < 8
                && Int(insn.pointee.prefixes) & APUS_PREFIX_REX == 0
            let number = isHighByte ? insn.pointee.rm - 4 : insn.pointee.rm
            value = apus_gpr_at(self, UInt32(number)).pointee
            if isHighByte { value >>= 8 }
        }
        var sum = UInt32(truncatingIfNeeded: apus_gpr_at(self, UInt32(insn.pointee.reg)).pointee)
        for _ in 0..<size {
            sum ^= UInt32(value & 0xFF)
            value >>= 8
            for _ in 0..<8 { sum = sum & 1 != 0 ? sum >> 1 ^ 0x82F6_3B78 : sum >> 1 }
        }
        apus_gpr_at(self, UInt32(insn.pointee.reg)).pointee = UInt64(sum)
    }

    private func moveSwappedLoad(_ insn: Insn) throws(Fault) {
        let (segment, address) = (Int(insn.pointee.segment), effectiveAddress(insn))
        let target = apus_gpr_at(self, UInt32(insn.pointee.reg))
        switch insn.pointee.op_size {
        case 2:
            target.pointee = target.pointee & ~0xFFFF | UInt64(try load(segment, address, as: UInt16.self).byteSwapped)
        case 4: target.pointee = UInt64(try load(segment, address, as: UInt32.self).byteSwapped)
        default: target.pointee = try load(segment, address, as: UInt64.self).byteSwapped
        }
    }

    private func moveSwappedStore(_ insn: Insn) throws(Fault) {
        let (segment, address) = (Int(insn.pointee.segment), effectiveAddress(insn))
        let source = apus_gpr_at(self, UInt32(insn.pointee.reg)).pointee
        switch insn.pointee.op_size {
        case 2: try store(UInt16(truncatingIfNeeded: source).byteSwapped, segment, address)
        case 4: try store(UInt32(truncatingIfNeeded: source).byteSwapped, segment, address)
        default: try store(source.byteSwapped, segment, address)
        }
    }
}
