// State of the MC146818A: registers, RAM, and how time passes.
// Source: MC146818A datasheet, "Update cycle", "Divider stages", "Periodic interrupt selection" (table 5).
// Modelled: see RTC146818.swift.
// Quirks: no timer runs unless an enabled interrupt waits for it; flags are worked out when somebody looks.

public import Machine

extension RTC146818 {
    /// Everything a guest can tell apart.
    public struct State: DeviceState {
        public static let schema = Schema("rtc146818", 1)
        public internal(set) var index: UInt8 = 0
        public internal(set) var upperIndex: UInt8 = 0
        public internal(set) var bytes: [UInt8]
        /// Up to when time has been let pass.
        public private(set) var now = Instant.zero
        /// When the last update cycle took place; the next one is a second later.
        public private(set) var lastUpdate = Instant.zero
        /// When the divider chain started, from which periodic interrupts count.
        public private(set) var dividerStart = Instant.zero

        static let second: UInt64 = 1_000_000_000
        /// Update in progress shows 244 µs ahead of the update.
        static let warning: UInt64 = 244_000

        init(time: Int64, contents: [UInt8]) {
            bytes = contents
            bytes[Address.registerA] = 0x26
            bytes[Address.registerB] = RegisterB.hours24.rawValue
            bytes[Address.registerC] = 0
            bytes[Address.registerD] = 0x80
            show(Calendar(seconds: time))
        }

        public init(from decoder: any Decoder) throws {
            let values = try decoder.container(keyedBy: CodingKeys.self)
            index = try values.decode(UInt8.self, forKey: .index) & 0x7F
            upperIndex = try values.decode(UInt8.self, forKey: .upperIndex) & 0x7F
            bytes = try values.decode([UInt8].self, forKey: .bytes)
            now = try values.decode(Instant.self, forKey: .now)
            lastUpdate = try values.decode(Instant.self, forKey: .lastUpdate)
            dividerStart = try values.decode(Instant.self, forKey: .dividerStart)
            guard bytes.count == 256 else {
                throw DecodingError.dataCorruptedError(
                    forKey: .bytes, in: values, debugDescription: "the RTC has 256 bytes")
            }
        }
        private enum CodingKeys: String, CodingKey { case index, upperIndex, bytes, now, lastUpdate, dividerStart }

        /// RESET: interrupt enables and flags go off; time and RAM have their own battery.
        public mutating func reset(_ cause: ResetCause) {
            guard cause == .powerOn else { return }
            bytes[Address.registerB] &= ~0x78
            bytes[Address.registerC] = 0
        }

        var registerA: RegisterA { RegisterA(rawValue: bytes[Address.registerA]) }
        var registerB: RegisterB { RegisterB(rawValue: bytes[Address.registerB]) }
        /// Flags, with IRQF worked out from the enables.
        var interrupts: RegisterC {
            let flags = bytes[Address.registerC] & 0x70
            return RegisterC(rawValue: flags & bytes[Address.registerB] != 0 ? flags | 0x80 : flags)
        }
        private var runs: Bool { registerA.divider & 0b110 != 0b110 && !registerB.contains(.set) }

        mutating func read(_ index: UInt8) -> UInt8 {
            switch Int(index) {
            case Address.registerA: return registerA.rawValue & 0x7F | (updateInProgress ? 0x80 : 0)
            case Address.registerC:
                let value = interrupts.rawValue
                bytes[Address.registerC] = 0
                return value
            case Address.registerD: return 0x80  // valid RAM and time
            default: return bytes[Int(index)]
            }
        }

        private var updateInProgress: Bool {
            runs && now.since(lastUpdate) >= Self.second - Self.warning
        }

        mutating func write(_ value: UInt8, at index: UInt8) {
            switch Int(index) {
            case Address.registerA: writeA(value)
            case Address.registerB: writeB(RegisterB(rawValue: value))
            case Address.registerC, Address.registerD: return
            default: bytes[Int(index)] = value
            }
        }

        private mutating func writeA(_ value: UInt8) {
            let wasHeld = registerA.divider & 0b110 == 0b110
            bytes[Address.registerA] = value & 0x7F
            let isHeld = registerA.divider & 0b110 == 0b110
            guard wasHeld != isHeld else { return }
            // The first update comes half a second after the divider is let go.
            if wasHeld {
                dividerStart = now
                lastUpdate = now.earlier(by: Self.second / 2)
            }
        }

        private mutating func writeB(_ value: RegisterB) {
            let wasSet = registerB.contains(.set)
            var value = value
            if value.contains(.set) { value.remove(.updateEnded) }
            bytes[Address.registerB] = value.rawValue
            // Seconds that passed while the guest wrote the time do not count.
            if wasSet, !value.contains(.set) {
                let fraction = now.since(lastUpdate) % Self.second
                lastUpdate = now.earlier(by: fraction)
            }
        }
    }
}

extension Instant {
    /// This instant less `nanoseconds`, not below zero.
    func earlier(by amount: UInt64) -> Instant {
        Instant(nanoseconds: nanoseconds > amount ? nanoseconds - amount : 0)
    }
}

/// How time passes.
extension RTC146818.State {
    /// Nanoseconds between periodic interrupts, zero for none (table 5, 32.768 kHz).
    private var period: UInt64 {
        let rate = registerA.rate
        guard rate != 0, registerA.divider & 0b110 != 0b110 else { return 0 }
        let shift = rate < 3 ? rate + 6 : rate - 1
        return (Self.second << UInt64(shift)) / 32_768
    }

    /// The next instant at which an enabled interrupt can come that has not come yet.
    var deadline: Instant? {
        let flags = interrupts
        var next: Instant?
        if registerB.contains(.periodic), !flags.contains(.periodic), period > 0 {
            let passed = now.since(dividerStart) / period
            next = dividerStart + (passed &+ 1) &* period
        }
        let waitsForUpdate =
            registerB.contains(.updateEnded) && !flags.contains(.updateEnded)
            || registerB.contains(.alarm) && !flags.contains(.alarm)
        if waitsForUpdate, runsNow {
            let update = lastUpdate + Self.second
            next = next.map { min($0, update) } ?? update
        }
        return next
    }

    private var runsNow: Bool { registerA.divider & 0b110 != 0b110 && !registerB.contains(.set) }

    mutating func advance(to instant: Instant) {
        guard instant > now else { return }
        if period > 0, instant.since(dividerStart) / period != now.since(dividerStart) / period {
            bytes[0x0C] |= RTC146818.RegisterC.periodic.rawValue
        }
        now = instant
        guard runsNow else { return }
        let seconds = now.since(lastUpdate) / Self.second
        guard seconds > 0 else { return }
        lastUpdate = lastUpdate + seconds &* Self.second
        update(seconds)
    }

    /// Carries out `seconds` update cycles.
    private mutating func update(_ seconds: UInt64) {
        let start = calendar.seconds
        // An alarm that comes at all comes within a day.
        for step in 1...min(seconds, 86_400) where alarmMatches(Calendar(seconds: start &+ Int64(step))) {
            bytes[0x0C] |= RTC146818.RegisterC.alarm.rawValue
            break
        }
        show(Calendar(seconds: start &+ Int64(truncatingIfNeeded: seconds)))
        bytes[0x0C] |= RTC146818.RegisterC.updateEnded.rawValue
    }

    /// An alarm byte of 0xC0 or more matches everything ("don't care").
    private func alarmMatches(_ time: Calendar) -> Bool {
        func matches(_ address: Int, _ value: UInt8) -> Bool { bytes[address] >= 0xC0 || bytes[address] == value }
        return matches(RTC146818.Address.secondsAlarm, encode(time.second))
            && matches(RTC146818.Address.minutesAlarm, encode(time.minute))
            && matches(RTC146818.Address.hoursAlarm, encodeHour(time.hour))
    }

    private func encode(_ value: Int) -> UInt8 {
        let byte = UInt8(truncatingIfNeeded: value)
        return registerB.contains(.binary) ? byte : (byte / 10) << 4 | byte % 10
    }

    private func decode(_ byte: UInt8) -> Int {
        registerB.contains(.binary) ? Int(byte) : Int(byte >> 4) * 10 + Int(byte & 0xF)
    }

    /// 12-hour mode counts 12, 1...11 with bit 7 for the afternoon.
    private func encodeHour(_ hour: Int) -> UInt8 {
        if registerB.contains(.hours24) { return encode(hour) }
        return encode(hour % 12 == 0 ? 12 : hour % 12) | (hour >= 12 ? 0x80 : 0)
    }

    private func decodeHour(_ byte: UInt8) -> Int {
        if registerB.contains(.hours24) { return decode(byte) }
        return decode(byte & 0x7F) % 12 + (byte & 0x80 != 0 ? 12 : 0)
    }

    /// The time that the registers show.
    var calendar: Calendar {
        typealias Address = RTC146818.Address
        return Calendar(
            year: decode(bytes[Address.century]) * 100 + decode(bytes[Address.year]),
            month: decode(bytes[Address.month]), day: decode(bytes[Address.day]),
            hour: decodeHour(bytes[Address.hours]), minute: decode(bytes[Address.minutes]),
            second: decode(bytes[Address.seconds]))
    }

    mutating func show(_ time: Calendar) {
        typealias Address = RTC146818.Address
        bytes[Address.seconds] = encode(time.second)
        bytes[Address.minutes] = encode(time.minute)
        bytes[Address.hours] = encodeHour(time.hour)
        bytes[Address.dayOfWeek] = encode(time.dayOfWeek)
        bytes[Address.day] = encode(time.day)
        bytes[Address.month] = encode(time.month)
        bytes[Address.year] = encode(time.year % 100)
        bytes[Address.century] = encode(time.year / 100 % 100)
    }
}
