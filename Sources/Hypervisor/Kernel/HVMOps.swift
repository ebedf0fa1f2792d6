// hvm_op and the parameters behind it: above all, how an HVM guest is told of pending events.
// Source: Xen public/hvm/hvm_op.h, public/hvm/params.h; xen/arch/x86/hvm/hvm.c (what a guest may set and read).
// Modelled: callback by vector, by line and by PCI INTx; a vector for each vCPU. Not modelled: alternate p2m.
// Quirks: a vCPU's own vector goes before the domain's callback; Linux sets a callback of 1 just to say it has one.

internal import CXen
internal import Synchronization

final class HVMParameters: Sendable {
    /// How the domain is told of events.
    enum Callback: Equatable, Sendable {
        case none
        case vector(UInt8)
        case line(Int)
        /// INTA...INTD (0...3) of a PCI device.
        case pin(device: Int, pin: Int)

        /// Whether it is a level that vCPU 0 sees.
        var isLevel: Bool {
            switch self {
            case .line, .pin: true
            case .none, .vector: false
            }
        }
    }

    private struct State {
        var values = [UInt64](repeating: 0, count: Int(HVM_NR_PARAMS))
        var callback = Callback.none
        var vectors: [UInt8]
    }
    private let state: Mutex<State>

    init(vcpus: Int) { state = Mutex(State(vectors: [UInt8](repeating: 0, count: vcpus))) }

    subscript(index: Int32) -> UInt64 {
        get { state.withLock { $0.values.indices.contains(Int(index)) ? $0.values[Int(index)] : 0 } }
        set {
            state.withLock { state in
                guard state.values.indices.contains(Int(index)) else { return }
                state.values[Int(index)] = newValue
                if index == HVM_PARAM_CALLBACK_IRQ { state.callback = Self.callback(newValue) }
            }
        }
    }

    var callback: Callback { state.withLock { $0.callback } }

    /// HVM_PARAM_CALLBACK_IRQ: bits 63:56 give the form.
    static func callback(_ value: UInt64) -> Callback {
        switch Int32(value >> 56) {
        case 0:
            let line = Int(value & 0xFF)
            return line == 0 || line >= 48 ? .none : .line(line)
        case HVM_PARAM_CALLBACK_TYPE_PCI_INTX:
            return .pin(device: Int(value >> 11 & 0x1F), pin: Int(value & 3))
        case HVM_PARAM_CALLBACK_TYPE_VECTOR:
            let vector = UInt8(truncatingIfNeeded: value)
            return vector < 16 ? .none : .vector(vector)
        default: return .none
        }
    }

    func upcallVector(_ vcpu: Int) -> UInt8? {
        state.withLock { state in
            guard state.vectors.indices.contains(vcpu), state.vectors[vcpu] != 0 else { return nil }
            return state.vectors[vcpu]
        }
    }

    func setUpcallVector(_ vector: UInt8, vcpu: Int) {
        state.withLock { if $0.vectors.indices.contains(vcpu) { $0.vectors[vcpu] = vector } }
    }
}

extension Hypercall {
    /// vm_assist: an HVM guest may ask for a mark while its run state changes. The copy is written in one go on its
    /// own vCPU's thread here, so there is never a moment to mark.
    func assist(_ command: UInt64, _ type: UInt64) throws(XenError) -> Int64 {
        guard type == UInt64(VMASST_TYPE_runstate_update_flag) else { throw .invalid }
        guard [VMASST_CMD_enable, VMASST_CMD_disable].contains(Int32(truncatingIfNeeded: command)) else {
            return XenError.notImplemented.rawValue
        }
        return 0
    }

    func hvm(_ command: UInt64, _ address: UInt64) throws(XenError) -> Int64 {
        guard xen.flavour != .plain else { throw .notImplemented }
        switch Int32(truncatingIfNeeded: command) {
        case HVMOP_set_param:
            let call = try read(address, 16)
            try requireSelf(call.u16(0))
            return try setParameter(Int32(bitPattern: call.u32(4)), call.u64(8))
        case HVMOP_get_param:
            var call = try read(address, 16)
            try requireSelf(call.u16(0))
            call.set(try parameter(Int32(bitPattern: call.u32(4))), at: 8)
            try write(call.bytes, address)
            return 0
        case HVMOP_set_evtchn_upcall_vector:
            let call = try read(address, 8)
            let vcpu = try target(call.u32(0))
            let vector = call.bytes[4]
            guard vector >= 16 else { throw .invalid }
            if vcpu == 0 { machine.driveCallback(nil) }
            xen.parameters.setUpcallVector(vector, vcpu: vcpu)
            if xen.shared.isUpcallPending(vcpu) { xen.announce(vcpu) }
            return 0
        case HVMOP_get_time:
            var time = Record(count: 8, isLong: isLong)
            time.set(machine.nanoseconds, at: 0)
            try write(time.bytes, address)
            return 0
        // Translations are looked up by the engine itself: nothing to do.
        case HVMOP_flush_tlbs: return address == 0 ? 0 : XenError.invalid.rawValue
        // Of use to shadow paging only; a guest asks once whether it is needed.
        case HVMOP_pagetable_dying: return XenError.notImplemented.rawValue
        case HVMOP_get_mem_type: return try memoryType(address)
        case HVMOP_set_pci_intx_level, HVMOP_set_isa_irq_level, HVMOP_set_pci_link_route, HVMOP_altp2m:
            throw .notPermitted
        default: throw .notImplemented
        }
    }

    private func setParameter(_ index: Int32, _ value: UInt64) throws(XenError) -> Int64 {
        guard (0..<HVM_NR_PARAMS).contains(index) else { throw .invalid }
        switch index {
        case HVM_PARAM_CALLBACK_IRQ:
            machine.driveCallback(nil)
            xen.parameters[index] = value
            xen.shared.latch(isLong: isLong)
            xen.clockChanged()
            if xen.shared.isUpcallPending(0) { xen.announce(0) }
        case HVM_PARAM_VM86_TSS, HVM_PARAM_VM86_TSS_SIZED, HVM_PARAM_ACPI_IOPORTS_LOCATION,
            HVM_PARAM_VM_GENERATION_ID_ADDR, HVM_PARAM_STORE_EVTCHN, HVM_PARAM_CONSOLE_EVTCHN,
            HVM_PARAM_X87_FIP_WIDTH:
            xen.parameters[index] = value
        default: throw .notPermitted
        }
        return 0
    }

    private func parameter(_ index: Int32) throws(XenError) -> UInt64 {
        guard (0..<HVM_NR_PARAMS).contains(index) else { throw .invalid }
        switch index {
        case HVM_PARAM_CALLBACK_IRQ, HVM_PARAM_VM86_TSS, HVM_PARAM_VM86_TSS_SIZED, HVM_PARAM_ACPI_IOPORTS_LOCATION,
            HVM_PARAM_VM_GENERATION_ID_ADDR, HVM_PARAM_STORE_EVTCHN, HVM_PARAM_CONSOLE_EVTCHN,
            HVM_PARAM_X87_FIP_WIDTH, HVM_PARAM_STORE_PFN, HVM_PARAM_CONSOLE_PFN, HVM_PARAM_ALTP2M:
            return xen.parameters[index]
        default: throw .notPermitted
        }
    }

    /// struct xen_hvm_get_mem_type: u16 domain, u16 type (0 RAM, 2 MMIO by a device model), u64 frame at 8.
    private func memoryType(_ address: UInt64) throws(XenError) -> Int64 {
        var call = try read(address, 16)
        try requireSelf(call.u16(0))
        call.set(UInt16(machine.page(call.u64(8)) == nil ? 2 : 0), at: 2)
        try write(call.bytes, address)
        return 0
    }
}
