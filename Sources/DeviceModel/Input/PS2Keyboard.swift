// A PS/2 keyboard of 101 to 104 keys.
// Source: IBM PS/2 Technical Reference, "Keyboard (101/102-key)", commands and scan code sets.
// Modelled: sets 1 to 3, lights, identify, resend, enable, defaults, reset. Not modelled: typematic repeat, per-key set 3 modes.
// Quirks: the host's key repeat is the repeat; when the buffer is full, a key's codes are dropped as a whole.

/// What the keyboard knows, as one value; bytes leave it through `output`.
public struct PS2Keyboard: Codable, Equatable, Sendable {
    static let capacity = 128
    static let acknowledge: UInt8 = 0xFA
    static let resend: UInt8 = 0xFE

    /// Bytes on their way to the controller.
    var output: [UInt8] = []
    /// The last byte sent, for Resend.
    var last: UInt8 = 0
    var isScanning = true
    var scanSet: UInt8 = 2
    /// Bit 0 Scroll Lock, bit 1 Num Lock, bit 2 Caps Lock.
    public internal(set) var lights: UInt8 = 0
    var typematic: UInt8 = 0x2B
    /// A command that waits for its argument.
    var pending: UInt8?

    /// A key went down or up.
    mutating func key(_ key: UInt8, isDown: Bool) {
        guard isScanning else { return }
        let bytes = ScanCodes.bytes(key, isDown: isDown, set: scanSet)
        if output.count + bytes.count <= Self.capacity { output += bytes }
    }

    /// The controller sent a byte.
    mutating func receive(_ byte: UInt8) {
        if let command = pending, byte < 0xED {
            pending = nil
            return argument(byte, of: command)
        }
        pending = nil
        switch byte {
        case 0xED, 0xF3: expect(byte)
        case 0xEE: reply([0xEE])
        case 0xF0:
            output = []
            expect(byte)
        case 0xF2: reply([Self.acknowledge, 0xAB, 0x83])
        case 0xF4:
            output = []
            isScanning = true
            reply([Self.acknowledge])
        case 0xF5, 0xF6:
            setDefaults()
            isScanning = byte == 0xF6
            reply([Self.acknowledge])
        case 0xF7, 0xF8, 0xF9, 0xFA: reply([Self.acknowledge])
        case 0xFB, 0xFC, 0xFD: expect(byte)
        case 0xFE: output.insert(last, at: 0)
        case 0xFF:
            self = PS2Keyboard()
            reply([Self.acknowledge, 0xAA])
        default: reply([Self.resend])
        }
    }

    private mutating func argument(_ byte: UInt8, of command: UInt8) {
        switch command {
        case 0xED: lights = byte & 7
        case 0xF0 where byte == 0: return reply([Self.acknowledge, scanSet])
        case 0xF0 where byte <= 3: scanSet = byte
        case 0xF0: return reply([Self.resend])
        case 0xF3: typematic = byte & 0x7F
        default: break
        }
        reply([Self.acknowledge])
    }

    private mutating func expect(_ command: UInt8) {
        pending = command
        reply([Self.acknowledge])
    }

    private mutating func setDefaults() {
        output = []
        (scanSet, typematic) = (2, 0x2B)
    }

    /// Answers go even when keys fill the buffer.
    private mutating func reply(_ bytes: [UInt8]) {
        if output.count > Self.capacity * 2 { output = [] }
        output += bytes
    }

    /// The next byte for the controller.
    mutating func next() -> UInt8? {
        guard !output.isEmpty else { return nil }
        last = output.removeFirst()
        return last
    }
}
