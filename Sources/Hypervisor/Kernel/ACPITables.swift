// The ACPI tables of a PVH domain: no hardware but processors.
// Source: ACPI 6.3 §5.2.5 (RSDP), §5.2.8 (XSDT), §5.2.9 (FADT), §5.2.12 (MADT), §5.2.11 (DSDT).
// Modelled: hardware-reduced FADT, a local APIC each vCPU, an empty DSDT. Not modelled: sleep states, x2APIC entries.
// Quirks: the flags say that there is no VGA, no 8042 and no CMOS clock, as Xen's tables for PVH do.

struct ACPITables {
    /// RSDP first.
    let bytes: [UInt8]

    /// Tables to be put at a guest-physical address.
    init(vcpus: Int, address: UInt64) {
        let dsdt = Self.table("DSDT", revision: 2, [])
        let madt = Self.madt(vcpus)
        var image = [UInt8](repeating: 0, count: 64)
        func append(_ table: [UInt8]) -> UInt64 {
            image += [UInt8](repeating: 0, count: -image.count & 15)
            defer { image += table }
            return address + UInt64(image.count)
        }
        let dsdtAddress = append(dsdt)
        let fadtAddress = append(Self.fadt(dsdt: dsdtAddress))
        let madtAddress = append(madt)
        let xsdt = append(Self.table("XSDT", revision: 1, Self.little(fadtAddress, 8) + Self.little(madtAddress, 8)))
        image.replaceSubrange(0..<36, with: Self.rsdp(xsdt: xsdt))
        bytes = image
    }

    private static func little(_ value: UInt64, _ count: Int) -> [UInt8] {
        (0..<count).map { UInt8(truncatingIfNeeded: value >> UInt64(8 * $0)) }
    }

    private static func checksum(_ bytes: some Sequence<UInt8>) -> UInt8 { bytes.reduce(0) { $0 &- $1 } }

    /// A table behind its header (ACPI §5.2.6).
    private static func table(_ name: String, revision: UInt8, _ body: [UInt8]) -> [UInt8] {
        var table = Array(name.utf8) + little(UInt64(36 + body.count), 4) + [revision, 0]
        table += Array("Apus  ".utf8) + Array("ApusPVH ".utf8) + little(1, 4) + Array("APUS".utf8) + little(1, 4)
        table += body
        table[9] = checksum(table)
        return table
    }

    private static func rsdp(xsdt: UInt64) -> [UInt8] {
        var rsdp = Array("RSD PTR ".utf8) + [0] + Array("Apus  ".utf8) + [2] + little(0, 4) + little(36, 4)
        rsdp += little(xsdt, 8) + [0, 0, 0, 0]
        rsdp[8] = checksum(rsdp.prefix(20))
        rsdp[32] = checksum(rsdp)
        return rsdp
    }

    /// Revision 5, 268 bytes.
    private static func fadt(dsdt: UInt64) -> [UInt8] {
        var body = [UInt8](repeating: 0, count: 268 - 36)
        func put(_ value: UInt64, _ count: Int, at offset: Int) {
            body.replaceSubrange((offset - 36)..<(offset - 36 + count), with: little(value, count))
        }
        put(dsdt, 4, at: 40)
        // IAPC_BOOT_ARCH: VGA not present (2), CMOS RTC not present (5); no 8042 (bit 1 clear).
        put(1 << 2 | 1 << 5, 2, at: 109)
        // HW_REDUCED_ACPI (20), WBINVD (0), no power and sleep buttons as fixed hardware (4, 5).
        put(1 << 20 | 1 | 1 << 4 | 1 << 5, 4, at: 112)
        put(dsdt, 8, at: 140)
        return table("FACP", revision: 5, body)
    }

    private static func madt(_ vcpus: Int) -> [UInt8] {
        var body = little(0xFEE0_0000, 4) + little(0, 4)
        for vcpu in 0..<vcpus {
            body += [0, 8, UInt8(truncatingIfNeeded: vcpu), UInt8(truncatingIfNeeded: Fabric.apicID(vcpu))]
            body += little(1, 4)
        }
        return table("APIC", revision: 4, body)
    }
}
