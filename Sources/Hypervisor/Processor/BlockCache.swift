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
    static let insnSlots = 1 << 18
    static let blockSlots = 1 << 16
    static let hashSlots = 1 << 16
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
        insns = .allocate(capacity: Self.insnSlots)
        blocks = .allocate(capacity: Self.blockSlots)
        hashes = .allocate(capacity: Self.hashSlots)
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
                    next_page: nil, main: nil, native: nil, heat: 0, plain: 0, trial: 0))
        }
    }

    func deallocate() {
        singles.pointee.insns.deallocate()
        singles.deallocate()
        misses.deallocate()
        singleBytes.deallocate()
        insns.deallocate()
        blocks.deallocate()
        hashes.deallocate()
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
                next_hash: hashes[hash], next_page: pages[page], main: nil, native: nil, heat: heat, plain: 0,
                trial: trial))
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
                native: nil, heat: 0, plain: 0, trial: 0))
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
        let distance = nativeExit &- Int(bitPattern: native)
        Translator.divert(native + nativeAlias, by: distance)
        Translator.divert(native + nativeAlias + Translator.pollBytes, by: distance &- Translator.pollBytes)
    }

    /// Makes a running block leave behind the instruction that runs.
    func cut(_ block: Block) {
        if block >= singles, block < singles + Self.singleSlots { block.pointee.mode_key = 0 }
        for index in 0...Int(block.pointee.count) { block.pointee.insns[index].handler = leaveBlock }
    }

    /// Forgets everything. A running block stays readable until the next decode.
    mutating func removeAll(running: Block?) {
        for index in 0..<blockCount { retire(blocks + index) }
        if let running { cut(running) }
        hashes.update(repeating: nil, count: Self.hashSlots)
        pages.update(repeating: nil, count: Self.pageSlots)
        insnCount = 0
        blockCount = 0
    }
}

/// Closes every block: execution goes on at `start`.
let leaveBlock: apus_handler = { cpu, insn in
    cpu.pointee.rip = (cpu.pointee.rip &+ UInt64(insn.pointee.start)) & insn.pointee.addr_mask
    cpu.pointee.instructions &-= 1
    return Status.jump
}

// MARK: - Written code

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// A store reached a page that holds code.
    @inline(never) func codeWritten(_ physical: UInt64, _ bytes: UInt64) {
        let engine = engine
        if !forgetCode(physical, bytes), engine.pointee.blocks.isStale(physical) {
            forgetCode(physical & ~0xFFF, 4096)
        }
        guard engine.pointee.isShared, let holders = codeHolders(physical), holders.pointee != 0 else { return }
        engine.pointee.map.engines.written(physical & ~0xFFF, holders, by: engine)
    }

    /// The code map's byte of a page: a bit for each engine that decoded something from it.
    private func codeHolders(_ physical: UInt64) -> UnsafeMutablePointer<UInt8>? {
        guard let region = engine.pointee.region(physical), let map = region.pointee.codeMap else { return nil }
        return map + Int(truncatingIfNeeded: (physical &- region.pointee.start) &>> 12)
    }

    /// Forgets code of this vCPU decoded from a physical range; whether there was any.
    @discardableResult func forgetCode(_ physical: UInt64, _ bytes: UInt64) -> Bool {
        guard bytes > 0 else { return false }
        let engine = engine
        if bytes > 1 << 20 {
            forgetAllCode()
            return true
        }
        var start = physical
        let end = physical &+ bytes
        var anyHit = false
        while start < end {
            let part = min(end &- start, 4096 &- start & 0xFFF)
            let (hit, isEmpty) = engine.pointee.blocks.forget(start, part, running: self.pointee.current)
            anyHit = anyHit || hit
            if isEmpty, engine.pointee.ownsCodeBit, let holders = codeHolders(start) {
                _ = apus_atomic_and8(holders, ~engine.pointee.codeBit)
            }
            start &+= part
        }
        if anyHit { self.pointee.code_generation &+= 1 }
        return anyHit
    }

    func forgetAllCode() {
        engine.pointee.blocks.removeAll(running: self.pointee.current)
        self.pointee.code_generation &+= 1
        dropJumps()
    }

    /// Notes that a page holds code: from now on, stores to it take the slow way.
    private func guardPage(_ physical: UInt64) {
        let engine = engine
        guard let holders = codeHolders(physical), holders.pointee & engine.pointee.codeBit == 0 else { return }
        let isFirst = apus_atomic_or8(holders, engine.pointee.codeBit) == 0
        // Nobody has watched stores until now.
        if isFirst, let host = hostPage(physical) { _ = flushStores(to: host) }
        guard engine.pointee.isShared else { return }
        engine.pointee.map.engines.guarded(physical & ~0xFFF, isFirst: isFirst, by: engine)
    }

    /// Enters what stores to guest memory.
    @inline(__always) func enterGuest() {
        guard engine.pointee.isShared else { return }
        apus_set_flag(engine.pointee.inside, true)
        if engine.pointee.hasNews { readNews() }
    }
    /// Leaves it, with no news unread.
    @inline(__always) func leaveGuest() {
        guard engine.pointee.isShared else { return }
        while true {
            if engine.pointee.hasNews { readNews() }
            apus_set_flag(engine.pointee.inside, false)
            if !engine.pointee.hasNews { return }
            apus_set_flag(engine.pointee.inside, true)
        }
    }

    /// A serializing instruction: what others have written to code until now is to be seen behind it, whether they
    /// watch that page already or not (SDM vol. 3 §8.1.3).
    @inline(__always) func serialize() {
        if !engine.pointee.unwatched.isEmpty { forgetUnwatched() }
    }
    @inline(never) private func forgetUnwatched() {
        for page in engine.pointee.map.engines.takeUnwatched(engine) { forgetCode(page, 4096) }
    }

    private func hostPage(_ physical: UInt64) -> UnsafeMutableRawPointer? {
        guard let region = engine.pointee.region(physical) else { return nil }
        return region.pointee.host + Int(truncatingIfNeeded: (physical & ~0xFFF) &- region.pointee.start)
    }

    /// Takes in what other vCPUs did to code.
    func readNews() {
        let engine = engine
        let stamp = engine.pointee.storeStamp
        let (list, sequence) = engine.pointee.map.engines.take(engine)
        defer { engine.pointee.map.engines.acknowledge(sequence, by: engine) }
        for news in list {
            switch news {
            case .written(let page): forgetCode(page, 4096)
            case .guarded(let page, let then):
                guard let host = hostPage(page) else { continue }
                // Stores may have gone by unseen until now, if there was a translation for them.
                if flushStores(to: host) || stamp != then { codeWritten(page, 4096) }
            case .everything: forgetAllCode()
            case .overflow:
                flushStores()
                forgetAllCode()
                engine.pointee.map.engines.everything(by: engine)
            }
        }
    }
}

// MARK: - Finding and decoding

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// The block at CS:RIP, decoded if need be.
    @inline(never) func findBlock() throws(Fault) -> Block {
        let cs = segmentPointer(segmentCS)
        let rip = self.pointee.rip
        var linear = rip
        if self.pointee.code_size == 8 {
            try checkCanonical(rip, segment: segmentCS)
        } else {
            guard rip <= UInt64(cs.pointee.limit) else { throw raise(13, error: 0) }
            linear = (cs.pointee.base &+ rip) & 0xFFFF_FFFF
        }
        let (physical, host) = try fetchPage(linear)
        let key = self.pointee.mode_key
        let isTraced = key & ModeKey.trap.rawValue != 0
        guard let host, !isTraced else { return try decodeSingle(linear) }
        let engine = engine
        var block = engine.pointee.blocks.find(physical, key)
        if block == nil {
            if !engine.pointee.blocks.hasRoom { forgetAllCode() }
            if engine.pointee.blocks.hasCrossing(physical, key) { block = crossing(linear, host, physical) }
            if block == nil { block = decodeBlock(host, physical) ?? crossing(linear, host, physical) }
        }
        guard let block else { return try decodeSingle(linear) }
        if self.pointee.code_size != 8, rip &+ UInt64(block.pointee.bytes) &- 1 > UInt64(cs.pointee.limit) {
            return try decodeSingle(linear)
        }
        let slot = self.pointee.jumps + jumpSlot(linear)
        slot.pointee = apus_jump(
            linear: linear, key: UInt64(key) | UInt64(self.pointee.jump_generation) &<< 32, block: block,
            native: block.pointee.native.map { UnsafeRawPointer($0) }
                ?? UnsafeRawPointer(bitPattern: engine.pointee.blocks.nativeExit))
        return block
    }

    @inline(__always) func jumpSlot(_ linear: UInt64) -> Int {
        Int(apus_jump_slot(linear))
    }

    /// Where an instruction is fetched from; a nil host address means the bus.
    func fetchPage(_ linear: UInt64) throws(Fault) -> (physical: UInt64, host: UnsafeMutableRawPointer?) {
        let engine = engine
        let isUser = self.pointee.cpl == 3
        let tag = linear & ~0xFFF | (isUser ? 1 : 0)
        let entry = engine.pointee.blocks.fetches + Int(truncatingIfNeeded: linear &>> 12) % BlockCache.fetchSlots
        let within = linear & 0xFFF
        if entry.pointee.tag == tag, entry.pointee.generation == self.pointee.jump_generation {
            let host = entry.pointee.host.map { $0 + Int(truncatingIfNeeded: within) }
            return (entry.pointee.physical | within, host)
        }
        let right: UInt8 = isUser ? 128 : 64
        var found: FarEntry
        if let known = engine.pointee.spaces.find(linear, right) {
            found = known.pointee
        } else {
            let mode = isUser ? UInt8(APUS_TLB_USER) : UInt8(APUS_TLB_SUPERVISOR)
            let (physical, _, _) = try walk(linear, Intent(fetch: true, mode: mode))
            guard let region = engine.pointee.region(physical) else {
                noteCode(linear, isUser: isUser)
                return (physical, nil)
            }
            found = farEntry(physical, region)
            found.rights = right
            engine.pointee.spaces.note(linear, found)
        }
        noteCode(linear, isUser: isUser)
        entry.pointee = FetchEntry(
            tag: tag, generation: self.pointee.jump_generation, physical: found.physical, host: found.host)
        return (found.physical | within, found.host.map { $0 + Int(truncatingIfNeeded: within) })
    }

    /// Decodes from `host` to the next jump, or to the last instruction that lies in the page whole.
    /// nil: the first one does not.
    private func decodeBlock(_ host: UnsafeMutableRawPointer, _ physical: UInt64) -> Block? {
        let engine = engine
        guardPage(physical)
        let room = 4096 - Int(truncatingIfNeeded: physical & 0xFFF)
        let insns = engine.pointee.blocks.insns + engine.pointee.blocks.insnCount
        let bytes = UnsafePointer(host.assumingMemoryBound(to: UInt8.self))
        var (at, count) = (0, 0)
        while count < BlockCache.longestBlock, at < room {
            let insn = insns + count
            let (length, ends) = decode(insn, bytes + at, available: min(room - at, 15))
            guard length > 0 else { break }
            place(insn, at, length)
            at += length
            count += 1
            if ends { break }
        }
        guard count > 0 else { return nil }
        close(insns + count, at)
        return engine.pointee.blocks.add(physical, self.pointee.mode_key, count: count, bytes: at)
    }

    /// The block of one instruction that begins at `host` and goes on in the next page; nil: it is no such.
    private func crossing(_ linear: UInt64, _ host: UnsafeMutableRawPointer, _ physical: UInt64) -> Block? {
        let room = 4096 - Int(truncatingIfNeeded: physical & 0xFFF)
        guard room < 15, self.pointee.code_size == 8, let (next, behind) = try? fetchPage(linear &+ UInt64(room)),
            let behind
        else { return nil }
        let engine = engine
        let key = self.pointee.mode_key
        if let known = engine.pointee.blocks.find(physical, key, second: next | 1) { return known }
        guardPage(physical)
        guardPage(next)
        var bytes: (UInt64, UInt64) = (0, 0)
        let insn = engine.pointee.blocks.insns + engine.pointee.blocks.insnCount
        let length = withUnsafeMutableBytes(of: &bytes) { buffer -> Int in
            guard let start = buffer.baseAddress else { return 0 }
            start.copyMemory(from: host, byteCount: room)
            (start + room).copyMemory(from: behind, byteCount: 15 - room)
            return decode(insn, UnsafePointer(start.assumingMemoryBound(to: UInt8.self)), available: 15).length
        }
        guard length > room else { return nil }
        place(insn, 0, length)
        close(insn + 1, length)
        return engine.pointee.blocks.add(physical, key, count: 1, bytes: length, second: next | 1)
    }

    /// Fixes an instruction's place within its block, and the operands that depend on it.
    private func place(_ insn: UnsafeMutablePointer<apus_insn>, _ at: Int, _ length: Int) {
        insn.pointee.start = UInt16(truncatingIfNeeded: at)
        insn.pointee.next = UInt16(truncatingIfNeeded: at + length)
        if insn.pointee.mem != 0, insn.pointee.base == UInt8(APUS_RIP) {
            insn.pointee.disp = insn.pointee.disp &+ Int32(truncatingIfNeeded: at + length)
        }
    }

    private func close(_ insn: UnsafeMutablePointer<apus_insn>, _ at: Int) {
        var end = apus_insn.empty
        end.handler = leaveBlock
        end.start = UInt16(truncatingIfNeeded: at)
        end.addr_mask = self.pointee.code_size == 8 ? .max : 0xFFFF_FFFF
        insn.initialize(to: end)
    }

    /// Decodes one instruction that may cross a page, is traced, or lies in no RAM.
    func decodeSingle(_ linear: UInt64) throws(Fault) -> Block {
        var bytes: (UInt64, UInt64) = (0, 0)
        var have = 0
        var fault: Fault?
        let limit = self.pointee.code_size == 8 ? UInt64.max : UInt64(segmentPointer(segmentCS).pointee.limit)
        let rip = self.pointee.rip
        let room = limit &- rip >= 15 ? 15 : Int(truncatingIfNeeded: limit &- rip) + 1
        while have < room {
            let address = advance(linear, have)
            do throws(Fault) {
                let (physical, host) = try fetchPage(address)
                let part = min(room - have, 4096 - Int(truncatingIfNeeded: address & 0xFFF))
                withUnsafeMutableBytes(of: &bytes) { buffer in
                    for index in 0..<part {
                        buffer[have + index] =
                            host.map { $0.load(fromByteOffset: index, as: UInt8.self) }
                            ?? UInt8(
                                truncatingIfNeeded: bus.readMemory(physical &+ UInt64(index), size: 1))
                    }
                }
                have += part
            } catch {
                fault = error
                break
            }
        }
        let single = engine.pointee.blocks.crossing(linear)
        let key = self.pointee.mode_key
        if single.pointee.mode_key == key, single.pointee.physical == linear, self.pointee.code_size == 8,
            engine.pointee.blocks.holds(single, bytes.0, bytes.1, have)
        {
            return single
        }
        single.pointee.mode_key = 0
        let insn = single.pointee.insns
        let length = withUnsafeBytes(of: &bytes) { buffer in
            buffer.baseAddress.map {
                decode(insn, $0.assumingMemoryBound(to: UInt8.self), available: have).length
            } ?? 0
        }
        guard length > 0 else {
            // The rest of the instruction cannot be fetched, or it is longer than 15 bytes.
            if let fault { throw fault }
            throw raise(13, error: 0)
        }
        place(insn, 0, length)
        close(insn + 1, length)
        single.pointee.count = 1
        single.pointee.bytes = UInt32(truncatingIfNeeded: length)
        (single.pointee.mode_key, single.pointee.physical) = (key, linear)
        engine.pointee.blocks.note(single, bytes.0, bytes.1, length)
        return single
    }
}

extension apus_insn {
    /// An instruction with no operands and no handler of its own.
    static var empty: apus_insn { apus_empty_insn(leaveBlock) }
}
