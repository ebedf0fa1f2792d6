// Where RAM, ROM and video memory lie in guest-physical memory: a value, painted layer by layer.
// Source: Intel 82441FX (290549-001) §3.2.18 (PAM), §4.1 (memory map); SeaBIOS's image ends at 4 GiB.
// Modelled: PAM segments, the PCI hole, the A20 gate. Not modelled: SMRAM.

internal import Ioreq

/// What backs a piece of guest-physical memory, and from which byte on.
enum Backing: Equatable, Sendable {
    case ram(UInt64), rom(UInt64), video(UInt64), frame(UInt64), table(UInt64)

    func advanced(by bytes: UInt64) -> Backing {
        switch self {
        case .ram(let offset): return .ram(offset + bytes)
        case .rom(let offset): return .rom(offset + bytes)
        case .video(let offset): return .video(offset + bytes)
        case .frame(let offset): return .frame(offset + bytes)
        case .table(let offset): return .table(offset + bytes)
        }
    }
}

/// A range with one backing.
struct Piece: Equatable, Sendable {
    var start: UInt64
    var bytes: UInt64
    var backing: Backing
    var isWritable: Bool
    var end: UInt64 { start + bytes }
}

struct GuestMemoryLayout: Equatable, Sendable {
    struct Segment: Equatable, Sendable {
        var readsRAM = false
        var writesRAM = false
    }

    /// Bytes of RAM below the PCI hole and above 4 GiB.
    let lowRAM: UInt64
    let highRAM: UInt64
    let romBytes: UInt64
    let videoBytes: UInt64
    /// RAM from 0 on without a hole, then the hypervisor's frames, then a table of frames: nothing of a PC.
    let isParavirtual: Bool
    var videoAddress: UInt64?
    var segments = [Segment](repeating: Segment(), count: 13)
    /// Closed, it keeps bit 20 of all that the CPU addresses low: odd megabytes are the even ones below them.
    var isA20Open = true
    var addressMask: UInt64 { isA20Open ? .max : ~0x10_0000 }
    /// Where the guest put frames of the hypervisor's, by their number: 0 shared info, then the grant table and special pages.
    var frames: [Int: UInt64] = [:]

    init(ramBytes: UInt64, romBytes: UInt64, videoBytes: UInt64, isParavirtual: Bool = false) {
        self.isParavirtual = isParavirtual
        lowRAM = isParavirtual ? ramBytes : min(ramBytes, GuestRAM.holeStart)
        highRAM = ramBytes - lowRAM
        (self.romBytes, self.videoBytes) = (romBytes, videoBytes)
        if isParavirtual { for index in 0..<SpecialFrame.end { frames[index] = ramBytes + UInt64(index) << 12 } }
    }

    /// Where a PV domain's table of frames lies: 8 bytes for each page of RAM.
    var tableAddress: UInt64 { lowRAM + UInt64(SpecialFrame.end) << 12 }

    /// Writes from here to 4 GiB reach nothing: firmware flash.
    static let romWindow: UInt64 = 0xFF00_0000
    static let biosWindow: Range<UInt64> = 0xE_0000..<0x10_0000
    static let shadowed: Range<UInt64> = 0xC_0000..<0x10_0000

    /// The PAM segment of an address in `shadowed`.
    static func segment(of address: UInt64) -> Int { min(Int((address - shadowed.lowerBound) >> 14), 12) }
    static func range(ofSegment index: Int) -> Range<UInt64> {
        let start = shadowed.lowerBound + UInt64(index) << 14
        return start..<(index == 12 ? shadowed.upperBound : start + 0x4000)
    }

    /// Disjoint pieces, sorted; what lies between them belongs to the bus.
    var pieces: [Piece] {
        var canvas = Canvas()
        if isParavirtual {
            canvas.paint(0, lowRAM, .ram(0), writable: true)
            paintFrames(&canvas)
            canvas.paint(tableAddress, lowRAM >> 9, .table(0), writable: false)
            return canvas.merged
        }
        if let videoAddress, videoAddress & 0xFFF == 0, videoAddress < 1 << 46 {
            canvas.paint(videoAddress, videoBytes, .video(0), writable: true)
        }
        canvas.paint(0, lowRAM, .ram(0), writable: true)
        canvas.paint(GuestRAM.highStart, highRAM, .ram(lowRAM), writable: true)
        canvas.clear(0xA_0000..<0x10_0000)
        for (index, segment) in segments.enumerated() { paint(segment, index, &canvas) }
        canvas.paint(GuestRAM.highStart - romBytes, romBytes, .rom(0), writable: false)
        // Where a CPU that is reset with the gate closed looks for it (82371SB, extended BIOS range).
        if !isA20Open { canvas.paint(GuestRAM.highStart - 0x10_0000 - romBytes, romBytes, .rom(0), writable: false) }
        // The I/O APIC, HPET and local APIC pages are the bus's whatever a BAR claims.
        canvas.clear(0xFEC0_0000..<0xFEF0_0000)
        paintFrames(&canvas)
        return canvas.merged
    }

    private func paintFrames(_ canvas: inout Canvas) {
        for (index, address) in frames.sorted(by: { $0.key < $1.key }) where address & 0xFFF == 0 && address < 1 << 46 {
            canvas.paint(address, 0x1000, .frame(UInt64(index) << 12), writable: true)
        }
    }

    private func paint(_ segment: Segment, _ index: Int, _ canvas: inout Canvas) {
        let range = Self.range(ofSegment: index)
        let bytes = range.upperBound - range.lowerBound
        if segment.readsRAM, range.upperBound <= lowRAM {
            canvas.paint(range.lowerBound, bytes, .ram(range.lowerBound), writable: segment.writesRAM)
        } else if Self.biosWindow.contains(range.lowerBound) {
            let fromEnd = Self.biosWindow.upperBound - range.lowerBound
            guard fromEnd <= romBytes else { return }
            canvas.paint(range.lowerBound, bytes, .rom(romBytes - fromEnd), writable: false)
        }
    }

    /// Disjoint pieces in order; painting covers what was there.
    private struct Canvas {
        var pieces: [Piece] = []

        mutating func clear(_ range: Range<UInt64>) {
            var kept: [Piece] = []
            for piece in pieces {
                if piece.end <= range.lowerBound || piece.start >= range.upperBound {
                    kept.append(piece)
                    continue
                }
                if piece.start < range.lowerBound {
                    var before = piece
                    before.bytes = range.lowerBound - piece.start
                    kept.append(before)
                }
                if piece.end > range.upperBound {
                    let skipped = range.upperBound - piece.start
                    kept.append(
                        Piece(
                            start: range.upperBound, bytes: piece.bytes - skipped,
                            backing: piece.backing.advanced(by: skipped), isWritable: piece.isWritable))
                }
            }
            pieces = kept
        }

        mutating func paint(_ start: UInt64, _ bytes: UInt64, _ backing: Backing, writable: Bool) {
            guard bytes > 0 else { return }
            clear(start..<(start + bytes))
            pieces.append(Piece(start: start, bytes: bytes, backing: backing, isWritable: writable))
        }

        /// Neighbours that go on where the other ends become one.
        var merged: [Piece] {
            var result: [Piece] = []
            for piece in pieces.sorted(by: { $0.start < $1.start }) {
                if let last = result.last, last.end == piece.start, last.isWritable == piece.isWritable,
                    last.backing.advanced(by: last.bytes) == piece.backing
                {
                    result[result.count - 1].bytes += piece.bytes
                } else {
                    result.append(piece)
                }
            }
            return result
        }
    }
}
