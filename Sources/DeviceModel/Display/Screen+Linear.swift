// Pictures of the VBE's linear modes, 8 to 32 bits per pixel.
// Source: Bochs VBE documentation.
// Modelled: every depth, panning, virtual width. Changes are found by comparing tiles of 64 pixels.
// Quirks: rows beyond the end of video memory keep what they showed.
internal import VNC

extension Screen {
    func drawLinear(_ mode: DisplayMode) {
        let bytes = (mode.bitsPerPixel + 7) / 8
        if bytes == 4 { return drawTrueColour(mode) }
        if shadow.count != width * height * bytes {
            shadow = HostBytes(width * height * bytes)
            isFull = true
        }
        for y in 0..<height {
            var x = 0
            while x < width {
                let count = min(Self.tile, width - x)
                let at = (y * width + x) * bytes
                let source = mode.start + y * mode.stride + x * bytes
                let changed = vga.memory.update(shadow, at: at, from: source, bytes: count * bytes)
                if changed || isFull {
                    convert(mode, at: at, to: (y * width + x) * 4, count: count)
                    mark(x, y, count, 1)
                }
                x += count
            }
        }
    }

    /// 32 bits per pixel: the frame buffer itself is the copy.
    private func drawTrueColour(_ mode: DisplayMode) {
        for y in 0..<height {
            var x = 0
            while x < width {
                let count = min(Self.tile, width - x)
                let source = mode.start + y * mode.stride + x * 4
                let changed = vga.memory.update(frame, at: (y * width + x) * 4, from: source, bytes: count * 4)
                if changed || isFull { mark(x, y, count, 1) }
                x += count
            }
        }
    }

    /// Pixels of the copy, of whatever depth, become 32-bit ones.
    private func convert(_ mode: DisplayMode, at: Int, to: Int, count: Int) {
        switch mode.bitsPerPixel {
        case 8:
            for index in 0..<count { frame.setLong(to + index * 4, mode.colours[Int(shadow.byte(at + index))]) }
        case 15:
            for index in 0..<count {
                let pixel = UInt32(shadow.word(at + index * 2))
                let (red, green, blue) = ((pixel >> 10) & 31, (pixel >> 5) & 31, pixel & 31)
                frame.setLong(to + index * 4, Self.wide5(red) << 16 | Self.wide5(green) << 8 | Self.wide5(blue))
            }
        case 16:
            for index in 0..<count {
                let pixel = UInt32(shadow.word(at + index * 2))
                let green = (pixel >> 5) & 63
                let wideGreen = green << 2 | green >> 4
                let value = Self.wide5(pixel >> 11) << 16 | wideGreen << 8 | Self.wide5(pixel & 31)
                frame.setLong(to + index * 4, value)
            }
        default:
            for index in 0..<count {
                let low = UInt32(shadow.word(at + index * 3))
                frame.setLong(to + index * 4, low | UInt32(shadow.byte(at + index * 3 + 2)) << 16)
            }
        }
    }

    @inline(__always) private static func wide5(_ value: UInt32) -> UInt32 { value << 3 | value >> 2 }
}
