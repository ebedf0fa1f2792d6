// memory_op: where pages lie, ballooning, and what memory there is.
// Source: Xen public/memory.h; xen/common/memory.c (what a guest may ask of its own memory).
// Modelled: shared info and grant frames in the physmap, decrease and populate, sizes, the memory map.
// Not modelled: gmfn spaces (a page at a second place), paging, sharing. Exchange: MemoryExchange.swift.

internal import CXen

extension Hypercall {
    /// Where a PV guest reads the machine-to-physical table (MACH2PHYS_VIRT_START).
    private static let tableStart: UInt64 = 0xFFFF_8000_0000_0000

    func memoryOperation(_ command: UInt64, _ address: UInt64) throws(XenError) -> Int64 {
        switch Int32(truncatingIfNeeded: command & 0x3F) {
        case XENMEM_decrease_reservation: return try reservation(address, populates: false)
        case XENMEM_populate_physmap: return try reservation(address, populates: true)
        // The guest has no more than it began with, and that is where its frames are.
        case XENMEM_increase_reservation: return 0
        case XENMEM_maximum_ram_page: return Int64(clamping: machine.maximumFrame)
        case XENMEM_maximum_gpfn:
            try requireSelf(try read(address, 2).u16(0))
            return Int64(clamping: machine.maximumFrame)
        case XENMEM_current_reservation:
            try requireSelf(try read(address, 2).u16(0))
            return Int64(clamping: machine.ramFrames - min(machine.ramFrames, xen.reservation.missing))
        case XENMEM_maximum_reservation:
            try requireSelf(try read(address, 2).u16(0))
            return Int64(clamping: machine.ramFrames)
        case XENMEM_add_to_physmap:
            let call = try read(address, isLong ? 24 : 16)
            try requireSelf(call.u16(0))
            try place(Int32(bitPattern: call.u32(4)), index: call.long(8), at: call.long(8 + long))
            return 0
        case XENMEM_add_to_physmap_batch: return try placeMany(address)
        // Their frames are where they are, and stay there.
        case XENMEM_remove_from_physmap where xen.flavour == .pv: throw .notPermitted
        case XENMEM_remove_from_physmap:
            let call = try read(address, 2 * long)
            try requireSelf(call.u16(0))
            let frame = call.long(long)
            if machine.unplace(frame) { return 0 }
            guard machine.page(frame) != nil else { throw .invalid }
            if xen.reservation.remove(frame) { machine.discard(frame) }
            return 0
        case XENMEM_memory_map: return try memoryMap(address)
        case XENMEM_machphys_mapping where xen.flavour == .pv:
            var answer = Record(count: 24, isLong: true)
            answer.set(Self.tableStart, at: 0)
            answer.set(Self.tableStart + machine.ramFrames * 8, at: 8)
            answer.set(machine.ramFrames - 1, at: 16)
            try write(answer.bytes, address)
            return 0
        case XENMEM_exchange where xen.flavour == .pv: return try exchange(address)
        case XENMEM_machine_memory_map, XENMEM_set_memory_map: throw .notPermitted
        default: throw .notImplemented
        }
    }

    // MARK: physmap

    private func place(_ space: Int32, index: UInt64, at frame: UInt64) throws(XenError) {
        guard frame < 1 << 34 else { throw .invalid }
        // A PV guest maps machine frames as they are.
        guard xen.flavour != .pv else { throw .notPermitted }
        switch space {
        case XENMAPSPACE_shared_info:
            guard index == 0 else { throw .invalid }
            machine.place(0, at: frame)
            xen.clockChanged()
        case XENMAPSPACE_grant_table:
            guard index < UInt64(GrantTable.maximumFrames), xen.grants.grow(to: Int(index) + 1) else { throw .invalid }
            machine.place(1 + Int(index), at: frame)
        case XENMAPSPACE_gmfn_foreign, XENMAPSPACE_dev_mmio: throw .notPermitted
        case XENMAPSPACE_gmfn, XENMAPSPACE_gmfn_range: throw .notSupported
        default: throw .invalid
        }
    }

    /// struct xen_add_to_physmap_batch: domid, space, size, then arrays of indices, frames and errors.
    private func placeMany(_ address: UInt64) throws(XenError) -> Int64 {
        let call = try read(address, 8 + 3 * long)
        try requireSelf(call.u16(0))
        let space = Int32(call.u16(2))
        for entry in 0..<UInt64(call.u16(4)) {
            let place = entry &* UInt64(long)
            let index = try read(call.long(8) &+ place, long).long(0)
            let frame = try read(call.long(8 + long) &+ place, long).long(0)
            var answer = Record(count: 4, isLong: isLong)
            do throws(XenError) {
                try self.place(space, index: index, at: frame)
            } catch {
                answer.set(UInt32(truncatingIfNeeded: error.rawValue), at: 0)
            }
            try write(answer.bytes, call.long(8 + 2 * long) &+ entry &* 4)
        }
        return 0
    }

    // MARK: ballooning

    /// struct xen_memory_reservation: list of frames, count, order, flags, domain. The number of extents done.
    private func reservation(_ address: UInt64, populates: Bool) throws(XenError) -> Int64 {
        let call = try read(address, isLong ? 32 : 20)
        try requireSelf(call.u16(isLong ? 24 : 16))
        let (list, count, order) = (call.long(0), call.long(long), call.u32(2 * long))
        guard count <= 1 << 24, order <= 9 else { throw .invalid }
        for extent in 0..<count {
            guard let first = memory.read(list &+ extent &* UInt64(long), long) else { return Int64(extent) }
            let frame = Record(first, isLong: isLong).long(0)
            for page in 0..<(UInt64(1) << UInt64(order)) {
                let frame = frame &+ page
                guard machine.page(frame) != nil else { return Int64(extent) }
                if populates {
                    guard xen.reservation.add(frame) else { return Int64(extent) }
                } else if xen.reservation.remove(frame) {
                    machine.discard(frame)
                }
            }
        }
        return Int64(count)
    }

    // MARK: map

    /// struct xen_memory_map: entries there is room for, and where; E820 entries of 20 bytes.
    private func memoryMap(_ address: UInt64) throws(XenError) -> Int64 {
        let call = try read(address, 2 * long)
        let entries = machine.memoryMap.prefix(Int(call.u32(0)))
        var bytes: [UInt8] = []
        for entry in entries {
            var record = Record(count: 20, isLong: isLong)
            record.set(entry.address, at: 0)
            record.set(entry.size, at: 8)
            record.set(entry.type, at: 16)
            bytes += record.bytes
        }
        try write(bytes, call.long(long))
        var count = Record(count: 4, isLong: isLong)
        count.set(UInt32(entries.count), at: 0)
        try write(count.bytes, address)
        return 0
    }
}
