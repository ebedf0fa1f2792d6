// What reads of the first serial port's registers give: the device model shows it, and the hypervisor answers from there
// what has no effect, as kernels ask for the line's status before every byte they send.
// Source: PC16550D datasheet, §8.
// Modelled: interrupt enable and identification, line and modem control, line and modem status. Quirks: the transmitter is
// always empty, so a byte on its way to the device model changes none of them but the identification.

internal import Synchronization

/// Registers 1 to 6 of a port as they read, and what reading and writing them would do.
public struct RestingSerial: Equatable, Sendable {
    public static let registers: ClosedRange<UInt16> = 1...6
    /// A byte for each register, the first in the lowest bits.
    private var values: UInt64 = 0
    /// Bit n: reading register n has no effect.
    private var quiet: UInt8 = 0
    /// A byte written to register 0 goes down the cable.
    public var sends: Bool

    public init(sends: Bool) { self.sends = sends }

    /// What reading a register gives without any effect; nil if it has one.
    public subscript(register: UInt16) -> UInt8? {
        get {
            guard Self.registers.contains(register), quiet >> register & 1 != 0 else { return nil }
            return UInt8(truncatingIfNeeded: values >> UInt64(8 * (register - 1)))
        }
        set {
            guard Self.registers.contains(register) else { return }
            let place = UInt64(8 * (register - 1))
            values = values & ~(0xFF << place) | UInt64(newValue ?? 0) << place
            quiet = quiet & ~(1 << register) | (newValue == nil ? 0 : 1 << register)
        }
    }

    /// Bit 63 tells it from a port that is not there.
    fileprivate var word: UInt64 { values | UInt64(quiet) << 48 | (sends ? 1 << 62 : 0) | 1 << 63 }

    fileprivate init?(word: UInt64) {
        guard word >> 63 != 0 else { return nil }
        (values, quiet) = (word & 0xFFFF_FFFF_FFFF, UInt8(truncatingIfNeeded: word >> 48) & 0x7E)
        sends = word >> 62 & 1 != 0
    }
}

extension IoreqPages {
    private var serial: UnsafeMutablePointer<Atomic<UInt64>> { long(IoreqLayout.serial) }

    /// Device model: how the first serial port is now. Before its interrupt line follows.
    public func show(_ state: RestingSerial) { serial.pointee.store(state.word, ordering: .sequentiallyConsistent) }

    fileprivate var restingSerial: RestingSerial? { RestingSerial(word: serial.pointee.load(ordering: .acquiring)) }
}

/// Hypervisor: answers reads as far as no posted write is under way that would change the answer.
public final class SerialMirror: Sendable {
    public static let ports: ClosedRange<UInt16> = 0x3F8...0x3FF
    private let pages: IoreqPages
    /// Places in the ring of posted writes behind the last byte that was sent, and behind the last other write.
    private let sent = Atomic<UInt32>(0)
    private let changed = Atomic<UInt32>(0)

    public init(_ pages: IoreqPages) { self.pages = pages }

    /// What a read of one byte gives; nil if the device model must say.
    public func read(_ port: UInt16) -> UInt8? {
        guard Self.ports.contains(port), let serial = resting else { return nil }
        let register = port - Self.ports.lowerBound
        // The identification tells that the transmitter has become empty.
        if register == 2, !pages.hasCarriedOut(sent.load(ordering: .acquiring)) { return nil }
        return serial[register]
    }

    /// Takes note of a write that has just been posted, before any other is.
    public func note(_ port: UInt16, size: Int) {
        guard Self.ports.contains(port) else { return }
        let isSent = port == Self.ports.lowerBound && size == 1 && resting?.sends == true
        let place = pages.postedWrites
        if isSent { sent.store(place, ordering: .releasing) } else { changed.store(place, ordering: .releasing) }
    }

    /// The port behind the last write that is no byte sent; nil if that is under way.
    private var resting: RestingSerial? {
        pages.hasCarriedOut(changed.load(ordering: .acquiring)) ? pages.restingSerial : nil
    }
}
