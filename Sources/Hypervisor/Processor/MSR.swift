// Model-specific registers that belong to the processor; all others are the machine's.
// Source: Intel SDM vol. 4 (architectural MSRs), vol. 3 §11.11 (MTRR), §11.12 (PAT); AMD APM vol. 2 §A.
// Modelled: EFER, SYSCALL, SYSENTER, segment bases, TSC, MTRR, PAT; not modelled: performance counters, LBR, DEBUGCTL.
// Registers that systems read without asking CPUID first (microcode, machine check, AMD's HWCR ...) read as zero.

internal import CProcessor

/// Host TSC value that is the guest's zero: one for the whole process, so that all vCPUs agree.
private let timeStampOrigin = apus_host_tsc()

/// IA32_ARCH_CAPABILITIES: every guest access is checked by software, so none of the leaks through faulting
/// loads, stale buffers or branch history exist between a guest's kernel and its programs (SDM vol. 4, MSR 10AH).
/// RDCL_NO, IBRS_ALL, SKIP_L1DFL, SSB_NO, MDS_NO, PSCHANGE_MC_NO, TAA_NO, SBDR, FBSDP, PSDP, BHI, PBRSB, GDS, RFDS, ITS.
private let speculationImmunity: UInt64 =
    0x17B | 1 << 13 | 1 << 14 | 1 << 15 | 1 << 20 | 1 << 24 | 1 << 26 | 1 << 27 | 1 << 62

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// The guest's time stamp counter.
    @inline(__always) var timeStampCounter: UInt64 { apus_host_tsc() &+ pointee.tsc_offset }

    /// Power-on values.
    func resetMSRs() {
        (pointee.star, pointee.lstar, pointee.cstar, pointee.sfmask, pointee.kernel_gs_base) = (0, 0, 0, 0, 0)
        (pointee.sysenter_cs, pointee.sysenter_esp, pointee.sysenter_eip) = (0, 0, 0)
        pointee.tsc_offset = 0 &- timeStampOrigin
        pointee.tsc_aux = 0
        pointee.pat = 0x0007_0406_0007_0406
        pointee.apic_base = 0xFEE0_0800
        pointee.misc_enable = 1 | 1 << 11 | 1 << 12
        pointee.xss = 0
        pointee.spec_ctrl = 0
        pointee.mtrr_def_type = 0
        pointee.mtrr_fixed = (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
        pointee.mtrr_variable = (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    }

    /// Reads an MSR; nil: there is none of that number.
    func readMSR(_ number: UInt32) -> UInt64? {
        switch number {
        case 0x10: return timeStampCounter
        case 0x174: return pointee.sysenter_cs
        case 0x175: return pointee.sysenter_esp
        case 0x176: return pointee.sysenter_eip
        case 0x1A0: return pointee.misc_enable
        case 0x48: return pointee.spec_ctrl
        case 0x10A: return speculationImmunity
        case 0xC000_0080: return pointee.efer
        case 0xC000_0081: return pointee.star
        case 0xC000_0082: return pointee.lstar
        case 0xC000_0083: return pointee.cstar
        case 0xC000_0084: return pointee.sfmask
        case 0xC000_0100: return segment(Seg.fs).pointee.base
        case 0xC000_0101: return segment(Seg.gs).pointee.base
        case 0xC000_0102: return pointee.kernel_gs_base
        case 0xC000_0103: return pointee.tsc_aux
        case 0x1B: return bus.readMSR(number) ?? pointee.apic_base
        default: return bus.readMSR(number) ?? readMemoryType(number) ?? readFixed(number)
        }
    }

    /// MTRRs and PAT.
    private func readMemoryType(_ number: UInt32) -> UInt64? {
        switch number {
        // Eight variable ranges, fixed ranges, write-combining.
        case 0xFE: return 0x508
        case 0x200...0x20F: return apus_mtrr_variable_at(self, number - 0x200).pointee
        case 0x250: return apus_mtrr_fixed_at(self, 0).pointee
        case 0x258, 0x259: return apus_mtrr_fixed_at(self, number - 0x258 + 1).pointee
        case 0x268...0x26F: return apus_mtrr_fixed_at(self, number - 0x268 + 3).pointee
        case 0x277: return pointee.pat
        case 0x2FF: return pointee.mtrr_def_type
        default: return nil
        }
    }

    /// Registers that hold nothing here.
    private func readFixed(_ number: UInt32) -> UInt64? {
        switch number {
        case 0x8B: return 1 << 32  // Microcode revision, in the upper half.
        case 0x3A: return 1  // Feature control: locked, nothing enabled.
        case 0x179: return 0  // Machine check: no banks.
        // P5 machine check, platform id, power-on configuration, bus frequency, BIOS update, counters, platform info,
        // machine-check status, performance status, thermal status and target, last branches.
        case 0x00, 0x01, 0x17, 0x2A, 0x34, 0x79, 0xC1...0xC8, 0xCD, 0xCE, 0x17A, 0x17B, 0x186...0x18D, 0x198...0x19C,
            0x1A2, 0x1D9, 0x1DB...0x1DE:
            return 0
        case 0xC001_0000...0xC001_0007, 0xC001_0010, 0xC001_0015, 0xC001_001A, 0xC001_001D, 0xC001_001F, 0xC001_0055,
            0xC001_0058, 0xC001_0061...0xC001_006B, 0xC001_0112, 0xC001_0113, 0xC001_0140, 0xC001_0141,
            0xC001_1004, 0xC001_1005, 0xC001_1020...0xC001_102F:
            return CPUIDProfile.host.isAMD ? 0 : nil
        default: return nil
        }
    }

    /// Writes an MSR; false: none of that number, or a value it does not take.
    func writeMSR(_ number: UInt32, _ value: UInt64) -> Bool {
        switch number {
        case 0x10: pointee.tsc_offset = value &- apus_host_tsc()
        case 0x174: pointee.sysenter_cs = value & 0xFFFF_FFFF
        case 0x175 where isCanonical(value): pointee.sysenter_esp = value
        case 0x176 where isCanonical(value): pointee.sysenter_eip = value
        case 0x1A0: pointee.misc_enable = value
        // IBRS, STIBP, SSBD, BHI_DIS_S.
        case 0x48 where value & ~0x407 == 0: pointee.spec_ctrl = value
        case 0x48, 0x10A: return false
        // Prediction barriers: there is no guest-visible prediction.
        case 0x49: return value & ~1 == 0
        case 0xC000_0080: return writeEFER(value)
        case 0xC000_0081: pointee.star = value
        case 0xC000_0082 where isCanonical(value): pointee.lstar = value
        case 0xC000_0083 where isCanonical(value): pointee.cstar = value
        case 0xC000_0084: pointee.sfmask = value & 0xFFFF_FFFF
        case 0xC000_0100 where isCanonical(value): segment(Seg.fs).pointee.base = value
        case 0xC000_0101 where isCanonical(value): segment(Seg.gs).pointee.base = value
        case 0xC000_0102 where isCanonical(value): pointee.kernel_gs_base = value
        case 0xC000_0103 where value >> 32 == 0: pointee.tsc_aux = value
        case 0x175, 0x176, 0xC000_0082, 0xC000_0083, 0xC000_0100...0xC000_0103: return false
        case 0x1B:
            if bus.writeMSR(number, value) { pointee.apic_base = value } else { return false }
        default: return writeMemoryType(number, value) ?? (bus.writeMSR(number, value) || writeFixed(number, value))
        }
        return true
    }

    private func writeEFER(_ value: UInt64) -> Bool {
        var writable = EFER.syscall | EFER.longModeEnable | EFER.noExecute
        if CPUIDProfile.host.isAMD { writable |= EFER.automaticIBRS }
        guard value & ~(writable | EFER.longModeActive) == 0 else { return false }
        let changed = (value ^ pointee.efer) & writable
        if changed & EFER.longModeEnable != 0, pointee.paging { return false }
        pointee.efer ^= changed
        if changed & EFER.noExecute != 0 { flushTLB(keepGlobal: false) }
        updateMode()
        return true
    }

    /// nil: not one of these.
    private func writeMemoryType(_ number: UInt32, _ value: UInt64) -> Bool? {
        func isType(_ byte: UInt64, pat: Bool) -> Bool {
            byte == 0 || byte == 1 || (4...6).contains(byte) || (pat && byte == 7)
        }
        func areTypes(_ value: UInt64, pat: Bool) -> Bool {
            (0..<8).allSatisfy { isType((value >> ($0 * 8)) & 0xFF, pat: pat) }
        }
        switch number {
        case 0x200...0x20F: apus_mtrr_variable_at(self, number - 0x200).pointee = value
        case 0x250, 0x258, 0x259, 0x268...0x26F:
            guard areTypes(value, pat: false) else { return false }
            let index = number == 0x250 ? 0 : number < 0x260 ? number - 0x258 + 1 : number - 0x268 + 3
            apus_mtrr_fixed_at(self, index).pointee = value
        case 0x277:
            guard areTypes(value, pat: true) else { return false }
            pointee.pat = value
        case 0x2FF:
            guard value & ~0xCFF == 0, isType(value & 0xFF, pat: false) else { return false }
            pointee.mtrr_def_type = value
        default: return nil
        }
        return true
    }

    /// Takes and forgets what is written to registers that hold nothing here.
    private func writeFixed(_ number: UInt32, _ value: UInt64) -> Bool {
        switch number {
        case 0x3A, 0xFE, 0x179, 0xCE, 0xCD, 0x198, 0x1DB...0x1DE: return false
        default: return readFixed(number) != nil
        }
    }
}

/// RDMSR and WRMSR.
func msrHandler(_ insn: UnsafeMutablePointer<apus_insn>) -> apus_handler? {
    switch insn.pointee.opcode {
    case 0x132:
        return { cpu, _ in
            attempt { () throws(Fault) in
                try cpu.requirePrivilege()
                let number = UInt32(truncatingIfNeeded: cpu.pointee.gpr.1)
                guard let value = cpu.isParavirtual ? cpu.readParavirtualMSR(number) : cpu.readMSR(number) else {
                    throw cpu.raise(Vector.generalProtection, error: 0)
                }
                cpu.setEDXEAX(value)
                return Status.next
            }
        }
    case 0x130:
        return { cpu, _ in
            attempt { () throws(Fault) in
                try cpu.requirePrivilege()
                let number = UInt32(truncatingIfNeeded: cpu.pointee.gpr.1)
                let isTaken =
                    cpu.isParavirtual
                    ? cpu.writeParavirtualMSR(number, cpu.edxEAX) : cpu.writeMSR(number, cpu.edxEAX)
                guard isTaken else { throw cpu.raise(Vector.generalProtection, error: 0) }
                cpu.serialize()
                return Status.end
            }
        }
    default: return nil
    }
}

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    @inline(__always) var edxEAX: UInt64 { pointee.gpr.2 << 32 | pointee.gpr.0 & 0xFFFF_FFFF }
    @inline(__always) func setEDXEAX(_ value: UInt64) {
        pointee.gpr.0 = value & 0xFFFF_FFFF
        pointee.gpr.2 = value >> 32
    }
}
