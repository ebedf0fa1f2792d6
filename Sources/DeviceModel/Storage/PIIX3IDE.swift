// The IDE function of the PIIX3: identity, timing registers with their decode enables, bus-master ports.
// Source: Intel 82371SB (PIIX3) datasheet, order 290550-002, §2.3.9-2.3.14 (configuration), §2.5 (bus master).
// Modelled: 8086:7010, IDETIM, SIDETIM, bus master of both channels. Not modelled: the timings' effect.
// Quirk: both channels decode nothing until IDETIM bit 15 is set; the BIOS sets it.
public import Machine

public final class PIIX3IDE: Device {
    public static let vendor: UInt16 = 0x8086
    public static let deviceID: UInt16 = 0x7010
    /// Mass storage, IDE, legacy addresses with bus mastering.
    public static let classCode: UInt32 = 0x01_01_80
    /// The I/O BAR (configuration register 0x20) of `regions[0]`.
    public static let busMasterBAR = 4
    /// Configuration registers that this chip keeps itself.
    public static let configuration: ClosedRange<Int> = 0x40...0x44

    public struct State: DeviceState {
        public static let schema = Schema("piix3-ide", 1)
        /// IDETIM of both channels (40h, 42h), SIDETIM (44h).
        var registers: [UInt8] = [0, 0, 0, 0, 0]
        public init() {}
        public init(from decoder: any Decoder) throws {
            let values = try decoder.container(keyedBy: CodingKeys.self)
            registers = try values.decode([UInt8].self, forKey: .registers)
            guard registers.count == 5 else {
                throw DecodingError.dataCorruptedError(forKey: .registers, in: values, debugDescription: "not PIIX3")
            }
        }
        private enum CodingKeys: CodingKey { case registers }
        public mutating func reset(_ cause: ResetCause) { if cause == .powerOn { self = State() } }
    }

    public let channels: [IDEChannel]
    /// Placed by BAR 4: primary in the first eight ports, secondary in the others.
    public let regions = [Region("ide bus master", .port, 0...15, widths: [.byte])]
    /// Told, by `settle`, whether each channel decodes its legacy ports.
    private let decoding: (_ channel: Int, _ isEnabled: Bool) -> Void
    public var state = State()

    public init(
        primary: IDEChannel, secondary: IDEChannel,
        decoding: @escaping (_ channel: Int, _ isEnabled: Bool) -> Void = { _, _ in }
    ) {
        channels = [primary, secondary]
        self.decoding = decoding
    }

    public func isDecoding(_ channel: Int) -> Bool {
        (0...1).contains(channel) && state.registers[channel * 2 + 1] & 0x80 != 0
    }

    public func readConfiguration(_ register: Int) -> UInt8 {
        Self.configuration.contains(register) ? state.registers[register - 0x40] : 0
    }

    public func writeConfiguration(_ value: UInt8, _ register: Int) {
        guard Self.configuration.contains(register) else { return }
        state.registers[register - 0x40] = value
        settle()
    }

    public func read(_ access: Access) throws(BusFault) -> UInt64 {
        UInt64(channels[Int(access.offset >> 3 & 1)].readBusMaster(access.offset & 7))
    }

    public func write(_ value: UInt64, _ access: Access) throws(BusFault) {
        let channel = channels[Int(access.offset >> 3 & 1)]
        channel.writeBusMaster(UInt8(truncatingIfNeeded: value), access.offset & 7)
        channel.settle()
    }

    public func settle() {
        for channel in 0...1 { decoding(channel, isDecoding(channel)) }
    }
}
