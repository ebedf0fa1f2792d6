// From X keysyms, which VNC clients send, to the keys of a US keyboard.
// Source: X11/keysymdef.h; key numbers are scan code set 1, with bit 7 for an 0xE0 prefix (as RFB's extended key event).
// Modelled: US layout with shifted symbols, keypad, function, editing and system keys. Not modelled: other layouts.
// Quirks: a symbol whose shift state is not what the client holds gets Shift (or AltGr) put right around it.

/// Key presses as VNC clients name them, turned into presses of a US keyboard's keys.
struct KeyTranslator {
    /// One key going down or up.
    struct Stroke: Equatable {
        var key: UInt8
        var isDown: Bool
        init(_ key: UInt8, _ isDown: Bool) { (self.key, self.isDown) = (key, isDown) }
    }
    private static let leftShift: UInt8 = 0x2A
    private static let rightShift: UInt8 = 0x36
    private static let rightAlt: UInt8 = 0xB8
    private static let capsLock: UInt8 = 0x3A
    private static let levelShifts: Set<UInt32> = [0xFE03, 0xFF7E]

    /// Keys that are down, by the keysym that pressed them.
    private var held: [UInt32: UInt8] = [:]
    /// The guest's Caps Lock: toggled by its key, corrected by the keyboard's light.
    var isCapsLocked = false

    mutating func key(_ keysym: UInt32, isDown: Bool) -> [Stroke] {
        isDown ? press(keysym) : release(keysym)
    }

    /// Every key that is still down goes up: the client went away.
    mutating func releaseAll() -> [Stroke] {
        defer { held = [:] }
        return Set(held.values).sorted().map { Stroke($0, false) }
    }

    private mutating func press(_ keysym: UInt32) -> [Stroke] {
        guard let place = Self.place(of: keysym) else { return [] }
        if place.key == Self.capsLock, held[keysym] == nil { isCapsLocked.toggle() }
        let others = held
        held[keysym] = place.key
        guard let isShifted = place.isShifted else { return [Stroke(place.key, true)] }
        let isLetter = keysym | 0x20 >= 0x61 && keysym | 0x20 <= 0x7A
        let wantsShift = isLetter && isCapsLocked ? !isShifted : isShifted
        let shifts = [Self.leftShift, Self.rightShift].filter(others.values.contains)
        let levels = others.filter { Self.levelShifts.contains($0.key) }.isEmpty ? [] : [Self.rightAlt]
        var around: [Stroke] = levels.map { Stroke($0, false) }
        if wantsShift, shifts.isEmpty { around.append(Stroke(Self.leftShift, true)) }
        // Space is the same with and without Shift.
        if !wantsShift, keysym != 0x20 { around += shifts.map { Stroke($0, false) } }
        return around + [Stroke(place.key, true)] + around.reversed().map { Stroke($0.key, !$0.isDown) }
    }

    /// The keysym may differ from the one that pressed the key, when Shift was let go in between.
    private mutating func release(_ keysym: UInt32) -> [Stroke] {
        guard let key = held[keysym] ?? Self.place(of: keysym)?.key else { return [] }
        guard held.values.contains(key) else { return [] }
        held = held.filter { $0.value != key }
        return [Stroke(key, false)]
    }
}

extension KeyTranslator {
    /// A key, and for symbols whether Shift belongs to it.
    private struct Place {
        var key: UInt8
        var isShifted: Bool?
    }

    private static func place(of keysym: UInt32) -> Place? {
        if let key = named[keysym] { return Place(key: key) }
        guard keysym < 0x80 else { return nil }
        let symbol = UInt8(keysym)
        if let place = symbols[symbol] { return place }
        return nil
    }

    /// The rows of a US keyboard: first key, plain symbols, shifted symbols.
    private static let rows: [(first: UInt8, plain: String, shifted: String)] = [
        (0x02, "1234567890-=", "!@#$%^&*()_+"),
        (0x10, "qwertyuiop[]", "QWERTYUIOP{}"),
        (0x1E, "asdfghjkl;'`", "ASDFGHJKL:\"~"),
        (0x2B, "\\zxcvbnm,./", "|ZXCVBNM<>?"),
    ]

    private static let symbols: [UInt8: Place] = {
        var places: [UInt8: Place] = [0x20: Place(key: 0x39, isShifted: false)]
        for row in rows {
            for (index, symbol) in row.plain.utf8.enumerated() {
                places[symbol] = Place(key: row.first + UInt8(index), isShifted: false)
            }
            for (index, symbol) in row.shifted.utf8.enumerated() {
                places[symbol] = Place(key: row.first + UInt8(index), isShifted: true)
            }
        }
        return places
    }()

    private static let named: [UInt32: UInt8] = [
        0xFF08: 0x0E, 0xFF09: 0x0F, 0xFE20: 0x0F, 0xFF0D: 0x1C, 0xFF1B: 0x01, 0xFFFF: 0xD3,
        // Home, arrows, page up and down, end, insert
        0xFF50: 0xC7, 0xFF51: 0xCB, 0xFF52: 0xC8, 0xFF53: 0xCD, 0xFF54: 0xD0, 0xFF55: 0xC9, 0xFF56: 0xD1,
        0xFF57: 0xCF, 0xFF63: 0xD2,
        // Print, SysRq, Pause, Break, Scroll Lock, Num Lock, Menu
        0xFF61: 0xB7, 0xFF15: 0x54, 0xFF13: 0xC6, 0xFF6B: 0xC6, 0xFF14: 0x46, 0xFF7F: 0x45, 0xFF67: 0xDD,
        // Shift, Control, Caps Lock, Meta, Alt, Super, Hyper, AltGr
        0xFFE1: 0x2A, 0xFFE2: 0x36, 0xFFE3: 0x1D, 0xFFE4: 0x9D, 0xFFE5: 0x3A, 0xFFE7: 0x38, 0xFFE8: 0xB8,
        0xFFE9: 0x38, 0xFFEA: 0xB8, 0xFFEB: 0xDB, 0xFFEC: 0xDC, 0xFFED: 0xDB, 0xFFEE: 0xDC,
        0xFE03: 0xB8, 0xFF7E: 0xB8,
        // F1 to F12
        0xFFBE: 0x3B, 0xFFBF: 0x3C, 0xFFC0: 0x3D, 0xFFC1: 0x3E, 0xFFC2: 0x3F, 0xFFC3: 0x40, 0xFFC4: 0x41,
        0xFFC5: 0x42, 0xFFC6: 0x43, 0xFFC7: 0x44, 0xFFC8: 0x57, 0xFFC9: 0x58,
        // Keypad: space, tab, enter; home to delete
        0xFF80: 0x39, 0xFF89: 0x0F, 0xFF8D: 0x9C, 0xFF95: 0x47, 0xFF96: 0x4B, 0xFF97: 0x48, 0xFF98: 0x4D,
        0xFF99: 0x50, 0xFF9A: 0x49, 0xFF9B: 0x51, 0xFF9C: 0x4F, 0xFF9D: 0x4C, 0xFF9E: 0x52, 0xFF9F: 0x53,
        // Keypad: = * + separator - . / and digits
        0xFFBD: 0x0D, 0xFFAA: 0x37, 0xFFAB: 0x4E, 0xFFAC: 0x53, 0xFFAD: 0x4A, 0xFFAE: 0x53, 0xFFAF: 0xB5,
        0xFFB0: 0x52, 0xFFB1: 0x4F, 0xFFB2: 0x50, 0xFFB3: 0x51, 0xFFB4: 0x4B, 0xFFB5: 0x4C, 0xFFB6: 0x4D,
        0xFFB7: 0x47, 0xFFB8: 0x48, 0xFFB9: 0x49,
        // Volume: down, mute, up
        0x1008_FF11: 0xAE, 0x1008_FF12: 0xA0, 0x1008_FF13: 0xB0,
    ]
}
