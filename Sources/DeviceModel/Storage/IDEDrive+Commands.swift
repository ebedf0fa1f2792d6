// The commands of an ATA disk, and those a packet device shares with it.
// Source: ATA/ATAPI-6 §8.
// Modelled: the general, 48-bit, power, SMART and native-maximum sets. Not modelled: security, host protected area.
// Quirk: RECALIBRATE (10h-1Fh) and the SEEK family are long obsolete, but old BIOSes send them.

extension IDEDrive {
    /// Takes a command. What the disk cannot do now is aborted.
    mutating func execute(_ code: UInt8) {
        idle()
        command = code
        error = 0
        status = IDEStatus.idle
        guard !executeShared(code) else { return }
        guard kind == .disk else { return fail() }
        switch code {
        case 0x20, 0x21: pio(toGuest: true, sectorsPerBlock: 1)
        case 0x24: pio(toGuest: true, sectorsPerBlock: 1, extended: true)
        case 0x29: pio(toGuest: true, sectorsPerBlock: disk.multiple, extended: true)
        case 0xC4: pio(toGuest: true, sectorsPerBlock: disk.multiple)
        case 0x30, 0x31, 0x3C: pio(toGuest: false, sectorsPerBlock: 1)
        case 0x34: pio(toGuest: false, sectorsPerBlock: 1, extended: true)
        case 0x39: pio(toGuest: false, sectorsPerBlock: disk.multiple, extended: true)
        case 0xC5: pio(toGuest: false, sectorsPerBlock: disk.multiple)
        case 0xCE: pio(toGuest: false, sectorsPerBlock: disk.multiple, extended: true, durable: true)
        case 0x25: dma(toGuest: true, extended: true)
        case 0xC8, 0xC9: dma(toGuest: true)
        case 0x35: dma(toGuest: false, extended: true)
        case 0x3D: dma(toGuest: false, extended: true, durable: true)
        case 0xCA, 0xCB: dma(toGuest: false)
        case 0x40, 0x41: verify(extended: false)
        case 0x42: verify(extended: true)
        case 0x10...0x1F: finish()
        case 0x70...0x7F: seek()
        case 0x91: initialiseParameters()
        case 0xC6: setMultiple()
        case 0xE7, 0xEA: flush()
        case 0xEC: identify(diskIdentity)
        case 0xB0: smart()
        case 0xF8: nativeMaximum(extended: false)
        case 0x27: nativeMaximum(extended: true)
        default: fail()
        }
    }

    /// Commands of disks and packet devices alike. True if `code` was one.
    private mutating func executeShared(_ code: UInt8) -> Bool {
        switch code {
        case 0xA0 where kind == .cdrom: startPacket()
        case 0xA1 where kind == .cdrom: identify(packetIdentity)
        case 0x08 where kind == .cdrom: resetEnded()
        case 0x20 where kind == .cdrom, 0xEC where kind == .cdrom:
            fail()
            signature()
        case 0xEF: setFeatures()
        case 0xE0, 0x94, 0xE2, 0x96: power(standby: true)
        case 0xE1, 0x95, 0xE3, 0x97: power(standby: false)
        case 0xE6, 0x99: power(standby: true)
        case 0xE5, 0x98:
            count = disk.standby ? 0 : 0xFF
            finish()
        case 0x00: fail()
        default: return false
        }
        return true
    }

    private mutating func power(standby: Bool) {
        disk.standby = standby
        finish()
    }

    // MARK: Data commands

    /// Checks address and count, and sets the transfer up. False if it failed the command.
    private mutating func prepare(toGuest: Bool, extended: Bool, durable: Bool) -> Bool {
        let sectors = sectorCount(extended: extended)
        guard let first = sector(extended: extended), first < blocks, sectors <= blocks - first else {
            fail(IDEError.notFound)
            return false
        }
        guard toGuest || !isReadOnly else {
            fail()
            return false
        }
        disk.standby = false
        transfer.offset = first * 512
        transfer.remaining = sectors * 512
        (transfer.toGuest, transfer.durable) = (toGuest, durable)
        return true
    }

    private mutating func pio(toGuest: Bool, sectorsPerBlock: Int, extended: Bool = false, durable: Bool = false) {
        guard sectorsPerBlock > 0 else { return fail() }
        guard prepare(toGuest: toGuest, extended: extended, durable: durable) else { return }
        transfer.block = sectorsPerBlock * 512
        // The first block of a write is asked for without an interrupt (ATA-6 §9.6).
        if toGuest { startFill() } else { requestBlock(interrupt: false) }
    }

    private mutating func dma(toGuest: Bool, extended: Bool = false, durable: Bool = false) {
        guard prepare(toGuest: toGuest, extended: extended, durable: durable) else { return }
        waitForBusMaster()
    }

    private mutating func verify(extended: Bool) {
        if prepare(toGuest: true, extended: extended, durable: false) { finish() }
    }

    private mutating func seek() {
        guard let target = sector(extended: false), target < blocks else { return fail(IDEError.notFound) }
        finish()
    }

    private mutating func flush() {
        phase = .flush
        status = IDEStatus.busy | IDEStatus.ready
    }

    private mutating func identify(_ bytes: [UInt8]) {
        transfer.block = 512
        reply(bytes, byDMA: false)
    }

    // MARK: Settings

    private mutating func initialiseParameters() {
        let (heads, sectors) = (Int(device & 0x0F) + 1, Int(count & 0xFF))
        if disk.useGeometry(heads: heads, sectorsPerTrack: sectors, sectors: blocks) { finish() } else { fail() }
    }

    private mutating func setMultiple() {
        let sectors = Int(count & 0xFF)
        guard sectors <= 16, sectors & (sectors - 1) == 0 || sectors == 0 else { return fail() }
        disk.multiple = sectors
        finish()
    }

    /// SET FEATURES (ATA-6 §8.46).
    private mutating func setFeatures() {
        switch feature & 0xFF {
        case 0x02 where kind == .disk: disk.writeCache = true
        case 0x82 where kind == .disk:
            disk.writeCache = false
            return flush()
        case 0xAA where kind == .disk: disk.lookAhead = true
        case 0x55 where kind == .disk: disk.lookAhead = false
        case 0x03: return setMode()
        case 0x66, 0xCC: break
        case 0x05, 0x85, 0x42, 0xC2, 0x95, 0x31, 0x9A: return fail()
        default: return fail()
        }
        finish()
    }

    /// SET FEATURES 03h: PIO default or 0-4, multiword DMA 0-2, ultra DMA 0-5.
    private mutating func setMode() {
        let mode = UInt8(truncatingIfNeeded: count)
        switch mode {
        case 0, 1, 8...12: break
        case 0x20...0x22, 0x40...0x45: disk.mode = mode
        default: return fail()
        }
        finish()
    }

    private mutating func nativeMaximum(extended: Bool) {
        guard blocks > 0, extended || device & 0x40 != 0 else { return fail() }
        finish()
        setAddress(extended ? blocks - 1 : min(blocks - 1, 0x0FFF_FFFF), extended: extended)
    }
}
