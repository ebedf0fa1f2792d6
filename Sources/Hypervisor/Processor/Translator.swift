// Hot blocks as native code: the code cache, how blocks are entered, linked and left.
// Source: our own design; which instructions become what is in Translation*.swift.
// Modelled: everything; what has no native form here is run by its handler. Not modelled: protected 16-bit code.
// Quirks: the guest's RSP is in r9; its r9, r10 and r11 stay in the vCPU; RSP is the vCPU; flags between blocks in memory.

internal import CProcessor
internal import Glibc

struct Translator {
    static let usualBytes = 64 << 20
    /// A translation is on trial for so many executions. A place that misses the slot in front of the TLB so often
    /// meanwhile does without from then on; after the trial, a place may have that many before there is another trial.
    static let trial: UInt32 = 1000
    static let trialMisses: UInt16 = 80
    static let usualMisses: UInt16 = 60000
    /// Length of what lies in front of a translation's entry: the way out, for who finds something to do within the page,
    /// and `landingBytes`.
    static let exitBytes = 17 + landingBytes
    /// How far before the entry calls of the block enter; and calls that return to it are made; see TranslationReturns.swift.
    static let landingBytes = 10
    static let callBytes = 3
    /// Length of what makes RIP the page's address at the entry; jumps within a page enter behind it.
    static let entryBytes = 12
    /// Length of the look at the attention word that comes then; jumps forward within a page enter behind it.
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
    /// How far the host has put memory behind either part.
    private var ready: (warm: UnsafeMutablePointer<UInt8>, cold: UnsafeMutablePointer<UInt8>)
    let common: CommonCode
    /// Jumps to blocks, translated yet or not.
    private var links: LinkTable
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
        links = LinkTable()
        start = writable
        let executable = Int(bitPattern: code) &- Int(bitPattern: writable)
        var emitter = Emitter(at: writable)
        let entry = emitter.at
        Self.emitEntry(&emitter)
        Self.emitLanding(&emitter)
        let exit = emitter.at
        Self.emitExit(&emitter)
        let handlers = emitter.at
        Self.emitHandlers(&emitter)
        let second = emitter.at
        Self.emitSecond(&emitter, returns: false, exit: exit)
        let secondReturn = emitter.at
        Self.emitSecond(&emitter, returns: true, exit: exit)
        let dispatch = emitter.at
        emitter.load(HostRegister.address, .state(StateOffset.rip))
        Self.emitDispatch(&emitter, exit: second)
        let systemCall = emitter.at
        Self.emitLevelChange(&emitter, apus_system_call_address(), dispatch: dispatch)
        let systemReturn = emitter.at
        Self.emitLevelChange(&emitter, apus_system_return_address(), dispatch: dispatch)
        let loadVector = emitter.at
        Self.emitLoadVector(&emitter)
        let loadUpper = emitter.at
        Self.emitLoadUpper(&emitter)
        let loadX87 = emitter.at
        Self.emitLoadX87(&emitter)
        let interpret = emitter.at
        Self.emitInterpret(&emitter)
        var refills: [6 of UnsafeMutablePointer<UInt8>] = .init(repeating: writable)
        var seconds = refills
        for index in 0..<6 {
            refills[index] = emitter.at
            Self.emitRefill(&emitter, UInt8(index / 2), write: index & 1 != 0)
            seconds[index] = emitter.at
            Self.emitSecondLevel(&emitter, UInt8(index / 2), write: index & 1 != 0)
        }
        common = CommonCode(
            executable: executable, exit: exit, handlers: handlers, systemCall: systemCall,
            systemReturn: systemReturn, loadVector: loadVector, loadUpper: loadUpper, loadX87: loadX87,
            interpret: interpret, dispatch: dispatch, second: second, secondReturn: secondReturn, refills: refills,
            seconds: seconds,
            plainly: Self.makePlainly(), crossings: .allocate(capacity: Self.crossings))
        next = emitter.at
        firstFree = next
        firstCold = writable + bytes / 8 * 3
        cold = firstCold
        ready = (writable, firstCold)
        blocks.heat = self.threshold
        blocks.nativeAlias = 0 &- executable
        blocks.nativeExit = Int(bitPattern: exit) &+ executable
        blocks.nativeEntry = UnsafeMutableRawPointer(entry) + executable
    }

    func deallocate() {
        links.deallocate()
        common.plainly.deallocate()
        common.crossings.deallocate()
        apus_code_buffer_free(buffer)
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

    /// Sends a block's own loop to its start, if it has one; see TranslationLoans.swift.
    static func sendHome(_ writable: UnsafeMutableRawPointer, _ loop: (again: UInt32, home: UInt32)) {
        guard loop.again != 0 else { return }
        divert(writable + Int(loop.again), by: Int(loop.home) - Int(loop.again))
    }

    /// Translates a block anew while its old translation may be running; who enters that gets to the new one.
    mutating func replace(_ cpu: CPU, _ block: Block) {
        guard let old = block.pointee.native, !isFull else { return }
        let again = (block.pointee.again, block.pointee.home)
        translate(cpu, block)
        guard let new = block.pointee.native, new != old else { return }
        let writable = old - common.executable
        Self.divert(writable, by: new - old)
        Self.divert(writable + Self.entryBytes, by: new - old)
        Self.divert(writable + Self.entryBytes + Self.pollBytes, by: new - old)
        Self.sendHome(writable, again)
    }

    /// Sees to it that the host has memory for another block.
    private mutating func makeReady() {
        if next + Self.reserve.warm > ready.warm { ready.warm = populate(from: ready.warm) }
        if cold + Self.reserve.cold > ready.cold { ready.cold = populate(from: ready.cold) }
    }

    private func populate(from place: UnsafeMutablePointer<UInt8>) -> UnsafeMutablePointer<UInt8> {
        start + apus_code_buffer_populate(buffer, place - start)
    }

    /// Gives a block native code if it can have any.
    mutating func translate(_ cpu: CPU, _ block: Block) {
        guard let width = Translation.width(block.pointee.mode_key), block.pointee.bytes > 0 else { return }
        if isFull {
            removeAll(cpu.engine)
            cpu.dropJumps()
        }
        makeReady()
        // Real mode's IP says nothing of where in a page it is.
        block.pointee.lag = width == 2 ? 0 : UInt32(truncatingIfNeeded: block.pointee.physical & 0xFFF)
        var translation = last.take() ?? Translation(common, cpu, block, at: next, cold: cold)
        translation.begin(block, at: next, cold: cold)
        let isDone = translation.run()
        defer { last = translation }
        guard isDone else { return }
        let code = next + Self.exitBytes
        next = translation.emitter.at
        cold = translation.cold
        for link in translation.links { links.add(link.key, link.place, skip: link.skip) }
        block.pointee.native = UnsafeMutableRawPointer(code) + common.executable
        // Who jumps to such a block must look at the second page, too.
        guard block.pointee.second == 0 else { return }
        let key = BlockKey(physical: block.pointee.physical, mode: block.pointee.mode_key)
        links.aim(key, code, translation.emitter)
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
        last?.crossingCount = 0
    }

    /// The blocks that were linked, or waited for it, are gone.
    mutating func forgetLinks() { links.removeAll() }
}

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// Counts an execution of a block that is not translated yet.
    @inline(__always) func warm(_ block: Block) {
        block.pointee.heat &-= 1
        if block.pointee.heat == 0 { heated(block) }
    }
    /// The trial of the running block's translation is over, or a place misses the slot in front of the TLB too often.
    @inline(never) func doPlainly(_ insn: Insn) {
        guard let block = self.pointee.current, block.pointee.bytes != 0 else { return }
        if insn.pointee.opcode >= BlockCache.longestBlock {
            block.pointee.trial = 0
        } else if block.pointee.trial != 0 {
            block.pointee.plain |= 1 &<< UInt64(insn.pointee.opcode)
        } else {
            startTrial(block, Translator.trial)
        }
        engine.pointee.translator?.replace(self, block)
        takeTranslation(block)
    }
    /// The jump cache, if it has the running block, learns of its new translation: a jump by the old one costs lines of the host's
    /// caches.
    private func takeTranslation(_ block: Block) {
        let isReal = self.pointee.code_size == 2
        let linear = isReal ? self.pointee.rip &+ segmentPointer(segmentCS).pointee.base : self.pointee.rip
        guard let native = block.pointee.native else { return }
        let set = jumpSet(linear)
        for entry in [set, set + 1] where entry.pointee.block == block {
            entry.pointee.native = UnsafeRawPointer(native)
        }
    }
    @inline(never) private func heated(_ block: Block) {
        startTrial(block, block.pointee.trial)
        engine.pointee.translator?.translate(self, block)
    }
    private func startTrial(_ block: Block, _ executions: UInt32) {
        block.pointee.trial = executions
        apus_start_trial(self, block - engine.pointee.blocks.blocks, executions)
    }
}
