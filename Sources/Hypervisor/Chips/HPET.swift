// High precision event timer: one 64-bit counter of 100 MHz, three comparators, legacy replacement.
// Source: IA-PC HPET specification 1.0a, §2.3 and §2.4.
// Modelled: periodic and one-shot, 32-bit mode, level and edge, legacy replacement. Not modelled: FSB delivery (not offered).
// Quirks: comparators may use IOAPIC inputs 20 to 23, as on Xen.

public import Machine

public final class HPET: Device {
    public static let timers = 3
    /// Femtoseconds of one tick.
    static let period: UInt64 = 10_000_000
    static let rate = TickRate(hertz: 100_000_000)

    /// Where a comparator's interrupt goes.
    public enum Output: Hashable, Sendable {
        /// IRQ 0 in place of the 8254, IRQ 8 in place of the RTC.
        case legacy(Int)
        /// An input of the I/O APIC.
        case input(Int)
    }

    public let regions = [Region("hpet", .memory, 0xFED0_0000...0xFED0_03FF, widths: [.long, .quad])]
    private let drive: (Output, Bool) -> Void
    private let legacyChanged: (Bool) -> Void
    /// What is driven high now.
    private var driven: [Output?] = [nil, nil, nil]
    public var state = State()

    /// `drive`: an output and its level. `legacyChanged`: the 8254 and the RTC are cut off from IRQ 0 and 8.
    public init(drive: @escaping (Output, Bool) -> Void, legacyChanged: @escaping (Bool) -> Void) {
        (self.drive, self.legacyChanged) = (drive, legacyChanged)
    }

    public func read(_ access: Access) throws(BusFault) -> UInt64 {
        guard access.offset & UInt64(access.width.rawValue - 1) == 0 else { throw .misaligned }
        let value = try state.read(access.offset & ~7)
        return access.width == .quad ? value : value >> (access.offset & 4 == 0 ? 0 : 32) & 0xFFFF_FFFF
    }

    public func write(_ value: UInt64, _ access: Access) throws(BusFault) {
        guard access.offset & UInt64(access.width.rawValue - 1) == 0 else { throw .misaligned }
        let register = access.offset & ~7
        let shift: UInt64 = access.offset & 4 == 0 ? 0 : 32
        let mask: UInt64 = access.width == .quad ? .max : 0xFFFF_FFFF << shift
        try state.write(value << shift, mask: mask, register)
    }

    public var deadline: Instant? { state.nextExpiry }

    public func advance(to now: Instant) {
        for index in state.advance(to: now) {
            let output = state.output(of: index)
            drive(output, true)
            drive(output, false)
        }
        settle()
    }

    public func settle() {
        legacyChanged(state.isLegacy)
        for index in 0..<Self.timers {
            let wanted = state.asserts(index) ? state.output(of: index) : nil
            guard wanted != driven[index] else { continue }
            if let old = driven[index] { drive(old, false) }
            if let wanted { drive(wanted, true) }
            driven[index] = wanted
        }
    }
}
