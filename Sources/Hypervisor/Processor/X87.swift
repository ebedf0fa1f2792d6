// x87 instructions: control instructions on the image, everything else natively through thunks.
// Source: Intel SDM volume 1 chapter 8; volume 2 appendix A.5 (escape opcodes), instruction pages.
// Modelled: all of D8 to DF and FWAIT, #NM, #MF, FERR#, instruction and data pointers. Not modelled: FDP for #MF only.
// Quirks: the host never sees an unmasked pending exception: each is found in the image before the thunk runs.

internal import CProcessor

/// Memory operand of an escape opcode.
enum X87Operand {
    case load(UInt8), store(UInt8), control, invalid

    /// By opcode D8...DF and ModRM.reg.
    static func memory(_ opcode: UInt8, _ reg: UInt8) -> X87Operand {
        switch (opcode, reg) {
        case (0xD8, _), (0xDA, _): .load(4)
        case (0xDC, _): .load(8)
        case (0xDE, _): .load(2)
        case (0xD9, 0), (0xDB, 0): .load(4)
        case (0xD9, 2...3), (0xDB, 1...3): .store(4)
        case (0xD9, 4...7), (0xDD, 4), (0xDD, 6...7): .control
        case (0xDB, 5): .load(10)
        case (0xDB, 7): .store(10)
        case (0xDD, 0), (0xDF, 5): .load(8)
        case (0xDD, 1...3), (0xDF, 7): .store(8)
        case (0xDF, 0): .load(2)
        case (0xDF, 1...3): .store(2)
        case (0xDF, 4): .load(10)
        case (0xDF, 6): .store(10)
        default: .invalid
        }
    }

    /// Whether an escape opcode with a register ModRM exists.
    static func isRegisterForm(_ opcode: UInt8, _ modrm: UInt8) -> Bool {
        switch opcode {
        case 0xD9:
            !(0xD1...0xDF).contains(modrm) && ![0xE2, 0xE3, 0xE6, 0xE7, 0xEF].contains(modrm)
                || (0xD8...0xDF).contains(modrm)
        case 0xDA: modrm < 0xE0 || modrm == 0xE9
        case 0xDB: modrm < 0xE5 || (0xE8...0xF7).contains(modrm)
        case 0xDD: modrm < 0xF0
        case 0xDE: !(0xD8...0xDF).contains(modrm) || modrm == 0xD9
        case 0xDF: modrm <= 0xE0 || (0xE8...0xF7).contains(modrm)
        default: true
        }
    }
}

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// The handler of D8 to DF and of FWAIT.
    func x87Handler(_ insn: UnsafeMutablePointer<apus_insn>) -> apus_handler? {
        if Int(insn.pointee.prefixes) & APUS_PREFIX_LOCK != 0 { return nil }
        let key = ModeKey(rawValue: pointee.mode_key)
        let opcode = UInt8(truncatingIfNeeded: insn.pointee.opcode)
        if opcode == 0x9B {
            if key.contains(.taskSwitched), key.contains(.monitorCoprocessor) { return Self.notAvailable }
            insn.pointee.vector = UInt8(APUS_NATIVE_X87)
            return { cpu, _ in Self.status { () throws(Fault) in try cpu.checkPendingX87() } }
        }
        let modrm = insn.pointee.modrm
        let isMemory = insn.pointee.mem != 0
        let operand = X87Operand.memory(opcode, (modrm >> 3) & 7)
        if isMemory {
            if case .invalid = operand { return nil }
        } else if !X87Operand.isRegisterForm(opcode, modrm) {
            return nil
        }
        if key.contains(.emulation) || key.contains(.taskSwitched) { return Self.notAvailable }
        insn.pointee.vector = UInt8(APUS_NATIVE_X87)
        if let handler = controlHandler(opcode, modrm, isMemory: isMemory) { return handler }
        let setsFlags = !isMemory && (opcode == 0xDB || opcode == 0xDF) && modrm >= 0xE8
        let readsFlags = !isMemory && (opcode == 0xDA || opcode == 0xDB) && modrm < 0xE0
        let encoded = isMemory ? modrm & 0x38 : modrm
        let thunk = ThunkStore.shared.thunk(
            ThunkKey(opcode: UInt16(opcode), prefix: 0, modrm: encoded, isMemory: isMemory)
        ) {
            code in
            code.loadGuestFPU()
            if readsFlags { code.loadFlags() }
            code.emit(opcode, isMemory ? encoded | 6 : modrm)
            if setsFlags { code.storeFlags() }
            code.storeGuestFPU()
            code.emit(0xDB, 0xE3)
            code.loadHostMXCSR()
            code.finish()
        }
        guard let thunk else { return nil }
        insn.pointee.extra = thunk
        guard isMemory else { return setsFlags ? Self.x87Compare : Self.x87Register }
        switch operand {
        case .load(let bytes):
            insn.pointee.imm = UInt64(bytes)
            return { cpu, insn in Self.status { () throws(Fault) in try cpu.runX87Load(insn) } }
        case .store(let bytes):
            insn.pointee.imm = UInt64(bytes)
            return { cpu, insn in Self.status { () throws(Fault) in try cpu.runX87Store(insn) } }
        default: return nil
        }
    }

    private static var x87Register: apus_handler {
        { cpu, insn in
            Self.status { () throws(Fault) in
                try cpu.checkPendingX87()
                _ = cpu.runX87(insn, dataPointer: nil)
            }
        }
    }

    /// FCOMI and its relatives set ZF, PF, CF and clear the others (SDM vol. 2, FCOMI).
    private static var x87Compare: apus_handler {
        { cpu, insn in
            Self.status { () throws(Fault) in
                try cpu.checkPendingX87()
                cpu.setArithmeticFlags(cpu.runX87(insn, dataPointer: nil))
            }
        }
    }

    /// Runs the thunk; then the pointers are the guest's, not the thunk's.
    @inline(__always) private func runX87(_ insn: Insn, dataPointer: UInt64?) -> UInt64 {
        let image = fpuImage
        let data = dataPointer ?? image.load(fromByteOffset: FXSAVEOffset.data, as: UInt64.self)
        let ignored = hasPendingX87 ? ignorePendingX87() : 0
        let flags = apus_call_thunk(insn, fpuScratch, fpuScratch, self)
        if ignored != 0 {
            x87Status |= ignored
            updateX87Summary()
        }
        var instruction = pointee.rip &+ UInt64(insn.pointee.start)
        if !is64Bit {
            instruction = instruction & 0xFFFF_FFFF | UInt64(segment(Seg.cs).pointee.selector) << 32
        }
        let opcode = (insn.pointee.opcode & 7) << 8 | UInt16(insn.pointee.modrm)
        image.storeBytes(of: opcode, toByteOffset: FXSAVEOffset.opcode, as: UInt16.self)
        image.storeBytes(of: instruction, toByteOffset: FXSAVEOffset.instruction, as: UInt64.self)
        image.storeBytes(of: data, toByteOffset: FXSAVEOffset.data, as: UInt64.self)
        return flags
    }

    /// With CR0.NE clear a pending exception is ignored as behind IGNNE#: the host must not see it. Its flags, to be put
    /// back.
    private func ignorePendingX87() -> UInt16 {
        let flags = x87Status & ~x87Control & 0x3F
        x87Status &= ~(0x8080 | flags)
        return flags
    }

    private func dataPointer(_ segment: Int, _ address: UInt64) -> UInt64 {
        if is64Bit { return address }
        return address & 0xFFFF_FFFF | UInt64(self.segment(segment).pointee.selector) << 32
    }

    private func runX87Load(_ insn: Insn) throws(Fault) {
        try checkPendingX87()
        let (segment, address) = (Int(insn.pointee.segment), effectiveAddress(insn))
        switch insn.pointee.imm {
        case 2: fpuScratch.storeBytes(of: try load(segment, address, as: UInt16.self), as: UInt16.self)
        case 4: fpuScratch.storeBytes(of: try load(segment, address, as: UInt32.self), as: UInt32.self)
        case 8: fpuScratch.storeBytes(of: try load(segment, address, as: UInt64.self), as: UInt64.self)
        default: try copyIn(segment, address, into: fpuScratch, bytes: 10)
        }
        _ = runX87(insn, dataPointer: dataPointer(segment, address))
    }

    /// The store happens only if no unmasked exception prevents it, so the operand's old bytes go in first.
    private func runX87Store(_ insn: Insn) throws(Fault) {
        try checkPendingX87()
        let (segment, address) = (Int(insn.pointee.segment), effectiveAddress(insn))
        let bytes = Int(truncatingIfNeeded: insn.pointee.imm)
        try probeWrite(segment, address, bytes)
        if x87Control & 0x3F != 0x3F { try copyIn(segment, address, into: fpuScratch, bytes: bytes) }
        _ = runX87(insn, dataPointer: dataPointer(segment, address))
        switch bytes {
        case 2: try store(fpuScratch.load(as: UInt16.self), segment, address)
        case 4: try store(fpuScratch.load(as: UInt32.self), segment, address)
        case 8: try store(fpuScratch.load(as: UInt64.self), segment, address)
        default: try copyOut(segment, address, from: fpuScratch, bytes: 10)
        }
    }
}
