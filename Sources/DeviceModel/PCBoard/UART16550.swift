// National PC16550D UART.
// Source: PC16550D datasheet (June 1995), §8.
// Modelled: FIFOs, interrupts with their priorities, character timeout, loop-back, modem lines of a connected cable.
// Not modelled: line errors, DMA mode pins, the time a transmitted byte takes.
// Quirks: the transmitter is always empty; a received byte waits at the host until there is room, so nothing overruns.

internal import Ioreq
public import Machine
public import Registers

/// A serial port.
public final class UART16550: Device {
    private let irq: any Line
    private let transmit: (UInt8) -> Void
    /// Told, by `settle`, what reads give from now on, before the interrupt line follows.
    var show: (RestingSerial) -> Void = { _ in }
    public let regions: [Region]
    public var state = State()

    public init(base: UInt64 = 0x3F8, irq: any Line, transmit: @escaping (UInt8) -> Void) {
        (self.irq, self.transmit) = (irq, transmit)
        regions = [Region("uart", .port, base...(base + 7))]
    }

    public var deadline: Instant? { state.deadline }
    public func advance(to now: Instant) { state.advance(to: now) }
    public func read(_ access: Access) throws(BusFault) -> UInt64 { UInt64(try state.read(access.offset)) }
    public func write(_ value: UInt64, _ access: Access) throws(BusFault) {
        if let byte = try state.write(UInt8(truncatingIfNeeded: value), access.offset) { transmit(byte) }
    }
    public func settle() {
        show(state.resting)
        irq.drive(state.interrupt != nil && state.modemControl.contains(.out2))
    }

    /// How many bytes from the cable it takes now.
    public var room: Int { state.room }

    /// Brings bytes from the cable, at most `room` of them. The owner calls `settle` through the board.
    public func receive(_ bytes: some Sequence<UInt8>) {
        for byte in bytes where state.room > 0 { state.receive(byte) }
        settle()
    }
}

extension UART16550 {
    /// Interrupt sources by their identification (§8.6, table V), highest priority first.
    public enum Source: UInt8, Sendable {
        case lineStatus = 0b0110
        case receivedData = 0b0100
        case characterTimeout = 0b1100
        case transmitterEmpty = 0b0010
        case modemStatus = 0b0000
        static let none: UInt8 = 0b0001
    }

    /// IER, offset 1 (§8.7).
    public struct InterruptEnable: Register {
        public var rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue }
        public static let receivedData = bit(0)
        public static let transmitterEmpty = bit(1)
        public static let lineStatus = bit(2)
        public static let modemStatus = bit(3)
        public static let implemented: Self = [.receivedData, .transmitterEmpty, .lineStatus, .modemStatus]
    }

    /// FCR, offset 2, write-only (§8.5).
    public struct FIFOControl: Register {
        public var rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue }
        public static let enable = bit(0)
        public static let clearReceiver = bit(1)
        public static let clearTransmitter = bit(2)
        public static let dmaMode = bit(3)
        /// Bytes that must have come before the interrupt.
        public var trigger: Int { [1, 4, 8, 14][Int(self[bits: 6...7])] }
    }

    /// LCR, offset 3 (§8.1).
    public struct LineControl: Register {
        public var rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue }
        /// Data bits less five.
        public var wordLength: UInt8 { self[bits: 0...1] }
        public static let stopBits = bit(2)
        public static let parity = bit(3)
        public static let divisorLatch = bit(7)
    }

    /// MCR, offset 4 (§8.8).
    public struct ModemControl: Register {
        public var rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue }
        public static let dataTerminalReady = bit(0)
        public static let requestToSend = bit(1)
        public static let out1 = bit(2)
        /// On a PC it connects the interrupt to the bus.
        public static let out2 = bit(3)
        public static let loop = bit(4)
        public static let implemented = Self(rawValue: 0x1F)
    }

    /// LSR, offset 5 (§8.4).
    public struct LineStatus: Register {
        public var rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue }
        public static let dataReady = bit(0)
        public static let overrun = bit(1)
        public static let holdingEmpty = bit(5)
        public static let transmitterEmpty = bit(6)
    }

    /// MSR, offset 6 (§8.9): deltas in the low half, lines in the high one.
    public struct ModemStatus: Register {
        public var rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue }
        public static let clearToSend = bit(4)
        public static let dataSetReady = bit(5)
        public static let ring = bit(6)
        public static let carrier = bit(7)
        /// What a cable with somebody at its other end shows.
        public static let connected: Self = [.clearToSend, .dataSetReady, .carrier]
    }
}
