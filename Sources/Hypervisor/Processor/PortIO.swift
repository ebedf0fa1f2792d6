// IN, OUT, INS and OUTS, with the privilege checks of port accesses.
// Source: Intel SDM vol. 1 §18.5 (IOPL, I/O permission bitmap), vol. 2 (IN, INS, OUT, OUTS).
// Modelled: IOPL, TSS bitmap, all sizes; repeated string I/O moves a page at a time where memory is RAM.
// A repeated INS or OUTS leaves the block after each page, so interrupts are taken between pages.

internal import CProcessor

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// Raises #GP(0) unless the current task may reach `bytes` ports from `port` on.
    @inline(__always) func checkPort(_ port: UInt16, _ bytes: UInt8) throws(Fault) {
        if pointee.cpl > iopl || isVirtual8086 { try checkPortBitmap(port, bytes) }
        if pointee.mode_key & ModeKey.trap.rawValue != 0 { watchPort(port, bytes) }
    }

    @inline(never) private func checkPortBitmap(_ port: UInt16, _ bytes: UInt8) throws(Fault) {
        guard pointee.cr0 & CR0.protection != 0 else { return }
        if isParavirtual, pv.pointee.portLevel >= (isGuestKernel ? 1 : 3) { return }
        let tss = segment(Seg.tr).pointee
        guard tss.access & Access.present != 0, tss.access & 0xD == 9, tss.limit >= 0x67 else {
            throw raise(Vector.generalProtection, error: 0)
        }
        let offset = UInt64(try loadSystem(linear(tss.base &+ 0x66), as: UInt16.self)) + UInt64(port >> 3)
        guard offset + 1 <= UInt64(tss.limit) else { throw raise(Vector.generalProtection, error: 0) }
        let bits = try loadSystem(linear(tss.base &+ offset), as: UInt16.self) >> (port & 7)
        guard bits & ((1 << UInt16(bytes)) - 1) == 0 else { throw raise(Vector.generalProtection, error: 0) }
    }

    /// IN to AL, AX or EAX.
    @inline(__always) func portIn(_ port: UInt16, _ bytes: UInt8) throws(Fault) {
        try checkPort(port, bytes)
        let value = UInt64(bus.readPort(port, size: Int(bytes)))
        switch bytes {
        case 1: pointee.gpr.0 = pointee.gpr.0 & ~0xFF | value & 0xFF
        case 2: pointee.gpr.0 = pointee.gpr.0 & ~0xFFFF | value & 0xFFFF
        default: pointee.gpr.0 = value & 0xFFFF_FFFF
        }
    }

    /// OUT from AL, AX or EAX.
    @inline(__always) func portOut(_ port: UInt16, _ bytes: UInt8) throws(Fault) {
        try checkPort(port, bytes)
        let mask: UInt32 = bytes == 4 ? .max : (1 << (UInt32(bytes) * 8)) - 1
        bus.writePort(port, size: Int(bytes), value: UInt32(truncatingIfNeeded: pointee.gpr.0) & mask)
    }

    /// INS or OUTS, repeated or not.
    func stringPort(_ insn: Insn, isRead: Bool) throws(Fault) -> UInt32 {
        let bytes = portSize(insn)
        let port = UInt16(truncatingIfNeeded: pointee.gpr.2)
        try checkPort(port, bytes)
        let mask = addressMask(insn)
        let isRepeated = insn.pointee.prefixes & UInt8(APUS_PREFIX_REP | APUS_PREFIX_REPNE) != 0
        guard isRepeated else {
            try moveElement(insn, port, bytes, isRead: isRead)
            return Status.end
        }
        let count = pointee.gpr.1 & mask
        guard count != 0 else { return Status.next }
        var done = try movePage(insn, port, bytes, count: count, isRead: isRead)
        if done == 0 {
            try moveElement(insn, port, bytes, isRead: isRead)
            done = 1
        }
        setMasked(&pointee.gpr.1, count &- done, mask)
        if count == done { return Status.end }
        pointee.rip = pointee.rip &+ UInt64(insn.pointee.start)
        return Status.jump
    }

    /// Segment and offset of the memory side.
    private func memorySide(_ insn: Insn, isRead: Bool) -> (segment: Int, offset: UInt64) {
        let mask = addressMask(insn)
        return isRead
            ? (Seg.es, pointee.gpr.7 & mask) : (Int(insn.pointee.segment), pointee.gpr.6 & mask)
    }

    /// Moves RDI or RSI by `elements` in the direction of DF.
    private func advanceIndex(_ insn: Insn, _ elements: UInt64, _ bytes: UInt8, isRead: Bool) {
        let mask = addressMask(insn)
        var distance = elements &* UInt64(bytes)
        if UInt64(pointee.system_flags) & RFLAGS.direction != 0 { distance = 0 &- distance }
        if isRead {
            setMasked(&pointee.gpr.7, pointee.gpr.7 &+ distance, mask)
        } else {
            setMasked(&pointee.gpr.6, pointee.gpr.6 &+ distance, mask)
        }
    }

    /// Writes a register as an address size does: 32 bits clear the upper half, 16 keep the rest.
    private func setMasked(_ register: inout UInt64, _ value: UInt64, _ mask: UInt64) {
        register = mask == 0xFFFF ? register & ~mask | value & mask : value & mask
    }

    private func moveElement(_ insn: Insn, _ port: UInt16, _ bytes: UInt8, isRead: Bool) throws(Fault) {
        let (segment, offset) = memorySide(insn, isRead: isRead)
        if isRead {
            // The port is read only when the store will succeed.
            try probeWrite(segment, offset, Int(bytes))
            let value = bus.readPort(port, size: Int(bytes))
            switch bytes {
            case 1: try store(UInt8(truncatingIfNeeded: value), segment, offset)
            case 2: try store(UInt16(truncatingIfNeeded: value), segment, offset)
            default: try store(value, segment, offset)
            }
        } else {
            let value: UInt32
            switch bytes {
            case 1: value = UInt32(try load(segment, offset, as: UInt8.self))
            case 2: value = UInt32(try load(segment, offset, as: UInt16.self))
            default: value = try load(segment, offset, as: UInt32.self)
            }
            bus.writePort(port, size: Int(bytes), value: value)
        }
        advanceIndex(insn, 1, bytes, isRead: isRead)
    }

    /// Moves as many elements as lie in one page of RAM; 0 where that is not possible.
    private func movePage(
        _ insn: Insn, _ port: UInt16, _ bytes: UInt8, count: UInt64, isRead: Bool
    ) throws(Fault) -> UInt64 {
        if isWatched { return 0 }
        let (segment, offset) = memorySide(insn, isRead: isRead)
        let size = UInt64(bytes)
        let descending = UInt64(pointee.system_flags) & RFLAGS.direction != 0
        let inPage = offset & 0xFFF
        // Elements that lie wholly in this page, from the current one on.
        var elements = descending ? inPage / size + 1 : (0x1000 - inPage) / size
        if inPage + size > 0x1000 { elements = 0 }
        elements = min(elements, count)
        guard elements > 1 else { return 0 }
        let lowest = descending ? offset &- (elements - 1) &* size : offset
        // The segment's base may shift page borders: linear addresses decide.
        let start = try linearAddress(segment, lowest, Int(elements * size), write: isRead)
        guard start & 0xFFF &+ elements &* size <= 0x1000 else { return 0 }
        let place = try place(start, write: isRead, mode: pointee.tlb_mode)
        guard place.host != nil, !isRead || place.isWritable, place.code.map({ $0.pointee == 0 }) ?? true || !isRead
        else { return 0 }
        bus.transferPort(
            port, size: Int(bytes), count: Int(elements), address: place.physical, isRead: isRead,
            descending: descending)
        advanceIndex(insn, elements, bytes, isRead: isRead)
        return elements
    }

    /// 1 for the byte forms, else 2 or 4.
    @inline(__always) fileprivate func portSize(_ insn: Insn) -> UInt8 {
        insn.pointee.opcode & 1 == 0 ? 1 : min(insn.pointee.op_size, 4)
    }
}

/// IN, OUT, INS, OUTS.
func portHandler(_ insn: UnsafeMutablePointer<apus_insn>) -> apus_handler? {
    switch insn.pointee.opcode {
    case 0xE4, 0xE5:
        return { cpu, insn in
            attempt { () throws(Fault) in
                try cpu.portIn(UInt16(insn.pointee.imm & 0xFF), cpu.portSize(insn))
                return Status.next
            }
        }
    case 0xEC, 0xED:
        return { cpu, insn in
            attempt { () throws(Fault) in
                try cpu.portIn(UInt16(truncatingIfNeeded: cpu.pointee.gpr.2), cpu.portSize(insn))
                return Status.next
            }
        }
    case 0xE6, 0xE7:
        return { cpu, insn in
            attempt { () throws(Fault) in
                try cpu.portOut(UInt16(insn.pointee.imm & 0xFF), cpu.portSize(insn))
                return Status.end
            }
        }
    case 0xEE, 0xEF:
        return { cpu, insn in
            attempt { () throws(Fault) in
                try cpu.portOut(UInt16(truncatingIfNeeded: cpu.pointee.gpr.2), cpu.portSize(insn))
                return Status.end
            }
        }
    case 0x6C, 0x6D:
        return { cpu, insn in attempt { () throws(Fault) in try cpu.stringPort(insn, isRead: true) } }
    case 0x6E, 0x6F:
        return { cpu, insn in attempt { () throws(Fault) in try cpu.stringPort(insn, isRead: false) } }
    default: return nil
    }
}
