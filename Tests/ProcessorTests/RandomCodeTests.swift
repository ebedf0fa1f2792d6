// Random bytes as code in every mode: whatever a guest executes, this process survives.
// Source: our own rule that guest input never traps.
// Checked: the engine comes back. Not checked: what the code did; DifferentialTests do that.
// Quirks: APUS_CASES=N in the environment runs so many; a crash names no case, so the seed is printed before it.

import CProcessor
import Foundation
import TestSupport
import Testing

@testable import Processor

@Suite(.serialized) struct RandomCodeTests {
    private static let cases = UInt64(ProcessInfo.processInfo.environment["APUS_CASES"] ?? "") ?? 250
    private static let firstSeed = UInt64(ProcessInfo.processInfo.environment["APUS_SEED"] ?? "") ?? 1
    private static let isVerbose = ProcessInfo.processInfo.environment["APUS_VERBOSE"] != nil

    enum Mode: Int, CaseIterable { case real, virtual, protected16, protected32, paged32, compatibility, long }

    @Test(arguments: Mode.allCases, [false, true])
    func randomBytesNeverStopTheHost(mode: Mode, translated: Bool) throws {
        let ram = try RAM(start: 0, bytes: 4 << 20)
        let guest = TinyGuest([ram], patience: 3)
        guest.cpu.engine.pointee.blocks.heat = translated ? 1 : 0
        for seed in Self.firstSeed..<Self.firstSeed + Self.cases {
            var random = Seeded(seed &* 8 &+ UInt64(mode.rawValue))
            if Self.isVerbose { print("\(mode) seed \(seed)") }
            fill(ram, &random)
            prepare(guest, mode, &random)
            guest.engine.memoryMapChanged()
            _ = guest.run()
            guest.cpu.pointee.nmi_pending = random.chance(8)
            if guest.engine.canTakeInterrupt { guest.engine.inject(vector: UInt8(random.below(256))) }
            _ = guest.run()
        }
    }

    /// Code at 0x10000, mostly real opcodes; random tables where the registers below point.
    private func fill(_ ram: RAM, _ random: inout Seeded) {
        for index in stride(from: 0, to: 0x3000, by: 8) {
            ram.host.storeBytes(of: random.next(), toByteOffset: 0x4000 + index, as: UInt64.self)
        }
        for index in stride(from: 0, to: 1024, by: 8) {
            ram.host.storeBytes(of: random.next(), toByteOffset: 0x1_0000 + index, as: UInt64.self)
        }
        for index in stride(from: 0, to: 1024, by: 5) where random.chance(2) {
            let starts: [UInt8] = [0x0F, 0x66, 0x67, 0xF3, 0xF2, 0xF0, 0xC4, 0xD9, 0xDB, 0xDD, 0xDF, 0x8E, 0xCF, 0x9D]
            ram.host.storeBytes(of: starts[random.below(14)], toByteOffset: 0x1_0000 + index, as: UInt8.self)
        }
        // Descriptors that are often present and sometimes sensible.
        for index in 0..<64 {
            let access = UInt64(random.chance(2) ? 0x93 | random.below(128) : random.below(256)) << 40
            let high = UInt64(random.below(16)) << 52 | 0xF << 48
            ram.host.storeBytes(
                of: random.next() & 0xFFFFF | access | high, toByteOffset: 0x6000 + 8 * index, as: UInt64.self)
        }
        let identity: [(Int, UInt64)] = [(0x1000, 0x2007), (0x2000, 0x3007), (0x3000, 0x87), (0x3008, 0x20_0087)]
        for (offset, value) in identity {
            ram.host.storeBytes(of: value, toByteOffset: offset, as: UInt64.self)
        }
        // 32-bit paging: two 4 MiB pages and random entries behind.
        ram.host.storeBytes(of: 0x87, toByteOffset: 0x4000, as: UInt32.self)
    }

    private func prepare(_ guest: TinyGuest, _ mode: Mode, _ random: inout Seeded) {
        let cpu = guest.cpu
        cpu.resetState(powerOn: true)
        cpu.pointee.halted = false
        for index in 0..<16 as Range<UInt32> {
            let small = UInt64(random.below(0x2_0000))
            apus_gpr_at(cpu, index).pointee = random.chance(3) ? random.next() : small
        }
        cpu.pointee.gdtr = apus_table(base: 0x6000, limit: 0x1FF)
        cpu.pointee.idtr = apus_table(base: random.chance(2) ? 0x5000 : 0x6000, limit: UInt32(random.below(4096)))
        cpu.pointee.cr4 = 0x600 | (random.chance(2) ? 0x31_0000 : 0)
        cpu.pointee.cr0 = mode == .real ? 0x10 : 0x11
        if mode == .paged32 {
            cpu.pointee.cr0 |= 0x8000_0000
            cpu.pointee.cr3 = 0x4000
            cpu.pointee.cr4 |= 0x10
        }
        if mode == .long || mode == .compatibility {
            cpu.pointee.cr0 |= 0x8001_0000
            cpu.pointee.cr3 = 0x1000
            cpu.pointee.cr4 |= 0x20
            cpu.pointee.efer = 0xD01
        }
        if random.chance(8) { cpu.pointee.cr0 |= 8 }
        let user = mode == .virtual || (mode != .real && random.chance(2))
        cpu.pointee.cpl = user ? 3 : 0
        let wide: UInt16 =
            mode == .long ? 0xA000 : mode == .protected16 || mode == .virtual || mode == .real ? 0 : 0xC000
        let rights: UInt16 = user ? 0xF3 : 0x93
        for index in 0..<6 {
            let isCode = index == Seg.cs && mode != .virtual && mode != .real
            let access = (index == Seg.cs ? wide : wide & 0xC000) | rights | (isCode ? 8 : 0)
            let base: UInt64 = mode == .real || mode == .virtual ? 0x1_0000 : 0
            cpu.segment(index).pointee = apus_segment(
                base: base, limit: wide == 0 ? 0xFFFF : .max, selector: base == 0 ? 8 | (user ? 3 : 0) : 0x1000,
                access: access)
        }
        if mode == .protected16 { for index in 0..<6 { cpu.segment(index).pointee.base = 0x1_0000 } }
        cpu.segment(Seg.tr).pointee = apus_segment(base: 0x7000, limit: 0x67, selector: 0x28, access: 0x8B)
        if mode == .virtual { cpu.pointee.system_flags |= 1 << 17 }
        cpu.pointee.system_flags |= UInt32(truncatingIfNeeded: random.next() & 0x7700)
        if !random.chance(10) { cpu.pointee.system_flags &= ~0x100 }
        cpu.pointee.rip = mode == .real || mode == .virtual || mode == .protected16 ? 0 : 0x1_0000
        cpu.updateMode()
        cpu.flushTLB(keepGlobal: false)
    }
}
