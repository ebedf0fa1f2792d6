// Jumps of translated code by the block that they lead to, which may get a translation later, or another one.
// Source: our own design.
// Modelled: lists by the hash of the target; what a dead translation listed stays, and is aimed for nothing.
// Quirks: no dictionary: each translation adds a few, and a dictionary of arrays allocates for most of them.

/// Where a block starts, and in which mode.
struct BlockKey: Equatable {
    let physical: UInt64
    let mode: UInt32
}

struct LinkTable {
    private struct Link {
        let key: BlockKey
        let place: UnsafeMutablePointer<UInt8>
        let skip: Int32
        /// Number of the next one in the list, from 1; 0: it is the last.
        let next: UInt32
    }

    private static let slots = 1 << 16
    private let heads: UnsafeMutablePointer<UInt32>
    private var links: [Link] = []

    init() {
        heads = .allocate(capacity: Self.slots)
        heads.initialize(repeating: 0, count: Self.slots)
    }

    func deallocate() { heads.deallocate() }

    private func head(_ key: BlockKey) -> UnsafeMutablePointer<UInt32> {
        let mixed = (key.physical ^ UInt64(key.mode) &<< 40) &* 0x9E37_79B9_7F4A_7C15
        return heads + Int(truncatingIfNeeded: mixed &>> 48) & (Self.slots - 1)
    }

    /// The jump whose displacement is at `place` leads `skip` bytes behind the entry of the block's translation.
    mutating func add(_ key: BlockKey, _ place: UnsafeMutablePointer<UInt8>, skip: Int) {
        let head = head(key)
        links.append(Link(key: key, place: place, skip: Int32(truncatingIfNeeded: skip), next: head.pointee))
        head.pointee = UInt32(truncatingIfNeeded: links.count)
    }

    /// Has all jumps to a block lead to its translation at `code`.
    func aim(_ key: BlockKey, _ code: UnsafeMutablePointer<UInt8>, _ emitter: Emitter) {
        var number = head(key).pointee
        while number != 0 {
            let link = links[Int(number) - 1]
            if link.key == key { emitter.aim(link.place, code + Int(link.skip)) }
            number = link.next
        }
    }

    mutating func removeAll() {
        links.removeAll(keepingCapacity: true)
        heads.update(repeating: 0, count: Self.slots)
    }
}
