// The first cluster of a qcow2 image: what it says, checked.
// Source: QEMU's docs/interop/qcow2.txt (header, feature bits, header extensions).
// Modelled: versions 2 and 3, backing files, compression types. Not modelled: encryption, external data files,
// extended L2 entries, bitmaps (their feature bit is cleared when the image is written, as the format wants).
// Quirks: a backing file without a stated format is raw; probing it would let a guest choose what the host opens.

/// All integers of the format are big-endian.
struct Qcow2Header: Equatable {
    static let magic: [UInt8] = [0x51, 0x46, 0x49, 0xFB]
    /// QEMU's limits: 32 MiB of L1 table, 8 MiB of refcount table.
    static let maximumL1Bytes: UInt64 = 32 << 20
    static let maximumRefcountTableBytes: UInt64 = 8 << 20
    /// Offsets of what changes while an image is in use.
    enum Field { static let l1Table = 40, refcountTable = 48, refcountTableClusters = 56, autoclear = 88 }

    enum Compression: UInt8 { case deflate = 0, zstd = 1 }

    var version: UInt32
    var clusterBits: Int
    /// Bytes that the guest sees.
    var size: UInt64
    var l1Entries: Int
    var l1Offset: UInt64
    var refcountTableOffset: UInt64
    var refcountTableClusters: Int
    /// log2 of a refcount's bits.
    var refcountOrder: Int
    var isDirty = false
    var isCorrupt = false
    var autoclear: UInt64 = 0
    var compression = Compression.deflate
    var backing: (name: String, format: String?)?

    var clusterBytes: Int { 1 << clusterBits }

    static func == (one: Qcow2Header, other: Qcow2Header) -> Bool {
        one.size == other.size && one.l1Offset == other.l1Offset && one.backing?.name == other.backing?.name
    }

    /// `bytes`: the file's first bytes, 64 KiB where it has so many (header, extensions and backing file's name).
    init(_ bytes: [UInt8], fileBytes: UInt64) throws(Qcow2Fault) {
        let head = BigEndian(bytes)
        guard bytes.count >= 72, Array(bytes.prefix(4)) == Self.magic else { throw .damaged("its header is cut off") }
        version = head.word(4)
        guard version == 2 || version == 3 else { throw .unsupported("version \(version)") }
        guard (9...21).contains(head.word(20)) else { throw .damaged("clusters of 2^\(head.word(20)) bytes") }
        clusterBits = Int(head.word(20))
        size = head.long(24)
        guard head.word(32) == 0 else { throw .unsupported("encryption") }
        (l1Offset, refcountTableOffset) = (head.long(Field.l1Table), head.long(Field.refcountTable))
        (l1Entries, refcountTableClusters) = (0, 0)
        refcountOrder = 4
        var headerBytes = 72
        if version == 3 {
            guard bytes.count >= 104 else { throw .damaged("its header is cut off") }
            try readFeatures(head)
            refcountOrder = Int(head.word(96))
            headerBytes = Int(head.word(100))
            guard refcountOrder <= 6 else { throw .damaged("refcounts of 2^\(refcountOrder) bits") }
            guard headerBytes >= 104, headerBytes <= min(clusterBytes, bytes.count), headerBytes % 8 == 0 else {
                throw .damaged("a header of \(headerBytes) bytes")
            }
            if headerBytes > 104, let known = Compression(rawValue: bytes[104]) { compression = known }
            if headerBytes > 104, Compression(rawValue: bytes[104]) == nil { throw .unsupported("its compression") }
        }
        try readTables(head)
        try readBacking(head, bytes, extensions: headerBytes)
    }

    private mutating func readFeatures(_ head: BigEndian) throws(Qcow2Fault) {
        let incompatible = head.long(72)
        autoclear = head.long(Field.autoclear)
        (isDirty, isCorrupt) = (incompatible & 1 != 0, incompatible & 2 != 0)
        if incompatible & 4 != 0 { throw .unsupported("an external data file") }
        if incompatible & 16 != 0 { throw .unsupported("extended L2 entries") }
        if incompatible & ~0x1F != 0 { throw .unsupported("a feature of a newer version") }
    }

    private mutating func readTables(_ head: BigEndian) throws(Qcow2Fault) {
        let entries = UInt64(head.word(36))
        let covered = UInt64(clusterBytes / 8) << UInt64(clusterBits)
        guard size <= 1 << 56, entries * 8 <= Self.maximumL1Bytes, (size + covered - 1) / covered <= entries else {
            throw .damaged("an L1 table of \(entries) entries for \(size) bytes")
        }
        let clusters = UInt64(head.word(Field.refcountTableClusters))
        guard clusters << UInt64(clusterBits) <= Self.maximumRefcountTableBytes, clusters > 0 else {
            throw .damaged("a refcount table of \(clusters) clusters")
        }
        for (offset, name) in [(l1Offset, "L1"), (refcountTableOffset, "refcount")] {
            let isAligned = offset & UInt64(clusterBytes - 1) == 0
            guard isAligned, offset <= 1 << 56, offset > 0 || (name == "L1" && entries == 0) else {
                throw .damaged("its \(name) table lies at \(offset)")
            }
        }
        (l1Entries, refcountTableClusters) = (Int(entries), Int(clusters))
    }

    private mutating func readBacking(
        _ head: BigEndian, _ bytes: [UInt8], extensions: Int
    ) throws(Qcow2Fault) {
        let (offset, length) = (head.long(8), Int(head.word(16)))
        var end = bytes.count
        var name: String?
        if offset != 0 {
            guard (1...1023).contains(length), offset >= UInt64(extensions), offset < UInt64(bytes.count),
                Int(offset) + length <= min(bytes.count, clusterBytes)
            else { throw .damaged("the name of its backing file lies outside of its first cluster") }
            name = String(decoding: bytes[Int(offset)..<(Int(offset) + length)], as: UTF8.self)
            end = Int(offset)
        }
        var format: String?
        var at = extensions
        while at + 8 <= end {
            let (kind, count) = (head.word(at), Int(head.word(at + 4)))
            if kind == 0 { break }
            guard count <= end - at - 8 else { throw .damaged("a header extension of \(count) bytes") }
            // "Backing file format name".
            if kind == 0xE279_2ACA { format = String(decoding: bytes[(at + 8)..<(at + 8 + count)], as: UTF8.self) }
            at += 8 + (count + 7) & ~7
        }
        backing = name.map { ($0, format) }
    }
}

/// Why an image of this format cannot be used, or used any further.
enum Qcow2Fault: Error, Equatable {
    /// What it needs and we do not have.
    case unsupported(String)
    /// What makes no sense in it.
    case damaged(String)
    /// It was not closed: QEMU knows how to repair it.
    case unclean
    /// errno of a system call.
    case host(Int32)

    /// What a request that met this is answered with: EIO, or the host's own.
    var code: Int32 {
        if case .host(let code) = self { return code }
        return 5
    }
}

/// Numbers of a byte array; those behind its end read as 0.
struct BigEndian {
    private let bytes: [UInt8]
    init(_ bytes: [UInt8]) { self.bytes = bytes }

    func word(_ offset: Int) -> UInt32 { UInt32(truncatingIfNeeded: number(offset, 4)) }
    func long(_ offset: Int) -> UInt64 { number(offset, 8) }
    private func number(_ offset: Int, _ count: Int) -> UInt64 {
        (0..<count).reduce(0) { $0 << 8 | (offset + $1 < bytes.count ? UInt64(bytes[offset + $1]) : 0) }
    }
}
