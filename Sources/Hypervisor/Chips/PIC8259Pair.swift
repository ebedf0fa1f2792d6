// The PC's two 8259A: the slave's INT is the master's IR2; with the ELCR of the PIIX.
// Source: Intel 8259A datasheet (231468-003), "Cascade Mode"; Intel 82371AB §4.2.5 (ELCR).
// Modelled: ports 0x20/0x21, 0xA0/0xA1, 0x4D0/0x4D1, interrupt acknowledge. Not modelled: ICW3 (the wiring is fixed).
// Quirks: IRQ 0, 1, 2, 8 and 13 are always edges, whatever is written to the ELCR.

public import Machine

public final class PIC8259Pair: Device {
    public let regions = [
        Region("pic-master", .port, 0x20...0x21),
        Region("pic-slave", .port, 0xA0...0xA1),
        Region("elcr", .port, 0x4D0...0x4D1),
    ]
    private let intr: any Line
    public var state = State()

    /// `intr`: the master's INT output.
    public init(intr: any Line) { self.intr = intr }

    /// Drives IRQ `line` (0-15; 2 is the cascade and has no input).
    public func input(_ line: Int, _ high: Bool) {
        state.input(line, high)
        settle()
    }

    /// The two INTA cycles: the vector that goes to the CPU.
    public func acknowledge() -> UInt8 {
        let vector = state.acknowledge()
        settle()
        return vector
    }

    public func read(_ access: Access) throws(BusFault) -> UInt64 {
        UInt64(state.read(region: access.region, data: access.offset & 1 != 0))
    }

    public func write(_ value: UInt64, _ access: Access) throws(BusFault) {
        state.write(UInt8(truncatingIfNeeded: value), region: access.region, data: access.offset & 1 != 0)
    }

    public func settle() { intr.drive(state.master.pending != nil) }

    public struct State: DeviceState {
        public static let schema = Schema("pic8259-pair", 1)
        public var master = PIC8259(cascade: 1 << 2)
        public var slave = PIC8259(cascade: 0)
        public init() {}

        /// Input levels are the wires' and outlive a reset.
        public mutating func reset(_ cause: ResetCause) {
            if cause == .powerOn { self = State() }
        }

        public mutating func input(_ line: Int, _ high: Bool) {
            switch line {
            case 0, 1, 3...7: master.input(line, high)
            case 8...15: slave.input(line - 8, high)
            default: return
            }
            link()
        }

        public mutating func acknowledge() -> UInt8 {
            defer { link() }
            // No request any more: IR7 (datasheet, "Interrupt Sequence").
            guard let line = master.pending else { return master.vectorBase | 7 }
            master.acknowledge(line)
            guard line == 2 else { return master.vectorBase | UInt8(line) }
            guard let second = slave.pending else { return slave.vectorBase | 7 }
            slave.acknowledge(second)
            return slave.vectorBase | UInt8(second)
        }

        mutating func read(region: Int, data: Bool) -> UInt8 {
            defer { link() }
            switch (region, data) {
            case (0, _): return master.read(data: data)
            case (1, _): return slave.read(data: data)
            case (_, false): return master.levelTriggered
            case (_, true): return slave.levelTriggered
            }
        }

        mutating func write(_ byte: UInt8, region: Int, data: Bool) {
            switch (region, data) {
            case (0, _): master.write(byte, data: data)
            case (1, _): slave.write(byte, data: data)
            case (_, false): master.levelTriggered = byte & 0xF8
            case (_, true): slave.levelTriggered = byte & 0xDE
            }
            link()
        }

        private mutating func link() { master.input(2, slave.pending != nil) }
    }
}
