import DeviceContract
import Display
import Machine
import TestSupport
import Testing
import VNC

/// Rows of `.` and `#` for black and any other colour.
private func art(_ screen: Screen, x: Int, y: Int, _ width: Int, _ height: Int) -> [String] {
    (0..<height).map { row in
        String((0..<width).map { screen.pixel(x + $0, y + row) == 0 ? "." : "#" })
    }
}

@Suite("Screen") struct ScreenTests {
    /// A text screen with a made-up font: character 1 has these eight rows, 0xC4 a line.
    private func textCard() -> (Card, Screen) {
        let card = Card()
        card.setText()
        let glyph: [UInt8] = [0x18, 0x24, 0x42, 0x81, 0xFF, 0x81, 0x81, 0x00]
        for (row, bits) in glyph.enumerated() { card.bytes[(1 * 32 + row) * 4 + 2] = bits }
        card.bytes[(0xC4 * 32 + 2) * 4 + 2] = 0xFF
        for cell in 0..<2000 { card.poke(0xB8000 + UInt64(cell) * 2, 0x0700, .word) }
        card.set(0x0E, 0x0F, at: 0x3D4)
        return (card, Screen(card.vga))
    }

    @Test("Text is drawn from plane 2's font; line graphics reach the ninth dot")
    func text() {
        let (card, screen) = textCard()
        card.poke(0xB8000, 0x0701_0701, .long)
        card.poke(0xB8004, 0x0FC4, .word)
        let update = screen.refresh(at: .zero)
        #expect(update.isResized && screen.width == 720 && screen.height == 400)
        #expect(update.changed == [Rectangle(x: 0, y: 0, width: 720, height: 400)])
        #expect(
            art(screen, x: 0, y: 0, 29, 8) == [
                "...##.......##...............",
                "..#..#.....#..#..............",
                ".#....#...#....#..#########..",
                "#......#.#......#............",
                "########.########............",
                "#......#.#......#............",
                "#......#.#......#............",
                ".............................",
            ])
        #expect(screen.pixel(3, 0) == 0x717171 && screen.pixel(18, 2) == 0xF3F3F3)
        #expect(screen.characters?[0].prefix(4) == [1, 1, 0xC4, 0])
    }

    @Test("Only what changed is reported")
    func changes() {
        let (card, screen) = textCard()
        _ = screen.refresh(at: .zero)
        #expect(screen.refresh(at: .zero).changed.isEmpty)
        card.poke(0xB8000 + (80 * 3 + 10) * 2, 0x0701, .word)
        #expect(screen.refresh(at: .zero).changed == [Rectangle(x: 64, y: 48, width: 64, height: 16)])
    }

    @Test("The cursor has the programmed lines and blinks every eight frames; characters every sixteen")
    func cursor() {
        let (card, screen) = textCard()
        card.set(0x0E, 0, at: 0x3D4)
        card.set(0x0F, 2, at: 0x3D4)
        card.poke(0xB8000, 0x8701, .word)
        _ = screen.refresh(at: .zero)
        #expect(art(screen, x: 18, y: 12, 9, 4) == [".........", "#########", "#########", "........."])
        #expect(screen.pixel(3, 0) != 0)
        let frame: UInt64 = 14_270_000
        let later = screen.refresh(at: Instant(nanoseconds: frame * 9))
        #expect(screen.pixel(18, 13) == 0 && screen.pixel(3, 0) != 0 && later.changed.count == 1)
        _ = screen.refresh(at: Instant(nanoseconds: frame * 17))
        #expect(screen.pixel(18, 13) != 0 && screen.pixel(3, 0) == 0)
    }

    @Test("Start address scrolls; line compare starts again at address zero")
    func split() {
        let (card, screen) = textCard()
        card.poke(0xB8000, 0x0701, .word)
        card.poke(0xB8000 + 160, 0x07C4, .word)
        card.set(0x0D, 80, at: 0x3D4)
        _ = screen.refresh(at: .zero)
        #expect(screen.pixel(0, 2) != 0 && screen.pixel(3, 0) == 0)
        card.set(0x18, 31, at: 0x3D4)
        card.set(0x07, 0x0F, at: 0x3D4)
        card.set(0x11, 0, at: 0x3D4)
        card.set(0x07, 0x0F, at: 0x3D4)
        card.set(0x09, 0x0F, at: 0x3D4)
        _ = screen.refresh(at: .zero)
        #expect(screen.pixel(3, 32) != 0 && screen.pixel(3, 0) == 0, "row 2 is memory's first")
    }

    @Test("Sixteen colours come from four planes through palette and DAC")
    func planar() {
        let card = Card()
        card.setPlanar()
        let screen = Screen(card.vga)
        card.set(2, 0x05, at: 0x3C4)
        card.poke(0xA0000 + 80, 0x81)
        _ = screen.refresh(at: .zero)
        #expect(screen.width == 640 && screen.height == 480)
        #expect(art(screen, x: 0, y: 1, 9, 1) == ["#......#."])
        #expect(screen.pixel(0, 1) == 0x515151, "colour 5: 20 of 63")
    }

    @Test("256 colours: chained and unchained memory, each pixel doubled both ways")
    func packed() {
        let card = Card()
        card.setPacked()
        let screen = Screen(card.vga)
        card.out(0x3C8, 200)
        for value: UInt64 in [63, 0, 0] { card.out(0x3C9, value) }
        card.poke(0xA0000 + 320 + 5, 200)
        _ = screen.refresh(at: .zero)
        #expect(screen.width == 640 && screen.height == 400)
        #expect((9..<13).map { screen.pixel($0, 2) } == [0, 0xFF0000, 0xFF0000, 0])
        #expect(screen.pixel(10, 3) == 0xFF0000 && screen.pixel(10, 4) == 0)
        card.set(4, 0x06, at: 0x3C4)
        card.set(0x14, 0, at: 0x3D4)
        card.set(0x17, 0xE3, at: 0x3D4)
        card.set(2, 0x02, at: 0x3C4)
        card.poke(0xA0000 + 80 * 2, 200)
        _ = screen.refresh(at: .zero)
        #expect(screen.pixel(2, 4) == 0xFF0000, "plane 1 is the second pixel")
    }

    @Test(
        "Linear modes of every depth",
        arguments: [(8, 0x07), (15, 0x7C1F), (16, 0xF81F), (24, 0xFF00FF), (32, 0xFF00FF)])
    func linear(bits: Int, pixel: Int) {
        let card = Card(memory: 4 << 20)
        card.out(0x3C2, 3)
        _ = card.input(0x3DA)
        card.out(0x3C0, 0x20)
        card.out(0x3C8, 7)
        for value: UInt64 in [63, 0, 63] { card.out(0x3C9, value) }
        let depth = UInt64(bits)
        for (index, value): (UInt64, UInt64) in [(1, 800), (2, 600), (3, depth), (4, 0x41)] { card.dispi(index, value) }
        let screen = Screen(card.vga)
        #expect(screen.refresh(at: .zero).isResized)
        #expect(screen.width == 800 && screen.height == 600)
        let size = (bits + 7) / 8
        for byte in 0..<size { card.bytes[(800 * 20 + 130) * size + byte] = UInt8((pixel >> (byte * 8)) & 0xFF) }
        #expect(screen.refresh(at: .zero).changed == [Rectangle(x: 128, y: 16, width: 64, height: 16)])
        #expect(screen.pixel(130, 20) == 0xFF00FF && screen.pixel(131, 20) == 0)
        card.dispi(9, 20)
        _ = screen.refresh(at: .zero)
        #expect(screen.pixel(130, 0) == 0xFF00FF, "y offset")
    }

    @Test("A blanked display is black and keeps its size")
    func blank() {
        let (card, screen) = textCard()
        card.poke(0xB8000, 0x0701, .word)
        _ = screen.refresh(at: .zero)
        _ = card.input(0x3DA)
        card.out(0x3C0, 0)
        _ = screen.refresh(at: .zero)
        #expect(screen.pixel(3, 0) == 0 && screen.width == 720)
    }

    @Test("Whatever the registers say, nothing outside video memory is touched")
    func random() {
        var random = Seeded(7)
        for _ in 0..<12 {
            let card = Card(memory: 1 << 18)
            let screen = Screen(card.vga)
            card.out(0x3C2, 1)
            for index in 0..<5 { card.set(UInt64(index), UInt64(random.next() & 0xFF), at: 0x3C4) }
            for index in 0..<9 { card.set(UInt64(index), UInt64(random.next() & 0xFF), at: 0x3CE) }
            card.set(0x11, 0, at: 0x3D4)
            for index in 0..<25 { card.set(UInt64(index), UInt64(random.next() & 0xFF), at: 0x3D4) }
            for index in 0..<21 { card.attribute(UInt64(index), UInt64(random.next() & 0xFF)) }
            if Bool.random(using: &random) {
                let depth = [4, 8, 15, 16, 24, 32].randomElement(using: &random) ?? 8
                let width = UInt64.random(in: 0...2600, using: &random)
                card.dispi(1, width)
                card.dispi(2, random.next() & 0x7FF)
                card.dispi(3, UInt64(depth))
                card.dispi(4, 0x41)
                for index: UInt64 in [5, 6, 8, 9] { card.dispi(index, random.next() & 0xFFFF) }
            }
            _ = card.input(0x3DA)
            card.out(0x3C0, 0x20)
            for _ in 0..<2 {
                let update = screen.refresh(at: Instant(nanoseconds: random.next() & 0xFFFF_FFFF))
                #expect(
                    update.changed.allSatisfy { $0.x + $0.width <= screen.width && $0.y + $0.height <= screen.height })
                card.poke(0xA0000 + random.next() % 0x20000, random.next(), .quad)
            }
        }
    }
}
