// Native thunks: one guest instruction each, re-encoded with fixed registers and run by the host.
// Source: Intel SDM volume 2 §2.1-2.2 (instruction format), §3.1; System V ABI for the calls.
// Modelled: x87, MMX, SSE families; VEX forms are in VEXThunks.swift.
// Quirks: rdi = REG operand's place, rsi = R/M operand's place, rdx = vCPU, rcx = guest flags.

internal import CProcessor
internal import Synchronization

/// Where an operand of a vector instruction lives.
enum OperandKind: UInt8 {
    case none, xmm, mmx, general
}

/// All that makes two vector instructions need different native code.
struct ThunkKey: Hashable {
    /// Map << 8 | opcode, as in `apus_insn.opcode`.
    var opcode: UInt16
    /// 0, 0x66, 0xF3 or 0xF2.
    var prefix: UInt8
    /// The ModRM byte for x87 and groups (memory forms with mod and rm cleared), else 0.
    var modrm: UInt8 = 0
    var immediate: UInt8 = 0
    var hasImmediate = false
    var isMemory = false
    var isWide = false
    /// 1: VEX; 3: with VEX.L.
    var vex: UInt8 = 0
}

/// Emits and keeps thunks. One for the process: native code knows no vCPU.
final class ThunkStore: Sendable {
    static let shared = ThunkStore()

    private struct State {
        var buffer: apus_code_buffer
        var used: Int
        var made: [ThunkKey: UInt] = [:]
    }
    private let state: Mutex<State>
    /// MXCSR that the rest of this process runs with, at the buffer's start.
    private static let hostMXCSR: UInt32 = 0x1F80
    private static let bytes = 16 << 20

    private init() {
        let buffer = apus_code_buffer_make(Self.bytes)
        if let start = buffer.writable {
            UnsafeMutableRawPointer(start).storeBytes(of: Self.hostMXCSR, as: UInt32.self)
        }
        state = Mutex(State(buffer: buffer, used: 64))
    }

    /// The thunk for `key`; `emit` writes its code when it is new. nil: no room or no executable memory.
    func thunk(_ key: ThunkKey, _ emit: (inout ThunkCode) -> Void) -> UnsafeMutableRawPointer? {
        let address = state.withLock { state -> UInt in
            if let made = state.made[key] { return made }
            guard let writable = state.buffer.writable, let executable = state.buffer.executable else { return 0 }
            var code = ThunkCode(position: state.used)
            emit(&code)
            guard state.used + code.bytes.count + 16 <= state.buffer.bytes else { return 0 }
            for (index, byte) in code.bytes.enumerated() { writable[state.used + index] = byte }
            let address = UInt(bitPattern: executable + state.used)
            state.made[key] = address
            state.used = (state.used + code.bytes.count + 15) & ~15
            return address
        }
        return UnsafeMutableRawPointer(bitPattern: address)
    }
}

/// Machine code of one thunk while it is written.
struct ThunkCode {
    private(set) var bytes: [UInt8] = []
    /// Offset of the first byte from the buffer's start, which holds the host's MXCSR.
    let position: Int

    init(position: Int) { self.position = position }

    static let fpu = Int32(truncatingIfNeeded: MemoryLayout<apus_vcpu>.offset(of: \.fpu) ?? 0)

    mutating func emit(_ code: UInt8...) { bytes.append(contentsOf: code) }

    mutating func displacement(_ value: Int32) {
        withUnsafeBytes(of: value.littleEndian) { bytes.append(contentsOf: $0) }
    }

    /// Opcode bytes of `opcode` behind prefixes.
    mutating func opcode(_ opcode: UInt16, prefix: UInt8, wide: Bool) {
        if prefix != 0 { emit(prefix) }
        if wide { emit(0x48) }
        switch Int(opcode >> 8) {
        case APUS_MAP_0F: emit(0x0F)
        case APUS_MAP_0F38: emit(0x0F, 0x38)
        case APUS_MAP_0F3A: emit(0x0F, 0x3A)
        default: break
        }
        emit(UInt8(truncatingIfNeeded: opcode))
    }

    /// Loads the REG operand into xmm2, mm2 or rax.
    mutating func loadReg(_ kind: OperandKind) {
        switch kind {
        case .none: break
        case .xmm: emit(0x0F, 0x28, 0x17)
        case .mmx: emit(0x0F, 0x6F, 0x17)
        case .general: emit(0x48, 0x8B, 0x07)
        }
    }

    /// Loads the R/M operand into xmm1, mm1 or rcx.
    mutating func loadRM(_ kind: OperandKind) {
        switch kind {
        case .none: break
        case .xmm: emit(0x0F, 0x28, 0x0E)
        case .mmx: emit(0x0F, 0x6F, 0x0E)
        case .general: emit(0x48, 0x8B, 0x0E)
        }
    }

    /// An MMX register's upper 16 bits read as ones once it is written (SDM vol. 1 §9.2.1).
    mutating func storeReg(_ kind: OperandKind) {
        switch kind {
        case .none: break
        case .xmm: emit(0x0F, 0x29, 0x17)
        case .mmx: emit(0x0F, 0x7F, 0x17, 0x66, 0xC7, 0x47, 0x08, 0xFF, 0xFF)
        case .general: emit(0x48, 0x89, 0x07)
        }
    }

    mutating func storeRM(_ kind: OperandKind) {
        switch kind {
        case .none: break
        case .xmm: emit(0x0F, 0x29, 0x0E)
        case .mmx: emit(0x0F, 0x7F, 0x0E, 0x66, 0xC7, 0x46, 0x08, 0xFF, 0xFF)
        case .general: emit(0x48, 0x89, 0x0E)
        }
    }

    /// movaps xmm0, the guest's XMM0.
    mutating func loadImplicitXMM0() {
        emit(0x0F, 0x28, 0x82)
        displacement(Self.fpu + Int32(FXSAVEOffset.xmm))
    }

    /// mov r8, rdx; mov rax, the guest's RAX; mov rdx, the guest's RDX: lengths for PCMPESTRx.
    mutating func loadLengths() { emit(0x49, 0x89, 0xD0, 0x49, 0x8B, 0x00, 0x49, 0x8B, 0x50, 0x10) }

    /// Stores the index (rcx) or the mask (xmm0) of a string comparison through r8, and gives rdx back.
    mutating func storeStringResult(isMask: Bool) {
        if isMask {
            emit(0x41, 0x0F, 0x29, 0x80)
            displacement(Self.fpu + Int32(FXSAVEOffset.xmm))
        } else {
            emit(0x49, 0x89, 0x48, 0x08)
        }
    }

    mutating func loadGuestMXCSR() {
        emit(0x0F, 0xAE, 0x92)
        displacement(Self.fpu + Int32(FXSAVEOffset.mxcsr))
    }

    mutating func storeGuestMXCSR() {
        emit(0x0F, 0xAE, 0x9A)
        displacement(Self.fpu + Int32(FXSAVEOffset.mxcsr))
    }

    mutating func loadHostMXCSR() {
        emit(0x0F, 0xAE, 0x15)
        displacement(Int32(truncatingIfNeeded: -(position + bytes.count + 4)))
    }

    /// fxrstor64 and fxsave64 of the guest's image.
    mutating func loadGuestFPU() {
        emit(0x48, 0x0F, 0xAE, 0x8A)
        displacement(Self.fpu)
    }

    mutating func storeGuestFPU() {
        emit(0x48, 0x0F, 0xAE, 0x82)
        displacement(Self.fpu)
    }

    mutating func loadFlags() { emit(0x51, 0x9D) }
    mutating func storeFlags() { emit(0x9C, 0x58) }
    mutating func finish() { emit(0xC3) }
}
