// I/O APIC with 48 inputs.
// Source: Intel 82093AA datasheet (290566-001) §3; the number of inputs is Xen's (xen/arch/x86/hvm/vioapic.c).
// Modelled: index/data window, redirection table, remote IRR, end of interrupt. Not modelled: arbitration, polarity
// (a line is asserted when it is driven), delivery status (no message ever waits).
// Quirks: version 0x11 as on Xen, so no EOI register; guests end interrupts at the local APIC.

public import Machine
public import Registers

public final class IOAPIC: Device {
    public static let inputs = 48
    public let regions = [Region("ioapic", .memory, 0xFEC0_0000...0xFEC0_0FFF, widths: [.byte, .long])]
    private let bus: any InterruptBus
    public var state = State()

    public init(bus: any InterruptBus) { self.bus = bus }

    /// Drives input `line`.
    public func input(_ line: Int, _ high: Bool) {
        guard line >= 0, line < Self.inputs else { return }
        if let message = state.input(line, high) { bus.deliver(message, from: nil) }
    }

    /// A local APIC ended `vector`: inputs that are still asserted interrupt again.
    public func endOfInterrupt(vector: UInt8) {
        for message in state.endOfInterrupt(vector: vector) { bus.deliver(message, from: nil) }
    }

    public func read(_ access: Access) throws(BusFault) -> UInt64 {
        switch access.offset {
        case 0x00: return UInt64(state.index)
        case 0x10: return UInt64(state.readRegister())
        default: throw .noRegister
        }
    }

    public func write(_ value: UInt64, _ access: Access) throws(BusFault) {
        switch access.offset {
        case 0x00: state.index = UInt8(truncatingIfNeeded: value)
        case 0x10:
            guard access.width == .long else { throw .badWidth }
            if let message = state.writeRegister(UInt32(truncatingIfNeeded: value)) { bus.deliver(message, from: nil) }
        default: throw .noRegister
        }
    }

    /// Messages are events; there is no level to drive.
    public func settle() {}

    /// A redirection table entry (82093AA §3.2.4).
    public struct Entry: Register {
        public var rawValue: UInt64
        public init(rawValue: UInt64) { self.rawValue = rawValue }
        public static let logical = bit(11)
        public static let lowActive = bit(13)
        public static let remoteIRR = bit(14)
        public static let level = bit(15)
        public static let masked = bit(16)
        /// Delivery status and remote IRR are read-only.
        static let writable = Entry(rawValue: 0xFF00_0000_0001_AFFF)
        public var vector: UInt8 { UInt8(truncatingIfNeeded: rawValue) }
        public var mode: DeliveryMode? { DeliveryMode(rawValue: UInt8(self[bits: 8...10])) }
        var destination: InterruptMessage.Destination {
            let id = UInt32(self[bits: 56...63])
            return contains(.logical) ? .logical(id) : .physical(id)
        }
    }

    public struct State: DeviceState {
        public static let schema = Schema("ioapic", 1)
        public var index: UInt8 = 0
        public var id: UInt8 = 0
        public var levels: UInt64 = 0
        public var entries = [Entry](repeating: .masked, count: IOAPIC.inputs)
        public init() {}

        private enum Keys: String, CodingKey { case index, id, levels, entries }
        public init(from decoder: any Decoder) throws {
            let values = try decoder.container(keyedBy: Keys.self)
            index = try values.decode(UInt8.self, forKey: .index)
            id = try values.decode(UInt8.self, forKey: .id)
            levels = try values.decode(UInt64.self, forKey: .levels)
            entries = try values.decode([Entry].self, forKey: .entries)
            guard entries.count == IOAPIC.inputs else {
                throw DecodingError.dataCorruptedError(
                    forKey: .entries, in: values, debugDescription: "the I/O APIC has \(IOAPIC.inputs) inputs")
            }
        }
        public func encode(to encoder: any Encoder) throws {
            var values = encoder.container(keyedBy: Keys.self)
            try values.encode(index, forKey: .index)
            try values.encode(id, forKey: .id)
            try values.encode(levels, forKey: .levels)
            try values.encode(entries, forKey: .entries)
        }

        public mutating func reset(_ cause: ResetCause) {
            if cause == .powerOn { self = State() }
        }

        mutating func input(_ line: Int, _ high: Bool) -> InterruptMessage? {
            let bit = UInt64(1) << UInt64(line)
            let rose = high && levels & bit == 0
            levels = high ? levels | bit : levels & ~bit
            if !entries[line].contains(.level) { return rose ? message(line) : nil }
            return request(line)
        }

        /// A level input that is asserted and not yet being served.
        private mutating func request(_ line: Int) -> InterruptMessage? {
            let entry = entries[line]
            guard entry.contains(.level), levels >> UInt64(line) & 1 != 0, !entry.contains(.remoteIRR) else {
                return nil
            }
            guard let message = message(line) else { return nil }
            entries[line].insert(.remoteIRR)
            return message
        }

        /// An edge on a masked input is lost (§3.2.4, interrupt mask).
        private func message(_ line: Int) -> InterruptMessage? {
            let entry = entries[line]
            guard !entry.contains(.masked), let mode = entry.mode else { return nil }
            guard mode != .startup, mode != .systemManagement else { return nil }
            return InterruptMessage(
                mode, vector: entry.vector, to: entry.destination, isLevel: entry.contains(.level))
        }

        mutating func endOfInterrupt(vector: UInt8) -> [InterruptMessage] {
            var messages: [InterruptMessage] = []
            for line in entries.indices {
                guard entries[line].vector == vector, entries[line].contains(.remoteIRR) else { continue }
                entries[line].remove(.remoteIRR)
                if let message = request(line) { messages.append(message) }
            }
            return messages
        }

        func readRegister() -> UInt32 {
            switch index {
            case 0x00, 0x02: return UInt32(id & 0x0F) << 24
            case 0x01: return UInt32(IOAPIC.inputs - 1) << 16 | 0x11
            default:
                let line = (Int(index) - 0x10) / 2
                guard index >= 0x10, line < IOAPIC.inputs else { return 0 }
                return UInt32(truncatingIfNeeded: entries[line].rawValue >> (index & 1 == 0 ? 0 : 32))
            }
        }

        mutating func writeRegister(_ value: UInt32) -> InterruptMessage? {
            if index == 0 { id = UInt8(value >> 24) & 0x0F }
            let line = (Int(index) - 0x10) / 2
            guard index >= 0x10, line < IOAPIC.inputs else { return nil }
            var raw = entries[line].rawValue
            if index & 1 == 0 {
                raw = raw & 0xFFFF_FFFF_0000_0000 | UInt64(value)
            } else {
                raw = raw & 0xFFFF_FFFF | UInt64(value) << 32
            }
            entries[line] = entries[line].written(raw, writable: .writable)
            // Edge mode has no remote IRR; guests switch over and back to clear a stuck one.
            if !entries[line].contains(.level) { entries[line].remove(.remoteIRR) }
            return request(line)
        }
    }
}
