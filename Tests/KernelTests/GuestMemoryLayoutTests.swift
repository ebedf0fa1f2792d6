import Testing

@testable import Kernel

@Suite("Guest memory layout") struct GuestMemoryLayoutTests {
    private let mebibyte: UInt64 = 1 << 20
    private var layout: GuestMemoryLayout {
        GuestMemoryLayout(ramBytes: 256 << 20, romBytes: 256 << 10, videoBytes: 16 << 20)
    }

    private func piece(_ layout: GuestMemoryLayout, at address: UInt64) -> (backing: Backing, isWritable: Bool)? {
        guard let piece = layout.pieces.first(where: { $0.start <= address && address < $0.end }) else { return nil }
        return (piece.backing.advanced(by: address - piece.start), piece.isWritable)
    }

    @Test("At power-on the BIOS is below 1 MiB and below 4 GiB, and 0xC0000-0xDFFFF is nothing")
    func powerOn() {
        #expect(piece(layout, at: 0x9_F000)?.backing == .ram(0x9_F000))
        #expect(piece(layout, at: 0xA_0000) == nil)
        #expect(piece(layout, at: 0xC_0000) == nil)
        #expect(piece(layout, at: 0xF_FFF0)?.backing == .rom(0x3_FFF0))
        #expect(piece(layout, at: 0xF_FFF0)?.isWritable == false)
        #expect(piece(layout, at: 0xFFFF_FFF0)?.backing == .rom(0x3_FFF0))
        #expect(piece(layout, at: 0x10_0000)?.backing == .ram(0x10_0000))
        #expect(piece(layout, at: 0x1000_0000) == nil)
    }

    @Test("PAM gives each segment RAM or ROM, writable or not")
    func shadow() {
        var layout = layout
        layout.segments[12] = .init(readsRAM: true, writesRAM: true)
        layout.segments[0] = .init(readsRAM: true, writesRAM: false)
        layout.segments[8] = .init(readsRAM: false, writesRAM: true)
        #expect(piece(layout, at: 0xF_8000)?.backing == .ram(0xF_8000))
        #expect(piece(layout, at: 0xF_8000)?.isWritable == true)
        #expect(piece(layout, at: 0xC_0000)?.backing == .ram(0xC_0000))
        #expect(piece(layout, at: 0xC_0000)?.isWritable == false)
        #expect(piece(layout, at: 0xC_4000) == nil)
        #expect(piece(layout, at: 0xE_0000)?.backing == .rom(0x2_0000), "reads still reach the ROM")
        #expect(piece(layout, at: 0xE_0000)?.isWritable == false)
    }

    @Test("Memory beyond the PCI hole goes on at 4 GiB")
    func high() {
        let layout = GuestMemoryLayout(ramBytes: 6 << 30, romBytes: 256 << 10, videoBytes: 16 << 20)
        #expect(piece(layout, at: 0xDFFF_F000)?.backing == .ram(0xDFFF_F000))
        #expect(piece(layout, at: 0xE000_0000) == nil)
        #expect(piece(layout, at: 0x1_0000_0000)?.backing == .ram(0xE000_0000))
        #expect(piece(layout, at: (6 << 30) + 0x2000_0000) == nil)
    }

    @Test(
        "Video memory follows its BAR and never hides RAM, ROM or the interrupt controllers",
        arguments: [
            UInt64(0xFD00_0000), 0, 0xFF00_0000, 0xFEC0_0000, 0xFFFF_F000, 0xFFFF_FFFF_FFFF_F000, 0x1234,
        ])
    func video(address: UInt64) {
        var layout = layout
        layout.videoAddress = address
        #expect(piece(layout, at: 0)?.backing == .ram(0))
        #expect(piece(layout, at: 0xFFFF_FFF0)?.backing == .rom(0x3_FFF0))
        for chip: UInt64 in [0xFEC0_0000, 0xFED0_0000, 0xFEE0_0000] { #expect(piece(layout, at: chip) == nil) }
        if address == 0xFD00_0000 { #expect(piece(layout, at: address + 4096)?.backing == .video(4096)) }
    }

    @Test("Pieces are disjoint, in order and of whole pages, whatever the guest asks for")
    func disjoint() {
        var generator = SystemRandomNumberGenerator()
        var layout = layout
        for _ in 0..<500 {
            layout.videoAddress = Bool.random() ? nil : UInt64.random(in: 0 ... .max, using: &generator) & ~0xFFF
            layout.frames[.random(in: 0..<3)] = Bool.random() ? nil : UInt64.random(in: 0..<0x1_0000) << 12
            layout.isA20Open.toggle()
            layout.segments[Int.random(in: 0..<13)] = .init(readsRAM: .random(), writesRAM: .random())
            var last: UInt64 = 0
            for piece in layout.pieces {
                #expect(piece.start >= last && piece.bytes > 0 && piece.start & 0xFFF == 0 && piece.bytes & 0xFFF == 0)
                last = piece.end
            }
        }
    }

    @Test("A closed A20 gate keeps address bit 20 low")
    func a20() {
        var layout = layout
        #expect(layout.addressMask == .max)
        layout.isA20Open = false
        #expect(layout.addressMask & 0xFFFF_FFFF == 0xFFEF_FFFF)
    }
}
