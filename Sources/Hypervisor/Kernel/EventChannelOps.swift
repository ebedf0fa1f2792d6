// HYPERVISOR_event_channel_op: the guest's hand on its event channels.
// Source: Xen public/event_channel.h; xen/common/event_channel.c (do_event_channel_op).
// Modelled: all but physical interrupts. Quirks: only domain 0 is another domain here.

internal import CXen
internal import Synchronization

extension Hypercall {
    func eventChannel(_ command: UInt64, _ address: UInt64) throws(XenError) -> Int64 {
        switch Int32(truncatingIfNeeded: command) {
        case EVTCHNOP_alloc_unbound:
            var call = try read(address, 8)
            try requireSelf(call.u16(0))
            call.set(UInt32(try xen.events.allocateUnbound(remote: call.u16(2))), at: 4)
            try write(call.bytes, address)
        case EVTCHNOP_bind_interdomain:
            var call = try read(address, 12)
            let port = try xen.events.bindInterdomain(remote: call.u16(0), port: Int(call.u32(4)))
            call.set(UInt32(port), at: 8)
            try write(call.bytes, address)
            xen.route(port)
            xen.deliver(port)
        case EVTCHNOP_bind_virq:
            var call = try read(address, 12)
            call.set(UInt32(try xen.events.bind(virq: Int(call.u32(0)), vcpu: try target(call.u32(4)))), at: 8)
            try write(call.bytes, address)
        case EVTCHNOP_bind_ipi:
            var call = try read(address, 8)
            call.set(UInt32(try xen.events.bindIPI(vcpu: try target(call.u32(0)))), at: 4)
            try write(call.bytes, address)
        case EVTCHNOP_close: try xen.events.close(Int(try read(address, 4).u32(0)))
        case EVTCHNOP_send:
            xen.counters.sent.wrappingAdd(1, ordering: .relaxed)
            if let local = try xen.events.send(Int(try read(address, 4).u32(0))) { xen.deliver(local) }
        case EVTCHNOP_status: try eventStatus(address)
        case EVTCHNOP_bind_vcpu:
            let call = try read(address, 8)
            let vcpu = try target(call.u32(4))
            try xen.events.bind(Int(call.u32(0)), vcpu: vcpu)
            xen.route(Int(call.u32(0)))
        case EVTCHNOP_unmask:
            if let vcpu = try xen.events.unmask(Int(try read(address, 4).u32(0))) { xen.announce(vcpu) }
        case EVTCHNOP_reset:
            try requireSelf(try read(address, 2).u16(0))
            xen.events.closeAll()
        case EVTCHNOP_init_control: try initialiseControl(address)
        case EVTCHNOP_expand_array: try expandArray(address)
        case EVTCHNOP_set_priority: try setPriority(address)
        default: throw .notImplemented
        }
        return 0
    }

    /// A vCPU number that exists.
    func target(_ number: UInt32) throws(XenError) -> Int {
        guard number < UInt32(machine.vcpuCount) else { throw .noEntry }
        return Int(number)
    }

    /// struct evtchn_status.
    private func eventStatus(_ address: UInt64) throws(XenError) {
        var call = try read(address, 24)
        try requireSelf(call.u16(0))
        let port = Int(call.u32(4))
        guard port < xen.events.limit else { throw .invalid }
        let status = xen.events.status(port)
        call.set(UInt32(status?.vcpu ?? 0), at: 12)
        switch status?.binding {
        case nil: call.set(UInt32(EVTCHNSTAT_closed), at: 8)
        case .unbound(let remote):
            call.set(UInt32(EVTCHNSTAT_unbound), at: 8)
            call.set(remote, at: 16)
        case .interdomain(let remote, let other):
            call.set(UInt32(EVTCHNSTAT_interdomain), at: 8)
            call.set(remote, at: 16)
            call.set(other, at: 20)
        case .virq(let virq):
            call.set(UInt32(EVTCHNSTAT_virq), at: 8)
            call.set(UInt32(virq), at: 16)
        case .ipi: call.set(UInt32(EVTCHNSTAT_ipi), at: 8)
        }
        try write(call.bytes, address)
    }
}
