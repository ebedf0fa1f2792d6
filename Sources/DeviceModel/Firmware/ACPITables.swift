// ACPI tables: FACS, DSDT, SSDT, FADT, MADT, HPET, RSDT, XSDT, RSDP.
// Source: ACPI specification 3.0b, §5.2; HPET specification 1.0a, §3.2.4.
// Modelled: what this board has. Not modelled: SRAT, SLIT, WAET, S3.
// Quirks: SeaBIOS 1.16 puts PIIX4's PM block at 0x600 as soon as it finds `etc/table-loader`, so FADT says 0x600.

/// What the tables depend on.
public struct ACPIMachine: Sendable {
    public var vcpus: Int
    /// First address above RAM below 4 GiB.
    public var lowRAM: UInt64
    public var hasHPET: Bool
    public var hasAPIC: Bool
    public init(vcpus: Int, lowRAM: UInt64, hasHPET: Bool = true, hasAPIC: Bool = true) {
        (self.vcpus, self.lowRAM, self.hasHPET, self.hasAPIC) = (vcpus, lowRAM, hasHPET, hasAPIC)
    }
}

/// Ports of power management, as SeaBIOS sets PIIX4 up and FADT names them.
public enum PowerPorts {
    public static let base: UInt16 = 0x600
    public static let control: UInt16 = base + 4
    public static let timer: UInt16 = base + 8
    public static let generalEvents: UInt16 = 0xAFE0
    public static let smiCommand: UInt16 = 0xB2
    public static let enable: UInt8 = 0xF1
    public static let disable: UInt8 = 0xF0
}

/// The tables as fw_cfg files: `etc/acpi/tables`, `etc/acpi/rsdp`, `etc/table-loader`.
public struct ACPITables: Sendable {
    public private(set) var tables: [UInt8] = []
    public private(set) var rsdp: [UInt8] = []
    public var loader: [UInt8] { script.bytes }
    private var script = TableLoader()
    private let machine: ACPIMachine

    public static let tablesFile = "etc/acpi/tables"
    public static let rsdpFile = "etc/acpi/rsdp"
    public static let loaderFile = "etc/table-loader"

    public init(_ machine: ACPIMachine) {
        self.machine = machine
        script.allocate(Self.rsdpFile, alignment: 16, .fSegment)
        script.allocate(Self.tablesFile, alignment: 64, .high)
        let facs = append(facsTable)
        let dsdt = append(DSDT.table(memoryWindow: Self.windowStart(machine.lowRAM)))
        let fadt = append(fadtTable(facs: facs, dsdt: dsdt))
        for (offset, size, _) in [(36, UInt8(4), facs), (40, 4, dsdt), (132, 8, facs), (140, 8, dsdt)] {
            script.addPointer(in: Self.tablesFile, at: fadt + offset, size: size, to: Self.tablesFile)
        }
        seal(fadt)
        var listed = [fadt, append(ProcessorTable.ssdt(vcpus: machine.vcpus))]
        if machine.hasAPIC { listed.append(append(madtTable)) }
        if machine.hasHPET { listed.append(append(hpetTable)) }
        let rsdt = appendRoot("RSDT", listed, width: 4)
        let xsdt = appendRoot("XSDT", listed, width: 8)
        makeRSDP(rsdt: rsdt, xsdt: xsdt)
    }

    /// Where SeaBIOS starts to hand out PCI memory: above RAM, rounded as its i440FX set-up does.
    public static func windowStart(_ lowRAM: UInt64) -> UInt32 {
        if lowRAM <= 0x8000_0000 { return 0x8000_0000 }
        return lowRAM <= 0xC000_0000 ? 0xC000_0000 : 0xE000_0000
    }

    /// The common header (§5.2.6): 36 bytes, checksum at 9.
    static func table(_ signature: String, revision: UInt8, _ body: [UInt8]) -> [UInt8] {
        var table = [UInt8](signature, length: 4) + UInt32(36 + body.count).littleEndianBytes + [revision, 0]
        table += [UInt8]("Xen", length: 6) + [UInt8]("HVM", length: 8) + UInt32(0).littleEndianBytes
        table += [UInt8]("APUS", length: 4) + UInt32(1).littleEndianBytes + body
        table[9] = table.checksum
        return table
    }

    /// Places a table on a 64-byte boundary; its offset.
    private mutating func append(_ table: [UInt8]) -> Int {
        tables += Array(repeating: 0, count: (64 - tables.count % 64) % 64)
        defer { tables += table }
        return tables.count
    }

    /// Has SeaBIOS put the checksum right after it changed pointers in the table at `offset`.
    private mutating func seal(_ offset: Int) {
        let length = Int(tables[offset + 4]) | Int(tables[offset + 5]) << 8
        tables[offset + 9] = 0
        script.addChecksum(in: Self.tablesFile, at: offset + 9, over: offset..<(offset + length))
    }

    private mutating func appendRoot(_ signature: String, _ listed: [Int], width: UInt8) -> Int {
        let entries = listed.flatMap { Array(UInt64($0).littleEndianBytes.prefix(Int(width))) }
        let root = append(Self.table(signature, revision: 1, entries))
        for index in listed.indices {
            script.addPointer(
                in: Self.tablesFile, at: root + 36 + index * Int(width), size: width, to: Self.tablesFile)
        }
        seal(root)
        return root
    }

    /// §5.2.5.3, revision 2: two checksums.
    private mutating func makeRSDP(rsdt: Int, xsdt: Int) {
        rsdp = [UInt8]("RSD PTR ", length: 8) + [0] + [UInt8]("Xen", length: 6) + [2]
        rsdp += UInt32(rsdt).littleEndianBytes + UInt32(36).littleEndianBytes + UInt64(xsdt).littleEndianBytes
        rsdp += [0, 0, 0, 0]
        script.addPointer(in: Self.rsdpFile, at: 16, size: 4, to: Self.tablesFile)
        script.addPointer(in: Self.rsdpFile, at: 24, size: 8, to: Self.tablesFile)
        script.addChecksum(in: Self.rsdpFile, at: 8, over: 0..<20)
        script.addChecksum(in: Self.rsdpFile, at: 32, over: 0..<36)
    }
}

extension ACPITables {
    /// §5.2.10, version 1.
    private var facsTable: [UInt8] {
        var table = [UInt8]("FACS", length: 64)
        table.put(UInt32(64).littleEndianBytes, at: 4)
        table[32] = 1
        return table
    }

    /// §5.2.9, revision 4 (244 bytes). Offsets are the specification's.
    private func fadtTable(facs: Int, dsdt: Int) -> [UInt8] {
        var table = Self.table("FACP", revision: 4, Array(repeating: 0, count: 244 - 36))
        table.put(UInt32(facs).littleEndianBytes, at: 36)
        table.put(UInt32(dsdt).littleEndianBytes, at: 40)
        table.put(UInt16(9).littleEndianBytes, at: 46)  // SCI_INT
        table.put(UInt32(PowerPorts.smiCommand).littleEndianBytes, at: 48)
        table.put([PowerPorts.enable, PowerPorts.disable], at: 52)
        table.put(UInt32(PowerPorts.base).littleEndianBytes, at: 56)  // PM1a_EVT_BLK
        table.put(UInt32(PowerPorts.control).littleEndianBytes, at: 64)  // PM1a_CNT_BLK
        table.put(UInt32(PowerPorts.timer).littleEndianBytes, at: 76)  // PM_TMR_BLK
        table.put(UInt32(PowerPorts.generalEvents).littleEndianBytes, at: 80)  // GPE0_BLK
        table.put([4, 2, 0, 4, 4], at: 88)  // lengths: events, control, PM2, timer, GPE0
        table.put(UInt16(0xFFF).littleEndianBytes, at: 96)  // no C2
        table.put(UInt16(0xFFF).littleEndianBytes, at: 98)  // no C3
        table.put([0, 0, 0x32], at: 106)  // RTC: no day and month alarm, century
        table.put(UInt16(0b11).littleEndianBytes, at: 109)  // legacy devices, 8042
        // WBINVD, C1, no sleep button, reset register, platform clock.
        table.put(UInt32(1 << 0 | 1 << 2 | 1 << 5 | 1 << 10 | 1 << 15).littleEndianBytes, at: 112)
        table.put(Self.port(0xCF9, bits: 8, access: 1), at: 116)
        table[128] = 6
        table.put(UInt64(facs).littleEndianBytes, at: 132)
        table.put(UInt64(dsdt).littleEndianBytes, at: 140)
        table.put(Self.port(PowerPorts.base, bits: 32, access: 2), at: 148)
        table.put(Self.port(PowerPorts.control, bits: 16, access: 2), at: 172)
        table.put(Self.port(PowerPorts.timer, bits: 32, access: 3), at: 208)
        table.put(Self.port(PowerPorts.generalEvents, bits: 32, access: 1), at: 220)
        return table
    }

    /// Generic address structure of an I/O port (§5.2.3.1).
    private static func port(_ number: UInt16, bits: UInt8, access: UInt8) -> [UInt8] {
        [1, bits, 0, access] + UInt64(number).littleEndianBytes
    }

    /// §5.2.12.
    private var madtTable: [UInt8] {
        var body = UInt32(0xFEE0_0000).littleEndianBytes + UInt32(1).littleEndianBytes
        for index in 0..<machine.vcpus {
            let id = UInt8(truncatingIfNeeded: index)
            // Xen gives vCPU n the local APIC id 2n; the hypervisor's chips have the same.
            body += [0, 8, id, id &* 2] + UInt32(1).littleEndianBytes
        }
        body += [1, 12, 1, 0] + UInt32(0xFEC0_0000).littleEndianBytes + UInt32(0).littleEndianBytes
        // ISA interrupt 0 is input 2; 9 (SCI) is active high, level triggered.
        body += [2, 10, 0, 0] + UInt32(2).littleEndianBytes + [0, 0]
        body += [2, 10, 0, 9] + UInt32(9).littleEndianBytes + [0x0D, 0]
        body += [4, 6, 0xFF, 0, 0, 1]  // LINT1 of every CPU is NMI
        return Self.table("APIC", revision: 2, body)
    }

    private var hpetTable: [UInt8] {
        // Vendor 8086, legacy replacement capable, 64-bit counter, 3 comparators, revision 1.
        let id = UInt32(0x8086_A201).littleEndianBytes
        let address: [UInt8] = [0, 64, 0, 0] + UInt64(0xFED0_0000).littleEndianBytes
        return Self.table("HPET", revision: 1, id + address + [0] + UInt16(100).littleEndianBytes + [0])
    }
}

/// The processor objects, which depend on the number of vCPUs.
enum ProcessorTable {
    /// SSDT with `Scope (\_SB) { Processor (Pnnn, n, 0, 0) {} ... }` (ACPI 3.0b §18.5.93; encoding §19.2.5).
    static func ssdt(vcpus: Int) -> [UInt8] {
        var body: [UInt8] = []
        for index in 0..<vcpus {
            let digits = [index / 100 % 10, index / 10 % 10, index % 10].map { UInt8($0) + 0x30 }
            let object = [UInt8]("P", length: 1) + digits + [UInt8(truncatingIfNeeded: index), 0, 0, 0, 0, 0]
            body += [0x5B, 0x83] + packageLength(object.count) + object
        }
        let scope = [UInt8]("\\_SB_", length: 5) + body
        return ACPITables.table("SSDT", revision: 1, [0x10] + packageLength(scope.count) + scope)
    }

    /// PkgLength counts its own bytes (§19.2.4).
    static func packageLength(_ count: Int) -> [UInt8] {
        if count + 1 < 64 { return [UInt8(count + 1)] }
        if count + 2 < 1 << 12 {
            let length = count + 2
            return [UInt8(0x40 | length & 0xF), UInt8(truncatingIfNeeded: length >> 4)]
        }
        let length = count + 3
        return [
            UInt8(0x80 | length & 0xF), UInt8(truncatingIfNeeded: length >> 4), UInt8(truncatingIfNeeded: length >> 12),
        ]
    }
}
