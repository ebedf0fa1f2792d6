// Writes x86-64 machine code: the forms that translated blocks are made of.
// Source: Intel SDM volume 2 §2.1-2.2 (prefixes, REX, ModRM, SIB).
// Modelled: general registers, memory by base and displacement, the vCPU's state by RSP.
// Quirks: instructions go to the writable mapping; relative jumps are the same in both.

internal import CProcessor

/// A register of the host, as instructions number it.
enum HostRegister {
    static let rax: UInt8 = 0
    /// Where the guest's RSP is.
    static let stack: UInt8 = 9
    /// Free for addresses and targets.
    static let address: UInt8 = 10
    /// Free for everything else.
    static let scratch: UInt8 = 11
}

/// Where the R/M operand of an instruction is.
enum HostPlace {
    case register(UInt8)
    /// Memory at a base register and a displacement.
    case memory(UInt8, Int32)
    /// Memory at two registers and a displacement.
    case indexed(UInt8, UInt8, Int32)
    /// A field of the vCPU.
    case state(Int32)

    /// Memory some bytes further on.
    func behind(_ bytes: Int32) -> HostPlace {
        switch self {
        case .register: return self
        case .memory(let base, let displacement): return .memory(base, displacement + bytes)
        case .indexed(let base, let index, let displacement): return .indexed(base, index, displacement + bytes)
        case .state(let offset): return .state(offset + bytes)
        }
    }

    /// REX.B and REX.X for it.
    var extensions: UInt8 {
        switch self {
        case .register(let register), .memory(let register, _): return register >= 8 ? 1 : 0
        case .indexed(let base, let index, _): return (base >= 8 ? 1 : 0) | (index >= 8 ? 2 : 0)
        case .state: return 0
        }
    }
}

struct Emitter {
    /// Next byte, in the writable mapping.
    var at: UnsafeMutablePointer<UInt8>
    /// Byte registers 4 to 7 are AH, CH, DH, BH: no REX, which only the first four registers do without.
    var hasHighBytes = false
    /// How far RSP is below the vCPU.
    var stackDepth: Int32 = 0

    mutating func byte(_ value: UInt8) {
        at.pointee = value
        at += 1
    }
    mutating func bytes(_ values: UInt8...) { for value in values { byte(value) } }
    mutating func long(_ value: Int32) {
        UnsafeMutableRawPointer(at).storeBytes(of: value, as: Int32.self)
        at += 4
    }
    mutating func quad(_ value: UInt64) {
        UnsafeMutableRawPointer(at).storeBytes(of: value, as: UInt64.self)
        at += 8
    }

    /// One instruction with ModRM. `opcode` above FF is of the 0F map; `prefix` is F2, F3 or 0.
    mutating func insn(
        _ opcode: UInt16, _ size: UInt8, _ reg: UInt8, _ place: HostPlace, byteSource: Bool = false, prefix: UInt8 = 0
    ) {
        if size == 2 { byte(0x66) }
        if prefix != 0 { byte(prefix) }
        var rex: UInt8 = size == 8 ? 0x48 : size == 1 || byteSource ? 0x40 : 0
        if reg >= 8 { rex |= 0x44 }
        if place.extensions != 0 { rex |= 0x40 | place.extensions }
        if rex != 0, !hasHighBytes { byte(rex) }
        if opcode > 0xFF { byte(0x0F) }
        byte(UInt8(truncatingIfNeeded: opcode))
        modRM(reg, place)
    }

    /// One instruction of the 0F maps with a mandatory prefix (0, 66, F3, F2), registers as they are numbered.
    mutating func vector(_ opcode: UInt16, prefix: UInt8, wide: Bool, _ reg: UInt8, _ place: HostPlace) {
        if prefix != 0 { byte(prefix) }
        var rex: UInt8 = wide ? 0x48 : 0
        if reg >= 8 { rex |= 0x44 }
        if place.extensions != 0 { rex |= 0x40 | place.extensions }
        if rex != 0 { byte(rex) }
        byte(0x0F)
        if opcode >> 8 == UInt16(APUS_MAP_0F38) { byte(0x38) }
        if opcode >> 8 == UInt16(APUS_MAP_0F3A) { byte(0x3A) }
        byte(UInt8(truncatingIfNeeded: opcode))
        modRM(reg, place)
    }

    /// One instruction with a three-byte VEX prefix; `pp`: 0, 66, F3 or F2 as 0 to 3.
    mutating func vex(
        _ opcode: UInt16, pp: UInt8, w: Bool, long: Bool, _ reg: UInt8, _ third: UInt8, _ place: HostPlace
    ) {
        let high: UInt8 = (reg >= 8 ? 0x60 : 0xE0) & ~(place.extensions << 5)
        bytes(0xC4, high | UInt8(opcode >> 8))
        byte((w ? 0x80 : 0) | (~third & 15) << 3 | (long ? 4 : 0) | pp)
        byte(UInt8(truncatingIfNeeded: opcode))
        modRM(reg, place)
    }

    private mutating func modRM(_ reg: UInt8, _ place: HostPlace) {
        let middle = (reg & 7) << 3
        switch place {
        case .register(let r): byte(0xC0 | middle | r & 7)
        case .memory(let base, let displacement):
            let low = base & 7
            let mod: UInt8 =
                displacement == 0 && low != 5
                ? 0 : displacement == Int32(Int8(truncatingIfNeeded: displacement)) ? 0x40 : 0x80
            byte(mod | middle | low)
            if low == 4 { byte(0x24) }
            if mod == 0x40 { byte(UInt8(truncatingIfNeeded: displacement)) }
            if mod == 0x80 { long(displacement) }
        case .indexed(let base, let index, let displacement):
            let isShort = displacement == Int32(Int8(truncatingIfNeeded: displacement))
            byte((isShort ? 0x44 : 0x84) | middle)
            byte((index & 7) << 3 | base & 7)
            if isShort { byte(UInt8(truncatingIfNeeded: displacement)) } else { long(displacement) }
        case .state(let offset):
            let displacement = offset + stackDepth
            let isShort = displacement == Int32(Int8(truncatingIfNeeded: displacement))
            byte((isShort ? 0x44 : 0x84) | middle)
            byte(0x24)
            if isShort { byte(UInt8(truncatingIfNeeded: displacement)) } else { long(displacement) }
        }
    }

    /// lea `target`, [base + index << scale + displacement]; at least an index.
    mutating func address(
        _ target: UInt8, base: UInt8?, index: UInt8, scale: UInt8, displacement: Int32, size: UInt8 = 8
    ) {
        var rex: UInt8 = size == 8 ? 0x48 : 0x40
        if target >= 8 { rex |= 4 }
        if index >= 8 { rex |= 2 }
        if let base, base >= 8 { rex |= 1 }
        byte(rex)
        byte(0x8D)
        let middle = (target & 7) << 3
        if let base {
            let isShort = displacement == Int32(Int8(truncatingIfNeeded: displacement))
            let isAbsent = displacement == 0 && base & 7 != 5
            byte((isAbsent ? 0x04 : isShort ? 0x44 : 0x84) | middle)
            byte(scale << 6 | (index & 7) << 3 | base & 7)
            if isAbsent { return }
            if isShort { return byte(UInt8(truncatingIfNeeded: displacement)) }
        } else {
            byte(0x04 | middle)
            byte(scale << 6 | (index & 7) << 3 | 5)
        }
        long(displacement)
    }

    mutating func move(_ target: UInt8, _ source: UInt8) { insn(0x89, 8, source, .register(target)) }
    mutating func load(_ target: UInt8, _ place: HostPlace) { insn(0x8B, 8, target, place) }
    mutating func store(_ source: UInt8, _ place: HostPlace) { insn(0x89, 8, source, place) }
    mutating func loadConstant(_ target: UInt8, _ value: UInt64) {
        bytes(0x48 | target >> 3, 0xB8 | target & 7)
        quad(value)
    }

    /// A jump that is aimed later; the place of its displacement.
    mutating func jump() -> UnsafeMutablePointer<UInt8> {
        byte(0xE9)
        long(0)
        return at - 4
    }
    mutating func jump(if condition: UInt8) -> UnsafeMutablePointer<UInt8> {
        bytes(0x0F, 0x80 | condition & 15)
        long(0)
        return at - 4
    }
    mutating func jump(to target: UnsafeMutablePointer<UInt8>) { aim(jump(), target) }
    mutating func jump(if condition: UInt8, to target: UnsafeMutablePointer<UInt8>) {
        aim(jump(if: condition), target)
    }
    mutating func call(_ target: UnsafeMutablePointer<UInt8>) {
        byte(0xE8)
        long(0)
        aim(at - 4, target)
    }
    func aim(_ place: UnsafeMutablePointer<UInt8>, _ target: UnsafeMutablePointer<UInt8>) {
        let distance = Int32(truncatingIfNeeded: target - place - 4)
        UnsafeMutableRawPointer(place).storeBytes(of: distance, as: Int32.self)
    }
}
