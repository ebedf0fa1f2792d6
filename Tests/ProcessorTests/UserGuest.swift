// A 64-bit user-mode sandbox that exists twice, at the same addresses: in a guest and in this process.
// Source: Intel SDM vol. 3 chapters 3-7 for the tables a long-mode guest needs.
// Modelled: one 2 MiB user page for code and data, an IDT whose handlers halt. Not modelled: system calls.
// Quirks: code ends in INT3 or in the exception it raises; either way both sides report a vector. Behind an exception
// not every flag is the host's: see `dropUndefined`.

import CNative
import CProcessor
import Dispatch
import Host

@testable import Processor

/// Registers of either side, before or behind a piece of code.
struct UserState: Equatable {
    var gpr = [UInt64](repeating: 0, count: 16)
    var flags: UInt64 = 0x202
    var rip: UInt64 = 0
    var vector: UInt64 = 0
    /// FXSAVE64 image without the instruction and data pointers, and what is reserved.
    var fx = [UInt8](repeating: 0, count: 416)
    /// Upper halves of YMM0 to YMM15; zero on hosts without them.
    var upper = [UInt8](repeating: 0, count: 256)

    /// Clears what is not compared.
    mutating func normalize(bits: Int) {
        if bits == 32 { gpr = gpr.enumerated().map { $0 < 8 ? $1 & 0xFFFF_FFFF : 0 } }
        flags &= 0xCD5
        for index in 5..<24 { fx[index] = 0 }
        for index in 28..<32 { fx[index] = 0 }
        for slot in 0..<8 { for index in 10..<16 { fx[32 + 16 * slot + index] = 0 } }
    }

    /// Clears what the manuals or decision 0004 leave open behind an exception.
    mutating func dropUndefined(isTranslated: Bool) {
        // #DE leaves all arithmetic flags undefined, as any division does; a fault in a translated block finds old
        // values of flags that nobody reads any more.
        if vector == 0 || isTranslated && vector != 3 { flags &= ~0x8D5 }
        // Whether an unmasked overflow was inexact as well is not known of a result that was computed masked.
        if vector == 19 { fx[24] &= ~0x20 }
    }

    /// The differences as text, names first.
    func differences(to host: UserState) -> [String] {
        let names = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"] + (8..<16).map { "r\($0)" }
        func text(_ value: UInt64) -> String { String(value, radix: 16) }
        var found: [String] = []
        for (index, name) in names.enumerated() where gpr[index] != host.gpr[index] {
            found.append("\(name) \(text(gpr[index])) for \(text(host.gpr[index]))")
        }
        if flags != host.flags { found.append("flags \(text(flags)) for \(text(host.flags))") }
        if rip != host.rip { found.append("rip \(text(rip)) for \(text(host.rip))") }
        if vector != host.vector { found.append("vector \(vector) for \(host.vector)") }
        for number in 0..<16 where upper[16 * number..<16 * number + 16] != host.upper[16 * number..<16 * number + 16] {
            let range = 16 * number..<16 * number + 16
            found.append("ymm\(number) high \(hex(upper[range])) for \(hex(host.upper[range]))")
        }
        var index = 0
        while index < fx.count {
            if fx[index] != host.fx[index] {
                let end = min(index | 15, fx.count - 1)
                let start = index & ~15
                found.append("fx+\(start) \(hex(fx[start...end])) for \(hex(host.fx[start...end]))")
                index = end
            }
            index += 1
        }
        return found
    }
}

func hex(_ bytes: some Sequence<UInt8>) -> String {
    bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
}

final class UserGuest {
    /// There is one at a time: this process has its addresses once.
    private final class Turn {
        private static let turns = DispatchSemaphore(value: 1)
        init() { Self.turns.wait() }
        deinit { Self.turns.signal() }
    }
    private let turn = Turn()

    static let code: UInt64 = 0x1000_0000
    static let data: UInt64 = 0x1010_0000
    static let dataBytes = 8192
    private static let handlers: UInt64 = 0xA000
    private static let kernelStack: UInt64 = 0x1_0000

    static let hasAVX = apus_host_features() & UInt32(APUS_HOST_AVX) != 0

    let guest: TinyGuest
    /// 64-bit mode, or 32 bits in compatibility mode.
    private let bits: Int
    /// Blocks are translated before they run for the first time; else they never are.
    var isTranslated: Bool {
        didSet { guest.cpu.engine.pointee.blocks.heat = isTranslated ? 1 : 0 }
    }
    /// The user's page, when programs are to run by themselves.
    private let file: SharedMemory?
    private let sandbox: RAM
    private let hostCode: UnsafeMutableRawPointer
    private let hostData: UnsafeMutableRawPointer

    /// `direct`: code runs by itself until something stops it.
    init(bits: Int = 64, translated: Bool = false, direct: Bool = false) throws {
        (self.bits, isTranslated) = (bits, translated)
        file = direct ? try SharedMemory(named: "user-guest", size: 2 << 20) : nil
        sandbox = try file.map { try RAM(start: Self.code, file: $0) } ?? RAM(start: Self.code, bytes: 2 << 20)
        guest = TinyGuest([try RAM(start: 0, bytes: 2 << 20), sandbox], file: file)
        guard let code = native_map(Self.code, 65536, true), let data = native_map(Self.data, Self.dataBytes, false)
        else { throw TestSetUp.noMemory }
        (hostCode, hostData) = (code, data)
        guest.cpu.engine.pointee.blocks.heat = translated ? 1 : 0
        // As blocks that run often are.
        guest.cpu.engine.pointee.blocks.trial = 0
        buildTables()
        guest.cpu.flushTLB(keepGlobal: false)
    }

    deinit {
        native_unmap(hostCode, 65536)
        native_unmap(hostData, Self.dataBytes)
    }

    private func buildTables() {
        guest.write64(0x2000 | 7, at: 0x1000)
        guest.write64(0x3000 | 7, at: 0x2000)
        guest.write64(0x83, at: 0x3000)
        guest.write64(Self.code | 0x87, at: 0x3000 + 8 * (Self.code >> 21))
        // Kernel code and data, user data and code, TSS.
        let descriptors: [UInt64] = [
            0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x00CF_FB00_0000_FFFF, 0x00CF_F300_0000_FFFF,
            0x00AF_FB00_0000_FFFF,
            0x0000_8B00_7000_0067, 0,
        ]
        for (index, value) in descriptors.enumerated() { guest.write64(value, at: 0x6000 + 8 * UInt64(index)) }
        guest.write64(Self.kernelStack, at: 0x7004)
        for vector in 0..<256 as Range<UInt64> {
            let handler = Self.handlers + 16 * vector
            // DPL 3, so that INT3 in user code may pass.
            guest.write64(
                handler & 0xFFFF | 0x08 << 16 | 0xEE00 << 32 | (handler >> 16) << 48, at: 0x8000 + 16 * vector)
            guest.write64(0, at: 0x8008 + 16 * vector)
            guest[handler] = 0xF4
        }
    }

    /// Runs `code` on both sides from the same registers and data; nil when they agree.
    func compare(_ code: [UInt8], _ state: UserState, data: [UInt8]) -> [String]? {
        let ended = code + [0xCC]
        var host = runNatively(ended, state, data)
        var emulated = runInGuest(ended, state, data)
        host.normalize(bits: bits)
        emulated.normalize(bits: bits)
        host.dropUndefined(isTranslated: isTranslated)
        emulated.dropUndefined(isTranslated: isTranslated)
        var found = emulated.differences(to: host)
        let guestData = sandbox.host + Int(Self.data - Self.code)
        for index in 0..<Self.dataBytes where found.count < 12 {
            let ours = guestData.load(fromByteOffset: index, as: UInt8.self)
            let theirs = hostData.load(fromByteOffset: index, as: UInt8.self)
            if ours != theirs {
                found.append("[data+\(String(index, radix: 16))] \(hex([ours])) for \(hex([theirs]))")
            }
        }
        return found.isEmpty ? nil : found
    }

    func runNatively(_ code: [UInt8], _ state: UserState, _ data: [UInt8]) -> UserState {
        let registers = native_registers()
        hostCode.copyMemory(from: code, byteCount: code.count)
        hostData.copyMemory(from: data, byteCount: Self.dataBytes)
        withUnsafeMutableBytes(of: &registers.pointee.gpr) { $0.copyBytes(from: state.gpr.withUnsafeBytes(Array.init)) }
        registers.pointee.flags = state.flags
        withUnsafeMutableBytes(of: &registers.pointee.fx) { $0.copyBytes(from: state.fx) }
        registers.pointee.has_upper = Self.hasAVX ? 1 : 0
        withUnsafeMutableBytes(of: &registers.pointee.upper) { $0.copyBytes(from: state.upper) }
        if bits == 64 { native_run(Self.code) } else { native_run32(UInt32(Self.code)) }
        var result = UserState()
        withUnsafeBytes(of: &registers.pointee.gpr) { result.gpr = Array($0.bindMemory(to: UInt64.self)) }
        result.flags = registers.pointee.flags
        result.rip = registers.pointee.rip
        result.vector = registers.pointee.vector
        withUnsafeBytes(of: &registers.pointee.fx) { result.fx = Array($0.prefix(416)) }
        withUnsafeBytes(of: &registers.pointee.upper) { result.upper = Array($0) }
        return result
    }

    func runInGuest(_ code: [UInt8], _ state: UserState, _ data: [UInt8]) -> UserState {
        let cpu = guest.cpu
        sandbox.host.copyMemory(from: code, byteCount: code.count)
        (sandbox.host + Int(Self.data - Self.code)).copyMemory(from: data, byteCount: Self.dataBytes)
        guest.engine.codeChanged(at: Self.code, bytes: UInt64(code.count))
        enterUserMode()
        for index in 0..<16 { apus_gpr_at(cpu, UInt32(index)).pointee = state.gpr[index] }
        cpu.setRFLAGS(state.flags, writable: 0xED5)
        cpu.fpuImage.copyMemory(from: state.fx, byteCount: 416)
        (cpu.fpuImage + FXSAVEOffset.upper).copyMemory(from: state.upper, byteCount: 256)
        cpu.pointee.rip = Self.code
        if let direct = guest.engine.directExecution {
            cpu.pointee.cr4 |= CR4.fsgsBase
            direct.begin(cpu)
            cpu.pointee.direct = UInt32(APUS_DIRECT_ON)
        }
        let exit = guest.run()
        var result = UserState()
        result.gpr = (0..<16).map { apus_gpr_at(cpu, UInt32($0)).pointee }
        result.fx = Array(UnsafeRawBufferPointer(start: cpu.fpuImage, count: 416))
        cpu.settleUpper()
        result.upper = Array(UnsafeRawBufferPointer(start: cpu.fpuImage + FXSAVEOffset.upper, count: 256))
        result.vector = (cpu.pointee.rip &- Self.handlers) / 16
        guard exit == .halt else {
            result.vector = 999
            return result
        }
        // SS, RSP, RFLAGS, CS, RIP lie below the kernel stack's top, whether or not an error code follows.
        func word(_ offset: UInt64) -> UInt64 { guest.host(Self.kernelStack - offset)?.load(as: UInt64.self) ?? 0 }
        result.gpr[4] = word(16)
        result.flags = word(24)
        result.rip = word(40)
        return result
    }

    private func enterUserMode() {
        let cpu = guest.cpu
        cpu.resetState(powerOn: true)
        cpu.pointee.halted = false
        cpu.pointee.cr0 = 0x8001_0033
        cpu.pointee.cr3 = 0x1000
        cpu.pointee.cr4 = Self.hasAVX ? 0x4_0620 : 0x620
        cpu.pointee.xcr0 = Self.hasAVX ? 7 : 1
        cpu.pointee.efer = 0xD01
        cpu.pointee.cpl = 3
        set(Seg.cs, bits == 64 ? 0x2B : 0x1B, access: bits == 64 ? 0xA0FB : 0xC0FB)
        for index in [Seg.ss, Seg.ds, Seg.es] { set(index, 0x23, access: 0xC0F3) }
        set(Seg.tr, 0x30, access: 0x8B, base: 0x7000, limit: 0x67)
        cpu.pointee.gdtr = apus_table(base: 0x6000, limit: 0x3F)
        cpu.pointee.idtr = apus_table(base: 0x8000, limit: 0xFFF)
        cpu.updateMode()
    }

    private func set(_ index: Int, _ selector: UInt16, access: UInt16, base: UInt64 = 0, limit: UInt32 = .max) {
        let segment = guest.cpu.segment(index)
        segment.pointee = apus_segment(base: base, limit: limit, selector: selector, access: access)
    }
}
