// What only PV guests call: traps, callbacks, stacks, descriptors, segment bases, debug registers, assists.
// Source: Xen public/xen.h, public/arch-x86/xen.h, public/nmi.h; xen/arch/x86/pv/*.c (checks and errors).
// Modelled: 64-bit callers. Not modelled: architectural IOPL, 32-bit PV guests.
// Quirks: iret never comes here: the engine carries it out.

internal import CXen
internal import Processor

extension Hypercall {
    /// nil: not one of these.
    func paravirtual(_ number: Int32, _ arguments: [UInt64], _ cpu: any ParavirtualCPU) throws(XenError) -> Int64? {
        let (a, b, c) = (arguments[0], arguments[1], arguments[2])
        switch number {
        case __HYPERVISOR_mmu_update: return try updateTables(a, b, c, arguments[3])
        case __HYPERVISOR_update_va_mapping: return try updateMapping(a, b, c, cpu)
        case __HYPERVISOR_mmuext_op: return try extendedOperations(a, b, c, arguments[3], cpu)
        case __HYPERVISOR_set_trap_table: try setTraps(a, cpu)
        case __HYPERVISOR_set_gdt: try setGDT(a, b, cpu)
        case __HYPERVISOR_stack_switch: cpu.setKernelStack(b)
        case __HYPERVISOR_set_callbacks:
            for (callback, address) in [(ParavirtualCallback.event, a), (.failsafe, b), (.systemCall, c)] {
                cpu.setCallback(callback, ParavirtualTrap(address: address))
            }
        case __HYPERVISOR_fpu_taskswitch: cpu.setTaskSwitched(a != 0)
        case __HYPERVISOR_set_debugreg:
            guard cpu.setDebugRegister(Int(clamping: a), b) else { throw .invalid }
        case __HYPERVISOR_get_debugreg:
            guard let value = cpu.debugRegister(Int(clamping: a)) else { throw .invalid }
            return Int64(bitPattern: value)
        case __HYPERVISOR_update_descriptor: try updateDescriptor(a, b)
        case __HYPERVISOR_set_segment_base: try setBase(a, b, cpu)
        case __HYPERVISOR_vm_assist: try assistParavirtual(a, b)
        case __HYPERVISOR_nmi_op: try nmi(a, b, cpu)
        default: return nil
        }
        return 0
    }

    /// A list of struct trap_info (vector, flags, u16 selector, address at 8) that ends with address 0; no list: none.
    private func setTraps(_ list: UInt64, _ cpu: any ParavirtualCPU) throws(XenError) {
        guard list != 0 else { return cpu.clearTraps() }
        for index in 0..<UInt64(257) {
            let entry = try read(list &+ index &* 16, 16)
            if entry.u64(8) == 0 { return }
            cpu.setTrap(entry.bytes[0], ParavirtualTrap(address: entry.u64(8), flags: entry.bytes[1]))
        }
    }

    private func setGDT(_ list: UInt64, _ entries: UInt64, _ cpu: any ParavirtualCPU) throws(XenError) {
        // Behind them lie Xen's own.
        guard entries <= 14 * 512 else { throw .invalid }
        let count = Int((entries + 511) / 512)
        let call = count == 0 ? Record([], isLong: isLong) : try read(list, count * 8)
        let frames = (0..<count).map { call.u64($0 * 8) }
        guard frames.allSatisfy({ machine.page($0) != nil }) else { throw .invalid }
        cpu.setGDT(frames: frames, entries: Int(entries))
    }

    private func updateDescriptor(_ place: UInt64, _ value: UInt64) throws(XenError) {
        guard place & 7 == 0, let page = machine.page(place >> 12), machine.paravirtual?[place >> 12] == 0 else {
            throw .invalid
        }
        page.replace64(at: Int(place & 0xFFF)) { _ in value }
    }

    private func setBase(_ which: UInt64, _ value: UInt64, _ cpu: any ParavirtualCPU) throws(XenError) {
        let base: ParavirtualBase
        switch Int32(truncatingIfNeeded: which) {
        case SEGBASE_FS: base = .fs
        case SEGBASE_GS_USER: base = .gsUser
        case SEGBASE_GS_KERNEL: base = .gsKernel
        case SEGBASE_GS_USER_SEL: return cpu.setUserGS(UInt16(truncatingIfNeeded: value))
        default: throw .invalid
        }
        guard cpu.setBase(base, value) else { throw .invalid }
    }

    /// Tables are always written as these assists have it, and the run state's copy is never seen half written.
    private func assistParavirtual(_ command: UInt64, _ type: UInt64) throws(XenError) {
        let types = [
            VMASST_TYPE_4gb_segments, VMASST_TYPE_4gb_segments_notify, VMASST_TYPE_writable_pagetables,
            VMASST_TYPE_pae_extended_cr3, VMASST_TYPE_runstate_update_flag, VMASST_TYPE_m2p_strict,
        ]
        guard types.contains(Int32(truncatingIfNeeded: type)) else { throw .invalid }
        guard [VMASST_CMD_enable, VMASST_CMD_disable].contains(Int32(truncatingIfNeeded: command)) else {
            throw .notImplemented
        }
    }

    /// nmi_op: 0 registers the handler (struct xennmi_callback), 1 takes it back.
    private func nmi(_ command: UInt64, _ address: UInt64, _ cpu: any ParavirtualCPU) throws(XenError) {
        switch command {
        case 0: cpu.setTrap(2, ParavirtualTrap(address: try read(address, 8).u64(0)))
        case 1: cpu.setTrap(2, ParavirtualTrap())
        default: throw .notImplemented
        }
    }

    /// What callback_op registered, to the vCPU.
    func enterCallback(_ type: UInt16, _ entry: Callbacks.Entry?, _ cpu: any ParavirtualCPU) {
        let trap = ParavirtualTrap(address: entry?.address ?? 0, masksEvents: entry?.masksEvents ?? false)
        switch Int32(type) {
        case CALLBACKTYPE_event: cpu.setCallback(.event, trap)
        case CALLBACKTYPE_failsafe: cpu.setCallback(.failsafe, trap)
        case CALLBACKTYPE_syscall: cpu.setCallback(.systemCall, trap)
        case CallbackType.systemCall32: cpu.setCallback(.systemCall32, trap)
        case CallbackType.systemEnter: cpu.setCallback(.systemEnter, trap)
        case CALLBACKTYPE_nmi: cpu.setTrap(2, trap)
        default: break
        }
    }
}

extension ParavirtualTrap {
    /// `flags` of struct trap_info: bits 1:0 the level, bit 2 masks events.
    init(address: UInt64, flags: UInt8) {
        self.init(address: address, level: flags & 3, masksEvents: flags & 4 != 0)
    }
}
