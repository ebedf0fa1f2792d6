// DAA, DAS, AAA, AAS, AAM, AAD, SALC, flag instructions, SAHF, LAHF.
// Source: Intel SDM volume 2; flags that it leaves undefined as Intel's processors set them.
// Modelled: the instructions that 64-bit mode lacks, for 16- and 32-bit guests.
// SALC (D6) is undocumented but present on all processors.

internal import CProcessor

/// SF, ZF and PF of a byte.
private func resultFlags(_ value: UInt8) -> UInt32 {
    var flags: UInt32 = value.nonzeroBitCount & 1 == 0 ? 4 : 0
    if value == 0 { flags |= 0x40 }
    if value & 0x80 != 0 { flags |= 0x80 }
    return flags
}

/// DAA and DAS.
let decimalAdjust: apus_handler = { cpu, insn in
    let isSubtraction = insn.pointee.opcode == 0x2F
    let old = UInt8(truncatingIfNeeded: cpu.gpr[0])
    let flags = cpu.pointee.arith_flags
    var value = old
    var result: UInt32 = 0
    if old & 0xF > 9 || flags & 0x10 != 0 {
        value = isSubtraction ? value &- 6 : value &+ 6
        result |= 0x10
        if isSubtraction, old < 6 { result |= 1 }
    }
    if old > 0x99 || flags & 1 != 0 {
        value = isSubtraction ? value &- 0x60 : value &+ 0x60
        result |= 1
    }
    let overflow = isSubtraction ? old & ~value & 0x80 : ~old & value & 0x80
    cpu.pointee.arith_flags = result | resultFlags(value) | (overflow != 0 ? 0x800 : 0)
    cpu.writeGPR(0, size: 1, UInt64(value))
    return Status.next
}

/// AAA and AAS.
let asciiAdjust: apus_handler = { cpu, insn in
    let isSubtraction = insn.pointee.opcode == 0x3F
    var ax = UInt16(truncatingIfNeeded: cpu.gpr[0])
    var flags: UInt32 = 0
    if ax & 0xF > 9 || cpu.pointee.arith_flags & 0x10 != 0 {
        ax = isSubtraction ? ax &- 0x106 : ax &+ 0x106
        flags = 0x11
    }
    ax &= 0xFF0F
    cpu.pointee.arith_flags = flags | resultFlags(UInt8(truncatingIfNeeded: ax))
    cpu.writeGPR(0, size: 2, UInt64(ax))
    return Status.next
}

let asciiMultiply: apus_handler = { cpu, insn in
    let base = UInt8(truncatingIfNeeded: insn.pointee.imm)
    guard base != 0 else {
        _ = cpu.raise(0)
        return Status.fault
    }
    let al = UInt8(truncatingIfNeeded: cpu.gpr[0])
    cpu.writeGPR(0, size: 2, UInt64(al / base) << 8 | UInt64(al % base))
    cpu.pointee.arith_flags = resultFlags(al % base)
    return Status.next
}

let asciiDivide: apus_handler = { cpu, insn in
    let ax = UInt16(truncatingIfNeeded: cpu.gpr[0])
    let product = UInt8(truncatingIfNeeded: (ax >> 8) &* UInt16(truncatingIfNeeded: insn.pointee.imm))
    var flags: UInt32 = 0
    let sum = UInt8.add(UInt8(truncatingIfNeeded: ax), product, &flags)
    cpu.pointee.arith_flags = flags
    cpu.writeGPR(0, size: 2, UInt64(sum))
    return Status.next
}

/// CMC, CLC, STC, CLD, STD, SAHF, LAHF, SALC.
func flagHandler(_ opcode: UInt16) -> apus_handler? {
    switch opcode {
    case 0xF5:
        return { cpu, _ in
            cpu.pointee.arith_flags ^= 1
            return Status.next
        }
    case 0xF8:
        return { cpu, _ in
            cpu.pointee.arith_flags &= ~1
            return Status.next
        }
    case 0xF9:
        return { cpu, _ in
            cpu.pointee.arith_flags |= 1
            return Status.next
        }
    case 0xFC:
        return { cpu, _ in
            cpu.pointee.system_flags &= ~0x400
            return Status.next
        }
    case 0xFD:
        return { cpu, _ in
            cpu.pointee.system_flags |= 0x400
            return Status.next
        }
    case 0x9E:
        return { cpu, _ in
            let low = UInt32(truncatingIfNeeded: cpu.gpr[0] >> 8) & 0xD5
            cpu.pointee.arith_flags = cpu.pointee.arith_flags & 0x800 | low
            return Status.next
        }
    case 0x9F:
        return { cpu, _ in
            cpu.writeGPR(4, size: 1, UInt64(cpu.pointee.arith_flags & 0xD5 | 2), rex: false)
            return Status.next
        }
    case 0xD6:
        return { cpu, _ in
            cpu.writeGPR(0, size: 1, cpu.pointee.arith_flags & 1 != 0 ? 0xFF : 0)
            return Status.next
        }
    default: return nil
    }
}
