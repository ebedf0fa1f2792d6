// vcpu_op and set_timer_op: vCPUs up and down, their areas in guest memory, their timers.
// Source: Xen public/vcpu.h, public/hvm/hvm_vcpu.h; xen/common/domain.c (common_vcpu_op).
// Modelled: flat 32-bit start for HVM and PVH. Not modelled: a 64-bit start context, physical ids.
// Quirks: VCPU_SSHOTTMR_future is ignored where Linux does not expect -ETIME: a deadline in the past fires at once.

internal import CXen

extension Hypercall {
    func vcpuOperation(_ command: UInt64, _ number: UInt64, _ address: UInt64) throws(XenError) -> Int64 {
        let vcpu = try target(UInt32(clamping: number))
        switch Int32(truncatingIfNeeded: command) {
        case VCPUOP_initialise: try initialise(vcpu, address)
        case VCPUOP_up:
            if machine.isUp(vcpu) { return 0 }
            guard let start = xen.waits.takeStart(vcpu) else { throw .invalid }
            machine.bringUp(vcpu, start)
        case VCPUOP_down: machine.takeDown(vcpu)
        case VCPUOP_is_up: return machine.isUp(vcpu) ? 1 : 0
        case VCPUOP_get_runstate_info:
            try write(xen.shared.runstate(vcpu, isLong: isLong, nanoseconds: machine.nanoseconds), address)
        case VCPUOP_register_runstate_memory_area:
            xen.shared.registerRunstate(vcpu, try area(address, SharedInfo.runstateBytes(isLong: isLong)))
        case VCPUOP_register_vcpu_time_memory_area: xen.shared.registerTime(vcpu, try area(address, 32))
        case VCPUOP_register_vcpu_info: try registerInfo(vcpu, address)
        case VCPUOP_set_periodic_timer:
            let period = try read(address, 8).u64(0)
            guard period >= 1_000_000, period < 1 << 50 else { throw .invalid }
            xen.timers.setPeriodic(period, now: machine.nanoseconds, vcpu: vcpu)
        case VCPUOP_stop_periodic_timer: xen.timers.setPeriodic(0, now: 0, vcpu: vcpu)
        case VCPUOP_set_singleshot_timer:
            guard vcpu == self.vcpu else { throw .invalid }
            xen.timers.setSingle(deadline(try read(address, 8).u64(0)), vcpu: vcpu)
        case VCPUOP_stop_singleshot_timer:
            guard vcpu == self.vcpu else { throw .invalid }
            xen.timers.setSingle(nil, vcpu: vcpu)
        case VCPUOP_send_nmi: machine.sendNMI(vcpu)
        default: throw .notImplemented
        }
        return 0
    }

    /// Deadlines that are negative or absurdly far away come soon instead (xen/common/schedule.c, do_set_timer_op).
    private func deadline(_ wanted: UInt64) -> UInt64 {
        let now = machine.nanoseconds
        return wanted > now && wanted - now >= 1 << 50 ? now &+ 100_000_000 : wanted
    }

    /// set_timer_op: one deadline for the calling vCPU, in one register or two; 0 stops the timer.
    func setTimer(_ low: UInt64, _ high: UInt64) -> Int64 {
        let wanted = isLong ? low : low | high << 32
        xen.timers.setSingle(wanted == 0 ? nil : deadline(wanted), vcpu: vcpu)
        return 0
    }

    /// The structure holds nothing but a guest-virtual address.
    private func area(_ address: UInt64, _ count: Int) throws(XenError) -> GuestSpan {
        let place = try read(address, long).long(0)
        guard let span = memory.span(place, count) else { throw .fault }
        return span
    }

    /// struct vcpu_register_vcpu_info: u64 frame, u32 offset; the area must not cross its page.
    private func registerInfo(_ vcpu: Int, _ address: UInt64) throws(XenError) {
        let call = try read(address, 16)
        let offset = Int(call.u32(8))
        guard offset <= 4096 - 64, offset & 7 == 0, let page = machine.page(call.u64(0)),
            let area = page.part(offset, 64)
        else { throw .invalid }
        try xen.shared.register(vcpu, at: area)
        machine.infoMoved(vcpu)
        xen.announce(vcpu)
    }

    /// struct vcpu_hvm_context: mode 0, then eax ecx edx ebx esp ebp esi edi eip of the flat 32-bit form.
    private func initialise(_ vcpu: Int, _ address: UInt64) throws(XenError) {
        guard !machine.isUp(vcpu) else { throw .exists }
        if xen.flavour == .pv { return try initialiseParavirtual(vcpu, address) }
        guard xen.flavour == .hvm else { throw .notImplemented }
        let context = try read(address, 44)
        guard context.u32(0) == 0 else { throw .notSupported }
        let registers = (0..<8).map { UInt64(context.u32(8 + 4 * $0)) }
        xen.waits.prepare(vcpu, .flat(FlatStart(entry: UInt64(context.u32(40)), registers: registers)))
    }
}
