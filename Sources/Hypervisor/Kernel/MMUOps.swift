// mmu_update, update_va_mapping and mmuext_op: a PV guest changes its page tables, and has them forgotten.
// Source: Xen public/xen.h ("MMU-UPDATE REQUESTS", "MMU EXTENDED OPERATIONS"); xen/arch/x86/mm.c (checks and errors).
// Modelled: all commands of 64-bit guests but superpage marks. Machine frames are guest frames (decision 0008).
// Not modelled: tables of other domains. Quirks: an entry may lead to the domain's RAM, shared info and grant frames.

internal import CXen
internal import Processor

extension Hypercall {
    static let addressMask: UInt64 = 0x000F_FFFF_FFFF_F000
    private static let accessedAndDirty: UInt64 = 0x60

    func tables(_ memory: ParavirtualMemory) -> TableRegister {
        TableRegister(memory: memory) { [machine] in machine.page($0) }
    }

    func known() throws(XenError) -> ParavirtualMemory {
        guard let known = machine.paravirtual else { throw .notImplemented }
        return known
    }

    /// Nothing but the own domain's memory: its RAM, and behind it what the hypervisor shows it.
    private func mayMap(_ frame: UInt64) -> Bool {
        frame <= machine.ramFrames + UInt64(GrantTable.maximumFrames)
    }

    // MARK: mmu_update

    /// A list of struct mmu_update: address with command, value.
    func updateTables(_ list: UInt64, _ count: UInt64, _ done: UInt64, _ domain: UInt64) throws(XenError) -> Int64 {
        try requireSelf(UInt16(truncatingIfNeeded: domain))
        let known = try known()
        return try carryOut(list, count, most: 1 << 20, bytes: 16, done) { (entries, offset) throws(XenError) in
            try update(entries.u64(offset), entries.u64(offset + 8), known)
        }
    }

    /// Entries of a list that are read in one go.
    private static let piece: UInt64 = 64

    /// Does a list's entries of `bytes` each in turn, up to the first that fails; how many were done goes to `done`. `body`
    /// gets some of them, and where among them its own lies.
    private func carryOut(
        _ list: UInt64, _ count: UInt64, most: UInt64, bytes: Int, _ done: UInt64,
        _ body: (Record, Int) throws(XenError) -> Void
    ) throws(XenError) -> Int64 {
        let count = count & 0x7FFF_FFFF
        guard count <= most else { throw .invalid }
        var failure: XenError?
        var finished: UInt64 = 0
        while finished < count, failure == nil {
            let size = bytes * Int(min(Self.piece, count - finished))
            do throws(XenError) {
                // A list that ends in a page that is not there is done up to that page.
                let place = list &+ finished &* UInt64(bytes)
                let piece = memory.read(place, size).map { Record($0, isLong: isLong) }
                let entries = if let piece { piece } else { try read(place, bytes) }
                for offset in stride(from: 0, to: entries.bytes.count, by: bytes) {
                    try body(entries, offset)
                    finished += 1
                }
            } catch { failure = error }
        }
        if done != 0 { try write(Record(UInt32(truncatingIfNeeded: finished)).bytes, done) }
        if let failure { throw failure }
        return 0
    }

    private func update(_ place: UInt64, _ value: UInt64, _ known: ParavirtualMemory) throws(XenError) {
        switch Int32(place & 3) {
        case MMU_MACHPHYS_UPDATE:
            guard place >> 12 < machine.ramFrames else { throw .invalid }
            machine.setFrame(place >> 12, to: value)
        case MMU_NORMAL_PT_UPDATE: try set(place, value, keepsMarks: false, known)
        default: try set(place & ~3, value, keepsMarks: true, known)
        }
    }

    /// Stores one entry, in a table or, as Xen lets guests, in any page of RAM.
    func set(
        _ place: UInt64, _ value: UInt64, keepsMarks: Bool, _ known: ParavirtualMemory, isLeaf: Bool = false
    ) throws(XenError) {
        guard place & 7 == 0, let page = machine.page(place >> 12) else { throw .invalid }
        let level = isLeaf ? 1 : known[place >> 12]
        let offset = Int(place & 0xFFF)
        if level == 4, TableRegister.reserved.contains(offset / 8) { throw .invalid }
        if level > 0, value & TableRegister.present != 0 {
            let frame = TableRegister.frame(value)
            if level == 1 {
                guard mayMap(frame) else { throw .invalid }
            } else {
                guard value & TableRegister.large == 0, tables(known).note(frame, level: level - 1) else {
                    throw .invalid
                }
            }
        }
        if keepsMarks {
            page.replace64(at: offset) { value | $0 & Self.accessedAndDirty }
        } else {
            page.replace64(at: offset) { _ in value }
        }
        machine.noteWritten(place, bytes: 8)
    }

    // MARK: update_va_mapping

    func updateMapping(
        _ linear: UInt64, _ value: UInt64, _ flags: UInt64, _ cpu: any ParavirtualCPU
    ) throws(XenError) -> Int64 {
        let known = try known()
        guard let place = tables(known).leafEntry(linear, root: cpu.kernelTables & Self.addressMask) else {
            throw .invalid
        }
        try set(place, value, keepsMarks: false, known, isLeaf: true)
        let kind = flags & 3
        guard kind != 0 else { return 0 }
        // UVMF_INVLPG; then UVMF_LOCAL, UVMF_ALL, or where a bitmap lies.
        let page = kind == 2 ? linear : nil
        switch flags & ~3 {
        case 0: flush(page, cpu)
        case 4: flush(page, cpu, others: .max)
        case let address: flush(page, cpu, others: try mask(address))
        }
        return 0
    }

    // MARK: forgetting

    /// Forgets one page or all, here and on other vCPUs.
    func flush(_ page: UInt64?, _ cpu: any ParavirtualCPU, others: UInt64 = 0) {
        if others == 0 || others >> UInt64(vcpu) & 1 != 0 {
            if let page { cpu.flushPage(page) } else { cpu.flushAll() }
        }
        let others = others & ~(1 << UInt64(vcpu))
        if others != 0 { machine.flush(page, of: others) }
    }

    /// A bitmap of vCPUs.
    private func mask(_ address: UInt64) throws(XenError) -> UInt64 {
        let bytes = try read(address, (machine.vcpuCount + 7) / 8).bytes
        return bytes.reversed().reduce(0) { $0 << 8 | UInt64($1) }
    }

    // MARK: mmuext_op

    /// A list of struct mmuext_op: command, first argument at 8, second at 16.
    func extendedOperations(
        _ list: UInt64, _ count: UInt64, _ done: UInt64, _ domain: UInt64, _ cpu: any ParavirtualCPU
    ) throws(XenError) -> Int64 {
        try requireSelf(UInt16(truncatingIfNeeded: domain))
        let known = try known()
        return try carryOut(list, count, most: 1 << 16, bytes: 24, done) { (calls, offset) throws(XenError) in
            try extended(calls.part(offset, 24), cpu, known)
        }
    }

    private func extended(_ call: Record, _ cpu: any ParavirtualCPU, _ known: ParavirtualMemory) throws(XenError) {
        let (command, frame) = (Int32(bitPattern: call.u32(0)), call.u64(8))
        switch command {
        case MMUEXT_PIN_L1_TABLE, MMUEXT_PIN_L2_TABLE, MMUEXT_PIN_L3_TABLE, MMUEXT_PIN_L4_TABLE:
            guard tables(known).note(frame, level: UInt8(command - MMUEXT_PIN_L1_TABLE) + 1) else { throw .invalid }
        case MMUEXT_UNPIN_TABLE:
            guard machine.page(frame) != nil else { throw .invalid }
            tables(known).forget(frame)
        case MMUEXT_NEW_BASEPTR:
            try load(frame, known)
            cpu.setKernelTables(frame << 12)
        case MMUEXT_NEW_USER_BASEPTR:
            if frame != 0 { try load(frame, known) }
            cpu.setUserTables(frame << 12)
        case MMUEXT_TLB_FLUSH_LOCAL: flush(nil, cpu)
        case MMUEXT_INVLPG_LOCAL: flush(call.u64(8), cpu)
        case MMUEXT_TLB_FLUSH_MULTI: try flushSome(nil, call, cpu)
        case MMUEXT_INVLPG_MULTI: try flushSome(call.u64(8), call, cpu)
        case MMUEXT_TLB_FLUSH_ALL: flush(nil, cpu, others: .max)
        case MMUEXT_INVLPG_ALL: flush(call.u64(8), cpu, others: .max)
        case MMUEXT_FLUSH_CACHE, MMUEXT_FLUSH_CACHE_GLOBAL: break
        case MMUEXT_SET_LDT:
            let entries = call.u32(16)
            guard entries <= 8192, call.u64(8) & 0xFFF == 0 else { throw .invalid }
            cpu.setLDT(base: call.u64(8), entries: Int(entries))
        case MMUEXT_CLEAR_PAGE: try fill(frame, with: [UInt8](repeating: 0, count: 4096), known)
        case MMUEXT_COPY_PAGE:
            guard let source = machine.page(call.u64(16)) else { throw .invalid }
            try fill(frame, with: source.read(0, 4096), known)
        default: throw .notImplemented
        }
    }

    /// A set of vCPUs that is empty is no vCPU at all.
    private func flushSome(_ page: UInt64?, _ call: Record, _ cpu: any ParavirtualCPU) throws(XenError) {
        let others = try mask(call.u64(16))
        if others != 0 { flush(page, cpu, others: others) }
    }

    /// A table that is used without having been pinned counts as one from then on.
    private func load(_ frame: UInt64, _ known: ParavirtualMemory) throws(XenError) {
        guard machine.page(frame) != nil else { throw .invalid }
        if known[frame] != 4 { tables(known).note(frame, level: 4) }
    }

    private func fill(_ frame: UInt64, with bytes: [UInt8], _ known: ParavirtualMemory) throws(XenError) {
        guard known[frame] == 0, let page = machine.page(frame) else { throw .invalid }
        page.write(bytes, at: 0)
        machine.noteWritten(frame << 12, bytes: 4096)
    }
}

extension Record {
    /// An int of the guest's.
    fileprivate init(_ value: UInt32) {
        self.init(count: 4, isLong: true)
        set(value, at: 0)
    }
}
