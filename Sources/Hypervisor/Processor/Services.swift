// Flags, HLT, time stamps, random numbers, hypercalls, and the rest of the system group.
// Source: Intel SDM vol. 2, one entry an instruction.
// Modelled: all with their privilege checks; MONITOR, MWAIT, RSM, VMX and SVM instructions are #UD.
// Quirks: PAUSE gives the host processor away now and then.

internal import CProcessor
internal import Glibc

// MARK: - Flags and halting

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// PUSHF.
    fileprivate func pushFlags(_ size: UInt8) throws(Fault) {
        if isVirtual8086, iopl < 3 { throw raise(Vector.generalProtection, error: 0) }
        try push(rflags & ~(RFLAGS.virtual8086 | RFLAGS.resume), size: size)
    }

    /// POPF. The block ends when interrupts were opened or the mode changed.
    fileprivate func popFlags(_ size: UInt8) throws(Fault) -> UInt32 {
        if isVirtual8086, iopl < 3 { throw raise(Vector.generalProtection, error: 0) }
        let (key, wereOpen) = (pointee.mode_key, UInt64(pointee.system_flags) & RFLAGS.interrupt != 0)
        let value = try pop(size: size)
        var mask = RFLAGS.implemented & ~(RFLAGS.virtual8086 | RFLAGS.resume)
        if pointee.cpl != 0 { mask &= ~RFLAGS.iopl }
        if pointee.cpl > iopl { mask &= ~RFLAGS.interrupt }
        if size == 2 { mask &= 0xFFFF }
        setRFLAGS(value, writable: mask)
        if size != 2 { clearFlags(RFLAGS.resume) }
        if !wereOpen, UInt64(pointee.system_flags) & RFLAGS.interrupt != 0 { return Status.end }
        return status(since: key)
    }

    @inline(__always) fileprivate func requireInterruptControl() throws(Fault) {
        if pointee.cpl > iopl || (isVirtual8086 && iopl < 3) { throw raise(Vector.generalProtection, error: 0) }
    }
}

func flagsHandler(_ insn: UnsafeMutablePointer<apus_insn>) -> apus_handler? {
    switch insn.pointee.opcode {
    case 0x9C:
        return { cpu, insn in
            attempt { () throws(Fault) in
                try cpu.pushFlags(insn.pointee.op_size)
                return Status.next
            }
        }
    case 0x9D:
        return { cpu, insn in attempt { () throws(Fault) in try cpu.popFlags(insn.pointee.op_size) } }
    case 0xFA:
        return { cpu, _ in
            attempt { () throws(Fault) in
                if cpu.isGuestKernel { return Status.next }
                try cpu.requireInterruptControl()
                cpu.clearFlags(RFLAGS.interrupt)
                return Status.next
            }
        }
    case 0xFB:
        return { cpu, _ in
            attempt { () throws(Fault) in
                if cpu.isGuestKernel { return Status.next }
                try cpu.requireInterruptControl()
                if UInt64(cpu.pointee.system_flags) & RFLAGS.interrupt == 0 {
                    cpu.pointee.system_flags |= UInt32(RFLAGS.interrupt)
                    cpu.pointee.interrupt_shadow = true
                }
                return Status.end
            }
        }
    case 0xF4:
        return { cpu, insn in
            attempt { () throws(Fault) in
                try cpu.requireSupervisor()
                cpu.pointee.rip = cpu.following(insn)
                cpu.pointee.interrupt_shadow = false
                cpu.pointee.halted = true
                cpu.pointee.exit_reason = UInt8(APUS_EXIT_HALT)
                return Status.exit
            }
        }
    default: return nil
    }
}

// MARK: - Everything else

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    fileprivate func requireTimeStamp() throws(Fault) {
        if pointee.cpl != 0, pointee.cr4 & CR4.timeStampDisable != 0 {
            throw raise(Vector.generalProtection, error: 0)
        }
    }

    /// BOUND: signed index against a pair of limits in memory.
    fileprivate func checkBounds(_ insn: Insn) throws(Fault) {
        let (segment, address) = (Int(insn.pointee.segment), effectiveAddress(insn))
        let second = (address &+ UInt64(insn.pointee.op_size)) & addressMask(insn)
        let raw = readGPR(insn.pointee.reg, size: insn.pointee.op_size)
        let (index, low, high): (Int32, Int32, Int32)
        if insn.pointee.op_size == 2 {
            index = Int32(Int16(truncatingIfNeeded: raw))
            low = Int32(Int16(bitPattern: try load(segment, address, as: UInt16.self)))
            high = Int32(Int16(bitPattern: try load(segment, second, as: UInt16.self)))
        } else {
            index = Int32(truncatingIfNeeded: raw)
            low = Int32(bitPattern: try load(segment, address, as: UInt32.self))
            high = Int32(bitPattern: try load(segment, second, as: UInt32.self))
        }
        if index < low || index > high { throw raise(Vector.bound) }
    }

    /// RDRAND and RDSEED: CF tells whether there was a number.
    fileprivate func random(_ insn: Insn, seed: Bool) throws(Fault) {
        let profile = CPUIDProfile.host
        guard seed ? profile.hasSeed : profile.hasRandom else { throw raise(Vector.invalidOpcode) }
        var value: UInt64 = 0
        let success = seed ? apus_host_rdseed(&value) : apus_host_rdrand(&value)
        writeGPR(insn.pointee.rm, size: insn.pointee.op_size, success ? value : 0)
        pointee.arith_flags = success ? 1 : 0
    }

    /// RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE.
    fileprivate func accessBase(_ insn: Insn) throws(Fault) {
        guard is64Bit, pointee.cr4 & CR4.fsgsBase != 0 else { throw raise(Vector.invalidOpcode) }
        let group = (insn.pointee.modrm >> 3) & 7
        let register = segment(group & 1 == 0 ? Seg.fs : Seg.gs)
        let size: UInt8 = insn.pointee.op_size == 8 ? 8 : 4
        if group < 2 {
            writeGPR(insn.pointee.rm, size: size, register.pointee.base)
            return
        }
        let base = readGPR(insn.pointee.rm, size: size)
        guard isCanonical(base) else { throw raise(Vector.generalProtection, error: 0) }
        register.pointee.base = base
    }
}

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// A spinning vCPU gives its host processor away now and then: whom it waits for may need it.
    fileprivate func pauseSpinning() {
        let engine = engine
        guard engine.pointee.isShared else { return }
        engine.pointee.pauses &+= 1
        if engine.pointee.pauses & 63 == 0 { sched_yield() }
    }
}

func serviceHandler(_ insn: UnsafeMutablePointer<apus_insn>) -> apus_handler? {
    let isRegister = insn.pointee.mem == 0
    let group = (insn.pointee.modrm >> 3) & 7
    let isRepeated = insn.pointee.prefixes & UInt8(APUS_PREFIX_REP) != 0
    switch insn.pointee.opcode {
    case 0x101 where isRegister: return registerGroupHandler(insn.pointee.modrm)
    case 0x62 where !isRegister && insn.pointee.vex == 0:
        return { cpu, insn in
            attempt { () throws(Fault) in
                try cpu.checkBounds(insn)
                return Status.next
            }
        }
    // PAUSE; 90 without F3 is no system instruction.
    case 0x90 where isRepeated:
        return { cpu, _ in
            cpu.pauseSpinning()
            return Status.next
        }
    case 0x282 where !isRegister && CPU.mandatoryPrefix(insn.pointee.prefixes) == 0x66:
        return { cpu, insn in
            attempt { () throws(Fault) in
                try cpu.invalidatePCID(insn)
                return Status.end
            }
        }
    case 0x108, 0x109:
        return { cpu, _ in
            attempt { () throws(Fault) in
                try cpu.requirePrivilege()
                cpu.serialize()
                return Status.end
            }
        }
    case 0x131:
        return { cpu, _ in
            attempt { () throws(Fault) in
                try cpu.requireTimeStamp()
                cpu.setEDXEAX(cpu.timeStampCounter)
                return Status.next
            }
        }
    case 0x133:
        // There are no performance counters, so no index is valid.
        return { cpu, _ in
            _ = cpu.raise(Vector.generalProtection, error: 0)
            return Status.fault
        }
    case 0x1A2:
        return { cpu, _ in
            cpu.identify()
            cpu.serialize()
            return Status.end
        }
    case 0x10B, 0x1AA, 0x1B9, 0x1FF:
        return { cpu, insn in
            if cpu.isParavirtual, cpu.identifyForced(insn) { return Status.jump }
            _ = cpu.raise(Vector.invalidOpcode)
            return Status.fault
        }
    case 0x1C7 where isRegister && group == 6:
        return { cpu, insn in
            attempt { () throws(Fault) in
                try cpu.random(insn, seed: false)
                return Status.next
            }
        }
    // RDPID is the engine's own, whatever the host has.
    case 0x1C7 where isRegister && group == 7 && Int(insn.pointee.prefixes) & APUS_PREFIX_REP != 0:
        return { cpu, insn in
            apus_gpr_at(cpu, UInt32(insn.pointee.rm)).pointee = cpu.pointee.tsc_aux & 0xFFFF_FFFF
            return Status.next
        }
    case 0x1C7 where isRegister && group == 7 && !isRepeated:
        return { cpu, insn in
            attempt { () throws(Fault) in
                try cpu.random(insn, seed: true)
                return Status.next
            }
        }
    case 0x1AE where isRegister && isRepeated && group < 4:
        return { cpu, insn in
            attempt { () throws(Fault) in
                try cpu.accessBase(insn)
                return Status.next
            }
        }
    default: return nil
    }
}

/// Group 7 with a register form: each ModRM byte is an instruction of its own.
private func registerGroupHandler(_ modrm: UInt8) -> apus_handler? {
    switch modrm {
    case 0xC1, 0xD9:
        return { cpu, insn in
            if cpu.isParavirtual {
                _ = cpu.raise(Vector.invalidOpcode)
                return Status.fault
            }
            cpu.pointee.rip = cpu.following(insn)
            cpu.pointee.exit_reason = UInt8(APUS_EXIT_HYPERCALL)
            return Status.exit
        }
    case 0xCA, 0xCB:
        return { cpu, insn in
            attempt { () throws(Fault) in
                if cpu.pointee.cpl != 0 { throw cpu.raise(Vector.invalidOpcode) }
                let key = cpu.pointee.mode_key
                if insn.pointee.modrm == 0xCB {
                    cpu.pointee.system_flags |= UInt32(RFLAGS.alignmentCheck)
                } else {
                    cpu.clearFlags(RFLAGS.alignmentCheck)
                }
                cpu.selectTLB()
                return cpu.status(since: key)
            }
        }
    case 0xD0:
        return { cpu, _ in
            attempt { () throws(Fault) in
                guard cpu.pointee.cr4 & CR4.osXSAVE != 0 else { throw cpu.raise(Vector.invalidOpcode) }
                // XCR0, and with index 1 what of it is in use.
                switch cpu.pointee.gpr.1 & 0xFFFF_FFFF {
                case 0: cpu.setEDXEAX(cpu.pointee.xcr0)
                case 1: cpu.setEDXEAX(cpu.pointee.xcr0 & cpu.statesInUse)
                default: throw cpu.raise(Vector.generalProtection, error: 0)
                }
                return Status.next
            }
        }
    case 0xD1:
        return { cpu, _ in
            attempt { () throws(Fault) in
                guard cpu.pointee.cr4 & CR4.osXSAVE != 0 else { throw cpu.raise(Vector.invalidOpcode) }
                try cpu.requirePrivilege()
                try cpu.setXCR0(UInt32(truncatingIfNeeded: cpu.pointee.gpr.1), cpu.edxEAX)
                return Status.end
            }
        }
    case 0xF8:
        return { cpu, _ in
            attempt { () throws(Fault) in
                guard cpu.is64Bit else { throw cpu.raise(Vector.invalidOpcode) }
                try cpu.requireSupervisor()
                let base = cpu.segment(Seg.gs).pointee.base
                cpu.segment(Seg.gs).pointee.base = cpu.pointee.kernel_gs_base
                cpu.pointee.kernel_gs_base = base
                return Status.next
            }
        }
    case 0xF9:
        return { cpu, _ in
            attempt { () throws(Fault) in
                try cpu.requireTimeStamp()
                cpu.setEDXEAX(cpu.timeStampCounter)
                cpu.pointee.gpr.1 = cpu.pointee.tsc_aux & 0xFFFF_FFFF
                return Status.next
            }
        }
    default: return nil
    }
}
