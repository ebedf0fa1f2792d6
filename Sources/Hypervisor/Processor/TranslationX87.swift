// Native forms of x87 and MMX instructions.
// Source: Intel SDM volume 1 chapters 8 and 9, §13.7-13.8 (XSAVE); volume 2 instruction pages.
// Modelled: everything but environments and FNINIT while all x87 exceptions are masked; FIP, FDP and FOP.
// Quirks: the host's own instruction pointer is an address of generated code, so each instruction notes where it is; the
// guest's pointers are made of that when the registers go back into the vCPU.

internal import CProcessor

extension NativePlan {
    static func x87(_ insn: Insn) -> NativePlan {
        guard apus_host_features() & UInt32(APUS_HOST_XSAVE) != 0 else {
            return NativePlan()
        }
        let opcode = insn.pointee.opcode
        let modrm = insn.pointee.modrm
        guard insn.pointee.mem == 0 else {
            switch (opcode, modrm >> 3 & 7) {
            // FLDENV, FNSTENV, FRSTOR, FNSAVE.
            case (0xD9, 4), (0xD9, 6), (0xDD, 4), (0xDD, 6): return NativePlan()
            default: return .plain(.x87)
            }
        }
        switch (opcode, modrm) {
        case (0xDB, 0xE0...0xE1), (0xDB, 0xE4): return .plain(.nothing)
        case (0xDB, 0xE3): return NativePlan()
        // FCOMI and its relatives; FCMOV.
        case (0xDB, 0xE8...0xF7), (0xDF, 0xE8...0xF7): return .flags(.x87, opcode)
        case (0xDA, 0xC0...0xDF), (0xDB, 0xC0...0xDF): return .plain(.x87, reads: 0x45)
        default: return .plain(.x87)
        }
    }

    static func mmx(_ insn: Insn) -> NativePlan {
        apus_host_features() & UInt32(APUS_HOST_XSAVE) != 0 ? .plain(.mmx) : NativePlan()
    }
}

extension Translator {
    /// XRSTOR of the x87 state alone. With some exception unmasked the zero flag is clear, and handlers must do the
    /// work: the host must never raise one.
    static func emitLoadX87(_ emitter: inout Emitter) {
        emitter.stackDepth = 8
        defer { emitter.stackDepth = 0 }
        let (address, scratch) = (HostRegister.address, HostRegister.scratch)
        emitter.insn(0x1B7, 4, scratch, .state(StateOffset.fpu))  // movzx r11d, word [control]
        emitter.insn(0xF7, 4, 2, .register(scratch))
        emitter.insn(0xF7, 4, 0, .register(scratch))
        emitter.long(0x3F)
        let refuse = emitter.jump(if: 5)
        emitter.move(address, 0)
        emitter.move(scratch, 2)
        emitter.bytes(0xB8, 1, 0, 0, 0, 0x31, 0xD2)  // mov eax, 1; xor edx, edx
        emitter.insn(0xC7, 4, 0, .state(StateOffset.fpu + 512))
        emitter.long(1)
        emitter.insn(0x1AE, 8, 5, .state(StateOffset.fpu))  // xrstor64
        emitter.move(0, address)
        emitter.move(2, scratch)
        emitter.load(scratch, .state(StateOffset.fpu + Int32(FXSAVEOffset.instruction)))
        emitter.store(scratch, .state(StateOffset.x87Block))
        emitter.load(scratch, .state(StateOffset.fpu + Int32(FXSAVEOffset.data)))
        emitter.store(scratch, .state(StateOffset.x87Data))
        emitter.insn(0x1B7, 4, scratch, .state(StateOffset.fpu + Int32(FXSAVEOffset.opcode)))
        emitter.insn(0xC1, 4, 4, .register(scratch))
        emitter.byte(16)
        emitter.insn(0x89, 4, scratch, .state(StateOffset.x87Last))
        emitter.insn(0xC7, 4, 0, .state(StateOffset.x87Live))
        emitter.long(1)
        emitter.insn(0x31, 4, scratch, .register(scratch))
        emitter.aim(refuse, emitter.at)
        emitter.byte(0xC3)
    }

    /// Puts the x87 registers back into the vCPU if they are in the host's. Guest registers are saved: rax and rdx are
    /// free.
    static func saveX87(_ emitter: inout Emitter) {
        guard apus_host_features() & UInt32(APUS_HOST_XSAVE) != 0 else { return }
        emitter.insn(0x83, 4, 7, .state(StateOffset.x87Live))
        emitter.byte(0)
        let skip = emitter.jump(if: 4)
        emitter.insn(0xC7, 4, 0, .state(StateOffset.x87Live))
        emitter.long(0)
        emitter.bytes(0xB8, 1, 0, 0, 0, 0x31, 0xD2)  // mov eax, 1; xor edx, edx
        emitter.insn(0x1AE, 8, 4, .state(StateOffset.fpu))  // xsave64
        emitter.insn(0x1B7, 4, 0, .state(StateOffset.x87Last))
        emitter.insn(0x03, 8, 0, .state(StateOffset.x87Block))
        emitter.store(0, .state(StateOffset.fpu + Int32(FXSAVEOffset.instruction)))
        emitter.insn(0x1B7, 4, 0, .state(StateOffset.x87Last + 2))
        emitter.insn(0x89, 2, 0, .state(StateOffset.fpu + Int32(FXSAVEOffset.opcode)))
        emitter.load(0, .state(StateOffset.x87Data))
        emitter.store(0, .state(StateOffset.fpu + Int32(FXSAVEOffset.data)))
        emitter.bytes(0xDB, 0xE3)  // fninit
        emitter.aim(skip, emitter.at)
    }
}

extension Translation {
    /// The MMX instruction has an XMM operand as well.
    func usesXMM(_ index: Int) -> Bool {
        guard let form = VectorForm.of(insn(index)) else { return false }
        return form.reg == .xmm || form.rm == .xmm
    }

    /// Notes this block as the one with the last x87 instruction.
    private mutating func noteX87Block() {
        let scratch = HostRegister.scratch
        emitter.load(scratch, .state(StateOffset.rip))
        if lag != 0 { emitter.insn(0x8D, 8, scratch, .memory(scratch, lag)) }
        emitter.store(scratch, .state(StateOffset.x87Block))
        if width != 8 { noteSelector(UInt8(segmentCS), StateOffset.x87Block) }
    }

    /// Outside 64-bit mode pointers have selectors. SDM vol. 1 §8.1.8.
    private mutating func noteSelector(_ segment: UInt8, _ place: Int32) {
        emitter.insn(0x1B7, 4, HostRegister.scratch, .state(StateOffset.segmentSelector(segment)))
        emitter.insn(0x89, 4, HostRegister.scratch, .state(place + 4))
    }

    /// Notes the effective address in r10.
    private mutating func noteX87Data(_ insn: Insn) {
        emitter.store(HostRegister.address, .state(StateOffset.x87Data))
        if width != 8 { noteSelector(insn.pointee.segment, StateOffset.x87Data) }
    }

    /// The registers were loaded anew in the middle of the block, and FIP points into it: notes it in the block's way.
    mutating func renoteX87() {
        let scratch = HostRegister.scratch
        emitter.load(scratch, .state(StateOffset.x87Block))
        emitter.insn(0x2B, 8, scratch, .state(StateOffset.rip))
        emitter.insn(0x8D, 4, scratch, .memory(scratch, -lag))
        emitter.insn(0x89, 2, scratch, .state(StateOffset.x87Last))
        noteX87Block()
    }

    /// Notes where the last x87 instruction is, and its opcode. SDM vol. 1 §8.1.8.
    private mutating func noteX87(_ insn: Insn) {
        if !knowsX87Block { noteX87Block() }
        knowsX87Block = true
        let opcode = (insn.pointee.opcode & 7) << 8 | UInt16(insn.pointee.modrm)
        emitter.insn(0xC7, 4, 0, .state(StateOffset.x87Last))
        emitter.long(Int32(bitPattern: UInt32(opcode) << 16 | UInt32(insn.pointee.start)))
    }

    mutating func emitX87(_ insn: Insn, _ plan: NativePlan) {
        let opcode = insn.pointee.opcode
        let digit = insn.pointee.modrm >> 3 & 7
        guard insn.pointee.mem != 0 else {
            // FWAIT, FNCLEX and FNSTSW AX leave the pointers alone.
            if opcode == 0x9B { return emitter.byte(0x9B) }
            let isControl = opcode == 0xDB && insn.pointee.modrm == 0xE2 || opcode == 0xDF && insn.pointee.modrm == 0xE0
            prepareFlags(plan)
            if !isControl { noteX87(insn) }
            return emitter.bytes(UInt8(truncatingIfNeeded: opcode), insn.pointee.modrm)
        }
        let isControl = opcode == 0xD9 && digit >= 5 || opcode == 0xDD && digit == 7
        let isLoad: Bool
        let bytes: UInt8
        switch X87Operand.memory(UInt8(truncatingIfNeeded: opcode), digit) {
        case .load(let size): (isLoad, bytes) = (true, size)
        case .store(let size): (isLoad, bytes) = (false, size)
        case .control, .invalid: (isLoad, bytes) = (opcode == 0xD9 && digit == 5, 2)
        }
        clobberFlags(plan)
        loadAddress(insn)
        if !isControl { noteX87Data(insn) }
        addSegment(insn, bytes)
        translateAddress(bytes, write: !isLoad, slot: nearSlot(insn))
        if isControl, isLoad { checkControlWord() }
        if !isControl { noteX87(insn) }
        emitter.insn(opcode, 4, digit, .memory(HostRegister.address, 0))
    }

    /// Gives FLDCW up if the word unmasks something.
    private mutating func checkControlWord() {
        let scratch = HostRegister.scratch
        emitter.insn(0x1B7, 4, scratch, .memory(HostRegister.address, 0))
        emitter.insn(0xF7, 4, 2, .register(scratch))
        emitter.insn(0xF7, 4, 0, .register(scratch))
        emitter.long(0x3F)
        giveUp(if: 5)
    }
}
