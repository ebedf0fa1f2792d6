// What the VGA's registers say is to be shown, worked out once a frame.
// Source: IBM VGA technical reference, CRT controller and attribute controller; Bochs VBE documentation.
// Modelled: text, planar, interleaved (CGA), 256-colour and VBE modes, split screen, panning, palettes.
// Not modelled: interlace, cursor skew, overscan borders. Quirks: 40-column and 320-pixel modes are shown doubled.

internal import Machine

/// One frame's parameters; equal values and equal memory give equal pictures.
struct DisplayMode: Equatable {
    enum Kind: Equatable { case blank, text, planar, interleaved, packed, linear }
    var kind: Kind
    var width: Int
    var height: Int
    /// 256 colours as 0x00RRGGBB. The first 16 are those of text and 16-colour modes unless `kind` is 256-colour.
    var colours: [UInt32]
    /// VBE modes.
    var bitsPerPixel = 0
    var start = 0
    var stride = 0
    /// Planar modes of the VBE reach beyond 64 KiB a plane.
    var addressMask = 0xFFFF
    /// Each dot is shown twice (40 columns, 320 pixels).
    var isDoubled = false
    /// Horizontal panning in dots.
    var panning = 0
    var rows: [ScanRow] = []
    var text = TextLayout()

    /// Whether a picture made in `other` mode only needs what changed in memory.
    func looksLike(_ other: DisplayMode) -> Bool {
        guard kind == .linear, other.kind == .linear else { return self == other }
        return colours == other.colours && bitsPerPixel == other.bitsPerPixel
    }

    /// What the registers ask for. While they ask for nothing, a picture of the size it had.
    init(_ state: VGA.State, size: (width: Int, height: Int), memoryBytes: Int) {
        kind = .blank
        (width, height) = size
        colours = []
        let isOff = state.sequencer[1] & 0x20 != 0 && !state.dispi.isEnabled
        guard state.attributeIndex & 0x20 != 0, !isOff else { return }
        if state.dispi.isEnabled, state.dispi.bitsPerPixel != 4 {
            setLinear(state)
        } else {
            setLegacy(state, memoryBytes: memoryBytes)
        }
    }

    private mutating func setLinear(_ state: VGA.State) {
        let dispi = state.dispi
        kind = .linear
        (width, height) = (Int(dispi.width), Int(dispi.height))
        (bitsPerPixel, start, stride) = (Int(dispi.bitsPerPixel), dispi.start, dispi.stride)
        if bitsPerPixel == 8 { colours = state.colours256 }
    }

    private mutating func setLegacy(_ state: VGA.State, memoryBytes: Int) {
        let isGraphics = state.graphics[6] & 1 != 0
        isDoubled = state.sequencer[1] & 0x08 != 0
        let is256 = isGraphics && state.graphics[5] & 0x40 != 0
        let cell = isGraphics || state.sequencer[1] & 1 != 0 ? 8 : 9
        let characters = Int(state.crtc[1]) + 1
        var newWidth = characters * cell * (isDoubled ? 2 : 1)
        var newHeight = state.linesShown
        if state.dispi.isEnabled {
            (newWidth, newHeight) = (Int(state.dispi.width), Int(state.dispi.height))
            addressMask = max(memoryBytes / 4, 1) - 1
        }
        guard newWidth >= 64, newHeight >= 64 else { return }
        (width, height) = (newWidth, newHeight)
        panning = Int(state.attributes[0x13] & 15)
        rows = ScanRow.rows(state, height: height)
        guard isGraphics else {
            kind = .text
            panning = cell == 9 ? (panning >= 8 ? 0 : panning + 1) : panning & 7
            colours = state.colours16
            text = TextLayout(state, columns: characters, cell: cell)
            return
        }
        kind = is256 ? .packed : state.graphics[5] & 0x20 != 0 ? .interleaved : .planar
        panning = is256 ? (panning & 7) / 2 : panning & 7
        colours = is256 ? state.colours256 : state.colours16
    }
}

/// What text modes add to a mode.
struct TextLayout: Equatable {
    var columns = 0
    /// Dots per character: 8 or 9.
    var cell = 8
    /// The ninth dot of characters 0xC0-0xDF repeats the eighth.
    var joinsLines = false
    /// Attribute bit 7 blinks instead of brightening the background.
    var blinks = false
    /// Scan line of the underline, beyond the character where there is none.
    var underline = 31
    /// Offsets of the two fonts in plane 2; attribute bit 3 takes the second.
    var fonts = [0, 0]

    init() {}
    init(_ state: VGA.State, columns: Int, cell: Int) {
        (self.columns, self.cell) = (columns, cell)
        joinsLines = state.attributes[0x10] & 0x04 != 0
        blinks = state.attributes[0x10] & 0x08 != 0
        underline = Int(state.crtc[0x14] & 31)
        let select = Int(state.sequencer[3])
        // Maps 0-3 lie 16 KiB apart, maps 4-7 8 KiB behind them (sequencer register 3).
        let first = (select & 3) << 14 | (select & 0x10) << 9
        let second = (select & 0x0C) << 12 | (select & 0x20) << 8
        fonts = [first, second]
    }
}

/// Scan lines that share a row of characters (or of pixels, `first == last`).
struct ScanRow: Equatable {
    /// First scan line on the screen.
    var top: Int
    /// Scan lines of the character cell that are shown.
    var first: Int
    var last: Int
    /// The CRTC's address counter at the row's beginning.
    var counter: Int
    /// It lies below the split and panning ends there.
    var isFixed = false
    var count: Int { last - first + 1 }

    /// All rows of a frame: start address, preset row scan, row offset, line compare.
    static func rows(_ state: VGA.State, height: Int) -> [ScanRow] {
        let crtc = state.crtc
        let isText = state.graphics[6] & 1 == 0
        let isVBE = state.dispi.isEnabled
        let cellHeight = isVBE ? 1 : Int(crtc[9] & 31) + 1
        let repeats = crtc[9] & 0x80 != 0 && !isVBE ? 2 : 1
        var counter = Int(crtc[0x0C]) << 8 | Int(crtc[0x0D]) + Int(crtc[8] >> 5) & 3
        var step = Int(crtc[0x13]) * 2
        var split = Int(crtc[0x18]) | Int(crtc[7] & 0x10) << 4 | Int(crtc[9] & 0x40) << 3
        if isVBE { (counter, step, split) = (state.dispi.start, state.dispi.stride, 1 << 20) }
        var rows: [ScanRow] = []
        var (line, scan, below) = (0, Int(crtc[8] & 31) % cellHeight, false)
        while line < height {
            var lines = (cellHeight - scan) * repeats
            if !below, split < line + lines { lines = max(split + 1 - line, 1) }
            lines = min(lines, height - line)
            append(&rows, top: line, scan: scan, lines: lines, repeats: repeats, counter: counter, isText: isText)
            if below, state.attributes[0x10] & 0x20 != 0 { fix(&rows, from: line) }
            line += lines
            (counter, scan) = (counter + step, 0)
            if !below, line > split { (below, counter) = (true, 0) }
        }
        return rows
    }

    /// Text rows stay whole (each scan line of a doubled row is one of its own); pixels become lines.
    private static func append(
        _ rows: inout [ScanRow], top: Int, scan: Int, lines: Int, repeats: Int, counter: Int, isText: Bool
    ) {
        if isText, repeats == 1 {
            rows.append(ScanRow(top: top, first: scan, last: scan + lines - 1, counter: counter))
            return
        }
        for line in 0..<lines {
            let now = scan + line / repeats
            rows.append(ScanRow(top: top + line, first: now, last: now, counter: counter))
        }
    }

    private static func fix(_ rows: inout [ScanRow], from top: Int) {
        for index in rows.indices.reversed() {
            guard rows[index].top >= top else { return }
            rows[index].isFixed = true
        }
    }
}

extension VGA.State {
    /// Scan lines that are shown (CRTC register 0x12 and its high bits).
    var linesShown: Int {
        let high = Int(crtc[7])
        return (Int(crtc[0x12]) | (high & 0x02) << 7 | (high & 0x40) << 3) + 1
    }

    /// A DAC entry as 0x00RRGGBB, behind the pixel mask.
    func colour(_ index: Int) -> UInt32 {
        let entry = (index & Int(dac.mask)) * 3
        func part(_ offset: Int) -> UInt32 {
            let value = UInt32(dac.palette[entry + offset])
            return dispi.hasWideDAC ? value : (value & 0x3F) << 2 | (value & 0x3F) >> 4
        }
        return part(0) << 16 | part(1) << 8 | part(2)
    }

    var colours256: [UInt32] { (0..<256).map(colour) }

    /// The sixteen colours behind plane enable, palette and colour select registers.
    var colours16: [UInt32] {
        (0..<16).map { value in
            var index = Int(attributes[value & Int(attributes[0x12] & 15)])
            let select = Int(attributes[0x14])
            if attributes[0x10] & 0x80 != 0 { index = index & 0x0F | (select & 3) << 4 }
            return colour(index & 0x3F | (select & 0x0C) << 4)
        }
    }

    /// The plane offset that an address counter means (CRTC registers 0x14 and 0x17).
    func planeAddress(_ counter: Int, scan: Int, mask: Int) -> Int {
        if dispi.isEnabled { return counter & mask }
        let mode = crtc[0x17]
        var address = counter & 0xFFFF
        if crtc[0x14] & 0x40 != 0 {
            address = address << 2 | (address >> 14) & 3
        } else if mode & 0x40 == 0 {
            address = address << 1 | (address >> (mode & 0x20 != 0 ? 15 : 13)) & 1
        }
        if mode & 1 == 0 { address = address & ~0x2000 | (scan & 1) << 13 }
        if mode & 2 == 0 { address = address & ~0x4000 | (scan & 2) << 13 }
        return address & mask
    }
}
