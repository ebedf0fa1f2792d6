// The interpreter against the host CPU: the same code, registers and memory on both, then everything compared.
// Source: the host CPU; InstructionGenerator makes the code.
// Compared: general registers, flags, RIP, vector, x87, MMX, SSE state, memory. Not compared: FIP, FDP, FOP, and
// what the manuals leave undefined, since hosts differ there.
// Quirks: APUS_SEED=N in the environment runs one case, APUS_CASES=N so many.

import CProcessor
import Foundation
import Testing

@testable import Processor

@Suite(.serialized) struct DifferentialTests {
    private static let environment = ProcessInfo.processInfo.environment
    private static let cases = UInt64(environment["APUS_CASES"] ?? "") ?? 500

    private func check(
        _ kind: String, base: UInt64, length: Int, unmasked: Bool = false, bits: Int = 64, translated: Bool = false,
        direct: Bool = false,
        _ generate: (inout InstructionGenerator) -> Void
    ) throws {
        let user = try UserGuest(bits: bits, translated: translated, direct: direct)
        var failures: [String: [String]] = [:]
        var seeds = Array(base..<base + Self.cases)
        if let seed = UInt64(Self.environment["APUS_SEED"] ?? "") { seeds = [seed] }
        for seed in seeds {
            var generator = InstructionGenerator(seed: seed, bits: bits)
            let state = generator.state(unmasked: unmasked)
            let data = (0..<UserGuest.dataBytes / 8).flatMap { _ in
                withUnsafeBytes(of: generator.value()) { Array($0) }
            }
            for _ in 0..<length { generate(&generator) }
            guard user.compare(generator.bytes, state, data: data) != nil else { continue }
            // The shortest beginning that already differs names the instruction.
            let ends = generator.starts.dropFirst() + [generator.bytes.count]
            for (start, end) in zip(generator.starts, ends) {
                guard let found = user.compare(Array(generator.bytes[..<end]), state, data: data) else { continue }
                let code = hex(generator.bytes[start..<end])
                let line = "seed \(seed): \(code): " + found.prefix(6).joined(separator: ", ")
                failures[Self.family(code), default: []].append(line)
                break
            }
        }
        for (_, list) in failures.sorted(by: { $0.key < $1.key }) {
            Issue.record("\(kind): \(list.count) like \(list.prefix(2).joined(separator: "\n    "))")
        }
    }

    /// Groups failures by opcode: the bytes without prefixes.
    private static func family(_ code: String) -> String {
        var bytes = stride(from: 0, to: code.count, by: 2).map { offset in
            let start = code.index(code.startIndex, offsetBy: offset)
            return String(code[start...].prefix(2))
        }
        while let first = bytes.first, ["66", "67", "f0", "f2", "f3"].contains(first) || first.hasPrefix("4") {
            bytes.removeFirst()
        }
        return bytes.prefix(bytes.first == "0f" ? 2 : 1).joined()
    }

    @Test func integerInstructionsDoWhatTheHostDoes() throws {
        try check("integer", base: 1, length: 12) { $0.integer() }
    }

    @Test(arguments: [64, 32]) func translatedInstructionsDoWhatTheHostDoes(bits: Int) throws {
        try check("translated \(bits)", base: 7_000_000, length: 12, bits: bits, translated: true) { $0.integer() }
    }

    @Test(arguments: [64, 32]) func translatedBlocksMayMixNativeCodeAndHandlers(bits: Int) throws {
        try check("translated mixed \(bits)", base: 8_000_000, length: 16, bits: bits, translated: true) {
            if $0.random.chance(4) { $0.vector() } else { $0.integer() }
        }
    }

    @Test(arguments: [64, 32]) func translatedVectorInstructionsDoWhatTheHostDoes(bits: Int) throws {
        try check("translated vector \(bits)", base: 9_000_000, length: 10, bits: bits, translated: true) {
            if $0.random.chance(5) { $0.integer() } else { $0.vector() }
        }
    }

    @Test func translatedBlocksRaiseUnmaskedExceptions() throws {
        try check("translated unmasked", base: 10_000_000, length: 8, unmasked: true, translated: true) {
            if $0.random.chance(6) { $0.x87() } else { $0.vector() }
        }
    }

    @Test(arguments: [64, 32]) func translatedBlocksSaveAndLoadWhatTheHostDoes(bits: Int) throws {
        try check("translated state \(bits)", base: 11_000_000, length: 8, bits: bits, translated: true) {
            switch $0.random.below(5) {
            case 0: $0.x87()
            case 1: $0.saveAndRestore()
            case 2: $0.integer()
            default: $0.vector()
            }
        }
    }

    /// Registers of all kinds go to the process and come back, and whatever stops it is the engine's to carry out.
    @Test func programsRunByThemselves() throws {
        guard UserGuest.hasAVX else { return }
        try check("direct", base: 19_000_000, length: 12, direct: true) {
            switch $0.random.below(20) {
            case 0: $0.faulting()
            case 1...3: $0.selfModifying()
            case 4...7: $0.vector()
            case 8...9: $0.x87()
            case 10...11: $0.wide()
            case 12: $0.saveAndRestore()
            default: $0.integer()
            }
        }
    }

    @Test func vectorInstructionsDoWhatTheHostDoes() throws {
        try check("vector", base: 1_000_000, length: 8) { $0.vector() }
    }

    @Test(arguments: [64, 32]) func translatedX87InstructionsDoWhatTheHostDoes(bits: Int) throws {
        try check("translated x87 \(bits)", base: 16_000_000, length: 10, bits: bits, translated: true) {
            switch $0.random.below(8) {
            case 0: $0.integer()
            case 1: $0.vector()
            case 2: $0.saveAndRestore()
            case 3: $0.mmx()
            default: $0.x87()
            }
        }
    }

    @Test(arguments: [true, false], [64, 32]) func codeMayChangeItselfAndFault(translated: Bool, bits: Int) throws {
        try check("hard \(bits)", base: 18_000_000, length: 12, bits: bits, translated: translated) {
            switch $0.random.below(20) {
            case 0: $0.faulting()
            case 1...4: $0.selfModifying()
            case 5...7: $0.vector()
            case 8...9: $0.x87()
            case 10...11 where UserGuest.hasAVX: $0.wide()
            default: $0.integer()
            }
        }
    }

    /// FIP, FDP and FOP, which the host has for its own code, are compared between translator and interpreter.
    @Test(arguments: [64, 32]) func translatedX87InstructionsKeepTheirPointers(bits: Int) throws {
        let user = try UserGuest(bits: bits)
        var wrong: [UInt64] = []
        for seed in 17_000_000..<17_000_000 + Self.cases {
            var generator = InstructionGenerator(seed: seed, bits: bits)
            let state = generator.state(unmasked: seed & 1 != 0)
            let data = [UInt8](repeating: UInt8(truncatingIfNeeded: seed), count: UserGuest.dataBytes)
            for _ in 0..<8 {
                switch generator.random.below(8) {
                case 0: generator.integer()
                case 1: generator.saveAndRestore()
                default: generator.x87()
                }
            }
            let images = [false, true].map { (isTranslated: Bool) in
                user.isTranslated = isTranslated
                return Array(user.runInGuest(generator.bytes + [0xCC], state, data).fx[6..<24])
            }
            if images[0] != images[1] { wrong.append(seed) }
        }
        #expect(wrong.isEmpty)
    }

    @Test func x87InstructionsDoWhatTheHostDoes() throws {
        try check("x87", base: 2_000_000, length: 6) { $0.x87() }
    }

    @Test func unmaskedExceptionsArriveWhereTheHostRaisesThem() throws {
        try check("unmasked", base: 3_000_000, length: 6, unmasked: true) {
            if $0.random.chance(2) { $0.x87() } else { $0.vector() }
        }
    }

    @Test func mixedInstructionsDoWhatTheHostDoes() throws {
        try check("mixed", base: 4_000_000, length: 16) {
            switch $0.random.below(4) {
            case 0: $0.vector()
            case 1: $0.x87()
            default: $0.integer()
            }
        }
    }

    @Test(.enabled(if: UserGuest.hasAVX), arguments: [64, 32]) func wideInstructionsDoWhatTheHostDoes(bits: Int) throws
    {
        try check("wide \(bits)", base: 12_000_000, length: 8, bits: bits) {
            if $0.random.chance(5) { $0.vector() } else { $0.wide() }
        }
    }

    @Test(.enabled(if: UserGuest.hasAVX)) func unmaskedExceptionsOfWideInstructionsArrive() throws {
        try check("wide unmasked", base: 13_000_000, length: 6, unmasked: true) { $0.wide() }
    }

    @Test(.enabled(if: UserGuest.hasAVX), arguments: [64, 32])
    func translatedWideInstructionsDoWhatTheHostDoes(bits: Int) throws {
        try check("translated wide \(bits)", base: 14_000_000, length: 10, bits: bits, translated: true) {
            switch $0.random.below(6) {
            case 0: $0.integer()
            case 1: $0.vector()
            default: $0.wide()
            }
        }
    }

    @Test(.enabled(if: UserGuest.hasAVX), arguments: [true, false])
    func extendedStateIsSavedAndRestored(translated: Bool) throws {
        try check("extended state", base: 15_000_000, length: 4, translated: translated) {
            switch $0.random.below(4) {
            case 0: $0.x87()
            case 1: $0.vector()
            case 2: $0.wide()
            default: $0.saveExtended()
            }
        }
    }

    @Test func integerInstructionsOf32BitCodeDoWhatTheHostDoes() throws {
        try check("integer 32", base: 5_000_000, length: 12, bits: 32) { $0.integer() }
    }

    @Test func vectorAndX87InstructionsOf32BitCodeDoWhatTheHostDoes() throws {
        try check("vector 32", base: 6_000_000, length: 8, bits: 32) {
            if $0.random.chance(2) { $0.x87() } else { $0.vector() }
        }
    }

    @Test(arguments: [64, 32]) func savedAndRestoredStateIsTheHosts(bits: Int) throws {
        try check("state \(bits)", base: 7_000_000, length: 4, bits: bits) {
            switch $0.random.below(3) {
            case 0: $0.x87()
            case 1: $0.vector()
            default: $0.saveAndRestore()
            }
        }
    }
}
