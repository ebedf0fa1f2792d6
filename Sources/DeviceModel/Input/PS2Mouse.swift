// A PS/2 mouse with a wheel.
// Source: IBM PS/2 Technical Reference, "Mouse"; Microsoft IntelliMouse and IntelliMouse Explorer knock sequences.
// Modelled: stream, remote and wrap mode, rate, resolution, scaling, status, wheel, buttons 4 and 5. Not modelled: the rate's pace.
// Quirks: a packet is made when the last one has been read, so a slow guest gets few large movements, not a backlog.

/// What the mouse knows, as one value; bytes leave it through `output`.
public struct PS2Mouse: Codable, Equatable, Sendable {
    static let acknowledge: UInt8 = 0xFA
    static let wanted = 16

    /// Movement with one state of the buttons.
    struct Motion: Codable, Equatable, Sendable {
        var dx = 0
        var dy = 0
        var wheel = 0
        var buttons: UInt8 = 0
    }

    var output: [UInt8] = []
    var last: UInt8 = 0
    var isReporting = false
    var isRemote = false
    var isWrapping = false
    var doublesMotion = false
    /// 0 to 3: 1, 2, 4, 8 counts a millimetre.
    var resolution: UInt8 = 2
    var rate: UInt8 = 100
    /// 0 plain, 3 with wheel, 4 with wheel and five buttons.
    var id: UInt8 = 0
    /// The last rates that were set, for the knock sequences.
    var rates: [UInt8] = []
    var pending: UInt8?
    /// Not reported yet, oldest first.
    var waiting: [Motion] = []
    var buttons: UInt8 = 0

    /// The mouse moved (down positive); `buttons`: bit 0 left, 1 right, 2 middle, 3 and 4 the side ones.
    mutating func move(dx: Int, dy: Int, wheel: Int, buttons: UInt8) {
        let now = buttons & 0x1F
        guard isReporting || isRemote else { return self.buttons = now }
        if now != self.buttons || waiting.isEmpty {
            if waiting.count >= Self.wanted { waiting.removeFirst() }
            waiting.append(Motion(buttons: now))
        }
        self.buttons = now
        let index = waiting.count - 1
        waiting[index].dx = Self.clamp(waiting[index].dx &+ Self.clamp(dx, 4096), 4096)
        waiting[index].dy = Self.clamp(waiting[index].dy &+ Self.clamp(dy, 4096), 4096)
        waiting[index].wheel = Self.clamp(waiting[index].wheel &+ Self.clamp(wheel, 64), 64)
    }

    private static func clamp(_ value: Int, _ limit: Int) -> Int { min(max(value, -limit), limit) }

    mutating func receive(_ byte: UInt8) {
        if let command = pending {
            pending = nil
            return argument(byte, of: command)
        }
        if isWrapping, byte != 0xFF, byte != 0xEC { return output.append(byte) }
        switch byte {
        case 0xE6, 0xE7: (doublesMotion, _) = (byte == 0xE7, reply())
        case 0xE8, 0xF3:
            pending = byte
            reply()
        case 0xE9: reply([status, resolution, rate])
        case 0xEA: (isRemote, _) = (false, reply())
        case 0xEB:
            reply()
            report(always: true)
        case 0xEC: (isWrapping, _) = (false, reply())
        case 0xEE: (isWrapping, _) = (true, reply())
        case 0xF0: (isRemote, _) = (true, reply())
        case 0xF2: reply([id])
        case 0xF4: (isReporting, _) = (true, reply())
        case 0xF5: (isReporting, waiting, _) = (false, [], reply())
        case 0xF6:
            setDefaults()
            reply()
        case 0xFE: output.insert(last, at: 0)
        case 0xFF:
            self = PS2Mouse()
            reply([0xAA, 0])
        default: output.append(0xFE)
        }
    }

    private mutating func argument(_ byte: UInt8, of command: UInt8) {
        reply()
        if command == 0xE8 { return resolution = byte & 3 }
        rate = byte
        rates = Array((rates + [byte]).suffix(3))
        if rates == [200, 100, 80], id == 0 { id = 3 }
        if rates == [200, 200, 80], id == 3 { id = 4 }
    }

    private mutating func reply(_ more: [UInt8] = []) {
        if output.count > 64 { output = [] }
        output += [Self.acknowledge] + more
    }

    private mutating func setDefaults() {
        (isReporting, isRemote, doublesMotion, resolution, rate) = (false, false, false, 2, 100)
        (waiting, output) = ([], [])
    }

    /// Status byte: mode, reporting, scaling and buttons.
    private var status: UInt8 {
        let keys = (buttons & 1) << 2 | (buttons & 2) >> 1 | (buttons & 4) >> 1
        return (isRemote ? 0x40 : 0) | (isReporting ? 0x20 : 0) | (doublesMotion ? 0x10 : 0) | keys
    }

    /// Puts the oldest movement into a packet; `always` even if there is none.
    private mutating func report(always: Bool = false) {
        guard always || !waiting.isEmpty else { return }
        var motion = waiting.first ?? Motion(buttons: buttons)
        let (dx, dy) = (Self.clamp(motion.dx, 255), Self.clamp(-motion.dy, 255))
        let wheel = id == 0 ? 0 : Self.clamp(motion.wheel, 7)
        let signs: UInt8 = (dx < 0 ? 0x10 : 0) | (dy < 0 ? 0x20 : 0)
        output += [0x08 | motion.buttons & 7 | signs, UInt8(truncatingIfNeeded: dx), UInt8(truncatingIfNeeded: dy)]
        if id == 3 { output.append(UInt8(truncatingIfNeeded: wheel)) }
        if id == 4 { output.append(UInt8(truncatingIfNeeded: wheel) & 0x0F | (motion.buttons & 0x18) << 1) }
        motion.dx -= dx
        motion.dy += dy
        motion.wheel = id == 0 ? 0 : motion.wheel - wheel
        let isDone = motion.dx == 0 && motion.dy == 0 && motion.wheel == 0
        if isDone, !waiting.isEmpty { waiting.removeFirst() } else if !waiting.isEmpty { waiting[0] = motion }
    }

    /// Whether a byte waits, now or once it is asked for.
    var hasOutput: Bool { !output.isEmpty || isReporting && !isRemote && !waiting.isEmpty }

    mutating func next() -> UInt8? {
        if output.isEmpty, isReporting, !isRemote { report() }
        guard !output.isEmpty else { return nil }
        last = output.removeFirst()
        return last
    }
}
