// The DSDT, with the one number in it that depends on the domain.
// Source: firmware/dsdt.asl; encoding: ACPI specification 3.0b, §19.2 (NameOp 08, DWordPrefix 0C).
// Modelled: patching of `Name (PMEM, DWord)`. Not modelled: any other change at run time.
// Quirks: none.

/// Differentiated system description table.
enum DSDT {
    /// The AML as iasl made it.
    static let compiled: [UInt8] = {
        let digits = hexadecimal.utf8.compactMap(nibble)
        return stride(from: 0, to: digits.count - 1, by: 2).map { digits[$0] << 4 | digits[$0 + 1] }
    }()

    /// The table for a domain whose PCI memory starts at `memoryWindow`.
    static func table(memoryWindow: UInt32) -> [UInt8] {
        var table = compiled
        let name: [UInt8] = [0x08] + Array("PMEM".utf8) + [0x0C]
        guard let start = table.indices.first(where: { table[$0...].starts(with: name) }) else { return table }
        table.put(memoryWindow.littleEndianBytes, at: start + name.count)
        table[9] = 0
        table[9] = table.checksum
        return table
    }

    private static func nibble(_ character: UInt8) -> UInt8? {
        switch character {
        case 0x30...0x39: character - 0x30
        case 0x61...0x66: character - 0x57
        default: nil
        }
    }
}
