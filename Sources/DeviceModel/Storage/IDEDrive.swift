// One drive on an IDE cable: its task file, its data buffer, and how data moves through both.
// Source: ATA/ATAPI-6 (T13/1410D) §6 (registers), §9 (protocols).
// Modelled: PIO in and out, multiple-sector blocks, DMA, packet. Not modelled: overlap, queueing, CFA, security.
// Quirk: data is fetched up to 64 KiB ahead of PIO blocks, so a guest that reads sector by sector costs few requests.

/// Status register. ATA-6 §6.15.
enum IDEStatus {
    static let busy: UInt8 = 0x80
    static let ready: UInt8 = 0x40
    static let seekDone: UInt8 = 0x10
    static let dataRequest: UInt8 = 0x08
    static let error: UInt8 = 0x01
    static let idle: UInt8 = ready | seekDone
}

/// Error register. ATA-6 §6.8.
enum IDEError {
    static let uncorrectable: UInt8 = 0x40
    static let notFound: UInt8 = 0x10
    static let aborted: UInt8 = 0x04
}

/// All a guest can tell about one drive.
public struct IDEDrive: Codable, Equatable, Sendable {
    public enum Kind: UInt8, Codable, Sendable { case none, disk, cdrom }
    /// What the drive is doing for the command it has.
    enum Phase: UInt8, Codable, Sendable {
        case idle
        /// DRQ: waits for a 12-byte packet.
        case packet
        /// DRQ: the guest reads, or writes, one block.
        case dataIn, dataOut
        /// BSY: the medium fills, or takes, the buffer; or makes it durable.
        case fill, drain, flush
        /// Waits for the bus master, or is served by it.
        case dma
        /// SRST is held.
        case reset
    }
    /// Where a data transfer stands.
    struct Transfer: Codable, Equatable, Sendable {
        /// On the medium.
        var offset: UInt64 = 0
        /// Bytes not yet moved between medium and buffer or guest.
        var remaining: UInt64 = 0
        /// Most bytes of a PIO block.
        var block = 512
        var toGuest = true
        /// Ends with a flush.
        var durable = false
        /// READ CD with all 2352 bytes a sector.
        var raw = false
    }
    static let bufferBytes = 65_536

    public let kind: Kind
    /// Disk: its 512-byte sectors. CD: 2048-byte blocks of the medium in the drive, 0 if none.
    public internal(set) var blocks: UInt64
    public let isReadOnly: Bool
    let serial: String

    // Task file; two-deep registers hold the older byte in bits 8-15 (ATA-6 §6.3, LBA48).
    var feature: UInt16 = 0
    var count: UInt16 = 1
    var low: UInt16 = 1
    var mid: UInt16 = 0
    var high: UInt16 = 0
    var device: UInt8 = 0
    var status: UInt8 = IDEStatus.idle
    /// After power-on: diagnostics passed (ATA-6 §9.12, table 26).
    var error: UInt8 = 1
    var command: UInt8 = 0
    /// INTRQ is pending.
    var interrupt = false

    var phase = Phase.idle
    var transfer = Transfer()
    var buffer: [UInt8] = []
    /// Next byte of the buffer that the guest moves, and the end of the present block.
    var position = 0
    var blockEnd = 0

    var disk = DiskSettings()
    var disc = DiscSettings()

    init(kind: Kind, blocks: UInt64, readOnly: Bool, serial: String) {
        (self.kind, self.blocks, isReadOnly, self.serial) = (kind, blocks, readOnly, serial)
        disk.useDefaultGeometry(sectors: blocks)
        signature()
        status = kind == .none ? 0 : IDEStatus.idle
    }

    /// Puts the signature that tells a disk from a packet device (ATA-6 §9.12).
    mutating func signature() {
        (count, low, device) = (1, 1, device & 0x10)
        (mid, high) = kind == .cdrom ? (0x14, 0xEB) : (0, 0)
    }

    mutating func powerOn() {
        self = IDEDrive(kind: kind, blocks: blocks, readOnly: isReadOnly, serial: serial)
    }

    /// SRST or DEVICE RESET has ended (ATA-6 §9.2, §9.11).
    mutating func resetEnded() {
        idle()
        error = 1
        signature()
        device = 0
        status = kind == .disk ? IDEStatus.idle : 0
        if kind == .cdrom { disc.sense = .none }
    }

    /// Drops what was under way.
    mutating func idle() {
        phase = .idle
        transfer = Transfer()
        (buffer, position, blockEnd) = ([], 0, 0)
        interrupt = false
    }

    // MARK: Ends of commands

    mutating func finish(interrupt: Bool = true) {
        idle()
        status = IDEStatus.idle
        error = 0
        if kind == .cdrom, command == 0xA0 { count = 3 }
        self.interrupt = interrupt
    }

    mutating func fail(_ bits: UInt8 = IDEError.aborted) {
        idle()
        status = IDEStatus.idle | IDEStatus.error
        error = bits
        interrupt = true
    }

    // MARK: Data

    /// Offers `bytes` to the guest: in blocks of `transfer.block`, or to the bus master.
    mutating func reply(_ bytes: [UInt8], byDMA: Bool) {
        transfer.toGuest = true
        (buffer, position, blockEnd) = (bytes, 0, 0)
        if bytes.isEmpty { return finish() }
        if byDMA { waitForBusMaster() } else { offerBlock() }
    }

    mutating func waitForBusMaster() {
        phase = .dma
        // DMARQ is up; the host sees BSY or DRQ until the transfer ends (ATA-6 §9.8).
        status = IDEStatus.idle | IDEStatus.dataRequest
    }

    mutating func startFill() {
        phase = .fill
        status = IDEStatus.busy | IDEStatus.ready
    }

    /// Media bytes of the next request.
    var requestBytes: Int {
        switch phase {
        case .fill: return Int(min(transfer.remaining, transfer.raw ? 16 * 2048 : UInt64(Self.bufferBytes)))
        case .drain: return buffer.count
        default: return 0
        }
    }

    private mutating func offerBlock(interrupt: Bool = true) {
        phase = .dataIn
        blockEnd = min(position + transfer.block, buffer.count)
        status = IDEStatus.idle | IDEStatus.dataRequest
        error = 0
        self.interrupt = interrupt
        guard kind == .cdrom, command == 0xA0 else { return }
        count = 2
        let bytes = UInt16(truncatingIfNeeded: blockEnd - position)
        (mid, high) = (bytes & 0xFF, bytes >> 8)
    }

    /// Asks the guest for the next block of a write.
    mutating func requestBlock(interrupt: Bool) {
        phase = .dataOut
        let left = Int(min(transfer.remaining, UInt64(Self.bufferBytes))) - buffer.count
        position = buffer.count
        blockEnd = position + min(transfer.block, left)
        status = IDEStatus.idle | IDEStatus.dataRequest
        self.interrupt = interrupt
    }

    /// The medium has delivered `bytes`.
    mutating func filled(_ bytes: [UInt8]) {
        let first = transfer.offset / 2048
        transfer.offset &+= UInt64(bytes.count)
        transfer.remaining -= min(transfer.remaining, UInt64(bytes.count))
        buffer = transfer.raw ? CDSector.frames(of: bytes, first: first) : bytes
        (position, blockEnd) = (0, 0)
        if wantsDMA { waitForBusMaster() } else { offerBlock() }
    }

    /// The medium has taken the buffer.
    mutating func drained() {
        transfer.offset &+= UInt64(buffer.count)
        transfer.remaining -= min(transfer.remaining, UInt64(buffer.count))
        buffer.removeAll(keepingCapacity: true)
        if transfer.remaining > 0 { requestBlock(interrupt: true) } else { written() }
    }

    /// All data of a write is with the host.
    mutating func written() {
        if transfer.durable || !disk.writeCache {
            phase = .flush
            status = IDEStatus.busy | IDEStatus.ready
        } else {
            finish()
        }
    }

    /// The bus master has moved `bytes` between medium and guest.
    mutating func moved(_ bytes: UInt64) {
        transfer.offset &+= bytes
        transfer.remaining -= min(transfer.remaining, bytes)
        guard transfer.remaining == 0 else { return }
        if transfer.toGuest { finish() } else { written() }
    }

    /// The bus master has taken `bytes` of the buffer.
    mutating func movedFromBuffer(_ bytes: Int) {
        position += bytes
        guard position >= buffer.count else { return }
        if transfer.remaining > 0 { startFill() } else { finish() }
    }

    /// The medium failed.
    mutating func mediumFailed() {
        if kind == .cdrom { return check(.mediumError) }
        let sector = transfer.offset / 512
        let bits = transfer.toGuest ? IDEError.uncorrectable : IDEError.aborted
        fail(bits)
        setAddress(sector)
    }

    /// The guest has moved the present block.
    mutating func blockDone() {
        if phase == .dataIn {
            if position < buffer.count { return offerBlock() }
            if transfer.remaining > 0 { return startFill() }
            // A PIO read's last block is followed by no interrupt, a packet's by the status (ATA-6 §9.5, §9.9).
            finish(interrupt: kind == .cdrom && command == 0xA0)
        } else if phase == .dataOut {
            let full = buffer.count >= Self.bufferBytes || UInt64(buffer.count) >= transfer.remaining
            if !full { return requestBlock(interrupt: true) }
            phase = .drain
            status = IDEStatus.busy | IDEStatus.ready
        } else if phase == .packet {
            packetArrived()
        }
    }

    /// One access of up to 4 bytes to the data register.
    mutating func readData(bytes: Int) -> UInt64 {
        guard phase == .dataIn else { return bytes == 4 ? 0xFFFF_FFFF : 0xFFFF }
        var value: UInt64 = 0
        let taken = min(bytes, blockEnd - position)
        for index in 0..<max(taken, 0) { value |= UInt64(buffer[position + index]) << UInt64(8 * index) }
        position += max(taken, 0)
        if position >= blockEnd { blockDone() }
        return value
    }

    mutating func writeData(_ value: UInt64, bytes: Int) {
        guard phase == .dataOut || phase == .packet else { return }
        for index in 0..<min(bytes, blockEnd - position) {
            buffer.append(UInt8(truncatingIfNeeded: value >> UInt64(8 * index)))
            position += 1
        }
        if position >= blockEnd { blockDone() }
    }
}
