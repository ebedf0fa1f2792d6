// Which handler executes an integer, string or near-transfer instruction.
// Source: Intel SDM volume 2, appendix A.
// Modelled: every such instruction to BMI2 and ADX; system and vector instructions have choosers of their own.
// A register source of a load form (ADD r, r/m with two registers) is turned into the store form by swapping.

internal import CProcessor

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// The handler of an instruction that this part executes; nil when another part does.
    func integerHandler(_ insn: UnsafeMutablePointer<apus_insn>) -> apus_handler? {
        if insn.pointee.vex != 0 { return nil }
        switch insn.pointee.opcode >> 8 {
        case UInt16(APUS_MAP_1): return oneByteHandler(insn)
        case UInt16(APUS_MAP_0F): return twoByteHandler(insn)
        case UInt16(APUS_MAP_0F38):
            if insn.pointee.opcode == 0x2F6 {
                let prefixes = insn.pointee.prefixes & UInt8(APUS_PREFIX_66 | APUS_PREFIX_REP)
                let isKnown = prefixes == UInt8(APUS_PREFIX_66) || prefixes == UInt8(APUS_PREFIX_REP)
                return isKnown ? addCarryHandler(insn) : nil
            }
            return moveLikeHandler(insn)
        default: return nil
        }
    }

    private func isLocked(_ insn: UnsafeMutablePointer<apus_insn>) -> Bool {
        insn.pointee.prefixes & UInt8(APUS_PREFIX_LOCK) != 0
    }

    /// Makes `rm` the destination of a load form with two registers.
    private func swapRegisters(_ insn: UnsafeMutablePointer<apus_insn>) {
        (insn.pointee.rm, insn.pointee.reg) = (insn.pointee.reg, insn.pointee.rm)
        (insn.pointee.rm_at, insn.pointee.reg_at) = (insn.pointee.reg_at, insn.pointee.rm_at)
    }

    private func storeForm(_ insn: UnsafeMutablePointer<apus_insn>) -> OperandForm {
        insn.pointee.mem != 0 ? .store : .registers
    }
    private func loadForm(_ insn: UnsafeMutablePointer<apus_insn>) -> OperandForm {
        if insn.pointee.mem != 0 { return .load }
        swapRegisters(insn)
        return .registers
    }
    private func immediateForm(_ insn: UnsafeMutablePointer<apus_insn>) -> OperandForm {
        insn.pointee.mem != 0 ? .storeImmediate : .immediate
    }

    private func oneByteHandler(_ insn: UnsafeMutablePointer<apus_insn>) -> apus_handler? {
        let opcode = insn.pointee.opcode
        let size = insn.pointee.op_size
        switch opcode {
        case 0x27, 0x2F: return decimalAdjust
        case 0x37, 0x3F: return asciiAdjust
        case 0x00...0x3F where opcode & 7 < 6: return arithmetic(insn)
        case 0x40...0x47: return incrementHandler(size)
        case 0x48...0x4F: return decrementHandler(size)
        case 0x50...0x57, 0x68, 0x6A: return pushHandler(insn)
        case 0x58...0x5F: return popHandler(insn)
        case 0x60: return pushAll
        case 0x61: return popAll
        case 0x63: return self.pointee.code_size == 8 ? extendHandler(opcode, size) : nil
        case 0x69, 0x6B: return multiplyRegisterHandler(size)
        case 0x70...0x7F: return conditionalHandler(opcode)
        case 0x80...0x83:
            if isLocked(insn) { return lockedArithmetic(size) }
            return arithmeticHandler(insn.pointee.modrm >> 3, immediateForm(insn), size)
        case 0x84, 0x85: return testHandler(storeForm(insn), size)
        case 0x86, 0x87: return exchangeHandler(size)
        case 0x88, 0x89: return moveHandler(storeForm(insn), size)
        case 0x8A, 0x8B: return moveHandler(loadForm(insn), size)
        case 0x8D: return moveLikeHandler(insn)
        case 0x8F: return insn.pointee.modrm >> 3 & 7 == 0 ? popHandler(insn) : undefinedInstruction
        case 0x90...0x97: return exchangeAccumulator(insn)
        case 0x98, 0x99: return conversionHandler(opcode, size)
        case 0xA0...0xA3: return offsetHandler(size)
        case 0xA4...0xA7, 0xAA...0xAF: return stringHandler(opcode, size)
        case 0xA8, 0xA9: return testHandler(.immediate, size)
        default: return upperHandler(insn)
        }
    }

    /// Opcodes B0 to FF, and the flag instructions.
    private func upperHandler(_ insn: UnsafeMutablePointer<apus_insn>) -> apus_handler? {
        let opcode = insn.pointee.opcode
        let size = insn.pointee.op_size
        let which = insn.pointee.modrm >> 3 & 7
        switch opcode {
        case 0xB0...0xBF: return moveHandler(.immediate, size)
        case 0xC0, 0xC1, 0xD0...0xD3: return shiftHandler(insn)
        case 0xC2, 0xC3: return returnHandler(size)
        case 0xC6, 0xC7: return which == 0 ? moveHandler(immediateForm(insn), size) : undefinedInstruction
        case 0xC8: return enterFrame
        case 0xC9: return leaveFrame
        case 0xD4: return asciiMultiply
        case 0xD5: return asciiDivide
        case 0xD7: return translateByte
        case 0xE0...0xE3: return loopBranch
        case 0xE8: return callHandler(size)
        case 0xE9, 0xEB: return jumpRelative
        case 0xF6, 0xF7: return group3Handler(insn)
        case 0xFE: return which == 0 ? incrementHandler(1) : which == 1 ? decrementHandler(1) : undefinedInstruction
        case 0xFF:
            switch which {
            case 0: return incrementHandler(size)
            case 1: return decrementHandler(size)
            case 2: return callIndirectHandler(size)
            case 4: return jumpIndirectHandler(size)
            case 6: return pushHandler(insn)
            case 7: return undefinedInstruction
            default: return nil
            }
        default: return flagHandler(opcode)
        }
    }

    /// ADD ... CMP, opcodes 00 to 3D.
    private func arithmetic(_ insn: UnsafeMutablePointer<apus_insn>) -> apus_handler {
        let which = UInt8(truncatingIfNeeded: insn.pointee.opcode >> 3)
        let size = insn.pointee.op_size
        switch insn.pointee.opcode & 7 {
        case 0, 1: return isLocked(insn) ? lockedArithmetic(size) : arithmeticHandler(which, storeForm(insn), size)
        case 2, 3: return arithmeticHandler(which, loadForm(insn), size)
        default: return arithmeticHandler(which, .immediate, size)
        }
    }

    /// XCHG of the accumulator; 90 without REX.B is NOP, or PAUSE with F3.
    private func exchangeAccumulator(_ insn: UnsafeMutablePointer<apus_insn>) -> apus_handler? {
        if insn.pointee.rm == 0 {
            if insn.pointee.prefixes & UInt8(APUS_PREFIX_REP) != 0 { return nil }
            return noOperation
        }
        return exchangeHandler(insn.pointee.op_size)
    }

    private func twoByteHandler(_ insn: UnsafeMutablePointer<apus_insn>) -> apus_handler? {
        let opcode = insn.pointee.opcode
        let size = insn.pointee.op_size
        switch opcode {
        case 0x10D, 0x118...0x11F: return noOperation
        case 0x140...0x14F, 0x1C3, 0x1C8...0x1CF: return moveLikeHandler(insn)
        case 0x180...0x18F: return conditionalHandler(opcode)
        case 0x190...0x19F: return setIf
        case 0x1A3, 0x1AB, 0x1B3, 0x1BB, 0x1BA: return bitTestHandler(insn)
        case 0x1A4, 0x1A5, 0x1AC, 0x1AD: return doubleShiftHandler(size)
        case 0x1AF: return multiplyRegisterHandler(size)
        case 0x1B0, 0x1B1: return compareExchangeHandler(size)
        case 0x1B6, 0x1B7, 0x1BE, 0x1BF: return extendHandler(opcode, size)
        case 0x1B8, 0x1BC, 0x1BD: return scanHandler(insn)
        case 0x1C0, 0x1C1: return exchangeAddHandler(size)
        case 0x1C7 where insn.pointee.modrm >> 3 & 7 == 1:
            guard insn.pointee.mem != 0 else { return undefinedInstruction }
            return size == 8 ? compareExchange16 : compareExchange8
        case 0x1AE: return fenceHandler(insn)
        case 0x1FF, 0x1B9: return undefinedInstruction
        default: return nil
        }
    }

    /// LFENCE, MFENCE, SFENCE, CLFLUSH, CLFLUSHOPT and CLWB: memory is coherent here, so only the checks remain.
    private func fenceHandler(_ insn: UnsafeMutablePointer<apus_insn>) -> apus_handler? {
        let which = insn.pointee.modrm >> 3 & 7
        let prefixes = insn.pointee.prefixes & UInt8(APUS_PREFIX_66 | APUS_PREFIX_REP | APUS_PREFIX_REPNE)
        if insn.pointee.mem == 0 {
            guard which >= 5, prefixes == 0 else { return nil }
            return memoryFence
        }
        if which == 7, prefixes == 0 || prefixes == UInt8(APUS_PREFIX_66) { return touchByte }
        if which == 6, prefixes == UInt8(APUS_PREFIX_66) { return touchByte }
        return nil
    }
}

let noOperation: apus_handler = { _, _ in Status.next }

let memoryFence: apus_handler = { _, _ in
    apus_fence()
    return Status.next
}

/// CLFLUSH and its relatives fault as a load of one byte does.
let touchByte: apus_handler = { cpu, insn in
    cpu.attempt { () throws(Fault) in _ = try cpu.loadOperand(insn, UInt8.self) }
}
