// The geometries of floppy disks, told by the image's size.
// Source: ECMA-125, ECMA-147; the media bytes of the FAT BPB list the same formats.
// Modelled: 5.25" and 3.5" formats of the PC. Not modelled: formats with other than 512 bytes a sector.
// Quirk: none.

/// How an image's bytes lie on a floppy disk.
public struct FloppyFormat: Equatable, Sendable, Codable {
    /// What the BIOS setup calls the drive (CMOS byte 0x10).
    public enum DriveType: UInt8, Sendable, Codable {
        case none = 0, k360 = 1, m1_2 = 2, k720 = 3, m1_44 = 4, m2_88 = 5
    }
    /// Data rate select of the format (82077AA §2.1.3): 0 = 500, 1 = 300, 2 = 250 kbit/s, 3 = 1 Mbit/s.
    public var rate: UInt8
    public var sectors: Int
    public var tracks: Int
    public var heads: Int
    public var drive: DriveType
    public var bytes: Int { sectors * tracks * heads * 512 }

    private static let all: [FloppyFormat] = [
        FloppyFormat(rate: 0, sectors: 18, tracks: 80, heads: 2, drive: .m1_44),
        FloppyFormat(rate: 3, sectors: 36, tracks: 80, heads: 2, drive: .m2_88),
        FloppyFormat(rate: 2, sectors: 9, tracks: 80, heads: 2, drive: .k720),
        FloppyFormat(rate: 0, sectors: 15, tracks: 80, heads: 2, drive: .m1_2),
        FloppyFormat(rate: 1, sectors: 9, tracks: 40, heads: 2, drive: .k360),
        FloppyFormat(rate: 1, sectors: 8, tracks: 40, heads: 2, drive: .k360),
        FloppyFormat(rate: 1, sectors: 9, tracks: 40, heads: 1, drive: .k360),
        FloppyFormat(rate: 1, sectors: 8, tracks: 40, heads: 1, drive: .k360),
        FloppyFormat(rate: 0, sectors: 20, tracks: 80, heads: 2, drive: .m1_44),
        FloppyFormat(rate: 0, sectors: 21, tracks: 80, heads: 2, drive: .m1_44),
        FloppyFormat(rate: 0, sectors: 21, tracks: 82, heads: 2, drive: .m1_44),
    ]

    /// The format of exactly that many bytes; the next larger one for images
    /// that were not filled up (a boot floppy made by `cat`), up to 1.44 MB.
    public init?(imageSize: UInt64) {
        if let exact = Self.all.first(where: { UInt64($0.bytes) == imageSize }) {
            self = exact
        } else if imageSize > 0, imageSize < 1_474_560 {
            self = Self.all[0]
        } else {
            return nil
        }
    }

    private init(rate: UInt8, sectors: Int, tracks: Int, heads: Int, drive: DriveType) {
        (self.rate, self.sectors, self.tracks, self.heads, self.drive) = (rate, sectors, tracks, heads, drive)
    }
}
