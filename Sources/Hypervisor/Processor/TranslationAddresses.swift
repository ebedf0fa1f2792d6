// The addresses of operands in translated code: effective ones, and linear ones by the segments of 32- and 16-bit code.
// Source: Intel SDM vol. 1 §3.7.5, vol. 3 §3.4.
// Modelled: addresses of 64, 32 and 16 bits; FS and GS, and all segments of real and virtual-8086 mode.
// Quirks: what a segment's limit or rights forbid is left to the instruction's handler.

internal import CProcessor

extension Translation {
    /// The operand's effective address in r10.
    mutating func loadAddress(_ insn: Insn) {
        loadAddress(insn, into: HostRegister.address, max(4, insn.pointee.addr_size))
        if insn.pointee.addr_size == 2 { truncate(HostRegister.address) }
    }

    /// Leaves the lower 16 bits of a host register.
    mutating func truncate(_ register: UInt8) { emitter.insn(0x1B7, 4, register, .register(register)) }

    /// Makes the effective address in r10 a linear one; clobbers flags. In 32-bit code, FS or GS must be writable and have
    /// no limit: else the handler looks.
    mutating func addSegment(_ insn: Insn, _ size: UInt8) {
        let segment = insn.pointee.segment
        if width == 2 { return addRealSegment(segment, Int32(size), short: insn.pointee.addr_size == 2) }
        guard insn.pointee.flat == 0 else { return }
        if width == 4 {
            let scratch = HostRegister.scratch
            let flat = Access.present | Access.nonSystem | Access.writable
            emitter.insn(0x83, 4, 7, .state(StateOffset.segmentLimit(segment)))
            emitter.byte(0xFF)
            giveUp(if: 5)
            emitter.insn(0x1B7, 4, scratch, .state(StateOffset.segmentAccess(segment)))
            emitter.insn(0x81, 4, 4, .register(scratch))
            emitter.long(Int32(flat | Access.code | Access.conforming))
            emitter.insn(0x81, 4, 7, .register(scratch))
            emitter.long(Int32(flat))
            giveUp(if: 5)
        }
        emitter.insn(0x03, width, HostRegister.address, .state(StateOffset.segmentBase(segment)))
    }

    /// The same in real and virtual-8086 mode, where a segment may be longer than 64 KiB, but hardly ever is.
    mutating func addRealSegment(_ segment: UInt8, _ size: Int32, short: Bool) {
        let (address, scratch) = (HostRegister.address, HostRegister.scratch)
        if short {
            emitter.insn(0x81, 4, 7, .register(address))
            emitter.long(0x10000 - size)
        } else {
            emitter.insn(0x89, 4, address, .register(scratch))
            emitter.insn(0x81, 4, 0, .register(scratch))
            emitter.long(size - 1)
            giveUp(if: 2)
            emitter.insn(0x3B, 4, scratch, .state(StateOffset.segmentLimit(segment)))
        }
        giveUp(if: 7)
        emitter.insn(0x03, 4, address, .state(StateOffset.segmentBase(segment)))
    }

    /// LEA: the effective address in a register of the host.
    mutating func loadAddress(_ insn: Insn, into target: UInt8, _ size: UInt8) {
        var displacement = insn.pointee.disp
        var base: UInt8?
        switch insn.pointee.base {
        case UInt8(APUS_NO_REG): break
        case UInt8(APUS_RIP):
            emitter.load(HostRegister.address, .state(StateOffset.rip))
            let (sum, isBeyond) = displacement.addingReportingOverflow(lag)
            if isBeyond {
                emitter.insn(0x8D, 8, HostRegister.address, .memory(HostRegister.address, lag))
            } else {
                displacement = sum
            }
            base = HostRegister.address
        default: base = guest(insn.pointee.base, HostRegister.address)
        }
        if insn.pointee.index != UInt8(APUS_NO_REG) {
            let index = guest(insn.pointee.index, HostRegister.scratch)
            emitter.address(
                target, base: base, index: index, scale: insn.pointee.scale, displacement: displacement, size: size)
        } else if let base {
            if displacement != 0 {
                emitter.insn(0x8D, size, target, .memory(base, displacement))
            } else if base != target || size == 4 {
                emitter.insn(0x89, size, base, .register(target))
            }
        } else {
            emitter.insn(0xC7, 8, 0, .register(target))
            emitter.long(displacement)
            if size == 4 { emitter.insn(0x89, 4, target, .register(target)) }
        }
    }
}
