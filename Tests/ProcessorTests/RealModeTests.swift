// Single instructions in real mode, against results recorded from silicon.
// Source: SingleStepTests/80286 (MIT, Fixtures/real-mode-vectors/LICENSE), 120 cases of 162 opcode forms.
// Compared: registers, defined flags, memory. Not compared: FLAGS 12-15, which a 286 keeps clear in real mode.
// Quirks: `differsByDesign` lists what later processors do otherwise.

import CNative
import CProcessor
import Foundation
import Testing

@testable import Processor

private struct Vectors: Decodable {
    struct State: Decodable {
        var regs: [String: UInt32]
        var ram: [[UInt32]]
    }
    var name: String
    var bytes: String
    var initial: State
    var final: State
    var flagsMask: UInt32?
    var exception: Int?
    var opcode: String
}

@Suite struct RealModeTests {
    private static let general = ["ax", "cx", "dx", "bx", "sp", "bp", "si", "di"]
    private static let segments = ["es", "cs", "ss", "ds"]

    private static func lines() throws -> [Substring] {
        let fixture = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
            .appending(path: "Fixtures/real-mode-vectors/real-mode.jsonl.gz")
        var size = 0
        guard let data = native_gunzip(fixture.path, &size) else { throw TestSetUp.noFixture }
        defer { free(data) }
        return String(decoding: UnsafeBufferPointer(start: data, count: size), as: UTF8.self)
            .split(separator: "\n")
    }

    /// What an 80386 and later do otherwise than an 80286, with the reason.
    private static func differsByDesign(_ vector: Vectors) -> String? {
        if vector.name.contains("lock") { return "LOCK before what cannot be locked raises #UD since the 80386" }
        if vector.exception == 13, vector.bytes.count > 2 * 11 { return "10 bytes are an 80286's limit, 15 are ours" }
        if vector.exception == 6, vector.name.contains("fs") || vector.name.contains("gs") {
            return "FS and GS exist since the 80386"
        }
        if vector.exception == 13, ["31", "33", "CA"].contains(vector.opcode),
            vector.name.contains("bp+si")
                || vector.opcode == "CA"
        {
            return "an operand over the stack segment's end raises #SS since the 80386"
        }
        return nil
    }

    @Test(arguments: [false, true]) func everyRecordedInstructionGivesTheRecordedResult(translated: Bool) throws {
        let ram = try RAM(start: 0, bytes: 16 << 20)
        // HLT everywhere: what goes astray stops.
        ram.host.initializeMemory(as: UInt8.self, repeating: 0xF4, count: ram.bytes)
        let guest = TinyGuest([ram])
        guest.cpu.engine.pointee.blocks.heat = translated ? 1 : 0
        guest.cpu.engine.pointee.blocks.trial = 0
        let decoder = JSONDecoder()
        var failures: [String: [String]] = [:]
        var skipped = 0
        for line in try Self.lines() {
            let vector = try decoder.decode(Vectors.self, from: Data(line.utf8))
            if Self.differsByDesign(vector) != nil {
                skipped += 1
                continue
            }
            if let difference = run(vector, guest) { failures[vector.opcode, default: []].append(difference) }
        }
        for (opcode, list) in failures.sorted(by: { $0.key < $1.key }) {
            Issue.record("\(opcode): \(list.count) of 120 differ: \(list.prefix(3).joined(separator: "\n    "))")
        }
        #expect(skipped < 400)
    }

    private func run(_ vector: Vectors, _ guest: TinyGuest) -> String? {
        let cpu = guest.cpu
        var touched = Set<UInt32>()
        for entry in vector.initial.ram {
            guest[UInt64(entry[0])] = UInt8(truncatingIfNeeded: entry[1])
            touched.insert(entry[0])
        }
        for entry in vector.final.ram { touched.insert(entry[0]) }
        defer {
            for address in touched { guest[UInt64(address)] = 0xF4 }
        }
        cpu.resetState(powerOn: true)
        for (index, name) in Self.general.enumerated() {
            apus_gpr_at(cpu, UInt32(index)).pointee = UInt64(vector.initial.regs[name] ?? 0)
        }
        for (index, name) in Self.segments.enumerated() {
            guest.setRealSegment(index, UInt16(truncatingIfNeeded: vector.initial.regs[name] ?? 0))
        }
        cpu.pointee.rip = UInt64(vector.initial.regs["ip"] ?? 0)
        cpu.setRFLAGS(UInt64(vector.initial.regs["flags"] ?? 0), writable: 0xFFD5)
        cpu.updateMode()
        for address in touched { guest.engine.codeChanged(at: UInt64(address), bytes: 1) }
        let exit = guest.run()
        guard exit == .halt else { return "\(vector.name) [\(vector.bytes)]: \(exit)" }
        let differences = compare(vector, guest)
        return differences.isEmpty
            ? nil : "\(vector.name) [\(vector.bytes)]: " + differences.joined(separator: ", ")
    }

    private func compare(_ vector: Vectors, _ guest: TinyGuest) -> [String] {
        let cpu = guest.cpu
        var differences: [String] = []
        func check(_ name: String, _ got: UInt32, _ mask: UInt32 = 0xFFFF) {
            let wanted = vector.final.regs[name] ?? vector.initial.regs[name] ?? 0
            if got & mask != wanted & mask {
                differences.append("\(name) \(String(got, radix: 16)) for \(String(wanted, radix: 16))")
            }
        }
        for (index, name) in Self.general.enumerated() {
            check(name, UInt32(truncatingIfNeeded: apus_gpr_at(cpu, UInt32(index)).pointee))
        }
        for (index, name) in Self.segments.enumerated() { check(name, UInt32(cpu.segment(index).pointee.selector)) }
        check("ip", UInt32(truncatingIfNeeded: cpu.pointee.rip))
        var defined = vector.flagsMask ?? 0xFFFF
        // Multi-bit shifts and rotations leave OF undefined; an 80286 computes it in another way.
        if vector.opcode.hasPrefix("C0") { defined &= ~0x800 }
        check("flags", UInt32(truncatingIfNeeded: cpu.rflags), defined & 0x0FD5)
        // The FLAGS image in an exception's frame has the same undefined bits.
        var image: UInt32?
        if vector.exception != nil {
            let (ss, sp) = (vector.final.regs["ss"] ?? vector.initial.regs["ss"] ?? 0, vector.final.regs["sp"] ?? 0)
            image = ss << 4 &+ (sp &+ 4) & 0xFFFF
        }
        // PUSHF's image: bits 12 to 15 exist since the 80386.
        let top = (vector.final.regs["ss"] ?? vector.initial.regs["ss"] ?? 0) << 4 + (vector.final.regs["sp"] ?? 0)
        for entry in vector.final.ram {
            var mask: UInt8 = 0xFF
            if vector.opcode == "9C", entry == vector.final.ram.first(where: { $0[0] == top + 1 }) { mask = 0x0F }
            if entry[0] == image { mask = UInt8(truncatingIfNeeded: defined & 0xD5) }
            if let image, entry[0] == image + 1 { mask = UInt8(truncatingIfNeeded: defined >> 8 & 0x0F) }
            let got = guest[UInt64(entry[0])]
            if got & mask != UInt8(truncatingIfNeeded: entry[1]) & mask {
                differences.append("[\(String(entry[0], radix: 16))] \(got) for \(entry[1])")
            }
        }
        return differences
    }
}
