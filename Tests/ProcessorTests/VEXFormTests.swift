// The table of VEX forms against the host's decoder: what one knows, the other does.
// Source: the host CPU.
// Checked: every opcode of the VEX maps with each prefix, VEX.L, VEX.W, with registers and with memory.
// Quirks: mask registers of AVX-512 have VEX encodings, too; they are no part of the table.

import CProcessor
import Testing

@testable import Processor

@Suite(.serialized, .enabled(if: UserGuest.hasAVX)) struct VEXFormTests {
    private struct Encoding {
        var opcode: UInt16
        var prefix: UInt8
        var w: UInt8
        var long: Bool
        var group: UInt8
        var isMemory: Bool

        /// REG 2, or the group's number; vvvv as given; R/M 1, or what R15 points to, with an index in XMM3.
        func bytes(third: UInt8, isGather: Bool) -> [UInt8] {
            let pp: UInt8 = prefix == 0x66 ? 1 : prefix == 0xF3 ? 2 : prefix == 0xF2 ? 3 : 0
            let isNear = isMemory && !isGather
            var code: [UInt8] = [
                0xC4, (isMemory ? 0xC0 : 0xE0) | UInt8(opcode >> 8), w << 7 | (~third & 15) << 3 | (long ? 4 : 0) | pp,
                UInt8(opcode & 0xFF),
            ]
            code.append((isNear ? 0x07 : isMemory ? 0x44 : 0xC1) | group << 3)
            if isGather, isMemory { code += [0x1F, 0] }
            if opcode >> 8 == 3 || hasImmediate { code.append(0x40) }
            return code
        }
        private var hasImmediate: Bool {
            [0x170, 0x171, 0x172, 0x173, 0x1C2, 0x1C4, 0x1C5, 0x1C6, 0x1A4, 0x1AC, 0x1BA].contains(opcode)
        }
        var form: VEXForm? {
            VEXForm.find(opcode: opcode, prefix: prefix, group: group, isMemory: isMemory, w: w)
        }
        /// The table has it, for a host like this one.
        var isKnown: Bool {
            guard let form, (long ? form.long : form.short) != nil else { return false }
            let needed = UInt32(form.feature) | (long && !form.isScalar ? UInt32(form.longFeature) : 0)
            return apus_host_features() & needed == needed
        }
        /// Others' business: general registers, mask registers, VLDMXCSR, VMASKMOVDQU.
        var isForeign: Bool {
            switch opcode {
            case 0x141...0x14B, 0x190...0x193, 0x198...0x199, 0x1AE, 0x1F7, 0x2F2...0x2F7, 0x330...0x333, 0x3F0: true
            // AVX-VNNI and its successors, AVX-NE-CONVERT, SM3, SM4, SHA512.
            case 0x250...0x253, 0x272, 0x2B0...0x2B1, 0x2B4...0x2B5, 0x2CB...0x2CD, 0x2D2...0x2D3, 0x2DA, 0x3DE: true
            // VZEROUPPER has no ModRM; VPERMQ and VPERMPD need VEX.W by the manual, but not on every host.
            case 0x177, 0x300...0x301: isMemory || w == 0
            // AMX, CMPccXADD.
            case 0x249...0x24B, 0x25C...0x25E, 0x26C, 0x2E0...0x2EF: true
            default: false
            }
        }
    }

    private static var encodings: [Encoding] {
        var list: [Encoding] = []
        for map in [0x100, 0x200, 0x300] {
            for byte in 0..<256 where !(map == 0x100 && (0x80...0x8F).contains(byte)) {
                let opcode = UInt16(map | byte)
                for prefix in [0, 0x66, 0xF3, 0xF2] as [UInt8] {
                    for bits in 0..<8 as Range<UInt8> {
                        let groups = (0x171...0x173).contains(opcode) ? Array(0..<8 as Range<UInt8>) : [2]
                        for group in groups {
                            list.append(
                                Encoding(
                                    opcode: opcode, prefix: prefix, w: bits & 1, long: bits & 2 != 0, group: group,
                                    isMemory: bits & 4 != 0))
                        }
                    }
                }
            }
        }
        return list
    }

    @Test func theHostKnowsTheSameInstructions() throws {
        let user = try UserGuest()
        var generator = InstructionGenerator(seed: 1)
        let state = generator.state(unmasked: false)
        let data = [UInt8](repeating: 0, count: UserGuest.dataBytes)
        var wrong: [String] = []
        for encoding in Self.encodings where !encoding.isForeign {
            let isGather = (0x290...0x293).contains(encoding.opcode)
            // Some take a third register, some none: valid if either is.
            let vectors = [0, 4].map { (third: UInt8) in
                let code = encoding.bytes(third: third, isGather: isGather)
                return user.runNatively(code + [0xCC], state, data).vector
            }
            let isHosts = vectors.contains { $0 != 6 }
            if isHosts != encoding.isKnown {
                let code = hex(encoding.bytes(third: 0, isGather: isGather))
                wrong.append("\(code) \(isHosts ? "is missing" : "is not the host's")")
            }
        }
        #expect(wrong.isEmpty, "\(wrong.count): \(wrong.prefix(40).joined(separator: "\n"))")
    }
}
