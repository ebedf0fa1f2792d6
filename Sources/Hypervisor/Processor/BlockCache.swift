// Decoded code: blocks by physical address and mode, and how they die when their bytes are written.
// Source: our own design; rules of self-modifying code from Intel SDM vol. 3 §11.6, §8.1.3.
// Modelled: stores into the running block take effect behind the storing instruction.
// An instruction that crosses a page, or lies in no RAM, is decoded each time and never kept.

internal import CProcessor

typealias Block = UnsafeMutablePointer<apus_block>

/// A translation of the page that code is fetched from.
struct FetchEntry {
    var tag: UInt64 = .max
    var generation: UInt32 = 0
    var physical: UInt64 = 0
    var host: UnsafeMutableRawPointer?
}

struct BlockCache {
    static let insnSlots = 1 << 19
    static let blockSlots = Int(APUS_BLOCKS)
    static let hashSlots = 1 << 17
    static let pageSlots = 1 << 14
    static let fetchSlots = 1024
    static let longestBlock = 64

    let insns: UnsafeMutablePointer<apus_insn>
    let blocks: UnsafeMutablePointer<apus_block>
    let hashes: UnsafeMutablePointer<Block?>
    let pages: UnsafeMutablePointer<Block?>
    let fetches: UnsafeMutablePointer<FetchEntry>
    /// The blocks of instructions that cross pages or lie in no RAM, by linear address (in `physical`); the bytes
    /// they were decoded from are compared each time.
    let singles: UnsafeMutablePointer<apus_block>
    private let singleBytes: UnsafeMutablePointer<(UInt64, UInt64)>
    private static let singleSlots = 64
    var insnCount = 0
    var blockCount = 0
    /// Stores to pages of code that hit no code, by page; what the limit is rises each time it is reached.
    private let misses: UnsafeMutablePointer<(count: UInt32, limit: UInt32)>
    private static let missSlots = 1024
    /// Executions until a new block is translated; 0: none ever is.
    var heat: UInt32 = 0
    /// Executions that its translation is on trial for.
    var trial = Translator.trial
    /// From the executable to the writable mapping of translated code, and where code leaves it.
    var nativeAlias = 0
    var nativeExit = 0
    /// How the loop enters translated code.
    var nativeEntry: UnsafeMutableRawPointer?

    init() {
        insns = Self.table(Self.insnSlots)
        blocks = Self.table(Self.blockSlots)
        hashes = Self.table(Self.hashSlots)
        hashes.initialize(repeating: nil, count: Self.hashSlots)
        pages = .allocate(capacity: Self.pageSlots)
        pages.initialize(repeating: nil, count: Self.pageSlots)
        fetches = .allocate(capacity: Self.fetchSlots)
        fetches.initialize(repeating: FetchEntry(), count: Self.fetchSlots)
        misses = .allocate(capacity: Self.missSlots)
        misses.initialize(repeating: (0, 32), count: Self.missSlots)
        singles = .allocate(capacity: Self.singleSlots)
        singleBytes = .allocate(capacity: Self.singleSlots)
        singleBytes.initialize(repeating: (0, 0), count: Self.singleSlots)
        let room = UnsafeMutablePointer<apus_insn>.allocate(capacity: 2 * Self.singleSlots)
        for index in 0..<Self.singleSlots {
            (singles + index).initialize(
                to: apus_block(
                    insns: room + 2 * index, physical: 0, second: 0, mode_key: 0, bytes: 0, count: 0, next_hash: nil,
                    next_page: nil, main: nil, native: nil, heat: 0, lag: 0, plain: 0, trial: 0,
                    again: 0, home: 0))
        }
    }

    /// A large table, in the host's huge pages.
    private static func table<Element>(_ slots: Int) -> UnsafeMutablePointer<Element> {
        apus_huge_allocate(slots * MemoryLayout<Element>.stride).bindMemory(to: Element.self, capacity: slots)
    }
    private static func free<Element>(_ table: UnsafeMutablePointer<Element>, _ slots: Int) {
        apus_huge_free(table, slots * MemoryLayout<Element>.stride)
    }

    func deallocate() {
        singles.pointee.insns.deallocate()
        singles.deallocate()
        misses.deallocate()
        singleBytes.deallocate()
        Self.free(insns, Self.insnSlots)
        Self.free(blocks, Self.blockSlots)
        Self.free(hashes, Self.hashSlots)
        pages.deallocate()
        fetches.deallocate()
    }

    /// The place for the single instruction at a linear address.
    func crossing(_ linear: UInt64) -> Block {
        singles + Int(truncatingIfNeeded: linear ^ linear &>> 12) & (Self.singleSlots - 1)
    }

    @inline(__always) private static func mask(_ bytes: Int) -> (UInt64, UInt64) {
        if bytes >= 16 { return (.max, .max) }
        return bytes >= 8 ? (.max, (1 &<< UInt64(8 * (bytes - 8))) &- 1) : ((1 &<< UInt64(8 * bytes)) &- 1, 0)
    }

    /// Whether the instruction at `single` was decoded from what these bytes begin with.
    func holds(_ single: Block, _ low: UInt64, _ high: UInt64, _ have: Int) -> Bool {
        let length = Int(single.pointee.bytes)
        guard length <= have else { return false }
        let (kept, mask) = (singleBytes[single - singles], Self.mask(length))
        return (kept.0 ^ low) & mask.0 | (kept.1 ^ high) & mask.1 == 0
    }

    func note(_ single: Block, _ low: UInt64, _ high: UInt64, _ bytes: Int) {
        let mask = Self.mask(bytes)
        singleBytes[single - singles] = (low & mask.0, high & mask.1)
    }

    @inline(__always) private func hashSlot(_ physical: UInt64, _ key: UInt32) -> Int {
        let mixed = (physical ^ UInt64(key) &<< 7) &* 0x9E37_79B9_7F4A_7C15
        return Int(truncatingIfNeeded: mixed &>> 40) & (Self.hashSlots - 1)
    }
    @inline(__always) private func pageSlot(_ physical: UInt64) -> Int {
        Int(truncatingIfNeeded: physical &>> 12) & (Self.pageSlots - 1)
    }

    /// The block at a physical address; `second` tells where an instruction that crosses pages goes on.
    func find(_ physical: UInt64, _ key: UInt32, second: UInt64 = 0) -> Block? {
        var next = hashes[hashSlot(physical, key)]
        while let block = next {
            if block.pointee.physical == physical, block.pointee.mode_key == key, block.pointee.second == second {
                return block
            }
            next = block.pointee.next_hash
        }
        return nil
    }

    /// Whether an instruction that crosses pages is known at a physical address.
    func hasCrossing(_ physical: UInt64, _ key: UInt32) -> Bool {
        var next = hashes[hashSlot(physical, key)]
        while let block = next {
            if block.pointee.physical == physical, block.pointee.mode_key == key, block.pointee.second != 0 {
                return true
            }
            next = block.pointee.next_hash
        }
        return false
    }

    /// Whether another block of any length fits.
    var hasRoom: Bool {
        insnCount + Self.longestBlock + 2 <= Self.insnSlots && blockCount + 2 <= Self.blockSlots
    }

    /// Takes the block whose `count` instructions were written behind `insnCount` into the tables.
    mutating func add(_ physical: UInt64, _ key: UInt32, count: Int, bytes: Int, second: UInt64 = 0) -> Block {
        let block = blocks + blockCount
        blockCount += 1
        let hash = hashSlot(physical, key)
        let page = pageSlot(physical)
        block.initialize(
            to: apus_block(
                insns: insns + insnCount, physical: physical, second: second, mode_key: key,
                bytes: UInt32(truncatingIfNeeded: bytes), count: UInt32(truncatingIfNeeded: count),
                next_hash: hashes[hash], next_page: pages[page], main: nil, native: nil, heat: heat, lag: 0, plain: 0,
                trial: trial, again: 0, home: 0))
        insnCount += count + 1
        hashes[hash] = block
        pages[page] = block
        if second != 0 { addTail(block, second & ~1) }
        return block
    }

    /// Has a block die with the second page's bytes as well.
    private mutating func addTail(_ main: Block, _ physical: UInt64) {
        let tail = blocks + blockCount
        blockCount += 1
        let page = pageSlot(physical)
        let bytes = UInt64(main.pointee.bytes) &- (4096 &- main.pointee.physical & 0xFFF)
        tail.initialize(
            to: apus_block(
                insns: main.pointee.insns, physical: physical, second: 0, mode_key: .max,
                bytes: UInt32(truncatingIfNeeded: bytes), count: 0, next_hash: nil, next_page: pages[page], main: main,
                native: nil, heat: 0, lag: 0, plain: 0, trial: 0, again: 0, home: 0))
        pages[page] = tail
    }

    /// Forgets the blocks that overlap a range within one page. Tells whether any did, and whether
    /// the page holds none any more.
    func forget(_ physical: UInt64, _ bytes: UInt64, running: Block?) -> (hit: Bool, isEmpty: Bool) {
        let page = physical &>> 12
        let slot = pageSlot(physical)
        var (hit, isEmpty) = (false, true)
        defer { if hit, !isEmpty { cool(page, slot) } }
        var previous: Block?
        var next = pages[slot]
        while let block = next {
            next = block.pointee.next_page
            let start = block.pointee.physical
            guard start &>> 12 == page else {
                previous = block
                continue
            }
            if start < physical &+ bytes, physical < start &+ UInt64(block.pointee.bytes) {
                hit = true
                if let previous { previous.pointee.next_page = next } else { pages[slot] = next }
                if let main = block.pointee.main, main.pointee.bytes != 0 { kill(main, running) }
                if block.pointee.main == nil { kill(block, running) }
                block.pointee.physical = .max
                block.pointee.bytes = 0
            } else {
                isEmpty = false
                previous = block
            }
        }
        return (hit, isEmpty)
    }

    /// Counts a store to a page of code that hit none. true: so many did that the code is likely to be a leftover of
    /// another use of the page, and is better forgotten.
    func isStale(_ physical: UInt64) -> Bool {
        let slot = misses + Int(truncatingIfNeeded: physical &>> 12) & (Self.missSlots - 1)
        slot.pointee.count &+= 1
        guard slot.pointee.count >= slot.pointee.limit else { return false }
        slot.pointee = (0, min(slot.pointee.limit &* 2, 1 << 20))
        return true
    }

    /// Leaves it in its page's list, which skips it.
    private func kill(_ block: Block, _ running: Block?) {
        unhash(block)
        if block == running { cut(block) }
        retire(block)
        block.pointee.physical = .max
        block.pointee.bytes = 0
    }

    private func unhash(_ block: Block) {
        let slot = hashSlot(block.pointee.physical, block.pointee.mode_key)
        var next = hashes[slot]
        var previous: Block?
        while let found = next {
            next = found.pointee.next_hash
            if found == block {
                if let previous { previous.pointee.next_hash = next } else { hashes[slot] = next }
                return
            }
            previous = found
        }
    }

    /// Drops the translations of a page's other blocks: they rely on what their successors do to the flags.
    private func cool(_ page: UInt64, _ slot: Int) {
        var next = pages[slot]
        while let block = next {
            next = block.pointee.next_page
            guard block.pointee.physical &>> 12 == page, block.pointee.native != nil else { continue }
            retire(block)
            block.pointee.heat = heat
        }
    }

    /// Sends whoever enters a block's translation back to the loop.
    private func retire(_ block: Block) {
        block.pointee.heat = 0
        guard let native = block.pointee.native else { return }
        block.pointee.native = nil
        let writable = native + nativeAlias
        Translator.divert(writable, by: nativeExit &- Int(bitPattern: native))
        // Whoever comes from within the page has RIP moved first.
        for entry in [Translator.entryBytes, Translator.entryBytes + Translator.pollBytes] {
            Translator.divert(writable + entry, by: 0 &- Translator.exitBytes &- entry)
        }
        Translator.sendHome(writable, (block.pointee.again, block.pointee.home))
    }

    /// Makes a running block leave behind the instruction that runs.
    func cut(_ block: Block) {
        if block >= singles, block < singles + Self.singleSlots { block.pointee.mode_key = 0 }
        for index in 0...Int(block.pointee.count) { block.pointee.insns[index].handler = leaveBlock }
    }

    /// Forgets everything. A running block stays readable until the next decode.
    mutating func removeAll(running: Block?) {
        for index in 0..<blockCount {
            retire(blocks + index)
            // The jump cache may still name it.
            blocks[index].bytes = 0
        }
        if let running { cut(running) }
        hashes.update(repeating: nil, count: Self.hashSlots)
        pages.update(repeating: nil, count: Self.pageSlots)
        insnCount = 0
        blockCount = 0
    }
}

/// Closes every block: execution goes on at `start`.
let leaveBlock: apus_handler = { cpu, insn in
    // In a block that died this stands in for any instruction: only its place is right.
    let mask: UInt64 = cpu.pointee.code_size == 8 ? .max : 0xFFFF_FFFF
    cpu.pointee.rip = (cpu.pointee.rip &+ UInt64(insn.pointee.start)) & mask
    return Status.jump
}
