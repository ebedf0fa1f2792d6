// How a task file names sectors: cylinder/head/sector, 28-bit and 48-bit LBA; and what a disk's settings are.
// Source: ATA/ATAPI-6 §6.2 (addressing), §6.3 (two-deep registers), §8.16 (INITIALIZE DEVICE PARAMETERS).
// Modelled: all three forms. Not modelled: –
// Quirk: the default geometry is the BIOS's: 16 heads, 63 sectors.

/// Settings of a disk that commands change.
struct DiskSettings: Codable, Equatable, Sendable {
    var heads = 16
    var sectorsPerTrack = 63
    var cylinders = 0
    var defaultCylinders = 0
    /// Sectors of a READ/WRITE MULTIPLE block; 0 while disabled.
    var multiple = 0
    var writeCache = true
    var lookAhead = true
    var smart = true
    /// Transfer mode set last (SET FEATURES 03h): 0x20 + n multiword, 0x40 + n ultra.
    var mode: UInt8 = 0x22
    var standby = false

    mutating func useDefaultGeometry(sectors: UInt64) {
        (heads, sectorsPerTrack) = (16, 63)
        cylinders = Int(min(sectors / (16 * 63), 16_383))
        defaultCylinders = cylinders
    }

    /// INITIALIZE DEVICE PARAMETERS. False if no disk is so shaped.
    mutating func useGeometry(heads: Int, sectorsPerTrack: Int, sectors: UInt64) -> Bool {
        guard heads > 0, sectorsPerTrack > 0 else { return false }
        (self.heads, self.sectorsPerTrack) = (heads, sectorsPerTrack)
        cylinders = Int(min(sectors / UInt64(heads * sectorsPerTrack), 65_535))
        return true
    }
}

extension IDEDrive {
    private var isLBA: Bool { device & 0x40 != 0 }

    /// The first sector a command names; nil if a CHS address names none.
    func sector(extended: Bool) -> UInt64? {
        let (low8, mid8, high8) = (UInt64(low & 0xFF), UInt64(mid & 0xFF), UInt64(high & 0xFF))
        if extended {
            let upper = UInt64(low >> 8) << 24 | UInt64(mid >> 8) << 32 | UInt64(high >> 8) << 40
            return upper | high8 << 16 | mid8 << 8 | low8
        }
        if isLBA { return UInt64(device & 0x0F) << 24 | high8 << 16 | mid8 << 8 | low8 }
        let (head, cylinder) = (UInt64(device & 0x0F), high8 << 8 | mid8)
        guard low8 > 0, low8 <= UInt64(disk.sectorsPerTrack), head < UInt64(disk.heads) else { return nil }
        return (cylinder * UInt64(disk.heads) + head) * UInt64(disk.sectorsPerTrack) + low8 - 1
    }

    /// Sectors a command names; 0 stands for 256, or 65,536.
    func sectorCount(extended: Bool) -> UInt64 {
        if extended { return count == 0 ? 65_536 : UInt64(count) }
        return count & 0xFF == 0 ? 256 : UInt64(count & 0xFF)
    }

    /// Puts `sector` where the command had its address (the first bad sector; a native maximum).
    mutating func setAddress(_ sector: UInt64, extended: Bool = false) {
        func word(_ lower: UInt64, _ upper: UInt64) -> UInt16 {
            UInt16(truncatingIfNeeded: lower & 0xFF) | UInt16(truncatingIfNeeded: upper & 0xFF) << 8
        }
        if isLBA || extended {
            (low, mid, high) = (
                word(sector, sector >> 24), word(sector >> 8, sector >> 32), word(sector >> 16, sector >> 40)
            )
            if !extended { device = device & 0xF0 | UInt8(truncatingIfNeeded: (sector >> 24) & 0x0F) }
        } else {
            let track = sector / UInt64(disk.sectorsPerTrack)
            let cylinder = min(track / UInt64(disk.heads), 65_535)
            low = word(sector % UInt64(disk.sectorsPerTrack) + 1, 0)
            (mid, high) = (word(cylinder, 0), word(cylinder >> 8, 0))
            device = device & 0xF0 | UInt8(truncatingIfNeeded: track % UInt64(disk.heads))
        }
    }
}
