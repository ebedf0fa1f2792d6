// What reads of an IDE channel's registers give while nothing is under way on it: the device model shows it, and the
// hypervisor answers from there, as a round trip costs more than all the rest of such a read.
// Source: ATA/ATAPI-6 §6 (status, alternate status, device); Programming Interface for Bus Master IDE Controller §2.1-2.2.
// Modelled: the four registers that drivers read with every command. Quirks: reads that change something (status while an
// interrupt is pending), and all reads while a medium works, still go to the device model: a guest that waits for it lets it run.

internal import Synchronization

/// A channel that changes only by what the guest does to it.
public struct RestingChannel: Equatable, Sendable {
    /// Of the selected drive.
    public var status: UInt8
    /// 0 or 1.
    public var selected: UInt8
    /// Reading the status takes an interrupt back.
    public var isInterrupting: Bool
    public var busMasterCommand: UInt8
    public var busMasterStatus: UInt8
    /// First of the bus master's eight ports; 0: it decodes none.
    public var busMaster: UInt16

    public init(
        status: UInt8, selected: UInt8, isInterrupting: Bool, busMasterCommand: UInt8, busMasterStatus: UInt8,
        busMaster: UInt16
    ) {
        (self.status, self.selected, self.isInterrupting) = (status, selected & 1, isInterrupting)
        (self.busMasterCommand, self.busMasterStatus, self.busMaster) = (busMasterCommand, busMasterStatus, busMaster)
    }

    /// Bit 63 tells it from a channel that does not rest.
    fileprivate var word: UInt64 {
        let flags = UInt64(selected) << 24 | (isInterrupting ? 1 << 25 : 0) | 1 << 63
        return UInt64(status) | UInt64(busMasterCommand) << 8 | UInt64(busMasterStatus) << 16 | flags
            | UInt64(busMaster) << 32
    }

    fileprivate init?(word: UInt64) {
        guard word >> 63 != 0 else { return nil }
        self.init(
            status: UInt8(truncatingIfNeeded: word), selected: UInt8(truncatingIfNeeded: word >> 24),
            isInterrupting: word >> 25 & 1 != 0, busMasterCommand: UInt8(truncatingIfNeeded: word >> 8),
            busMasterStatus: UInt8(truncatingIfNeeded: word >> 16), busMaster: UInt16(truncatingIfNeeded: word >> 32))
    }
}

extension IoreqPages {
    public static let channels = 2

    private func mirror(_ channel: Int) -> UnsafeMutablePointer<Atomic<UInt64>> {
        long(IoreqLayout.mirrors + channel * 64)
    }

    /// Device model: how `channel` is now; nil if it does not rest, or decodes no ports. Before its interrupt line follows.
    public func show(_ channel: Int, _ state: RestingChannel?) {
        mirror(channel).pointee.store(state?.word ?? 0, ordering: .sequentiallyConsistent)
    }

    fileprivate func resting(_ channel: Int) -> RestingChannel? {
        RestingChannel(word: mirror(channel).pointee.load(ordering: .acquiring))
    }
}

/// Hypervisor: answers reads from the mirrors as far as no posted write is under way that would change the answer.
public final class ChannelMirror: Sendable {
    /// For one channel, the place in the ring of posted writes behind the last one that changes what the drive's, or
    /// the bus master's, registers read as.
    private final class Writes: Sendable {
        let drive = Atomic<UInt32>(0)
        let busMaster = Atomic<UInt32>(0)
    }
    private let pages: IoreqPages
    private let writes = (0..<IoreqPages.channels).map { _ in Writes() }

    public init(_ pages: IoreqPages) { self.pages = pages }

    /// What a read of one byte gives; nil if the device model must say.
    public func read(_ port: UInt16) -> UInt8? {
        switch port {
        case 0x1F7, 0x3F6: return status(0, isAlternate: port == 0x3F6)
        case 0x177, 0x376: return status(1, isAlternate: port == 0x376)
        default:
            for channel in writes.indices {
                if let value = busMaster(channel, port) { return value }
            }
            return nil
        }
    }

    private func status(_ channel: Int, isAlternate: Bool) -> UInt8? {
        guard let resting = resting(channel, after: writes[channel].drive), isAlternate || !resting.isInterrupting
        else { return nil }
        return resting.status
    }

    private func busMaster(_ channel: Int, _ port: UInt16) -> UInt8? {
        guard let resting = resting(channel, after: writes[channel].busMaster), resting.busMaster != 0 else {
            return nil
        }
        switch port &- resting.busMaster {
        case 0: return resting.busMasterCommand
        case 2: return resting.busMasterStatus
        default: return nil
        }
    }

    /// The channel as it is behind the write that ends at `place`; nil if that is under way, or the channel at work.
    private func resting(_ channel: Int, after place: borrowing Atomic<UInt32>) -> RestingChannel? {
        pages.hasCarriedOut(place.load(ordering: .acquiring)) ? pages.resting(channel) : nil
    }

    /// Takes note of a write that has just been posted, before any other is.
    public func note(_ port: UInt16, size: Int, value: UInt32) {
        switch port {
        // All but the device register, command and control leave those that are mirrored as they are.
        case 0x1F1...0x1F5 where size == 1, 0x171...0x175 where size == 1: return
        case 0x1F1...0x1F7, 0x3F6: changesDrive(0, port == 0x1F6 && size == 1, value)
        case 0x171...0x177, 0x376: changesDrive(1, port == 0x176 && size == 1, value)
        default: for channel in writes.indices { changesBusMaster(channel, port, size, value) }
        }
    }

    /// Selecting the drive that is selected changes nothing.
    private func changesDrive(_ channel: Int, _ selects: Bool, _ value: UInt32) {
        if selects, let resting = resting(channel, after: writes[channel].drive),
            UInt32(resting.selected) == value >> 4 & 1
        {
            return
        }
        mark(channel, drive: true)
    }

    private func changesBusMaster(_ channel: Int, _ port: UInt16, _ size: Int, _ value: UInt32) {
        guard let resting = resting(channel, after: writes[channel].drive) else { return mark(channel, drive: true) }
        let offset = Int(port &- resting.busMaster)
        // The other channel's, or the table's address, which is not mirrored.
        guard offset < 8, offset < 4 || offset + size > 8 else { return }
        let stops = offset == 0 && value & 1 == 0 && resting.busMasterStatus & 1 == 0
        let clears = offset == 2
        mark(channel, drive: size != 1 || !(stops || clears))
    }

    private func mark(_ channel: Int, drive: Bool) {
        let place = pages.postedWrites
        writes[channel].busMaster.store(place, ordering: .releasing)
        if drive { writes[channel].drive.store(place, ordering: .releasing) }
    }
}

extension IoreqPages {
    /// Writes posted so far, modulo 2^32.
    var postedWrites: UInt32 { word(IoreqLayout.buffered + 4).pointee.load(ordering: .relaxed) }

    /// Whether the device model has carried out the posted writes before `place`. What it has done then shows.
    func hasCarriedOut(_ place: UInt32) -> Bool {
        let done = word(IoreqLayout.buffered).pointee.load(ordering: .acquiring)
        return Int32(bitPattern: done &- place) >= 0
    }
}
