// The CPU's window on video memory at 0xA0000-0xBFFFF.
// Source: IBM VGA technical reference, graphics controller and sequencer; Bochs VBE for linear banks.
// Modelled: memory maps, chain 4, odd/even, plane mask, latches, write modes 0-3, read modes 0-1.
// Quirks: plane p's byte n is byte 4n + p of video memory; with linear modes the window is one 64 KiB bank.

extension VGA.State {
    private var writesOddEven: Bool { sequencer[4] & 0x04 == 0 }
    private var readsOddEven: Bool { graphics[5] & 0x10 != 0 }
    private var chainsFour: Bool { sequencer[4] & 0x08 != 0 }

    /// Offset in the mapped part of the window, nil outside it (graphics register 6).
    @inline(__always) private func windowOffset(_ offset: Int) -> Int? {
        guard miscellaneous & 0x02 != 0 else { return nil }
        switch (graphics[6] >> 2) & 3 {
        case 0: return offset
        case 1: return offset < 0x10000 ? offset : nil
        case 2: return offset >= 0x10000 && offset < 0x18000 ? offset - 0x10000 : nil
        default: return offset >= 0x18000 ? offset - 0x18000 : nil
        }
    }

    /// Number of the four-plane word that address `address` of a plane means.
    @inline(__always) private func planeWord(_ address: Int) -> Int {
        dispi.isEnabled ? Int(dispi.bank) << 16 + address & 0xFFFF : address & 0xFFFF
    }

    /// Byte offset in video memory that a linear mode's window shows, nil outside its 64 KiB.
    @inline(__always) func bankOffset(_ offset: Int) -> Int? {
        offset < 0x10000 ? Int(dispi.bank) << 16 + offset : nil
    }

    /// One byte seen by the CPU `offset` bytes above 0xA0000; loads the latches.
    mutating func readWindow(_ offset: Int, _ memory: VideoMemory) -> UInt8 {
        guard let address = windowOffset(offset) else { return 0xFF }
        var plane = Int(graphics[4] & 3)
        var cell = address
        if chainsFour {
            (plane, cell) = (address & 3, address & ~3)
        } else if readsOddEven {
            (plane, cell) = (plane & 2 | address & 1, address & ~1)
        }
        latches = memory.planes(planeWord(cell))
        if graphics[5] & 0x08 != 0 { return compareColours() }
        return UInt8(truncatingIfNeeded: latches >> UInt32(plane * 8))
    }

    /// Read mode 1: a one for each pixel whose colour matches in the planes that count.
    private func compareColours() -> UInt8 {
        let differing = (latches ^ Self.spread(graphics[2])) & Self.spread(graphics[7])
        let folded = differing | differing >> 16
        return ~UInt8(truncatingIfNeeded: folded | folded >> 8)
    }

    mutating func writeWindow(_ value: UInt8, _ offset: Int, _ memory: VideoMemory) {
        guard let address = windowOffset(offset) else { return }
        var planes = sequencer[2]
        var cell = address
        if chainsFour {
            planes &= 1 << UInt8(address & 3)
            cell = address & ~3
        } else if writesOddEven {
            planes &= address & 1 != 0 ? 0b1010 : 0b0101
            cell = address & ~1
        }
        let mask = Self.spread(planes)
        let word = planeWord(cell)
        memory.setPlanes(word, memory.planes(word) & ~mask | written(value) & mask)
    }

    /// What the graphics controller makes of a written byte, for all four planes.
    private func written(_ value: UInt8) -> UInt32 {
        let rotation = graphics[3] & 7
        let rotated = value >> rotation | value << ((8 &- rotation) & 7)
        let mode = graphics[5] & 3
        if mode == 1 { return latches }
        var bitMask = graphics[8]
        var data: UInt32
        switch mode {
        case 0:
            let fromSetReset = Self.spread(graphics[1])
            data = UInt32(rotated) &* 0x0101_0101
            data = data & ~fromSetReset | Self.spread(graphics[0]) & fromSetReset
        case 2: data = Self.spread(value & 0x0F)
        default:
            data = Self.spread(graphics[0])
            bitMask &= rotated
        }
        switch (graphics[3] >> 3) & 3 {
        case 1: data &= latches
        case 2: data |= latches
        case 3: data ^= latches
        default: break
        }
        let mask = UInt32(bitMask) &* 0x0101_0101
        return data & mask | latches & ~mask
    }

    /// 0xFF in byte p for each set bit p of `bits`.
    @inline(__always) static func spread(_ bits: UInt8) -> UInt32 {
        let wide = UInt32(bits & 0x0F)
        let placed = wide & 1 | (wide & 2) << 7 | (wide & 4) << 14 | (wide & 8) << 21
        return placed &* 0xFF
    }
}
