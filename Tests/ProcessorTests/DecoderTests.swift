// Lengths of random instructions, against Zydis.
// Source: Zydis 4 (libzydis), decoding in 16-, 32- and 64-bit mode.
// Compared: the length of whatever both take for an instruction. Not compared: VEX, EVEX and XOP vector code.
// Quirks: what only one of the two takes for an instruction is listed by opcode and counted.

import CProcessor
import CZydis
import TestSupport
import Testing

@testable import Processor

@Suite struct DecoderTests {
    /// Bytes that begin a VEX, EVEX or XOP instruction in 64-bit mode and mostly nothing else elsewhere.
    private static let vectorEscapes: Set<UInt8> = [0xC4, 0xC5, 0x62, 0x8F]

    private func lengths(mode: Int, seed: UInt64) throws {
        let guest = TinyGuest([try RAM(start: 0, bytes: 2 << 20)])
        let cpu = guest.cpu
        cpu.pointee.cr4 = 0x620
        if mode != 16 { cpu.pointee.cr0 |= 1 }
        if mode == 64 { cpu.pointee.efer = 0xD01 }
        let access: UInt16 = mode == 64 ? 0xA09B : mode == 32 ? 0xC09B : 0x9B
        for index in 0..<6 {
            cpu.segment(index).pointee = apus_segment(
                base: 0, limit: mode == 16 ? 0xFFFF : .max, selector: 8, access: index == Seg.cs ? access : 0xC093)
        }
        cpu.updateMode()
        var random = Seeded(seed)
        var wrong: [String] = []
        var compared = 0
        var code = [UInt8](repeating: 0, count: 32)
        for _ in 0..<60_000 {
            for index in 0..<16 { code[index] = UInt8(truncatingIfNeeded: random.next()) }
            if random.chance(2) { code[0] = 0x0F }
            if random.chance(8) { code[0] = [0x66, 0x67, 0xF2, 0xF3, 0x48, 0x41][random.below(6)] }
            var text = [CChar](repeating: 0, count: 32)
            let theirs = Int(zydis_length(Int32(mode), code, 15, &text, 32))
            guard theirs > 0 else { continue }
            let prefixes = code.prefix {
                [0x66, 0x67, 0xF0, 0xF2, 0xF3, 0x2E, 0x36, 0x3E, 0x26, 0x64, 0x65].contains($0)
            }
            if Self.vectorEscapes.contains(code[prefixes.count]) { continue }
            guard let ours = Self.length(code, cpu) else { continue }
            compared += 1
            if ours != theirs {
                let name = String(decoding: text.prefix { $0 != 0 }.map(UInt8.init(bitPattern:)), as: UTF8.self)
                wrong.append("\(hex(code[..<15])): \(name) \(ours) for \(theirs)")
            }
        }
        #expect(compared > 20_000)
        if !wrong.isEmpty {
            Issue.record("\(mode) bits: \(wrong.count) differ: \(wrong.prefix(8).joined(separator: "\n    "))")
        }
    }

    /// The interpreter's length; nil when it has no such instruction.
    private static func length(_ code: [UInt8], _ cpu: UnsafeMutablePointer<apus_vcpu>) -> Int? {
        var insn = apus_insn.empty
        let length = code.withUnsafeBufferPointer { bytes in
            bytes.baseAddress.map { cpu.decode(&insn, $0, available: 15).length } ?? 0
        }
        func address(_ handler: apus_handler) -> UInt { unsafeBitCast(handler, to: UInt.self) }
        return length == 0 || address(insn.handler) == address(undefinedInstruction) ? nil : length
    }

    @Test(arguments: [16, 32, 64]) func lengthsAreTheOnesZydisFinds(mode: Int) throws {
        try lengths(mode: mode, seed: UInt64(mode))
    }
}
