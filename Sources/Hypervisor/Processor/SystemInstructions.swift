// The system half's instruction table, and loads and stores of segment registers.
// Source: Intel SDM vol. 2, one entry an instruction.
// Modelled: all of them with their privilege checks; not modelled: RSM (SMM is not offered, so #UD).
// Handlers that change the mode return APUS_END, so that the next block is looked up anew.

internal import CProcessor

/// The handler of a system instruction; nil: not one of these.
func systemHandler(_ insn: UnsafeMutablePointer<apus_insn>) -> apus_handler? {
    transferHandler(insn) ?? portHandler(insn) ?? segmentHandler(insn) ?? flagsHandler(insn) ?? tableHandler(insn)
        ?? controlHandler(insn) ?? msrHandler(insn) ?? fastCallHandler(insn) ?? serviceHandler(insn)
}

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    func systemHandler(_ insn: UnsafeMutablePointer<apus_insn>) -> apus_handler? { Processor.systemHandler(insn) }

    /// NEXT, or END when what decoding depends on is no longer as in `key`.
    @inline(__always) func status(since key: UInt32) -> UInt32 {
        pointee.mode_key == key ? Status.next : Status.end
    }

    /// Pops a segment register; the stack pointer moves only when everything succeeded.
    func popSegment(_ index: Int, size: UInt8) throws(Fault) {
        var stack = Stack(current: self)
        let selector = UInt16(truncatingIfNeeded: try stack.pop(size: size))
        try loadSegment(index, selector: selector)
        stack.commitPointer()
    }

    /// LDS, LES, LSS, LFS, LGS.
    func loadPointer(_ insn: Insn, _ index: Int) throws(Fault) -> UInt32 {
        let key = pointee.mode_key
        let target = try loadFarPointer(insn)
        try loadSegment(index, selector: target.selector)
        writeGPR(insn.pointee.reg, size: insn.pointee.op_size, target.offset)
        return status(since: key)
    }
}

/// What the segment registers' own instructions do.
private func segmentHandler(_ insn: UnsafeMutablePointer<apus_insn>) -> apus_handler? {
    switch insn.pointee.opcode {
    case 0x06, 0x0E, 0x16, 0x1E:
        return { cpu, insn in
            attempt { () throws(Fault) in
                if cpu.is64Bit { throw cpu.raise(Vector.invalidOpcode) }
                try cpu.push(
                    UInt64(cpu.segment(Int(insn.pointee.opcode >> 3)).pointee.selector), size: insn.pointee.op_size)
                return Status.next
            }
        }
    case 0x1A0, 0x1A8:
        return { cpu, insn in
            attempt { () throws(Fault) in
                let index = insn.pointee.opcode == 0x1A0 ? Seg.fs : Seg.gs
                try cpu.push(UInt64(cpu.segment(index).pointee.selector), size: insn.pointee.op_size)
                return Status.next
            }
        }
    case 0x07, 0x17, 0x1F:
        return { cpu, insn in
            attempt { () throws(Fault) in
                if cpu.is64Bit { throw cpu.raise(Vector.invalidOpcode) }
                let key = cpu.pointee.mode_key
                let index = Int(insn.pointee.opcode >> 3)
                try cpu.popSegment(index, size: insn.pointee.op_size)
                guard index == Seg.ss else { return cpu.status(since: key) }
                cpu.pointee.interrupt_shadow = true
                return Status.end
            }
        }
    case 0x1A1, 0x1A9:
        return { cpu, insn in
            attempt { () throws(Fault) in
                let key = cpu.pointee.mode_key
                try cpu.popSegment(insn.pointee.opcode == 0x1A1 ? Seg.fs : Seg.gs, size: insn.pointee.op_size)
                return cpu.status(since: key)
            }
        }
    case 0x8C:
        return { cpu, insn in
            attempt { () throws(Fault) in
                let index = Int((insn.pointee.modrm >> 3) & 7)
                if index > Seg.gs { throw cpu.raise(Vector.invalidOpcode) }
                try cpu.storeSelector(insn, cpu.segment(index).pointee.selector)
                return Status.next
            }
        }
    case 0x8E:
        return { cpu, insn in
            attempt { () throws(Fault) in
                let key = cpu.pointee.mode_key
                let index = Int((insn.pointee.modrm >> 3) & 7)
                if index > Seg.gs || index == Seg.cs { throw cpu.raise(Vector.invalidOpcode) }
                try cpu.loadSegment(index, selector: try cpu.loadSelector(insn))
                guard index == Seg.ss else { return cpu.status(since: key) }
                cpu.pointee.interrupt_shadow = true
                return Status.end
            }
        }
    default: return pointerHandler(insn)
    }
}

/// LES, LDS, LSS, LFS, LGS.
private func pointerHandler(_ insn: UnsafeMutablePointer<apus_insn>) -> apus_handler? {
    guard insn.pointee.mem != 0, insn.pointee.vex == 0 else { return nil }
    switch insn.pointee.opcode {
    case 0xC4: return { cpu, insn in attempt { () throws(Fault) in try cpu.loadPointer(insn, Seg.es) } }
    case 0xC5: return { cpu, insn in attempt { () throws(Fault) in try cpu.loadPointer(insn, Seg.ds) } }
    case 0x1B2:
        return { cpu, insn in
            attempt { () throws(Fault) in
                _ = try cpu.loadPointer(insn, Seg.ss)
                return Status.end
            }
        }
    case 0x1B4: return { cpu, insn in attempt { () throws(Fault) in try cpu.loadPointer(insn, Seg.fs) } }
    case 0x1B5: return { cpu, insn in attempt { () throws(Fault) in try cpu.loadPointer(insn, Seg.gs) } }
    default: return nil
    }
}
