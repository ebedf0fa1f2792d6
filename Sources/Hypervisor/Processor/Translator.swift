// Hot blocks of 64-bit code as native code: the code cache, how blocks are entered, linked and left.
// Source: our own design; which instructions become what is in Translation*.swift.
// Modelled: everything; what has no native form here is run by its handler. Not modelled: 16- and 32-bit code.
// Quirks: the guest's RSP is in r9; its r9, r10 and r11 stay in the vCPU; RSP is the vCPU; flags between blocks in memory.

internal import CProcessor
internal import Glibc

/// Offsets of the vCPU's fields. By RSP, because hosts then rename what was stored and is loaded again soon.
enum StateOffset {
    private static func place(_ path: PartialKeyPath<apus_vcpu>) -> Int32 {
        Int32(truncatingIfNeeded: MemoryLayout<apus_vcpu>.offset(of: path) ?? 0)
    }
    static let rip = place(\.rip)
    static let modeKey = place(\.mode_key)
    static let attention = place(\.attention)
    static let instructions = place(\.instructions)
    static let jumps = Int32(truncatingIfNeeded: apus_jump_cache_offset())
    static let flags = place(\.native_flags)
    static let target = place(\.native_target)
    static let vectorLive = place(\.vector_live)
    static let upperLive = place(\.upper_live)
    static let upperZero = place(\.upper_zero)
    static let x87Live = place(\.x87_live)
    static let x87Block = place(\.x87_block)
    static let x87Last = place(\.x87_last)
    static let x87Data = place(\.x87_data)
    static let hostMXCSR = place(\.host_mxcsr)
    static let current = place(\.current)
    static let hostStack = place(\.host_stack)
    static let fpu = place(\.fpu)
    static let mxcsr = fpu + Int32(FXSAVEOffset.mxcsr)
    static func xmm(_ number: UInt8) -> Int32 { fpu + Int32(FXSAVEOffset.xmm) + Int32(number) * 16 }
    static func upper(_ number: UInt8) -> Int32 { fpu + Int32(FXSAVEOffset.upper) + Int32(number) * 16 }
    static let tlb = place(\.tlb)
    static let shared = place(\.shared_distance)
    static let nearSaved = place(\.near_saved)
    static let nearMisses = place(\.near_misses)
    static func near(_ mode: UInt8, write: Bool, slot: Int) -> Int32 {
        place(\.near) + ((Int32(mode) * 2 + (write ? 1 : 0)) * Int32(APUS_NEAR_SLOTS) + Int32(slot))
            * Int32(MemoryLayout<apus_near>.stride)
    }
    static let systemFlags = place(\.system_flags)
    static let kernelBase = place(\.kernel_gs_base)
    static let tlbMode = place(\.tlb_mode)
    static let tlbRead = place(\.tlb_read)
    static let tlbWrite = place(\.tlb_write)
    static let cr4 = place(\.cr4)
    static let timeStampOffset = place(\.tsc_offset)
    static let timeStampAux = place(\.tsc_aux)
    /// The entries for loads of one mode; those for stores lie behind them.
    static func tlbSet(_ mode: UInt8) -> Int32 { tlb + Int32(mode) * 2 * Int32(APUS_TLB_ENTRIES) * 16 }
    static func segmentBase(_ index: UInt8) -> Int32 { Int32(APUS_SEGMENTS_OFFSET) + Int32(index) * 16 }
}

/// Where a block starts, and in which mode.
struct BlockKey: Hashable {
    let physical: UInt64
    let mode: UInt32
}

/// Code that all blocks share.
struct CommonCode {
    /// From the writable to the executable mapping.
    let executable: Int
    /// Leaves with `Status.jump`; `rip` is where to go on.
    let exit: UnsafeMutablePointer<UInt8>
    /// Runs handlers; see `apus_run_handlers`.
    let handlers: UnsafeMutablePointer<UInt8>
    /// Loads the XMM registers; the zero flag tells whether that is allowed.
    let loadVector: UnsafeMutablePointer<UInt8>
    /// Loads the upper halves of the YMM registers beside the lower ones.
    let loadUpper: UnsafeMutablePointer<UInt8>
    /// Loads the x87 registers; the zero flag tells whether that is allowed.
    let loadX87: UnsafeMutablePointer<UInt8>
    /// Leaves with `Status.interpret`; r11 is the block that its handlers must run.
    let interpret: UnsafeMutablePointer<UInt8>
    /// Looks `rip` up in the jump cache.
    let dispatch: UnsafeMutablePointer<UInt8>
    /// Fill a slot in front of the TLB, by mode and, for stores, the next: r11 is the slot's place, r10 what did not match.
    let refills: [6 of UnsafeMutablePointer<UInt8>]
    /// Handlers for when the misses of place N of a block, or at the end its trial, are over.
    let plainly: UnsafeMutablePointer<apus_insn>
}

struct Translator {
    static let usualBytes = 64 << 20
    /// A translation is on trial for so many executions. A place that misses the slot in front of the TLB so often
    /// meanwhile does without from then on; after the trial, a place may have that many before there is another trial.
    static let trial: UInt32 = 2000
    static let trialMisses: UInt16 = 160
    static let usualMisses: UInt16 = 60000
    /// Length of the look at the attention word that every block begins with; jumps forward enter behind it.
    static let pollBytes = 18
    /// What the longest block may need of each part of the code cache.
    private static let reserve = (warm: 16 << 10, cold: 32 << 10)

    private let buffer: apus_code_buffer
    private let start: UnsafeMutablePointer<UInt8>
    private var next: UnsafeMutablePointer<UInt8>
    private let firstFree: UnsafeMutablePointer<UInt8>
    /// What blocks hardly ever run lies apart, so that the rest is dense: from here on.
    private let firstCold: UnsafeMutablePointer<UInt8>
    private var cold: UnsafeMutablePointer<UInt8>
    private let common: CommonCode
    /// Jumps to blocks, translated yet or not.
    private var links: [BlockKey: [(place: UnsafeMutablePointer<UInt8>, skip: Int)]] = [:]
    private let threshold: UInt32
    /// The last translation: its lists have room.
    private var last: Translation?

    private let bytes: Int

    /// nil: switched off, or the host does not allow it. `blocks` learns what it must do for translations.
    init?(_ blocks: inout BlockCache, bytes: Int = Self.usualBytes) {
        self.bytes = bytes
        var threshold: UInt32 = 16
        if let setting = getenv("APUS_TRANSLATION_THRESHOLD") {
            let text = String(cString: setting)
            if text == "off" { return nil }
            if let number = UInt32(text) { threshold = number }
        }
        buffer = apus_code_buffer_make(bytes)
        guard let writable = buffer.writable, let code = buffer.executable else { return nil }
        self.threshold = min(threshold, .max - 1) + 1
        start = writable
        let executable = Int(bitPattern: code) &- Int(bitPattern: writable)
        var emitter = Emitter(at: writable)
        let entry = emitter.at
        Self.emitEntry(&emitter)
        let exit = emitter.at
        Self.emitExit(&emitter)
        let handlers = emitter.at
        Self.emitHandlers(&emitter)
        let dispatch = emitter.at
        emitter.load(HostRegister.address, .state(StateOffset.rip))
        Self.emitDispatch(&emitter, exit: exit)
        let loadVector = emitter.at
        Self.emitLoadVector(&emitter)
        let loadUpper = emitter.at
        Self.emitLoadUpper(&emitter)
        let loadX87 = emitter.at
        Self.emitLoadX87(&emitter)
        let interpret = emitter.at
        Self.emitInterpret(&emitter)
        var refills: [6 of UnsafeMutablePointer<UInt8>] = .init(repeating: writable)
        for index in 0..<6 {
            refills[index] = emitter.at
            Self.emitRefill(&emitter, UInt8(index / 2), write: index & 1 != 0)
        }
        common = CommonCode(
            executable: executable, exit: exit, handlers: handlers, loadVector: loadVector, loadUpper: loadUpper,
            loadX87: loadX87, interpret: interpret, dispatch: dispatch, refills: refills, plainly: Self.makePlainly())
        next = emitter.at
        firstFree = next
        firstCold = writable + bytes / 8 * 3
        cold = firstCold
        blocks.heat = self.threshold
        blocks.nativeAlias = 0 &- executable
        blocks.nativeExit = Int(bitPattern: exit) &+ executable
        blocks.nativeEntry = UnsafeMutableRawPointer(entry) + executable
    }

    func deallocate() {
        common.plainly.deallocate()
        apus_code_buffer_free(buffer)
    }

    // MARK: Common code

    /// Guest registers that host registers hold, with their places.
    static let pinned: [(guest: UInt8, host: UInt8)] = [
        (0, 0), (1, 1), (2, 2), (3, 3), (4, HostRegister.stack), (5, 5), (6, 6), (7, 7), (8, 8), (12, 12), (13, 13),
        (14, 14), (15, 15),
    ]
    private static let saved: [UInt8] = [3, 5, 12, 13, 14, 15]

    private static func push(_ emitter: inout Emitter, _ register: UInt8) {
        if register >= 8 { emitter.byte(0x41) }
        emitter.byte(0x50 | register & 7)
    }
    private static func pop(_ emitter: inout Emitter, _ register: UInt8) {
        if register >= 8 { emitter.byte(0x41) }
        emitter.byte(0x58 | register & 7)
    }
    private static func loadGuest(_ emitter: inout Emitter) {
        for pair in pinned { emitter.load(pair.host, .state(Int32(pair.guest) * 8)) }
    }
    private static func storeGuest(_ emitter: inout Emitter) {
        for pair in pinned { emitter.store(pair.host, .state(Int32(pair.guest) * 8)) }
    }
    private static func leave(_ emitter: inout Emitter) {
        emitter.load(4, .state(StateOffset.hostStack))
        popSaved(&emitter)
    }
    private static func popSaved(_ emitter: inout Emitter) {
        emitter.bytes(0x48, 0x83, 0xC4, 0x08)  // add rsp, 8
        for register in saved.reversed() { pop(&emitter, register) }
        emitter.byte(0xC3)
    }

    /// (rdi: vCPU, rsi: code). The vCPU stays on the loop's stack; calls find that aligned.
    private static func emitEntry(_ emitter: inout Emitter) {
        for register in saved { push(&emitter, register) }
        push(&emitter, 7)
        emitter.store(4, .memory(7, StateOffset.hostStack))
        emitter.move(HostRegister.scratch, 6)
        emitter.move(4, 7)
        loadGuest(&emitter)
        emitter.bytes(0x41, 0xFF, 0xE3)  // jmp r11
    }

    private static func emitExit(_ emitter: inout Emitter) {
        saveVector(&emitter)
        storeGuest(&emitter)
        saveX87(&emitter)
        emitter.bytes(0xB8, UInt8(truncatingIfNeeded: Status.jump), 0, 0, 0)  // mov eax, jump
        leave(&emitter)
    }

    private static func emitInterpret(_ emitter: inout Emitter) {
        emitter.store(HostRegister.scratch, .state(StateOffset.current))
        saveVector(&emitter)
        storeGuest(&emitter)
        saveX87(&emitter)
        emitter.bytes(0xB8, UInt8(truncatingIfNeeded: Status.interpret), 0, 0, 0)  // mov eax, interpret
        leave(&emitter)
    }

    /// Puts the guest's XMM registers and MXCSR back into the vCPU if they are in the host's.
    private static func saveVector(_ emitter: inout Emitter) {
        emitter.insn(0x83, 4, 7, .state(StateOffset.vectorLive))
        emitter.byte(0)
        let skip = emitter.jump(if: 4)
        emitter.insn(0xC7, 4, 0, .state(StateOffset.vectorLive))
        emitter.long(0)
        emitter.insn(0x1AE, 4, 3, .state(StateOffset.mxcsr))  // stmxcsr
        emitter.insn(0x1AE, 4, 2, .state(StateOffset.hostMXCSR))  // ldmxcsr
        for number in 0..<16 as Range<UInt8> { emitter.insn(0x129, 4, number, .state(StateOffset.xmm(number))) }
        saveUpper(&emitter)
        emitter.aim(skip, emitter.at)
    }

    /// With some SIMD exception unmasked the zero flag is clear, and handlers must do the work.
    private static func emitLoadVector(_ emitter: inout Emitter) {
        emitter.stackDepth = 8
        defer { emitter.stackDepth = 0 }
        let scratch = HostRegister.scratch
        emitter.insn(0x8B, 4, scratch, .state(StateOffset.mxcsr))
        emitter.insn(0xF7, 4, 2, .register(scratch))
        emitter.insn(0xF7, 4, 0, .register(scratch))
        emitter.long(0x1F80)
        let refuse = emitter.jump(if: 5)
        emitter.insn(0x1AE, 4, 2, .state(StateOffset.mxcsr))  // ldmxcsr
        for number in 0..<16 as Range<UInt8> { emitter.insn(0x128, 4, number, .state(StateOffset.xmm(number))) }
        emitter.insn(0xC7, 4, 0, .state(StateOffset.vectorLive))
        emitter.long(1)
        emitter.aim(refuse, emitter.at)
        emitter.byte(0xC3)
    }

    /// Called with r11 = instruction, r10 = block and count.
    private static func emitHandlers(_ emitter: inout Emitter) {
        emitter.stackDepth = 8
        defer { emitter.stackDepth = 0 }
        saveVector(&emitter)
        storeGuest(&emitter)
        saveX87(&emitter)
        emitter.insn(0x8D, 8, 7, .state(0))
        emitter.move(6, HostRegister.scratch)
        emitter.move(2, HostRegister.address)
        emitter.load(4, .state(StateOffset.hostStack))
        emitter.loadConstant(0, apus_run_handlers_address())
        emitter.bytes(0xFF, 0xD0)  // call rax
        emitter.load(7, .memory(4, 0))
        emitter.bytes(0x85, 0xC0)  // test eax, eax
        let out = emitter.jump(if: 5)
        emitter.insn(0x8D, 8, 4, .memory(7, -8))
        loadGuest(&emitter)
        emitter.byte(0xC3)
        emitter.aim(out, emitter.at)
        popSaved(&emitter)
    }

    /// Called with r10 = address ^ tag of the slot at RSP + r11: takes the TLB's entry into the slot, if it is the right
    /// one; then r10 is the offset within its page.
    private static func emitRefill(_ emitter: inout Emitter, _ mode: UInt8, write: Bool) {
        emitter.stackDepth = 8
        defer { emitter.stackDepth = 0 }
        let entries = StateOffset.tlbSet(mode) + (write ? Int32(APUS_TLB_ENTRIES) * 16 : 0)
        emitter.bytes(0x4E, 0x33, 0x54, 0x1C, 8)  // xor r10, [rsp + r11 + 8]
        emitter.store(0, .state(StateOffset.nearSaved))
        emitter.store(1, .state(StateOffset.nearSaved + 8))
        emitter.bytes(0x4C, 0x89, 0xD0, 0x48, 0xC1, 0xE8, 8, 0x25)  // mov rax, r10; shr rax, 8; and eax, ...
        emitter.long((Int32(APUS_TLB_ENTRIES) - 1) * 16)
        emitter.bytes(0x48, 0x8B, 0x8C, 0x04)  // mov rcx, [rsp + rax + tag]
        emitter.long(entries + 8)
        emitter.bytes(0x49, 0x31, 0xCA, 0x49, 0x81, 0xFA)  // xor r10, rcx; cmp r10, 4095
        emitter.long(4095)
        let miss = emitter.jump(if: 7)
        emitter.bytes(0x4A, 0x89, 0x4C, 0x1C, 8)  // mov [rsp + r11 + 8], rcx
        emitter.bytes(0x48, 0x8B, 0x8C, 0x04)  // mov rcx, [rsp + rax + host]
        emitter.long(entries + 16)
        emitter.bytes(0x4A, 0x89, 0x4C, 0x1C, 16)  // mov [rsp + r11 + 16], rcx
        emitter.bytes(0x4A, 0x2B, 0x4C, 0x1C, 8)  // sub rcx, [rsp + r11 + 8]
        emitter.bytes(0x4A, 0x89, 0x4C, 0x1C, 24)  // mov [rsp + r11 + 24], rcx
        emitter.aim(miss, emitter.at)
        emitter.load(0, .state(StateOffset.nearSaved))
        emitter.load(1, .state(StateOffset.nearSaved + 8))
        emitter.byte(0xC3)
    }

    private static func makePlainly() -> UnsafeMutablePointer<apus_insn> {
        let insns = UnsafeMutablePointer<apus_insn>.allocate(capacity: BlockCache.longestBlock + 1)
        for index in 0...BlockCache.longestBlock {
            var insn = apus_insn.empty
            insn.handler = { cpu, insn in
                cpu.doPlainly(insn)
                return Status.resume
            }
            insn.opcode = UInt16(index)
            (insns + index).initialize(to: insn)
        }
        return insns
    }

    /// Goes on at `rip`, which r10 holds, by the jump cache, or leaves.
    static func emitDispatch(_ emitter: inout Emitter, exit: UnsafeMutablePointer<UInt8>) {
        emitter.aim(emitSearch(&emitter), exit)
        emitFollow(&emitter, exit: exit)
    }

    /// The offset of the jump cache's entry for r10, in r11; a jump for when that is another's.
    static func emitSearch(_ emitter: inout Emitter) -> UnsafeMutablePointer<UInt8> {
        emitter.bytes(0x45, 0x69, 0xDA)  // imul r11d, r10d, factor
        emitter.long(Int32(APUS_JUMP_FACTOR))
        let scale = Int32(MemoryLayout<apus_jump>.stride.trailingZeroBitCount)
        emitter.bytes(0x41, 0xC1, 0xEB, UInt8(Int32(APUS_JUMP_SHIFT) - scale))  // shr r11d, ...
        emitter.bytes(0x41, 0x81, 0xE3)  // and r11d, ...
        emitter.long((Int32(APUS_JUMPS) - 1) << scale)
        emitter.bytes(0x4E, 0x39, 0x94, 0x1C)  // cmp [rsp + r11 + linear], r10
        emitter.long(StateOffset.jumps)
        return emitter.jump(if: 5)
    }

    /// Goes on by the entry that r11 leads to, if mode and address space are the same.
    static func emitFollow(_ emitter: inout Emitter, exit: UnsafeMutablePointer<UInt8>) {
        emitter.load(HostRegister.address, .state(StateOffset.modeKey))
        emitter.bytes(0x4E, 0x39, 0x94, 0x1C)  // cmp [rsp + r11 + key], r10
        emitter.long(StateOffset.jumps + 8)
        emitter.jump(if: 5, to: exit)
        emitter.bytes(0x42, 0xFF, 0xA4, 0x1C)  // jmp [rsp + r11 + native]
        emitter.long(StateOffset.jumps + 24)
    }

    // MARK: Blocks

    private var isFull: Bool {
        next > firstCold - Self.reserve.warm || cold - start > bytes - Self.reserve.cold
    }

    /// Puts a jump over code.
    static func divert(_ writable: UnsafeMutableRawPointer, by distance: Int) {
        writable.storeBytes(of: 0xE9, as: UInt8.self)
        writable.storeBytes(of: Int32(truncatingIfNeeded: distance - 5), toByteOffset: 1, as: Int32.self)
    }

    /// Translates a block anew while its old translation may be running; who enters that gets to the new one.
    mutating func replace(_ cpu: CPU, _ block: Block) {
        guard let old = block.pointee.native, !isFull else { return }
        translate(cpu, block)
        guard let new = block.pointee.native, new != old else { return }
        Self.divert(old - common.executable, by: new - old)
        Self.divert(old - common.executable + Self.pollBytes, by: new - old)
    }

    /// Gives a block native code if it can have any.
    mutating func translate(_ cpu: CPU, _ block: Block) {
        guard block.pointee.mode_key & 3 == 3, block.pointee.bytes > 0 else { return }
        if isFull {
            removeAll(cpu.engine)
            cpu.dropJumps()
        }
        var translation = last.take() ?? Translation(common, cpu, block, at: next, cold: cold)
        translation.begin(block, at: next, cold: cold)
        let isDone = translation.run()
        defer { last = translation }
        guard isDone else { return }
        let code = next
        next = translation.emitter.at
        cold = translation.cold
        for link in translation.links { links[link.key, default: []].append((link.place, link.skip)) }
        block.pointee.native = UnsafeMutableRawPointer(code) + common.executable
        // Who jumps to such a block must look at the second page, too.
        guard block.pointee.second == 0 else { return }
        let key = BlockKey(physical: block.pointee.physical, mode: block.pointee.mode_key)
        for link in links[key] ?? [] { translation.emitter.aim(link.place, code + link.skip) }
    }

    /// Drops all translations; none may be running.
    private mutating func removeAll(_ engine: Engine) {
        for index in 0..<engine.pointee.blocks.blockCount {
            let block = engine.pointee.blocks.blocks + index
            guard block.pointee.bytes > 0 else { continue }
            block.pointee.native = nil
            block.pointee.heat = threshold
        }
        forgetLinks()
        (next, cold) = (firstFree, firstCold)
    }

    /// The blocks that were linked, or waited for it, are gone.
    mutating func forgetLinks() { links.removeAll(keepingCapacity: true) }
}

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// Counts an execution of a block that is not translated yet.
    @inline(__always) func warm(_ block: Block) {
        block.pointee.heat &-= 1
        if block.pointee.heat == 0 { heated(block) }
    }
    /// The trial of the running block's translation is over, or a place misses the slot in front of the TLB too often.
    @inline(never) fileprivate func doPlainly(_ insn: Insn) {
        guard let block = self.pointee.current, block.pointee.bytes != 0 else { return }
        if block.pointee.trial != 0, insn.pointee.opcode < BlockCache.longestBlock {
            block.pointee.plain |= 1 &<< UInt64(insn.pointee.opcode)
        } else if block.pointee.trial == 0, insn.pointee.opcode < BlockCache.longestBlock {
            block.pointee.trial = Translator.trial
        }
        engine.pointee.translator?.replace(self, block)
    }
    @inline(never) private func heated(_ block: Block) { engine.pointee.translator?.translate(self, block) }
}
