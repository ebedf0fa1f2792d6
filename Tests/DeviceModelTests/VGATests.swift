import DeviceContract
import Display
import Machine
import Testing

/// A VGA with memory of its own, driven as a guest drives it. The memory stays: a screen may outlive the card.
final class Card {
    let bytes: UnsafeMutableRawBufferPointer
    let vga: VGA
    let slot: Slot
    var now = Instant.zero

    init(memory: Int = 1 << 20) {
        bytes = .allocate(byteCount: memory, alignment: 4096)
        bytes.initializeMemory(as: UInt8.self, repeating: 0)
        vga = VGA(memory: bytes)
        slot = Slot("vga", vga)
    }

    func out(_ port: UInt64, _ value: UInt64, _ width: Width = .byte) {
        slot.write(value, Access(region: 0, offset: port - 0x3B0, width: width), at: now)
    }
    func input(_ port: UInt64) -> UInt64 { slot.read(Access(region: 0, offset: port - 0x3B0), at: now) }
    func set(_ index: UInt64, _ value: UInt64, at port: UInt64) { out(port, value << 8 | index, .word) }
    func setAll(_ values: [UInt64], at port: UInt64) {
        for (index, value) in values.enumerated() { set(UInt64(index), value, at: port) }
    }
    func attribute(_ index: UInt64, _ value: UInt64) {
        _ = input(0x3DA)
        out(0x3C0, index)
        out(0x3C0, value)
    }
    func poke(_ address: UInt64, _ value: UInt64, _ width: Width = .byte) {
        slot.write(value, Access(region: 1, offset: address - 0xA0000, width: width), at: now)
    }
    func peek(_ address: UInt64, _ width: Width = .byte) -> UInt64 {
        slot.read(Access(region: 1, offset: address - 0xA0000, width: width), at: now)
    }
    func dispi(_ index: UInt64, _ value: UInt64) {
        slot.write(index, Access(region: 2, offset: 0, width: .word), at: now)
        slot.write(value, Access(region: 2, offset: 1, width: .word), at: now)
    }
    func dispi(_ index: UInt64) -> UInt64 {
        slot.write(index, Access(region: 2, offset: 0, width: .word), at: now)
        return slot.read(Access(region: 2, offset: 1, width: .word), at: now)
    }

    /// Mode 3 as the VGA BIOS tables have it (IBM VGA technical reference, table of register values).
    func setText() {
        out(0x3C2, 0x67)
        setAll([0x03, 0x00, 0x03, 0x00, 0x02], at: 0x3C4)
        set(0x11, 0, at: 0x3D4)
        let crtc: [UInt64] = [
            0x5F, 0x4F, 0x50, 0x82, 0x55, 0x81, 0xBF, 0x1F, 0x00, 0x4F, 0x0D, 0x0E, 0x00, 0x00, 0x00, 0x00, 0x9C,
            0x8E, 0x8F, 0x28, 0x1F, 0x96, 0xB9, 0xA3, 0xFF,
        ]
        setAll(crtc, at: 0x3D4)
        setAll([0, 0, 0, 0, 0, 0x10, 0x0E, 0, 0xFF], at: 0x3CE)
        for index in 0..<16 { attribute(UInt64(index), UInt64(index)) }
        let modes: [UInt64] = [0x0C, 0x00, 0x0F, 0x08, 0x00]
        for (index, value) in modes.enumerated() { attribute(UInt64(0x10 + index), value) }
        _ = input(0x3DA)
        out(0x3C0, 0x20)
        out(0x3C8, 0)
        for index in 0..<16 { for _ in 0..<3 { out(0x3C9, UInt64(index * 4)) } }
    }

    /// 640x480 with sixteen colours (mode 12h).
    func setPlanar() {
        setText()
        out(0x3C2, 0xE3)
        setAll([0x03, 0x01, 0x0F, 0x00, 0x06], at: 0x3C4)
        set(0x11, 0, at: 0x3D4)
        let crtc: [UInt64] = [
            0x5F, 0x4F, 0x50, 0x82, 0x54, 0x80, 0x0B, 0x3E, 0x00, 0x40, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xEA,
            0x8C, 0xDF, 0x28, 0x00, 0xE7, 0x04, 0xE3, 0xFF,
        ]
        setAll(crtc, at: 0x3D4)
        setAll([0, 0, 0, 0, 0, 0, 0x05, 0x0F, 0xFF], at: 0x3CE)
        attribute(0x10, 0x01)
        attribute(0x13, 0)
        out(0x3C0, 0x20)
    }

    /// 320x200 with 256 colours (mode 13h).
    func setPacked() {
        setPlanar()
        out(0x3C2, 0x63)
        set(4, 0x0E, at: 0x3C4)
        set(0x11, 0, at: 0x3D4)
        let crtc: [(UInt64, UInt64)] = [
            (0x06, 0xBF), (0x07, 0x1F), (0x09, 0x41), (0x10, 0x9C), (0x11, 0x8E), (0x12, 0x8F), (0x14, 0x40),
            (0x15, 0x96), (0x16, 0xB9), (0x17, 0xA3),
        ]
        for (index, value) in crtc { set(index, value, at: 0x3D4) }
        set(5, 0x40, at: 0x3CE)
        attribute(0x10, 0x41)
        _ = input(0x3DA)
        out(0x3C0, 0x20)
    }
}

@Suite("VGA registers") struct VGATests {
    @Test func contract() throws {
        var cards: [Card] = []
        try expectContract {
            let card = Card()
            cards.append(card)
            return card.vga
        }
    }

    @Test("Index and data registers keep the bits they have")
    func masks() {
        let card = Card()
        card.out(0x3C2, 0xFF)
        #expect(card.input(0x3CC) == 0xEF)
        card.set(2, 0xFF, at: 0x3C4)
        #expect(card.input(0x3C5) == 0x0F)
        card.set(5, 0xFF, at: 0x3CE)
        #expect(card.input(0x3CF) == 0x7B)
    }

    @Test("The attribute controller takes index and data by turns; input status 1 starts again")
    func flipFlop() {
        let card = Card()
        card.out(0x3C2, 1)
        card.attribute(0x11, 0x2A)
        card.out(0x3C0, 0x11)
        #expect(card.input(0x3C1) == 0x2A)
        _ = card.input(0x3DA)
        card.out(0x3C0, 0x31)
        #expect(card.input(0x3C0) == 0x2A, "while data is due, the port shows data")
        _ = card.input(0x3DA)
        #expect(card.input(0x3C0) == 0x31)
    }

    @Test("The CRTC answers at the colour or the monochrome ports, not both")
    func sides() {
        let card = Card()
        card.out(0x3C2, 1)
        card.set(0x0E, 0x12, at: 0x3D4)
        #expect(card.input(0x3B5) == 0xFF)
        card.out(0x3C2, 0)
        #expect(card.input(0x3B5) == 0x12)
    }

    @Test("Bit 7 of CRTC register 0x11 locks registers 0 to 7 but line compare")
    func lock() {
        let card = Card()
        card.out(0x3C2, 1)
        card.set(0x11, 0x80, at: 0x3D4)
        card.set(0, 0x55, at: 0x3D4)
        #expect(card.input(0x3D5) == 0)
        card.set(7, 0xFF, at: 0x3D4)
        #expect(card.input(0x3D5) == 0x10)
    }

    @Test("The DAC steps through red, green, blue; six bits unless the VBE says eight")
    func dac() {
        let card = Card()
        card.out(0x3C8, 7)
        for value: UInt64 in [0xFF, 1, 2, 3, 4, 5] { card.out(0x3C9, value) }
        card.out(0x3C7, 7)
        #expect((0..<6).map { _ in card.input(0x3C9) } == [0x3F, 1, 2, 3, 4, 5])
        #expect(card.input(0x3C7) == 3)
        card.dispi(4, 0x20)
        card.out(0x3C8, 7)
        card.out(0x3C9, 0xFE)
        card.out(0x3C7, 7)
        #expect(card.input(0x3C9) == 0xFE)
    }

    @Test("Retrace follows guest time: 70 frames a second in text mode")
    func retrace() {
        let card = Card()
        card.setText()
        var edges = 0
        var last: UInt64 = 0
        for microseconds in 0..<100_000 {
            card.now = Instant(nanoseconds: UInt64(microseconds) * 1_000)
            let now = card.input(0x3DA) & 8
            if now != 0, last == 0 { edges += 1 }
            last = now
        }
        #expect(edges == 7)
    }
}

@Suite("VGA memory") struct VGAMemoryTests {
    @Test("Text: even addresses are characters in plane 0, odd ones attributes in plane 1")
    func oddEven() {
        let card = Card()
        card.setText()
        card.poke(0xB8000, 0x1F41, .word)
        card.poke(0xB8002, 0x2E42_1F41, .long)
        #expect(card.peek(0xB8000, .word) == 0x1F41)
        #expect(card.bytes[0] == 0x41 && card.bytes[1] == 0x1F, "cell 0 of planes 0 and 1")
        #expect(card.bytes[4 * 2] == 0x41 && card.bytes[4 * 4] == 0x42)
        #expect(card.peek(0xA0000) == 0xFF, "only 32 KiB at 0xB8000 are mapped")
    }

    @Test("The plane mask says where a byte goes; reads choose one plane")
    func planes() {
        let card = Card()
        card.setPlanar()
        card.set(2, 0x05, at: 0x3C4)
        card.poke(0xA0010, 0xA5)
        #expect((0..<4).map { card.bytes[0x40 + $0] } == [0xA5, 0, 0xA5, 0])
        card.set(4, 2, at: 0x3CE)
        #expect(card.peek(0xA0010) == 0xA5)
        card.set(4, 1, at: 0x3CE)
        #expect(card.peek(0xA0010) == 0)
    }

    @Test("Write mode 0: rotate, set/reset, logic function, bit mask")
    func writeMode0() {
        let card = Card()
        card.setPlanar()
        card.poke(0xA0000, 0xF0)
        _ = card.peek(0xA0000)
        card.set(3, 0x18 | 4, at: 0x3CE)  // rotate by 4, then exclusive or
        card.set(1, 0x01, at: 0x3CE)  // plane 0 from set/reset,
        card.set(0, 0x01, at: 0x3CE)  // which is one
        card.set(8, 0x3C, at: 0x3CE)
        card.poke(0xA0000, 0x0F)
        // Plane 0: (FF ^ F0) & 3C | F0 & C3 = CC. Others: (F0 ^ F0) & 3C | F0 & C3 = C0.
        #expect((0..<4).map { card.bytes[$0] } == [0xCC, 0xC0, 0xC0, 0xC0])
    }

    @Test("Write mode 1 copies the latches, mode 2 spreads a colour, mode 3 uses data as mask")
    func otherWriteModes() {
        let card = Card()
        card.setPlanar()
        card.set(2, 0x02, at: 0x3C4)
        card.poke(0xA0000, 0x77)
        card.set(2, 0x0F, at: 0x3C4)
        _ = card.peek(0xA0000)
        card.set(5, 1, at: 0x3CE)
        card.poke(0xA0001, 0)
        #expect((4..<8).map { card.bytes[$0] } == [0, 0x77, 0, 0])
        card.set(5, 2, at: 0x3CE)
        card.poke(0xA0002, 0x0A)
        #expect((8..<12).map { card.bytes[$0] } == [0, 0xFF, 0, 0xFF])
        _ = card.peek(0xA0100)
        card.set(5, 3, at: 0x3CE)
        card.set(0, 0x04, at: 0x3CE)
        card.poke(0xA0003, 0x81)
        #expect((12..<16).map { card.bytes[$0] } == [0, 0, 0x81, 0])
    }

    @Test("Read mode 1 compares colours in the planes that count")
    func compare() {
        let card = Card()
        card.setPlanar()
        card.set(2, 0x01, at: 0x3C4)
        card.poke(0xA0000, 0xF0)
        card.set(2, 0x02, at: 0x3C4)
        card.poke(0xA0000, 0xCC)
        card.set(5, 0x08, at: 0x3CE)
        card.set(2, 0x03, at: 0x3CE)
        #expect(card.peek(0xA0000) == 0xC0, "colour 3: planes 0 and 1 are set")
        card.set(7, 0x01, at: 0x3CE)
        #expect(card.peek(0xA0000) == 0xF0, "only plane 0 counts")
    }

    @Test("Chain 4 puts neighbours into neighbouring planes")
    func chain4() {
        let card = Card()
        card.setPacked()
        card.poke(0xA0000, 0x0403_0201, .long)
        #expect((0..<4).map { card.bytes[$0] } == [1, 2, 3, 4])
        #expect(card.peek(0xA0002) == 3)
    }
}

@Suite("Bochs VBE") struct BochsTests {
    @Test("Identifier, memory and limits") func identity() {
        let card = Card(memory: 16 << 20)
        #expect(card.dispi(0) == 0xB0C5)
        card.dispi(0, 0xB0C0)
        #expect(card.dispi(0) == 0xB0C0)
        #expect(card.dispi(0xA) == 256)
        card.dispi(4, 2)
        #expect([card.dispi(1), card.dispi(2), card.dispi(3)] == [2560, 1600, 32])
    }

    @Test("Turning a mode on sets its virtual size and clears its memory unless asked not to")
    func enable() {
        let card = Card(memory: 16 << 20)
        card.bytes[100] = 7
        for (index, value): (UInt64, UInt64) in [(1, 1024), (2, 768), (3, 32), (4, 0xC1)] { card.dispi(index, value) }
        #expect(card.bytes[100] == 7)
        #expect(card.dispi(6) == 1024)
        #expect(card.dispi(7) == 4096, "16 MiB / 4096 bytes")
        card.dispi(4, 0)
        card.dispi(4, 0x41)
        #expect(card.bytes[100] == 0)
        card.dispi(6, 2048)
        #expect(card.dispi(6) == 2048)
        #expect(card.dispi(7) == 2048)
    }

    @Test("The bank register moves the window through video memory")
    func banks() {
        let card = Card()
        card.out(0x3C2, 0x03)
        for (index, value): (UInt64, UInt64) in [(1, 640), (2, 480), (3, 8), (4, 1), (5, 3)] {
            card.dispi(index, value)
        }
        card.poke(0xA0004, 0x1122_3344, .long)
        #expect(card.bytes[0x30004] == 0x44 && card.bytes[0x30007] == 0x11)
        card.dispi(5, 0xFFFF)
        #expect(card.peek(0xA0000) == 0xFF, "beyond video memory")
        card.poke(0xA0000, 1)
    }

    @Test("The memory-mapped window shows EDID, VGA ports, VBE registers and byte order")
    func window() {
        let card = Card()
        func read(_ offset: UInt64, _ width: Width) -> UInt64 {
            card.slot.read(Access(region: 3, offset: offset, width: width), at: .zero)
        }
        #expect(read(0, .long) == 0xFFFF_FF00 && read(4, .long) == 0x00FF_FFFF)
        let sum = (0..<128).reduce(0) { $0 + read(UInt64($1), .byte) }
        #expect(sum & 0xFF == 0, "EDID checksum")
        #expect(read(18, .word) == 0x0401, "EDID 1.4")
        #expect(read(54, .word) == 6500 && read(56, .byte) == 0 && read(58, .byte) == 0x41, "1024 wide, 65 MHz")
        #expect(read(0x500, .word) == 0xB0C5)
        #expect(read(0x600, .long) == 8 && read(0x604, .long) == 0x1E1E_1E1E)
        card.slot.write(0x67, Access(region: 3, offset: 0x402), at: .zero)
        #expect(read(0x40C, .byte) == 0x67)
    }

    @Test("PCI identity: 1234:1111, video memory at BAR 0, registers at BAR 2")
    func pci() {
        let identity = Card(memory: 16 << 20).vga.identity
        #expect(identity.vendor == 0x1234 && identity.device == 0x1111 && identity.classCode == 0x03_0000)
        #expect(identity.bars.map(\.index) == [0, 2] && identity.bars.map(\.bytes) == [16 << 20, 4096])
        #expect(identity.bars[0].isPrefetchable && !identity.bars[1].isPrefetchable)
    }
}
