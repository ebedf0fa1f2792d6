// Hypercalls of an HVM guest, as far as a guest without PV devices needs them.
// Source: Xen public/xen.h, public/version.h, public/memory.h, public/vcpu.h; xen/arch/x86/hvm/hypercall.c.
// Modelled: xen_version, memory_op add_to_physmap (shared info), vcpu_op register_vcpu_info; the hypercall page.
// Not modelled: event channels, grants, everything else: -ENOSYS and one line in the log for each number.

internal import Ioreq
internal import Processor

/// Errors in Xen's numbering (public/errno.h).
enum XenError: Int64, Error {
    case notPermitted = -1
    case fault = -14
    case invalid = -22
    case notImplemented = -38
}

/// A hypercall in progress: arguments, and guest memory through the vCPU's page tables.
struct Hypercall {
    let domain: Domain
    let engine: any VCPUEngine
    let vcpu: Int

    /// Carries out what the registers ask for and leaves the result in RAX.
    func run() {
        let number = engine[register: 0] & (engine.isLongMode ? .max : 0xFFFF_FFFF)
        var result: Int64
        do throws(XenError) {
            guard engine.privilegeLevel == 0 else { throw .notPermitted }
            result = try dispatch(number)
        } catch {
            result = error.rawValue
        }
        if result == XenError.notImplemented.rawValue { domain.noteUnknown(hypercall: number) }
        let value = UInt64(bitPattern: result)
        engine[register: 0] = engine.isLongMode ? value : value & 0xFFFF_FFFF
    }

    private func dispatch(_ number: UInt64) throws(XenError) -> Int64 {
        switch number {
        case 12: return try memory(argument(0), argument(1))
        case 17: return try version(argument(0), argument(1))
        case 24: return try vcpuOperation(argument(0), argument(1), argument(2))
        default: throw .notImplemented
        }
    }

    /// RDI, RSI, RDX in 64-bit mode; EBX, ECX, EDX otherwise.
    private func argument(_ index: Int) -> UInt64 {
        if engine.isLongMode { return engine[register: [7, 6, 2][index]] }
        return engine[register: [3, 1, 2][index]] & 0xFFFF_FFFF
    }

    // MARK: xen_version

    private func version(_ command: UInt64, _ address: UInt64) throws(XenError) -> Int64 {
        switch command {
        case 0: return Int64(XenLeaves.version)
        case 1: try put(text(".0-apus", 16), address)
        case 2: try put(text("swift", 64) + text("apus", 16) + text("apus", 32) + text("", 32), address)
        case 3: try put(text("hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64 ", 1024), address)
        case 4: try put(text("", 64), address)
        // Where the hypervisor's hole would begin; an HVM guest has none.
        case 5: try put([UInt8](repeating: 0, count: engine.isLongMode ? 8 : 4), address)
        // No features: no PV clock, no callback vector, no PIRQs.
        case 6:
            guard number(try get(address, 4)) == 0 else { throw .invalid }
            try put([0, 0, 0, 0], address &+ 4)
        case 7: return 4096
        case 8: try put(domain.handle, address)
        case 9: try put(text("", 1024), address)
        default: throw .notImplemented
        }
        return 0
    }

    private func text(_ string: String, _ count: Int) -> [UInt8] {
        let bytes = Array(string.utf8.prefix(count - 1))
        return bytes + [UInt8](repeating: 0, count: count - bytes.count)
    }

    // MARK: memory_op, vcpu_op

    /// XENMEM_add_to_physmap (7): u16 domid, u16 size, u32 space, long idx, long gpfn.
    private func memory(_ command: UInt64, _ address: UInt64) throws(XenError) -> Int64 {
        guard command & 0x3F == 7 else { throw .notImplemented }
        let long = engine.isLongMode ? 8 : 4
        let bytes = try get(address, 8 + 2 * long)
        let domid = number(Array(bytes[0..<2]))
        guard domid == 0x7FF0 || domid == UInt64(domain.leaves.domid) else { throw .notPermitted }
        guard number(Array(bytes[4..<8])) == 0 else { throw .notImplemented }
        let (index, frame) = (number(Array(bytes[8..<(8 + long)])), number(Array(bytes[(8 + long)...])))
        guard index == 0, frame > 0, frame < 1 << 34 else { throw .invalid }
        domain.changeMemory { $0.sharedInfo = frame << 12 }
        return 0
    }

    /// VCPUOP_register_vcpu_info (10): u64 mfn, u32 offset, u32 reserved. The area must lie in one page of RAM.
    private func vcpuOperation(_ command: UInt64, _ target: UInt64, _ address: UInt64) throws(XenError) -> Int64 {
        guard command == 10 else { throw .notImplemented }
        guard target < UInt64(domain.leaves.vcpus) else { throw .invalid }
        let bytes = try get(address, 16)
        let (frame, offset) = (number(Array(bytes[0..<8])), number(Array(bytes[8..<12])))
        guard frame < 1 << 34, offset <= 4096 - 64, offset & 7 == 0 else { throw .invalid }
        // Nothing pending, events masked, no selector.
        var info = [UInt8](repeating: 0, count: 64)
        info[1] = 1
        guard domain.memory.write(frame << 12 + offset, info) else { throw .invalid }
        return 0
    }

    // MARK: guest memory

    private func number(_ bytes: [UInt8]) -> UInt64 { bytes.reversed().reduce(0) { $0 << 8 | UInt64($1) } }

    private func get(_ address: UInt64, _ count: Int) throws(XenError) -> [UInt8] {
        var result: [UInt8] = []
        for (start, bytes) in spans(address, count) {
            guard let physical = engine.physicalAddress(ofLinear: start),
                let part = domain.memory.read(physical, bytes: bytes)
            else { throw .fault }
            result += part
        }
        return result
    }

    private func put(_ bytes: [UInt8], _ address: UInt64) throws(XenError) {
        var rest = bytes[...]
        for (start, count) in spans(address, bytes.count) {
            guard let physical = engine.physicalAddress(ofLinear: start),
                domain.memory.write(physical, Array(rest.prefix(count)))
            else { throw .fault }
            domain.codeChanged(at: physical, bytes: UInt64(count))
            rest = rest.dropFirst(count)
        }
    }

    /// Parts that do not cross a page.
    private func spans(_ address: UInt64, _ count: Int) -> [(UInt64, Int)] {
        var result: [(UInt64, Int)] = []
        var done = 0
        while done < count {
            let start = address &+ UInt64(done)
            let bytes = min(count - done, 4096 - Int(start & 0xFFF))
            result.append((start, bytes))
            done += bytes
        }
        return result
    }
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
