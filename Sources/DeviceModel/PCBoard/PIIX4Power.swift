// 82371AB (PIIX4) power management, function 3 at device 1.
// Source: Intel 82371AB datasheet 290562-001, §7 (power management) and §7.3 (SMBus).
// Modelled: PM1 events, control and timer, GPE0 as QEMU's board has it, APM ports, soft off, an SMBus with no slaves.
// Not modelled: SMM, device monitors, sleep states other than soft off. Quirks: the APM command port's write of
// ACPI enable takes effect at once, as firmware's SMI handler would have it; SCI follows SCI_EN.

public import Machine
public import PCI
public import Registers

/// The registers in I/O space. Configuration space is `function(...)`'s.
public final class PIIX4Power: Device {
    /// Index of each region in `regions`.
    public enum RegionIndex {
        public static let block = 0
        public static let smbus = 1
        public static let generalEvents = 2
        public static let apm = 3
    }
    private let sci: any Line
    private let powerOff: () -> Void
    public let regions = [
        Region("pm", .port, 0x0...0x3F, widths: [.byte, .word, .long]),
        Region("smbus", .port, 0x0...0xF),
        Region("gpe0", .port, 0xAFE0...0xAFE3),
        Region("apm", .port, 0xB2...0xB3),
    ]
    public var state = State()

    /// - Parameter powerOff: called when the guest enters S5.
    public init(sci: any Line, powerOff: @escaping () -> Void) { (self.sci, self.powerOff) = (sci, powerOff) }

    /// The power button was pressed.
    public func pressPowerButton() {
        state.status.insert(.powerButton)
        settle()
    }

    public var deadline: Instant? { state.deadline }
    public func advance(to now: Instant) { state.advance(to: now) }

    public func read(_ access: Access) throws(BusFault) -> UInt64 {
        let offset = Int(truncatingIfNeeded: access.offset)
        switch access.region {
        case 0:
            let timer = state.timer
            return (0..<access.width.rawValue).reduce(0) { value, index in
                value | UInt64(state.readBlock(offset + index, timer: timer)) << UInt64(index * 8)
            }
        case 1: return UInt64(state.smbus.read(offset))
        case 2: return UInt64(state.generalEvents[offset & 3])
        case 3: return UInt64(state.apm[offset & 1])
        default: throw .noRegister
        }
    }

    public func write(_ value: UInt64, _ access: Access) throws(BusFault) {
        let offset = Int(truncatingIfNeeded: access.offset)
        let byte = UInt8(truncatingIfNeeded: value)
        switch access.region {
        case 0:
            for index in 0..<access.width.rawValue {
                state.writeBlock(UInt8(truncatingIfNeeded: value >> UInt64(index * 8)), offset + index)
            }
            if state.takeSoftOff() { powerOff() }
        case 1: state.smbus.write(byte, offset)
        case 2: state.writeGeneralEvents(byte, offset & 3)
        case 3: state.writeAPM(byte, offset & 1)
        default: throw .noRegister
        }
    }

    public func settle() { sci.drive(state.interrupt) }
}

extension PIIX4Power {
    /// PM1_STS, offset 0 (PMSTS, §7.2.1): write one to clear. PM1_EN has the same places.
    public struct Events: Register {
        public var rawValue: UInt16
        public init(rawValue: UInt16) { self.rawValue = rawValue }
        public static let timer = bit(0)
        public static let busMaster = bit(4)
        public static let global = bit(5)
        public static let powerButton = bit(8)
        public static let clock = bit(10)
        public static let wake = bit(15)
        public static let clearable: Self = [.timer, .busMaster, .global, .powerButton, .clock, .wake]
        public static let enables: Self = [.timer, .global, .powerButton, .clock]
    }

    /// PM1_CNT, offset 4 (PMCNTRL, §7.2.3).
    public struct Control: Register {
        public var rawValue: UInt16
        public init(rawValue: UInt16) { self.rawValue = rawValue }
        public static let sciEnable = bit(0)
        public static let busMasterReload = bit(1)
        public static let globalRelease = bit(2)
        /// 0 is soft off.
        public var sleepType: UInt16 { self[bits: 10...12] }
        public static let sleepEnable = bit(13)
        public static let stored = Self(rawValue: 0x1C03)
    }
}

/// Its configuration space, which says where the registers are.
extension PIIX4Power {
    /// The function; PMBASE and the SMBus base move the registers of `slot` on `board`.
    public static func function(_ slot: Slot, on board: Board, memory: any DMA) -> PCIFunction {
        var identity = PCIIdentity(vendor: 0x8086, device: 0x7113, classCode: 0x068000, revision: 3)
        identity.writableCommand = [.io]
        identity.interruptPin = 1
        var places: [UInt64?] = [nil, nil]
        return PCIFunction(identity, registers: registers, on: board, memory: memory) { [board] config in
            // PMBASE is enabled by PMREGMISC bit 0 (§7.1.17), the SMBus by SMBHSTCFG bit 0 (§7.1.21).
            let power = config.byte(0x80) & 1 != 0 ? UInt64(config.word(0x40) & 0xFFC0) : 0
            let smbus = config.byte(0xD2) & 1 != 0 ? UInt64(config.word(0x90) & 0xFFF0) : 0
            for (region, base) in [power, smbus].enumerated() {
                let place = base == 0 ? nil : base
                guard place != places[region] else { continue }
                places[region] = place
                board.ports.unmap(slot, region: region)
                let length = slot.device.regions[region].range.upperBound
                if let place { board.ports.map(slot, region: region, at: place...(place + length)) }
            }
        }
    }

    static let registers =
        [
            ConfigRegister(0x40, size: 4, value: 1, writable: 0xFFC0),  // PMBASE
            ConfigRegister(0x44, size: 4, writable: 0xFFFF_FFFF),  // CNTA
            ConfigRegister(0x48, size: 4, writable: 0xFFFF_FFFF),  // CNTB
            ConfigRegister(0x4C, size: 4, writable: 0xFFFF_FFFF),  // GPICTL
            ConfigRegister(0x50, size: 3, writable: 0xFF_FFFF),  // DEVRESD
            ConfigRegister(0x54, size: 4, writable: 0xFFFF_FFFF),  // DEVACTA
            // DEVACTB: APMC_EN (bit 25) reads as set, so that firmware finds SMM taken and leaves it alone.
            ConfigRegister(0x58, size: 4, value: 0x0200_0000, writable: 0x00FF_FFFF),
        ]
        + stride(from: 0x5C, to: 0x7C, by: 4).map { ConfigRegister($0, size: 4, writable: 0xFFFF_FFFF) }  // DEVRESx
        + [
            ConfigRegister(0x80, size: 1, writable: 0x01),  // PMREGMISC
            ConfigRegister(0x90, size: 4, value: 1, writable: 0xFFF0),  // SMBBA
            ConfigRegister(0xD2, size: 1, writable: 0x0F),  // SMBHSTCFG
            ConfigRegister(0xD3, size: 1, writable: 0xFF),  // SMBSLVC
            ConfigRegister(0xD4, size: 1, writable: 0xFF),  // SMBSHDW1
            ConfigRegister(0xD5, size: 1, writable: 0xFF),  // SMBSHDW2
        ]
}
