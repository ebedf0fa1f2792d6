// One block on its way to native code: registers, flags, memory, the ways out.
// Source: our own design; Intel SDM volume 2 for the instructions that are emitted.
// Modelled: flags stay in the host's between producer and consumer and are saved when something else is in between.
// Quirks: an access that misses the TLB is left to the instruction's handler as a whole.

internal import CProcessor

struct Translation {
    /// A place where the fast form of an instruction gives up.
    struct Slow {
        let index: Int
        /// It is of the second version.
        let isApart: Bool
        var number = 1
        /// Jumps from there: five at most, of a 16-bit call by memory, which looks at two segments and twice into the TLB.
        private(set) var jumps: [6 of UnsafeMutablePointer<UInt8>?] = .init(repeating: nil)
        private(set) var jumpCount = 0
        var resume: UnsafeMutablePointer<UInt8>?
        var restores = false
        var isVector = false
        var hasUpper = false
        var hasX87 = false
        var knowsX87Block = false
        /// Something out of line leads here.
        var isNeeded = false

        init(index: Int, isApart: Bool) { (self.index, self.isApart) = (index, isApart) }

        mutating func add(_ jump: UnsafeMutablePointer<UInt8>) {
            jumps[jumpCount] = jump
            jumpCount += 1
        }
    }
    /// A place where the slot in front of the TLB holds another page.
    struct Miss {
        let jump: UnsafeMutablePointer<UInt8>
        /// Behind the comparison, or before all of it.
        let back: UnsafeMutablePointer<UInt8>
        /// What did not match is in r11: r10 keeps the address.
        let isKept: Bool
        let index: Int
        /// Place of the slot in front of the TLB; nil: it was the TLB that did not match.
        let slot: Int32?
        let refill: UnsafeMutablePointer<UInt8>
        let size: Int32
        let aligned: Bool
        let isApart: Bool
        /// It checks for a group.
        let leads: Bool
    }
    /// An indirect branch whose target the jump cache does not have.
    struct Stray {
        let jump: UnsafeMutablePointer<UInt8>
        let index: Int
        let stack: Int32
        let isApart: Bool
    }
    /// A conditional branch out of the block.
    struct Branch {
        let jump: UnsafeMutablePointer<UInt8>
        let offset: Int
        let isSaved: Bool
        let key: UInt32
    }

    var emitter: Emitter
    let common: CommonCode
    let cpu: CPU
    private(set) var block: Block
    /// Where the block is left with RIP as jumps within the page have it.
    private(set) var exit: UnsafeMutablePointer<UInt8>
    /// Where it is entered by all but jumps from within the page, and where by those.
    var outer: UnsafeMutablePointer<UInt8> { exit + Translator.exitBytes }
    private(set) var inner: UnsafeMutablePointer<UInt8>
    /// How far RIP, as it stands in the vCPU, is behind the block's first byte.
    private(set) var lag: Int32
    /// Where what hardly ever runs goes.
    var cold: UnsafeMutablePointer<UInt8>
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
    var refusals: [(jump: UnsafeMutablePointer<UInt8>, index: Int)] = []
    var slow = Slow(index: 0, isApart: false)
    var misses: [Miss] = []
    /// TLB set in use.
    var tlbMode: UInt8
    /// Bytes of an instruction pointer, and of what is pushed: 8, 4 or 2.
    private(set) var width: UInt8
    var slows: [Slow] = []
    var branches: [Branch] = []
    var strays: [Stray] = []
    /// Accesses that share a check, and which of them an instruction belongs to; see TranslationGroups.swift.
    var groups: [AccessGroup] = []
    var groupOf: [Int] = []
    /// The second version is being emitted, in which nothing is shared.
    var isApart = false
    /// Where the instructions of either version are.
    var main: [Boundary?] = []
    var apart: [Boundary?] = []
    /// Checks for groups that failed in the TLB itself.
    var failures: [(jump: UnsafeMutablePointer<UInt8>, index: Int)] = []
    /// Jumps out of line to where instructions are given up, by number in `slows`.
    var joins: [(jump: UnsafeMutablePointer<UInt8>, slow: Int)] = []
    /// Branches that left their segment; see `checkPointer`.
    var overruns: [UnsafeMutablePointer<UInt8>] = []
    /// The block's direct branches to other pages, and how many there are in all blocks.
    var crossings: [Crossing] = []
    var crossingCount = 0
    /// What is borrowed in this block, and where guest registers are; see TranslationLoans.swift.
    var loans: [Loan] = []
    var hosts = Self.usualHosts
    /// Behind the poll and the borrowing, and whether the block comes back there.
    var body: UnsafeMutablePointer<UInt8>
    var isRunAgain = false
    /// Jumps that wait for other blocks to be translated.
    var links: [(place: UnsafeMutablePointer<UInt8>, key: BlockKey, skip: Int)] = []
    /// Those of them whose block has no translation yet, and how far RIP moves on the way.
    var unlinked: [(place: UnsafeMutablePointer<UInt8>, move: Int32)] = []
    /// Calls within the page, and calls whose return has no translation yet; see TranslationReturns.swift.
    var nearCalls: [(place: UnsafeMutablePointer<UInt8>, offset: Int)] = []
    var unreturned: [UnsafeMutablePointer<UInt8>] = []

    init(
        _ common: CommonCode, _ cpu: CPU, _ block: Block, at code: UnsafeMutablePointer<UInt8>,
        cold: UnsafeMutablePointer<UInt8>
    ) {
        (self.common, self.cpu, self.block, self.exit, self.cold) = (common, cpu, block, code, cold)
        (emitter, body, inner) = (Emitter(at: code), code, code)
        width = Self.width(block.pointee.mode_key) ?? 8
        lag = Int32(block.pointee.lag)
        (key, tlbMode, tlb) = Self.mode(block)
    }

    /// Starts with another block; the room of the lists stays.
    mutating func begin(_ block: Block, at code: UnsafeMutablePointer<UInt8>, cold: UnsafeMutablePointer<UInt8>) {
        (self.block, self.exit, self.cold) = (block, code, cold)
        emitter = Emitter(at: code)
        inner = code
        width = Self.width(block.pointee.mode_key) ?? 8
        lag = Int32(block.pointee.lag)
        (key, tlbMode, tlb) = Self.mode(block)
        (isNative, isSaved, isVector, hasUpper) = (false, true, false, false)
        (hasX87, knowsX87Block, isApart) = (false, false, false)
        (hosts, isRunAgain) = (Self.usualHosts, false)
        slow = Slow(index: 0, isApart: false)
        loans.removeAll(keepingCapacity: true)
        plans.removeAll(keepingCapacity: true)
        refusals.removeAll(keepingCapacity: true)
        misses.removeAll(keepingCapacity: true)
        slows.removeAll(keepingCapacity: true)
        branches.removeAll(keepingCapacity: true)
        strays.removeAll(keepingCapacity: true)
        groups.removeAll(keepingCapacity: true)
        groupOf.removeAll(keepingCapacity: true)
        main.removeAll(keepingCapacity: true)
        apart.removeAll(keepingCapacity: true)
        failures.removeAll(keepingCapacity: true)
        joins.removeAll(keepingCapacity: true)
        overruns.removeAll(keepingCapacity: true)
        crossings.removeAll(keepingCapacity: true)
        links.removeAll(keepingCapacity: true)
        unlinked.removeAll(keepingCapacity: true)
        nearCalls.removeAll(keepingCapacity: true)
        unreturned.removeAll(keepingCapacity: true)
    }

    /// The mode that a block runs in, and the TLB set for it.
    private static func mode(_ block: Block) -> (key: UInt32, tlbMode: UInt8, tlb: Int32) {
        let key = block.pointee.mode_key
        let mode =
            key & ModeKey.alignmentCheck.rawValue != 0
            ? APUS_TLB_WATCHED
            : key & ModeKey.user.rawValue != 0
                ? APUS_TLB_USER : key & ModeKey.userAccess.rawValue != 0 ? APUS_TLB_SUPERVISOR_AC : APUS_TLB_SUPERVISOR
        return (key, UInt8(mode), StateOffset.tlbSet(UInt8(mode)))
    }

    /// Bytes of an instruction pointer in a mode whose code is translated: 64-bit, protected 32-bit with flat segments, real
    /// and virtual-8086.
    static func width(_ key: UInt32) -> UInt8? {
        let mode = ModeKey(rawValue: key)
        switch (mode.codeSize, mode.stackSize) {
        case (8, _): return 8
        case (4, 4): return mode.contains([.protected, .flatCode, .flatData]) ? 4 : nil
        case (2, 2): return mode.contains(.wholeSegments) ? 2 : nil
        default: return nil
        }
    }

    /// Bytes of a host register that an address or an instruction pointer is worked on in.
    var registerWidth: UInt8 { max(4, width) }

    var count: Int { Int(block.pointee.count) }
    /// The instruction that is being emitted.
    var index: Int { slow.index }
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
            if plans[index].form == .jumpIf || plans[index].form == .loop { live |= liveInto(relative(insn(index))) }
            plans[index].liveOut = live
            live = plans[index].liveIn
        }
        emitEntry()
        let trial = block.pointee.trial != 0 ? emitTrial() : nil
        // A block on trial may not run often enough to be worth it.
        if block.pointee.trial == 0 {
            findGroups()
            findLoans()
            borrow()
        }
        body = emitter.at
        let entry = needsVector(0) ? enterVector() : nil
        let x87Entry = needsX87(0) ? enterX87() : nil
        if !groups.isEmpty {
            main.append(contentsOf: repeatElement(nil, count: count + 1))
            apart.append(contentsOf: repeatElement(nil, count: count + 1))
        }
        emitInstructions(0, count)
        if !isEnded { leave(Int(block.pointee.bytes)) }
        emitBranches(from: 0)
        let end = emitter.at
        emitter.at = cold
        emitApart()
        emitMisses()
        emitStrays()
        emitOverruns()
        emitSlow()
        emitNearCalls()
        emitUnlinked()
        emitCrossings()
        emitUnreturned()
        emitReturnHome()
        if let trial {
            emitter.aim(trial.jump, emitter.at)
            callPlainly(BlockCache.longestBlock)
            emitter.jump(to: trial.back)
        }
        if let entry { emitVectorEntry(entry) }
        if let x87Entry { emitX87Entry(x87Entry) }
        for refusal in refusals {
            emitter.aim(refusal.jump, emitter.at)
            settle()
            moveRIP(Int32(insn(refusal.index).pointee.next) + lag)
            emitter.jump(to: common.exit)
        }
        (cold, emitter.at) = (emitter.at, end)
        return true
    }

    /// Emits the ways in, and the way out before them. Between blocks of a page RIP in the vCPU is the page's address: so
    /// none of their jumps has to move it.
    private mutating func emitEntry() {
        moveRIP(lag)
        emitter.jump(to: common.exit)
        Translator.emitLanding(&emitter)
        assert(emitter.at == outer)
        moveRIP(-lag)
        inner = emitter.at
        assert(inner == outer + Translator.entryBytes)
        compareAttention()
        emitter.jump(if: 5, to: exit)
        assert(emitter.at == inner + Translator.pollBytes)
    }

    /// Has the zero flag tell whether nobody calls.
    mutating func compareAttention() {
        emitter.load(HostRegister.scratch, .state(StateOffset.attention))
        emitter.insn(0x83, 4, 7, .memory(HostRegister.scratch, 0))
        emitter.byte(0)
    }

    /// Emits the instructions from `start` up to `end`.
    mutating func emitInstructions(_ start: Int, _ end: Int) {
        var index = start
        while index < end {
            note(index)
            guard plans[index].form == .handler else {
                index += emit(index)
                continue
            }
            var behind = index + 1
            while behind < count, plans[behind].form == .handler { behind += 1 }
            saveFlags()
            callHandlers(index, behind - index)
            (isNative, isSaved) = (false, true)
            index = behind
            isVector = needsVector(behind)
            hasUpper = needsUpper(behind)
            if isVector { loadVector(behind - 1, upper: hasUpper) }
            hasX87 = needsX87(behind)
            knowsX87Block = false
            if hasX87 { loadX87(behind - 1) }
        }
        note(index)
    }

    var isEnded: Bool {
        switch plans[count - 1].form {
        case .jump, .call, .callIndirect, .jumpIndirect, .callReturn, .systemCall, .systemReturn: return true
        default: return false
        }
    }

    /// Emits the instruction, or several that share an access to memory; how many.
    private mutating func emit(_ index: Int) -> Int {
        slow = Slow(index: index, isApart: isApart)
        slow.number = isApart ? 1 : stackRun(index)
        if slow.number > 1 {
            emitStackRun(index, slow.number)
        } else {
            emitInstruction(insn(index), plans[index])
        }
        if plans[index].changesFlags { (isNative, isSaved) = (true, false) }
        let hasMissed = misses.last.map { $0.index == index && $0.isApart == isApart && !$0.leads } ?? false
        guard slow.jumpCount > 0 || hasMissed || slow.isNeeded else { return slow.number }
        slow.resume = emitter.at
        slow.restores = isNative && plans[index].liveOut != 0
        (slow.isVector, slow.hasUpper) = (isVector, hasUpper)
        (slow.hasX87, slow.knowsX87Block) = (hasX87, knowsX87Block)
        slows.append(slow)
        return slow.number
    }

    /// How many pushes, or pops, of registers follow each other.
    func stackRun(_ index: Int) -> Int {
        let form = plans[index].form
        guard form == .push || form == .pop else { return 1 }
        var end = index
        while end < count, end < index + 8, plans[end].form == form, insn(end).pointee.rm != 4 { end += 1 }
        return max(1, end - index)
    }
}
