// The serial EEPROM behind the 82540EM: 64 words, read bit by bit or by EERD.
// Source: Intel 8254x Software Developer's Manual (317453-006), §5.3.1 and §5.6 (EEPROM map); 93C46 (Microwire, three bits
// of opcode and six of address).
// Modelled: READ. Not modelled: writing (opcodes are taken and ignored).
// Quirks: the checksum word makes all 64 words add up to 0xBABA.

/// The chip's pins, as EECD shows them, and what was shifted so far.
public struct MicrowireROM: Codable, Equatable, Sendable {
    /// EECD's bits.
    enum Pin {
        static let clock: UInt32 = 1, select: UInt32 = 2, dataIn: UInt32 = 4, dataOut: UInt32 = 8
        static let writable: UInt32 = 0x77
        static let request: UInt32 = 0x40, grant: UInt32 = 0x80, present: UInt32 = 0x100
    }
    let words: [UInt16]
    private var pins: UInt32 = 0
    private var shifted: UInt32 = 0
    private var count = 0
    /// The word that is shifted out, from bit 16 (a zero) on; nil: no READ is under way.
    private var output: UInt32?
    private var address = 0

    init(_ mac: [UInt8]) {
        var words = [UInt16](repeating: 0xFFFF, count: 64)
        for index in 0..<3 { words[index] = UInt16(mac[index * 2]) | UInt16(mac[index * 2 + 1]) << 8 }
        words[0x03] = 0x0000
        words[0x08] = 0xFFFF
        words[0x0A] = 0x4002
        (words[0x0B], words[0x0C], words[0x0D], words[0x0E]) = (0x001E, 0x8086, 0x100E, 0x8086)
        words[0x0F] = 0x3040
        words[0x3F] = 0xBABA &- words[..<0x3F].reduce(0, &+)
        self.words = words
    }

    /// EECD as it reads.
    var value: UInt32 {
        let out = output.map { $0 >> 16 & 1 != 0 } ?? true
        return pins | Pin.present | (pins & Pin.request != 0 ? Pin.grant : 0) | (out ? Pin.dataOut : 0)
    }

    mutating func write(_ new: UInt32) {
        let old = pins
        pins = new & Pin.writable
        guard pins & Pin.select != 0 else {
            (shifted, count, output) = (0, 0, nil)
            return
        }
        guard pins & Pin.clock != 0, old & Pin.clock == 0 else { return }
        if var word = output {
            // READ goes on with the next word.
            if count == 16 {
                address = (address + 1) & 63
                (word, count) = (UInt32(words[address]), 0)
            }
            output = word << 1
            count += 1
            return
        }
        shifted = shifted << 1 | (pins & Pin.dataIn != 0 ? 1 : 0)
        // A start bit comes first.
        guard shifted != 0 else { return }
        count += 1
        guard count == 9 else { return }
        if shifted >> 6 & 7 == 0b110 {
            address = Int(shifted & 63)
            output = UInt32(words[address])
        }
        count = 0
    }
}
