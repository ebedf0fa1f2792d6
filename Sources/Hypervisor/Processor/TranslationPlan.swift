// Which instructions have a native form in translated code, and what they do to the flags.
// Source: Intel SDM volume 2, volume 1 appendix A (flags).
// Modelled: integer instructions that compilers emit, in code of all sizes; all others are run by their handlers.
// Quirks: the decoder has swapped the operands of load forms with two registers (Integer.swift).

internal import CProcessor

/// How an instruction is translated.
enum NativeForm: UInt8 {
    /// By its handler.
    case handler
    /// No code at all.
    case nothing
    /// ADD ... CMP and TEST, MOV: R/M and REG, R/M being the destination; the opcode's bit 0 is the size.
    case store
    /// The same with REG as the destination, MOVZX, CMOV, IMUL ...
    case load
    /// R/M and an immediate (group 1, TEST, MOV), or R/M alone (INC, NOT, shifts ...).
    case single
    case loadAddress, moveImmediate, moveOffset, convert, setIf, byteSwap, exchange
    case push, pushImmediate, pop, leave
    /// LOOP and JECXZ.
    case loop
    case jumpIf, jump, call, callIndirect, jumpIndirect, callReturn
    /// XCHG, XADD, CMPXCHG and CMPXCHG8B or 16B on memory.
    case exchangeMemory
    case divide, doubleShift, fence
    /// SSE and its relatives, XMM registers being the host's.
    case vector
    /// LDMXCSR and STMXCSR.
    case control
    /// VEX on vector registers; VZEROUPPER; VEX on general registers.
    case wide, zeroUpper, wideGeneral
    /// MOVBE, CRC32, ADCX, ADOX.
    case extended
    case x87, mmx
    /// See TranslationSystem.swift.
    case clearInterrupts, setInterrupts, pushFlags, swapBases, userAccess, timeStamp, pushMemory, bitMemory
    case direction, readState, readBase, writeBase, systemCall, systemReturn
}

struct NativePlan {
    static let allFlags: UInt32 = 0x8D5
    var form = NativeForm.handler
    /// Flags that the result depends on.
    var reads: UInt32 = NativePlan.allFlags
    /// Flags that are given new values in every case.
    var writes: UInt32 = 0
    /// The host's flags change.
    var changesFlags = true
    /// Opcode of the native instruction, and its extension in ModRM.
    var opcode: UInt16 = 0
    var extensionCode: UInt8 = 0
    var isLocked = false
    /// AH, CH, DH or BH takes part.
    var hasHighBytes = false
    /// Flags are live behind the instruction.
    var liveOut: UInt32 = NativePlan.allFlags

    var liveIn: UInt32 { liveOut & ~writes | reads }

    static func plain(_ form: NativeForm, _ opcode: UInt16 = 0, reads: UInt32 = 0) -> NativePlan {
        NativePlan(form: form, reads: reads, writes: 0, changesFlags: false, opcode: opcode)
    }
    static func flags(
        _ form: NativeForm, _ opcode: UInt16, reads: UInt32 = 0, writes: UInt32 = allFlags, extensionCode: UInt8 = 0
    ) -> NativePlan {
        NativePlan(
            form: form, reads: reads, writes: writes, changesFlags: true, opcode: opcode, extensionCode: extensionCode)
    }

    private static let undefined = unsafeBitCast(undefinedInstruction, to: UInt.self)
    private static let none = unsafeBitCast(noOperation, to: UInt.self)

    /// The plan of `insn` alone, in a mode.
    static func of(_ insn: Insn, mode: UInt32) -> NativePlan {
        let handler = unsafeBitCast(insn.pointee.handler, to: UInt.self)
        if handler == none { return .plain(.nothing) }
        let width = UInt8(ModeKey(rawValue: mode).codeSize)
        guard handler != undefined, isReachable(insn, width) else { return NativePlan() }
        if insn.pointee.vex != 0 {
            // Outside 64-bit mode VZEROUPPER leaves half of the registers alone.
            let isPart = width != 8 && insn.pointee.vector == UInt8(APUS_NATIVE_ZERO)
            return isPart ? NativePlan() : wide(insn)
        }
        switch Int32(insn.pointee.vector) {
        case Int32(APUS_NATIVE_SSE): return vector(insn)
        case Int32(APUS_NATIVE_X87): return x87(insn)
        case Int32(APUS_NATIVE_MMX): return mmx(insn)
        default: break
        }
        if let plan = system(insn, mode: mode) { return plan }
        if insn.pointee.prefixes & UInt8(APUS_PREFIX_LOCK) != 0 {
            return locked(of(insn, isLocked: true, width: width))
        }
        return of(insn, isLocked: false, width: width)
    }

    /// Whether translated code finds the memory operand, if there is one.
    private static func isReachable(_ insn: Insn, _ width: UInt8) -> Bool {
        if insn.pointee.mem == 0 || width == 2 { return true }
        guard insn.pointee.index != UInt8(APUS_FAR), insn.pointee.addr_size >= 4 else { return false }
        return knowsSegment(insn, width) || insn.pointee.opcode == 0x8D
    }

    /// Whether translated code reaches the instruction's segment.
    private static func knowsSegment(_ insn: Insn, _ width: UInt8) -> Bool {
        width == 2 || insn.pointee.flat != 0 || insn.pointee.segment >= UInt8(segmentFS)
    }

    private static func of(_ insn: Insn, isLocked: Bool, width: UInt8) -> NativePlan {
        let plan: NativePlan
        switch insn.pointee.opcode >> 8 {
        case 0: plan = oneByte(insn, width)
        case 1: plan = twoByte(insn, width)
        case 2: return extended(insn)
        default: return NativePlan()
        }
        switch plan.form {
        case .store, .load, .exchangeMemory:
            // AH ... BH cannot be named beside r8 ... r15.
            guard (insn.pointee.reg_at | (insn.pointee.mem == 0 ? insn.pointee.rm_at : 0)) & 1 != 0 else { break }
            let isExtension = plan.opcode >= 0x100
            if plan.form == .store, plan.opcode == 0x88, insn.pointee.mem != 0, !isLocked { return plan.highBytes }
            let isPossible =
                insn.pointee.mem == 0 && (isExtension ? insn.pointee.reg < 8 && insn.pointee.reg != 4 : true)
            return isPossible ? plan.highBytes : NativePlan()
        case .single, .setIf, .moveImmediate:
            if insn.pointee.mem == 0, insn.pointee.rm_at & 1 != 0 { return plan.highBytes }
        default: break
        }
        return plan
    }

    /// LOCK on an instruction that changes its memory operand.
    private static func locked(_ plan: NativePlan) -> NativePlan {
        var plan = plan
        plan.isLocked = true
        switch plan.form {
        case .store where plan.opcode < 0x38, .exchangeMemory: return plan
        case .single:
            switch plan.opcode {
            case 0x80, 0x81, 0xFE, 0xFF, 0xF6, 0xF7, 0x1BA: return plan
            default: return NativePlan()
            }
        default: return NativePlan()
        }
    }

    private static func vector(_ insn: Insn) -> NativePlan {
        guard let form = VectorForm.of(insn) else { return NativePlan() }
        return form.traits.contains(.flags) ? .flags(.vector, insn.pointee.opcode) : .plain(.vector)
    }

    private static func arithmetic(_ form: NativeForm, _ which: UInt16, _ opcode: UInt16) -> NativePlan {
        .flags(form, opcode, reads: which == 2 || which == 3 ? 1 : 0, extensionCode: UInt8(which & 7))
    }

    private static func oneByte(_ insn: Insn, _ width: UInt8) -> NativePlan {
        let opcode = insn.pointee.opcode
        let size = insn.pointee.op_size
        let isByte: UInt16 = size == 1 ? 0 : 1
        let which = UInt16(insn.pointee.modrm >> 3 & 7)
        switch opcode {
        case 0x00...0x3F where opcode & 7 < 6:
            let operation = opcode >> 3
            if opcode & 7 >= 4 { return arithmetic(.single, operation, 0x80 | isByte) }
            let isLoad = opcode & 2 != 0 && insn.pointee.mem != 0
            return arithmetic(isLoad ? .load : .store, operation, operation << 3 | (isLoad ? 2 : 0) | isByte)
        case 0x80...0x83: return arithmetic(.single, which, 0x80 | isByte)
        case 0x84, 0x85: return .flags(.store, opcode)
        case 0x88...0x8B:
            let isLoad = opcode & 2 != 0 && insn.pointee.mem != 0
            return .plain(isLoad ? .load : .store, 0x88 | (isLoad ? 2 : 0) | isByte)
        case 0xA0...0xA3:
            return knowsSegment(insn, width)
                ? .plain(.moveOffset, opcode < 0xA2 ? 0x8A | isByte : 0x88 | isByte) : NativePlan()
        case 0xA8, 0xA9: return .flags(.single, 0xF6 | isByte)
        case 0xB0...0xBF: return .plain(.moveImmediate)
        case 0xC6, 0xC7: return insn.pointee.mem != 0 ? .plain(.single, 0xC6 | isByte) : .plain(.moveImmediate)
        case 0x40...0x4F:
            return .flags(.single, 0xFF, writes: allFlags & ~1, extensionCode: opcode < 0x48 ? 0 : 1)
        case 0x8D:
            return isUsual(size, width) && isUsual(insn.pointee.addr_size, width) ? .plain(.loadAddress) : NativePlan()
        case 0x63: return size == 8 ? .plain(.load, 0x63) : NativePlan()
        case 0x69, 0x6B: return isUsual(size, width) ? .flags(.load, 0x69) : NativePlan()
        case 0x98, 0x99: return .plain(.convert, opcode)
        case 0x86 where insn.pointee.mem != 0, 0x87 where insn.pointee.mem != 0:
            return .plain(.exchangeMemory, 0x86 | isByte)
        case 0x91...0x97, 0x87:
            return insn.pointee.mem == 0 && isUsual(size, width) ? .plain(.exchange, 0x87) : NativePlan()
        case 0xC0, 0xC1, 0xD0...0xD3: return shift(insn, which)
        case 0xF6 where which >= 6, 0xF7 where which >= 6:
            return size > 1 && isUsual(size, width)
                ? .flags(.divide, 0xF7, writes: 0, extensionCode: UInt8(which)) : NativePlan()
        case 0xF6, 0xF7: return group3(which, size, width)
        case 0xFE where which < 2: return .flags(.single, 0xFE, writes: allFlags & ~1, extensionCode: UInt8(which))
        default: return transfer(insn, which, width)
        }
    }

    /// Whether an operand of `size` bytes, or an address, is one that code of this width works with all the time.
    static func isUsual(_ size: UInt8, _ width: UInt8) -> Bool { size >= 4 || width == 2 }

    private static func shift(_ insn: Insn, _ which: UInt16) -> NativePlan {
        guard which != 2, which != 3 else { return NativePlan() }
        let isByte: UInt16 = insn.pointee.op_size == 1 ? 0 : 1
        let code = UInt8(which == 6 ? 4 : which)
        if insn.pointee.opcode >= 0xD2 { return .flags(.single, 0xD2 | isByte, writes: 0, extensionCode: code) }
        let count = insn.pointee.opcode >= 0xD0 ? 1 : insn.pointee.imm & (insn.pointee.op_size == 8 ? 63 : 31)
        guard count != 0 else { return NativePlan() }
        return .flags(.single, 0xC0 | isByte, writes: which < 2 ? 0x801 : allFlags, extensionCode: code)
    }

    private static func group3(_ which: UInt16, _ size: UInt8, _ width: UInt8) -> NativePlan {
        let opcode: UInt16 = size == 1 ? 0xF6 : 0xF7
        switch which {
        case 0, 1: return .flags(.single, opcode)
        case 2: return .plain(.single, opcode).extended(2)
        case 3: return .flags(.single, opcode, extensionCode: 3)
        case 4, 5:
            return isUsual(size, width) ? .flags(.single, opcode, extensionCode: UInt8(which)) : NativePlan()
        default: return NativePlan()
        }
    }

    private var highBytes: NativePlan {
        var plan = self
        plan.hasHighBytes = true
        return plan
    }

    private func extended(_ code: UInt8) -> NativePlan {
        var plan = self
        plan.extensionCode = code
        return plan
    }
}
