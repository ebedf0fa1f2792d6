import Foundation

/// Reads text screens exactly: cell by cell, against the VGA BIOS's own 8x16 font.
///
/// Recognition by shape guesses; this one knows, also in reverse video. It serves 80-column text modes
/// (720 or 640 pixels wide) and frame buffers that Linux or GRUB draw with the same font.
struct GlyphReader {
    private let characters: [[UInt8]: Character]

    /// Takes the font from Debian's VGA BIOS; nil if it is not where it is looked for.
    init?(rom path: String = "/usr/share/seabios/vgabios-stdvga.bin") {
        let letterA: [UInt8] = [0, 0, 0x10, 0x38, 0x6C, 0xC6, 0xC6, 0xFE, 0xC6, 0xC6, 0xC6, 0xC6, 0, 0, 0, 0]
        guard let rom = FileManager.default.contents(atPath: path), let found = rom.firstRange(of: letterA) else {
            return nil
        }
        let start = found.lowerBound - 0x41 * 16
        guard start >= 0, start + 256 * 16 <= rom.count else { return nil }
        var characters: [[UInt8]: Character] = [:]
        for code in 0x20..<0x7F {
            let glyph = [UInt8](rom[(start + code * 16)..<(start + code * 16 + 16)])
            characters[glyph] = Character(UnicodeScalar(UInt8(code)))
        }
        self.characters = characters
    }

    /// The screen's text, a line for each row of cells; what is no letter of the font becomes a space, and is counted.
    func text(of pixels: [UInt32], width: Int, height: Int) -> (text: String, unknown: Int) {
        let cell = width == 720 ? 9 : 8
        var lines: [String] = []
        var unknown = 0
        for top in stride(from: 0, through: height - 16, by: 16) {
            var line = ""
            for left in stride(from: 0, through: width - cell, by: cell) {
                let character = character(at: left, top, pixels, width)
                if character == nil { unknown += 1 }
                line.append(character ?? " ")
            }
            while line.last == " " { line.removeLast() }
            lines.append(line)
        }
        return (lines.joined(separator: "\n"), unknown)
    }

    private func character(at left: Int, _ top: Int, _ pixels: [UInt32], _ width: Int) -> Character? {
        let first = pixels[top * width + left]
        var glyph = [UInt8](repeating: 0, count: 16)
        for row in 0..<16 {
            for column in 0..<8 where pixels[(top + row) * width + left + column] != first {
                glyph[row] |= 0x80 >> UInt8(column)
            }
        }
        // The first pixel may be paper or ink.
        return characters[glyph] ?? characters[glyph.map { ~$0 }]
    }
}
