// One channel's half of the bus-master IDE registers, and the walk through its table of regions.
// Source: Programming Interface for Bus Master IDE Controller, rev. 1.0 §1.2 (PRD), §2 (registers); PIIX3 §2.5.
// Modelled: both channels' registers, all lengths and placements of regions. Not modelled: simplex devices.
// Quirk: the table is taken as the guest left it; each entry is fetched once, when its turn comes.
internal import Machine

/// A channel's bus-master registers and how far it is.
public struct IDEBusMaster: Codable, Equatable, Sendable {
    /// BMICX: bit 0 start, bit 3 direction (1: to memory).
    var command: UInt8 = 0
    /// BMISX: bit 0 active, 1 error, 2 interrupt, 5-6 drive DMA capable.
    var status: UInt8 = 0
    /// BMIDTPX.
    var table: UInt32 = 0
    var cursor = Cursor()

    var isActive: Bool { status & 1 != 0 }

    /// The next byte of guest memory to move.
    struct Cursor: Codable, Equatable, Sendable {
        /// Next entry of the table.
        var entry: UInt32 = 0
        var address: UInt32 = 0
        var left: UInt32 = 0
        var isLast = false
        var isExhausted: Bool { left == 0 && isLast }

        /// Takes the rest of the present region, at most `limit` bytes; nil behind the last one.
        mutating func next(_ limit: Int, by dma: any DMA) throws(DMAFault) -> (address: GuestAddress, bytes: Int)? {
            if left == 0 {
                if isLast { return nil }
                try fetch(dma)
            }
            let bytes = min(UInt32(clamping: limit), left)
            let start = GuestAddress(UInt64(address))
            address &+= bytes
            left -= bytes
            return (start, Int(bytes))
        }

        private mutating func fetch(_ dma: any DMA) throws(DMAFault) {
            var raw: UInt64 = 0
            do {
                try unsafe withUnsafeMutableBytes(of: &raw) { bytes in
                    try unsafe dma.read(at: GuestAddress(UInt64(entry)), into: bytes)
                }
            } catch let fault as DMAFault { throw fault } catch { throw DMAFault(GuestAddress(UInt64(entry))) }
            // The table does not cross a 64 KiB border (§1.2): the address wraps in it.
            entry = entry & 0xFFFF_0000 | (entry &+ 8) & 0xFFFF
            address = UInt32(truncatingIfNeeded: raw) & ~1
            let count = UInt32(truncatingIfNeeded: raw >> 32) & 0xFFFE
            left = count == 0 ? 65_536 : count
            isLast = raw >> 63 != 0
        }
    }

    func read(_ offset: UInt64) -> UInt8 {
        switch offset {
        case 0: return command
        case 2: return status
        case 4...7: return UInt8(truncatingIfNeeded: table >> UInt32((offset - 4) * 8))
        default: return 0
        }
    }

    mutating func write(_ value: UInt8, _ offset: UInt64) {
        switch offset {
        case 0: writeCommand(value)
        // Interrupt and error are cleared by ones; the capable bits are plain (§2.2).
        case 2: status = (status & 0x01) | (value & 0x60) | (status & 0x06 & ~value)
        case 4...7:
            let shift = UInt32((offset - 4) * 8)
            table = (table & ~(0xFF << shift) | UInt32(value) << shift) & ~3
        default: break
        }
    }

    private mutating func writeCommand(_ value: UInt8) {
        let started = value & ~command & 1 != 0
        command = value & 0x09
        if started {
            cursor = Cursor()
            cursor.entry = table
            status |= 1
        } else if value & 1 == 0 {
            status &= ~1
        }
    }
}
