// Hypercalls: numbers, argument registers, guest memory; and who carries each of them out.
// Source: Xen public/xen.h ("hypercall numbers"), xen/arch/x86/hvm/hypercall.c (registers, who may call).
// Modelled: 64-bit and 32-bit callers, multicalls. Not modelled: what domain 0 alone may do.
// Quirks: an unknown number is -ENOSYS and one line in the log.

internal import CXen
internal import Processor

/// Errors in Xen's numbering (public/errno.h).
enum XenError: Int64, Error {
    case notPermitted = -1
    case noEntry = -2
    case noSuchProcess = -3
    case tooBig = -7
    case again = -11
    case noMemory = -12
    case fault = -14
    case busy = -16
    case exists = -17
    case invalid = -22
    case noSpace = -28
    case notImplemented = -38
    case timeout = -62
    case notSupported = -95
}

/// Guest memory by linear address, as the calling vCPU sees it.
protocol LinearMemory {
    func read(_ address: UInt64, _ count: Int) -> [UInt8]?
    func write(_ bytes: [UInt8], _ address: UInt64) -> Bool
    /// Where a structure lies for good.
    func span(_ address: UInt64, _ count: Int) -> GuestSpan?
}

/// A hypercall in progress.
struct Hypercall {
    let xen: XenDomain
    let memory: any LinearMemory
    let vcpu: Int
    /// The caller runs in 64-bit mode: its longs and pointers have 8 bytes.
    let isLong: Bool
    /// The calling vCPU of a PV guest.
    var cpu: (any ParavirtualCPU)?

    var machine: any XenMachine { xen.machine }
    /// Bytes of a long or a pointer.
    var long: Int { isLong ? 8 : 4 }

    static let argumentCount = 5
    // The header shows the present numbers of these to newer interface versions only.
    private static let schedOp: Int32 = 29
    private static let eventChannelOp: Int32 = 32
    private static let physdevOp: Int32 = 33

    /// Carries out call `number`; nil: there is none of that number.
    func dispatch(_ number: UInt64, _ arguments: [UInt64]) throws(XenError) -> Int64? {
        let (a, b, c) = (arguments[0], arguments[1], arguments[2])
        if let cpu, let result = try paravirtual(Int32(truncatingIfNeeded: number), arguments, cpu) { return result }
        switch Int32(truncatingIfNeeded: number) {
        case __HYPERVISOR_memory_op: return try memoryOperation(a, b)
        case __HYPERVISOR_multicall: return try multicall(a, b)
        case __HYPERVISOR_set_timer_op: return setTimer(a, b)
        case __HYPERVISOR_xen_version: return try version(a, b)
        case __HYPERVISOR_console_io: return try console(a, b, c)
        case __HYPERVISOR_grant_table_op: return try grantTable(a, b, c)
        case __HYPERVISOR_vcpu_op: return try vcpuOperation(a, b, c)
        case Self.schedOp: return try schedule(a, b)
        case __HYPERVISOR_sched_op_compat: return try scheduleCompat(a, b)
        case __HYPERVISOR_callback_op where xen.flavour == .pv: return try callback(a, b)
        case Self.eventChannelOp: return try eventChannel(a, b)
        case Self.physdevOp: return try physicalDevice(a, b)
        case __HYPERVISOR_vm_assist where xen.flavour != .pv: return try assist(a, b)
        case __HYPERVISOR_hvm_op where xen.flavour != .pv: return try hvm(a, b)
        // Performance counters are for domain 0 to allow.
        case __HYPERVISOR_xenpmu_op: throw .notSupported
        default: return nil
        }
    }

    /// The result as the guest gets it; `noteUnknown` hears of numbers and commands that do not exist.
    func result(_ number: UInt64, _ arguments: [UInt64]) -> Int64 {
        do throws(XenError) {
            guard let result = try dispatch(number, arguments) else {
                xen.output.noteUnknown(number, nil, machine)
                return XenError.notImplemented.rawValue
            }
            return result
        } catch {
            if error == .notImplemented { xen.output.noteUnknown(number, arguments[0], machine) }
            return error.rawValue
        }
    }

    // MARK: multicall

    /// struct multicall_entry: op, result, six arguments, all of them longs.
    private func multicall(_ list: UInt64, _ count: UInt64) throws(XenError) -> Int64 {
        guard count <= 1 << 16 else { throw .invalid }
        let size = 8 * long
        for index in 0..<count {
            let address = list &+ index &* UInt64(size)
            let entry = try read(address, size)
            let arguments = (0..<Self.argumentCount).map { entry.long((2 + $0) * long) }
            let number = entry.long(0)
            let result =
                number == UInt64(__HYPERVISOR_multicall)
                ? XenError.notPermitted.rawValue : result(number, arguments)
            var answer = Record(count: long, isLong: isLong)
            answer.setLong(UInt64(bitPattern: result), 0)
            try write(answer.bytes, address &+ UInt64(long))
        }
        return 0
    }

    // MARK: guest memory

    func read(_ address: UInt64, _ count: Int) throws(XenError) -> Record {
        guard let bytes = memory.read(address, count) else { throw .fault }
        return Record(bytes, isLong: isLong)
    }

    func write(_ bytes: [UInt8], _ address: UInt64) throws(XenError) {
        guard memory.write(bytes, address) else { throw .fault }
    }

    /// DOMID_SELF or the own number; nobody may act for another domain.
    func requireSelf(_ domid: UInt16) throws(XenError) {
        // Domain 0 is there, but is not the guest's to command.
        guard isSelf(domid) else { throw domid == 0 ? .notPermitted : .noSuchProcess }
    }
    func isSelf(_ domid: UInt16) -> Bool { domid == 0x7FF0 || domid == machine.domid }
}

/// A structure copied from the guest, or to be copied to it.
struct Record {
    var bytes: [UInt8]
    let isLong: Bool

    init(_ bytes: [UInt8], isLong: Bool) { (self.bytes, self.isLong) = (bytes, isLong) }
    init(count: Int, isLong: Bool) { self.init([UInt8](repeating: 0, count: count), isLong: isLong) }

    private func number(_ offset: Int, _ count: Int) -> UInt64 {
        guard offset >= 0, offset + count <= bytes.count else { return 0 }
        var value: UInt64 = 0
        for index in 0..<count { value |= UInt64(bytes[offset &+ index]) &<< UInt64(8 &* index) }
        return value
    }
    private mutating func set(_ value: UInt64, _ offset: Int, _ count: Int) {
        guard offset >= 0, offset + count <= bytes.count else { return }
        for index in 0..<count { bytes[offset + index] = UInt8(truncatingIfNeeded: value >> UInt64(8 * index)) }
    }

    /// A structure in a list of them.
    func part(_ offset: Int, _ count: Int) -> Record {
        Record(Array(bytes.dropFirst(offset).prefix(count)), isLong: isLong)
    }

    func u16(_ offset: Int) -> UInt16 { UInt16(truncatingIfNeeded: number(offset, 2)) }
    func u32(_ offset: Int) -> UInt32 { UInt32(truncatingIfNeeded: number(offset, 4)) }
    func u64(_ offset: Int) -> UInt64 { number(offset, 8) }
    /// A long or pointer of the guest.
    func long(_ offset: Int) -> UInt64 { number(offset, isLong ? 8 : 4) }
    mutating func set(_ value: UInt16, at offset: Int) { set(UInt64(value), offset, 2) }
    mutating func set(_ value: UInt32, at offset: Int) { set(UInt64(value), offset, 4) }
    mutating func set(_ value: UInt64, at offset: Int) { set(value, offset, 8) }
    mutating func setLong(_ value: UInt64, _ offset: Int) { set(value, offset, isLong ? 8 : 4) }
}

/// The hypercall page: an entry of 32 bytes for each number.
enum HypercallPage {
    static let entries = 128
    /// mov eax, n; vmcall; ret. Entry 23 (iret) is ud2: HVM guests have no such call.
    static var bytes: [UInt8] {
        var page: [UInt8] = []
        for number in 0..<entries {
            var entry: [UInt8] = [0xB8, UInt8(number), 0, 0, 0, 0x0F, 0x01, 0xC1, 0xC3]
            if number == 23 { entry = [0x0F, 0x0B] }
            page += entry + [UInt8](repeating: 0xCC, count: 32 - entry.count)
        }
        return page
    }
}
