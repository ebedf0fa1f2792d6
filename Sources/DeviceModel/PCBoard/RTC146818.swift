// Motorola MC146818A real-time clock with its CMOS RAM, as in PIIX3.
// Source: MC146818A datasheet (ADI1010), "Address map" to "Registers"; PIIX4 datasheet §11.1 for the upper bank.
// Modelled: calendar, alarm, periodic, update-ended interrupts, update-in-progress, divider reset, battery-backed RAM.
// Not modelled: square wave output, daylight saving. Quirks: the time outlives a reset, as the RAM does.

public import Machine
public import Registers

/// RTC at ports 0x70-0x73, interrupt 8.
public final class RTC146818: Device {
    private let irq: any Line
    private let contents: [UInt8]
    public let regions = [Region("rtc", .port, 0x70...0x73)]
    public var state: State

    /// - Parameters:
    ///   - time: seconds since 1970 that the clock shows at guest time zero.
    ///   - contents: CMOS RAM by address; what lies below 0x0E is the clock's and ignored.
    public init(irq: any Line, time: Int64, contents: [UInt8: UInt8] = [:]) {
        self.irq = irq
        var bytes = [UInt8](repeating: 0, count: 256)
        for (address, byte) in contents where address >= 0x0E { bytes[Int(address)] = byte }
        self.contents = bytes
        state = State(time: time, contents: bytes)
    }

    public var deadline: Instant? { state.deadline }
    public func advance(to now: Instant) { state.advance(to: now) }

    public func read(_ access: Access) throws(BusFault) -> UInt64 {
        switch access.offset {
        case 1: return UInt64(state.read(state.index & 0x7F))
        case 3: return UInt64(state.bytes[Int(state.upperIndex | 0x80)])
        default: throw .noRegister  // the index ports are write-only
        }
    }

    public func write(_ value: UInt64, _ access: Access) throws(BusFault) {
        let byte = UInt8(truncatingIfNeeded: value)
        switch access.offset {
        case 0: state.index = byte & 0x7F
        case 1: state.write(byte, at: state.index & 0x7F)
        case 2: state.upperIndex = byte & 0x7F
        case 3: state.bytes[Int(state.upperIndex | 0x80)] = byte
        default: throw .noRegister
        }
    }

    public func settle() { irq.drive(state.interrupts.contains(.request)) }
}

extension RTC146818 {
    /// Register A: divider and rate; bit 7, update in progress, is computed.
    public struct RegisterA: Register {
        public var rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue }
        /// Rate select (RS): the periodic interrupt's.
        public var rate: UInt8 { self[bits: 0...3] }
        /// Divider select (DV): 010 runs from 32.768 kHz, 11x holds the divider in reset.
        public var divider: UInt8 { self[bits: 4...6] }
        public static let updateInProgress = bit(7)
    }

    /// Register B: control.
    public struct RegisterB: Register {
        public var rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue }
        public static let daylightSaving = bit(0)
        public static let hours24 = bit(1)
        public static let binary = bit(2)
        public static let squareWave = bit(3)
        public static let updateEnded = bit(4)
        public static let alarm = bit(5)
        public static let periodic = bit(6)
        /// SET: the time stands still while it is being written.
        public static let set = bit(7)
    }

    /// Register C: which interrupts came; reading clears it. The enables in B have the same places.
    public struct RegisterC: Register {
        public var rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue }
        public static let updateEnded = bit(4)
        public static let alarm = bit(5)
        public static let periodic = bit(6)
        public static let request = bit(7)
    }

    /// Addresses of the registers; the rest is RAM.
    enum Address {
        static let seconds = 0x00
        static let secondsAlarm = 0x01
        static let minutes = 0x02
        static let minutesAlarm = 0x03
        static let hours = 0x04
        static let hoursAlarm = 0x05
        static let dayOfWeek = 0x06
        static let day = 0x07
        static let month = 0x08
        static let year = 0x09
        static let registerA = 0x0A
        static let registerB = 0x0B
        static let registerC = 0x0C
        static let registerD = 0x0D
        /// The byte that FADT names as century.
        static let century = 0x32
    }
}
