// Random user instructions, of 64-bit or 32-bit code, that stay inside the sandbox.
// Source: Intel SDM volume 2, opcode maps; operands by our own choice.
// Made: integer, string, branch, MMX, SSE, x87 instructions; VEX: WideGenerator.swift. Not made: system, FS and GS,
// undefined encodings.
// Quirks: R15 (32 bits: EBP) points to the middle of the data, R14 is a small multiple of 16, RSP the stack: none of
// them is a destination. Flags that an instruction leaves undefined differ between hosts: see `settle`.

import CProcessor
import TestSupport

@testable import Processor

extension Seeded {
    mutating func below(_ limit: Int) -> Int { Int(truncatingIfNeeded: next() >> 33) % limit }
    mutating func chance(_ one: Int) -> Bool { below(one) == 0 }
}

struct InstructionGenerator {
    var random: Seeded
    var bytes: [UInt8] = []
    /// Offsets of the instructions' first bytes.
    private(set) var starts: [Int] = []
    /// Exceptions are unmasked. Then dot products are left out: which of their steps still raise flags depends on the
    /// host.
    var isUnmasked = false

    static let middle = UserGuest.data + 4096
    private let registers: [Int]
    let is64: Bool

    init(seed: UInt64, bits: Int = 64) {
        random = Seeded(seed)
        is64 = bits == 64
        registers = is64 ? [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13] : [0, 1, 2, 3, 6, 7]
    }

    mutating func emit(_ code: UInt8...) { bytes += code }
    mutating func emit32(_ value: Int) {
        withUnsafeBytes(of: Int32(truncatingIfNeeded: value)) { bytes += Array($0) }
    }
    private mutating func immediate(_ size: Int) -> [UInt8] {
        let value = random.chance(3) ? UInt64(bitPattern: Int64(random.below(5) - 2)) : random.next()
        return withUnsafeBytes(of: value) { Array($0.prefix(size)) }
    }
    mutating func register() -> Int { registers[random.below(registers.count)] }

    /// One instruction with ModRM. `rm` nil: a memory operand, aligned to `align`.
    private mutating func encode(
        _ opcode: [UInt8], reg: Int, rm: Int?, wide: Bool = false, prefixes: [UInt8] = [], rex: Bool = false,
        align: Int = 1, immediate: [UInt8] = []
    ) {
        let form = rm == nil ? random.below(6) : 0
        if rm == nil, form == 5, is64 { emit(0x67) }
        bytes += prefixes
        guard is64 else {
            bytes += opcode
            if let rm { emit(0xC0 | UInt8(reg & 7) << 3 | UInt8(rm & 7)) } else { memory32(form, reg, align) }
            bytes += immediate
            return
        }
        var prefix: UInt8 = wide ? 0x48 : 0x40
        if reg >= 8 { prefix |= 4 }
        if let rm { if rm >= 8 { prefix |= 1 } } else if form != 3, form != 4 { prefix |= 1 }
        if form == 2 { prefix |= 2 }
        if prefix != 0x40 || rex { emit(prefix) }
        bytes += opcode
        let field = UInt8(reg & 7) << 3
        if let rm {
            emit(0xC0 | field | UInt8(rm & 7))
        } else {
            memory(form, field, align: align, behind: immediate.count)
        }
        bytes += immediate
    }

    mutating func memory32(_ form: Int, _ reg: Int, _ align: Int) {
        let field = UInt8(reg & 7) << 3
        let offset = (random.below(1800) - 900) & ~(align - 1)
        switch form {
        case 0, 1: emit(0x45 | field, UInt8(truncatingIfNeeded: (random.below(240) - 120) & ~(align - 1)))
        case 2:
            // No base, EBP as the index.
            emit(0x04 | field, 0x2D)
            emit32(offset)
        case 3:
            emit(0x05 | field)
            emit32(Int(Self.middle) + offset)
        default:
            emit(0x85 | field)
            emit32(offset)
        }
    }

    mutating func memory(_ form: Int, _ field: UInt8, align: Int, behind: Int) {
        let offset = (random.below(1800) - 900) & ~(align - 1)
        switch form {
        case 0:
            let short = (random.below(240) - 120) & ~(align - 1)
            emit(0x47 | field, UInt8(truncatingIfNeeded: short))
        case 1, 5:
            emit(0x87 | field)
            emit32(offset)
        case 2:
            emit(0x84 | field, UInt8(random.below(4)) << 6 | 0x37)
            emit32(offset)
        case 3:
            emit(0x05 | field)
            let next = UserGuest.code + UInt64(bytes.count + 4 + behind)
            emit32(Int(Self.middle) + offset - Int(next))
        default:
            emit(0x04 | field, 0x25)
            emit32(Int(Self.middle) + offset)
        }
    }

    /// An operand: a register, or (one in three) memory.
    private mutating func operand() -> Int? { random.chance(3) ? nil : register() }
    private mutating func size() -> (wide: Bool, prefixes: [UInt8], bytes: Int) {
        switch random.below(4) {
        case 0: (false, [0x66], 2)
        case 1: (is64, [], is64 ? 8 : 4)
        default: (false, [], 4)
        }
    }

    private static let hasBMI =
        apus_host_features() & UInt32(APUS_HOST_BMI1 | APUS_HOST_BMI2) == UInt32(APUS_HOST_BMI1 | APUS_HOST_BMI2)
    private static let lateFeatures = UInt32(APUS_HOST_ADX | APUS_HOST_MOVBE | APUS_HOST_SSE42)
    private static let hasLate = apus_host_features() & lateFeatures == lateFeatures

    mutating func begin() { starts.append(bytes.count) }

    /// Ends an instruction that leaves flags undefined, all but `defined`: something reads one of these or nothing,
    /// and then every flag has a value that hosts agree about. Logical instructions need none of it: AF, which the
    /// manuals leave open there, is clear behind them on every x86-64 processor.
    private mutating func settle(_ defined: UInt32) {
        let conditions: [(flag: UInt32, code: UInt8)] = [(1, 2), (0x40, 4), (0x80, 8), (4, 10), (0x800, 0)]
        let known = conditions.filter { defined & $0.flag != 0 }
        switch random.below(known.isEmpty ? 2 : 4) {
        case 0:
            // PUSHF; AND [RSP], what is defined; POPF
            emit(0x9C)
            if is64 { emit(0x48) }
            emit(0x81, 0x24, 0x24)
            emit32(Int(~0x8D5 | defined & 0x8D5))
            return emit(0x9D)
        case 1: break
        case 2: emit(0x0F, 0x90 | known[random.below(known.count)].code | UInt8(random.below(2)), 0xC1)
        default: emit(0x70 | known[random.below(known.count)].code | UInt8(random.below(2)), 2, 0xB1, 0x5A)
        }
        // CMP AL, imm
        emit(0x3C, UInt8(random.below(256)))
    }

    mutating func integer() {
        begin()
        if !is64, random.chance(8) { return legacy() }
        switch random.below(28) {
        case 22 where !Self.hasBMI: simple()
        case 26: absolute()
        case 0, 1, 2: arithmetic()
        case 3: groupOne()
        case 4: sized(random.chance(2) ? [0x84] : [0x88])
        case 5: sized([0x8A])
        case 6: groupThree()
        case 7: sizedGroup(0xFE, random.below(2))
        case 8, 9: shift()
        case 10: doubleShift()
        case 11: bitTest()
        case 12: scan()
        case 13: extend()
        case 14: conditional()
        case 15: sized(random.chance(2) ? [0x0F, 0xC0] : [0x0F, 0xB0], lockable: true)
        case 16: compareWide()
        case 17: simple()
        case 18: multiply()
        case 19: stack()
        case 20: string()
        case 21: branch()
        case 22: vexGeneral()
        case 23: if Self.hasLate { lateGeneral() } else { lea() }
        case 24: moveImmediate()
        case 25: exchange()
        default: lea()
        }
    }

    /// An 8-bit or larger instruction whose opcode's bit 0 tells.
    private mutating func sized(_ opcode: [UInt8], lockable: Bool = false) {
        let rm = operand()
        let lock: [UInt8] = lockable && rm == nil && random.chance(2) ? [0xF0] : []
        if random.chance(3) {
            encode(opcode, reg: register(), rm: rm, prefixes: lock, rex: true)
        } else {
            var wider = opcode
            wider[wider.count - 1] |= 1
            let (wide, prefixes, _) = size()
            encode(wider, reg: register(), rm: rm, wide: wide, prefixes: lock + prefixes)
        }
    }

    /// The operand's size in bytes.
    @discardableResult
    private mutating func sizedGroup(_ opcode: UInt8, _ digit: Int, immediate isImmediate: Bool = false) -> Int {
        let rm = operand()
        let lock: [UInt8] = opcode == 0xFE && rm == nil && random.chance(3) ? [0xF0] : []
        if random.chance(3) {
            encode([opcode], reg: digit, rm: rm, prefixes: lock, rex: true, immediate: isImmediate ? immediate(1) : [])
            return 1
        } else {
            let (wide, prefixes, bytes) = size()
            encode(
                [opcode | 1], reg: digit, rm: rm, wide: wide, prefixes: lock + prefixes,
                immediate: isImmediate ? immediate(min(bytes, 4)) : [])
            return bytes
        }
    }

    private mutating func arithmetic() {
        let operation = UInt8(random.below(8)) << 3
        switch random.below(8) {
        case 0:
            // High-byte registers exist without REX only.
            emit(operation | 2, 0xC0 | UInt8(random.below(64)))
        case 1:
            emit(operation | 4)
            bytes += immediate(1)
        case 2:
            let (wide, prefixes, bytes) = size()
            self.bytes += prefixes
            if wide { emit(0x48) }
            emit(operation | 5)
            self.bytes += immediate(min(bytes, 4))
        case 3: sized([operation | 2])
        default: sized([operation], lockable: operation != 0x38)
        }
    }

    private mutating func groupOne() {
        let digit = random.below(8)
        let rm = operand()
        let lock: [UInt8] = rm == nil && digit != 7 && random.chance(3) ? [0xF0] : []
        let (wide, prefixes, size) = size()
        switch random.below(3) {
        case 0: encode([0x80], reg: digit, rm: rm, prefixes: lock, rex: true, immediate: immediate(1))
        case 1:
            encode(
                [0x81], reg: digit, rm: rm, wide: wide, prefixes: lock + prefixes, immediate: immediate(min(size, 4)))
        default: encode([0x83], reg: digit, rm: rm, wide: wide, prefixes: lock + prefixes, immediate: immediate(1))
        }
    }

    private mutating func groupThree() {
        let digit = random.chance(4) ? 6 + random.below(2) : random.below(6)
        if digit >= 6 {
            // Half of the divisions have a dividend that fits.
            if random.chance(2) { emit(0x31, 0xD2) } else if is64 { emit(0x48, 0x99) } else { emit(0x99) }
            begin()
        }
        sizedGroup(0xF6, digit, immediate: digit < 2)
        if digit >= 4 { settle(digit < 6 ? 0x801 : 0) }
    }

    /// What 64-bit mode has not: decimal adjustment, one-byte INC and DEC, BOUND, INTO, 16-bit addresses.
    private mutating func legacy() {
        switch random.below(9) {
        case 0:
            emit([0x27, 0x2F][random.below(2)])
            settle(0xD5)
        case 1:
            emit([0x37, 0x3F][random.below(2)])
            settle(0x11)
        case 2, 3:
            emit(UInt8(0xD4 + random.below(2)), UInt8(random.chance(2) ? 10 : random.below(256)))
            settle(0xC4)
        case 4:
            if random.chance(3) { emit(0x66) }
            emit((random.chance(2) ? 0x40 : 0x48) | UInt8(register()))
        case 5: emit(0x60, 0x61)
        case 6: emit(0xD6)
        case 7:
            emit(0x67, 0x8D, UInt8(register()) << 3 | 0x80 | UInt8(random.below(8)), 0x34, 0x92)
        default:
            if random.chance(2) { emit(0xCE) } else { encode([0x62], reg: register(), rm: nil) }
        }
    }

    /// MOV between the accumulator and an absolute address; XLAT; PUSHF.
    private mutating func absolute() {
        if random.chance(3) {
            if is64 { emit(0x49, 0x8D, 0x9F) } else { emit(0x8D, 0x9D) }
            emit32(random.below(500))
            begin()
            emit(0xD7)
            return
        }
        if random.chance(3) { return emit(0x9C) }
        let (wide, prefixes, _) = size()
        bytes += prefixes
        if wide { emit(0x48) }
        emit(0xA0 | UInt8(random.below(4)))
        let address = Self.middle + UInt64(random.below(1000))
        withUnsafeBytes(of: address) { bytes += Array($0.prefix(is64 ? 8 : 4)) }
    }

    private mutating func shift() {
        let digit = random.below(8)
        var (bytes, isOne) = (1, false)
        switch random.below(3) {
        case 0:
            let rm = operand()
            let (wide, prefixes, size) = size()
            let isByte = random.chance(3)
            bytes = isByte ? 1 : size
            encode(
                isByte ? [0xC0] : [0xC1], reg: digit, rm: rm, wide: wide, prefixes: prefixes, rex: true,
                immediate: [UInt8(random.below(random.chance(2) ? 256 : 34))])
        case 1: (bytes, isOne) = (sizedGroup(0xD0, digit), true)
        default: bytes = sizedGroup(0xD2, digit)
        }
        if digit < 4 {
            if !isOne { settle(0xD5) }
        } else {
            // AF; OF unless the count is 1; CF of SHL and SHR should the count reach the operand's size.
            settle(isOne ? 0x8C5 : bytes < 4 && digit != 7 ? 0xC4 : 0xC5)
        }
    }

    private mutating func doubleShift() {
        let (wide, prefixes, bytes) = size()
        // A count above 16 leaves a 16-bit result undefined.
        let count = UInt8(random.below(bytes == 2 ? 17 : 256))
        let opcode: UInt8 = random.chance(2) ? 0xA4 : 0xAC
        if bytes == 2 || random.chance(2) {
            encode([0x0F, opcode], reg: register(), rm: operand(), wide: wide, prefixes: prefixes, immediate: [count])
        } else {
            encode([0x0F, opcode | 1], reg: register(), rm: operand(), wide: wide, prefixes: prefixes)
        }
        settle(0xC5)
    }

    private mutating func bitTest() {
        let (wide, prefixes, _) = size()
        if random.chance(2) {
            let opcodes: [UInt8] = [0xA3, 0xAB, 0xB3, 0xBB]
            encode([0x0F, opcodes[random.below(4)]], reg: register(), rm: register(), wide: wide, prefixes: prefixes)
        } else {
            encode(
                [0x0F, 0xBA], reg: 4 + random.below(4), rm: operand(), wide: wide, prefixes: prefixes,
                immediate: immediate(1))
        }
        settle(1)
    }

    private mutating func scan() {
        let (wide, prefixes, _) = size()
        let which = random.below(5)
        let repeated: [UInt8] = which < 2 ? [] : [0xF3]
        let opcode: UInt8 = [0xBC, 0xBD, 0xBC, 0xBD, 0xB8][which]
        encode([0x0F, opcode], reg: register(), rm: operand(), wide: wide, prefixes: prefixes + repeated)
        if which < 4 { settle(which < 2 ? 0x40 : 0x41) }
    }

    private mutating func extend() {
        let (wide, prefixes, _) = size()
        let opcodes: [[UInt8]] = [[0x0F, 0xB6], [0x0F, 0xB7], [0x0F, 0xBE], [0x0F, 0xBF], [0x63]]
        encode(opcodes[random.below(5)], reg: register(), rm: operand(), wide: wide, prefixes: prefixes, rex: true)
    }

    private mutating func conditional() {
        let condition = UInt8(random.below(16))
        let (wide, prefixes, _) = size()
        if random.chance(2) {
            encode([0x0F, 0x40 | condition], reg: register(), rm: operand(), wide: wide, prefixes: prefixes)
        } else {
            encode([0x0F, 0x90 | condition], reg: 0, rm: operand(), rex: true)
        }
    }

    private mutating func compareWide() {
        let lock: [UInt8] = random.chance(2) ? [0xF0] : []
        encode([0x0F, 0xC7], reg: 1, rm: nil, wide: is64 && random.chance(2), prefixes: lock, align: 16)
    }

    private mutating func simple() {
        switch random.below(10) {
        case 0: emit(0x98)
        case 1: if is64 { emit(0x48, 0x98) } else { emit(0x98) }
        case 2: emit(0x66, 0x98)
        case 3: emit(0x99)
        case 4: if is64 { emit(0x48, 0x99) } else { emit(0x99) }
        case 5: emit(0x66, 0x99)
        case 6: emit(0x9E)
        case 7: emit(0x9F)
        case 8: emit([0xF5, 0xF8, 0xF9][random.below(3)])
        default:
            let number = register()
            if is64 { emit(random.chance(2) ? (number >= 8 ? 0x49 : 0x48) : (number >= 8 ? 0x41 : 0x40)) }
            emit(0x0F, 0xC8 | UInt8(number & 7))
        }
    }

    private mutating func multiply() {
        let (wide, prefixes, size) = size()
        switch random.below(3) {
        case 0: encode([0x0F, 0xAF], reg: register(), rm: operand(), wide: wide, prefixes: prefixes)
        case 1:
            encode(
                [0x69], reg: register(), rm: operand(), wide: wide, prefixes: prefixes,
                immediate: immediate(min(size, 4)))
        default: encode([0x6B], reg: register(), rm: operand(), wide: wide, prefixes: prefixes, immediate: immediate(1))
        }
        settle(0x801)
    }

    private mutating func stack() {
        let number = register()
        let rex: [UInt8] = number >= 8 ? [0x41] : []
        let half: [UInt8] = random.chance(4) ? [0x66] : []
        switch random.below(8) {
        case 0, 1: bytes += half + rex + [0x50 | UInt8(number & 7)]
        case 2, 3: bytes += half + rex + [0x58 | UInt8(number & 7)]
        case 4:
            emit(0x68)
            bytes += immediate(4)
        case 5:
            emit(0x6A)
            bytes += immediate(1)
        case 6: encode([0xFF], reg: 6, rm: nil, prefixes: half)
        default: encode([0x8F], reg: 0, rm: nil, prefixes: half)
        }
    }

    private mutating func string() {
        // lea rsi, [r15+a]; lea rdi, [r15+b]; mov ecx, n
        if is64 { emit(0x49, 0x8D, 0xB7) } else { emit(0x8D, 0xB5) }
        emit32(random.below(1000) - 500)
        begin()
        if is64 { emit(0x49, 0x8D, 0xBF) } else { emit(0x8D, 0xBD) }
        emit32(random.below(1000) - 500)
        begin()
        emit(0xB9)
        emit32(random.below(24))
        begin()
        if random.chance(4) {
            emit(0xFD)
            begin()
        }
        let opcodes: [UInt8] = [0xA4, 0xA6, 0xAA, 0xAC, 0xAE]
        let (wide, prefixes, _) = size()
        bytes += prefixes
        if !random.chance(3) { emit(random.chance(2) ? 0xF2 : 0xF3) }
        if wide { emit(0x48) }
        emit(opcodes[random.below(5)] | UInt8(random.below(2)))
        begin()
        emit(0xFC)
    }

    private mutating func branch() {
        switch random.below(6) {
        case 0, 1:
            // Jcc over MOV AL, imm
            emit(0x70 | UInt8(random.below(16)), 2, 0xB0, UInt8(random.below(256)))
        case 2:
            emit(0x0F, 0x80 | UInt8(random.below(16)))
            emit32(2)
            emit(0xB4, 0x55)
        case 3:
            // CALL over MOV; POP
            emit(0xE8)
            emit32(2)
            emit(0xB1, 3, 0x58 | UInt8([0, 1, 2, 3][random.below(4)]))
        case 4: emit([0xE0, 0xE1, 0xE2, 0xE3][random.below(4)], 2, 0xB3, 0x77)
        default:
            // PUSH R15; ENTER 16, level; LEAVE; POP RCX
            emit(0x55, 0xC8, 16, 0, UInt8(random.below(2)), 0xC9, 0x5D)
        }
    }

    /// BMI1 and BMI2.
    private mutating func vexGeneral() {
        let reg = register()
        let rm = register()
        let other = register()
        func vex(_ map: UInt8, _ wide: Bool, _ pp: UInt8) -> [UInt8] {
            [
                0xC4, (reg < 8 ? 0x80 : 0) | 0x40 | (rm < 8 ? 0x20 : 0) | map,
                (wide ? 0x80 : 0) | UInt8(~other & 15) << 3 | pp,
            ]
        }
        let wide = random.chance(2)
        let modrm = 0xC0 | UInt8(reg & 7) << 3 | UInt8(rm & 7)
        switch random.below(9) {
        case 0:
            bytes += vex(2, wide, 0) + [0xF2, modrm]
            settle(0x8C1)
        case 1:
            bytes += vex(2, wide, 0) + [0xF5, modrm]
            settle(0x8C1)
        case 2: bytes += vex(2, wide, 3) + [0xF5, modrm]
        case 3: bytes += vex(2, wide, 2) + [0xF5, modrm]
        case 4: bytes += vex(2, wide, 3) + [0xF6, modrm]
        case 5:
            // BEXTR, SHLX, SARX, SHRX
            let prefix = UInt8(random.below(4))
            bytes += vex(2, wide, prefix) + [0xF7, modrm]
            if prefix == 0 { settle(0x841) }
        case 6:
            // RORX: vvvv must be 1111.
            bytes += [0xC4, (reg < 8 ? 0x80 : 0) | 0x40 | (rm < 8 ? 0x20 : 0) | 3, (wide ? 0x80 : 0) | 0x7B]
            bytes += [0xF0, modrm, UInt8(random.below(256))]
        default:
            // BLSR, BLSMSK, BLSI: REG extends the opcode, vvvv is the destination.
            bytes += [0xC4, 0xC0 | (rm < 8 ? 0x20 : 0) | 2, (wide ? 0x80 : 0) | UInt8(~other & 15) << 3]
            bytes += [0xF3, 0xC0 | UInt8(1 + random.below(3)) << 3 | UInt8(rm & 7)]
            settle(0x8C1)
        }
    }

    /// ADCX, ADOX, MOVBE, CRC32, MOVNTI, prefetches.
    private mutating func lateGeneral() {
        let (wide, prefixes, _) = size()
        switch random.below(7) {
        case 0: encode([0x0F, 0x38, 0xF6], reg: register(), rm: operand(), wide: random.chance(2), prefixes: [0x66])
        case 1: encode([0x0F, 0x38, 0xF6], reg: register(), rm: operand(), wide: random.chance(2), prefixes: [0xF3])
        case 2: encode([0x0F, 0x38, 0xF0], reg: register(), rm: nil, wide: wide, prefixes: prefixes)
        case 3: encode([0x0F, 0x38, 0xF1], reg: register(), rm: nil, wide: wide, prefixes: prefixes)
        case 4: encode([0x0F, 0x38, 0xF0], reg: register(), rm: operand(), prefixes: [0xF2], rex: true)
        case 5: encode([0x0F, 0x38, 0xF1], reg: register(), rm: operand(), wide: wide, prefixes: prefixes + [0xF2])
        default: encode([0x0F, 0xC3], reg: register(), rm: nil, wide: random.chance(2))
        }
    }

    private mutating func moveImmediate() {
        switch random.below(3) {
        case 0: sizedGroup(0xC6, 0, immediate: true)
        case 1:
            let number = register()
            if is64 { emit(number >= 8 ? 0x49 : 0x48) }
            emit(0xB8 | UInt8(number & 7))
            bytes += immediate(is64 ? 8 : 4)
        default: emit(0xB0 | UInt8(random.below(8)), UInt8(random.below(256)))
        }
    }

    private mutating func exchange() {
        if random.chance(2) { return sized([0x86], lockable: true) }
        let number = register()
        if is64 { emit(number >= 8 ? 0x49 : 0x48) }
        emit(0x90 | UInt8(number & 7))
    }

    private mutating func lea() {
        let (wide, prefixes, _) = size()
        encode([0x8D], reg: register(), rm: nil, wide: wide, prefixes: prefixes)
    }

    /// One instruction on MMX registers, or EMMS.
    mutating func mmx() { if random.chance(8) { emms() } else { vector(mmxOnly: true) } }
    private mutating func emms() {
        begin()
        emit(0x0F, 0x77)
    }

    /// One MMX or SSE instruction that `VectorForm` knows.
    mutating func vector(mmxOnly: Bool = false) {
        begin()
        while true {
            let map = [0x100, 0x100, 0x200, 0x300][random.below(4)]
            let opcode = UInt16(map | random.below(256))
            let prefix: UInt8 = [0, 0x66, 0xF3, 0xF2][random.below(4)]
            let group = UInt8(random.below(8))
            guard let form = VectorForm.find(opcode: opcode, prefix: prefix, group: group, isMemory: false),
                form.feature == 0 || apus_host_features() & UInt32(form.feature) != 0,
                !(isUnmasked && (opcode == 0x340 || opcode == 0x341)),
                !mmxOnly || form.reg == .mmx || form.rm == .mmx
            else { continue }
            // Some hosts do not check the alignment of SHA's operands.
            let canBeMisaligned = form.feature != APUS_HOST_SHA && random.chance(100)
            var isMemory = random.chance(3)
            if form.traits.contains(.memoryOnly) { isMemory = true }
            if form.traits.contains(.registerOnly) { isMemory = false }
            let escape: [UInt8] = map == 0x100 ? [0x0F] : map == 0x200 ? [0x0F, 0x38] : [0x0F, 0x3A]
            let reg = form.traits.contains(.group) ? Int(group) : number(form.reg)
            encode(
                escape + [UInt8(opcode & 0xFF)], reg: reg, rm: isMemory ? nil : number(form.rm),
                wide: random.chance(4), prefixes: prefix == 0 ? [] : [prefix],
                align: form.traits.contains(.aligned) && !canBeMisaligned ? 16 : 1,
                immediate: form.traits.contains(.immediate) ? [UInt8(random.below(256))] : [])
            return
        }
    }

    private mutating func number(_ kind: OperandKind) -> Int {
        switch kind {
        case .xmm: random.below(is64 ? 16 : 8)
        case .mmx: random.below(8)
        default: register()
        }
    }

    /// One x87 instruction; those that store pointers are left out.
    mutating func x87() {
        begin()
        while true {
            let opcode = UInt8(0xD8 + random.below(8))
            let isMemory = random.chance(2)
            let modrm = UInt8(random.below(256))
            let digit = Int(modrm >> 3) & 7
            if isMemory {
                if [0xD9, 0xDD].contains(opcode), [4, 6].contains(digit) { continue }
                if opcode == 0xD9, digit == 1 || digit == 5 { continue }
                if opcode == 0xDB, digit == 4 || digit == 6 { continue }
                if opcode == 0xDD, digit == 5 { continue }
                encode([opcode], reg: digit, rm: nil)
            } else {
                emit(opcode, 0xC0 | modrm)
            }
            return
        }
    }

    /// An instruction with the operand `offset` behind the middle of the data.
    mutating func fixed(_ prefixes: [UInt8], _ opcode: [UInt8], _ digit: Int, _ offset: Int, wide: Bool = false) {
        bytes += prefixes
        if is64 { emit(wide ? 0x49 : 0x41) }
        bytes += opcode
        emit((is64 ? 0x87 : 0x85) | UInt8(digit) << 3)
        emit32(offset)
    }

    /// MOV DWORD or WORD [middle + offset], value.
    mutating func put(_ value: UInt64, _ offset: Int, isWord: Bool = false) {
        fixed(isWord ? [0x66] : [], [0xC7], 0, offset)
        withUnsafeBytes(of: value) { bytes += Array($0.prefix(isWord ? 2 : 4)) }
    }

    /// Saving and restoring of x87 and SSE state; pointers are cleared, because hosts differ about them.
    mutating func saveAndRestore() {
        begin()
        let area = 1024
        switch random.below(6) {
        case 0:
            let wide = is64 && random.chance(2)
            fixed([], [0x0F, 0xAE], 0, area, wide: wide)
            put(0, area + 6, isWord: true)
            for offset in stride(from: 8, to: 24, by: 4) { put(0, area + offset) }
            if random.chance(2) { put(random.next() & 0x1F3F | 0x7F, area, isWord: true) }
            if random.chance(2) { put(random.next() & 0x7F7F, area + 2, isWord: true) }
            if random.chance(2) { put(random.next() & 0xFF, area + 4, isWord: true) }
            if random.chance(2) { put(random.next() & (random.chance(8) ? 0x1FFFF : 0xFFFF) | 0x1F80, area + 24) }
            if random.chance(2) { x87() }
            begin()
            fixed([], [0x0F, 0xAE], 1, area, wide: wide)
        case 1:
            put(random.next() & (random.chance(4) ? 0x1FFFF : 0xFFFF) | 0x1F80, area)
            fixed([], [0x0F, 0xAE], 2, area)
        case 2: fixed([], [0x0F, 0xAE], 3, area + 4)
        case 3:
            put(random.next() | 0x3F, area, isWord: true)
            fixed([], [0xD9], 5, area)
        default: environment(area)
        }
    }

    /// FNSTENV and FLDENV, or FNSAVE and FRSTOR, in the 16-bit or the 32-bit layout.
    private mutating func environment(_ area: Int) {
        let half: [UInt8] = random.chance(3) ? [0x66] : []
        let opcode: UInt8 = random.chance(2) ? 0xD9 : 0xDD
        fixed(half, [opcode], 6, area)
        if half.isEmpty {
            for offset in stride(from: 12, to: 28, by: 4) { put(0, area + offset) }
        } else {
            for offset in stride(from: 6, to: 14, by: 2) { put(0, area + offset, isWord: true) }
        }
        if random.chance(2) { x87() }
        if random.chance(2) {
            begin()
            put(random.next() & 0x7F7F, area + (half.isEmpty ? 4 : 2), isWord: true)
        }
        if random.chance(2) {
            begin()
            put(random.next(), area + (half.isEmpty ? 8 : 4), isWord: true)
        }
        begin()
        fixed(half, [opcode], 4, area)
    }

    /// Registers, flags and FPU state to start from.
    mutating func state(unmasked: Bool) -> UserState {
        var state = UserState()
        isUnmasked = unmasked
        for index in 0..<16 { state.gpr[index] = value() }
        state.gpr[4] = UserGuest.data + 7000 & ~7
        state.gpr[14] = UInt64(random.below(8)) * 16
        state.gpr[15] = Self.middle
        if !is64 { state.gpr[5] = Self.middle }
        state.flags = 0x202 | random.next() & 0x8D5
        func store(_ value: UInt64, _ offset: Int, _ count: Int, _ fx: inout [UInt8]) {
            withUnsafeBytes(of: value) { for index in 0..<count { fx[offset + index] = $0[index] } }
        }
        let masks: UInt64 = unmasked ? random.next() & 0x3F : 0x3F
        store(masks | random.next() & 0xF00 | 0x40, 0, 2, &state.fx)
        store(random.next() & 0x7800 & ~0x4000, 2, 2, &state.fx)
        store(random.next(), 4, 1, &state.fx)
        // Underflow stays masked: see SIMD.swift.
        store(masks << 7 | 0x800 | random.next() & 0xE040, 24, 4, &state.fx)
        for slot in 0..<8 {
            store(value(), 32 + 16 * slot, 8, &state.fx)
            let exponents: [UInt64] = [0, 0x7FFF, 0xFFFF, 0x3FFF, 0xBFFE, 0x4005]
            store(random.chance(2) ? random.next() : exponents[random.below(6)], 40 + 16 * slot, 2, &state.fx)
            if random.chance(2) { state.fx[32 + 16 * slot + 7] |= 0x80 }
        }
        for word in 0..<32 { store(value(), 160 + 8 * word, 8, &state.fx) }
        if UserGuest.hasAVX, !random.chance(4) {
            for word in 0..<32 where !random.chance(3) {
                withUnsafeBytes(of: value()) { for index in 0..<8 { state.upper[8 * word + index] = $0[index] } }
            }
        }
        return state
    }

    /// Numbers around which arithmetic is interesting, for integers and for floating point alike.
    mutating func value() -> UInt64 {
        switch random.below(8) {
        case 0: UInt64(random.below(3))
        case 1: [0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, .max, 1 << 63, 0x7FFF, 0x80][random.below(7)]
        case 2: (Double(random.below(2000) - 1000) / 8).bitPattern
        case 3:
            UInt64(Float(random.below(2000) - 1000).bitPattern) << 32 | UInt64(Float(random.below(99)).bitPattern)
        case 4: [0x7FF0_0000_0000_0000, 0x7FF8_0000_0000_0001, 0x7FF0_0000_0000_0001, 1, 1 << 52][random.below(5)]
        case 5: [0x7F80_0000_FF80_0000, 0x7FC0_0001_7F80_0001, 0x0000_0001_8000_0001][random.below(3)]
        default: random.next()
        }
    }
}
