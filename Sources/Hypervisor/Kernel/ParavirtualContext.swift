// struct vcpu_guest_context: how a PV guest starts its further vCPUs.
// Source: Xen public/arch-x86/xen.h (vcpu_guest_context), xen-x86_64.h (cpu_user_regs); xen/arch/x86/domain.c.
// Modelled: all but the x87 and SSE registers, which begin as after reset. Not modelled: I387_VALID.

internal import CXen
internal import Processor

/// Byte offsets in the structure; a test compares them with the header's.
enum GuestContext {
    static let bytes = 5168
    static let flags = 512
    static let registers = 520
    static let traps = 720
    static let ldt = 4816
    static let gdtFrames = 4832
    static let gdtEntries = 4960
    static let kernelStack = 4976
    static let control = 4984
    static let callbacks = 5112
    static let bases = 5144
    /// cpu_user_regs begins with R15 ... RDI; the hardware's numbers of these.
    static let order = [15, 14, 13, 12, 5, 3, 11, 10, 9, 8, 0, 1, 2, 6, 7]

    static func start(_ context: Record) -> ParavirtualStart {
        var start = ParavirtualStart()
        for (index, register) in order.enumerated() { start.registers[register] = context.u64(registers + index * 8) }
        start.rip = context.u64(registers + 128)
        start.flags = context.u64(registers + 144)
        start.registers[4] = context.u64(registers + 152)
        start.selectors = [168, 136, 160, 176, 184, 192].map { context.u16(registers + $0) }
        start.isKernel = context.u64(flags) & UInt64(VGCF_in_kernel) != 0
        start.traps = (0..<256).map { index in
            let at = traps + index * 16
            return ParavirtualTrap(address: context.u64(at + 8), flags: context.bytes[at + 1])
        }
        (start.ldtBase, start.ldtEntries) = (context.u64(ldt), Int(min(context.u64(ldt + 8), 8192)))
        let entries = min(context.u64(gdtEntries), 14 * 512)
        start.gdtEntries = Int(entries)
        start.gdtFrames = (0..<Int((entries + 511) / 512)).map { context.u64(gdtFrames + $0 * 8) }
        start.kernelStack = context.u64(kernelStack)
        (start.kernelTables, start.userTables) = (context.u64(control + 24) & ~0xFFF, context.u64(control + 8) & ~0xFFF)
        for (index, callback) in [ParavirtualCallback.event, .failsafe, .systemCall].enumerated() {
            let address = context.u64(callbacks + index * 8)
            let masks =
                callback == .failsafe && context.u64(flags) & UInt64(VGCF_failsafe_disables_events) != 0
                || callback == .systemCall && context.u64(flags) & UInt64(VGCF_syscall_disables_events) != 0
            start.callbacks[callback] = ParavirtualTrap(address: address, masksEvents: masks)
        }
        start.fsBase = context.u64(bases)
        (start.gsKernel, start.gsUser) = (context.u64(bases + 8), context.u64(bases + 16))
        return start
    }
}

extension Hypercall {
    /// The trap table is the caller's to give; frames are checked here, everything else when it is used.
    func initialiseParavirtual(_ vcpu: Int, _ address: UInt64) throws(XenError) {
        let start = GuestContext.start(try read(address, GuestContext.bytes))
        guard machine.page(start.kernelTables >> 12) != nil,
            start.userTables == 0 || machine.page(start.userTables >> 12) != nil,
            start.gdtFrames.allSatisfy({ machine.page($0) != nil })
        else { throw .invalid }
        guard let known = machine.paravirtual else { throw .notImplemented }
        let register = TableRegister(memory: known) { [machine] in machine.page($0) }
        for root in [start.kernelTables, start.userTables] where root != 0 && known[root >> 12] != 4 {
            register.note(root >> 12, level: 4)
        }
        xen.waits.prepare(vcpu, .paravirtual(start))
    }
}
