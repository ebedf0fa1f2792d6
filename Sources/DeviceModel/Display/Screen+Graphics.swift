// Pictures of the VGA's own graphics modes.
// Source: IBM VGA technical reference, graphics controller shift modes and attribute controller.
// Modelled: planar (4 bits), interleaved (2 bits, CGA), packed (8 bits, chained or not). Not modelled: 1-bit shift loads.
// Quirks: lines are drawn and then compared with the previous frame; these modes are small.
internal import VNC

extension Screen {
    func drawGraphics(_ mode: DisplayMode) {
        guard memoryChanged(mode) || isFull else { return }
        var line = [UInt32](repeating: 0, count: width + 64)
        for row in mode.rows {
            let pan = row.isFixed ? 0 : mode.panning
            switch mode.kind {
            case .packed: packedLine(mode, row, pan, &line)
            case .interleaved: interleavedLine(mode, row, pan, &line)
            default: planarLine(mode, row, pan, &line)
            }
            put(line, row.top)
        }
    }

    /// Whether the planes differ from the last look; the VBE's large planes are always drawn.
    private func memoryChanged(_ mode: DisplayMode) -> Bool {
        let size = min(0x40000, vga.memory.count)
        guard mode.addressMask == 0xFFFF else { return true }
        if shadow.count != size {
            shadow = HostBytes(size)
            isFull = true
        }
        return vga.memory.update(shadow, at: 0, from: 0, bytes: size)
    }

    /// Copies a drawn line to the frame buffer where it differs.
    private func put(_ line: [UInt32], _ y: Int) {
        var x = 0
        while x < width {
            let count = min(Self.tile, width - x)
            let at = (y * width + x) * 4
            let differs = unsafe line.withUnsafeBytes { bytes in
                guard let base = bytes.baseAddress else { return false }
                return unsafe frame.take(base + x * 4, at: at, bytes: count * 4)
            }
            if differs || isFull { mark(x, y, count, 1) }
            x += count
        }
    }

    /// Draws a line of eight-dot characters; `pixel` picks pixel `index` of the four planes' bytes.
    @inline(__always) private func drawLine(
        _ mode: DisplayMode, _ row: ScanRow, _ pan: Int, _ line: inout [UInt32], pixels: UInt32,
        pixel: (_ planes: UInt32, _ index: UInt32) -> UInt32
    ) {
        let scale = (mode.isDoubled ? 2 : 1) * 8 / Int(pixels)
        var x = -pan * scale
        var counter = row.counter
        while x < width {
            let address = vga.state.planeAddress(counter, scan: row.first, mask: mode.addressMask)
            let planes = vga.memory.planes(address)
            for index in 0..<pixels {
                let colour = mode.colours[Int(pixel(planes, index))]
                for _ in 0..<scale {
                    if x >= 0, x < width { line[x] = colour }
                    x += 1
                }
            }
            counter += 1
        }
    }

    /// Four bits per pixel, one from each plane, the leftmost pixel in bit 7.
    private func planarLine(_ mode: DisplayMode, _ row: ScanRow, _ pan: Int, _ line: inout [UInt32]) {
        drawLine(mode, row, pan, &line, pixels: 8) { planes, index in
            let bits = planes >> (7 - index)
            return bits & 1 | (bits >> 7) & 2 | (bits >> 14) & 4 | (bits >> 21) & 8
        }
    }

    /// CGA's layout: two bits per pixel from planes 0 and 1 by turns, two more from planes 2 and 3.
    private func interleavedLine(_ mode: DisplayMode, _ row: ScanRow, _ pan: Int, _ line: inout [UInt32]) {
        drawLine(mode, row, pan, &line, pixels: 8) { planes, index in
            let byte = index < 4 ? planes : planes >> 8
            let shift = 6 - (index & 3) * 2
            return (byte >> shift) & 3 | ((byte >> (16 + shift)) & 3) << 2
        }
    }

    /// A byte per pixel, plane after plane; each is two dots wide.
    private func packedLine(_ mode: DisplayMode, _ row: ScanRow, _ pan: Int, _ line: inout [UInt32]) {
        drawLine(mode, row, pan, &line, pixels: 4) { planes, index in (planes >> (index * 8)) & 0xFF }
    }
}
