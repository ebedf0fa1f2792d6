// Native forms of SSE and its relatives, and of the exchanges, divisions and double shifts.
// Source: Intel SDM volume 2; what the operands of vector instructions are is in VectorForms.swift.
// Modelled: all forms on XMM and general registers while SIMD exceptions are masked. MMX, too.
// Quirks: guest XMM registers have the host's numbers; MXCSR is the guest's while they are loaded.

internal import CProcessor

extension Translation {
    /// Bytes of the memory operand, and whether they must be aligned.
    func operand(_ insn: Insn, _ form: VectorForm) -> (UInt8, aligned: Bool) {
        let isWide = Int(insn.pointee.prefixes) & APUS_PREFIX_REXW != 0
        let bytes = form.traits.contains(.generalWidth) ? (isWide ? 8 : 4) : form.bytes
        return (bytes, bytes == 16 && form.traits.contains(.aligned))
    }

    /// MMX registers are numbered without REX. EMMS has no operands.
    mutating func emitVector(_ insn: Insn, _ plan: NativePlan) {
        if plan.form == .mmx, insn.pointee.opcode == 0x177 { return emitter.bytes(0x0F, 0x77) }
        guard let form = VectorForm.of(insn) else { return }
        let traits = form.traits
        let isWide = Int(insn.pointee.prefixes) & APUS_PREFIX_REXW != 0
        let isStore = traits.contains(.store)
        var (rm, reg) = (insn.pointee.rm, insn.pointee.reg)
        var place: HostPlace
        if insn.pointee.mem != 0 {
            let (bytes, aligned) = operand(insn, form)
            place = memory(insn, bytes, write: isStore, plan, aligned: aligned)
        } else {
            if form.rm == .general { rm = guest(rm, HostRegister.address) }
            if form.rm == .mmx { rm &= 7 }
            place = .register(rm)
        }
        prepareFlags(plan)
        if traits.contains(.group) {
            reg = insn.pointee.modrm >> 3 & 7
        } else if form.reg == .general {
            reg = guest(reg, HostRegister.scratch)
        } else if form.reg == .mmx {
            reg &= 7
        }
        let usesWide = isWide && (form.reg == .general || form.rm == .general || traits.contains(.string))
        emitter.vector(
            insn.pointee.opcode, prefix: CPU.mandatoryPrefix(insn.pointee.prefixes), wide: usesWide, reg, place)
        if traits.contains(.immediate) { emitter.byte(insn.pointee.immediate) }
        if form.reg == .general, !isStore { giveBack(insn.pointee.reg, reg) }
        if form.rm == .general, isStore, insn.pointee.mem == 0 { giveBack(insn.pointee.rm, rm) }
    }

    /// LDMXCSR and STMXCSR; a value that is reserved or unmasks something is left to the handler.
    mutating func emitControl(_ insn: Insn, _ plan: NativePlan) {
        let isStore = insn.pointee.modrm >> 3 & 7 == 3
        let place = memory(insn, 4, write: isStore, plan)
        if !isStore {
            let scratch = HostRegister.scratch
            emitter.insn(0x8B, 4, scratch, place)
            emitter.insn(0x81, 4, 6, .register(scratch))  // xor
            emitter.long(0x1F80)
            emitter.insn(0xF7, 4, 0, .register(scratch))
            emitter.long(Int32(bitPattern: ~apus_host_mxcsr_mask() | 0x1F80))
            giveUp(if: 5)
        }
        emitter.insn(0x1AE, 4, isStore ? 3 : 2, place)
    }

    /// An instruction with AH, CH, DH or BH and no memory operand: as the guest wrote it, without REX.
    mutating func emitHighBytes(_ insn: Insn, _ plan: NativePlan) {
        if insn.pointee.mem != 0 { return emitStoreHighByte(insn, plan) }
        func number(_ place: UInt8) -> UInt8 { place >> 3 | (place & 1) << 2 }
        let rm = HostPlace.register(number(insn.pointee.rm_at))
        prepareFlags(plan)
        emitter.hasHighBytes = true
        switch plan.form {
        case .store: emitter.insn(plan.opcode, 1, number(insn.pointee.reg_at), rm)
        case .load:
            let size = insn.pointee.op_size
            emitter.insn(
                plan.opcode, plan.opcode >= 0x100 ? min(size, 4) : 1,
                plan.opcode >= 0x100 ? insn.pointee.reg : number(insn.pointee.reg_at), rm)
        case .setIf: emitter.insn(plan.opcode, 1, 0, rm)
        case .moveImmediate:
            emitter.insn(0xC6, 1, 0, rm)
            emitter.byte(UInt8(truncatingIfNeeded: insn.pointee.imm))
        default:
            emitter.insn(plan.opcode, 1, plan.extensionCode, rm)
            switch plan.opcode {
            case 0x80, 0xC6: emitter.byte(UInt8(truncatingIfNeeded: insn.pointee.imm))
            case 0xF6: if plan.extensionCode < 2 { emitter.byte(UInt8(truncatingIfNeeded: insn.pointee.imm)) }
            case 0xC0:
                emitter.byte(insn.pointee.opcode >= 0xD0 ? 1 : UInt8(truncatingIfNeeded: insn.pointee.imm))
            default: break
            }
        }
        emitter.hasHighBytes = false
    }

    /// XCHG, XADD, CMPXCHG, CMPXCHG8B and 16B.
    mutating func emitExchangeMemory(_ insn: Insn, _ plan: NativePlan) {
        let isPair = plan.opcode == 0x1C7
        let size = insn.pointee.op_size
        let isWide = isPair && size == 8
        let place = memory(insn, isPair ? (isWide ? 16 : 8) : size, write: true, plan, aligned: isWide)
        prepareFlags(plan)
        let source = isPair ? 1 : guest(insn.pointee.reg, HostRegister.scratch)
        if plan.isLocked { emitter.byte(0xF0) }
        emitter.insn(plan.opcode, isPair && !isWide ? 4 : size, source, place)
        // CMPXCHG only reads its register.
        if plan.opcode != 0x1B0, plan.opcode != 0x1B1, !isPair { giveBack(insn.pointee.reg, source) }
    }

    /// DIV and IDIV; whatever might raise #DE is left to the handler.
    mutating func emitDivide(_ insn: Insn, _ plan: NativePlan) {
        let size = insn.pointee.op_size
        let (address, scratch) = (HostRegister.address, HostRegister.scratch)
        // #DE is likely enough that its frame shall hold the flags even if nobody reads them.
        saveFlags()
        clobberFlags(plan)
        var divisor = address
        if insn.pointee.mem != 0 {
            let place = memory(insn, size, write: false, plan)
            emitter.insn(0x8B, size, address, place)
        } else {
            divisor = guest(insn.pointee.rm, address)
        }
        if plan.extensionCode == 6 {
            emitter.insn(0x39, size, divisor, .register(2))
            giveUp(if: 3)
        } else {
            emitter.insn(0x89, size, 0, .register(scratch))
            emitter.insn(0xC1, size, 7, .register(scratch))
            emitter.byte(size * 8 - 1)
            emitter.insn(0x39, size, 2, .register(scratch))
            giveUp(if: 5)
            emitter.insn(0x8D, size, scratch, .memory(divisor, 1))
            emitter.insn(0x83, size, 7, .register(scratch))
            emitter.byte(1)
            giveUp(if: 6)
        }
        prepareFlags(plan)
        emitter.insn(0xF7, size, plan.extensionCode, .register(divisor))
    }

    /// SHLD and SHRD of registers.
    mutating func emitDoubleShift(_ insn: Insn, _ plan: NativePlan) {
        prepareFlags(plan)
        let target = guest(insn.pointee.rm, HostRegister.address)
        let source = guest(insn.pointee.reg, HostRegister.scratch)
        emitter.insn(plan.opcode, insn.pointee.op_size, source, .register(target))
        if plan.opcode & 1 == 0 { emitter.byte(UInt8(truncatingIfNeeded: insn.pointee.imm)) }
        giveBack(insn.pointee.rm, target)
    }
}
