// What the virtual monitor says about itself.
// Source: VESA Enhanced EDID Standard, release A rev. 2 (EDID 1.4), section 3.
// Modelled: one base block, digital input, preferred timing, established and standard timings, name, ranges.
// Not modelled: extension blocks. Quirks: none.

/// A 128-byte EDID 1.4 base block.
public enum EDID {
    /// A monitor that prefers 1024x768 at 60 Hz and takes what the VGA can show.
    public static let standard = block(name: "Apus display")

    /// The block of a monitor called `name` (13 characters at most).
    public static func block(name: String) -> [UInt8] {
        var block: [UInt8] = [0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0]  // 3.3: header
        block += manufacturer("APU") + [0x01, 0x00, 1, 0, 0, 0]  // 3.4: product, serial number
        block += [0xFF, 34, 1, 4]  // 3.4: model year 2024; 3.5: EDID 1.4
        block += [0xA5, 34, 19, 120, 0x06]  // 3.6: digital, 8 bits a colour; 34 x 19 cm; gamma 2.2; sRGB, preferred
        block += [0xEE, 0x91, 0xA3, 0x54, 0x4C, 0x99, 0x26, 0x0F, 0x50, 0x54]  // 3.7: sRGB primaries
        block += [0x21, 0x08, 0]  // 3.8: 640x480, 800x600, 1024x768 at 60 Hz
        block += standardTimings
        block += preferredTiming
        block += descriptor(0xFD, [50, 85, 30, 110, 21, 1, 0x0A])  // ranges: 50-85 Hz, 30-110 kHz, 210 MHz
        block += descriptor(0xFC, Array(name.utf8.prefix(13)) + [0x0A])
        block += descriptor(0x10, [])
        block.append(0)  // no extension blocks
        block.append(0 &- block.reduce(0, &+))  // 3.11: all bytes add up to zero
        return block
    }

    /// Three letters of five bits (3.4.1).
    private static func manufacturer(_ letters: String) -> [UInt8] {
        let code = letters.utf8.reduce(UInt16(0)) { ($0 << 5) | UInt16($1 &- 64) }
        return [UInt8(code >> 8), UInt8(code & 0xFF)]
    }

    /// 3.9: width / 8 - 31, and aspect ratio (0 = 16:10, 1 = 4:3, 2 = 5:4, 3 = 16:9) with rate - 60.
    private static var standardTimings: [UInt8] {
        let modes: [(width: Int, ratio: UInt8)] = [
            (1280, 2), (1280, 0), (1440, 0), (1600, 1), (1680, 0), (1920, 3), (1920, 0), (1152, 1),
        ]
        return modes.flatMap { [UInt8($0.width / 8 - 31), $0.ratio << 6] }
    }

    /// 3.10.2: 1024x768 at 60 Hz (VESA DMT id 10h), 65 MHz, both syncs negative.
    private static var preferredTiming: [UInt8] {
        let (width, hBlank, hFront, hSync) = (1024, 320, 24, 136)
        let (height, vBlank, vFront, vSync) = (768, 38, 3, 6)
        let values = [
            6500 & 0xFF, 6500 >> 8, width & 0xFF, hBlank & 0xFF, (width >> 8) << 4 | hBlank >> 8,
            height & 0xFF, vBlank & 0xFF, (height >> 8) << 4 | vBlank >> 8, hFront & 0xFF, hSync & 0xFF,
            (vFront & 15) << 4 | vSync & 15, 0, 340 & 0xFF, 190, (340 >> 8) << 4, 0, 0, 0x18,
        ]
        return values.map { UInt8(truncatingIfNeeded: $0) }
    }

    /// 3.10.3: a display descriptor of 18 bytes, padded with spaces after its end.
    private static func descriptor(_ tag: UInt8, _ data: [UInt8]) -> [UInt8] {
        let head: [UInt8] = [0, 0, 0, tag, 0]
        let kept = Array(data.prefix(13))
        return head + kept + [UInt8](repeating: tag == 0x10 ? 0 : 0x20, count: 13 - kept.count)
    }
}
