// Registers of the host that a block borrows: for the guest's r9, r10 and r11, from registers that the block does not name.
// Source: our own design; docs/decisions/0004.md.
// Modelled: blocks that jump to themselves, which keep what they borrowed, and others that use those registers often.
// Quirks: while handlers run, and outside of the block, every register is where it is in all blocks.

internal import CProcessor

extension Translation {
    /// A guest register that usually lies in the vCPU, the one that lies there instead, and the host's register.
    struct Loan {
        let register: UInt8
        let lender: UInt8
        let host: UInt8
    }

    static let inMemory: UInt8 = 0xFF
    /// Where guest registers are.
    static var usualHosts: [16 of UInt8] {
        [0, 1, 2, 3, HostRegister.stack, 5, 6, 7, 8, inMemory, inMemory, inMemory, 12, 13, 14, 15]
    }
    /// RSP, RBP, RSI, r8 and r12 to r15, a bit each: no instruction with a native form uses them without naming them, but for
    /// what `named` knows.
    private static var lenders: UInt32 { 0xF170 }
    /// Uses of a register that are worth the way in and out, and the same around handlers.
    private static var worthwhile: Int { 5 }

    /// Fills `loans` and `hosts`.
    mutating func findLoans() {
        guard width == 8 else { return }
        var named: UInt32 = 0
        var uses: [3 of Int] = [0, 0, 0]
        var (handlers, isLoop) = (0, false)
        for index in 0..<count {
            let (insn, plan) = (insn(index), plans[index])
            if plan.form == .handler {
                handlers += 1
                continue
            }
            named |= self.named(insn, plan)
            for register in 0..<3 { uses[register] += Self.uses(insn, plan, 9 + UInt8(register)) }
            switch plan.form {
            case .jumpIf, .jump, .loop: isLoop = isLoop || relative(insn) == 0
            default: break
            }
        }
        let price = (isLoop ? 0 : Self.worthwhile) + handlers * Self.worthwhile
        var free = Self.lenders & ~named
        while free != 0 {
            var most = 0
            for register in 1..<3 where uses[register] > uses[most] { most = register }
            guard uses[most] > price else { return }
            let lender = UInt8(31 - free.leadingZeroBitCount)
            let loan = Loan(register: 9 + UInt8(most), lender: lender, host: hosts[Int(lender)])
            loans.append(loan)
            hosts[Int(loan.register)] = loan.host
            hosts[Int(lender)] = Self.inMemory
            free &= ~(1 << UInt32(lender))
            uses[most] = 0
        }
    }

    /// General registers that the instruction may name, a bit each; some more do no harm.
    private func named(_ insn: Insn, _ plan: NativePlan) -> UInt32 {
        var found: UInt32 = 1 << UInt32(insn.pointee.reg & 15) | 1 << UInt32(insn.pointee.vvvv & 15)
        if insn.pointee.mem == 0 {
            found |= 1 << UInt32(insn.pointee.rm & 15)
        } else {
            found |= 1 << UInt32(insn.pointee.base & 15) | 1 << UInt32(insn.pointee.index & 15)
        }
        switch plan.form {
        case .push, .pushImmediate, .pop, .call, .callIndirect, .callReturn, .pushFlags, .pushMemory: found |= 1 << 4
        case .leave: found |= 1 << 4 | 1 << 5
        default: break
        }
        return found
    }

    /// How often an instruction uses a general register.
    private static func uses(_ insn: Insn, _ plan: NativePlan, _ register: UInt8) -> Int {
        var found = 0
        if insn.pointee.mem != 0 {
            found += (insn.pointee.base == register ? 1 : 0) + (insn.pointee.index == register ? 1 : 0)
        }
        switch plan.form {
        case .vector, .wide, .mmx, .x87, .jumpIf, .jump, .call, .callReturn: return found
        default: break
        }
        if insn.pointee.mem == 0, insn.pointee.rm == register { found += 1 }
        if insn.pointee.reg == register { found += 1 }
        return insn.pointee.vex != 0 && insn.pointee.vvvv == register ? found + 1 : found
    }

    // MARK: Their code, which leaves flags, r10 and r11 alone

    mutating func borrow() {
        for loan in loans {
            emitter.store(loan.host, .state(Int32(loan.lender) * 8))
            emitter.load(loan.host, .state(Int32(loan.register) * 8))
        }
    }

    /// Every register is where it usually is.
    mutating func settle() {
        for loan in loans {
            emitter.store(loan.host, .state(Int32(loan.register) * 8))
            emitter.load(loan.host, .state(Int32(loan.lender) * 8))
        }
    }

    /// Runs the block once more with what it has borrowed, unless somebody calls.
    mutating func runAgain() {
        isRunAgain = true
        compareAttention()
        emitter.jump(if: 4, to: body)
        settle()
        emitter.jump(to: exit)
    }

    /// Where those who run the block again are sent when it has died or has another translation: to its start.
    mutating func emitReturnHome() {
        block.pointee.again = 0
        guard isRunAgain else { return }
        block.pointee.again = UInt32(body - outer)
        block.pointee.home = UInt32(emitter.at - outer)
        settle()
        emitter.jump(to: inner)
    }
}
