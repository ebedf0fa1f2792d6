// Calls and returns as the host predicts them: each guest call is a call of the host, each return one of its returns.
// Source: our own design; docs/decisions/0004.md.
// Modelled: the host's own stack of return addresses as a prediction, and nothing else of it: RSP stays where it is.
// Quirks: a call is made just before the entry of the block that it returns to, so that block's entry is what the host
// expects, and what the jump cache has. Calls enter `landingBytes` before the other block's, with RSP 8 too low.

internal import CProcessor

extension Translator {
    /// Emits what lies just before an entry: where calls come in, and the call that returns to it.
    static func emitLanding(_ emitter: inout Emitter) {
        emitBack(&emitter)
        emitter.bytes(0xEB, UInt8(callBytes), 0x41, 0xFF, 0xD3)  // jmp; call r11
    }

    /// Puts RSP back behind a call.
    static func emitBack(_ emitter: inout Emitter) { emitter.bytes(0x48, 0x8D, 0x64, 0x24, 8) }  // lea rsp, [rsp + 8]
}

extension Translation {
    /// Whether calls and returns are the host's.
    var predictsReturns: Bool { width == 8 }

    /// Where a call returns to, counted from the block's first byte; nil: the host need not know.
    func returning(_ insn: Insn) -> Int? {
        let next = Int(insn.pointee.next)
        return predictsReturns && block.pointee.second == 0 && isInPage(next) ? next : nil
    }

    /// Calls what r11 leads to by way of the block that it returns to.
    mutating func call(returning: Int) {
        let place = emitter.jump()
        let target = block.pointee.physical &+ UInt64(returning)
        if let native = cpu.engine.pointee.blocks.find(target, key)?.pointee.native {
            let code = (native - common.executable).assumingMemoryBound(to: UInt8.self)
            emitter.aim(place, code - Translator.callBytes)
        } else {
            unreturned.append(place)
        }
        links.append((place, BlockKey(physical: target, mode: key), -Translator.callBytes))
    }

    /// Emits the way of calls whose return has no translation: the host hears of none.
    mutating func emitUnreturned() {
        guard !unreturned.isEmpty else { return }
        for place in unreturned { emitter.aim(place, emitter.at) }
        emitter.bytes(0x4D, 0x8D, 0x5B, 5, 0x41, 0xFF, 0xE3)  // lea r11, [r11 + 5]; jmp r11
    }

    /// Loads r11 with a place that is aimed later.
    mutating func emitCallee() -> UnsafeMutablePointer<UInt8> {
        emitter.bytes(0x4C, 0x8D, 0x1D)  // lea r11, [rip + ...]
        emitter.long(0)
        return emitter.at - 4
    }

    /// Calls the block at `offset` of this page.
    mutating func callNear(_ offset: Int, returning: Int) {
        nearCalls.append((emitCallee(), offset))
        call(returning: returning)
    }

    /// Emits the ways of calls within the page, which enter blocks behind the landing.
    mutating func emitNearCalls() {
        for way in nearCalls {
            emitter.aim(way.place, emitter.at)
            Translator.emitBack(&emitter)
            link(emitter.jump(), way.offset)
        }
    }

    /// Calls `rip`, which r10 holds, by the jump cache.
    mutating func dispatchCall(returning: Int) {
        emitter.aim(Translator.emitSearch(&emitter), common.second)
        Translator.emitCompareKey(&emitter, exit: common.second)
        emitter.bytes(0x4E, 0x8B, 0x9C, 0x1C)  // mov r11, [rsp + r11 + native]
        emitter.long(StateOffset.jumps + 24)
        emitter.bytes(0x4D, 0x8D, 0x5B, UInt8(truncatingIfNeeded: -Translator.landingBytes))  // lea r11, [r11 - ...]
        call(returning: returning)
    }
}
