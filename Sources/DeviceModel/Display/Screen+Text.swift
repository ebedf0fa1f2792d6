// Pictures of text modes.
// Source: IBM VGA technical reference, alphanumeric modes; CRTC registers 0x0A-0x0F.
// Modelled: 8 and 9 dots, two fonts, blink, underline, line graphics, cursor, panning, split screen. Not modelled: skew.
// Quirks: each cell remembers what it showed; only cells that look different are drawn.

internal import Machine
internal import VNC

extension Screen {
    func drawText(_ mode: DisplayMode, _ now: Instant) {
        if takeFonts(mode) { isFull = true }
        let columns = mode.text.columns + 1
        if cells.count != mode.rows.count * columns {
            cells = [UInt64](repeating: .max, count: mode.rows.count * columns)
            isFull = true
        }
        let frames = Timing(vga.state).frame(at: now)
        let cursor = TextCursor(vga.state)
        let cursorShown = frames & 8 == 0
        let blinkShown = frames & 16 == 0
        for (index, row) in mode.rows.enumerated() {
            for column in 0..<columns {
                let address = vga.state.planeAddress(row.counter + column, scan: 0, mask: mode.addressMask)
                let planes = vga.memory.planes(address) & 0xFFFF
                var look = UInt64(planes)
                let counter = (row.counter + column) & 0xFFFF
                if cursorShown, counter == cursor.address { look |= cursor.look }
                if mode.text.blinks, planes & 0x8000 != 0, !blinkShown { look |= 1 << 17 }
                guard isFull || cells[index * columns + column] != look else { continue }
                cells[index * columns + column] = look
                drawCell(mode, row, column, look)
            }
        }
    }

    /// Copies both fonts out of plane 2; answers whether they changed.
    private func takeFonts(_ mode: DisplayMode) -> Bool {
        var changed = false
        for (number, start) in mode.text.fonts.enumerated() {
            for index in stride(from: 0, to: 8192, by: 4) {
                var word: UInt32 = 0
                for byte in 0..<4 {
                    let planes = vga.memory.planes((start + index + byte) & 0xFFFF)
                    word |= ((planes >> 16) & 0xFF) << UInt32(byte * 8)
                }
                if fonts.long(number * 8192 + index) != word {
                    fonts.setLong(number * 8192 + index, word)
                    changed = true
                }
            }
        }
        return changed
    }

    /// `look`: character, attribute, bits 16 and 20-29 for the cursor, bit 17 for blinked away.
    private func drawCell(_ mode: DisplayMode, _ row: ScanRow, _ column: Int, _ look: UInt64) {
        let (character, attribute) = (Int(look & 0xFF), Int(look >> 8) & 0xFF)
        let scale = mode.isDoubled ? 2 : 1
        let pan = row.isFixed ? 0 : mode.panning
        let left = (column * mode.text.cell - pan) * scale
        let foreground = mode.colours[attribute & 15]
        let background = mode.colours[attribute >> 4 & (mode.text.blinks ? 7 : 15)]
        let font = attribute & 8 != 0 ? 8192 : 0
        let joins = mode.text.joinsLines && character & 0xE0 == 0xC0
        for scan in row.first...row.last {
            var bits = UInt16(fonts.byte(font + character * 32 + scan)) << 1
            if joins { bits |= (bits >> 1) & 1 }
            if look & 1 << 17 != 0 { bits = 0 }
            if scan == mode.text.underline, attribute & 0x77 == 1 { bits = 0x1FF }
            if TextCursor.covers(scan, look) { bits = 0x1FF }
            let y = row.top + scan - row.first
            for dot in 0..<mode.text.cell {
                let colour = bits >> UInt16(8 - dot) & 1 != 0 ? foreground : background
                for copy in 0..<scale {
                    let x = left + dot * scale + copy
                    if x >= 0, x < width { frame.setLong((y * width + x) * 4, colour) }
                }
            }
        }
        let x = max(left, 0)
        mark(x, row.top, min(left + mode.text.cell * scale, width) - x, row.count)
    }

    /// The characters of a text mode in code page 437, row by row; nil in graphics modes.
    public var characters: [[UInt8]]? {
        let mode = DisplayMode(vga.state, size: (width, height), memoryBytes: vga.memory.count)
        guard mode.kind == .text else { return nil }
        var rows: [ScanRow] = []
        for row in mode.rows where row.first == 0 && rows.last?.counter != row.counter { rows.append(row) }
        return rows.map { row in
            (0..<mode.text.columns).map { column in
                let address = vga.state.planeAddress(row.counter + column, scan: 0, mask: mode.addressMask)
                return UInt8(truncatingIfNeeded: vga.memory.planes(address))
            }
        }
    }
}

/// The text cursor as it is programmed.
private struct TextCursor {
    var address: Int
    /// Its marks in a cell's look; none while it is off.
    var look: UInt64 = 0

    init(_ state: VGA.State) {
        address = Int(state.crtc[0x0E]) << 8 | Int(state.crtc[0x0F])
        let (top, bottom) = (UInt64(state.crtc[0x0A] & 31), UInt64(state.crtc[0x0B] & 31))
        if state.crtc[0x0A] & 0x20 == 0, top <= bottom { look = 1 << 16 | top << 20 | bottom << 25 }
    }

    /// Whether a cell's look has the cursor on scan line `scan`.
    static func covers(_ scan: Int, _ look: UInt64) -> Bool {
        look & 1 << 16 != 0 && UInt64(scan) >= look >> 20 & 31 && UInt64(scan) <= look >> 25 & 31
    }
}
