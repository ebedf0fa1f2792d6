// Accesses to memory that share one check: those by one base register, close to each other, within a block.
// Source: our own design; docs/decisions/0009.md.
// Modelled: base registers that move by constants between accesses, pushes, pops, CALL and RET included.
// Quirks: when the joint range does not lie in one page, or a handler ran in between, a second version of the
// instructions goes on, in which each access looks for itself.

internal import CProcessor

/// Accesses of which the first looks into the TLB for all.
struct AccessGroup {
    /// Index of the instruction that checks, and of the last one that relies on it.
    let leader: Int
    var last: Int
    let base: UInt8
    /// What all reach, counted from the base register's value at the leader.
    var low: Int32
    var high: Int32
    var writes: Bool

    static let longestRange: Int32 = 512
}

/// An access at a base register and a displacement.
struct BaseAccess {
    let base: UInt8
    let low: Int32
    let bytes: UInt8
    let writes: Bool
}

/// What is true between two instructions of a block, in one of its two versions.
struct Boundary {
    let code: UnsafeMutablePointer<UInt8>
    let isNative: Bool
    let isSaved: Bool
    let isVector: Bool
    let hasUpper: Bool
    let hasX87: Bool
    let knowsX87Block: Bool
    let key: UInt32
    let tlb: Int32
    let tlbMode: UInt8
}

// MARK: - Which accesses

extension Translation {
    /// Fills `groups` and `groupOf`.
    mutating func findGroups() {
        // In 32-bit code an access may lie on the other side of 4 GiB than its base register.
        guard block.pointee.mode_key & ModeKey.alignmentCheck.rawValue == 0, width == 8, count > 1 else { return }
        groupOf.append(contentsOf: repeatElement(-1, count: count))
        var open = [Int](repeating: -1, count: 16)
        var moved = [Int32](repeating: 0, count: 16)
        var members: [Int] = []
        var index = 0
        while index < count {
            let number = stackRun(index)
            if let access = baseAccess(index, number) {
                let base = Int(access.base)
                if open[base] < 0 || !join(open[base], access, at: moved[base], index) {
                    open[base] = groups.count
                    moved[base] = 0
                    members.append(0)
                    groups.append(
                        AccessGroup(
                            leader: index, last: index, base: access.base, low: access.low,
                            high: access.low + Int32(access.bytes), writes: access.writes))
                }
                // A run across the end of a page goes on one by one.
                members[open[base]] += number
                groupOf[index] = open[base]
            } else if insn(index).pointee.mem != 0, plans[index].form != .loadAddress {
                // It may change what the slot of its base register holds.
                let slot = nearSlot(insn(index))
                if slot < 16 { open[slot] = -1 }
            }
            for each in index..<index + number { apply(each, &open, &moved) }
            index += number
        }
        for index in 0..<count where groupOf[index] >= 0 && members[groupOf[index]] < 2 { groupOf[index] = -1 }
        for number in groups.indices where members[number] < 2 { groups[number].last = -1 }
        if !members.contains(where: { $0 > 1 }) { groups.removeAll(keepingCapacity: true) }
    }

    /// Takes an access into a group if the joint range stays short.
    private mutating func join(_ number: Int, _ access: BaseAccess, at moved: Int32, _ index: Int) -> Bool {
        let low = min(groups[number].low, access.low &+ moved)
        let high = max(groups[number].high, access.low &+ moved &+ Int32(access.bytes))
        guard high - low <= AccessGroup.longestRange else { return false }
        (groups[number].low, groups[number].high) = (low, high)
        groups[number].last = index
        groups[number].writes = groups[number].writes || access.writes
        return true
    }

    /// The access of an instruction, or of a run of pushes or pops, that may be one of a group.
    private func baseAccess(_ index: Int, _ number: Int) -> BaseAccess? {
        let (insn, plan) = (insn(index), plans[index])
        let bytes = UInt8(number * 8)
        switch plan.form {
        case .push, .pushImmediate, .call: return BaseAccess(base: 4, low: -Int32(bytes), bytes: bytes, writes: true)
        case .pop:
            return insn.pointee.rm == 4 ? nil : BaseAccess(base: 4, low: 0, bytes: bytes, writes: false)
        case .callReturn: return BaseAccess(base: 4, low: 0, bytes: 8, writes: false)
        default: break
        }
        guard insn.pointee.mem != 0, insn.pointee.flat != 0, insn.pointee.addr_size == 8,
            insn.pointee.index == UInt8(APUS_NO_REG),
            insn.pointee.base < 16, !plan.isLocked, !plan.hasHighBytes, abs(Int(insn.pointee.disp)) < 1 << 30,
            let (size, writes) = operand(insn, plan)
        else { return nil }
        return BaseAccess(base: insn.pointee.base, low: insn.pointee.disp, bytes: size, writes: writes)
    }

    /// Size and direction of the memory operand of an instruction that reaches it by `memory` alone.
    private func operand(_ insn: Insn, _ plan: NativePlan) -> (UInt8, Bool)? {
        switch plan.form {
        case .store, .single: return (insn.pointee.op_size, writesPlace(plan))
        case .load: return (sourceSize(insn), false)
        case .setIf: return (1, true)
        case .extended where insn.pointee.opcode != 0x2F6: return nil
        case .wideGeneral, .extended: return (Int(insn.pointee.prefixes) & APUS_PREFIX_REXW != 0 ? 8 : 4, false)
        case .vector:
            guard let form = VectorForm.of(insn) else { return nil }
            let (bytes, aligned) = operand(insn, form)
            return aligned ? nil : (bytes, form.traits.contains(.store))
        case .wide:
            guard let form = VEXForm.of(insn) else { return nil }
            let (bytes, aligned) = operand(insn, form)
            return aligned ? nil : (bytes, form.traits.contains(.store))
        default: return nil
        }
    }
}

// MARK: - Their code

extension Translation {
    /// Where an access by a base register and a displacement lies, if it belongs to a group. nil: it looks for itself.
    mutating func shared(_ base: UInt8, _ displacement: Int32, _ plan: NativePlan) -> HostPlace? {
        guard !isApart, !groups.isEmpty, groupOf[index] >= 0 else { return nil }
        let group = groups[groupOf[index]]
        if group.leader == index { return lead(group, displacement, plan) }
        let address = HostRegister.address
        let distance = distance(group)
        if let host = pinned(base) {
            emitter.load(address, .state(distance))
            return .indexed(address, host, displacement)
        }
        emitter.load(HostRegister.scratch, .state(Int32(base) * 8))
        emitter.load(address, .state(distance))
        emitter.address(address, base: address, index: HostRegister.scratch, scale: 0, displacement: displacement)
        return .memory(address, 0)
    }

    /// Checks the group's whole range.
    private mutating func lead(_ group: AccessGroup, _ displacement: Int32, _ plan: NativePlan) -> HostPlace {
        let (address, scratch) = (HostRegister.address, HostRegister.scratch)
        clobberFlags(plan)
        let base = guest(group.base, scratch)
        if group.low != 0 {
            emitter.insn(0x8D, 8, address, .memory(base, group.low))
        } else {
            emitter.move(address, base)
        }
        let form = pinned(group.base) == nil ? Translated.address : .distance
        translateRange(group.high - group.low, write: group.writes, slot: Int(group.base), form)
        if isPlain(group.leader) {
            if form == .address { takeDistance(write: group.writes) }
            emitter.store(form == .address ? scratch : address, .state(distance(group)))
        }
        return form == .address
            ? .memory(address, displacement - group.low) : .indexed(address, base, displacement)
    }

    /// The field that says how far the host's addresses are from the guest's.
    private func distance(_ group: AccessGroup) -> Int32 {
        isPlain(group.leader)
            ? StateOffset.shared + Int32(group.base) * 8
            : StateOffset.near(tlbMode, write: group.writes, slot: Int(group.base)) + 16
    }

    /// Whether instructions behind a place rely on a check before it.
    func isShared(at place: Int) -> Bool { groups.contains { $0.leader < place && $0.last >= place } }

    /// Notes where an instruction is, if there are two versions.
    mutating func note(_ place: Int) {
        guard !groups.isEmpty else { return }
        if isApart { apart[place] = boundary } else { main[place] = boundary }
    }

    private var boundary: Boundary {
        Boundary(
            code: emitter.at, isNative: isNative, isSaved: isSaved, isVector: isVector, hasUpper: hasUpper,
            hasX87: hasX87, knowsX87Block: knowsX87Block, key: key, tlb: tlb, tlbMode: tlbMode)
    }

    /// Emits the second version, from the first check on to the last instruction that relies on one.
    mutating func emitApart() {
        let used = groups.filter { $0.last >= 0 }
        guard let first = used.map(\.leader).min(), let last = used.map(\.last).max(), let start = main[first] else {
            return
        }
        isApart = true
        (isVector, hasUpper, hasX87) = (start.isVector, start.hasUpper, start.hasX87)
        (knowsX87Block, key, tlb, tlbMode) = (start.knowsX87Block, start.key, start.tlb, start.tlbMode)
        (isNative, isSaved) = (false, true)
        let before = branches.count
        let end = last + stackRun(last)
        emitInstructions(first, end)
        if end < count, let back = main[end] {
            rejoin(back, live: plans[end].liveIn)
        } else if !isEnded {
            leave(Int(block.pointee.bytes))
        }
        emitBranches(from: before)
        isApart = false
    }

    /// Goes on in the first version: the flags are to be where that expects them.
    private mutating func rejoin(_ back: Boundary, live: UInt32) {
        if live != 0 {
            if !back.isNative || back.isSaved { saveFlags(live) }
            if back.isNative { restoreFlags(live) }
        }
        emitter.jump(to: back.code)
    }

    /// Goes on at an instruction of the second version; the flags are saved.
    mutating func enterApart(_ place: Int) {
        guard let there = apart[place] else { return }
        if there.isNative, plans[place].liveIn != 0 { emitRestore(plans[place].liveIn) }
        emitter.jump(to: there.code)
    }
}
