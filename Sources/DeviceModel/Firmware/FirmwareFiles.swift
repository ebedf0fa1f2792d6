// All that firmware is told about a domain, put together.
// Source: SeaBIOS docs/Runtime_config.md (file names), src/boot.c (device paths), src/e820map.h.
// Modelled: memory map, boot order, ACPI, SMBIOS. Not modelled: NUMA.
// Quirks: `etc/boot-fail-wait` of -1: SeaBIOS stops at "No bootable device" instead of starting again every minute.

/// What firmware has to know.
public struct FirmwareMachine: Sendable {
    public var ram: UInt64
    public var lowRAM: UInt64
    public var vcpus: Int
    public var maximumVCPUs: Int
    public var uuid: [UInt8]
    public var hasACPI: Bool
    public var hasAPIC: Bool
    public var hasHPET: Bool
    public var boot: [BootDevice]

    public init(ram: UInt64, lowRAM: UInt64, vcpus: Int, uuid: [UInt8], boot: [BootDevice]) {
        (self.ram, self.lowRAM, self.vcpus, self.maximumVCPUs) = (ram, lowRAM, vcpus, vcpus)
        (self.uuid, self.boot) = (uuid, boot)
        (hasACPI, hasAPIC, hasHPET) = (true, true, true)
    }
}

/// A device to boot from, in order of preference.
public enum BootDevice: Equatable, Sendable {
    case floppy(drive: Int)
    /// A disk or CD on the PIIX3's IDE function.
    case ide(channel: Int, unit: Int)
    /// A network card's boot ROM.
    case network(device: Int)

    /// Its name in `bootorder`.
    var path: String {
        switch self {
        case .floppy(let drive): "/pci@i0cf8/isa@1/fdc@03f0/floppy@\(drive)"
        case .ide(let channel, let unit): "/pci@i0cf8/ide@1,1/drive@\(channel)/disk@\(unit)"
        case .network(let device): "/pci@i0cf8/ethernet@\(String(device, radix: 16))/ethernet-phy@0"
        }
    }
}

extension FirmwareItems {
    /// Everything SeaBIOS asks for about `machine`.
    public init(_ machine: FirmwareMachine) {
        self.init()
        let vcpus = UInt16(truncatingIfNeeded: machine.vcpus)
        let maximum = UInt16(truncatingIfNeeded: machine.maximumVCPUs)
        self[.uuid] = machine.uuid
        self[.ramSize] = machine.ram.littleEndianBytes
        self[.noGraphics] = UInt16(0).littleEndianBytes
        self[.cpus] = vcpus.littleEndianBytes
        self[.maximumCPUs] = maximum.littleEndianBytes
        self[.bootMenu] = UInt16(0).littleEndianBytes
        self[.numa] = Array(repeating: 0, count: 8 * (1 + machine.maximumVCPUs))
        self[.acpiTables] = UInt16(0).littleEndianBytes
        self[.smbiosEntries] = UInt16(0).littleEndianBytes
        self[.irq0Override] = [1]
        self[.e820] = UInt32(0).littleEndianBytes
        add(file: "etc/e820", Self.memoryMap(machine))
        // One byte for each S-state: bit 7 offers it; S4 and S5 carry their sleep type.
        add(file: "etc/system-states", [0x80, 0, 0, 0x01, 0x02, 0x80])
        add(file: "etc/boot-fail-wait", UInt32.max.littleEndianBytes)
        add(file: "bootorder", Array(machine.boot.map(\.path).joined(separator: "\n").utf8) + [0])
        addTables(machine)
    }

    private mutating func addTables(_ machine: FirmwareMachine) {
        let smbios = SMBIOSTables(
            SMBIOSMachine(uuid: machine.uuid, ram: machine.ram, lowRAM: machine.lowRAM, vcpus: machine.vcpus))
        add(file: SMBIOSTables.tablesFile, smbios.tables)
        add(file: SMBIOSTables.anchorFile, smbios.anchor)
        guard machine.hasACPI else { return }
        let acpi = ACPITables(
            ACPIMachine(
                vcpus: machine.vcpus, lowRAM: machine.lowRAM, hasHPET: machine.hasHPET, hasAPIC: machine.hasAPIC))
        add(file: ACPITables.tablesFile, acpi.tables)
        add(file: ACPITables.rsdpFile, acpi.rsdp)
        add(file: ACPITables.loaderFile, acpi.loader)
    }

    /// Entries of address, length and type (1: RAM).
    private static func memoryMap(_ machine: FirmwareMachine) -> [UInt8] {
        var map = UInt64(0).littleEndianBytes + machine.lowRAM.littleEndianBytes + UInt32(1).littleEndianBytes
        if machine.ram > machine.lowRAM {
            map += UInt64(1 << 32).littleEndianBytes + (machine.ram - machine.lowRAM).littleEndianBytes
            map += UInt32(1).littleEndianBytes
        }
        return map
    }
}
