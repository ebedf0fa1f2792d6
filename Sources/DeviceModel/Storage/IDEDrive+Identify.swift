// IDENTIFY DEVICE, IDENTIFY PACKET DEVICE, and SMART: what a drive tells about itself.
// Source: ATA/ATAPI-6 §8.15, §8.16 (word tables), §8.41 (SMART); SFF-8035i for the attribute table.
// Modelled: the words that a 2002 disk fills. Not modelled: words of later standards.
// Quirk: none.

/// 256 words in the making.
private struct Words {
    var words = [UInt16](repeating: 0, count: 256)
    subscript(index: Int) -> UInt16 {
        get { words[index] }
        set { words[index] = newValue }
    }
    /// Two characters a word, the first one in the upper byte, padded with blanks.
    mutating func text(_ text: String, at start: Int, words count: Int) {
        let padded = Array((text.utf8.prefix(count * 2))) + [UInt8](repeating: 0x20, count: count * 2)
        for index in 0..<count {
            words[start + index] = UInt16(padded[index * 2]) << 8 | UInt16(padded[index * 2 + 1])
        }
    }
    mutating func number(_ value: UInt64, at start: Int, words count: Int) {
        for index in 0..<count { words[start + index] = UInt16(truncatingIfNeeded: value >> UInt64(16 * index)) }
    }
    /// The sector, ended by signature A5h and a checksum (word 255).
    var bytes: [UInt8] {
        var bytes = words.flatMap { [UInt8(truncatingIfNeeded: $0), UInt8(truncatingIfNeeded: $0 >> 8)] }
        bytes[510] = 0xA5
        bytes[511] = 0 &- bytes[0..<511].reduce(0, &+)
        return bytes
    }
}

extension IDEDrive {
    private func common(model: String) -> Words {
        var words = Words()
        words.text(serial, at: 10, words: 10)
        words.text("1.0", at: 23, words: 4)
        words.text(model, at: 27, words: 20)
        words[48] = 1
        words[49] = 0x0B00  // IORDY, LBA, DMA
        words[53] = 0x0007
        words[63] = 0x0007 | (disk.mode & 0xF8 == 0x20 ? 0x0100 << UInt16(disk.mode & 7) : 0)
        words[64] = 0x0003
        for index in 65...68 { words[index] = 120 }
        words[80] = 0x007E  // ATA-1 to ATA/ATAPI-6
        words[88] = 0x003F | (disk.mode & 0xF8 == 0x40 ? 0x0100 << UInt16(disk.mode & 7) : 0)
        words[93] = 0x6001  // 80-conductor cable, device 0 passed
        return words
    }

    var diskIdentity: [UInt8] {
        var words = common(model: "APUS HARDDISK")
        words[0] = 0x0040
        words[1] = UInt16(disk.defaultCylinders)
        words[3] = 16
        words[6] = 63
        words[47] = 0x8010
        words[54] = UInt16(disk.cylinders)
        words[55] = UInt16(disk.heads)
        words[56] = UInt16(disk.sectorsPerTrack)
        words.number(UInt64(disk.cylinders * disk.heads * disk.sectorsPerTrack), at: 57, words: 2)
        words[59] = disk.multiple > 0 ? 0x0100 | UInt16(disk.multiple) : 0
        words.number(min(blocks, 0x0FFF_FFFF), at: 60, words: 2)
        words[82] = 0x4069  // NOP, look-ahead, write cache, power management, SMART
        words[83] = 0x7400  // FLUSH CACHE EXT, FLUSH CACHE, 48-bit addresses
        words[84] = 0x4040  // WRITE DMA FUA EXT
        words[85] = 0x4008 | (disk.lookAhead ? 0x40 : 0) | (disk.writeCache ? 0x20 : 0) | (disk.smart ? 1 : 0)
        words[86] = 0x3400
        words[87] = 0x4040
        words.number(blocks, at: 100, words: 4)
        return words.bytes
    }

    var packetIdentity: [UInt8] {
        var words = common(model: "APUS DVD-ROM")
        words[0] = 0x85C0  // packet, CD-ROM, removable, DRQ within 50 µs, 12-byte packets
        words[71] = 30
        words[72] = 30
        words[82] = 0x4210  // NOP, DEVICE RESET, PACKET
        words[83] = 0x4000
        words[84] = 0x4000
        words[85] = 0x4210
        words[87] = 0x4000
        return words.bytes
    }

    /// SMART (B0h): needs the key C24Fh in the cylinder registers.
    mutating func smart() {
        let operation = UInt8(truncatingIfNeeded: feature)
        guard mid & 0xFF == 0x4F, high & 0xFF == 0xC2, disk.smart || operation == 0xD8 else { return fail() }
        transfer.block = 512
        switch operation {
        case 0xD0: reply(Self.smartData, byDMA: false)
        case 0xD1: reply(Self.smartThresholds, byDMA: false)
        case 0xD2, 0xD4: finish()
        case 0xD5: smartLog()
        case 0xD8, 0xD9:
            disk.smart = operation == 0xD8
            finish()
        case 0xDA: finish()  // the key stays: no threshold is exceeded
        default: fail()
        }
    }

    /// SMART READ LOG: directory, summary error log, self-test log.
    private mutating func smartLog() {
        var log = [UInt8](repeating: 0, count: 512)
        switch low & 0xFF {
        case 0:
            (log[0], log[2], log[12]) = (1, 1, 1)
            return reply(log, byDMA: false)
        case 1, 6: log[0] = 1
        default: return fail()
        }
        reply(Self.summed(log), byDMA: false)
    }

    /// Power-on hours, power cycles, reallocated and pending sectors: all as new.
    private static let smartAttributes: [UInt8] = [5, 9, 12, 197]

    private static let smartData: [UInt8] = {
        var data = [UInt8](repeating: 0, count: 512)
        data[0] = 0x10
        for (index, attribute) in smartAttributes.enumerated() {
            data.replaceSubrange((2 + index * 12)..<(7 + index * 12), with: [attribute, 0x03, 0, 100, 100])
        }
        data[362] = 0x82  // off-line collection completed
        data[368] = 0x03  // attributes are saved
        data[370] = 1
        return summed(data)
    }()

    private static let smartThresholds: [UInt8] = {
        var data = [UInt8](repeating: 0, count: 512)
        data[0] = 0x10
        for (index, attribute) in smartAttributes.enumerated() {
            data.replaceSubrange((2 + index * 12)..<(4 + index * 12), with: [attribute, 36])
        }
        return summed(data)
    }()

    private static func summed(_ bytes: [UInt8]) -> [UInt8] {
        var bytes = bytes
        bytes[511] = 0 &- bytes[0..<511].reduce(0, &+)
        return bytes
    }
}
