// What the decoder must know of each opcode to find its length, operands and validity.
// Source: Intel SDM volume 2, appendix A (opcode maps), chapter 2 (formats).
// Modelled: maps one-byte, 0F, 0F38, 0F3A; the VEX maps share the tables of the legacy maps.
// Not modelled: EVEX, XOP, 3DNow!.

/// Attributes of an opcode.
struct Form: OptionSet {
    var rawValue: UInt32
    static var modRM: Form { Form(rawValue: 1) }
    /// An immediate byte, sign-extended unless `.zero` is set too.
    static var byteImmediate: Form { Form(rawValue: 1 << 1) }
    /// An immediate of 2 or 4 bytes, sign-extended to 8.
    static var immediate: Form { Form(rawValue: 1 << 2) }
    static var wordImmediate: Form { Form(rawValue: 1 << 3) }
    /// An immediate as wide as the operand, up to 8 bytes.
    static var wideImmediate: Form { Form(rawValue: 1 << 4) }
    static var byte: Form { Form(rawValue: 1 << 5) }
    /// The operand size is 64 bits in 64-bit mode; 66 makes it 16.
    static var default64: Form { Form(rawValue: 1 << 6) }
    /// The operand size is 64 bits in 64-bit mode whatever the prefixes are.
    static var force64: Form { Form(rawValue: 1 << 7) }
    static var not64: Form { Form(rawValue: 1 << 8) }
    static var zero: Form { Form(rawValue: 1 << 9) }
    static var offset: Form { Form(rawValue: 1 << 10) }
    static var farPointer: Form { Form(rawValue: 1 << 11) }
    /// Nothing behind it in the block is reached.
    static var ends: Form { Form(rawValue: 1 << 12) }
    /// The register or memory operand is a byte, the other is not.
    static var byteSource: Form { Form(rawValue: 1 << 13) }
    /// The low opcode bits name a register.
    static var register: Form { Form(rawValue: 1 << 14) }
    static var none: Form { Form(rawValue: 1 << 15) }
    /// ModRM always names registers (MOV CR and DR).
    static var registersOnly: Form { Form(rawValue: 1 << 16) }
}

/// The tables of the four maps, built once.
struct DecoderTables {
    let forms: UnsafeMutablePointer<Form>

    init() {
        forms = .allocate(capacity: 1024)
        forms.initialize(repeating: [], count: 1024)
        fillOneByte()
        fillTwoByte()
        for opcode in 0..<256 {
            forms[512 + opcode] = .modRM
            forms[768 + opcode] = [.modRM, .byteImmediate, .zero]
        }
    }

    private func set(_ opcodes: ClosedRange<Int>, _ form: Form) {
        for opcode in opcodes { forms[opcode] = form }
    }
    private func set(_ opcodes: [Int], _ form: Form) {
        for opcode in opcodes { forms[opcode] = form }
    }

    private func fillOneByte() {
        for base in stride(from: 0, to: 0x40, by: 8) {
            set([base, base + 2], [.modRM, .byte])
            set([base + 1, base + 3], .modRM)
            forms[base + 4] = [.byteImmediate, .byte]
            forms[base + 5] = .immediate
            set([base + 6, base + 7], .not64)
        }
        set(0x40...0x4F, .register)
        set(0x50...0x5F, [.register, .default64])
        set([0x60, 0x61, 0xCE], .not64)
        set([0x62], [.modRM, .not64])
        set([0x63], .modRM)
        forms[0x68] = [.immediate, .default64]
        forms[0x69] = [.modRM, .immediate]
        forms[0x6A] = [.byteImmediate, .default64]
        forms[0x6B] = [.modRM, .byteImmediate]
        set([0x6C, 0x6E], .byte)
        set(0x70...0x7F, [.byteImmediate, .force64])
        forms[0x80] = [.modRM, .byteImmediate, .byte]
        forms[0x81] = [.modRM, .immediate]
        forms[0x82] = [.modRM, .byteImmediate, .byte, .not64]
        forms[0x83] = [.modRM, .byteImmediate]
        set([0x84, 0x86, 0x88, 0x8A], [.modRM, .byte])
        set([0x85, 0x87, 0x89, 0x8B, 0x8C, 0x8D, 0x8E], .modRM)
        forms[0x8F] = [.modRM, .default64]
        set(0x90...0x97, .register)
        forms[0x9A] = [.farPointer, .not64, .ends]
        set([0x9C, 0x9D], .default64)
        set([0xA0, 0xA2], [.offset, .byte])
        set([0xA1, 0xA3], .offset)
        set([0xA4, 0xA6, 0xAA, 0xAC, 0xAE], .byte)
        forms[0xA8] = [.byteImmediate, .byte]
        forms[0xA9] = .immediate
        set(0xB0...0xB7, [.register, .byteImmediate, .byte])
        set(0xB8...0xBF, [.register, .wideImmediate])
        forms[0xC0] = [.modRM, .byteImmediate, .zero, .byte]
        forms[0xC1] = [.modRM, .byteImmediate, .zero]
        forms[0xC2] = [.wordImmediate, .force64, .ends]
        forms[0xC3] = [.force64, .ends]
        set([0xC4, 0xC5], [.modRM, .not64])
        forms[0xC6] = [.modRM, .byteImmediate, .byte]
        forms[0xC7] = [.modRM, .immediate]
        forms[0xC8] = [.wordImmediate, .default64]
        forms[0xC9] = .default64
        forms[0xCA] = [.wordImmediate, .ends]
        set([0xCB, 0xCC, 0xCF], .ends)
        forms[0xCD] = [.byteImmediate, .zero, .ends]
        set([0xD0, 0xD2], [.modRM, .byte])
        set([0xD1, 0xD3], .modRM)
        set([0xD4, 0xD5], [.byteImmediate, .zero, .not64])
        set([0x27, 0x2F, 0x37, 0x3F, 0xD6], .not64)
        set(0xD8...0xDF, .modRM)
        set(0xE0...0xE3, [.byteImmediate, .force64])
        set([0xE4, 0xE6], [.byteImmediate, .zero, .byte])
        set([0xE5, 0xE7], [.byteImmediate, .zero])
        forms[0xE8] = [.immediate, .force64, .ends]
        forms[0xE9] = [.immediate, .force64, .ends]
        forms[0xEA] = [.farPointer, .not64, .ends]
        forms[0xEB] = [.byteImmediate, .force64, .ends]
        set([0xEC, 0xEE], .byte)
        set([0xF1, 0xF4], .ends)
        forms[0xF6] = [.modRM, .byte]
        forms[0xF7] = .modRM
        forms[0xFE] = [.modRM, .byte]
        forms[0xFF] = .modRM
    }

    private func fillTwoByte() {
        set(0x100...0x1FF, .modRM)
        set([0x105, 0x107, 0x10B, 0x134, 0x135], .ends)
        set([0x104, 0x106, 0x108, 0x109, 0x10A, 0x10C, 0x10E, 0x130, 0x131, 0x132, 0x133, 0x136, 0x137], [])
        set([0x177, 0x1A2, 0x1AA], [])
        set([0x1A0, 0x1A1, 0x1A8, 0x1A9], .default64)
        set(0x120...0x123, [.modRM, .force64, .registersOnly])
        set([0x124, 0x125, 0x126, 0x127], [.modRM, .registersOnly])
        set(0x170...0x173, [.modRM, .byteImmediate, .zero])
        set([0x1A4, 0x1AC, 0x1BA, 0x1C2, 0x1C4, 0x1C5, 0x1C6, 0x10F], [.modRM, .byteImmediate, .zero])
        set(0x180...0x18F, [.immediate, .force64])
        set(0x190...0x19F, [.modRM, .byte])
        set([0x1B0, 0x1C0], [.modRM, .byte])
        set([0x1B6, 0x1BE], [.modRM, .byteSource])
        set(0x1C8...0x1CF, .register)
    }
}

nonisolated(unsafe) let decoderTables = DecoderTables().forms
