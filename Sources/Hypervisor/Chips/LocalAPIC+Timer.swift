// The APIC timer (SDM vol. 3 §11.5.4).

internal import Machine

extension LocalAPIC.State {
    /// 100 MHz, as Xen's virtual APIC bus.
    static let nanosecondsPerCycle: UInt64 = 10
    /// No periodic timer fires more often.
    static let shortestPeriod: UInt64 = 20_000

    /// Nanoseconds of one count: DCR bits 3, 1 and 0 encode 2, 4 ... 128, 1 (figure 11-10).
    private var nanosecondsPerCount: UInt64 {
        let code = divide & 3 | divide >> 1 & 4
        return Self.nanosecondsPerCycle << UInt64((code + 1) & 7)
    }

    private var period: UInt64 { UInt64(initialCount) &* nanosecondsPerCount }

    var currentCount: UInt32 {
        guard self[.timer].timerMode < 2, initialCount != 0, let timerStart else { return 0 }
        let counts = now.since(timerStart) / nanosecondsPerCount
        if counts < UInt64(initialCount) { return initialCount - UInt32(counts) }
        guard self[.timer].timerMode == 1 else { return 0 }
        return initialCount - UInt32(counts % UInt64(initialCount))
    }

    mutating func startTimer(_ count: UInt32) {
        guard self[.timer].timerMode != 2 else { return }
        initialCount = count
        timerStart = count == 0 ? nil : now
    }

    /// A new divisor goes on with the present count.
    mutating func writeDivide(_ value: UInt32) {
        let left = UInt64(currentCount)
        divide = value
        guard timerStart != nil, left > 0 else { return }
        let passed = (UInt64(initialCount) &- left) &* nanosecondsPerCount
        timerStart = Instant(nanoseconds: now.nanoseconds > passed ? now.nanoseconds - passed : 0)
    }

    /// The instant at which the timer next fires.
    var nextExpiry: Instant? {
        switch self[.timer].timerMode {
        case 0: return timerStart.map { $0 + period }
        case 1: return timerStart.map { $0 + max(period, Self.shortestPeriod) }
        case 2: return tscDeadline == 0 ? nil : TickRate(hertz: tsc).instant(of: tscDeadline)
        default: return nil
        }
    }

    /// Lets time pass; true if the timer fired.
    mutating func advance(to time: Instant) -> Bool {
        now = time
        guard let expiry = nextExpiry, expiry <= time else { return false }
        switch self[.timer].timerMode {
        case 0: timerStart = nil
        case 1:
            // Late periods are not made up for.
            let length = max(period, Self.shortestPeriod)
            timerStart = expiry + time.since(expiry) / length * length
        default: tscDeadline = 0
        }
        let entry = self[.timer]
        guard !entry.contains(.masked) else { return false }
        accept(vector: entry.vector, isLevel: false)
        return true
    }
}
