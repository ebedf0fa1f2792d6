// Address translation: page walks in all modes.
// Source: Intel SDM vol. 3 §4 (32-bit, PAE and 4-level paging, access rights §4.6, errors §4.7, A/D §4.8).
// Modelled: 4K/2M/4M/1G pages, NX, WP, SMEP, SMAP, reserved bits; not modelled: 5 levels, protection keys.
// PAE's four top entries are registers, loaded with CR3 (§4.4.1).

internal import CProcessor

/// Where a linear address leads.
struct Place {
    var physical: UInt64
    /// Host address of RAM or ROM; nil: the bus answers.
    var host: UnsafeMutableRawPointer?
    var isWritable: Bool
    /// The page's byte in the code map, if stores to it must be watched.
    var code: UnsafeMutablePointer<UInt8>?
}

/// What an access is for.
struct Intent {
    var write = false
    var fetch = false
    /// One of APUS_TLB_*: rights of a user, of a supervisor, of a supervisor that may touch user pages.
    var mode: UInt8
}

private let maximumPhysical: UInt64 = (1 << 40) - 1
private let addressBits: UInt64 = 0x000F_FFFF_FFFF_F000
/// Physical address bits from 40 to 51 must be clear in any entry.
private let reservedPhysical: UInt64 = addressBits & ~maximumPhysical
private let present: UInt64 = 1
private let writable: UInt64 = 2
private let user: UInt64 = 4
private let accessed: UInt64 = 0x20
private let dirty: UInt64 = 0x40
private let large: UInt64 = 0x80
private let noExecute: UInt64 = 1 << 63

// MARK: - Page walk

/// One table entry met on a walk.
private struct Step {
    var address: UInt64
    var entry: UInt64
}

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    private func pageFault(_ linear: UInt64, _ intent: Intent, isPresent: Bool, reserved: Bool = false) -> Fault {
        var error: UInt32 = isPresent ? 1 : 0
        if intent.write { error |= 2 }
        if intent.mode == UInt8(APUS_TLB_USER) { error |= 4 }
        if reserved { error |= 8 }
        let tellsFetch =
            self.pointee.efer & 0x800 != 0 && self.pointee.cr4 & 0x20 != 0 || self.pointee.cr4 & 1 << 20 != 0
        if intent.fetch, tellsFetch { error |= 16 }
        return raisePageFault(linear, error: error)
    }

    /// The physical address behind `linear`, with the rights checked and A and D set.
    /// `isWritable` tells whether a store would be allowed without a further walk.
    @inline(never) func walk(
        _ linear: UInt64, _ intent: Intent
    ) throws(Fault) -> (physical: UInt64, isWritable: Bool, isLarge: Bool) {
        engine.pointee.spaces.foundGlobal = false
        engine.pointee.spaces.foundShift = 12
        let lines = engine.pointee.addressMask
        if isParavirtual { return try walkParavirtual(linear, intent) }
        if self.pointee.cr0 & 1 << 31 == 0 { return (linear & 0xFFFF_FFFF & lines, true, false) }
        if self.pointee.cr4 & 0x20 == 0 {
            while true {
                if let found = try walk32(linear, intent) { return (found.0 & lines, found.1, found.2) }
            }
        }
        var levels = 4
        var table = self.pointee.cr3 & addressBits & maximumPhysical
        if self.pointee.efer & 0x400 == 0 {
            levels = 3
            table = self.pointee.cr3 & 0xFFFF_FFE0
        }
        while true {
            if let found = try walk(linear, intent, levels: levels, top: table) {
                return (found.0 & lines, found.1, found.2)
            }
        }
    }

    /// One walk through PAE or 4-level tables; nil: an entry changed before it could be marked, so walk again.
    @inline(__always) private func walk(
        _ linear: UInt64, _ intent: Intent, levels: Int, top: UInt64
    ) throws(Fault) -> (physical: UInt64, isWritable: Bool, isLarge: Bool)? {
        let executeDisable = self.pointee.efer & 0x800 != 0
        var steps = (Step(address: 0, entry: 0), Step(address: 0, entry: 0), Step(address: 0, entry: 0))
        var rights = writable | user
        var forbidden: UInt64 = 0
        var table = top
        var level = levels
        while true {
            let shift = UInt64(12 + 9 * (level - 1))
            let address = table &+ (linear &>> shift & 0x1FF) &* 8
            let isTop32 = levels == 3 && level == 3
            let entry = isTop32 ? apus_pdpte(self, linear).pointee : loadPhysical(address, as: UInt64.self)
            guard entry & present != 0 else { throw pageFault(linear, intent, isPresent: false) }
            var reserved: UInt64 = 0
            if !isTop32 {
                reserved = entry & reservedPhysical
                if !executeDisable { reserved |= entry & noExecute }
                if level == 4 { reserved |= entry & large }
                rights &= entry
                forbidden |= entry & noExecute
            }
            let isLeaf = level == 1 || !isTop32 && level < 4 && entry & large != 0
            let mask = (UInt64(1) &<< shift) &- 1
            if isLeaf, level > 1 { reserved |= entry & mask & ~0x1FFF }
            guard reserved == 0 else { throw pageFault(linear, intent, isPresent: true, reserved: true) }
            guard isLeaf else {
                if !isTop32 {
                    (steps.0, steps.1, steps.2) = (steps.1, steps.2, Step(address: address, entry: entry))
                }
                table = entry & addressBits
                level -= 1
                continue
            }
            if isParavirtual, level == 1, isOwnTable(entry, rights, intent) { rights |= writable }
            guard allows(rights, isForbidden: forbidden != 0 && executeDisable, intent) else {
                throw pageFault(linear, intent, isPresent: true)
            }
            let wanted = intent.write ? accessed | dirty : accessed
            guard markAccessed(steps.0), markAccessed(steps.1), markAccessed(steps.2),
                mark(Step(address: address, entry: entry), wanted)
            else { return nil }
            let physical = entry & addressBits & ~mask | linear & mask
            let writes = storeAllowed(rights, intent.mode) && (entry | wanted) & dirty != 0
            noteGlobal(entry)
            engine.pointee.spaces.foundShift = shift
            return (physical, writes, level > 1)
        }
    }

    /// A PV guest's tables are those of its kernel or those of its programs; some slots are the hypervisor's whatever
    /// they hold, and nothing leads out of the domain's memory.
    private func walkParavirtual(
        _ linear: UInt64, _ intent: Intent
    ) throws(Fault) -> (physical: UInt64, isWritable: Bool, isLarge: Bool) {
        let isUser = intent.mode == UInt8(APUS_TLB_USER)
        if HypervisorHole.contains(linear) {
            let offset = linear &- HypervisorHole.start
            guard !isUser, !intent.write, !intent.fetch, offset < pv.pointee.tableBytes else {
                throw pageFault(linear, intent, isPresent: false)
            }
            return (pv.pointee.table &+ offset, false, false)
        }
        let top = (isUser ? self.pointee.user_cr3 : self.pointee.cr3) & addressBits & maximumPhysical
        guard top != 0 else { throw pageFault(linear, intent, isPresent: false) }
        while true {
            guard let found = try walk(linear, intent, levels: 4, top: top) else { continue }
            guard engine.pointee.region(found.physical) != nil else {
                throw pageFault(linear, intent, isPresent: true, reserved: true)
            }
            engine.pointee.spaces.foundGlobal = !isUser && linear >= HypervisorHole.end
            return found
        }
    }

    /// A page table that a PV guest's kernel has mapped as Xen wants it, not to be written. Xen does the writes that the
    /// kernel tries all the same; here it simply may. What programs can see is left alone: their copies on write.
    @inline(never) private func isOwnTable(_ entry: UInt64, _ rights: UInt64, _ intent: Intent) -> Bool {
        guard intent.mode != UInt8(APUS_TLB_USER), entry & (writable | user) == 0 else { return false }
        return pv.pointee.isTable((entry & addressBits) &>> 12)
    }

    /// Loads PAE's four top entries from the table at `cr3`. Throws #GP, and loads none, if a present one has reserved
    /// bits set. SDM vol. 3 §4.4.1.
    func loadDirectoryPointers(_ cr3: UInt64) throws(Fault) {
        let table = cr3 & 0xFFFF_FFE0
        var entries: (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)
        entries.0 = loadPhysical(table, as: UInt64.self)
        entries.1 = loadPhysical(table &+ 8, as: UInt64.self)
        entries.2 = loadPhysical(table &+ 16, as: UInt64.self)
        entries.3 = loadPhysical(table &+ 24, as: UInt64.self)
        let reserved =
            reservedBits(entries.0) | reservedBits(entries.1) | reservedBits(entries.2) | reservedBits(entries.3)
        guard reserved == 0 else { throw raise(13, error: 0) }
        self.pointee.pdpte = entries
    }

    private func reservedBits(_ directoryPointer: UInt64) -> UInt64 {
        directoryPointer & present == 0 ? 0 : directoryPointer & (reservedPhysical | 0xFFF0_0000_0000_01E6)
    }

    private func markAccessed(_ step: Step) -> Bool { step.entry & present == 0 || mark(step, accessed) }

    /// Sets bits of an entry in one atomic step (SDM vol. 3 §8.1.2.1). false: it no longer is what the walk saw.
    @inline(__always) private func mark(_ step: Step, _ bits: UInt64) -> Bool {
        if step.entry & bits == bits { return true }
        guard let host = hostOfTable(step.address) else { return true }
        var expected = step.entry
        return apus_cas64(host, &expected, step.entry | bits)
    }
    private func mark32(_ step: Step, _ bits: UInt64) -> Bool {
        if step.entry & bits == bits { return true }
        guard let host = hostOfTable(step.address) else { return true }
        var expected = UInt32(truncatingIfNeeded: step.entry)
        return apus_cas32(host, &expected, expected | UInt32(truncatingIfNeeded: bits))
    }

    /// The walk of 32-bit paging, with 4 MiB pages when CR4.PSE is set.
    private func walk32(
        _ linear: UInt64, _ intent: Intent
    ) throws(Fault) -> (physical: UInt64, isWritable: Bool, isLarge: Bool)? {
        let directory = self.pointee.cr3 & 0xFFFF_F000 &+ (linear &>> 22 & 0x3FF) &* 4
        let first = loadPhysical(directory, as: UInt32.self)
        let top = UInt64(first)
        guard top & present != 0 else { throw pageFault(linear, intent, isPresent: false) }
        let wanted = intent.write ? accessed | dirty : accessed
        if top & large != 0, self.pointee.cr4 & 0x10 != 0 {
            guard top & 1 << 21 == 0 else { throw pageFault(linear, intent, isPresent: true, reserved: true) }
            guard allows(top, isForbidden: false, intent) else { throw pageFault(linear, intent, isPresent: true) }
            guard mark32(Step(address: directory, entry: top), wanted) else { return nil }
            let base = top & 0xFFC0_0000 | (top &>> 13 & 0xFF) &<< 32
            let writes = storeAllowed(top, intent.mode) && (top | wanted) & dirty != 0
            noteGlobal(top)
            engine.pointee.spaces.foundShift = 22
            return (base | linear & 0x3F_FFFF, writes, true)
        }
        let address = top & 0xFFFF_F000 &+ (linear &>> 12 & 0x3FF) &* 4
        let entry = UInt64(loadPhysical(address, as: UInt32.self))
        guard entry & present != 0 else { throw pageFault(linear, intent, isPresent: false) }
        let rights = top & entry
        guard allows(rights, isForbidden: false, intent) else { throw pageFault(linear, intent, isPresent: true) }
        guard mark32(Step(address: directory, entry: top), accessed),
            mark32(Step(address: address, entry: entry), wanted)
        else { return nil }
        let writes = storeAllowed(rights, intent.mode) && (entry | wanted) & dirty != 0
        noteGlobal(entry)
        return (entry & 0xFFFF_F000 | linear & 0xFFF, writes, false)
    }

    /// Bit 8 of an entry that maps a page, with CR4.PGE set (SDM vol. 3 §4.10.2.4).
    @inline(__always) private func noteGlobal(_ entry: UInt64) {
        engine.pointee.spaces.foundGlobal = entry & 1 << 8 != 0 && self.pointee.cr4 & CR4.pageGlobal != 0
    }

    /// Whether the rights that all levels agree on permit the access (SDM vol. 3 §4.6.1).
    private func allows(_ rights: UInt64, isForbidden: Bool, _ intent: Intent) -> Bool {
        let isUserPage = rights & user != 0
        if intent.mode == UInt8(APUS_TLB_USER) {
            guard isUserPage else { return false }
        } else if isUserPage {
            if intent.fetch {
                if self.pointee.cr4 & 1 << 20 != 0 { return false }
            } else if self.pointee.cr4 & 1 << 21 != 0, intent.mode == UInt8(APUS_TLB_SUPERVISOR) {
                return false
            }
        }
        if intent.fetch { return !isForbidden }
        return !intent.write || storeAllowed(rights, intent.mode)
    }

    private func storeAllowed(_ rights: UInt64, _ mode: UInt8) -> Bool {
        if rights & writable != 0 { return true }
        return mode != UInt8(APUS_TLB_USER) && self.pointee.cr0 & 1 << 16 == 0
    }
}

// MARK: - Physical memory

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// Loads from guest-physical memory, naturally aligned.
    func loadPhysical<T: Word>(_ physical: UInt64, as: T.Type) -> T {
        let physical = physical & engine.pointee.addressMask
        guard let region = engine.pointee.region(physical) else {
            if isParavirtual { return 0 }
            return T(truncatingIfNeeded: engine.pointee.bus.readMemory(physical, size: MemoryLayout<T>.size))
        }
        let offset = Int(truncatingIfNeeded: physical &- region.pointee.start)
        return region.pointee.host.loadUnaligned(fromByteOffset: offset, as: T.self)
    }

    func hostOfTable(_ physical: UInt64) -> UnsafeMutableRawPointer? {
        let physical = physical & engine.pointee.addressMask
        guard let region = engine.pointee.region(physical), region.pointee.isWritable else { return nil }
        return region.pointee.host + Int(truncatingIfNeeded: physical &- region.pointee.start)
    }
}
