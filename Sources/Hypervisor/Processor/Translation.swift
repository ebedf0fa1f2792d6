// One block on its way to native code: registers, flags, memory, the ways out.
// Source: our own design; Intel SDM volume 2 for the instructions that are emitted.
// Modelled: flags stay in the host's between producer and consumer and are saved when something else is in between.
// Quirks: an access that misses the TLB is left to the instruction's handler as a whole.

internal import CProcessor

struct Translation {
    /// A place where the fast form of an instruction gives up.
    private struct Slow {
        let index: Int
        var number = 1
        var jumps: (UnsafeMutablePointer<UInt8>?, UnsafeMutablePointer<UInt8>?, UnsafeMutablePointer<UInt8>?)
        var resume: UnsafeMutablePointer<UInt8>?
        var restores = false
        var isVector = false
        var hasUpper = false
        var hasX87 = false
        var knowsX87Block = false
        /// Jumps from where the slot in front of the TLB was not the only reason.
        var more: [UnsafeMutablePointer<UInt8>] = []
    }
    /// A place where the slot in front of the TLB holds another page.
    private struct Miss {
        let jump: UnsafeMutablePointer<UInt8>
        /// Behind the comparison.
        let back: UnsafeMutablePointer<UInt8>
        let index: Int
        let slot: Int32
        let refill: UnsafeMutablePointer<UInt8>
        let size: UInt8
        let aligned: Bool
        let isVector: Bool
    }
    /// A conditional branch out of the block.
    private struct Branch {
        let jump: UnsafeMutablePointer<UInt8>
        let offset: Int
        let count: Int
        let isSaved: Bool
        let key: UInt32
    }

    var emitter: Emitter
    let common: CommonCode
    let cpu: CPU
    let block: Block
    let code: UnsafeMutablePointer<UInt8>
    /// Where what hardly ever runs goes.
    private(set) var cold: UnsafeMutablePointer<UInt8>
    var tlb: Int32
    /// The mode that the code runs in: STAC and CLAC change it.
    var key: UInt32
    var plans: [NativePlan] = []
    /// The host's flags are the guest's; `native_flags` holds them.
    var isNative = false
    var isSaved = true
    /// The guest's XMM registers are the host's.
    var isVector = false
    /// So are the upper halves of the YMM registers.
    var hasUpper = false
    /// The guest's x87 and MMX registers are the host's.
    var hasX87 = false
    /// `x87_block` is this block's address.
    var knowsX87Block = false
    /// Jumps of places where the XMM or x87 registers cannot be loaded, and the instruction before.
    private var refusals: [(jump: UnsafeMutablePointer<UInt8>, index: Int)] = []
    private var slow = Slow(index: 0, jumps: (nil, nil, nil))
    private var misses: [Miss] = []
    /// TLB set in use.
    var tlbMode: UInt8
    private var slows: [Slow] = []
    private var branches: [Branch] = []
    /// Jumps that wait for other blocks to be translated.
    var links: [(place: UnsafeMutablePointer<UInt8>, key: BlockKey, skip: Int)] = []

    init(
        _ common: CommonCode, _ cpu: CPU, _ block: Block, at code: UnsafeMutablePointer<UInt8>,
        cold: UnsafeMutablePointer<UInt8>
    ) {
        (self.common, self.cpu, self.block, self.code, self.cold) = (common, cpu, block, code, cold)
        emitter = Emitter(at: code)
        key = block.pointee.mode_key
        let mode =
            key & ModeKey.alignmentCheck.rawValue != 0
            ? APUS_TLB_WATCHED
            : key & ModeKey.user.rawValue != 0
                ? APUS_TLB_USER : key & ModeKey.userAccess.rawValue != 0 ? APUS_TLB_SUPERVISOR_AC : APUS_TLB_SUPERVISOR
        tlbMode = UInt8(mode)
        tlb = StateOffset.tlbSet(UInt8(mode))
    }

    private var count: Int { Int(block.pointee.count) }
    func insn(_ index: Int) -> Insn { UnsafePointer(block.pointee.insns + index) }

    /// Emits the block. false: it would be no faster than the interpreter.
    mutating func run() -> Bool {
        var gain = 0
        for index in 0..<count {
            plans.append(NativePlan.of(insn(index), mode: key))
            // STI must have another instruction behind it.
            if index == count - 1, plans[index].form == .setInterrupts { plans[index] = NativePlan() }
            if plans[index].form != .handler { gain += 1 }
        }
        guard gain * 3 >= count else { return false }
        var live = liveAtEnd()
        for index in stride(from: count - 1, through: 0, by: -1) {
            if plans[index].form == .jumpIf { live |= liveInto(relative(insn(index))) }
            plans[index].liveOut = live
            live = plans[index].liveIn
        }
        emitter.load(HostRegister.scratch, .state(StateOffset.attention))
        emitter.insn(0x83, 4, 7, .memory(HostRegister.scratch, 0))
        emitter.byte(0)
        emitter.jump(if: 5, to: common.exit)
        assert(emitter.at == code + Translator.pollBytes)
        let trial = block.pointee.trial != 0 ? emitTrial() : nil
        let entry = needsVector(0) ? enterVector() : nil
        let x87Entry = needsX87(0) ? enterX87() : nil
        var index = 0
        while index < count {
            if plans[index].form == .handler {
                var end = index + 1
                while end < count, plans[end].form == .handler { end += 1 }
                saveFlags()
                callHandlers(index, end - index)
                (isNative, isSaved) = (false, true)
                index = end
                isVector = needsVector(end)
                hasUpper = needsUpper(end)
                if isVector { loadVector(end - 1, upper: hasUpper) }
                hasX87 = needsX87(end)
                knowsX87Block = false
                if hasX87 { loadX87(end - 1) }
            } else {
                index += emit(index)
            }
        }
        if !isEnded { leave(Int(block.pointee.bytes), count) }
        for branch in branches {
            emitter.aim(branch.jump, emitter.at)
            (isNative, isSaved, key) = (true, branch.isSaved, branch.key)
            leave(branch.offset, branch.count)
        }
        let end = emitter.at
        emitter.at = cold
        emitMisses()
        emitSlow()
        if let trial {
            emitter.aim(trial.jump, emitter.at)
            callPlainly(BlockCache.longestBlock)
            emitter.jump(to: trial.back)
        }
        if let entry { emitVectorEntry(entry) }
        if let x87Entry { emitX87Entry(x87Entry) }
        for refusal in refusals {
            emitter.aim(refusal.jump, emitter.at)
            retire(refusal.index + 1)
            emitter.insn(0x81, 8, 0, .state(StateOffset.rip))
            emitter.long(Int32(insn(refusal.index).pointee.next))
            emitter.jump(to: common.exit)
        }
        (cold, emitter.at) = (emitter.at, end)
        return true
    }

    private var isEnded: Bool {
        switch plans[count - 1].form {
        case .jump, .call, .callIndirect, .jumpIndirect, .callReturn: return true
        default: return false
        }
    }

    /// Emits the instruction, or several that share an access to memory; how many.
    private mutating func emit(_ index: Int) -> Int {
        slow = Slow(index: index, jumps: (nil, nil, nil))
        slow.number = stackRun(index)
        if slow.number > 1 {
            emitStackRun(index, slow.number)
        } else {
            emitInstruction(insn(index), plans[index], index)
        }
        if plans[index].changesFlags { (isNative, isSaved) = (true, false) }
        guard slow.jumps.0 != nil || misses.last?.index == index else { return slow.number }
        slow.resume = emitter.at
        slow.restores = isNative && plans[index].liveOut != 0
        (slow.isVector, slow.hasUpper) = (isVector, hasUpper)
        (slow.hasX87, slow.knowsX87Block) = (hasX87, knowsX87Block)
        slows.append(slow)
        return slow.number
    }

    /// How many pushes, or pops, of registers follow each other.
    private func stackRun(_ index: Int) -> Int {
        let form = plans[index].form
        guard form == .push || form == .pop else { return 1 }
        var end = index
        while end < count, end < index + 8, plans[end].form == form, insn(end).pointee.rm != 4 { end += 1 }
        return max(1, end - index)
    }

    // MARK: Flags behind the block

    private func liveAtEnd() -> UInt32 {
        switch plans[count - 1].form {
        case .jump, .call: return liveInto(relative(insn(count - 1)))
        case .callIndirect, .jumpIndirect, .callReturn, .handler: return NativePlan.allFlags
        default: return liveInto(Int(block.pointee.bytes))
        }
    }

    /// Flags that the code at `offset` from the block's first byte may read before it writes them: all, unless it is
    /// a known block of this page. When code of the page changes, its translations die, so this one does (BlockCache).
    private func liveInto(_ offset: Int) -> UInt32 {
        let target = block.pointee.physical &+ UInt64(bitPattern: Int64(offset))
        guard target &>> 12 == block.pointee.physical &>> 12,
            let next = offset == 0 && block.pointee.second == 0 ? block : cpu.engine.pointee.blocks.find(target, key)
        else { return NativePlan.allFlags }
        var (live, killed) = (UInt32(0), UInt32(0))
        for index in 0..<Int(next.pointee.count) {
            let plan = NativePlan.of(UnsafePointer(next.pointee.insns + index), mode: key)
            live |= plan.reads & ~killed
            killed |= plan.writes
            if (live | killed) == NativePlan.allFlags { return live }
        }
        return live | NativePlan.allFlags & ~killed
    }

    private mutating func callHandlers(_ index: Int, _ number: Int) {
        emitter.loadConstant(HostRegister.scratch, UInt64(UInt(bitPattern: insn(index))))
        emitter.loadConstant(
            HostRegister.address, UInt64(UInt(bitPattern: block)) | UInt64(number) << 48)
        emitter.call(common.handlers)
    }

    private mutating func emitSlow() {
        for slow in slows {
            if let jump = slow.jumps.0 { emitter.aim(jump, emitter.at) }
            if let jump = slow.jumps.1 { emitter.aim(jump, emitter.at) }
            if let jump = slow.jumps.2 { emitter.aim(jump, emitter.at) }
            for jump in slow.more { emitter.aim(jump, emitter.at) }
            callHandlers(slow.index, slow.number)
            if slow.isVector { loadVector(slow.index + slow.number - 1, upper: slow.hasUpper) }
            if slow.hasX87 {
                loadX87(slow.index + slow.number - 1)
                if slow.knowsX87Block { renoteX87() }
            }
            if slow.restores { emitRestore() }
            if let resume = slow.resume { emitter.jump(to: resume) }
        }
    }

    /// Leaves the fast form of the instruction when `condition` holds.
    mutating func giveUp(if condition: UInt8) {
        let jump = emitter.jump(if: condition)
        if slow.jumps.0 == nil {
            slow.jumps.0 = jump
        } else if slow.jumps.1 == nil {
            slow.jumps.1 = jump
        } else {
            slow.jumps.2 = jump
        }
    }

    mutating func branch(if condition: UInt8, to offset: Int, count: Int) {
        branches.append(
            Branch(jump: emitter.jump(if: condition), offset: offset, count: count, isSaved: isSaved, key: key))
    }

    // MARK: XMM registers

    /// A vector instruction comes before the next handler.
    private func needsVector(_ start: Int) -> Bool {
        for index in start..<count {
            if plans[index].form == .handler { return false }
            if plans[index].form == .vector || plans[index].form == .control { return true }
            if plans[index].form == .wide || plans[index].form == .mmx && usesXMM(index) { return true }
        }
        return false
    }

    /// An x87 or MMX instruction comes before the next handler.
    private func needsX87(_ start: Int) -> Bool {
        for index in start..<count {
            if plans[index].form == .handler { return false }
            if plans[index].form == .x87 || plans[index].form == .mmx { return true }
        }
        return false
    }

    /// A VEX instruction on vector registers comes before the next handler.
    private func needsUpper(_ start: Int) -> Bool {
        for index in start..<count {
            if plans[index].form == .handler { return false }
            if plans[index].form == .wide { return true }
        }
        return false
    }

    /// Has the XMM registers loaded at the block's start, out of line; where.
    private mutating func enterVector() -> (UnsafeMutablePointer<UInt8>, UnsafeMutablePointer<UInt8>) {
        isVector = true
        hasUpper = needsUpper(0)
        emitter.insn(0x83, 4, 7, .state(hasUpper ? StateOffset.upperLive : StateOffset.vectorLive))
        emitter.byte(0)
        let jump = emitter.jump(if: 4)
        return (jump, emitter.at)
    }

    private mutating func emitVectorEntry(_ entry: (UnsafeMutablePointer<UInt8>, UnsafeMutablePointer<UInt8>)) {
        emitter.aim(entry.0, emitter.at)
        var loaded: UnsafeMutablePointer<UInt8>?
        if needsUpper(0) {
            emitter.insn(0x83, 4, 7, .state(StateOffset.vectorLive))
            emitter.byte(0)
            loaded = emitter.jump(if: 5)
        }
        emitter.call(common.loadVector)
        if let loaded {
            let refused = emitter.jump(if: 5)
            emitter.aim(loaded, emitter.at)
            emitter.call(common.loadUpper)
            emitter.jump(to: entry.1)
            emitter.aim(refused, emitter.at)
        } else {
            emitter.jump(if: 4, to: entry.1)
        }
        emitter.loadConstant(HostRegister.scratch, UInt64(UInt(bitPattern: block)))
        emitter.jump(to: common.interpret)
    }

    /// Loads the XMM registers behind an instruction that a handler ran; flags are saved.
    private mutating func loadVector(_ index: Int, upper: Bool) {
        emitter.call(common.loadVector)
        refusals.append((emitter.jump(if: 5), index))
        if upper { emitter.call(common.loadUpper) }
    }

    /// Has the x87 registers loaded at the block's start, out of line; where.
    private mutating func enterX87() -> (UnsafeMutablePointer<UInt8>, UnsafeMutablePointer<UInt8>) {
        hasX87 = true
        emitter.insn(0x83, 4, 7, .state(StateOffset.x87Live))
        emitter.byte(0)
        let jump = emitter.jump(if: 4)
        return (jump, emitter.at)
    }

    private mutating func emitX87Entry(_ entry: (UnsafeMutablePointer<UInt8>, UnsafeMutablePointer<UInt8>)) {
        emitter.aim(entry.0, emitter.at)
        emitter.call(common.loadX87)
        emitter.jump(if: 4, to: entry.1)
        emitter.loadConstant(HostRegister.scratch, UInt64(UInt(bitPattern: block)))
        emitter.jump(to: common.interpret)
    }

    /// Loads the x87 registers behind an instruction that a handler ran; flags are saved.
    private mutating func loadX87(_ index: Int) {
        emitter.call(common.loadX87)
        refusals.append((emitter.jump(if: 5), index))
    }

    // MARK: Flags

    /// Saves the guest's flags unless that is done.
    mutating func saveFlags() {
        guard isNative, !isSaved else { return }
        emitter.move(HostRegister.scratch, 0)
        emitter.bytes(0x9F, 0x0F, 0x90, 0xC0)  // lahf; seto al
        emitter.insn(0x89, 4, 0, .state(StateOffset.flags))
        emitter.move(0, HostRegister.scratch)
        isSaved = true
    }

    private mutating func emitRestore() {
        emitter.move(HostRegister.scratch, 0)
        emitter.insn(0x8B, 4, 0, .state(StateOffset.flags))
        emitter.bytes(0x04, 0x7F, 0x9E)  // add al, 127; sahf
        emitter.move(0, HostRegister.scratch)
    }

    /// Makes the host's flags the guest's.
    mutating func restoreFlags() {
        guard !isNative else { return }
        emitRestore()
        isNative = true
    }

    /// The host's flags are about to be used for something else.
    mutating func clobberFlags(_ plan: NativePlan) {
        if plan.liveIn != 0 { saveFlags() }
        isNative = false
    }

    // MARK: Memory

    /// The operand's linear address in r10.
    mutating func loadAddress(_ insn: Insn) {
        let address = HostRegister.address
        let displacement = insn.pointee.disp
        var base: UInt8?
        switch insn.pointee.base {
        case UInt8(APUS_NO_REG): break
        case UInt8(APUS_RIP):
            emitter.load(address, .state(StateOffset.rip))
            base = address
        default: base = guest(insn.pointee.base, address)
        }
        if insn.pointee.index != UInt8(APUS_NO_REG) {
            let index = guest(insn.pointee.index, HostRegister.scratch)
            emitter.address(
                address, base: base, index: index, scale: insn.pointee.scale, displacement: displacement)
        } else if let base {
            if displacement != 0 {
                emitter.insn(0x8D, 8, address, .memory(base, displacement))
            } else if base != address {
                emitter.move(address, base)
            }
        } else {
            emitter.insn(0xC7, 8, 0, .register(address))
            emitter.long(displacement)
        }
    }

    /// Compares what r10 holds with the size of a page less the operand's; the condition that it does not fit.
    private mutating func compareOffset(_ size: UInt8, aligned: Bool) -> UInt8 {
        if aligned {
            emitter.bytes(0x49, 0xF7, 0xC2)  // test r10, all but a page's multiples of the size
            emitter.long(Int32(size) - 1 - 4096)
            return 5
        }
        emitter.bytes(0x49, 0x81, 0xFA)  // cmp r10, 4096 - size
        emitter.long(4096 - Int32(size))
        return 7
    }

    /// Turns the linear address in r10 into a host address by the slot in front of the TLB.
    private mutating func translateNear(_ size: UInt8, write: Bool, aligned: Bool, _ slot: Int) {
        let place = StateOffset.near(tlbMode, write: write, slot: slot)
        emitter.insn(0x33, 8, HostRegister.address, .state(place))
        let condition = compareOffset(size, aligned: aligned)
        let jump = emitter.jump(if: condition)
        misses.append(
            Miss(
                jump: jump, back: emitter.at, index: slow.index, slot: place,
                refill: common.refills[Int(tlbMode) * 2 + (write ? 1 : 0)], size: size, aligned: aligned,
                isVector: isVector))
        emitter.insn(0x03, 8, HostRegister.address, .state(place + 8))
    }

    /// Counts the executions of a block on trial; where it goes at the end, and comes back.
    private mutating func emitTrial() -> (jump: UnsafeMutablePointer<UInt8>, back: UnsafeMutablePointer<UInt8>) {
        let place = UnsafeMutableRawPointer(block) + Self.trialOffset
        emitter.loadConstant(HostRegister.scratch, UInt64(UInt(bitPattern: place)))
        emitter.insn(0x83, 4, 5, .memory(HostRegister.scratch, 0))
        emitter.byte(1)
        let jump = emitter.jump(if: 4)
        return (jump, emitter.at)
    }
    private static let trialOffset = MemoryLayout<apus_block>.offset(of: \.trial) ?? 0

    /// The number of a place with a count of misses.
    private static func site(_ physical: UInt64) -> UInt32 {
        UInt32(truncatingIfNeeded: physical ^ physical &>> 12) & UInt32(APUS_NEAR_SITES - 1)
    }

    private mutating func callPlainly(_ number: Int) {
        emitter.loadConstant(HostRegister.scratch, UInt64(UInt(bitPattern: common.plainly + number)))
        emitter.loadConstant(HostRegister.address, UInt64(UInt(bitPattern: block)) | 1 << 48)
        emitter.call(common.handlers)
    }

    private mutating func emitMisses() {
        let allowed = block.pointee.trial != 0 ? Translator.trialMisses : Translator.usualMisses
        for miss in misses {
            emitter.aim(miss.jump, emitter.at)
            emitter.insn(0xC7, 4, 0, .register(HostRegister.scratch))
            emitter.long(miss.slot)
            emitter.call(miss.refill)
            let condition = compareOffset(miss.size, aligned: miss.aligned)
            if let slow = slows.firstIndex(where: { $0.index == miss.index }) {
                slows[slow].more.append(emitter.jump(if: condition))
            }
            let site = Self.site(block.pointee.physical &+ UInt64(insn(miss.index).pointee.start))
            apus_allow_misses(cpu, site, allowed)
            emitter.insn(0x83, 2, 5, .state(StateOffset.nearMisses + Int32(bitPattern: site) * 2))
            emitter.byte(1)
            emitter.jump(if: 5, to: miss.back)
            callPlainly(miss.index)
            if let slow = slows.firstIndex(where: { $0.index == miss.index }) {
                slows[slow].more.append(emitter.jump())
            }
        }
    }

    /// Turns the linear address in r10 into a host address, or gives up. `slot`: which slot in front of the TLB.
    mutating func translateAddress(_ size: UInt8, write: Bool, aligned: Bool = false, slot: Int = 4) {
        let isWatched = block.pointee.mode_key & ModeKey.alignmentCheck.rawValue != 0
        if !isWatched, block.pointee.plain &>> UInt64(slow.index) & 1 == 0 {
            return translateNear(size, write: write, aligned: aligned, slot)
        }
        let offset = tlb + (write && !isWatched ? Int32(APUS_TLB_ENTRIES) * 16 : 0)
        emitter.bytes(0x4D, 0x89, 0xD3, 0x49, 0xC1, 0xEB, 0x08, 0x41, 0x81, 0xE3)  // mov r11, r10; shr; and
        emitter.long((Int32(APUS_TLB_ENTRIES) - 1) * 16)
        emitter.bytes(0x4E, 0x33, 0x94, 0x1C)  // xor r10, [rsp + r11 + tag]
        emitter.long(offset)
        giveUp(if: compareOffset(size, aligned: aligned))
        emitter.bytes(0x4E, 0x03, 0x94, 0x1C)  // add r10, [rsp + r11 + host]
        emitter.long(offset + 8)
    }

    /// Operands by the same register are likely to lie in the same page.
    func nearSlot(_ insn: Insn) -> Int {
        if insn.pointee.flat == 0 { return 24 + Int(insn.pointee.segment & 1) }
        switch insn.pointee.base {
        case UInt8(APUS_RIP):
            return 16 + Int(
                truncatingIfNeeded: (block.pointee.physical &>> 12)
                    &+ UInt64(bitPattern: Int64(insn.pointee.disp &>> 12))) & 7
        case UInt8(APUS_NO_REG): return 26 + Int(insn.pointee.index & 1)
        case let base where insn.pointee.index != UInt8(APUS_NO_REG): return 28 + Int(base & 3)
        case let base: return Int(base & 15)
        }
    }

    /// The memory operand as a place; flags are the host's own afterwards.
    mutating func memory(
        _ insn: Insn, _ size: UInt8, write: Bool, _ plan: NativePlan, aligned: Bool = false
    ) -> HostPlace {
        clobberFlags(plan)
        loadAddress(insn)
        if insn.pointee.flat == 0 {
            emitter.insn(0x03, 8, HostRegister.address, .state(StateOffset.segmentBase(insn.pointee.segment)))
        }
        translateAddress(size, write: write, aligned: aligned, slot: nearSlot(insn))
        return .memory(HostRegister.address, 0)
    }

    // MARK: Registers

    /// The host register that holds a guest register all the time.
    func pinned(_ register: UInt8) -> UInt8? {
        switch register {
        case 4: return HostRegister.stack
        case 9, 10, 11: return nil
        default: return register
        }
    }

    /// The host register that holds a guest register now: `spare` if none does always.
    mutating func guest(_ register: UInt8, _ spare: UInt8) -> UInt8 {
        if let host = pinned(register) { return host }
        emitter.load(spare, .state(Int32(register) * 8))
        return spare
    }

    /// Puts back what `guest` gave, if it was only lent.
    mutating func giveBack(_ register: UInt8, _ host: UInt8) {
        if pinned(register) == nil { emitter.store(host, .state(Int32(register) * 8)) }
    }

    // MARK: Ways out

    private mutating func retire(_ number: Int) {
        emitter.insn(0x83, 8, 0, .state(StateOffset.instructions))
        emitter.byte(UInt8(truncatingIfNeeded: number))
    }

    /// Goes on at `offset` from the block's first byte; the host's flags are the guest's or saved.
    mutating func leave(_ offset: Int, _ number: Int) {
        if liveInto(offset) != 0 { saveFlags() }
        retire(number)
        if offset != 0 {
            emitter.insn(0x81, 8, 0, .state(StateOffset.rip))
            emitter.long(Int32(truncatingIfNeeded: offset))
        }
        let target = block.pointee.physical &+ UInt64(bitPattern: Int64(offset))
        // Every loop has a jump back, or to another page: that much is enough to look at the attention word.
        let skip = offset > 0 ? Translator.pollBytes : 0
        guard target &>> 12 == block.pointee.physical &>> 12 else {
            emitter.load(HostRegister.address, .state(StateOffset.rip))
            return Translator.emitDispatch(&emitter, exit: common.exit)
        }
        if offset == 0, key == block.pointee.mode_key, block.pointee.second == 0 { return emitter.jump(to: code) }
        if let native = cpu.engine.pointee.blocks.find(target, key)?.pointee.native {
            return emitter.jump(to: (native - common.executable).assumingMemoryBound(to: UInt8.self) + skip)
        }
        let place = emitter.jump()
        emitter.aim(place, common.dispatch)
        links.append((place, BlockKey(physical: target, mode: key), skip))
    }

    /// Goes on at `rip`, which r10 holds; flags are saved.
    mutating func leaveIndirect(_ number: Int) {
        retire(number)
        Translator.emitDispatch(&emitter, exit: common.exit)
    }
}
