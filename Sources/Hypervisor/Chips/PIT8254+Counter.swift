/// One counter of an 8254. What it shows is computed from when it was loaded; nothing ticks.
extension PIT8254 {
    public struct Counter: Codable, Equatable, Sendable {
        /// M2:M0, 0-5.
        public var mode: UInt8 = 3
        public var bcd = false
        /// RW1:RW0: 1 low byte, 2 high byte, 3 low then high.
        public var access: UInt8 = 3
        /// Count in use, 1...65536 (10,000 in BCD); nil until one was written after the control word.
        public var count: UInt64?
        /// A count that takes over at the end of the period (modes 2 and 3).
        public var next: UInt64?
        /// Tick at which the present count began.
        public var start: UInt64 = 0
        /// Ticks that had passed when the gate stopped the counter.
        public var stopped: UInt64?
        public var gate = true
        /// Modes 1 and 5 count only after a rise of the gate.
        public var triggered = false
        public var writeLow: UInt8?
        public var readsHigh = false
        /// Latched count and how many of its bytes are still to be read.
        public var latch: UInt16 = 0
        public var latchedBytes: UInt8 = 0
        public var status: UInt8?
        public init() {}

        /// Whether a saved form can be right.
        var isValid: Bool {
            let range: ClosedRange<UInt64> = 1...0x1_0000
            return mode < 6 && (1...3).contains(access) && count.map(range.contains) ?? true
                && next.map(range.contains) ?? true && latchedBytes <= 2
        }

        private var modulus: UInt64 { bcd ? 10_000 : 0x1_0000 }

        /// Ticks counted since the load; nil while nothing is counted.
        private func elapsed(at tick: UInt64) -> UInt64? {
            guard count != nil else { return nil }
            if mode == 1 || mode == 5, !triggered { return nil }
            return stopped ?? (tick > start ? tick - start : 0)
        }

        /// OUT (datasheet, "Mode Definitions").
        public func output(at tick: UInt64) -> Bool {
            guard let count, let elapsed = elapsed(at: tick) else { return mode != 0 }
            switch mode {
            case 0, 1: return elapsed >= count
            case 2: return stopped != nil || elapsed % count != count - 1 || count == 1
            case 3: return stopped != nil || elapsed % count < (count + 1) / 2
            default: return elapsed != count
            }
        }

        /// The first tick after `tick` at which OUT goes high, if the gate stays.
        func nextRise(after tick: UInt64) -> UInt64? {
            guard let count, stopped == nil, elapsed(at: tick) != nil else { return nil }
            switch mode {
            case 0, 1: return tick < start &+ count ? start &+ count : nil
            case 2, 3:
                let periods = (tick > start ? tick - start : 0) / count + 1
                return start &+ periods &* count
            default: return tick < start &+ count &+ 1 ? start &+ count &+ 1 : nil
            }
        }

        /// Lets time pass: a waiting count takes over at the end of a period.
        mutating func pass(to tick: UInt64) {
            guard let count, stopped == nil, mode == 2 || mode == 3, tick >= start &+ count else { return }
            if let next {
                start &+= count
                (self.count, self.next) = (next, nil)
            }
            guard let count = self.count, tick > start else { return }
            start &+= (tick - start) / count &* count
        }

        /// CE as the guest reads it.
        func value(at tick: UInt64) -> UInt16 {
            guard let count, let elapsed = elapsed(at: tick) else { return encode(self.count ?? 0) }
            switch mode {
            case 2: return encode(count - elapsed % count)
            case 3: return encode(count - (2 &* elapsed) % count & ~1)
            default: return encode((count + modulus - elapsed % modulus) % modulus)
            }
        }

        private func encode(_ value: UInt64) -> UInt16 {
            let value = value % modulus
            guard bcd else { return UInt16(truncatingIfNeeded: value) }
            let digits = value % 10 | (value / 10 % 10) << 4 | (value / 100 % 10) << 8 | (value / 1000 % 10) << 12
            return UInt16(truncatingIfNeeded: digits)
        }

        private func decode(_ word: UInt16) -> UInt64 {
            var value = UInt64(word)
            if bcd {
                value = (0..<4).reversed().reduce(0) { $0 * 10 + UInt64(word >> UInt16($1 * 4)) & 0xF }
                value %= modulus
            }
            return value == 0 ? modulus : value
        }

        /// A control word for this counter: latch command (RW = 0) or a new mode.
        mutating func command(_ byte: UInt8, at tick: UInt64) {
            let access = byte >> 4 & 3
            guard access != 0 else { return latchCount(at: tick) }
            self.access = access
            let mode = byte >> 1 & 7
            self.mode = mode > 5 ? mode - 4 : mode
            bcd = byte & 1 != 0
            (count, next, stopped, triggered) = (nil, nil, nil, false)
            (writeLow, readsHigh, latchedBytes, status) = (nil, false, 0, nil)
        }

        mutating func latchCount(at tick: UInt64) {
            guard latchedBytes == 0 else { return }
            latch = value(at: tick)
            latchedBytes = access == 3 ? 2 : 1
        }

        /// Status byte: OUT, null count, RW, mode, BCD (datasheet, figure 11).
        mutating func latchStatus(at tick: UInt64) {
            guard status == nil else { return }
            let null: UInt8 = count == nil || next != nil ? 0x40 : 0
            status = (output(at: tick) ? 0x80 : 0) | null | access << 4 | mode << 1 | (bcd ? 1 : 0)
        }

        mutating func readByte(at tick: UInt64) -> UInt8 {
            if let status {
                self.status = nil
                return status
            }
            let value = latchedBytes > 0 ? latch : self.value(at: tick)
            let high = access == 2 || access == 3 && readsHigh
            if access == 3 { readsHigh.toggle() }
            if latchedBytes > 0 { latchedBytes -= 1 }
            return UInt8(truncatingIfNeeded: high ? value >> 8 : value)
        }

        mutating func writeByte(_ byte: UInt8, at tick: UInt64) {
            switch access {
            case 1: load(UInt16(byte), at: tick)
            case 2: load(UInt16(byte) << 8, at: tick)
            default:
                guard let low = writeLow else {
                    writeLow = byte
                    // The first byte stops a mode 0 count (datasheet, "Mode 0").
                    if mode == 0 { count = nil }
                    return
                }
                writeLow = nil
                load(UInt16(byte) << 8 | UInt16(low), at: tick)
            }
        }

        private mutating func load(_ word: UInt16, at tick: UInt64) {
            let value = decode(word)
            switch mode {
            case 2 where count != nil, 3 where count != nil: next = value
            case 1, 5:
                // Takes effect with the next trigger.
                if triggered { next = value } else { count = value }
            default:
                (count, next, start) = (value, nil, tick)
                stopped = gate ? nil : 0
            }
        }

        /// The gate input (datasheet, "Gate Pin Operations Summary").
        mutating func setGate(_ high: Bool, at tick: UInt64) {
            guard high != gate else { return }
            gate = high
            switch mode {
            case 1, 5:
                guard high, count != nil else { return }
                if let next { (count, self.next) = (next, nil) }
                (triggered, start) = (true, tick)
            case 2, 3:
                if high {
                    if let next { (count, self.next) = (next, nil) }
                    (start, stopped) = (tick, nil)
                } else {
                    stopped = elapsed(at: tick)
                }
            default:
                if high, let stopped {
                    start = tick >= stopped ? tick - stopped : 0
                    self.stopped = nil
                } else if !high {
                    stopped = elapsed(at: tick)
                }
            }
        }
    }
}
