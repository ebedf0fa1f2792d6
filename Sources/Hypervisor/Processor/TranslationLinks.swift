// How translated code leaves a block: to another block, through the jump cache, to the loop.
// Source: our own design; docs/decisions/0004.md.
// Modelled: jumps within a page go straight to the other block, as soon as it is translated.
// Quirks: whoever jumps forward need not look at the attention word.

internal import CProcessor

extension Translation {
    // MARK: Ways out

    /// Adds to RIP as it stands in the vCPU; always of the same length.
    mutating func moveRIP(_ bytes: Int32) {
        emitter.insn(0x81, 8, 0, .state(StateOffset.rip))
        emitter.long(bytes)
    }

    /// Goes on at `offset` from the block's first byte; the host's flags are the guest's or saved. `returning`: where a call
    /// returns to.
    mutating func leave(_ offset: Int, returning: Int? = nil) {
        let live = liveInto(offset)
        if live != 0 { saveFlags(live) }
        guard isInPage(offset) else {
            settle()
            moveRIP(Int32(truncatingIfNeeded: offset) + lag)
            if width == 2 { checkPointer(isBranch: offset != Int(block.pointee.bytes)) }
            return leavePage(returning: returning)
        }
        if let returning {
            settle()
            return callNear(offset, returning: returning)
        }
        if isAgain(offset), !loans.isEmpty { return runAgain() }
        settle()
        if width == 2 {
            moveRIP(Int32(truncatingIfNeeded: offset))
            checkPointer(isBranch: offset != Int(block.pointee.bytes))
        }
        link(emitter.jump(), offset)
    }

    func isInPage(_ offset: Int) -> Bool {
        let target = block.pointee.physical &+ UInt64(bitPattern: Int64(offset))
        return target &>> 12 == block.pointee.physical &>> 12
    }

    /// Whether a branch leads to this block.
    private func isAgain(_ offset: Int) -> Bool {
        offset == 0 && key == block.pointee.mode_key && block.pointee.second == 0
    }

    /// Has the jump at `place` lead to the block at `offset` of this page; flags are saved.
    mutating func link(_ place: UnsafeMutablePointer<UInt8>, _ offset: Int) {
        if isAgain(offset) { return emitter.aim(place, inner) }
        let target = block.pointee.physical &+ UInt64(bitPattern: Int64(offset))
        // Every loop has a jump back, or to another page: that much is enough to look at the attention word.
        let skip = Translator.entryBytes + (offset > 0 ? Translator.pollBytes : 0)
        if let native = cpu.engine.pointee.blocks.find(target, key)?.pointee.native {
            emitter.aim(place, (native - common.executable).assumingMemoryBound(to: UInt8.self) + skip)
        } else {
            unlinked.append((place, width == 2 ? 0 : Int32(truncatingIfNeeded: offset) + lag))
        }
        // The other block may get another translation.
        links.append((place, BlockKey(physical: target, mode: key), skip))
    }

    /// Emits the ways to blocks of the page that are not translated yet.
    mutating func emitUnlinked() {
        for way in unlinked {
            emitter.aim(way.place, emitter.at)
            if way.move != 0 { moveRIP(way.move) }
            emitter.jump(to: width == 2 ? common.exit : common.dispatch)
        }
    }

    /// The same before anything of the branch is done, with a target in r10 that may not be canonical: then the jump
    /// cache does not have it, and its handler raises the exception. `stack`: how far the stack pointer moves; nil: a jump.
    mutating func leaveUnchecked(stack: Int32?) {
        guard width == 8 else {
            commit(stack ?? 0)
            return dispatch()
        }
        let jump = Translator.emitSearch(&emitter)
        strays.append(Stray(jump: jump, index: index, stack: stack ?? 0, isApart: isApart))
        slow.isNeeded = true
        commit(stack ?? 0)
        if stack != nil, predictsReturns { return Translator.emitReturn(&emitter, exit: common.secondReturn) }
        Translator.emitFollow(&emitter, exit: common.second)
    }

    private mutating func commit(_ stack: Int32) {
        settle()
        if stack != 0 { moveStack(stack) }
        emitter.store(HostRegister.address, .state(StateOffset.rip))
    }

    /// Emits the ways of targets that the jump cache does not have.
    mutating func emitStrays() {
        for stray in strays {
            emitter.aim(stray.jump, emitter.at)
            slow = Slow(index: stray.index, isApart: stray.isApart)
            checkTarget()
            if let jump = slow.jumps[0],
                let place = slows.firstIndex(where: { $0.index == stray.index && $0.isApart == stray.isApart })
            {
                joins.append((jump, place))
            }
            commit(stray.stack)
            emitter.jump(to: plans[stray.index].form == .callReturn ? common.secondReturn : common.second)
        }
    }

    /// Goes on by the jump cache, which knows code by its linear address.
    mutating func dispatch(returning: Int? = nil) {
        if let returning { return dispatchCall(returning: returning) }
        if width == 2 {
            emitter.insn(0x03, 4, HostRegister.address, .state(StateOffset.segmentBase(UInt8(segmentCS))))
        }
        Translator.emitDispatch(&emitter, exit: width == 2 ? common.exit : common.second)
    }

    /// IP went beyond 64 KiB: a branch comes out at the segment's other end, which is in another page; whatever runs over the
    /// end is the loop's to refuse.
    private mutating func checkPointer(isBranch: Bool) {
        emitter.insn(0xF7, 4, 0, .state(StateOffset.rip))
        emitter.long(-0x10000)
        guard isBranch else { return emitter.jump(if: 5, to: common.exit) }
        overruns.append(emitter.jump(if: 5))
    }

    /// Emits the ways of branches over the segment's end.
    mutating func emitOverruns() {
        guard !overruns.isEmpty else { return }
        for jump in overruns { emitter.aim(jump, emitter.at) }
        loadWord(HostRegister.address, .state(StateOffset.rip))
        emitter.store(HostRegister.address, .state(StateOffset.rip))
        emitter.jump(to: common.exit)
    }
}
