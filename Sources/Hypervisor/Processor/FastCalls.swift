// SYSCALL, SYSRET, SYSENTER and SYSEXIT.
// Source: Intel SDM vol. 2, one entry an instruction; AMD APM vol. 3 (SYSCALL in compatibility mode).
// Modelled: all four with their privilege checks.
// Quirks: SYSCALL outside 64-bit mode exists only where the host's vendor has it.

internal import CProcessor

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// Loads CS and SS with the fixed, flat descriptors of fast system calls.
    fileprivate func setFlat(code selector: UInt16, stack: UInt16, cpl: UInt8, isLong: Bool) {
        apus_set_flat(self, selector, stack, cpl, isLong)
    }

    fileprivate func systemCall(_ insn: Insn) throws(Fault) {
        guard pointee.protected_mode, pointee.efer & EFER.syscall != 0,
            is64Bit || CPUIDProfile.host.isAMD
        else { throw raise(Vector.invalidOpcode) }
        let selector = UInt16(truncatingIfNeeded: pointee.star >> 32)
        let next = following(insn)
        pointee.gpr.1 = next
        if pointee.long_mode {
            pointee.gpr.11 = rflags & ~RFLAGS.resume
            pointee.rip = is64Bit ? pointee.lstar : pointee.cstar
            let flags = rflags & ~(pointee.sfmask | RFLAGS.resume)
            pointee.arith_flags = UInt32(truncatingIfNeeded: flags & RFLAGS.arithmetic)
            pointee.system_flags = UInt32(truncatingIfNeeded: flags & ~RFLAGS.arithmetic) | 2
        } else {
            pointee.rip = pointee.star & 0xFFFF_FFFF
            clearFlags(RFLAGS.interrupt | RFLAGS.resume | RFLAGS.virtual8086)
        }
        setFlat(code: selector & 0xFFFC, stack: (selector & 0xFFFC) &+ 8, cpl: 0, isLong: pointee.long_mode)
        updateMode()
    }

    fileprivate func systemReturn(_ insn: Insn) throws(Fault) {
        guard pointee.protected_mode, pointee.efer & EFER.syscall != 0, is64Bit || CPUIDProfile.host.isAMD else {
            throw raise(Vector.invalidOpcode)
        }
        try requireSupervisor()
        let selector = UInt16(truncatingIfNeeded: pointee.star >> 48)
        let toLong = insn.pointee.op_size == 8
        if toLong, !isCanonical(pointee.gpr.1) { throw raise(Vector.generalProtection, error: 0) }
        pointee.rip = toLong ? pointee.gpr.1 : pointee.gpr.1 & 0xFFFF_FFFF
        if pointee.long_mode {
            let kept = RFLAGS.implemented & ~(RFLAGS.resume | RFLAGS.virtual8086)
            let flags = pointee.gpr.11 & kept
            pointee.arith_flags = UInt32(truncatingIfNeeded: flags & RFLAGS.arithmetic)
            pointee.system_flags = UInt32(truncatingIfNeeded: flags & ~RFLAGS.arithmetic) | 2
        } else {
            pointee.system_flags |= UInt32(RFLAGS.interrupt)
        }
        setFlat(code: toLong ? selector &+ 16 : selector, stack: selector &+ 8, cpl: 3, isLong: toLong)
        updateMode()
        noteProgram()
    }

    fileprivate func systemEnter() throws(Fault) {
        let selector = UInt16(truncatingIfNeeded: pointee.sysenter_cs)
        guard pointee.cr0 & CR0.protection != 0, selector & 0xFFFC != 0 else {
            throw raise(Vector.generalProtection, error: 0)
        }
        clearFlags(RFLAGS.virtual8086 | RFLAGS.interrupt | RFLAGS.resume)
        let isLong = pointee.long_mode
        pointee.gpr.4 = isLong ? pointee.sysenter_esp : pointee.sysenter_esp & 0xFFFF_FFFF
        pointee.rip = isLong ? pointee.sysenter_eip : pointee.sysenter_eip & 0xFFFF_FFFF
        setFlat(code: selector & 0xFFFC, stack: (selector & 0xFFFC) &+ 8, cpl: 0, isLong: isLong)
        updateMode()
    }

    fileprivate func systemExit(_ insn: Insn) throws(Fault) {
        let selector = UInt16(truncatingIfNeeded: pointee.sysenter_cs)
        guard pointee.protected_mode, pointee.cpl == 0, selector & 0xFFFC != 0 else {
            throw raise(Vector.generalProtection, error: 0)
        }
        let toLong = insn.pointee.op_size == 8
        if toLong, !isCanonical(pointee.gpr.1) || !isCanonical(pointee.gpr.2) {
            throw raise(Vector.generalProtection, error: 0)
        }
        pointee.gpr.4 = toLong ? pointee.gpr.1 : pointee.gpr.1 & 0xFFFF_FFFF
        pointee.rip = toLong ? pointee.gpr.2 : pointee.gpr.2 & 0xFFFF_FFFF
        setFlat(code: selector &+ (toLong ? 32 : 16), stack: selector &+ (toLong ? 40 : 24), cpl: 3, isLong: toLong)
        updateMode()
    }
}

func fastCallHandler(_ insn: UnsafeMutablePointer<apus_insn>) -> apus_handler? {
    switch insn.pointee.opcode {
    case 0x105:
        return { cpu, insn in
            attempt { () throws(Fault) in
                cpu.pointee.departures &+= 1
                if cpu.isParavirtual { return try cpu.paravirtualCall(insn) }
                try cpu.systemCall(insn)
                return Status.jump
            }
        }
    case 0x107:
        return { cpu, insn in
            attempt { () throws(Fault) in
                try cpu.systemReturn(insn)
                return Status.jump
            }
        }
    case 0x134:
        return { cpu, _ in
            attempt { () throws(Fault) in
                if cpu.isParavirtual { return try cpu.paravirtualEnter() }
                try cpu.systemEnter()
                return Status.jump
            }
        }
    case 0x135:
        return { cpu, insn in
            attempt { () throws(Fault) in
                try cpu.systemExit(insn)
                return Status.jump
            }
        }
    default: return nil
    }
}
