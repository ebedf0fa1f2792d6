// Byte order and placement, for tables that firmware and guests read.
// Source: none needed.
// Modelled: integers to bytes and back, zero-filled fields of fixed length.
// Quirks: none.

extension FixedWidthInteger where Self: UnsignedInteger {
    /// Least significant byte first.
    public var littleEndianBytes: [UInt8] {
        (0..<(Self.bitWidth / 8)).map { UInt8(truncatingIfNeeded: self >> Self($0 * 8)) }
    }
    /// Most significant byte first.
    public var bigEndianBytes: [UInt8] { littleEndianBytes.reversed() }

    init(bigEndianBytes bytes: ArraySlice<UInt8>) {
        self = bytes.reduce(0) { $0 << 8 | Self($1) }
    }
}

extension Array where Element == UInt8 {
    /// `text` in ASCII, filled with `pad` to `length`.
    init(_ text: String, length: Int, pad: UInt8 = 0) {
        let bytes = Array(text.utf8.prefix(length))
        self = bytes + Array(repeating: pad, count: length - bytes.count)
    }

    /// What has to be added so that all bytes sum to zero.
    var checksum: UInt8 { 0 &- reduce(0, &+) }

    /// Replaces what lies at `offset` with `bytes`, as far as there is room.
    mutating func put(_ bytes: [UInt8], at offset: Int) {
        for (index, byte) in bytes.enumerated() where indices.contains(offset + index) { self[offset + index] = byte }
    }
}
