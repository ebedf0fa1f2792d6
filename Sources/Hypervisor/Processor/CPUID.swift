// CPUID: the profile that guests see, derived from the host's.
// Source: Intel SDM vol. 2 (CPUID), AMD APM vol. 3 appendix E.
// Offered: what the engine implements and, where an instruction runs on the host's, the host has.
// Not offered: AVX-512, AVX-VNNI, VME, MONITOR, TSX, VMX/SVM, SMX, performance monitoring, MPX, PKU.

internal import CProcessor

/// The host's features, filtered once.
struct CPUIDProfile: Sendable {
    static let host = CPUIDProfile()

    private let vendor: apus_cpuid_result
    private let basic: apus_cpuid_result
    private let features: apus_cpuid_result
    private let extended: apus_cpuid_result
    private let brand: [apus_cpuid_result]
    /// Leaves 2, 8000_0005 and 8000_0006, and the subleaves of leaf 4: programs ask for these dozens of times when they start, and a
    /// host that is a guest itself takes long to answer.
    private let descriptors: CPUIDResult
    private let firstCaches: CPUIDResult
    private let laterCaches: CPUIDResult
    private let caches: [CPUIDResult]
    private let hasExtendedState: Bool
    /// Family, model and stepping: EAX of leaf 1 and EDX after reset.
    let signature: UInt32
    /// "AuthenticAMD" or "HygonGenuine".
    let isAMD: Bool
    let hasRandom: Bool
    let hasSeed: Bool

    /// XSAVE with x87 and SSE state.
    var offersXSAVE: Bool { hasExtendedState }
    /// What XCR0 may enable: x87, SSE, AVX.
    let extendedStates: UInt64

    private init() {
        vendor = apus_host_cpuid(0, 0)
        isAMD = vendor.ebx == 0x6874_7541 || vendor.ebx == 0x6F67_7948
        var leaf1 = apus_host_cpuid(1, 0)
        signature = leaf1.eax
        hasRandom = leaf1.ecx & (1 << 30) != 0
        hasExtendedState = leaf1.ecx & (1 << 26) != 0
        let own = apus_host_features()
        let hasAVX = own & UInt32(APUS_HOST_AVX) != 0
        extendedStates = hasAVX ? 7 : 3
        leaf1.ecx = Self.leaf1ECX(leaf1.ecx)
        // FMA, AVX and F16C need a system that saves YMM registers.
        if !hasAVX { leaf1.ecx &= ~Self.wide }
        leaf1.edx &= Self.leaf1EDX
        basic = leaf1
        var leaf7 = vendor.eax >= 7 ? apus_host_cpuid(7, 0) : apus_cpuid_result()
        hasSeed = leaf7.ebx & (1 << 18) != 0
        // FSGSBASE, SMEP, ERMS, INVPCID, SMAP, UMIP, RDPID are the engine's own; BMI1, AVX2, BMI2, RDSEED, ADX, CLFLUSHOPT, SHA,
        // GFNI, VAES and VPCLMULQDQ run on the host.
        let kept: UInt32 = 1 << 3 | 1 << 8 | 1 << 18 | 1 << 19 | 1 << 23 | 1 << 29
        leaf7.ebx = leaf7.ebx & (kept | (hasAVX ? 1 << 5 : 0)) | 1 << 0 | 1 << 7 | 1 << 9 | 1 << 10 | 1 << 20
        leaf7.ecx = leaf7.ecx & (1 << 8 | (hasAVX ? 1 << 9 | 1 << 10 : 0)) | 1 << 2 | 1 << 22
        // FSRM is the engine's own. IBRS, STIBP, SSBD and ARCH_CAPABILITIES, so that systems need no work-arounds (see
        // MSR.swift).
        (leaf7.eax, leaf7.edx) = (isAMD ? 0 : 2, 1 << 4 | (isAMD ? 0 : 1 << 26 | 1 << 27 | 1 << 29 | 1 << 31))
        features = leaf7
        let top = apus_host_cpuid(0x8000_0000, 0).eax
        var extra = apus_host_cpuid(0x8000_0001, 0)
        // LAHF in 64-bit mode, LZCNT, PREFETCHW.
        extra.ecx = 1 << 0 | 1 << 8 | (own & UInt32(APUS_HOST_LZCNT) != 0 ? 1 << 5 : 0)
        // SYSCALL, NX, 1 GiB pages, RDTSCP, long mode; AMD repeats leaf 1 here.
        let always: UInt32 = 1 << 11 | 1 << 20 | 1 << 26 | 1 << 27 | 1 << 29
        extra.edx = always | (isAMD ? leaf1.edx & 0x0183_F3FF : 0)
        extended = extra
        brand = top >= 0x8000_0004 ? (2...4).map { apus_host_cpuid(0x8000_0000 + $0, 0) } : []
        descriptors = isAMD ? .zero : CPUIDResult(apus_host_cpuid(2, 0))
        firstCaches = isAMD ? CPUIDResult(apus_host_cpuid(0x8000_0005, 0)) : .zero
        laterCaches = CPUIDResult(apus_host_cpuid(0x8000_0006, 0))
        caches = isAMD ? [] : Self.hostCaches()
    }

    /// FPU, DE, PSE, TSC, MSR, PAE, MCE, CX8, APIC, SEP, MTRR, PGE, MCA, CMOV, PAT, PSE-36, CLFSH, MMX, FXSR, SSE, SSE2.
    private static let leaf1EDX: UInt32 = 0x078B_FBFD

    /// FMA, AVX, F16C.
    private static let wide: UInt32 = 1 << 12 | 1 << 28 | 1 << 29

    /// SSE3, PCLMULQDQ, SSSE3, FMA, CX16, SSE4.1, SSE4.2, MOVBE, POPCNT, AES, XSAVE, AVX, F16C, RDRAND as the host has
    /// them, PCID and the hypervisor bit.
    private static func leaf1ECX(_ host: UInt32) -> UInt32 {
        let kept: UInt32 =
            1 << 0 | 1 << 1 | 1 << 9 | 1 << 13 | 1 << 19 | 1 << 20 | 1 << 22 | 1 << 23 | 1 << 25 | 1 << 26 | 1 << 30
            | wide
        return host & kept | 1 << 17 | 1 << 31
    }

    /// The engine's own answer; `cr4` and `xcr0` are the guest's.
    func answer(leaf: UInt32, subleaf: UInt32, cr4: UInt64, xcr0: UInt64) -> CPUIDResult {
        switch leaf {
        case 0:
            return CPUIDResult(
                eax: hasExtendedState ? 0xD : 7, ebx: vendor.ebx, ecx: vendor.ecx, edx: vendor.edx)
        case 1:
            let osXSAVE: UInt32 = cr4 & CR4.osXSAVE != 0 ? 1 << 27 : 0
            return CPUIDResult(
                eax: signature, ebx: basic.ebx & 0xFF00 | 1 << 16, ecx: basic.ecx | osXSAVE, edx: basic.edx)
        case 2: return descriptors
        case 4: return subleaf < caches.count ? caches[Int(subleaf)] : .zero
        case 6: return CPUIDResult(eax: 1 << 2, ebx: 0, ecx: 0, edx: 0)
        case 7 where subleaf == 0: return CPUIDResult(features)
        // BHI_CTRL: systems then clear no branch history by loops.
        case 7 where subleaf == 2: return CPUIDResult(eax: 0, ebx: 0, ecx: 0, edx: isAMD ? 0 : 1 << 4)
        case 0xD: return extendedState(subleaf, xcr0)
        case 0x8000_0000:
            let top: UInt32 = isAMD ? 0x8000_0021 : 0x8000_0008
            return CPUIDResult(eax: top, ebx: vendor.ebx, ecx: vendor.ecx, edx: vendor.edx)
        case 0x8000_0001:
            return CPUIDResult(eax: isAMD ? signature : 0, ebx: 0, ecx: extended.ecx, edx: extended.edx)
        case 0x8000_0002...0x8000_0004:
            return brand.isEmpty ? .zero : CPUIDResult(brand[Int(leaf - 0x8000_0002)])
        case 0x8000_0005: return firstCaches
        case 0x8000_0006: return laterCaches
        // The time stamp counter runs at one rate in every state.
        case 0x8000_0007: return CPUIDResult(eax: 0, ebx: 0, ecx: 0, edx: 1 << 8)
        case 0x8000_0008:
            return CPUIDResult(
                eax: UInt32(physicalAddressBits) | 48 << 8, ebx: isAMD ? Self.immunityAMD.ebx : 0, ecx: 0, edx: 0)
        case 0x8000_0021:
            return isAMD ? CPUIDResult(eax: Self.immunityAMD.eax, ebx: 0, ecx: Self.immunityAMD.ecx, edx: 0) : .zero
        default: return .zero
        }
    }

    /// What AMD has for IA32_ARCH_CAPABILITIES (see MSR.swift). Leaf 8000_0008, EBX: XSAVEERPTR (x87 error pointers are
    /// always restored), SSB_NO, BTC_NO. Leaf 8000_0021, EAX: LFENCE serializes, automatic IBRS, SRSO_NO; ECX: TSA_SQ_NO,
    /// TSA_L1_NO.
    private static let immunityAMD: (ebx: UInt32, eax: UInt32, ecx: UInt32) =
        (1 << 2 | 1 << 26 | 1 << 29, 1 << 2 | 1 << 8 | 1 << 29, 1 << 1 | 1 << 2)

    /// Leaf 4: the host's caches, each owned by one processor.
    private static func hostCaches() -> [CPUIDResult] {
        var found: [CPUIDResult] = []
        while found.count < 16 {
            var result = CPUIDResult(apus_host_cpuid(4, UInt32(found.count)))
            if result.eax & 31 == 0 { break }
            result.eax &= 0x3FFF
            found.append(result)
        }
        return found
    }

    /// Leaf 0xD: FXSAVE's area, 64 bytes of header, the upper halves of YMM registers.
    private func extendedState(_ subleaf: UInt32, _ xcr0: UInt64) -> CPUIDResult {
        guard hasExtendedState else { return .zero }
        let hasAVX = extendedStates & 4 != 0
        let used: UInt32 = xcr0 & 4 != 0 ? 832 : 576
        switch subleaf {
        case 0:
            return CPUIDResult(eax: UInt32(extendedStates), ebx: used, ecx: hasAVX ? 832 : 576, edx: 0)
        // XSAVEOPT, XSAVEC, XGETBV with index 1.
        case 1: return CPUIDResult(eax: 7, ebx: used, ecx: 0, edx: 0)
        case 2 where hasAVX: return CPUIDResult(eax: 256, ebx: 576, ecx: 0, edx: 0)
        default: return .zero
        }
    }
}

extension CPUIDResult {
    static let zero = CPUIDResult(eax: 0, ebx: 0, ecx: 0, edx: 0)

    init(_ result: apus_cpuid_result) {
        self.init(eax: result.eax, ebx: result.ebx, ecx: result.ecx, edx: result.edx)
    }
}

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// CPUID: the machine may replace the engine's answer.
    func identify() {
        let leaf = UInt32(truncatingIfNeeded: pointee.gpr.0)
        let subleaf = UInt32(truncatingIfNeeded: pointee.gpr.1)
        let own = CPUIDProfile.host.answer(leaf: leaf, subleaf: subleaf, cr4: pointee.cr4, xcr0: pointee.xcr0)
        let result = bus.cpuid(leaf: leaf, subleaf: subleaf, own) ?? own
        pointee.gpr.0 = UInt64(result.eax)
        pointee.gpr.3 = UInt64(result.ebx)
        pointee.gpr.1 = UInt64(result.ecx)
        pointee.gpr.2 = UInt64(result.edx)
    }
}
