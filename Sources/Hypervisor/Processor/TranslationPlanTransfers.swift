// The plans of branches, of what uses the stack, and of the 0F map.
// Source: Intel SDM volume 2, volume 1 appendix B (conditions).
// Modelled: near branches and stack operations of the code's own size; all others are run by their handlers.
// Quirks: see TranslationPlan.swift.

internal import CProcessor

extension NativePlan {
    static func transfer(_ insn: Insn, _ which: UInt16, _ width: UInt8) -> NativePlan {
        let size = insn.pointee.op_size
        if insn.pointee.opcode == 0xFF, which < 2 {
            return .flags(.single, 0xFF, writes: allFlags & ~1, extensionCode: UInt8(which))
        }
        // Of near branches and of the stack, in another size than the code's: left to handlers.
        guard size == width else { return NativePlan() }
        switch insn.pointee.opcode {
        case 0x50...0x57: return .plain(.push)
        case 0x58...0x5F: return .plain(.pop)
        case 0x68, 0x6A: return .plain(.pushImmediate)
        case 0xC9: return .plain(.leave)
        case 0x70...0x7F: return .plain(.jumpIf, reads: condition(insn))
        case 0xE2, 0xE3: return .plain(.loop)
        case 0xE8: return .plain(.call)
        case 0xE9, 0xEB: return .plain(.jump)
        case 0xC2, 0xC3: return .plain(.callReturn, reads: allFlags)
        case 0xFF:
            switch which {
            case 2: return .plain(.callIndirect, reads: allFlags)
            case 4: return .plain(.jumpIndirect, reads: allFlags)
            case 6: return insn.pointee.mem == 0 ? .plain(.push) : .plain(.pushMemory)
            default: return NativePlan()
            }
        default: return NativePlan()
        }
    }

    /// The flags that a condition looks at. SDM vol. 1 appendix B.
    private static func condition(_ insn: Insn) -> UInt32 {
        switch insn.pointee.opcode >> 1 & 7 {
        case 0: return 0x800
        case 1: return 1
        case 2: return 0x40
        case 3: return 0x41
        case 4: return 0x80
        case 5: return 4
        case 6: return 0x880
        default: return 0x8C0
        }
    }

    static func twoByte(_ insn: Insn, _ width: UInt8) -> NativePlan {
        let opcode = insn.pointee.opcode
        let size = insn.pointee.op_size
        let isMemory = insn.pointee.mem != 0
        switch opcode {
        case 0x140...0x14F: return .plain(.load, opcode, reads: condition(insn))
        case 0x180...0x18F: return size == width ? .plain(.jumpIf, reads: condition(insn)) : NativePlan()
        case 0x190...0x19F: return .plain(.setIf, opcode, reads: condition(insn))
        case 0x1AF: return isUsual(size, width) ? .flags(.load, opcode) : NativePlan()
        case 0x1B6, 0x1B7, 0x1BE, 0x1BF:
            return isUsual(size, width) ? .plain(.load, opcode) : NativePlan()
        case 0x1C8...0x1CF: return size >= 4 ? .plain(.byteSwap) : NativePlan()
        case 0x1A3, 0x1AB, 0x1B3, 0x1BB:
            return isMemory || size < 4 ? NativePlan() : .flags(.store, opcode, writes: 1)
        case 0x1BA:
            let which = insn.pointee.modrm >> 3 & 7
            return size < 4 || which < 4
                ? NativePlan() : .flags(.single, opcode, writes: 1, extensionCode: which)
        case 0x1A4, 0x1A5, 0x1AC, 0x1AD:
            return isMemory || size < 4 ? NativePlan() : .flags(.doubleShift, opcode, writes: 0)
        case 0x1AE where isMemory && insn.pointee.prefixes & 0xE == 0 && insn.pointee.isControl:
            return .plain(.control)
        case 0x1AE where !isMemory && insn.pointee.modrm >= 0xE8 && insn.pointee.prefixes & 0xE == 0:
            return .plain(.fence)
        case 0x1B0, 0x1B1: return isMemory ? .flags(.exchangeMemory, opcode) : NativePlan()
        case 0x1C0, 0x1C1: return isMemory ? .flags(.exchangeMemory, opcode) : NativePlan()
        case 0x1C7 where isMemory && insn.pointee.modrm >> 3 & 7 == 1 && insn.pointee.prefixes & 0xE == 0:
            return .flags(.exchangeMemory, opcode, writes: 0x40)
        case 0x1B8, 0x1BC, 0x1BD: return size >= 4 ? .flags(.load, opcode, writes: 0) : NativePlan()
        default: return NativePlan()
        }
    }
}

extension apus_insn {
    /// LDMXCSR or STMXCSR, if it is 1AE and allowed at all: then `stateHandler` marked it.
    fileprivate var isControl: Bool { vector == UInt8(APUS_NATIVE_CONTROL) }
}
