// ACPI power management timer: a free-running counter at 3.579545 MHz.
// Source: ACPI 6.4 §4.8.2.1 and §4.8.3.3; Intel 82371AB (PIIX4) §7.2, PMTMR.
// Modelled: the 24-bit counter. Not modelled: its carry interrupt (TMR_STS is the PM function's).
// Quirks: at a fixed port: SeaBIOS puts PMBASE at 0x600 wherever a linker script for ACPI tables exists.

public import Machine

public final class PMTimer: Device {
    public let regions: [Region]
    public var state = State()

    /// `port`: PMBASE + 8.
    public init(port: UInt64 = 0x608) {
        regions = [Region("pm-timer", .port, port...(port + 3), widths: [.byte, .word, .long])]
    }

    public func read(_ access: Access) throws(BusFault) -> UInt64 {
        guard access.offset < 4 else { throw .noRegister }
        return (UInt64(state.count) >> (access.offset * 8)) & access.width.ones
    }

    /// PMTMR is read-only; writes are lost.
    public func write(_ value: UInt64, _ access: Access) throws(BusFault) {}
    public func advance(to now: Instant) { state.now = now }
    public func settle() {}

    public struct State: DeviceState {
        public static let schema = Schema("pm-timer", 1)
        public var now = Instant.zero
        public init() {}
        public mutating func reset(_ cause: ResetCause) { self = State() }
        /// TMR_VAL; bits 31:24 read as zero.
        public var count: UInt32 { UInt32(truncatingIfNeeded: TickRate.acpi.ticks(at: now)) & 0xFF_FFFF }
    }
}
