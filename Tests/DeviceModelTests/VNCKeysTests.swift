import Testing

@testable import VNC

@Suite("Keysyms") struct VNCKeysTests {
    private func strokes(_ events: [(UInt32, Bool)], capsLocked: Bool = false) -> [String] {
        var keys = KeyTranslator()
        keys.isCapsLocked = capsLocked
        return events.flatMap { keys.key($0.0, isDown: $0.1) }.map {
            String($0.key, radix: 16) + ($0.isDown ? "+" : "-")
        }
    }

    @Test("A symbol that needs Shift gets it around its key")
    func addsShift() { #expect(strokes([(0x3F, true), (0x3F, false)]) == ["2a+", "35+", "2a-", "35-"]) }

    @Test("A symbol that comes with Shift is not shifted twice")
    func keepsShift() {
        #expect(
            strokes([(0xFFE1, true), (0x41, true), (0x41, false), (0xFFE1, false)]) == ["2a+", "1e+", "1e-", "2a-"])
    }

    @Test("Another layout's Shift is lifted for a symbol that has none here")
    func removesShift() {
        #expect(strokes([(0xFFE2, true), (0x2F, true)]) == ["36+", "36-", "35+", "36+"])
    }

    @Test("AltGr is lifted for a symbol that the US layout has without it")
    func removesLevelShift() {
        #expect(strokes([(0xFE03, true), (0x40, true)]) == ["b8+", "b8-", "2a+", "3+", "2a-", "b8+"])
    }

    @Test("With Caps Lock on, capitals need no Shift")
    func capsLock() {
        #expect(strokes([(0x41, true)], capsLocked: true) == ["1e+"])
        #expect(strokes([(0xFFE5, true), (0xFFE5, false), (0x42, true)]) == ["3a+", "3a-", "30+"])
        #expect(strokes([(0x31, true)], capsLocked: true) == ["2+"])
    }

    @Test("A key goes up by the other keysym when Shift was let go before it")
    func releaseByOtherKeysym() {
        let events: [(UInt32, Bool)] = [(0xFFE1, true), (0x41, true), (0xFFE1, false), (0x61, false)]
        #expect(strokes(events) == ["2a+", "1e+", "2a-", "1e-"])
    }

    @Test("Every printable character of the US layout has a key; unknown keysyms have none")
    func complete() {
        for symbol in UInt32(0x20)...0x7E { #expect(!strokes([(symbol, true)]).isEmpty, "keysym \(symbol)") }
        for key in UInt32(0xFFBE)...0xFFC9 { #expect(strokes([(key, true)]).count == 1) }
        for key in UInt32(0xFFB0)...0xFFB9 { #expect(strokes([(key, true)]).count == 1) }
        #expect(strokes([(0xE4, true), (0xE4, false)]) == [])
    }
}
