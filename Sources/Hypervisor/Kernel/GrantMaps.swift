// What a PV guest has mapped of its own grants: handles, and the page-table entries that show the frames.
// Source: Xen public/grant_table.h (map_grant_ref, unmap_grant_ref, GNTMAP_*); xen/common/grant_table.c, arch/x86/pv/grant_table.c.
// Modelled: by linear address and by entry, read-only, bits that are the guest's in entries. Not modelled: other domains'
// grants, unmap_and_replace. Quirks: the bus address of a frame is its machine address: there is no IOMMU.

internal import CXen
internal import Processor
internal import Synchronization

final class GrantMaps: Sendable {
    struct Mapping: Equatable, Sendable {
        var reference: UInt32
        var frame: UInt64
        var writes: Bool
        /// As the guest gave it: linear, or the machine address of an entry. 0: no entry shows the frame.
        var address: UInt64
        var isEntry: Bool
    }
    static let limit = 1 << 16
    private let mappings = Mutex<[Mapping?]>([])

    /// Notes a mapping; its handle, or nil if there are too many.
    func add(_ mapping: Mapping) -> UInt32? {
        mappings.withLock { mappings in
            let slot = mappings.firstIndex(of: nil) ?? mappings.count
            guard slot < Self.limit else { return nil }
            if slot == mappings.count { mappings.append(mapping) } else { mappings[slot] = mapping }
            return UInt32(slot)
        }
    }

    subscript(handle: UInt32) -> Mapping? {
        mappings.withLock { $0.indices.contains(Int(handle)) ? $0[Int(handle)] : nil }
    }

    /// Forgets a mapping, and says who has the same entry of the grant table still.
    func remove(_ handle: UInt32) -> (isRead: Bool, isWritten: Bool) {
        mappings.withLock { mappings in
            guard mappings.indices.contains(Int(handle)), let old = mappings[Int(handle)] else { return (false, false) }
            mappings[Int(handle)] = nil
            while mappings.last == .some(nil) { mappings.removeLast() }
            let others = mappings.compactMap { $0 }.filter { $0.reference == old.reference }
            return (!others.isEmpty, others.contains(where: \.writes))
        }
    }
}

extension Hypercall {
    private static let offered = UInt32(bitPattern: GNTMAP_device_map | GNTMAP_host_map)

    /// struct gnttab_map_grant_ref: host_addr, flags at 8, ref 12, dom 16, status 18, handle 20, dev_bus_addr 24.
    func map(_ call: inout Record, _ cpu: any ParavirtualCPU) {
        do throws(GrantStatus) {
            let mapping = try mapped(call, cpu)
            guard let handle = xen.maps.add(mapping) else {
                _ = clear(mapping, cpu)
                xen.grants.end(mapping.reference)
                throw .noSpace
            }
            call.set(handle, at: 20)
            call.set(mapping.frame << 12, at: 24)
            call.set(UInt16(0), at: 18)
        } catch { call.set(UInt16(bitPattern: error.rawValue), at: 18) }
    }

    private func mapped(_ call: Record, _ cpu: any ParavirtualCPU) throws(GrantStatus) -> GrantMaps.Mapping {
        let (flags, reference) = (call.u32(8), call.u32(12))
        func has(_ flag: Int32) -> Bool { flags & UInt32(bitPattern: flag) != 0 }
        guard isSelf(call.u16(16)) else { throw .badDomain }
        guard flags & Self.offered != 0 else { throw .badReference }
        let writes = !has(GNTMAP_readonly)
        let frame = try xen.grants.begin(reference, domid: machine.domid, writes: writes).get()
        var mapping = GrantMaps.Mapping(
            reference: reference, frame: frame, writes: writes, address: 0, isEntry: has(GNTMAP_contains_pte))
        var failure: GrantStatus? = machine.page(frame) == nil ? .badPage : nil
        if failure == nil, has(GNTMAP_host_map) {
            mapping.address = call.u64(0)
            // Present, accessed, dirty, not executable.
            var entry = frame << 12 | 0x61 | 1 << 63 | (writes ? 2 : 0) | (has(GNTMAP_application_map) ? 4 : 0)
            entry |= UInt64(flags >> 16 & 7) << 9
            failure = write(entry, mapping, cpu)
        }
        guard let failure else { return mapping }
        xen.grants.end(reference)
        throw failure
    }

    /// Where the entry lies that shows a mapping.
    private func place(_ mapping: GrantMaps.Mapping, _ known: ParavirtualMemory, _ cpu: any ParavirtualCPU) -> UInt64? {
        guard mapping.isEntry else {
            return tables(known).leafEntry(mapping.address, root: cpu.kernelTables & Self.addressMask)
        }
        guard mapping.address & 7 == 0, known[mapping.address >> 12] == 1 else { return nil }
        return mapping.address
    }

    private func write(_ entry: UInt64, _ mapping: GrantMaps.Mapping, _ cpu: any ParavirtualCPU) -> GrantStatus? {
        guard let known = machine.paravirtual, let place = place(mapping, known, cpu) else { return .generalError }
        do throws(XenError) {
            try set(place, entry, keepsMarks: false, known, isLeaf: true)
        } catch { return .generalError }
        flush(mapping.isEntry ? nil : mapping.address, cpu, others: .max)
        return nil
    }

    /// Takes away the entry, if it shows the frame still.
    private func clear(_ mapping: GrantMaps.Mapping, _ cpu: any ParavirtualCPU) -> GrantStatus? {
        guard mapping.address != 0 else { return nil }
        guard let known = machine.paravirtual, let place = place(mapping, known, cpu),
            let entry: UInt64 = machine.page(place >> 12)?.load(Int(place & 0xFFF)),
            entry & TableRegister.present != 0, TableRegister.frame(entry) == mapping.frame
        else { return .generalError }
        return write(0, mapping, cpu)
    }

    /// struct gnttab_unmap_grant_ref: host_addr, dev_bus_addr at 8, handle 16, status 20.
    func unmap(_ call: Record, _ cpu: any ParavirtualCPU) -> GrantStatus {
        let handle = call.u32(16)
        guard let mapping = xen.maps[handle] else { return .badHandle }
        guard call.u64(0) == mapping.address else { return .badVirtualAddress }
        if let failure = clear(mapping, cpu) { return failure }
        let rest = xen.maps.remove(handle)
        if !rest.isWritten { xen.grants.end(mapping.reference, isStillRead: rest.isRead) }
        return .okay
    }
}
