// System control port A, and the gate that joins its A20 with the keyboard controller's.
// Source: IBM PS/2 Technical Reference, "System control port A"; Intel 82371SB (PIIX3) data sheet, FAST_INIT and A20M#.
// Modelled: fast A20, fast reset. Not modelled: disk activity lights, security lock.
// Quirks: a reset is made by bit 0 going from 0 to 1.

public import Machine

/// Port 0x92.
public final class Port92: Device {
    public struct State: DeviceState {
        public static let schema = Schema("port92", 1)
        public var value: UInt8 = 0
        public init() {}
        public mutating func reset(_ cause: ResetCause) { self = State() }
    }
    public let regions = [Region("system control a", .port, 0x92...0x92)]
    private let a20: any Line
    private let resetCPU: any Line
    public var state = State()

    public init(a20: any Line, resetCPU: any Line) { (self.a20, self.resetCPU) = (a20, resetCPU) }

    public func read(_ access: Access) throws(BusFault) -> UInt64 { UInt64(state.value) }

    public func write(_ value: UInt64, _ access: Access) throws(BusFault) {
        let rises = state.value & 1 == 0 && value & 1 != 0
        state.value = UInt8(truncatingIfNeeded: value & 3)
        guard rises else { return }
        resetCPU.drive(true)
        resetCPU.drive(false)
    }

    public func settle() { a20.drive(state.value & 2 != 0) }
}

/// Address line 20 is open while either of its two masters opens it.
public final class A20Gate {
    /// The keyboard controller's.
    public private(set) lazy var keyboardController: any Line = Wire { [weak self] high in self?.update(0, high) }
    /// Port 0x92's.
    public private(set) lazy var fast: any Line = Wire { [weak self] high in self?.update(1, high) }
    private var inputs = [false, false]
    private let output: any Line

    public init(_ output: any Line) { self.output = output }

    private func update(_ index: Int, _ high: Bool) {
        inputs[index] = high
        output.drive(inputs.contains(true))
    }
}
