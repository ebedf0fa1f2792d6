// xen_version, console_io, physdev_op and callback_op: what the guest asks of the platform.
// Source: Xen public/version.h, features.h, physdev.h, callback.h; xen/common/kernel.c.
// Modelled: version strings and features, output to the hypervisor's log, the callbacks that a PV kernel registers.
// Not modelled: physical interrupts (XENFEAT_hvm_pirqs is off), command line and build id.

internal import CXen
internal import Processor
internal import Synchronization

/// What the guest writes to Xen's console, line by line; and the calls it makes in vain.
final class GuestOutput: Sendable {
    private let line = Mutex<[UInt8]>([])
    private let unknown = Mutex<Set<[UInt64]>>([])
    private static let lineLimit = 512

    func write(_ bytes: [UInt8], _ machine: any XenMachine) {
        let lines: [String] = line.withLock { line in
            var lines: [String] = []
            for byte in bytes {
                if byte == 10 || line.count >= Self.lineLimit {
                    lines.append(String(decoding: line, as: UTF8.self))
                    line = []
                }
                if byte >= 32 || byte == 9 { line.append(byte) }
            }
            return lines
        }
        for line in lines { machine.log("(d\(machine.domid)) \(line)") }
    }

    /// One line for each number and command.
    func noteUnknown(_ number: UInt64, _ command: UInt64?, _ machine: any XenMachine) {
        let key = [number] + (command.map { [$0] } ?? [])
        guard unknown.withLock({ $0.count < 64 && $0.insert(key).inserted }) else { return }
        machine.log("hypercall \(number)\(command.map { ", command \($0)," } ?? "") is not implemented")
    }
}

/// Where a PV kernel wants to be called: event (0), failsafe (1), syscall (2), sysenter, NMI and their like.
final class Callbacks: Sendable {
    struct Entry: Equatable, Sendable {
        var address: UInt64
        /// CALLBACKF_mask_events.
        var masksEvents: Bool
    }
    private let entries: Mutex<[[UInt16: Entry]]>

    init(vcpus: Int) { entries = Mutex([[UInt16: Entry]](repeating: [:], count: vcpus)) }

    subscript(vcpu: Int, type: UInt16) -> Entry? {
        get { entries.withLock { $0.indices.contains(vcpu) ? $0[vcpu][type] : nil } }
        set { entries.withLock { if $0.indices.contains(vcpu) { $0[vcpu][type] = newValue } } }
    }
}

extension Hypercall {
    // MARK: xen_version

    func version(_ command: UInt64, _ address: UInt64) throws(XenError) -> Int64 {
        switch Int32(truncatingIfNeeded: command) {
        case XENVER_version: return Int64(XenLeaves.version)
        case XENVER_extraversion: try write(text(".0-apus", 16), address)
        case XENVER_compile_info:
            try write(text("swift", 64) + text("apus", 16) + text("apus", 32) + text("", 32), address)
        case XENVER_capabilities:
            try write(text("xen-3.0-x86_64 hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64 ", 1024), address)
        case XENVER_changeset: try write(text("", 64), address)
        // Where the hypervisor's hole begins; an HVM guest has none.
        case XENVER_platform_parameters:
            var record = Record(count: long, isLong: isLong)
            if xen.flavour == .pv { record.setLong(0xFFFF_8000_0000_0000, 0) }
            try write(record.bytes, address)
        case XENVER_get_features:
            var record = try read(address, 8)
            record.set(record.u32(0) == 0 ? features : 0, at: 4)
            try write(record.bytes, address)
        case XENVER_pagesize: return 4096
        case XENVER_guest_handle: try write(xen.handle, address)
        case XENVER_commandline: try write(text("", 1024), address)
        case XENVER_build_id: return XenError.notImplemented.rawValue
        default: throw .notImplemented
        }
        return 0
    }

    private var features: UInt32 {
        let set: [Int32]
        switch xen.flavour {
        case .plain: set = []
        case .hvm:
            set = [
                XENFEAT_writable_page_tables, XENFEAT_writable_descriptor_tables, XENFEAT_auto_translated_physmap,
                XENFEAT_hvm_callback_vector, XENFEAT_hvm_safe_pvclock,
            ]
        case .pv: set = [XENFEAT_pae_pgdir_above_4gb, XENFEAT_mmu_pt_update_preserve_ad, XENFEAT_gnttab_map_avail_bits]
        }
        return set.reduce(0) { $0 | 1 << UInt32($1) }
    }

    private func text(_ string: String, _ count: Int) -> [UInt8] {
        let bytes = Array(string.utf8.prefix(count - 1))
        return bytes + [UInt8](repeating: 0, count: count - bytes.count)
    }

    // MARK: console_io

    func console(_ command: UInt64, _ count: UInt64, _ address: UInt64) throws(XenError) -> Int64 {
        switch Int32(truncatingIfNeeded: command) {
        case CONSOLEIO_write:
            let bytes = try read(address, Int(min(count, 4096))).bytes
            xen.output.write(bytes, machine)
            return Int64(bytes.count)
        // Nobody types here.
        case CONSOLEIO_read: return 0
        default: throw .notImplemented
        }
    }

    // MARK: physdev_op

    func physicalDevice(_ command: UInt64, _ address: UInt64) throws(XenError) -> Int64 {
        switch Int32(truncatingIfNeeded: command) {
        case PHYSDEVOP_eoi: return 0
        case PHYSDEVOP_irq_status_query:
            try write([0, 0, 0, 0], address &+ 4)
            return 0
        case PHYSDEVOP_set_iopl:
            // No port is wired to anything, so privilege over them is harmless.
            guard let cpu else { throw .notImplemented }
            let level = try read(address, 4).u32(0)
            guard level <= 3 else { throw .invalid }
            cpu.portLevel = UInt8(level)
            return 0
        case PHYSDEVOP_set_iobitmap:
            guard xen.flavour == .pv else { throw .notImplemented }
            return 0
        case PHYSDEVOP_pirq_eoi_gmfn_v1, PHYSDEVOP_pirq_eoi_gmfn_v2, PHYSDEVOP_map_pirq, PHYSDEVOP_get_free_pirq:
            return XenError.notImplemented.rawValue
        default: throw .notImplemented
        }
    }

    // MARK: callback_op

    /// struct callback_register: u16 type, u16 flags, address at the next long.
    func callback(_ command: UInt64, _ address: UInt64) throws(XenError) -> Int64 {
        let call = try read(address, command == UInt64(CALLBACKOP_register) ? 2 * long : 2)
        let type = call.u16(0)
        switch Int32(truncatingIfNeeded: command) {
        case CALLBACKOP_register:
            switch Int32(type) {
            case CALLBACKTYPE_event, CALLBACKTYPE_failsafe, CALLBACKTYPE_syscall, CALLBACKTYPE_nmi,
                CallbackType.systemCall32, CallbackType.systemEnter:
                xen.callbacks[vcpu, type] = Callbacks.Entry(
                    address: call.long(long), masksEvents: call.u16(2) & 1 != 0)
            default: return XenError.notImplemented.rawValue
            }
        case CALLBACKOP_unregister:
            guard type == UInt16(CALLBACKTYPE_nmi) else { throw .invalid }
            xen.callbacks[vcpu, type] = nil
        default: throw .notImplemented
        }
        if let cpu { enterCallback(type, xen.callbacks[vcpu, type], cpu) }
        return 0
    }
}

/// Numbers that the header shows in another way to older interface versions.
enum CallbackType {
    static let systemEnter: Int32 = 5
    static let systemCall32: Int32 = 7
}
