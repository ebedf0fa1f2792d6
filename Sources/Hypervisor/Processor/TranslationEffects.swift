// Which general registers an instruction changes, and which flags are alive behind a block.
// Source: Intel SDM volume 2.
// Modelled: constants added to a register.
// Quirks: of what is not listed, every register may have changed.

internal import CProcessor

extension Translation {
    /// Follows what an instruction does to base registers.
    func apply(_ index: Int, _ open: inout [Int], _ moved: inout [Int32]) {
        let (changed, move) = changes(index)
        if let move {
            moved[Int(move.register)] &+= move.bytes
            if abs(Int(moved[Int(move.register)])) > 1 << 16 { open[Int(move.register)] = -1 }
        }
        guard changed != 0 else { return }
        for register in 0..<16 where changed & 1 << UInt32(register) != 0 { open[register] = -1 }
    }

    private typealias Move = (register: UInt8, bytes: Int32)
    private static var everything: UInt32 { 0xFFFF }

    /// The general registers that an instruction gives other values, and the one that it moves by a constant.
    private func changes(_ index: Int) -> (UInt32, Move?) {
        let (insn, plan) = (insn(index), plans[index])
        let rm: UInt32 =
            insn.pointee.mem != 0 ? 0 : 1 << UInt32(insn.pointee.rm & 15) | 1 << UInt32(insn.pointee.rm_at >> 3 & 15)
        let reg: UInt32 = 1 << UInt32(insn.pointee.reg & 15) | 1 << UInt32(insn.pointee.reg_at >> 3 & 15)
        switch plan.form {
        case .loop: return (2, nil)
        case .moveOffset: return (plan.opcode & 2 != 0 ? 1 : 0, nil)
        case .nothing, .fence, .jumpIf, .jump, .call, .callReturn, .control, .zeroUpper, .bitMemory: return (0, nil)
        case .push, .pushImmediate: return (0, (4, -8))
        case .pop: return (1 << UInt32(insn.pointee.rm & 15), (4, 8))
        case .store: return (writesPlace(plan) ? rm : 0, nil)
        case .load: return (plan.opcode == 0x3A || plan.opcode == 0x3B ? 0 : reg, nil)
        case .single: return single(insn, plan, rm)
        case .loadAddress:
            let isMove =
                insn.pointee.op_size == 8 && insn.pointee.index == UInt8(APUS_NO_REG)
                && insn.pointee.base == insn.pointee.reg
            return isMove ? (0, (insn.pointee.reg, insn.pointee.disp)) : (reg, nil)
        case .moveImmediate, .setIf, .byteSwap, .doubleShift: return (rm | registers(insn.pointee.rm), nil)
        case .convert: return (insn.pointee.opcode == 0x98 ? 1 : 4, nil)
        case .exchange: return (1 | rm | reg | registers(insn.pointee.rm), nil)
        case .direction, .writeBase: return (0, nil)
        case .readState, .readBase: return (registers(insn.pointee.rm), nil)
        case .wideGeneral: return (reg | registers(insn.pointee.vvvv), nil)
        case .extended: return (reg, nil)
        case .vector, .mmx:
            guard let form = VectorForm.of(insn) else { return (plan.form == .mmx ? 0 : Self.everything, nil) }
            let isStore = form.traits.contains(.store)
            let text: UInt32 = form.traits.contains(.string) ? 2 : 0
            return (
                text | (form.reg == .general && !isStore ? reg : 0) | (form.rm == .general && isStore ? rm : 0), nil
            )
        case .wide:
            guard let form = VEXForm.of(insn) else { return (Self.everything, nil) }
            return (2 | (form.reg == .general ? reg : 0) | (form.rm == .general ? rm : 0), nil)
        case .x87: return (1, nil)
        default: return (Self.everything, nil)
        }
    }

    private func registers(_ number: UInt8) -> UInt32 { 1 << UInt32(number & 15) }

    private func single(_ insn: Insn, _ plan: NativePlan, _ rm: UInt32) -> (UInt32, Move?) {
        switch (plan.opcode, plan.extensionCode) {
        case (0xF6, 4...), (0xF7, 4...): return (5 | rm, nil)
        case (0x81, 0), (0x81, 5), (0xFF, 0), (0xFF, 1):
            guard insn.pointee.mem == 0, insn.pointee.op_size == 8 else { return (rm, nil) }
            let bytes = plan.opcode == 0xFF ? 1 : Int64(bitPattern: insn.pointee.imm)
            guard abs(bytes) < 1 << 16 else { return (rm, nil) }
            let isDown = plan.extensionCode != 0
            return (0, (insn.pointee.rm, Int32(isDown ? -bytes : bytes)))
        default: return (writesPlace(plan) ? rm : 0, nil)
        }
    }

    // MARK: Flags behind the block

    func liveAtEnd() -> UInt32 {
        switch plans[count - 1].form {
        case .jump, .call: return liveInto(relative(insn(count - 1)))
        case .callIndirect, .jumpIndirect, .callReturn, .handler, .systemCall, .systemReturn: return NativePlan.allFlags
        default: return liveInto(Int(block.pointee.bytes))
        }
    }

    /// Flags that the code at `offset` from the block's first byte may read before it writes them: all, unless it is
    /// a known block of this page. When code of the page changes, its translations die, so this one does (BlockCache).
    func liveInto(_ offset: Int) -> UInt32 {
        let target = block.pointee.physical &+ UInt64(bitPattern: Int64(offset))
        guard target &>> 12 == block.pointee.physical &>> 12,
            let next = offset == 0 && block.pointee.second == 0 ? block : cpu.engine.pointee.blocks.find(target, key)
        else { return NativePlan.allFlags }
        var (live, killed) = (UInt32(0), UInt32(0))
        for index in 0..<Int(next.pointee.count) {
            let plan = NativePlan.of(UnsafePointer(next.pointee.insns + index), mode: key)
            // Where a conditional jump leads may read whatever is not overwritten before it.
            live |= (plan.form == .jumpIf ? NativePlan.allFlags : plan.reads) & ~killed
            killed |= plan.writes
            if (live | killed) == NativePlan.allFlags { return live }
        }
        return live | NativePlan.allFlags & ~killed
    }
}
