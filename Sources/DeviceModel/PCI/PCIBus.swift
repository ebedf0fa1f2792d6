// PCI bus 0: which function answers a configuration access, and where INTx lines go.
// Source: PCI Local Bus Specification 2.1, §3.2.2.3 (mechanism #1) and §2.2.6 (interrupt pins).
// Modelled: bus 0 with 32 devices of 8 functions. Not modelled: bridges to further buses.
// Quirks: no function there reads as ones, which is how firmware finds out.

public import Machine

/// The one PCI bus of the board.
public final class PCIBus {
    private var functions: [UInt8: Slot] = [:]
    /// How many functions drive pin `device * 4 + pin` high.
    private var highs = [Int](repeating: 0, count: 128)
    /// Told when INTA...INTD (0...3) of a device changes.
    public var interrupt: (_ device: Int, _ pin: Int, _ high: Bool) -> Void = { _, _, _ in }

    public init() {}

    /// Plugs `function` in. Its slot is made here, so that config accesses are counted like any other.
    @discardableResult
    public func attach(_ name: String, _ function: PCIFunction, device: Int, function number: Int = 0, on board: Board)
        -> Slot
    {
        precondition((0..<32).contains(device) && (0..<8).contains(number), "no such place on a PCI bus")
        let slot = board.attachUnmapped(name, function)
        functions[UInt8(device << 3 | number)] = slot
        let pin = Int(function.state.byte(ConfigOffset.interruptPin)) - 1
        if (0..<4).contains(pin) {
            function.route = { [unowned self] high in drive(device, pin, high) }
        }
        return slot
    }

    /// Takes a function away for good: nothing of it is decoded any more, and its line is low.
    public func detach(device: Int, function number: Int = 0) {
        guard let slot = functions.removeValue(forKey: UInt8(device << 3 | number)) else { return }
        (slot.device as? PCIFunction)?.withdraw()
    }

    private func drive(_ device: Int, _ pin: Int, _ high: Bool) {
        let index = device * 4 + pin
        let before = highs[index] > 0
        highs[index] += high ? 1 : -1
        if before != (highs[index] > 0) { interrupt(device, pin, highs[index] > 0) }
    }

    /// Reads a register of the function at `bus`, `devfn` (device << 3 | function).
    public func read(bus: UInt8, devfn: UInt8, register: UInt64, _ width: Width, at now: Instant) -> UInt64 {
        guard bus == 0, register < 256, let slot = functions[devfn] else { return width.ones }
        return slot.read(Access(offset: register, width: width), at: now)
    }

    public func write(_ value: UInt64, bus: UInt8, devfn: UInt8, register: UInt64, _ width: Width, at now: Instant) {
        guard bus == 0, register < 256, let slot = functions[devfn] else { return }
        slot.write(value, Access(offset: register, width: width), at: now)
    }

    /// Every function by its devfn, in order, with its power-on identity; for listings.
    public var listing: [(devfn: UInt8, vendor: UInt16, device: UInt16)] {
        functions.sorted { $0.key < $1.key }.compactMap { devfn, slot in
            guard let function = slot.device as? PCIFunction else { return nil }
            return (devfn, function.state.word(ConfigOffset.vendor), function.state.word(ConfigOffset.device))
        }
    }
}

/// Several outputs on one wire: high while any of them is (open-drain, seen from the inverter's other side).
public final class SharedLine {
    private let target: any Line
    private var highs = 0
    public init(_ target: any Line) { self.target = target }

    /// A new output on the wire.
    public func input() -> any Line {
        Wire { [self] high in
            highs += high ? 1 : -1
            target.drive(highs > 0)
        }
    }
}
