// Code that all translated blocks share: the ways in and out, to handlers, through the jump cache; refills.
// Source: our own design; docs/decisions/0004.md.
// Modelled: what the guest's registers are in the host's is put back into the vCPU before Swift code runs.
// Quirks: the vCPU stays on the loop's stack while RSP points to it.

internal import CProcessor

/// Code that all blocks share.
struct CommonCode {
    /// From the writable to the executable mapping.
    let executable: Int
    /// Leaves with `Status.jump`; `rip` is where to go on.
    let exit: UnsafeMutablePointer<UInt8>
    /// Runs handlers; see `apus_run_handlers`.
    let handlers: UnsafeMutablePointer<UInt8>
    /// SYSCALL and SYSRET; see TranslationSystem.swift.
    let systemCall: UnsafeMutablePointer<UInt8>
    let systemReturn: UnsafeMutablePointer<UInt8>
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
    /// Looks there once more, after a first look that found something else.
    let second: UnsafeMutablePointer<UInt8>
    /// The same for returns.
    let secondReturn: UnsafeMutablePointer<UInt8>
    /// Fill a slot in front of the TLB, by mode and, for stores, the next: r11 is the slot's place, r10 what did not match.
    let refills: [6 of UnsafeMutablePointer<UInt8>]
    /// Fill the TLB's entry that r11 leads to from the second level, the same way.
    let seconds: [6 of UnsafeMutablePointer<UInt8>]
    /// Handlers for when the misses of place N of a block, or at the end its trial, are over.
    let plainly: UnsafeMutablePointer<apus_insn>
    /// Direct branches to other pages; see TranslationCrossings.swift.
    let crossings: UnsafeMutablePointer<apus_insn>
}

extension Translator {
    /// Guest registers that host registers hold, with their places.
    static let pinned: [(guest: UInt8, host: UInt8)] = [
        (0, 0), (1, 1), (2, 2), (3, 3), (4, HostRegister.stack), (5, 5), (6, 6), (7, 7), (8, 8), (12, 12), (13, 13),
        (14, 14), (15, 15),
    ]
    private static let saved: [UInt8] = [3, 5, 12, 13, 14, 15]

    static func push(_ emitter: inout Emitter, _ register: UInt8) {
        if register >= 8 { emitter.byte(0x41) }
        emitter.byte(0x50 | register & 7)
    }
    static func pop(_ emitter: inout Emitter, _ register: UInt8) {
        if register >= 8 { emitter.byte(0x41) }
        emitter.byte(0x58 | register & 7)
    }
    static func loadGuest(_ emitter: inout Emitter) {
        for pair in pinned { emitter.load(pair.host, .state(Int32(pair.guest) * 8)) }
    }
    static func storeGuest(_ emitter: inout Emitter) {
        for pair in pinned { emitter.store(pair.host, .state(Int32(pair.guest) * 8)) }
    }
    static func leave(_ emitter: inout Emitter) {
        emitter.load(4, .state(StateOffset.hostStack))
        popSaved(&emitter)
    }
    static func popSaved(_ emitter: inout Emitter) {
        emitter.bytes(0x48, 0x83, 0xC4, 0x08)  // add rsp, 8
        for register in saved.reversed() { pop(&emitter, register) }
        emitter.byte(0xC3)
    }

    /// (rdi: vCPU, rsi: code). The vCPU stays on the loop's stack; calls find that aligned.
    static func emitEntry(_ emitter: inout Emitter) {
        for register in saved { push(&emitter, register) }
        push(&emitter, 7)
        emitter.store(4, .memory(7, StateOffset.hostStack))
        emitter.move(HostRegister.scratch, 6)
        emitter.move(4, 7)
        loadGuest(&emitter)
        emitter.bytes(0x41, 0xFF, 0xE3)  // jmp r11
    }

    static func emitExit(_ emitter: inout Emitter) {
        saveVector(&emitter)
        storeGuest(&emitter)
        saveX87(&emitter)
        emitter.bytes(0xB8, UInt8(truncatingIfNeeded: Status.jump), 0, 0, 0)  // mov eax, jump
        leave(&emitter)
    }

    static func emitInterpret(_ emitter: inout Emitter) {
        emitter.store(HostRegister.scratch, .state(StateOffset.current))
        saveVector(&emitter)
        storeGuest(&emitter)
        saveX87(&emitter)
        emitter.bytes(0xB8, UInt8(truncatingIfNeeded: Status.interpret), 0, 0, 0)  // mov eax, interpret
        leave(&emitter)
    }

    /// Puts the guest's XMM registers and MXCSR back into the vCPU if they are in the host's.
    static func saveVector(_ emitter: inout Emitter) {
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
    static func emitLoadVector(_ emitter: inout Emitter) {
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
    static func emitHandlers(_ emitter: inout Emitter) {
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
        // The host's prediction of returns forgets the call of this.
        emitter.bytes(0x4C, 0x8D, 0x1D, 3, 0, 0, 0, 0x41, 0x53, 0xC3)  // lea r11, [rip + 3]; push r11; ret
        popSaved(&emitter)
    }

    /// Called with r10 = address ^ tag of the slot at RSP + r11: takes the TLB's entry into the slot, if it is the right
    /// one, or the second level fills that; then r10 is the offset within its page.
    static func emitRefill(_ emitter: inout Emitter, _ mode: UInt8, write: Bool) {
        emitter.stackDepth = 8
        defer { emitter.stackDepth = 0 }
        let entries = StateOffset.tlbSet(mode) + (write ? StateOffset.tlbBytes : 0)
        emitter.bytes(0x4E, 0x33, 0x54, 0x1C, 8)  // xor r10, [rsp + r11 + 8]
        emitter.store(0, .state(StateOffset.nearSaved))
        emitter.store(1, .state(StateOffset.nearSaved + 8))
        let again = emitter.at
        // mov rax, r10; shr rax, ...; and eax, ...
        emitter.bytes(0x4C, 0x89, 0xD0, 0x48, 0xC1, 0xE8, StateOffset.tlbShift, 0x25)
        emitter.long(StateOffset.tlbMask)
        emitter.bytes(0x48, 0x8B, 0x8C, 0x04)  // mov rcx, [rsp + rax + tag]
        emitter.long(entries + 8)
        emitter.bytes(0x49, 0x31, 0xCA, 0x49, 0x81, 0xFA)  // xor r10, rcx; cmp r10, 4095
        emitter.long(4095)
        let miss = emitter.jump(if: 7)
        emitter.bytes(0x4A, 0x89, 0x4C, 0x1C, 8)  // mov [rsp + r11 + 8], rcx
        emitter.bytes(0x48, 0x8B, 0x8C, 0x04)  // mov rcx, [rsp + rax + host]
        emitter.long(entries + 16)
        emitter.bytes(0x4A, 0x89, 0x4C, 0x1C, 16)  // mov [rsp + r11 + 16], rcx
        emitter.bytes(0x48, 0x8B, 0x8C, 0x04)  // mov rcx, [rsp + rax + distance]
        emitter.long(entries + 24)
        emitter.bytes(0x4A, 0x89, 0x4C, 0x1C, 24)  // mov [rsp + r11 + 24], rcx
        let found = emitter.at
        emitter.load(0, .state(StateOffset.nearSaved))
        emitter.load(1, .state(StateOffset.nearSaved + 8))
        emitter.byte(0xC3)
        emitter.aim(miss, emitter.at)
        emitter.bytes(0x49, 0x31, 0xCA)  // xor r10, rcx
        callRefill(&emitter, mode, write: write, keeping: [2, 6, 7, 8, 9, HostRegister.address, HostRegister.scratch])
        emitter.jump(if: 5, to: again)
        emitter.bytes(0x49, 0x83, 0xCA, 0xFF)  // or r10, -1
        emitter.jump(to: found)
    }

    /// Called with r10 = address ^ tag of the TLB's entry that r11 leads to: fills that from the second level, if it can;
    /// then r10 is the offset within the page.
    static func emitSecondLevel(_ emitter: inout Emitter, _ mode: UInt8, write: Bool) {
        emitter.stackDepth = 8
        defer { emitter.stackDepth = 0 }
        let tag = StateOffset.tlbSet(mode) + (write ? StateOffset.tlbBytes : 0) + emitter.stackDepth
        emitter.bytes(0x4E, 0x33, 0x94, 0x1C)  // xor r10, [rsp + r11 + tag]
        emitter.long(tag)
        callRefill(
            &emitter, mode, write: write, keeping: [0, 1, 2, 6, 7, 8, 9, HostRegister.address, HostRegister.scratch])
        let miss = emitter.jump(if: 4)
        emitter.bytes(0x4E, 0x33, 0x94, 0x1C)  // xor r10, [rsp + r11 + tag]
        emitter.long(tag)
        emitter.byte(0xC3)
        emitter.aim(miss, emitter.at)
        emitter.bytes(0x49, 0x83, 0xCA, 0xFF, 0xC3)  // or r10, -1; ret
    }

    /// Has the second level of the TLB looked at for the linear address in r10; the zero flag is set if that did not help.
    /// Vector registers are the guest's: `apus_refill` has no use for them. An odd number of registers aligns the stack,
    /// which lies in front of the vCPU.
    private static func callRefill(_ emitter: inout Emitter, _ mode: UInt8, write: Bool, keeping kept: [UInt8]) {
        for register in kept { push(&emitter, register) }
        emitter.insn(0x8D, 8, 7, .memory(4, Int32(kept.count) * 8 + emitter.stackDepth))
        emitter.move(6, HostRegister.address)
        emitter.byte(0xBA)  // mov edx, ...
        emitter.long(Int32(mode) * 2 + (write ? 1 : 0))
        emitter.loadConstant(0, apus_refill_address())
        emitter.bytes(0xFF, 0xD0, 0x85, 0xC0)  // call rax; test eax, eax
        for register in kept.reversed() { pop(&emitter, register) }
    }

    static func makePlainly() -> UnsafeMutablePointer<apus_insn> {
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

    /// The offset of the jump cache's set for r10, in r11; a jump for when the first entry, or that at `way`, is another's.
    static func emitSearch(_ emitter: inout Emitter, way: Int32 = 0) -> UnsafeMutablePointer<UInt8> {
        emitter.bytes(0x45, 0x69, 0xDA)  // imul r11d, r10d, factor
        emitter.long(Int32(APUS_JUMP_FACTOR))
        let scale = Int32((Int(APUS_JUMP_WAYS) * MemoryLayout<apus_jump>.stride).trailingZeroBitCount)
        emitter.bytes(0x41, 0xC1, 0xEB, UInt8(Int32(APUS_JUMP_SHIFT) - scale))  // shr r11d, ...
        emitter.bytes(0x41, 0x81, 0xE3)  // and r11d, ...
        emitter.long((Int32(APUS_JUMP_SETS) - 1) << scale)
        emitter.bytes(0x4E, 0x39, 0x94, 0x1C)  // cmp [rsp + r11 + linear], r10
        emitter.long(StateOffset.jumps + way)
        return emitter.jump(if: 5)
    }

    /// Looks `rip` up where an address has its other place in the jump cache, or leaves.
    static func emitSecond(_ emitter: inout Emitter, returns: Bool, exit: UnsafeMutablePointer<UInt8>) {
        let way = Int32(MemoryLayout<apus_jump>.stride)
        emitter.load(HostRegister.address, .state(StateOffset.rip))
        emitter.aim(emitSearch(&emitter, way: way), exit)
        if returns { return emitReturn(&emitter, way: way, exit: exit) }
        emitFollow(&emitter, way: way, exit: exit)
    }

    /// Goes on by the entry that r11 leads to, if mode and address space are the same.
    static func emitFollow(_ emitter: inout Emitter, way: Int32 = 0, exit: UnsafeMutablePointer<UInt8>) {
        emitCompareKey(&emitter, way: way, exit: exit)
        emitter.bytes(0x42, 0xFF, 0xA4, 0x1C)  // jmp [rsp + r11 + native]
        emitter.long(StateOffset.jumps + way + 24)
    }

    /// The same by a return, which the host expects to lead there.
    static func emitReturn(_ emitter: inout Emitter, way: Int32 = 0, exit: UnsafeMutablePointer<UInt8>) {
        emitCompareKey(&emitter, way: way, exit: exit)
        emitter.bytes(0x42, 0xFF, 0xB4, 0x1C)  // push [rsp + r11 + native]
        emitter.long(StateOffset.jumps + way + 24)
        emitter.byte(0xC3)
    }

    /// Leaves unless mode and address space of the entry that r11 leads to are the same.
    static func emitCompareKey(_ emitter: inout Emitter, way: Int32 = 0, exit: UnsafeMutablePointer<UInt8>) {
        emitter.load(HostRegister.address, .state(StateOffset.modeKey))
        emitter.bytes(0x4E, 0x39, 0x94, 0x1C)  // cmp [rsp + r11 + key], r10
        emitter.long(StateOffset.jumps + way + 8)
        emitter.jump(if: 5, to: exit)
    }
}
