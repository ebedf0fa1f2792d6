// x87 control instructions: they work on the image and never touch the host's unit.
// Source: Intel SDM volume 1 §8.1.10, figures 8-9 to 8-12; volume 2 FLDENV, FSTENV, FSAVE, FRSTOR, FLDCW, FSTSW.
// Modelled: the four environment layouts (16 or 32 bits, real or protected). Not modelled: nothing known.
// Quirks: FNENI, FNDISI, FNSETPM do nothing since the 387.

internal import CProcessor

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    func controlHandler(_ opcode: UInt8, _ modrm: UInt8, isMemory: Bool) -> apus_handler? {
        if !isMemory {
            switch (opcode, modrm) {
            case (0xDB, 0xE0), (0xDB, 0xE1), (0xDB, 0xE4): return { _, _ in Status.next }
            case (0xDB, 0xE2):
                return { cpu, _ in
                    cpu.x87Status &= 0x7F00
                    cpu.clearX87Error()
                    return Status.next
                }
            case (0xDB, 0xE3):
                return { cpu, _ in
                    cpu.initializeX87()
                    return Status.next
                }
            case (0xDF, 0xE0):
                return { cpu, _ in
                    cpu.pointee.gpr.0 = cpu.pointee.gpr.0 & ~0xFFFF | UInt64(cpu.x87Status)
                    return Status.next
                }
            default: return nil
            }
        }
        switch (opcode, (modrm >> 3) & 7) {
        case (0xD9, 4): return { cpu, insn in Self.status { () throws(Fault) in try cpu.loadEnvironment(insn) } }
        case (0xD9, 5): return { cpu, insn in Self.status { () throws(Fault) in try cpu.loadControlWord(insn) } }
        case (0xD9, 6): return { cpu, insn in Self.status { () throws(Fault) in try cpu.storeEnvironment(insn) } }
        case (0xD9, 7):
            return { cpu, insn in Self.status { () throws(Fault) in try cpu.storeWord(cpu.x87Control, insn) } }
        case (0xDD, 4): return { cpu, insn in Self.status { () throws(Fault) in try cpu.restoreState(insn) } }
        case (0xDD, 6): return { cpu, insn in Self.status { () throws(Fault) in try cpu.saveState(insn) } }
        case (0xDD, 7):
            return { cpu, insn in Self.status { () throws(Fault) in try cpu.storeWord(cpu.x87Status, insn) } }
        default: return nil
        }
    }

    private func storeWord(_ value: UInt16, _ insn: Insn) throws(Fault) {
        try store(value, Int(insn.pointee.segment), effectiveAddress(insn))
    }

    private func loadControlWord(_ insn: Insn) throws(Fault) {
        try checkPendingX87()
        let value = try load(Int(insn.pointee.segment), effectiveAddress(insn), as: UInt16.self)
        x87Control = value & 0x1F3F | 0x40
        updateX87Summary()
    }

    /// Size of the environment: seven words or seven double words.
    private func environmentBytes(_ insn: Insn) -> Int { insn.pointee.op_size == 2 ? 14 : 28 }

    /// Real-address or virtual-8086 layout: linear addresses instead of selectors.
    private var hasLinearPointers: Bool { !pointee.protected_mode }

    private func writeEnvironment(_ target: UnsafeMutableRawPointer, bytes: Int) {
        let image = fpuImage
        let instruction = image.load(fromByteOffset: FXSAVEOffset.instruction, as: UInt64.self)
        let data = image.load(fromByteOffset: FXSAVEOffset.data, as: UInt64.self)
        let opcode = UInt32(image.load(fromByteOffset: FXSAVEOffset.opcode, as: UInt16.self) & 0x7FF)
        let selectors =
            is64Bit
            ? (UInt32(0), UInt32(0))
            : (UInt32(truncatingIfNeeded: instruction >> 32) & 0xFFFF, UInt32(truncatingIfNeeded: data >> 32) & 0xFFFF)
        var (ip, dp) = (UInt32(truncatingIfNeeded: instruction), UInt32(truncatingIfNeeded: data))
        var words: [UInt32] = [UInt32(x87Control), UInt32(x87Status), UInt32(x87FullTags)]
        if bytes == 28 { for index in 0..<3 { words[index] |= 0xFFFF_0000 } }
        if hasLinearPointers {
            ip = ip &+ selectors.0 << 4
            dp = dp &+ selectors.1 << 4
            if bytes == 28 {
                words += [ip & 0xFFFF, (ip >> 16) << 12 | opcode, dp & 0xFFFF, (dp >> 16) << 12]
            } else {
                words += [ip, (ip >> 16 & 0xF) << 12 | opcode, dp, (dp >> 16 & 0xF) << 12]
            }
        } else if bytes == 28 {
            words += [ip, selectors.0 | opcode << 16, dp, selectors.1 | 0xFFFF_0000]
        } else {
            words += [ip, selectors.0, dp, selectors.1]
        }
        for (index, word) in words.enumerated() {
            if bytes == 28 {
                target.storeBytes(of: word, toByteOffset: 4 * index, as: UInt32.self)
            } else {
                target.storeBytes(of: UInt16(truncatingIfNeeded: word), toByteOffset: 2 * index, as: UInt16.self)
            }
        }
    }

    /// Takes the environment over. Slots are untouched: with another TOP they belong to other registers.
    private func readEnvironment(_ source: UnsafeMutableRawPointer, bytes: Int, movesSlots: Bool) {
        func word(_ index: Int) -> UInt32 {
            bytes == 28
                ? source.loadUnaligned(fromByteOffset: 4 * index, as: UInt32.self)
                : UInt32(source.loadUnaligned(fromByteOffset: 2 * index, as: UInt16.self))
        }
        let status = UInt16(truncatingIfNeeded: word(1))
        if movesSlots { rotateRegisters(to: Int((status >> 11) & 7)) }
        x87Control = UInt16(truncatingIfNeeded: word(0)) & 0x1F3F | 0x40
        x87Status = status
        setX87FullTags(UInt16(truncatingIfNeeded: word(2)))
        updateX87Summary()
        var (ip, dp) = (UInt64(word(3)), UInt64(word(5)))
        var opcode = word(4) >> 16
        if hasLinearPointers {
            opcode = word(4)
            ip = ip & 0xFFFF | UInt64(word(4) >> 12) << 16
            dp = dp & 0xFFFF | UInt64(word(6) >> 12) << 16
        } else if !is64Bit {
            ip |= UInt64(word(4) & 0xFFFF) << 32
            dp |= UInt64(word(6) & 0xFFFF) << 32
        }
        let image = fpuImage
        image.storeBytes(of: UInt16(opcode & 0x7FF), toByteOffset: FXSAVEOffset.opcode, as: UInt16.self)
        image.storeBytes(of: ip, toByteOffset: FXSAVEOffset.instruction, as: UInt64.self)
        image.storeBytes(of: dp, toByteOffset: FXSAVEOffset.data, as: UInt64.self)
    }

    private func storeEnvironment(_ insn: Insn) throws(Fault) {
        let bytes = environmentBytes(insn)
        writeEnvironment(fpuScratch, bytes: bytes)
        try copyOut(Int(insn.pointee.segment), effectiveAddress(insn), from: fpuScratch, bytes: bytes)
        x87Control |= 0x3F
        updateX87Summary()
    }

    private func loadEnvironment(_ insn: Insn) throws(Fault) {
        try checkPendingX87()
        let bytes = environmentBytes(insn)
        try copyIn(Int(insn.pointee.segment), effectiveAddress(insn), into: fpuScratch, bytes: bytes)
        readEnvironment(fpuScratch, bytes: bytes, movesSlots: true)
    }

    private func saveState(_ insn: Insn) throws(Fault) {
        let bytes = environmentBytes(insn)
        writeEnvironment(fpuScratch, bytes: bytes)
        for slot in 0..<8 {
            (fpuScratch + bytes + 10 * slot).copyMemory(from: fpuImage + FXSAVEOffset.st + 16 * slot, byteCount: 10)
        }
        try copyOut(Int(insn.pointee.segment), effectiveAddress(insn), from: fpuScratch, bytes: bytes + 80)
        initializeX87()
    }

    private func restoreState(_ insn: Insn) throws(Fault) {
        try checkPendingX87()
        let bytes = environmentBytes(insn)
        try copyIn(Int(insn.pointee.segment), effectiveAddress(insn), into: fpuScratch, bytes: bytes + 80)
        readEnvironment(fpuScratch, bytes: bytes, movesSlots: false)
        for slot in 0..<8 {
            (fpuImage + FXSAVEOffset.st + 16 * slot).copyMemory(from: fpuScratch + bytes + 10 * slot, byteCount: 10)
        }
    }
}
