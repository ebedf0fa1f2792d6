// MOVS, STOS, LODS, CMPS and SCAS, with and without REP.
// Source: Intel SDM volume 2 (REP, string instructions), volume 1 §7.3.9.
// Modelled: registers hold the progress at a fault and when something outside calls.
// Runs within a page go through host memory at once; everything else goes element by element.

internal import CProcessor

/// Elements after which a repeated instruction looks whether it is called.
private let patience = 4096

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// An index register or counter, as wide as the address size.
    @inline(__always) func counter(_ n: Int, _ insn: Insn) -> UInt64 { gpr[n] & insn.pointee.addr_mask }

    /// Writes an index register or counter; a 32-bit one clears the upper half.
    @inline(__always) func setCounter(_ n: Int, _ insn: Insn, _ value: UInt64) {
        if insn.pointee.addr_size == 2 {
            gpr[n] = gpr[n] & ~0xFFFF | value & 0xFFFF
        } else {
            gpr[n] = value & insn.pointee.addr_mask
        }
    }
    @inline(__always) func advance(_ n: Int, _ insn: Insn, _ bytes: Int) {
        let step = UInt64(bitPattern: Int64(bytes))
        let moved = self.pointee.system_flags & 0x400 != 0 ? gpr[n] &- step : gpr[n] &+ step
        setCounter(n, insn, moved)
    }

    /// Elements of `size` bytes from `linear` to the end of its page.
    @inline(__always) func elementsLeft(_ linear: UInt64, _ size: Int) -> Int {
        (4096 - Int(truncatingIfNeeded: linear & 0xFFF)) / size
    }

    /// How many elements from `offset` on lie in the segment and do not wrap; `linear` is the first's address.
    @inline(__always) func run(_ segment: Int, _ offset: UInt64, _ insn: Insn, _ size: Int) -> (UInt64, Int)? {
        let part = segmentPointer(segment)
        if self.pointee.code_size == 8 {
            let linear = segment >= segmentFS ? part.pointee.base &+ offset : offset
            return (linear, elementsLeft(linear, size))
        }
        // Only plain segments, within their limit.
        guard part.pointee.access & 0x8C == 0x80 || part.pointee.access & 0x88 == 0x88 else { return nil }
        let limit = min(UInt64(part.pointee.limit), insn.pointee.addr_mask)
        guard offset <= limit else { return nil }
        let linear = (part.pointee.base &+ offset) & 0xFFFF_FFFF
        let most = Int(truncatingIfNeeded: (limit &- offset &+ 1) / UInt64(size))
        return (linear, min(most, elementsLeft(linear, size)))
    }

    /// Runs `element` as often as REP says. `element` does one, or as many as it can of those it is
    /// told are left, and returns how many; 0 ends the loop behind one.
    @inline(__always) func repeated(
        _ insn: Insn, _ element: (_ left: Int) throws(Fault) -> Int, until: () -> Bool = { false }
    ) -> UInt32 {
        let repeats = insn.pointee.prefixes & UInt8(APUS_PREFIX_REP | APUS_PREFIX_REPNE) != 0
        do throws(Fault) {
            guard repeats else {
                _ = try element(1)
                return Status.next
            }
            var spent = 0
            while true {
                let left = counter(1, insn)
                if left == 0 { return Status.next }
                let done = try element(Int(truncatingIfNeeded: min(left, UInt64(patience))))
                setCounter(1, insn, left &- UInt64(truncatingIfNeeded: done))
                if until() { return Status.next }
                spent += done
                if spent >= patience {
                    spent = 0
                    if apus_attention(self.pointee.attention) != 0, counter(1, insn) != 0 {
                        self.pointee.rip = self.pointee.rip &+ UInt64(insn.pointee.start)
                        return Status.jump
                    }
                }
            }
        } catch { return Status.fault }
    }

    /// Whether stores of `linear` go straight to host memory.
    @inline(__always) func hostRun(
        _ entries: UnsafeMutablePointer<apus_tlb_entry>, _ linear: UInt64
    ) -> UnsafeMutableRawPointer? {
        lookUp(entries, linear, UInt8.self)
    }
}

@inline(__always) private func moveString<T: Operand>(_ cpu: CPU, _ insn: Insn, _: T.Type) -> UInt32 {
    let size = MemoryLayout<T>.size
    let segment = Int(insn.pointee.segment)
    return cpu.repeated(
        insn,
        { left throws(Fault) in
            let (from, to) = (cpu.counter(6, insn), cpu.counter(7, insn))
            if left > 1, cpu.pointee.system_flags & 0x400 == 0,
                let (source, most) = cpu.run(segment, from, insn, size),
                let (target, room) = cpu.run(segmentES, to, insn, size),
                let input = cpu.hostRun(cpu.pointee.tlb_read, source),
                let output = cpu.hostRun(cpu.pointee.tlb_write, target)
            {
                let count = min(left, min(most, room))
                if count > 1 {
                    copyForward(output, input, count * size, size)
                    cpu.advance(6, insn, count * size)
                    cpu.advance(7, insn, count * size)
                    return count
                }
            }
            try cpu.store(try cpu.load(segment, from, as: T.self), segmentES, to)
            cpu.advance(6, insn, size)
            cpu.advance(7, insn, size)
            return 1
        })
}

/// Copies as single elements in ascending order would, overlaps included.
private func copyForward(
    _ output: UnsafeMutableRawPointer, _ input: UnsafeMutableRawPointer, _ bytes: Int, _ size: Int
) {
    let distance = output - input
    if distance <= 0 || distance >= bytes {
        output.copyMemory(from: input, byteCount: bytes)
        return
    }
    // The output repeats what lies `distance` bytes before it; elements may overlap each other.
    var at = 0
    while at < bytes {
        switch size {
        case 1: output.storeBytes(of: input.load(fromByteOffset: at, as: UInt8.self), toByteOffset: at, as: UInt8.self)
        case 2:
            output.storeBytes(
                of: input.loadUnaligned(fromByteOffset: at, as: UInt16.self), toByteOffset: at, as: UInt16.self)
        case 4:
            output.storeBytes(
                of: input.loadUnaligned(fromByteOffset: at, as: UInt32.self), toByteOffset: at, as: UInt32.self)
        default:
            output.storeBytes(
                of: input.loadUnaligned(fromByteOffset: at, as: UInt64.self), toByteOffset: at, as: UInt64.self)
        }
        at += size
    }
}

@inline(__always) private func storeString<T: Operand>(_ cpu: CPU, _ insn: Insn, _: T.Type) -> UInt32 {
    let size = MemoryLayout<T>.size
    let value = cpu.register(0, T.self)
    return cpu.repeated(
        insn,
        { left throws(Fault) in
            let to = cpu.counter(7, insn)
            if left > 1, cpu.pointee.system_flags & 0x400 == 0,
                let (target, room) = cpu.run(segmentES, to, insn, size),
                let output = cpu.hostRun(cpu.pointee.tlb_write, target)
            {
                let count = min(left, room)
                if count > 1 {
                    for index in 0..<count {
                        output.storeBytes(of: value, toByteOffset: index &* size, as: T.self)
                    }
                    cpu.advance(7, insn, count * size)
                    return count
                }
            }
            try cpu.store(value, segmentES, to)
            cpu.advance(7, insn, size)
            return 1
        })
}

@inline(__always) private func loadString<T: Operand>(_ cpu: CPU, _ insn: Insn, _: T.Type) -> UInt32 {
    cpu.repeated(
        insn,
        { _ throws(Fault) in
            cpu.setRegister(
                0, try cpu.load(Int(insn.pointee.segment), cpu.counter(6, insn), as: T.self))
            cpu.advance(6, insn, MemoryLayout<T>.size)
            return 1
        })
}

/// REPE goes on while ZF is set, REPNE while it is clear.
@inline(__always) private func comparisonEnds(_ cpu: CPU, _ insn: Insn) -> Bool {
    let isEqual = cpu.pointee.arith_flags & 0x40 != 0
    return isEqual != (insn.pointee.prefixes & UInt8(APUS_PREFIX_REP) != 0)
}

@inline(__always) private func compareString<T: Operand>(_ cpu: CPU, _ insn: Insn, _: T.Type) -> UInt32 {
    cpu.repeated(
        insn,
        { _ throws(Fault) in
            let a = try cpu.load(Int(insn.pointee.segment), cpu.counter(6, insn), as: T.self)
            let b = try cpu.load(segmentES, cpu.counter(7, insn), as: T.self)
            cpu.pointee.arith_flags = T.cmp(a, b)
            cpu.advance(6, insn, MemoryLayout<T>.size)
            cpu.advance(7, insn, MemoryLayout<T>.size)
            return 1
        }, until: { comparisonEnds(cpu, insn) })
}

@inline(__always) private func scanString<T: Operand>(_ cpu: CPU, _ insn: Insn, _: T.Type) -> UInt32 {
    cpu.repeated(
        insn,
        { _ throws(Fault) in
            let b = try cpu.load(segmentES, cpu.counter(7, insn), as: T.self)
            cpu.pointee.arith_flags = T.cmp(cpu.register(0, T.self), b)
            cpu.advance(7, insn, MemoryLayout<T>.size)
            return 1
        }, until: { comparisonEnds(cpu, insn) })
}

/// The handler of a string instruction; nil when it is none (INS and OUTS are port I/O).
func stringHandler(_ opcode: UInt16, _ size: UInt8) -> apus_handler? {
    switch opcode {
    case 0xA4, 0xA5:
        return sized(
            size, { moveString($0, $1, UInt8.self) }, { moveString($0, $1, UInt16.self) },
            { moveString($0, $1, UInt32.self) }, { moveString($0, $1, UInt64.self) })
    case 0xA6, 0xA7:
        return sized(
            size, { compareString($0, $1, UInt8.self) }, { compareString($0, $1, UInt16.self) },
            { compareString($0, $1, UInt32.self) }, { compareString($0, $1, UInt64.self) })
    case 0xAA, 0xAB:
        return sized(
            size, { storeString($0, $1, UInt8.self) }, { storeString($0, $1, UInt16.self) },
            { storeString($0, $1, UInt32.self) }, { storeString($0, $1, UInt64.self) })
    case 0xAC, 0xAD:
        return sized(
            size, { loadString($0, $1, UInt8.self) }, { loadString($0, $1, UInt16.self) },
            { loadString($0, $1, UInt32.self) }, { loadString($0, $1, UInt64.self) })
    case 0xAE, 0xAF:
        return sized(
            size, { scanString($0, $1, UInt8.self) }, { scanString($0, $1, UInt16.self) },
            { scanString($0, $1, UInt32.self) }, { scanString($0, $1, UInt64.self) })
    default: return nil
    }
}
