// What translated blocks have out of line: instructions that are given up, and conditional branches.
// Source: our own design; docs/decisions/0004.md.
// Modelled: an instruction is left to its handler as a whole, and the block goes on behind it.
// Quirks: where accesses share a check, it goes on in the second version (TranslationGroups.swift).

internal import CProcessor

extension Translation {
    /// Emits the ways out of the conditional branches from number `first` on.
    mutating func emitBranches(from first: Int) {
        for branch in branches[first...] {
            (isNative, isSaved, key) = (true, branch.isSaved, branch.key)
            if width != 2, loans.isEmpty, isInPage(branch.offset), isSaved || liveInto(branch.offset) == 0 {
                // Nothing is to be done on the way.
                link(branch.jump, branch.offset)
                continue
            }
            emitter.aim(branch.jump, emitter.at)
            leave(branch.offset)
        }
    }

    mutating func callHandlers(_ index: Int, _ number: Int) {
        settle()
        emitter.loadConstant(HostRegister.scratch, UInt64(UInt(bitPattern: insn(index))))
        emitter.loadConstant(
            HostRegister.address, UInt64(UInt(bitPattern: block)) | UInt64(number) << 48)
        emitter.call(common.handlers)
        borrow()
    }

    mutating func emitSlow() {
        for (number, slow) in slows.enumerated() {
            for each in 0..<slow.jumpCount {
                if let jump = slow.jumps[each] { emitter.aim(jump, emitter.at) }
            }
            for join in joins where join.slow == number { emitter.aim(join.jump, emitter.at) }
            callHandlers(slow.index, slow.number)
            if slow.isVector { loadVector(slow.index + slow.number - 1, upper: slow.hasUpper) }
            if slow.hasX87 {
                loadX87(slow.index + slow.number - 1)
                if slow.knowsX87Block { renoteX87() }
            }
            let next = slow.index + slow.number
            if !slow.isApart, isShared(at: next) {
                enterApart(next)
                continue
            }
            if slow.restores { emitRestore(plans[slow.index + slow.number - 1].liveOut) }
            if let resume = slow.resume { emitter.jump(to: resume) }
        }
    }

    /// Leaves the fast form of the instruction when `condition` holds.
    mutating func giveUp(if condition: UInt8) { slow.add(emitter.jump(if: condition)) }

    mutating func branch(if condition: UInt8, to offset: Int) {
        branches.append(Branch(jump: emitter.jump(if: condition), offset: offset, isSaved: isSaved, key: key))
    }
}
