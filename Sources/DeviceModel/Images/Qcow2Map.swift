// A qcow2 image as bytes that the guest sees: reading, writing, discarding, committing.
// Source: QEMU's docs/interop/qcow2.txt (cluster mapping, standard, zero and compressed clusters, snapshots).
// Modelled: copy on write from backing files and snapshots, zero clusters, compressed clusters (read), discard.
// Not modelled: making snapshots, writing compressed clusters. Quirks: see `commit` for the order of what is written.

/// What lies below an image, or is one.
protocol ImageLayer: AnyObject {
    var size: UInt64 { get }
    /// What lies behind the end is zero.
    func read(_ offset: UInt64, into ranges: [HostRange]) throws(Qcow2Fault)
}

/// Used by one thread; every call waits for the host.
final class Qcow2Map: ImageLayer {
    /// Where a piece of the guest's disk, within one cluster, is.
    enum Place: Equatable {
        /// At this offset of the file. `isOwn`: it may be written there.
        case file(UInt64, isOwn: Bool)
        case zero
        case below
        case compressed(UInt64)
    }
    static let cachedTables = 256

    let header: Qcow2Header
    let file: any ImageFile
    let backing: (any ImageLayer)?
    let refcounts: Qcow2Refcounts?
    private var l1: [UInt64]
    private var isL1Dirty = false
    private var tables: [Int: Qcow2Table] = [:]
    private var uses: UInt64 = 0
    /// Clusters that were let go of: their counts fall once nothing on the disk refers to them any more.
    private var released: [UInt64] = []
    /// One cluster, unpacked, and where it was packed.
    private var unpacked: (entry: UInt64, bytes: [UInt8])?
    let scratch: TransferBuffer
    var size: UInt64 { header.size }
    var clusterBytes: Int { header.clusterBytes }

    init(
        _ header: Qcow2Header, file: any ImageFile, backing: (any ImageLayer)?, readOnly: Bool
    ) throws(Qcow2Fault) {
        (self.header, self.file, self.backing) = (header, file, backing)
        if !readOnly && (header.isDirty || header.isCorrupt) { throw .unclean }
        l1 = try file.table(header.l1Offset, entries: header.l1Entries)
        refcounts = readOnly ? nil : try Qcow2Refcounts(header, file)
        scratch = TransferBuffer(bytes: header.clusterBytes)
        guard let refcounts else { return }
        try refcounts.expectUse(from: 0, bytes: 1)
        try refcounts.expectUse(from: header.l1Offset, bytes: UInt64(header.l1Entries * 8))
        try refcounts.expectUse(from: header.refcountTableOffset, bytes: UInt64(refcounts.table.count * 8))
        // What we do not keep up to date (bitmaps) is void from here on.
        if header.autoclear != 0 {
            try file.write(UInt64(Qcow2Header.Field.autoclear), [UInt8](repeating: 0, count: 8))
        }
    }

    // MARK: - Tables

    private var perTable: Int { clusterBytes / 8 }

    /// The table of an L1 entry; nil if there is none.
    func table(_ index: Int) throws(Qcow2Fault) -> Qcow2Table? {
        uses &+= 1
        if let known = tables[index] {
            known.lastUse = uses
            return known
        }
        let offset = l1[index] & Qcow2Entry.offset
        guard offset != 0 else { return nil }
        guard offset & UInt64(clusterBytes - 1) == 0 else { throw .damaged("an L2 table lies at \(offset)") }
        try refcounts?.expectUse(from: offset, bytes: 1)
        try makeRoom()
        let table = Qcow2Table(try file.table(offset, entries: perTable), at: offset)
        table.lastUse = uses
        tables[index] = table
        return table
    }

    private func makeRoom() throws(Qcow2Fault) {
        guard tables.count >= Self.cachedTables else { return }
        try commit()
        let oldest = tables.sorted { $0.value.lastUse < $1.value.lastUse }.prefix(Self.cachedTables / 4)
        for (index, _) in oldest { tables[index] = nil }
    }

    /// The table of an L1 entry, made or copied so that it may be changed.
    private func ownTable(_ index: Int) throws(Qcow2Fault) -> Qcow2Table {
        guard let refcounts else { throw .host(30) }
        let old = try table(index)
        if let old, l1[index] & Qcow2Entry.copied != 0 { return old }
        try makeRoom()
        let offset = try refcounts.allocate() << UInt64(header.clusterBits)
        try file.extend(to: offset + UInt64(clusterBytes))
        let table = Qcow2Table(old?.entries ?? [UInt64](repeating: 0, count: perTable), at: offset)
        (table.isDirty, table.lastUse) = (true, uses)
        tables[index] = table
        // A snapshot goes on using the old one.
        if let old { released.append(old.offset >> UInt64(header.clusterBits)) }
        (l1[index], isL1Dirty) = (offset | Qcow2Entry.copied, true)
        return table
    }

    private func split(_ offset: UInt64) -> (table: Int, entry: Int, within: Int) {
        let cluster = offset >> UInt64(header.clusterBits)
        return (
            Int(cluster / UInt64(perTable)), Int(cluster % UInt64(perTable)), Int(offset & UInt64(clusterBytes - 1))
        )
    }

    func place(_ entry: UInt64) throws(Qcow2Fault) -> Place {
        if entry & Qcow2Entry.compressed != 0 { return .compressed(entry) }
        if header.version >= 3, entry & Qcow2Entry.zero != 0 { return .zero }
        let offset = entry & Qcow2Entry.offset
        guard offset != 0 else { return backing == nil ? .zero : .below }
        guard offset & UInt64(clusterBytes - 1) == 0 else { throw .damaged("a cluster lies at \(offset)") }
        return .file(offset, isOwn: entry & Qcow2Entry.copied != 0)
    }

    /// All places of an L2 table's clusters, for those who cache them; nil if there is no table.
    func places(_ index: Int) throws(Qcow2Fault) -> [UInt64]? { try table(index)?.entries }

    // MARK: - Reading

    func read(_ offset: UInt64, into ranges: [HostRange]) throws(Qcow2Fault) {
        try forEachCluster(offset, ranges) { (position, part) throws(Qcow2Fault) in
            guard position < size else { return part.clear() }
            let (index, entry, within) = split(position)
            let place = try place(try table(index)?.entries[entry] ?? 0)
            switch place {
            case .zero: part.clear()
            case .file(let base, _):
                var at = base + UInt64(within)
                for range in part {
                    try file.read(at, range)
                    at += UInt64(range.count)
                }
            case .below:
                if let backing { try backing.read(position, into: part) } else { part.clear() }
            case .compressed(let entry): part.fill(from: try unpack(entry)[within...])
            }
        }
    }

    /// Calls `body` for each cluster that a transfer touches, with the memory that belongs to it.
    private func forEachCluster(
        _ offset: UInt64, _ ranges: [HostRange], _ body: (UInt64, [HostRange]) throws(Qcow2Fault) -> Void
    ) throws(Qcow2Fault) {
        var (position, rest) = (offset, ranges[...])
        var head: HostRange? = nil
        while true {
            var room = clusterBytes - Int(position & UInt64(clusterBytes - 1))
            var part: [HostRange] = []
            let start = position
            while room > 0, let next = head ?? rest.popFirst() {
                let count = min(room, next.count)
                part.append(next.part(0, count))
                head = count < next.count ? next.part(count, next.count - count) : nil
                room -= count
                position += UInt64(count)
            }
            if part.isEmpty { return }
            try body(start, part)
        }
    }

    func unpack(_ entry: UInt64) throws(Qcow2Fault) -> [UInt8] {
        if let unpacked, unpacked.entry == entry { return unpacked.bytes }
        let (offset, count) = packedPlace(entry)
        let packed = try file.bytes(offset, count)
        guard let bytes = Qcow2Compression.unpack(packed, header.compression, into: clusterBytes) else {
            throw .damaged("a compressed cluster at \(offset)")
        }
        unpacked = (entry, bytes)
        return bytes
    }

    /// Offset of a compressed cluster, and its bytes up to the end of the last sector.
    func packedPlace(_ entry: UInt64) -> (offset: UInt64, count: Int) {
        let shift = UInt64(62 - (header.clusterBits - 8))
        let offset = entry & ((1 << shift) - 1)
        let sectors = Int((entry & ~(3 << 62)) >> shift) + 1
        return (offset, sectors * 512 - Int(offset & 511))
    }

    // MARK: - Writing

    func write(_ offset: UInt64, from ranges: [HostRange]) throws(Qcow2Fault) {
        try forEachCluster(offset, ranges) { (position, part) throws(Qcow2Fault) in
            guard position < size else { throw .host(5) }
            try write(position, part)
        }
    }

    /// Within one cluster.
    private func write(_ position: UInt64, _ part: [HostRange]) throws(Qcow2Fault) {
        let (index, entry, within) = split(position)
        let own = try ownTable(index)
        let old = own.entries[entry]
        if case .file(let base, isOwn: true) = try place(old) { return try file.write(base + UInt64(within), part) }
        let bytes = part.reduce(0) { $0 + $1.count }
        let isWhole = bytes == clusterBytes
        // A zero cluster may keep a place of its own.
        let kept = old & Qcow2Entry.compressed == 0 && old & Qcow2Entry.copied != 0 ? old & Qcow2Entry.offset : 0
        var target = kept
        var isFresh = false
        if kept == 0 {
            guard let refcounts else { throw .host(30) }
            let end = file.size
            target = try refcounts.allocate() << UInt64(header.clusterBits)
            isFresh = target >= end
            try file.extend(to: target + UInt64(clusterBytes))
        }
        let isZero = try place(old) == .zero
        if isWhole || isZero && isFresh {
            // Around it is what the file has behind its old end: zeroes.
            try file.write(target + UInt64(within), part)
        } else {
            let start = position - UInt64(within)
            try read(start, into: [scratch.range])
            part.copy(to: scratch.part(within, bytes))
            try file.write(target, scratch.range)
        }
        own.entries[entry] = target | Qcow2Entry.copied
        own.isDirty = true
        if kept == 0 { release(old) }
    }

    /// Notes that an entry's cluster, or clusters of compressed data, are not referred to by it any more.
    private func release(_ entry: UInt64) {
        if entry & Qcow2Entry.compressed != 0 {
            let (offset, count) = packedPlace(entry)
            let bits = UInt64(header.clusterBits)
            released += (offset >> bits)...((offset + UInt64(count) - 1) >> bits)
        } else if entry & Qcow2Entry.offset != 0 {
            released.append((entry & Qcow2Entry.offset) >> UInt64(header.clusterBits))
        }
    }

    /// Gives up whole clusters of a range; they read as zeroes afterwards.
    func discard(_ offset: UInt64, bytes: UInt64) throws(Qcow2Fault) {
        let mask = UInt64(clusterBytes - 1)
        var position = (offset + mask) & ~mask
        // The last cluster may be larger than what the disk has of it.
        let end = offset + bytes == size ? (size + mask) & ~mask : (offset + bytes) & ~mask
        // Version 2 has no way to say "zero" above a backing file.
        guard header.version >= 3 || backing == nil else { return }
        while position < end {
            let (index, entry, _) = split(position)
            if try table(index) == nil, backing == nil {
                position = (position / UInt64(clusterBytes * perTable) + 1) * UInt64(clusterBytes * perTable)
                continue
            }
            let wanted: UInt64 = backing == nil ? 0 : Qcow2Entry.zero
            let own = try ownTable(index)
            let old = own.entries[entry]
            if old != wanted {
                own.entries[entry] = wanted
                own.isDirty = true
                release(old)
            }
            position += UInt64(clusterBytes)
        }
    }

    // MARK: - To the file

    var isDirty: Bool {
        isL1Dirty || !released.isEmpty || refcounts?.isDirty == true || tables.values.contains { $0.isDirty }
    }

    /// Writes what has changed, so that at any moment what is on the disk makes sense: counts rise before somebody
    /// refers to a cluster, tables are whole before somebody refers to them, and counts fall when nobody does any more.
    /// A crash in between leaves clusters that nobody uses, which `qemu-img check` reports as leaks.
    func commit() throws(Qcow2Fault) {
        guard let refcounts, isDirty else { return }
        let dirty = tables.values.filter { $0.isDirty }
        try refcounts.write()
        if !dirty.isEmpty {
            try file.sync()
            for table in dirty {
                try file.writeTable(table.offset, table.entries)
                table.isDirty = false
            }
        }
        if isL1Dirty {
            try file.sync()
            try file.writeTable(header.l1Offset, l1)
            isL1Dirty = false
        }
        guard !released.isEmpty else { return }
        try file.sync()
        let list = released
        released = []
        for cluster in list {
            try refcounts.change(cluster, by: -1)
            if try refcounts.count(cluster) == 0 {
                file.release(cluster << UInt64(header.clusterBits), bytes: UInt64(clusterBytes))
            }
        }
        try refcounts.write()
    }

    /// Commits and makes all of it durable.
    func flush() throws(Qcow2Fault) {
        try commit()
        try file.sync()
    }
}

extension Qcow2Refcounts {
    /// Throws unless the clusters of a range are counted as used: else they would be given away as free ones.
    func expectUse(from offset: UInt64, bytes: UInt64) throws(Qcow2Fault) {
        guard bytes > 0 else { return }
        let bits = UInt64(clusterBits)
        for cluster in (offset >> bits)...((offset + bytes - 1) >> bits) where try count(cluster) == 0 {
            throw .damaged("cluster \(cluster) is in use and counted as free")
        }
    }
}

extension ImageFile {
    /// Memory that lies in pieces, to a place in one piece.
    func write(_ offset: UInt64, _ ranges: [HostRange]) throws(Qcow2Fault) {
        var at = offset
        for range in ranges {
            try write(at, range)
            at += UInt64(range.count)
        }
    }
}

extension [HostRange] {
    func clear() {
        for range in self { unsafe range.bytes.initializeMemory(as: UInt8.self, repeating: 0) }
    }

    /// Fills all of it from the first bytes of `source`.
    func fill(from source: ArraySlice<UInt8>) {
        var rest = source
        for range in self {
            unsafe range.bytes.copyBytes(from: rest.prefix(range.count))
            rest = rest.dropFirst(range.count)
        }
    }

    func copy(to target: HostRange) {
        var at = 0
        for range in self {
            unsafe target.part(at, range.count).bytes.copyMemory(from: UnsafeRawBufferPointer(range.bytes))
            at += range.count
        }
    }
}

extension HostRange {
    func part(_ offset: Int, _ count: Int) -> HostRange { unsafe HostRange(base + offset, count) }
}
