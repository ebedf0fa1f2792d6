// What a PV guest's kernel does without the right to, and gets done: control registers, MSRs, CPUID; its descriptors.
// Source: Xen xen/arch/x86/pv/emul-priv-op.c (which instructions, which registers), pv/descriptor-tables.c,
// pv/domain.c (pv_fixup_guest_cr4).
// Modelled: what 64-bit kernels use. Not modelled: INVLPG, LMSW, MSRs of performance counters and IOMMUs.

internal import CProcessor

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    // MARK: descriptors

    /// A descriptor of the guest's GDT or LDT, with the level Xen gives all of them; nil: its table has none there.
    func paravirtualDescriptor(_ selector: UInt16) -> Descriptor? {
        let index = Int(selector >> 3)
        let raw: UInt64
        if selector & 4 != 0 {
            guard index < pv.pointee.ldtEntries,
                let entry = try? loadSystem(pv.pointee.ldtBase &+ UInt64(index) * 8, as: UInt64.self)
            else { return nil }
            raw = entry
        } else if index >= Self.reservedEntry {
            guard let own = Self.ownDescriptor(index) else { return nil }
            raw = own
        } else {
            guard index < pv.pointee.gdtEntries else { return nil }
            raw = loadPhysical(pv.pointee.gdtFrames[index >> 9] << 12 | UInt64(index & 511) * 8, as: UInt64.self)
        }
        let descriptor = Descriptor(raw: raw)
        // Gates and system segments are not for guests.
        return descriptor.isSystem ? nil : Descriptor(raw: raw | 3 << 45)
    }

    /// The first entry that is Xen's: page 14 of the GDT.
    private static var reservedEntry: Int { 14 * 512 }

    private static func ownDescriptor(_ index: Int) -> UInt64? {
        switch UInt16(index << 3 | 3) {
        case XenSelector.code32: 0x00CF_FB00_0000_FFFF
        case XenSelector.data: 0x00CF_F300_0000_FFFF
        case XenSelector.code64: 0x00AF_FB00_0000_FFFF
        default: nil
        }
    }

    // MARK: control registers

    /// Bits of CR4 that the guest's kernel may change.
    private var ownCR4: UInt64 { CR4.timeStampDisable | CR4.debugExtensions | CR4.fsgsBase }

    func readParavirtualControl(_ number: UInt8) throws(Fault) -> UInt64 {
        switch number {
        case 0: return pointee.cr0
        case 2: return pv.pointee.faultAddress
        case 3: return pointee.cr3
        case 4: return pointee.cr4
        default: throw raise(Vector.generalProtection, error: 0)
        }
    }

    func writeParavirtualControl(_ number: UInt8, _ value: UInt64) throws(Fault) {
        switch number {
        case 0:
            pointee.cr0 = pointee.cr0 & ~CR0.taskSwitched | value & CR0.taskSwitched
            updateMode()
        case 2: pv.pointee.faultAddress = value
        case 3: loadTables(value & ~0xFFF)
        case 4:
            pointee.cr4 = pointee.cr4 & ~ownCR4 | value & ownCR4
            updateMode()
        default: throw raise(Vector.generalProtection, error: 0)
        }
    }

    /// Goes to other tables of the guest's kernel. What they share with those before is kept: all address spaces have
    /// the kernel's half in common, and who changes it has it forgotten by name.
    func loadTables(_ root: UInt64) {
        let isShared = hasSameKernel(pointee.cr3, root)
        pointee.cr3 = root
        flushTLB(keepGlobal: isShared)
    }

    private func hasSameKernel(_ old: UInt64, _ new: UInt64) -> Bool {
        guard let old = hostOfTable(old & ~0xFFF), let new = hostOfTable(new & ~0xFFF) else { return false }
        // Accessed and dirty are the walker's marks.
        for offset in stride(from: 272 * 8, to: 4096, by: 8) {
            let difference =
                old.load(fromByteOffset: offset, as: UInt64.self) ^ new.load(fromByteOffset: offset, as: UInt64.self)
            if difference & ~0x60 != 0 { return false }
        }
        return true
    }

    // MARK: model-specific registers

    /// nil: the guest gets #GP.
    func readParavirtualMSR(_ number: UInt32) -> UInt64? {
        switch number {
        // Linux looks at it, though it has no local APIC.
        case 0x1B: return 0xFEE0_0800 | (pointee.tsc_aux == 0 ? 0x100 : 0)
        case 0x10, 0x48, 0x10A, 0x1A0, 0xC000_0080, 0xC000_0100...0xC000_0103: return readMSR(number)
        // HWCR: the time stamp counter runs at P0's rate.
        case 0xC001_0015: return 1 << 24
        // Microcode revision, machine checks (there are no banks), PAT, and registers of AMD's that read as nothing.
        case 0x8B, 0x179...0x17B, 0x277, 0xC001_0000...0xC001_1FFF: return readMSR(number)
        default: return nil
        }
    }

    func writeParavirtualMSR(_ number: UInt32, _ value: UInt64) -> Bool {
        switch number {
        case 0x48, 0x49, 0x17A, 0x17B, 0xC000_0100...0xC000_0103: return writeMSR(number, value)
        // Intel's kernels write 0 before they read the microcode's revision; on AMD's it is read-only.
        case 0x8B: return value == 0 && !CPUIDProfile.host.isAMD
        case 0xC000_0080: return value == pointee.efer
        case 0x277: return value == pointee.pat
        case 0xC001_0000...0xC001_1FFF: return writeMSR(number, value)
        default: return false
        }
    }

    // MARK: CPUID

    /// UD2, "xen", CPUID: the form that a PV guest uses to be sure that Xen answers.
    func identifyForced(_ insn: Insn) -> Bool {
        guard insn.pointee.opcode == 0x10B, is64Bit else { return false }
        let next = following(insn)
        for (index, byte) in [UInt8(0x78), 0x65, 0x6E, 0x0F, 0xA2].enumerated() {
            guard let found = try? loadLinear(next &+ UInt64(index), as: UInt8.self), found == byte else {
                return false
            }
        }
        identify()
        pointee.rip = next &+ 5
        return true
    }
}
