// The software engine as hypercalls of PV guests reach it.
// Source: Xen xen/arch/x86/domain.c (arch_set_info_guest), pv/misc-hypercalls.c, pv/descriptor-tables.c.
// Modelled: all of `ParavirtualCPU`. Quirks: tables change with a full flush, as on processors without PCIDs.

internal import CProcessor

extension SoftwareCPU: ParavirtualCPU {
    public var paravirtual: (any ParavirtualCPU)? { cpu.isParavirtual ? self : nil }

    public func start(_ start: ParavirtualStart) {
        cpu.resetState(powerOn: false)
        for (index, value) in start.registers.prefix(16).enumerated() { cpu.gpr[index] = value }
        // PG, AM, WP, NE, ET, MP, PE; PAE, MCE, OSFXSR, OSXMMEXCPT; SCE, LME, LMA, NX: as Xen runs.
        cpu.pointee.cr0 = 0x8005_0033
        cpu.pointee.cr4 = 0x660 | (CPUIDProfile.host.offersXSAVE ? CR4.osXSAVE : 0)
        cpu.pointee.efer = 0xD01
        cpu.pointee.xcr0 = 3
        // XEN_MSR_PAT.
        cpu.pointee.pat = 0x0000_0501_0007_0406
        (cpu.pointee.cr3, cpu.pointee.user_cr3) = (start.kernelTables, start.userTables)
        // Descriptor tables that no guest address leads to.
        cpu.pointee.gdtr = apus_table(base: HypervisorHole.end - 0x1_0000, limit: 0xEFFF)
        cpu.pointee.idtr = apus_table(base: HypervisorHole.end - 0x2_0000, limit: 0xFFF)
        for index in [Seg.ldtr, Seg.tr] {
            cpu.segment(index).pointee = apus_segment(base: 0, limit: 0, selector: 0, access: 0)
        }
        cpu.pv.pointee.kernelStack = start.kernelStack
        cpu.pv.pointee.portLevel = UInt8((start.flags & RFLAGS.iopl) >> 12)
        setGDT(frames: start.gdtFrames, entries: start.gdtEntries)
        setLDT(base: start.ldtBase, entries: start.ldtEntries)
        clearTraps()
        for (index, trap) in start.traps.prefix(256).enumerated() { setTrap(UInt8(index), trap) }
        for callback in ParavirtualCallback.allCases {
            setCallback(callback, start.callbacks[callback] ?? ParavirtualTrap())
        }
        cpu.pointee.cpl = start.isKernel ? 1 : 3
        loadSelectors(start.selectors)
        cpu.segment(Seg.fs).pointee.base = start.fsBase
        cpu.segment(Seg.gs).pointee.base = start.isKernel ? start.gsKernel : start.gsUser
        cpu.pointee.kernel_gs_base = start.isKernel ? start.gsUser : start.gsKernel
        cpu.pointee.rip = start.rip
        let kept = RFLAGS.implemented & ~(RFLAGS.iopl | RFLAGS.virtual8086)
        cpu.pointee.arith_flags = UInt32(truncatingIfNeeded: start.flags & RFLAGS.arithmetic)
        cpu.pointee.system_flags =
            UInt32(truncatingIfNeeded: start.flags & kept & ~RFLAGS.arithmetic | RFLAGS.interrupt) | 2
        cpu.pointee.halted = false
        cpu.flushTLB(keepGlobal: false)
        cpu.updateMode()
    }

    /// Segments that do not exist stay null.
    private func loadSelectors(_ selectors: [UInt16]) {
        for (index, selector) in selectors.prefix(6).enumerated() {
            let descriptor = cpu.paravirtualDescriptor(selector | 3)
            cpu.segment(index).pointee =
                selector & 0xFFFC == 0
                ? apus_segment(base: 0, limit: 0, selector: selector, access: 0)
                : descriptor?.segment(selector: selector | 3)
                    ?? apus_segment(base: 0, limit: 0, selector: 0, access: 0)
        }
    }

    public func useInfo(_ info: UnsafeMutableRawPointer) { cpu.pv.pointee.info = info }

    public func setTrap(_ vector: UInt8, _ trap: ParavirtualTrap) { cpu.pv.pointee.traps[Int(vector)] = trap }

    public func clearTraps() { for vector in 0..<256 { cpu.pv.pointee.traps[vector] = ParavirtualTrap() } }

    public func setCallback(_ callback: ParavirtualCallback, _ trap: ParavirtualTrap) {
        cpu.pv.pointee[callback] = trap
    }

    public func setKernelStack(_ pointer: UInt64) { cpu.pv.pointee.kernelStack = pointer }

    public func setGDT(frames: [UInt64], entries: Int) {
        for index in 0..<16 { cpu.pv.pointee.gdtFrames[index] = index < frames.count ? frames[index] : 0 }
        cpu.pv.pointee.gdtEntries = min(entries, frames.count * 512)
    }

    public func setLDT(base: UInt64, entries: Int) {
        (cpu.pv.pointee.ldtBase, cpu.pv.pointee.ldtEntries) = (base, min(entries, 8192))
    }

    public func setKernelTables(_ root: UInt64) { cpu.loadTables(root) }

    public func setUserTables(_ root: UInt64) {
        cpu.pointee.user_cr3 = root
        cpu.flushTLB(keepGlobal: true)
    }

    public func flushAll() { cpu.flushTLB(keepGlobal: false) }

    public func flushPage(_ linear: UInt64) { if cpu.isCanonical(linear) { cpu.flushPage(linear) } }

    public func setBase(_ base: ParavirtualBase, _ value: UInt64) -> Bool {
        guard cpu.isCanonical(value) else { return false }
        switch base {
        case .fs: cpu.segment(Seg.fs).pointee.base = value
        case .gsUser: cpu.pointee.kernel_gs_base = value
        case .gsKernel: cpu.segment(Seg.gs).pointee.base = value
        }
        return true
    }

    public func setUserGS(_ selector: UInt16) {
        let descriptor = selector & 0xFFFC == 0 ? nil : cpu.paravirtualDescriptor(selector)
        cpu.segment(Seg.gs).pointee.selector = descriptor == nil ? 0 : selector | 3
        cpu.pointee.kernel_gs_base = descriptor?.base ?? 0
    }

    public func setTaskSwitched(_ isSet: Bool) {
        cpu.pointee.cr0 = cpu.pointee.cr0 & ~CR0.taskSwitched | (isSet ? CR0.taskSwitched : 0)
        cpu.updateMode()
    }

    public func setDebugRegister(_ number: Int, _ value: UInt64) -> Bool {
        // Breakpoints on the hypervisor's addresses are refused; so are I/O breakpoints and general detect.
        guard (0..<8).contains(number), number != 4, number != 5 else { return false }
        if number < 4, HypervisorHole.contains(value) || !cpu.isCanonical(value) { return false }
        if number >= 6, value >> 32 != 0 { return false }
        do { try cpu.writeDebug(UInt8(number), value & (number == 7 ? ~(1 << 13) : .max)) } catch { return false }
        return true
    }

    public func debugRegister(_ number: Int) -> UInt64? {
        guard (0..<8).contains(number), number != 4, number != 5 else { return nil }
        return try? cpu.readDebug(UInt8(number))
    }

    public var portLevel: UInt8 {
        get { cpu.pv.pointee.portLevel }
        set { cpu.pv.pointee.portLevel = newValue & 3 }
    }

    public var isGuestKernel: Bool { cpu.isGuestKernel }
    public var kernelTables: UInt64 { cpu.pointee.cr3 }
}
