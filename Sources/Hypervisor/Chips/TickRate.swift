/// A chip's clock: whole ticks of a crystal counted from guest time zero.
public import Machine

public struct TickRate: Sendable, Hashable {
    public let hertz: UInt64
    public init(hertz: UInt64) {
        precondition(hertz > 0, "a clock that stands still")
        self.hertz = hertz
    }

    /// 14.31818 MHz / 12: the 8254's clock.
    public static let pit = TickRate(hertz: 1_193_182)
    /// 14.31818 MHz / 4: ACPI's power management timer.
    public static let acpi = TickRate(hertz: 3_579_545)

    /// Whole ticks that have passed at `now`.
    @inlinable public func ticks(at now: Instant) -> UInt64 {
        let product = now.nanoseconds.multipliedFullWidth(by: hertz)
        // Guest time past 2^64 / hertz seconds would overflow the quotient; it stands still there.
        guard product.high < 1_000_000_000 else { return .max }
        return UInt64(1_000_000_000).dividingFullWidth(product).quotient
    }

    /// The first instant at which `ticks(at:)` is `tick`; the end of time if there is none.
    @inlinable public func instant(of tick: UInt64) -> Instant {
        let product = tick.multipliedFullWidth(by: 1_000_000_000)
        guard product.high < hertz else { return Instant(nanoseconds: .max) }
        let (quotient, remainder) = hertz.dividingFullWidth(product)
        return Instant(nanoseconds: remainder == 0 || quotient == .max ? quotient : quotient + 1)
    }
}
