// The 256 bytes of configuration space of one PCI function.
// Source: PCI Local Bus Specification 2.1, §6.1-6.2.
// Modelled: per-bit writability and write-one-to-clear, type 0 header. Not modelled: capabilities, bridges.
// Quirks: what is not named in a function's table is read-only zero, as on the Intel chips of the time.

public import Machine

/// One register of configuration space, as a datasheet's table has it.
public struct ConfigRegister: Sendable {
    public var offset: Int
    /// Bytes: 1, 2, 3 or 4.
    public var size: Int
    /// Value after power-on.
    public var value: UInt32
    /// Bits a guest can change.
    public var writable: UInt32
    /// Bits that a one written to them clears.
    public var clearedByOne: UInt32
    public init(_ offset: Int, size: Int, value: UInt32 = 0, writable: UInt32 = 0, clearedByOne: UInt32 = 0) {
        (self.offset, self.size, self.value) = (offset, size, value)
        (self.writable, self.clearedByOne) = (writable, clearedByOne)
    }
}

/// Offsets of the type 0 header (§6.1).
public enum ConfigOffset {
    public static let vendor = 0x00
    public static let device = 0x02
    public static let command = 0x04
    public static let status = 0x06
    public static let revision = 0x08
    public static let classCode = 0x09
    public static let cacheLine = 0x0C
    public static let latency = 0x0D
    public static let headerType = 0x0E
    public static let bar0 = 0x10
    public static let subsystemVendor = 0x2C
    public static let subsystem = 0x2E
    public static let rom = 0x30
    public static let interruptLine = 0x3C
    public static let interruptPin = 0x3D
}

/// Which bits of a function's configuration space can change, and how.
struct ConfigLayout {
    private(set) var powerOn = [UInt8](repeating: 0, count: 256)
    private(set) var writable = [UInt8](repeating: 0, count: 256)
    private(set) var clearedByOne = [UInt8](repeating: 0, count: 256)

    init(_ registers: [ConfigRegister]) {
        for register in registers {
            precondition(register.offset + register.size <= 256, "a register lies outside configuration space")
            for index in 0..<register.size {
                let shift = UInt32(index * 8)
                powerOn[register.offset + index] = UInt8(truncatingIfNeeded: register.value >> shift)
                writable[register.offset + index] = UInt8(truncatingIfNeeded: register.writable >> shift)
                clearedByOne[register.offset + index] = UInt8(truncatingIfNeeded: register.clearedByOne >> shift)
            }
        }
    }
}

/// The bytes themselves: a function's whole state.
public struct ConfigSpace: DeviceState {
    public static let schema = Schema("pci-config", 1)
    public private(set) var bytes: [UInt8]
    let powerOn: [UInt8]

    init(_ layout: ConfigLayout) { (bytes, powerOn) = (layout.powerOn, layout.powerOn) }

    public init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: CodingKeys.self)
        bytes = try values.decode([UInt8].self, forKey: .bytes)
        powerOn = try values.decode([UInt8].self, forKey: .powerOn)
        guard bytes.count == 256, powerOn.count == 256 else {
            throw DecodingError.dataCorruptedError(
                forKey: .bytes, in: values, debugDescription: "configuration space has 256 bytes")
        }
    }

    private enum CodingKeys: String, CodingKey { case bytes, powerOn }

    public mutating func reset(_ cause: ResetCause) {
        if cause == .powerOn { bytes = powerOn }
    }

    /// The byte at `offset`, modulo 256.
    public func byte(_ offset: Int) -> UInt8 { bytes[offset & 0xFF] }
    public func word(_ offset: Int) -> UInt16 { UInt16(byte(offset)) | UInt16(byte(offset + 1)) << 8 }
    public func long(_ offset: Int) -> UInt32 { UInt32(word(offset)) | UInt32(word(offset + 2)) << 16 }

    /// The command register (§6.2.2).
    public var command: PCICommand { PCICommand(rawValue: word(ConfigOffset.command)) }

    mutating func write(_ value: UInt8, at offset: Int, _ layout: ConfigLayout) {
        let index = offset & 0xFF
        let kept = bytes[index] & ~layout.writable[index] & ~(value & layout.clearedByOne[index])
        bytes[index] = kept | value & layout.writable[index]
    }
}
