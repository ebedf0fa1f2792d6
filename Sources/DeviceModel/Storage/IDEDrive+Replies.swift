// What a CD/DVD drive answers about itself and its medium.
// Source: MMC-5 (T10/1675D) §6.6 (GET CONFIGURATION), §6.26 (READ TOC), §7 (mode pages), SPC-3 §6.4 (INQUIRY).
// Modelled: one session, one data track. Not modelled: sub-channel data, DVD copyright keys.
// Quirk: a medium larger than a CD can hold is told to be a DVD-ROM; Windows reads the profile.

extension IDEDrive {
    /// More than an 80-minute disc plus some overburn.
    private var isDVD: Bool { blocks > 405_000 }
    private var profile: UInt8 { hasMedium ? (isDVD ? 0x10 : 0x08) : 0 }
    private var blockCount: UInt32 { UInt32(truncatingIfNeeded: min(blocks, 0xFFFF_FFFF)) }

    private func bytes(_ value: UInt32) -> [UInt8] {
        [24, 16, 8, 0].map { UInt8(truncatingIfNeeded: value >> UInt32($0)) }
    }
    private func bytes(_ value: Int) -> [UInt8] {
        [UInt8(truncatingIfNeeded: value >> 8), UInt8(truncatingIfNeeded: value)]
    }

    /// A block's address: as it is, or as minute, second, frame (MMC-5 §4.2.3; 150 frames of lead-in).
    private func address(_ block: UInt32, msf: Bool) -> [UInt8] {
        guard msf else { return bytes(block) }
        return [0] + CDSector.time(UInt64(block))
    }

    func inquiry(_ packet: [UInt8]) -> [UInt8] {
        func text(_ text: String, _ count: Int) -> [UInt8] {
            Array((Array(text.utf8) + [UInt8](repeating: 0x20, count: count)).prefix(count))
        }
        return [5, 0x80, 0, 0x21, 31, 0, 0, 0] + text("APUS", 8) + text("APUS DVD-ROM", 16) + text("1.0", 4)
    }

    var capacity: [UInt8] { bytes(blockCount &- 1) + bytes(2048 as UInt32) }

    var mechanismStatus: [UInt8] { [0, disc.trayOpen ? 0x10 : 0, 0, 0, 0, 1, 0, 0] }

    func subchannel(_ packet: [UInt8]) -> [UInt8] {
        // Header only, "no audio status" (MMC-5 §6.27).
        [0, 0x15, 0, 0]
    }

    // MARK: Mode pages

    mutating func modeSense(_ packet: [UInt8], long isLong: Bool) {
        guard packet[2] >> 6 != 3 else { return check(Sense(5, 0x39)) }
        let page = packet[2] & 0x3F
        var pages: [UInt8] = []
        // Read error recovery; CD audio control; capabilities and mechanical status (MMC-5 §7.3, §7.5, §7.6).
        if page == 0x01 || page == 0x3F { pages += [0x01, 6, 0, 5, 0, 0, 0, 0] }
        if page == 0x0E || page == 0x3F { pages += [0x0E, 14, 4, 0, 0, 0, 0, 75, 1, 255, 2, 255, 0, 0, 0, 0] }
        if page == 0x2A || page == 0x3F {
            let lock: UInt8 = 0x29 | (disc.locked ? 2 : 0)
            pages += [0x2A, 18, 0x3B, 0, 0x70, 0x60, lock, 0, 0x02, 0xC2, 0, 2, 2, 0, 0x02, 0xC2, 0, 0, 0, 0]
        }
        guard !pages.isEmpty else { return check(.invalidField) }
        // Medium type: door open, no disc, or a 120 mm data disc (MMC-2 table 110).
        let medium: UInt8 = disc.trayOpen ? 0x71 : blocks == 0 ? 0x70 : 0x01
        if isLong {
            answer(bytes(pages.count + 6) + [medium, 0, 0, 0, 0, 0] + pages, limit: word(packet, 7))
        } else {
            answer([UInt8(pages.count + 3), medium, 0, 0] + pages, limit: Int(packet[4]))
        }
    }

    // MARK: The medium's structure

    /// READ TOC/PMA/ATIP: formats 0 (tracks), 1 (sessions), 2 (full).
    mutating func tableOfContents(_ packet: [UInt8]) {
        guard requireMedium() else { return }
        let msf = packet[1] & 2 != 0
        let format = packet[2] & 0x0F != 0 ? packet[2] & 0x0F : packet[9] >> 6
        let start = packet[6]
        let leadOut = blockCount
        switch format {
        case 0:
            guard start <= 1 || start == 0xAA else { return check(.invalidField) }
            var list: [UInt8] = [1, 1]
            if start <= 1 { list += [0, 0x14, 1, 0] + address(0, msf: msf) }
            list += [0, 0x14, 0xAA, 0] + address(leadOut, msf: msf)
            answer(bytes(list.count) + list, limit: word(packet, 7))
        case 1:
            answer([0, 10, 1, 1, 0, 0x14, 1, 0] + address(0, msf: msf), limit: word(packet, 7))
        case 2:
            func entry(_ point: UInt8, _ p: [UInt8]) -> [UInt8] { [1, 0x14, 0, point, 0, 0, 0, 0] + p }
            let list: [UInt8] =
                [1, 1] + entry(0xA0, [1, 0, 0]) + entry(0xA1, [1, 0, 0])
                + entry(0xA2, CDSector.time(UInt64(leadOut))) + entry(1, CDSector.time(0))
            answer(bytes(list.count) + list, limit: word(packet, 7))
        default: check(.invalidField)
        }
    }

    mutating func discInformation(_ packet: [UInt8]) {
        guard requireMedium() else { return }
        guard packet[1] & 7 == 0 else { return check(.invalidField) }
        var info = [UInt8](repeating: 0, count: 34)
        info.replaceSubrange(0..<7, with: [0, 32, 0x0E, 1, 1, 1, 1])  // complete disc, complete session
        info[7] = 0x20  // unrestricted use
        answer(info, limit: word(packet, 7))
    }

    mutating func trackInformation(_ packet: [UInt8]) {
        guard requireMedium() else { return }
        let number = long(packet, 2)
        let isThere: Bool
        switch packet[1] & 3 {
        case 0: isThere = number < blockCount
        default: isThere = number == 1
        }
        guard isThere else { return check(.invalidField) }
        let head: [UInt8] = [0, 34, 1, 1, 0, 4, 1, 0]
        answer(
            head + bytes(0 as UInt32) + bytes(0 as UInt32) + bytes(0 as UInt32) + bytes(0 as UInt32)
                + bytes(blockCount) + bytes(0 as UInt32) + [0, 0, 0, 0], limit: word(packet, 7))
    }

    /// READ DVD STRUCTURE: physical format and copyright of a DVD-ROM (MMC-5 §6.22).
    mutating func dvdStructure(_ packet: [UInt8]) {
        guard requireMedium() else { return }
        guard isDVD, packet[1] & 0x0F == 0 else { return check(Sense(5, 0x30, 2)) }
        guard packet[6] == 0 else { return check(.invalidField) }
        switch packet[7] {
        case 0:
            let first: UInt32 = 0x30000
            var layer: [UInt8] = [0x01, 0x0F, 0x01, 0x00]
            layer += bytes(first) + bytes(first &+ blockCount &- 1) + bytes(0 as UInt32)
            layer += [UInt8](repeating: 0, count: 2048 - layer.count)
            answer([0x08, 0x02, 0, 0] + layer, limit: word(packet, 8))
        case 1: answer([0, 6, 0, 0, 0, 0, 0, 0], limit: word(packet, 8))
        default: check(.invalidField)
        }
    }

    /// GET CONFIGURATION: the features from the starting number on.
    mutating func configuration(_ packet: [UInt8]) {
        let start = word(packet, 2)
        let kind = packet[1] & 3
        guard kind != 3 else { return check(.invalidField) }
        let list = features.filter { feature in
            let number = word(feature, 0)
            if kind == 2 { return number == start }
            return number >= start && (kind == 0 || feature[2] & 1 != 0)
        }.flatMap { $0 }
        answer(bytes(UInt32(list.count + 4)) + [0, 0, 0, profile] + list, limit: word(packet, 7))
    }

    /// MMC-5 §5.3: number, version and flags (bit 0: current), length, data.
    private var features: [[UInt8]] {
        let current: UInt8 = hasMedium ? 1 : 0
        let cd: UInt8 = profile == 0x08 ? 1 : 0
        let dvd: UInt8 = profile == 0x10 ? 1 : 0
        return [
            [0x00, 0x00, 0x03, 8, 0, 0x10, dvd, 0, 0, 0x08, cd, 0],
            [0x00, 0x01, 0x0B, 8, 0, 0, 0, 2, 1, 0, 0, 0],
            [0x00, 0x02, 0x07, 4, 2, 0, 0, 0],
            [0x00, 0x03, 0x03, 4, 0x29, 0, 0, 0],
            [0x00, 0x10, current, 8, 0, 0, 8, 0, 0, 1, 0, 0],
            [0x00, 0x1D, cd, 0],
            [0x00, 0x1E, 0x08 | cd, 4, 0, 0, 0, 0],
            [0x00, 0x1F, dvd, 0],
            [0x01, 0x00, 0x03, 0],
            [0x01, 0x05, 0x07, 4, 0, 0, 0, 0],
        ]
    }
}
