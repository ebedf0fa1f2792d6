// The PC's 8254 timer and port 0x61: system timer, refresh, speaker.
// Source: Intel 8254 datasheet (231164-005); port 0x61: Intel 82371AB §4.2.6 (NMISC).
// Modelled: six modes, BCD, latches, read-back, gate 2. Not modelled: gates 0 and 1 (tied high), NMI sources.
// Quirks: IRQ 0 gets one edge for a period however late it is looked at; late ticks are not made up for.

public import Machine

public final class PIT8254: Device {
    public let regions = [
        Region("pit", .port, 0x40...0x43), Region("port-61", .port, 0x61...0x61),
    ]
    private let irq: any Line
    public var state = State()

    /// `irq`: OUT of counter 0.
    public init(irq: any Line) { self.irq = irq }

    public func read(_ access: Access) throws(BusFault) -> UInt64 {
        if access.region == 1 { return UInt64(state.readPort61()) }
        guard access.offset < 3 else { throw .noRegister }
        return UInt64(state.counters[Int(access.offset)].readByte(at: state.tick))
    }

    public func write(_ value: UInt64, _ access: Access) throws(BusFault) {
        let byte = UInt8(truncatingIfNeeded: value)
        if access.region == 1 {
            state.writePort61(byte)
        } else if access.offset == 3 {
            state.writeControl(byte)
        } else {
            state.counters[Int(access.offset & 3)].writeByte(byte, at: state.tick)
        }
    }

    /// The next rise of OUT 0; falls need no interrupt and are made up when the chip is looked at.
    public var deadline: Instant? {
        state.counters[0].nextRise(after: state.tick).map { TickRate.pit.instant(of: $0) }
    }

    public func advance(to now: Instant) {
        let before = state.tick
        state.now = now
        let tick = state.tick
        guard tick > before else { return }
        if let rise = state.counters[0].nextRise(after: before), rise <= tick {
            irq.drive(false)
            irq.drive(true)
        }
        for index in 0..<3 { state.counters[index].pass(to: tick) }
        settle()
    }

    public func settle() { irq.drive(state.counters[0].output(at: state.tick)) }

    public struct State: DeviceState {
        public static let schema = Schema("pit8254", 1)
        public var now = Instant.zero
        public var counters = [Counter(), Counter(), Counter()]
        /// Bits 3:0 of port 0x61: gate 2, speaker, and two NMI enables that are only kept.
        public var port61: UInt8 = 0
        public init() { counters[2].gate = false }

        private enum Keys: String, CodingKey { case now, counters, port61 }
        public init(from decoder: any Decoder) throws {
            let values = try decoder.container(keyedBy: Keys.self)
            now = try values.decode(Instant.self, forKey: .now)
            counters = try values.decode([Counter].self, forKey: .counters)
            port61 = try values.decode(UInt8.self, forKey: .port61)
            guard counters.count == 3, counters.allSatisfy(\.isValid) else {
                throw DecodingError.dataCorruptedError(
                    forKey: .counters, in: values, debugDescription: "the 8254 has three counters of 16 bits")
            }
        }
        public func encode(to encoder: any Encoder) throws {
            var values = encoder.container(keyedBy: Keys.self)
            try values.encode(now, forKey: .now)
            try values.encode(counters, forKey: .counters)
            try values.encode(port61, forKey: .port61)
        }

        public mutating func reset(_ cause: ResetCause) {
            if cause == .powerOn { self = State() }
        }

        var tick: UInt64 { TickRate.pit.ticks(at: now) }

        mutating func writeControl(_ byte: UInt8) {
            let index = Int(byte >> 6)
            guard index == 3 else { return counters[index].command(byte, at: tick) }
            for counter in 0..<3 where byte & (2 << UInt8(counter)) != 0 {
                if byte & 0x20 == 0 { counters[counter].latchCount(at: tick) }
                if byte & 0x10 == 0 { counters[counter].latchStatus(at: tick) }
            }
        }

        mutating func writePort61(_ byte: UInt8) {
            port61 = byte & 0x0F
            counters[2].setGate(byte & 1 != 0, at: tick)
        }

        /// Bit 5 is OUT 2; bit 4 changes with every memory refresh, about 15 microseconds.
        func readPort61() -> UInt8 {
            let refresh: UInt8 = (tick / 18) & 1 != 0 ? 0x10 : 0
            return port61 | refresh | (counters[2].output(at: tick) ? 0x20 : 0)
        }
    }
}
