// How often each cluster of a qcow2 image is referred to, and where there is room.
// Source: QEMU's docs/interop/qcow2.txt ("Host cluster management").
// Modelled: refcounts of 1 to 64 bits, new blocks, a table that grows. Not modelled: images without room for a larger
// table in what one block covers (clusters of 512 bytes and many GiB).
// Quirks: a count that makes no sense is an error for the request that met it; nothing is written then.

/// A refcount block, in memory, as its bytes.
final class RefcountBlock {
    var bytes: [UInt8]
    let offset: UInt64
    var isDirty = false
    init(_ bytes: [UInt8], at offset: UInt64) { (self.bytes, self.offset) = (bytes, offset) }
}

/// How often each cluster of the file is referred to.
final class Qcow2Refcounts {
    private let file: any ImageFile
    let clusterBits: Int
    private let order: Int
    private(set) var table: [UInt64]
    private(set) var tableOffset: UInt64
    private var blocks: [Int: RefcountBlock] = [:]
    private var isTableDirty = false
    /// Where the table was before it was moved to larger places.
    private var oldTables: [(offset: UInt64, clusters: Int)] = []
    private var next: UInt64 = 0
    /// Clusters that a refcount block covers.
    private var perBlock: UInt64 { UInt64(8 << clusterBits) >> UInt64(order) }
    private var clusterBytes: Int { 1 << clusterBits }
    private var highest: UInt64 { .max >> UInt64(64 - (1 << order)) }

    init(_ header: Qcow2Header, _ file: any ImageFile) throws(Qcow2Fault) {
        (self.file, clusterBits, order) = (file, header.clusterBits, header.refcountOrder)
        tableOffset = header.refcountTableOffset
        table = try file.table(tableOffset, entries: header.refcountTableClusters << (header.clusterBits - 3))
        for entry in table where entry & UInt64(clusterBytes - 1) != 0 || entry > 1 << 56 {
            throw .damaged("a refcount block lies at \(entry)")
        }
    }

    private func block(_ index: Int) throws(Qcow2Fault) -> RefcountBlock? {
        if let known = blocks[index] { return known }
        guard index < table.count, table[index] != 0 else { return nil }
        if blocks.count >= 128 { blocks = blocks.filter { $0.value.isDirty } }
        let block = RefcountBlock(try file.bytes(table[index], clusterBytes), at: table[index])
        blocks[index] = block
        return block
    }

    func count(_ cluster: UInt64) throws(Qcow2Fault) -> UInt64 {
        guard let index = Int(exactly: cluster / perBlock), let block = try block(index) else { return 0 }
        return get(block, Int(cluster % perBlock))
    }

    private func get(_ block: RefcountBlock, _ index: Int) -> UInt64 {
        if order < 3 {
            let perByte = 8 >> order
            let bits = UInt8(1 << order)
            return UInt64(block.bytes[index / perByte] >> (UInt8(index % perByte) * bits) & ((1 << bits) - 1))
        }
        let bytes = 1 << (order - 3)
        return (0..<bytes).reduce(0) { $0 << 8 | UInt64(block.bytes[index * bytes + $1]) }
    }

    private func set(_ block: RefcountBlock, _ index: Int, _ value: UInt64) {
        block.isDirty = true
        if order < 3 {
            let perByte = 8 >> order
            let bits = UInt8(1 << order)
            let shift = UInt8(index % perByte) * bits
            let mask = UInt8((1 << bits) - 1) << shift
            block.bytes[index / perByte] = block.bytes[index / perByte] & ~mask | UInt8(value) << shift
            return
        }
        let bytes = 1 << (order - 3)
        for byte in 0..<bytes {
            block.bytes[index * bytes + byte] = UInt8(truncatingIfNeeded: value >> UInt64(8 * (bytes - 1 - byte)))
        }
    }

    func change(_ cluster: UInt64, by difference: Int64) throws(Qcow2Fault) {
        let index = try existing(cluster)
        guard let block = try block(index) else { throw .damaged("a cluster without refcount at \(cluster)") }
        let old = get(block, Int(cluster % perBlock))
        let new = old &+ UInt64(bitPattern: difference)
        guard difference < 0 ? old >= UInt64(-difference) : new > old && new <= highest else {
            throw .damaged("the refcount of cluster \(cluster) is \(old)")
        }
        set(block, Int(cluster % perBlock), new)
        if new == 0 { next = min(next, cluster) }
    }

    /// The number of the block of a cluster, which is made if there is none. A new block lies in the first cluster that
    /// it covers: nobody uses those, as none has a count.
    private func existing(_ cluster: UInt64) throws(Qcow2Fault) -> Int {
        guard cluster < 1 << 47 else { throw .host(27) }
        let index = Int(cluster / perBlock)
        if index >= table.count { try growTable(for: index) }
        if table[index] == 0 {
            let place = UInt64(index) * perBlock
            let block = RefcountBlock([UInt8](repeating: 0, count: clusterBytes), at: place << UInt64(clusterBits))
            set(block, 0, 1)
            blocks[index] = block
            (table[index], isTableDirty) = (block.offset, true)
            try file.extend(to: block.offset + UInt64(clusterBytes))
        }
        return index
    }

    /// Moves the table to a larger place, behind the first cluster of what it is to cover.
    private func growTable(for index: Int) throws(Qcow2Fault) {
        let perCluster = clusterBytes / 8
        let oldClusters = table.count / perCluster
        let clusters = max(oldClusters + (oldClusters + 1) / 2, index / perCluster + 1)
        guard UInt64(clusters) < perBlock, clusters << clusterBits <= Int(Qcow2Header.maximumRefcountTableBytes)
        else { throw .host(27) }
        oldTables.append((tableOffset, oldClusters))
        table += [UInt64](repeating: 0, count: clusters * perCluster - table.count)
        let first = UInt64(index) * perBlock + 1
        (tableOffset, isTableDirty) = (first << UInt64(clusterBits), true)
        for cluster in first..<(first + UInt64(clusters)) { try change(cluster, by: 1) }
        try file.extend(to: tableOffset + UInt64(clusters << clusterBits))
    }

    /// `count` clusters side by side that nobody refers to, now referred to once; the first one's number.
    func allocate(_ count: Int = 1) throws(Qcow2Fault) -> UInt64 {
        var first = next
        var found = 0
        while found < count {
            let cluster = first + UInt64(found)
            // A block that is not there yet takes its own first cluster.
            _ = try existing(cluster)
            if try self.count(cluster) == 0 {
                found += 1
            } else {
                (first, found) = (cluster + 1, 0)
            }
        }
        for cluster in first..<(first + UInt64(count)) { try change(cluster, by: 1) }
        if count == 1 || first == next { next = first + UInt64(count) }
        return first
    }

    // MARK: - To the file

    var isDirty: Bool { isTableDirty || blocks.values.contains { $0.isDirty } }

    /// Writes what has changed. Blocks come before the table that leads to them, a moved table before the header.
    func write() throws(Qcow2Fault) {
        for block in blocks.values where block.isDirty {
            try file.write(block.offset, block.bytes)
            block.isDirty = false
        }
        guard isTableDirty else { return }
        try file.sync()
        try file.writeTable(tableOffset, table)
        isTableDirty = false
        guard !oldTables.isEmpty else { return }
        try file.sync()
        let clusters = UInt32(table.count * 8 / clusterBytes)
        let place = Qcow2Table.bytes(tableOffset) + Qcow2Table.bytes(clusters)
        try file.write(UInt64(Qcow2Header.Field.refcountTable), place)
        try file.sync()
        let old = oldTables
        oldTables = []
        for table in old {
            let first = table.offset >> UInt64(clusterBits)
            for cluster in first..<(first + UInt64(table.clusters)) { try change(cluster, by: -1) }
        }
    }
}
