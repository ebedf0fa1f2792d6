// The command and status registers of a PCI function.
// Source: PCI Local Bus Specification 2.1, §6.2.2 and §6.2.3.
// Modelled: the bits below. Not modelled: parity and system errors, fast back-to-back.
// Quirks: interrupt disable (bit 10) is of revision 2.3 and absent, as on PIIX.

public import Registers

/// Command, offset 4.
public struct PCICommand: Register {
    public var rawValue: UInt16
    public init(rawValue: UInt16) { self.rawValue = rawValue }
    public static let io = bit(0)
    public static let memory = bit(1)
    public static let busMaster = bit(2)
    public static let specialCycles = bit(3)
    public static let invalidate = bit(4)
    public static let paletteSnoop = bit(5)
    public static let parityResponse = bit(6)
    public static let systemError = bit(8)
}

/// What a function is: the constant part of its header.
public struct PCIIdentity: Sendable {
    public var vendor: UInt16
    public var device: UInt16
    /// Class, subclass and programming interface: 0x030000 is a VGA controller.
    public var classCode: UInt32
    public var revision: UInt8
    /// SeaBIOS takes 1AF4:1100 at the host bridge for "this machine has fw_cfg".
    public var subsystemVendor: UInt16 = 0x1AF4
    public var subsystem: UInt16 = 0x1100
    /// 0 for none, 1 for INTA.
    public var interruptPin: UInt8 = 0
    /// The device has more functions than number 0 (set on function 0).
    public var isMultifunction = false
    /// Power-on value of the command register, and which of its bits a guest can change.
    public var command: PCICommand = []
    public var writableCommand: PCICommand = [.io, .memory, .busMaster, .parityResponse, .systemError]
    /// Power-on value of the status register: DEVSEL timing and fast back-to-back.
    public var status: UInt16 = 0x0280

    public init(vendor: UInt16, device: UInt16, classCode: UInt32, revision: UInt8 = 0) {
        (self.vendor, self.device, self.classCode, self.revision) = (vendor, device, classCode, revision)
    }

    var registers: [ConfigRegister] {
        [
            ConfigRegister(ConfigOffset.vendor, size: 2, value: UInt32(vendor)),
            ConfigRegister(ConfigOffset.device, size: 2, value: UInt32(device)),
            ConfigRegister(
                ConfigOffset.command, size: 2, value: UInt32(command.rawValue),
                writable: UInt32(writableCommand.rawValue)),
            ConfigRegister(ConfigOffset.status, size: 2, value: UInt32(status), clearedByOne: 0xF900),
            ConfigRegister(ConfigOffset.revision, size: 1, value: UInt32(revision)),
            ConfigRegister(ConfigOffset.classCode, size: 3, value: classCode),
            ConfigRegister(ConfigOffset.cacheLine, size: 1, writable: 0xFF),
            ConfigRegister(ConfigOffset.latency, size: 1, writable: 0xF8),
            ConfigRegister(ConfigOffset.headerType, size: 1, value: isMultifunction ? 0x80 : 0),
            ConfigRegister(ConfigOffset.subsystemVendor, size: 2, value: UInt32(subsystemVendor)),
            ConfigRegister(ConfigOffset.subsystem, size: 2, value: UInt32(subsystem)),
            ConfigRegister(ConfigOffset.interruptLine, size: 1, writable: interruptPin == 0 ? 0 : 0xFF),
            ConfigRegister(ConfigOffset.interruptPin, size: 1, value: UInt32(interruptPin)),
        ]
    }
}
