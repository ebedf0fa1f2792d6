// The linker script that tells SeaBIOS where to put ACPI tables and which pointers to fix up.
// Source: SeaBIOS src/fw/romfile_loader.h (the format: entries of 128 bytes).
// Modelled: allocate, add pointer, add checksum. Not modelled: write pointer (there is no vmgenid).
// Quirks: a pointer field holds the offset within its target file; SeaBIOS adds where that file lies.

/// Builds `etc/table-loader`.
struct TableLoader {
    /// Where SeaBIOS allocates: anywhere below 4 GiB, or in the F segment.
    enum Zone: UInt8 { case high = 1, fSegment = 2 }
    private(set) var bytes: [UInt8] = []

    mutating func allocate(_ file: String, alignment: UInt32, _ zone: Zone) {
        entry(1, [UInt8](file, length: 56) + alignment.littleEndianBytes + [zone.rawValue])
    }

    /// The field of `size` bytes at `offset` of `file` points into `target`.
    mutating func addPointer(in file: String, at offset: Int, size: UInt8, to target: String) {
        let place = UInt32(truncatingIfNeeded: offset).littleEndianBytes
        entry(2, [UInt8](file, length: 56) + [UInt8](target, length: 56) + place + [size])
    }

    /// The byte at `offset` makes `range` of `file` sum to zero.
    mutating func addChecksum(in file: String, at offset: Int, over range: Range<Int>) {
        let fields = [offset, range.lowerBound, range.count]
        let numbers = fields.flatMap { UInt32(truncatingIfNeeded: $0).littleEndianBytes }
        entry(3, [UInt8](file, length: 56) + numbers)
    }

    private mutating func entry(_ command: UInt32, _ body: [UInt8]) {
        let fields = command.littleEndianBytes + body
        bytes += fields + Array(repeating: 0, count: 128 - fields.count)
    }
}
