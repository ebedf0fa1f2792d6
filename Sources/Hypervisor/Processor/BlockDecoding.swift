// The block at CS:RIP: found, or decoded from the page it lies in.
// Source: our own design; Intel SDM vol. 3 §6.15 (faults of instruction fetches).
// Modelled: a block ends with a jump, at the end of the page, or when it is long enough.
// Quirks: an instruction that crosses a page is a block of its own; one that lies in no RAM is decoded each time.

internal import CProcessor

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
        let set = jumpSet(linear)
        var block = sameBlock(set, linear, physical) ?? engine.pointee.blocks.find(physical, key)
        if block == nil {
            if !engine.pointee.blocks.hasRoom { forgetAllCode() }
            if engine.pointee.blocks.hasCrossing(physical, key) { block = crossing(linear, host, physical) }
            if block == nil { block = decodeBlock(host, physical) ?? crossing(linear, host, physical) }
        }
        guard let block else { return try decodeSingle(linear) }
        if self.pointee.code_size != 8, rip &+ UInt64(block.pointee.bytes) &- 1 > UInt64(cs.pointee.limit) {
            return try decodeSingle(linear)
        }
        noteJump(set, linear, block)
        return block
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
        var found: apus_far_entry
        if let known = apus_find_far(self.pointee.spaces, linear, right) {
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
        let key = self.pointee.mode_key
        guard room < 15, (Translation.width(key) ?? 0) > 2, let (next, behind) = try? fetchPage(advance(linear, room)),
            let behind
        else { return nil }
        let engine = engine
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
            let (sum, isBeyond) = insn.pointee.disp.addingReportingOverflow(Int32(truncatingIfNeeded: at + length))
            insn.pointee.disp = sum
            if isBeyond { insn.pointee.index = UInt8(APUS_FAR) }
        }
    }

    private func close(_ insn: UnsafeMutablePointer<apus_insn>, _ at: Int) {
        var end = apus_insn.empty
        end.handler = leaveBlock
        end.start = UInt16(truncatingIfNeeded: at)
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
