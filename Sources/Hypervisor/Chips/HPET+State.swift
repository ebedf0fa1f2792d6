public import Machine
public import Registers

extension HPET {
    /// Timer configuration and capability (§2.3.8).
    public struct TimerConfiguration: Register {
        public var rawValue: UInt64
        public init(rawValue: UInt64) { self.rawValue = rawValue }
        public static let level = bit(1)
        public static let enabled = bit(2)
        public static let periodic = bit(3)
        public static let periodicCapable = bit(4)
        public static let wide = bit(5)
        /// The next write to the comparator sets it, not the period alone.
        public static let setsValue = bit(6)
        public static let narrow = bit(8)
        static let writable = TimerConfiguration(rawValue: 0x3F4E)
        /// IOAPIC inputs 20-23, periodic, 64 bits.
        static let powerOn = TimerConfiguration(rawValue: 0x00F0_0000_0000_0030)
        var route: Int { Int(self[bits: 9...13]) }
    }

    public struct Timer: Codable, Equatable, Sendable {
        public var configuration = TimerConfiguration.powerOn
        public var comparator: UInt64 = .max
        public var period: UInt64 = 0
        public init() {}
        /// Bits that are compared.
        var mask: UInt64 { configuration.contains(.narrow) ? 0xFFFF_FFFF : .max }
    }

    public struct State: DeviceState {
        public static let schema = Schema("hpet", 1)
        public var now = Instant.zero
        public var configuration: UInt64 = 0
        public var interruptStatus: UInt64 = 0
        /// The main counter at the last look; while enabled it is `base` ticks ahead of guest time.
        public var counter: UInt64 = 0
        public var base: UInt64 = 0
        public var timers = [Timer(), Timer(), Timer()]
        public init() {}

        private enum Keys: String, CodingKey { case now, configuration, interruptStatus, counter, base, timers }
        public init(from decoder: any Decoder) throws {
            let values = try decoder.container(keyedBy: Keys.self)
            now = try values.decode(Instant.self, forKey: .now)
            configuration = try values.decode(UInt64.self, forKey: .configuration)
            interruptStatus = try values.decode(UInt64.self, forKey: .interruptStatus)
            counter = try values.decode(UInt64.self, forKey: .counter)
            base = try values.decode(UInt64.self, forKey: .base)
            timers = try values.decode([Timer].self, forKey: .timers)
            guard timers.count == HPET.timers else {
                throw DecodingError.dataCorruptedError(
                    forKey: .timers, in: values, debugDescription: "the HPET has \(HPET.timers) comparators")
            }
        }
        public func encode(to encoder: any Encoder) throws {
            var values = encoder.container(keyedBy: Keys.self)
            try values.encode(now, forKey: .now)
            try values.encode(configuration, forKey: .configuration)
            try values.encode(interruptStatus, forKey: .interruptStatus)
            try values.encode(counter, forKey: .counter)
            try values.encode(base, forKey: .base)
            try values.encode(timers, forKey: .timers)
        }

        public mutating func reset(_ cause: ResetCause) {
            if cause == .powerOn { self = State() }
        }

        var isEnabled: Bool { configuration & 1 != 0 }
        var isLegacy: Bool { configuration & 2 != 0 }

        func output(of index: Int) -> Output {
            if isLegacy, index < 2 { return .legacy(index == 0 ? 0 : 8) }
            return .input(timers[index].configuration.route)
        }

        /// Whether a level-triggered comparator holds its output.
        func asserts(_ index: Int) -> Bool {
            let configuration = timers[index].configuration
            return isEnabled && configuration.contains([.enabled, .level]) && interruptStatus >> UInt64(index) & 1 != 0
        }

        /// Ticks until comparator `index` matches, counted from `counter`; a full turn if it matches now.
        private func distance(_ index: Int) -> UInt64? {
            let distance = (timers[index].comparator &- counter) & timers[index].mask
            if distance != 0 { return distance }
            return timers[index].configuration.contains(.narrow) ? 0x1_0000_0000 : nil
        }

        var nextExpiry: Instant? {
            guard isEnabled else { return nil }
            let enabled = timers.indices.filter { timers[$0].configuration.contains(.enabled) }
            guard let ticks = enabled.compactMap({ distance($0) }).min() else { return nil }
            let (tick, overflow) = HPET.rate.ticks(at: now).addingReportingOverflow(ticks)
            return overflow ? nil : HPET.rate.instant(of: tick)
        }

        /// Counts on to `time`; the comparators that matched and want an edge.
        mutating func advance(to time: Instant) -> [Int] {
            now = time
            guard isEnabled else { return [] }
            let passed = base &+ HPET.rate.ticks(at: now) &- counter
            guard passed != 0, passed < 1 << 63 else { return [] }
            var edges: [Int] = []
            for index in timers.indices {
                guard let distance = distance(index), distance <= passed else { continue }
                repeatPeriod(index, late: passed - distance)
                guard timers[index].configuration.contains(.enabled) else { continue }
                if timers[index].configuration.contains(.level) {
                    interruptStatus |= 1 << UInt64(index)
                } else {
                    edges.append(index)
                }
            }
            counter &+= passed
            return edges
        }

        /// A periodic comparator moves on by whole periods, past the present count.
        private mutating func repeatPeriod(_ index: Int, late: UInt64) {
            let timer = timers[index]
            guard timer.configuration.contains(.periodic), timer.period != 0 else { return }
            let moved = timer.comparator &+ (late / timer.period &+ 1) &* timer.period
            timers[index].comparator = moved & timer.mask
        }

        func read(_ register: UInt64) throws(BusFault) -> UInt64 {
            switch register {
            // Period, vendor, legacy capable, 64 bits, number of timers less one, revision (§2.3.4).
            case 0x000: return HPET.period << 32 | 0x8086_A001 | UInt64(HPET.timers - 1) << 8
            case 0x010: return configuration
            case 0x020: return interruptStatus
            case 0x0F0: return counter
            case 0x100..<0x160:
                let timer = timers[Int((register - 0x100) / 0x20)]
                switch register & 0x18 {
                case 0x00: return timer.configuration.rawValue
                case 0x08: return timer.comparator & timer.mask
                default: return 0
                }
            default: throw .noRegister
            }
        }

        /// `value` and `mask` are in place within the 64-bit register.
        mutating func write(_ value: UInt64, mask: UInt64, _ register: UInt64) throws(BusFault) {
            switch register {
            case 0x010: writeConfiguration(configuration & ~mask | value & mask)
            case 0x020: interruptStatus &= ~(value & mask & 7)
            case 0x0F0:
                counter = counter & ~mask | value & mask
                base = counter &- HPET.rate.ticks(at: now)
            case 0x100..<0x160:
                let index = Int((register - 0x100) / 0x20)
                if register & 0x18 == 0 { writeTimer(index, value, mask) }
                if register & 0x18 == 8 { writeComparator(index, value, mask) }
            case 0x000: return
            default: throw .noRegister
            }
        }

        /// ENABLE_CNF starts and stops the counter where it is (§2.3.5).
        private mutating func writeConfiguration(_ value: UInt64) {
            configuration = value & 3
            base = counter &- HPET.rate.ticks(at: now)
        }

        private mutating func writeTimer(_ index: Int, _ value: UInt64, _ mask: UInt64) {
            let old = timers[index].configuration
            timers[index].configuration = old.written(old.rawValue & ~mask | value & mask, writable: .writable)
            if !timers[index].configuration.contains(.periodic) { timers[index].configuration.remove(.setsValue) }
            if !timers[index].configuration.contains(.level) { interruptStatus &= ~(1 << UInt64(index)) }
        }

        /// In periodic mode a write is the period; with `setsValue` also the next match (§2.3.9.2.2).
        private mutating func writeComparator(_ index: Int, _ value: UInt64, _ mask: UInt64) {
            let timer = timers[index]
            let merged = { (old: UInt64) in (old & ~mask | value & mask) & timer.mask }
            if timer.configuration.contains(.periodic) { timers[index].period = merged(timer.period) }
            if !timer.configuration.contains(.periodic) || timer.configuration.contains(.setsValue) {
                timers[index].comparator = merged(timer.comparator)
            }
            // A 64-bit value written in halves stays open until the upper half came.
            if mask >> 63 != 0 || timer.configuration.contains(.narrow) {
                timers[index].configuration.remove(.setsValue)
            }
        }
    }
}
