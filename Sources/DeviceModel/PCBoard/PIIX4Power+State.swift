// State of PIIX4 power management.
// Source: Intel 82371AB datasheet 290562-001, §7.2 and §7.3.
// Modelled: see PIIX4Power.swift.
// Quirks: the timer has 24 bits and counts guest time at 3.579545 MHz; its status bit follows bit 23.

public import Machine

extension PIIX4Power {
    /// Everything a guest can tell apart.
    public struct State: DeviceState {
        public static let schema = Schema("piix4-power", 1)
        public internal(set) var status: Events = []
        public private(set) var enable: Events = []
        public private(set) var control: Control = []
        /// GPE0 status (2 bytes) and enable (2 bytes).
        public private(set) var generalEvents: [UInt8] = [0, 0, 0, 0]
        /// APMC and APMS.
        public private(set) var apm: [UInt8] = [0, 0]
        public internal(set) var smbus = SMBus()
        /// The remaining registers of the block, which only hold what is written.
        private var other = [UInt8](repeating: 0, count: 64)
        public private(set) var now = Instant.zero
        private var softOff = false
        static let frequency: UInt64 = 3_579_545

        public init() {}
        public init(from decoder: any Decoder) throws {
            let values = try decoder.container(keyedBy: CodingKeys.self)
            status = try values.decode(Events.self, forKey: .status)
            enable = try values.decode(Events.self, forKey: .enable)
            control = try values.decode(Control.self, forKey: .control)
            generalEvents = try values.decode([UInt8].self, forKey: .generalEvents)
            apm = try values.decode([UInt8].self, forKey: .apm)
            smbus = try values.decode(SMBus.self, forKey: .smbus)
            other = try values.decode([UInt8].self, forKey: .other)
            now = try values.decode(Instant.self, forKey: .now)
            softOff = try values.decode(Bool.self, forKey: .softOff)
            guard generalEvents.count == 4, apm.count == 2, other.count == 64 else {
                throw DecodingError.dataCorruptedError(
                    forKey: .other, in: values, debugDescription: "a register block has the wrong size")
            }
        }
        private enum CodingKeys: String, CodingKey {
            case status, enable, control, generalEvents, apm, smbus, other, now, softOff
        }

        public mutating func reset(_ cause: ResetCause) {
            if cause == .powerOn { self = State() }
        }

        /// SCI: an enabled event waits and the system is in ACPI mode.
        var interrupt: Bool {
            guard control.contains(.sciEnable) else { return false }
            let general = generalEvents[0] & generalEvents[2] | generalEvents[1] & generalEvents[3]
            return !status.intersection(enable).isEmpty || general != 0
        }

        private static func ticks(_ instant: Instant) -> UInt64 {
            let (seconds, rest) = instant.nanoseconds.quotientAndRemainder(dividingBy: 1_000_000_000)
            return seconds &* frequency &+ rest * frequency / 1_000_000_000
        }

        /// PM_TMR, offset 8 (§7.2.4).
        var timer: UInt32 { UInt32(Self.ticks(now) & 0xFF_FFFF) }

        /// When bit 23 changes next, if anybody waits for that.
        var deadline: Instant? {
            guard enable.contains(.timer), control.contains(.sciEnable), !status.contains(.timer) else { return nil }
            let next = (Self.ticks(now) | 0x7F_FFFF) &+ 1
            let (seconds, rest) = next.quotientAndRemainder(dividingBy: Self.frequency)
            return Instant(
                nanoseconds: seconds &* 1_000_000_000 &+ (rest * 1_000_000_000 + Self.frequency - 1) / Self.frequency)
        }

        mutating func advance(to instant: Instant) {
            guard instant > now else { return }
            if Self.ticks(instant) >> 23 != Self.ticks(now) >> 23 { status.insert(.timer) }
            now = instant
        }

        mutating func takeSoftOff() -> Bool {
            defer { softOff = false }
            return softOff
        }
    }
}

/// Register accesses.
extension PIIX4Power.State {
    func readBlock(_ offset: Int, timer: UInt32) -> UInt8 {
        switch offset {
        case 0, 1: UInt8(truncatingIfNeeded: status.rawValue >> UInt16(offset * 8))
        case 2, 3: UInt8(truncatingIfNeeded: enable.rawValue >> UInt16((offset - 2) * 8))
        case 4, 5: UInt8(truncatingIfNeeded: control.rawValue >> UInt16((offset - 4) * 8))
        case 8...11: UInt8(truncatingIfNeeded: timer >> UInt32((offset - 8) * 8))
        case 6...63: other[offset]
        default: 0xFF
        }
    }

    mutating func writeBlock(_ byte: UInt8, _ offset: Int) {
        let shifted = UInt16(byte) << UInt16(offset & 1 != 0 ? 8 : 0)
        let mask: UInt16 = offset & 1 != 0 ? 0xFF00 : 0x00FF
        switch offset {
        case 0, 1: status.subtract(PIIX4Power.Events(rawValue: shifted).intersection(.clearable))
        case 2, 3:
            let wanted = PIIX4Power.Events(rawValue: enable.rawValue & ~mask | shifted)
            enable = wanted.intersection(.enables)
        case 4, 5: writeControl(PIIX4Power.Control(rawValue: control.rawValue & ~mask | shifted))
        case 8...11: return  // the timer cannot be written
        case 6...63: other[offset] = byte
        default: return
        }
    }

    /// Writing SLP_EN with type 0 is soft off; the other types are not offered by the tables.
    private mutating func writeControl(_ wanted: PIIX4Power.Control) {
        control = wanted.intersection(.stored)
        if wanted.contains(.sleepEnable), wanted.sleepType == 0 { softOff = true }
    }

    /// Status is cleared by ones, enables are stored.
    mutating func writeGeneralEvents(_ byte: UInt8, _ offset: Int) {
        if offset < 2 { generalEvents[offset] &= ~byte } else { generalEvents[offset & 3] = byte }
    }

    /// APMC takes the commands that FADT names.
    mutating func writeAPM(_ byte: UInt8, _ offset: Int) {
        apm[offset & 1] = byte
        guard offset == 0 else { return }
        if byte == 0xF1 { control.insert(.sciEnable) }
        if byte == 0xF0 { control.remove(.sciEnable) }
    }
}

/// PIIX4's SMBus host controller with nobody on the bus (§7.3).
public struct SMBus: Codable, Equatable, Sendable {
    private var status: UInt8 = 0
    private var registers = [UInt8](repeating: 0, count: 16)
    init() {}

    public init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: CodingKeys.self)
        status = try values.decode(UInt8.self, forKey: .status)
        registers = try values.decode([UInt8].self, forKey: .registers)
        guard registers.count == 16 else {
            throw DecodingError.dataCorruptedError(
                forKey: .registers, in: values, debugDescription: "the SMBus has 16 registers")
        }
    }
    private enum CodingKeys: String, CodingKey { case status, registers }

    mutating func read(_ offset: Int) -> UInt8 { offset == 0 ? status : registers[offset & 15] }

    /// SMBHSTSTS is cleared by ones; START in SMBHSTCNT ends in a device error, for no slave answers.
    mutating func write(_ byte: UInt8, _ offset: Int) {
        switch offset {
        case 0: status &= ~byte
        case 2:
            registers[2] = byte & ~0x40
            if byte & 0x40 != 0 { status |= 0x04 }
        default: registers[offset & 15] = byte
        }
    }
}
