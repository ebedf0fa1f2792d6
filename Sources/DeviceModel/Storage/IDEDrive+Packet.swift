// A CD/DVD drive's packet commands: the protocol, readiness, sense, reads, tray.
// Source: ATA/ATAPI-6 §8.23 (PACKET); MMC-5 (T10/1675D) §6; SPC-3 §4.5 (sense).
// Modelled: a read-only drive with one data track. Not modelled: audio, writing, changers.
// Quirk: a byte count limit of 0 means 65,534 here (some BIOSes send it).

/// Sense key, additional code and qualifier. SPC-3 §4.5.6, MMC-5 annex F.
struct Sense: Codable, Equatable, Sendable {
    var key: UInt8
    var code: UInt8
    var qualifier: UInt8
    init(_ key: UInt8, _ code: UInt8, _ qualifier: UInt8 = 0) {
        (self.key, self.code, self.qualifier) = (key, code, qualifier)
    }
    static let none = Sense(0, 0)
    static let mediumAbsent = Sense(2, 0x3A, 1)
    static let trayOpen = Sense(2, 0x3A, 2)
    static let mediumError = Sense(3, 0x11)
    static let invalidCommand = Sense(5, 0x20)
    static let outOfRange = Sense(5, 0x21)
    static let invalidField = Sense(5, 0x24)
    static let illegalMode = Sense(5, 0x64)
    static let removalPrevented = Sense(5, 0x53, 2)
    static let mediumChanged = Sense(6, 0x28)
}

/// What a CD drive remembers between packets.
struct DiscSettings: Codable, Equatable, Sendable {
    /// MMC-5 table 285, media event codes.
    enum Event: UInt8, Codable, Sendable { case none = 0, ejectRequest = 1, newMedium = 2, removal = 3 }
    var sense = Sense.none
    /// Reported, once, before anything else is done.
    var attention = false
    var trayOpen = false
    /// PREVENT ALLOW MEDIUM REMOVAL.
    var locked = false
    var event = Event.none
}

extension IDEDrive {
    var hasMedium: Bool { blocks > 0 && !disc.trayOpen }
    var wantsDMA: Bool { command == 0xA0 && feature & 1 != 0 }

    /// PACKET: asks for the 12 bytes.
    mutating func startPacket() {
        guard feature & 2 == 0 else { return fail() }
        let limit = Int(high & 0xFF) << 8 | Int(mid & 0xFF)
        transfer.block = limit == 0 || limit == 0xFFFF ? 0xFFFE : limit
        // All blocks but the last have even lengths (ATA-6 §8.23).
        if transfer.block > 1 { transfer.block &= ~1 }
        (phase, position, blockEnd) = (.packet, 0, 12)
        status = IDEStatus.idle | IDEStatus.dataRequest
        count = 1
    }

    /// CHECK CONDITION (ATA-6 §9.9): the key is in the error register as well.
    mutating func check(_ sense: Sense) {
        disc.sense = sense
        fail(sense.key << 4 | IDEError.aborted)
        count = 3
    }

    mutating func packetArrived() {
        let packet = buffer
        guard packet.count == 12 else { return check(.invalidCommand) }
        (buffer, position, blockEnd) = ([], 0, 0)
        let code = packet[0]
        // INQUIRY, REQUEST SENSE, GET CONFIGURATION, GET EVENT STATUS go before a unit attention (MMC-5 §4.1.6).
        let isAlwaysAnswered = [0x03, 0x12, 0x46, 0x4A].contains(code)
        if disc.attention, !isAlwaysAnswered {
            disc.attention = false
            return check(.mediumChanged)
        }
        if code != 0x03 { disc.sense = .none }
        perform(packet)
    }

    private mutating func perform(_ packet: [UInt8]) {
        switch packet[0] {
        case 0x00: if requireMedium() { finish() }
        case 0x03: requestSense(packet)
        case 0x12: answer(inquiry(packet), limit: word(packet, 3))
        case 0x1A: modeSense(packet, long: false)
        case 0x1B: startStop(packet)
        case 0x1E: preventAllow(packet)
        case 0x25: if requireMedium() { answer(capacity, limit: 8) }
        case 0x28: read(packet, blocks: UInt64(word(packet, 7)))
        case 0xA8: read(packet, blocks: UInt64(long(packet, 6)))
        case 0x2B: seek(packet)
        case 0x35: finish()
        case 0x42: if requireMedium() { answer(subchannel(packet), limit: word(packet, 7)) }
        case 0x43: tableOfContents(packet)
        case 0x46: configuration(packet)
        case 0x4A: eventStatus(packet)
        case 0x51: discInformation(packet)
        case 0x52: trackInformation(packet)
        case 0x5A: modeSense(packet, long: true)
        case 0xAD: dvdStructure(packet)
        case 0xBB: finish()
        case 0xBD: answer(mechanismStatus, limit: word(packet, 8))
        case 0xBE: readCD(packet)
        default: check(.invalidCommand)
        }
    }

    func word(_ bytes: [UInt8], _ index: Int) -> Int { Int(bytes[index]) << 8 | Int(bytes[index + 1]) }
    func long(_ bytes: [UInt8], _ index: Int) -> UInt32 {
        bytes[index..<(index + 4)].reduce(0) { $0 << 8 | UInt32($1) }
    }

    /// Sends at most `limit` bytes (the allocation length).
    mutating func answer(_ bytes: [UInt8], limit: Int) {
        transfer.remaining = 0
        reply(Array(bytes.prefix(limit)), byDMA: wantsDMA)
    }

    mutating func requireMedium() -> Bool {
        if hasMedium { return true }
        check(disc.trayOpen ? .trayOpen : .mediumAbsent)
        return false
    }

    private mutating func requestSense(_ packet: [UInt8]) {
        if disc.sense == .none, disc.attention {
            disc.attention = false
            disc.sense = .mediumChanged
        }
        let sense = disc.sense
        disc.sense = .none
        let bytes = [0x70, 0, sense.key, 0, 0, 0, 0, 10, 0, 0, 0, 0, sense.code, sense.qualifier, 0, 0, 0, 0]
        answer(bytes, limit: Int(packet[4]))
    }

    // MARK: Reads

    /// Whether `count` blocks from `first` on lie on the medium.
    private mutating func checkRange(_ first: UInt64, _ count: UInt64) -> Bool {
        guard requireMedium() else { return false }
        guard first <= blocks, count <= blocks - first else {
            check(.outOfRange)
            return false
        }
        return true
    }

    /// READ (10), READ (12).
    private mutating func read(_ packet: [UInt8], blocks count: UInt64) {
        let first = UInt64(long(packet, 2))
        guard checkRange(first, count) else { return }
        startRead(first, count, raw: false)
    }

    private mutating func startRead(_ first: UInt64, _ count: UInt64, raw: Bool) {
        guard count > 0 else { return finish() }
        transfer.offset = first * 2048
        transfer.remaining = count * 2048
        (transfer.toGuest, transfer.raw) = (true, raw)
        // Raw sectors are made in the buffer; the bus master then takes them from there.
        if wantsDMA, !raw { waitForBusMaster() } else { startFill() }
    }

    /// READ CD: user data, or whole sectors of mode 1 (MMC-5 §6.20).
    private mutating func readCD(_ packet: [UInt8]) {
        let first = UInt64(long(packet, 2))
        let count = UInt64(packet[6]) << 16 | UInt64(packet[7]) << 8 | UInt64(packet[8])
        let type = (packet[1] >> 2) & 7
        guard type == 0 || type == 2, packet[10] & 7 == 0 else { return check(.invalidField) }
        guard checkRange(first, count) else { return }
        switch packet[9] & 0xF8 {
        case 0: finish()
        case 0x10: startRead(first, count, raw: false)
        case 0xF8: startRead(first, count, raw: true)
        default: check(.invalidField)
        }
    }

    private mutating func seek(_ packet: [UInt8]) {
        if checkRange(UInt64(long(packet, 2)), 1) { finish() }
    }

    // MARK: Tray

    /// START STOP UNIT: LoEj and Start bits (MMC-5 §6.42).
    private mutating func startStop(_ packet: [UInt8]) {
        switch packet[4] & 3 {
        case 2 where disc.locked: return check(.removalPrevented)
        case 2:
            if !disc.trayOpen { disc.event = .removal }
            disc.trayOpen = true
        case 3 where disc.trayOpen:
            disc.trayOpen = false
            mediumArrived()
        default: break
        }
        finish()
    }

    private mutating func preventAllow(_ packet: [UInt8]) {
        disc.locked = packet[4] & 1 != 0
        finish()
    }

    private mutating func mediumArrived() {
        guard blocks > 0 else { return }
        disc.attention = true
        disc.event = .newMedium
    }

    /// Someone outside the guest put another medium in, or took it out (0 blocks).
    mutating func changeMedium(blocks: UInt64) {
        self.blocks = blocks
        disc.trayOpen = false
        disc.locked = false
        disc.event = .removal
        disc.attention = false
        mediumArrived()
    }

    /// GET EVENT STATUS NOTIFICATION: polled, media class only (MMC-5 §6.8).
    private mutating func eventStatus(_ packet: [UInt8]) {
        guard packet[1] & 1 != 0 else { return check(.invalidField) }
        guard packet[4] & 0x10 != 0 else { return answer([0, 2, 0x80, 0x10], limit: word(packet, 7)) }
        let status: UInt8 = (disc.trayOpen ? 1 : 0) | (hasMedium ? 2 : 0)
        let event = disc.event
        disc.event = .none
        answer([0, 6, 4, 0x10, event.rawValue, status, 0, 0], limit: word(packet, 7))
    }
}
