// Native thunks of VEX instructions.
// Source: Intel SDM volume 2 §2.3 (VEX); System V ABI for the calls.
// Modelled: all forms of VEXForms.swift but those that work element by element.
// Quirks: rdi, rsi, r8, r9 = places of REG, R/M, vvvv and the immediate's register, which are loaded into ymm2, ymm1,
// ymm3, ymm4 (general registers: rax, rcx); upper halves lie 416 bytes behind the lower ones.

internal import CProcessor

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    static func thunk(
        _ form: VEXForm, _ insn: UnsafeMutablePointer<apus_insn>, prefix: UInt8
    ) -> UnsafeMutableRawPointer? {
        let isMemory = insn.pointee.mem != 0
        let isLong = insn.pointee.vex & 2 != 0 && !form.isScalar
        var key = ThunkKey(
            opcode: insn.pointee.opcode, prefix: prefix, isMemory: isMemory, isWide: form.encodedW(insn))
        key.vex = isLong ? 3 : 1
        if form.traits.contains(.immediate) {
            key.immediate = form.shape == .four ? 0x40 : UInt8(truncatingIfNeeded: insn.pointee.imm)
            key.hasImmediate = true
        }
        let digit = insn.pointee.modrm >> 3 & 7
        if form.traits.contains(.group) { key.modrm = digit << 3 }
        return ThunkStore.shared.thunk(key) { $0.wide(form, key, digit: digit) }
    }
}

extension ThunkCode {
    fileprivate mutating func wide(_ form: VEXForm, _ key: ThunkKey, digit: UInt8) {
        let traits = form.traits
        if traits.contains(.floating) { loadGuestMXCSR() }
        switch form.shape {
        case .shift: break
        case .four:
            loadThird()
            loadFourth()
        case .three: loadThird()
        default: break
        }
        if form.shape != .shift { form.reg == .general ? loadReg(.general) : loadWideReg() }
        if !key.isMemory { form.rm == .general ? loadRM(.general) : loadWideRM() }
        if traits.contains(.string) { loadLengths() }
        let number: UInt8 = traits.contains(.group) ? digit : form.reg == .general ? 0 : 2
        let names3 = form.shape == .three || form.shape == .four || form.shape == .shift
        vex(key, third: names3 ? 3 : 0)
        emit(number << 3 | (key.isMemory ? 0x06 : 0xC1))
        if key.hasImmediate { emit(key.immediate) }
        storeResult(form, key)
        if traits.contains(.flags) { storeFlags() }
        emit(0xC5, 0xF8, 0x77)
        if traits.contains(.floating) {
            storeGuestMXCSR()
            loadHostMXCSR()
        }
        finish()
    }

    private mutating func storeResult(_ form: VEXForm, _ key: ThunkKey) {
        if form.traits.contains(.string) {
            storeStringResult(isMask: key.opcode & 1 == 0)
            // vextractf128 [r8 + upper half of XMM0], ymm0, 1
            if key.opcode & 1 == 0 { storeUpperMask() }
        } else if form.shape == .shift {
            emit(0xC4, 0xC1, 0x78, 0x29, 0x18, 0xC4, 0xC3, 0x7D, 0x19, 0x98)
            upper()
        } else if form.traits.contains(.store) {
            if key.isMemory { return }
            if form.rm == .general { return storeRM(.general) }
            emit(0xC5, 0xF8, 0x29, 0x0E, 0xC4, 0xE3, 0x7D, 0x19, 0x8E)
            upper()
        } else if !form.traits.contains(.noResult) {
            if form.reg == .general { return storeReg(.general) }
            emit(0xC5, 0xF8, 0x29, 0x17, 0xC4, 0xE3, 0x7D, 0x19, 0x97)
            upper()
        }
    }

    /// Three-byte VEX and the opcode; `third`: the register in vvvv, 0 for none.
    private mutating func vex(_ key: ThunkKey, third: UInt8) {
        let pp: UInt8 = key.prefix == 0x66 ? 1 : key.prefix == 0xF3 ? 2 : key.prefix == 0xF2 ? 3 : 0
        emit(0xC4, 0xE0 | UInt8(key.opcode >> 8))
        emit((key.isWide ? 0x80 : 0) | (~third & 15) << 3 | (key.vex & 2) << 1 | pp)
        emit(UInt8(truncatingIfNeeded: key.opcode))
    }

    /// Displacement of an upper half and the immediate 1 of VINSERTF128 and VEXTRACTF128.
    private mutating func upper() {
        displacement(Int32(FXSAVEOffset.upper - FXSAVEOffset.xmm))
        emit(1)
    }
    // vmovaps, vinsertf128
    private mutating func loadWideReg() {
        emit(0xC5, 0xF8, 0x28, 0x17, 0xC4, 0xE3, 0x6D, 0x18, 0x97)
        upper()
    }
    private mutating func loadWideRM() {
        emit(0xC5, 0xF8, 0x28, 0x0E, 0xC4, 0xE3, 0x75, 0x18, 0x8E)
        upper()
    }
    private mutating func loadThird() {
        emit(0xC4, 0xC1, 0x78, 0x28, 0x18, 0xC4, 0xC3, 0x65, 0x18, 0x98)
        upper()
    }
    private mutating func loadFourth() {
        emit(0xC4, 0xC1, 0x78, 0x28, 0x21, 0xC4, 0xC3, 0x5D, 0x18, 0xA1)
        upper()
    }
    private mutating func storeUpperMask() {
        emit(0xC4, 0xC3, 0x7D, 0x19, 0x80)
        displacement(Self.fpu + Int32(FXSAVEOffset.upper))
        emit(1)
    }
}
