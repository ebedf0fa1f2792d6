// Random VEX instructions, and saving and restoring of YMM state.
// Source: Intel SDM volume 2 §2.3; the forms are those of VEXForms.swift.
// Made: all forms the host has, masked moves and gathers included. Not made: VLDMXCSR, VMASKMOVDQU.
// Quirks: a gather's indices are made small just before, so that it stays inside the sandbox.

import CProcessor

@testable import Processor

extension InstructionGenerator {
    /// Three-byte VEX, opcode and operands; `rm` nil: memory aligned to `align`.
    private mutating func encodeVEX(
        _ opcode: UInt16, prefix: UInt8, w: UInt8, long: Bool, reg: Int, third: Int, rm: Int?, align: Int,
        immediate: [UInt8]
    ) {
        let form = rm == nil ? random.below(6) : 0
        if rm == nil, form == 5, is64 { emit(0x67) }
        let pp: UInt8 = prefix == 0x66 ? 1 : prefix == 0xF3 ? 2 : prefix == 0xF2 ? 3 : 0
        var high: UInt8 = 0xE0 | UInt8(opcode >> 8)
        if reg >= 8 { high &= ~0x80 }
        if let rm {
            if rm >= 8 { high &= ~0x20 }
        } else if is64 {
            if form != 3, form != 4 { high &= ~0x20 }
            if form == 2 { high &= ~0x40 }
        }
        emit(0xC4, high, w << 7 | UInt8(~third & 15) << 3 | (long ? 4 : 0) | pp, UInt8(opcode & 0xFF))
        if let rm {
            emit(0xC0 | UInt8(reg & 7) << 3 | UInt8(rm & 7))
        } else if is64 {
            memory(form, UInt8(reg & 7) << 3, align: align, behind: immediate.count)
        } else {
            memory32(form, reg, align)
        }
        bytes += immediate
    }

    private mutating func vectorNumber() -> Int { random.below(is64 ? 16 : 8) }

    /// One VEX instruction on vector registers.
    mutating func wide() {
        begin()
        while true {
            let map = [0x100, 0x100, 0x200, 0x200, 0x300][random.below(5)]
            let opcode = UInt16(map | random.below(256))
            let prefix: UInt8 = [0x66, 0x66, 0, 0xF3, 0xF2][random.below(5)]
            let (group, long) = (UInt8(random.below(8)), random.chance(2))
            var w = UInt8(random.below(2))
            var isMemory = random.chance(3)
            guard
                let form = VEXForm.find(opcode: opcode, prefix: prefix, group: group, isMemory: isMemory, w: w)
                    ?? VEXForm.find(opcode: opcode, prefix: prefix, group: group, isMemory: true, w: w)
            else { continue }
            if form.traits.contains(.memoryOnly) { isMemory = true }
            if form.traits.contains(.registerOnly) { isMemory = false }
            guard let bytes = long ? form.long : form.short, isOffered(form, long),
                !(isUnmasked && (opcode == 0x340 || opcode == 0x341))
            else { continue }
            // Hosts differ about 64-bit general registers outside 64-bit mode.
            if form.reg == .general || form.rm == .general, !is64 { w = 0 }
            if form.shape == .zero { return emit(0xC5, long ? 0xFC : 0xF8, 0x77) }
            if form.shape == .gather { return gather(opcode, w, long) }
            let names = form.shape != .load && form.shape != .store
            let reg =
                form.traits.contains(.group) ? Int(group) : form.reg == .general ? register() : vectorNumber()
            let isAligned = form.traits.contains(.aligned) && !random.chance(100)
            encodeVEX(
                opcode, prefix: prefix, w: w, long: long, reg: reg, third: names ? vectorNumber() : 0,
                rm: isMemory ? nil : form.rm == .general ? register() : vectorNumber(),
                align: isAligned ? Int(bytes) : 1,
                immediate: form.traits.contains(.immediate) ? [UInt8(random.below(256))] : [])
            return
        }
    }

    private func isOffered(_ form: VEXForm, _ long: Bool) -> Bool {
        let needed = UInt32(form.feature) | (long && !form.isScalar ? UInt32(form.longFeature) : 0)
        return apus_host_features() & needed == needed
    }

    /// VPSRLD or VPSRLQ of the index register, then the gather with R15 (EBP) as its base.
    private mutating func gather(_ opcode: UInt16, _ w: UInt8, _ long: Bool) {
        let count = is64 ? 16 : 8
        let target = vectorNumber()
        let mask = (target + 1 + random.below(count - 1)) % count
        var index = vectorNumber()
        while index == target || index == mask { index = vectorNumber() }
        let isQuad = opcode & 1 != 0
        // Group 13 or 14, /2: indices below 512.
        emit(0xC4, index >= 8 ? 0xC1 : 0xE1, UInt8(~index & 15) << 3 | 5, isQuad ? 0x73 : 0x72)
        emit(0xC0 | 2 << 3 | UInt8(index & 7), isQuad ? 55 : 23)
        begin()
        var high: UInt8 = 0xE2
        if target >= 8 { high &= ~0x80 }
        if index >= 8 { high &= ~0x40 }
        if is64 { high &= ~0x20 }
        emit(0xC4, high, w << 7 | UInt8(~mask & 15) << 3 | (long ? 4 : 0) | 1, UInt8(opcode & 0xFF))
        let scale = UInt8(random.below(4))
        emit(0x44 | UInt8(target & 7) << 3, scale << 6 | UInt8(index & 7) << 3 | (is64 ? 7 : 5), 0)
    }

    /// XSAVE, other contents, XRSTOR of some states; pointers are cleared, since hosts differ about them.
    mutating func saveExtended() {
        begin()
        let area = 1024
        select()
        fixed([], [0x0F, 0xAE], 4, area, wide: is64 && random.chance(2))
        put(0, area + 6, isWord: true)
        for offset in stride(from: 8, to: 24, by: 4) { put(0, area + offset) }
        // Whatever the host takes for unused: XSTATE_BV at random.
        put(UInt64(random.below(8)), area + 512)
        for offset in stride(from: 516, to: 576, by: 4) { put(0, area + offset) }
        if random.chance(4) { put(1, area + 520) }
        put(random.next() & 0x1F3F | 0x7F, area, isWord: true)
        put(random.next() & 0x7F7F, area + 2, isWord: true)
        put(random.next() & 0xFFFF | 0x1F80, area + 24)
        if random.chance(2) { wide() }
        begin()
        select()
        begin()
        fixed([], [0x0F, 0xAE], 5, area, wide: is64 && random.chance(2))
    }

    /// MOV EAX, states; XOR EDX, EDX; CMP AL, AL.
    private mutating func select() {
        emit(0xB8)
        emit32(random.below(8))
        emit(0x31, 0xD2, 0x38, 0xC0)
    }
}
