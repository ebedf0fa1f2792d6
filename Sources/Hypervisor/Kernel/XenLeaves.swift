// CPUID as the guest sees it from the machine: Xen's leaves, APIC ids and topology.
// Source: Xen public/arch-x86/cpuid.h; Intel SDM volume 2 (CPUID leaves 1, 4, 0xB); AMD APM volume 3 §E.4.
// Modelled: leaves 0x40000000-0x40000005; what PV guests are not shown (xen/arch/x86/cpuid.c).
// Quirks: one package, a core for each vCPU with two APIC ids, as Xen's default topology has it.

internal import Processor

struct XenLeaves: Sendable {
    var vcpus: Int
    var domid: UInt32
    var tscKilohertz: UInt32
    /// Each vCPU may have a vector of its own for events (bit 6 of the HVM leaf).
    var hasUpcallVector = false
    /// Of a PV domain.
    var isParavirtual = false
    static let base: UInt32 = 0x4000_0000
    /// 4.17.
    static let version: UInt32 = 4 << 16 | 17
    static let hypercallMSR: UInt32 = 0x4000_0000

    /// "XenVMMXenVMM" in EBX, ECX, EDX.
    private static let signature: (UInt32, UInt32, UInt32) = (0x566E_6558, 0x6558_4D4D, 0x4D4D_566E)

    func answer(_ leaf: UInt32, _ subleaf: UInt32, vcpu: Int) -> CPUIDResult? {
        switch (leaf, subleaf) {
        case (Self.base, _):
            let (b, c, d) = Self.signature
            return CPUIDResult(eax: Self.base + (isParavirtual ? 5 : 4), ebx: b, ecx: c, edx: d)
        case (Self.base + 1, _): return CPUIDResult(eax: Self.version, ebx: 0, ecx: 0, edx: 0)
        // One hypercall page, its MSR; and that PV guests' table updates can keep accessed and dirty marks.
        case (Self.base + 2, _):
            return CPUIDResult(eax: 1, ebx: Self.hypercallMSR, ecx: isParavirtual ? 1 : 0, edx: 0)
        // Time: TSC not emulated, native mode, host frequency in kHz, incarnation 0.
        case (Self.base + 3, 0): return CPUIDResult(eax: 0, ebx: 2, ecx: tscKilohertz, edx: 0)
        // Offset 0; multiplier and shift from TSC to nanoseconds.
        case (Self.base + 3, 1):
            let (multiplier, shift) = Self.scale(tscKilohertz)
            return CPUIDResult(eax: 0, ebx: 0, ecx: multiplier, edx: UInt32(bitPattern: shift))
        case (Self.base + 3, 2): return CPUIDResult(eax: tscKilohertz, ebx: 0, ecx: 0, edx: 0)
        // HVM: vcpu id (bit 3) in EBX, domain id (bit 4) in ECX.
        case (Self.base + 4, 0) where !isParavirtual:
            let features: UInt32 = 1 << 3 | 1 << 4 | (hasUpcallVector ? 1 << 6 : 0)
            return CPUIDResult(eax: features, ebx: UInt32(vcpu), ecx: domid, edx: 0)
        // PV: bits of a machine address.
        case (Self.base + 5, 0) where isParavirtual: return CPUIDResult(eax: 0, ebx: 40, ecx: 0, edx: 0)
        case (Self.base...(Self.base + 0xFF), _): return CPUIDResult(eax: 0, ebx: 0, ecx: 0, edx: 0)
        default: return nil
        }
    }

    /// Nanoseconds = (ticks << shift) * multiplier >> 32 (struct vcpu_time_info).
    static func scale(_ kilohertz: UInt32) -> (UInt32, Int32) {
        guard kilohertz > 0 else { return (0, 0) }
        var hertz = UInt64(kilohertz) * 1000
        var shift: Int32 = 0
        while hertz > 2_000_000_000 {
            hertz >>= 1
            shift -= 1
        }
        while hertz <= 1_000_000_000 {
            hertz <<= 1
            shift += 1
        }
        return (UInt32(truncatingIfNeeded: (1_000_000_000 << 32) / hertz), shift)
    }

    /// APIC ids in the package, a power of two.
    private var idSpace: UInt32 {
        var count: UInt32 = 1
        while count < UInt32(vcpus) * 2 { count <<= 1 }
        return vcpus == 1 ? 1 : count
    }

    /// What the machine changes in the processor's own leaves; nil: nothing.
    func amend(_ leaf: UInt32, _ subleaf: UInt32, _ own: CPUIDResult, vcpu: Int, hasAPIC: Bool) -> CPUIDResult? {
        let id = Fabric.apicID(vcpu)
        var result = own
        if isParavirtual, let hidden = Self.hiddenFromPV[leaf], leaf != 7 || subleaf == 0 {
            result.ebx &= ~hidden.ebx
            result.ecx &= ~hidden.ecx
            result.edx &= ~hidden.edx
        }
        switch leaf {
        case 1:
            result.ebx = own.ebx & 0xFFFF | idSpace << 16 | id << 24
            // Hypervisor, x2APIC and its timer's TSC-deadline mode.
            result.ecx |= 1 << 31 | (isParavirtual ? 0 : 1 << 24 | 1 << 21)
            result.edx = result.edx & ~(1 << 9 | 1 << 28) | (hasAPIC ? 1 << 9 : 0) | (vcpus > 1 ? 1 << 28 : 0)
        case 4 where own.eax & 0x1F != 0:
            // Caches are a core's own; the package has `idSpace` ids.
            result.eax = own.eax & 0x3FFF | (idSpace - 1) << 26
        case 0xB, 0x1F: return topology(subleaf, id)
        case 0x8000_0008: result.ecx = own.ecx & ~0xF0FF | (idSpace - 1)
        case 0x8000_001E: (result.eax, result.ebx, result.ecx) = (id, UInt32(vcpu), 0)
        default: return isParavirtual ? result : nil
        }
        return result
    }

    /// VME, PSE, MTRR, PGE, PSE-36 in leaf 1 and AMD's copy of it; MONITOR, PCID, x2APIC, TSC deadline; 1 GiB pages; SMEP,
    /// INVPCID, SMAP, UMIP; and the invariant TSC, which Xen shows only to domains that never move.
    private static let hiddenFromPV: [UInt32: CPUIDResult] = [
        1: CPUIDResult(eax: 0, ebx: 0, ecx: 1 << 3 | 1 << 17 | 1 << 21 | 1 << 24, edx: ownedByXen),
        7: CPUIDResult(eax: 0, ebx: 1 << 7 | 1 << 10 | 1 << 20, ecx: 1 << 2, edx: 0),
        0x8000_0001: CPUIDResult(eax: 0, ebx: 0, ecx: 0, edx: ownedByXen | 1 << 26),
        0x8000_0007: CPUIDResult(eax: 0, ebx: 0, ecx: 0, edx: 1 << 8),
    ]
    private static let ownedByXen: UInt32 = 1 << 1 | 1 << 3 | 1 << 12 | 1 << 13 | 1 << 17

    /// Extended topology: two ids a core, `idSpace` a package.
    private func topology(_ subleaf: UInt32, _ id: UInt32) -> CPUIDResult {
        switch subleaf {
        case 0: return CPUIDResult(eax: vcpus > 1 ? 1 : 0, ebx: 1, ecx: 1 << 8, edx: id)
        case 1:
            return CPUIDResult(
                eax: UInt32(idSpace.trailingZeroBitCount), ebx: UInt32(vcpus), ecx: 2 << 8 | 1, edx: id)
        default: return CPUIDResult(eax: 0, ebx: 0, ecx: subleaf & 0xFF, edx: id)
        }
    }
}
