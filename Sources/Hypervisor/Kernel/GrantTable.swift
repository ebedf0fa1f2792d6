// The grant table: frames that the guest may let others use, version 1.
// Source: Xen public/grant_table.h; xen/common/grant_table.c (statuses, order of checks).
// Modelled: setup, query, copy within the domain, versions. Not modelled: version 2, maps of other domains' frames, transfers.
// Maps of own frames: GrantMaps.swift.
// Quirks: back ends read the entries themselves; this is the table's size and its place only.

internal import CXen
internal import Synchronization

final class GrantTable: Sendable {
    static let maximumFrames = 64
    static let entriesPerFrame: UInt32 = 512
    private let frames: GuestArea
    private let count = Mutex<Int>(1)

    /// `area`: the hypervisor's frames, of which the table has those behind the first.
    init(_ area: GuestArea) { frames = area.part(4096, area.bytes - 4096) ?? area }

    var frameCount: Int { count.withLock { $0 } }
    private var limit: Int { min(Self.maximumFrames, frames.bytes / 4096) }

    /// Makes the table `wanted` frames long, if it is not longer.
    func grow(to wanted: Int) -> Bool {
        guard wanted <= limit else { return false }
        count.withLock { $0 = max($0, wanted) }
        return true
    }

    /// Bits of grant_entry_v1.flags.
    private enum Flags {
        static let permitAccess: UInt16 = 1
        static let typeMask: UInt16 = 3
        static let readOnly: UInt16 = 4
        static let reading: UInt16 = 8
        static let writing: UInt16 = 16
    }

    /// The frame that entry `reference` lets `domid` use, marked as in use; a GNTST_ status if it does not.
    func begin(_ reference: UInt32, domid: UInt16, writes: Bool) -> Result<UInt64, GrantStatus> {
        guard reference < UInt32(frameCount) * Self.entriesPerFrame else { return .failure(.badReference) }
        let entry = Int(reference) * 8
        for _ in 0..<5 {
            let flags: UInt16 = frames.load(entry)
            guard flags & Flags.typeMask == Flags.permitAccess, frames.load(entry + 2, as: UInt16.self) == domid else {
                return .failure(.badReference)
            }
            if writes, flags & Flags.readOnly != 0 { return .failure(.generalError) }
            let marked = flags | Flags.reading | (writes ? Flags.writing : 0)
            if frames.compareExchange(flags, marked, at: entry) {
                return .success(UInt64(frames.load(entry + 4, as: UInt32.self)))
            }
        }
        return .failure(.generalError)
    }

    /// The entry is no longer in use, or only for reading.
    func end(_ reference: UInt32, isStillRead: Bool = false) {
        guard reference < UInt32(frameCount) * Self.entriesPerFrame else { return }
        if !isStillRead { frames.clearBit(Int(reference) * 64 + 3) }
        frames.clearBit(Int(reference) * 64 + 4)
    }

    /// Fills an entry on the guest's behalf before it runs (xenstore and console pages).
    func set(_ reference: UInt32, frame: UInt64, domid: UInt16) {
        let entry = Int(reference) * 8
        frames.store(UInt32(truncatingIfNeeded: frame), at: entry + 4)
        frames.store(domid, at: entry + 2)
        frames.store(Flags.permitAccess, at: entry)
    }
}

/// GNTST_*.
enum GrantStatus: Int16, Error {
    case okay = 0
    case generalError = -1
    case badDomain = -2
    case badReference = -3
    case badHandle = -4
    case badVirtualAddress = -5
    case permissionDenied = -8
    case badPage = -9
    case badCopyArgument = -10
    case noSpace = -13
}

// MARK: - GNTTABOP_*

/// Commands that the header shows to newer interface versions only.
private enum GrantCommand {
    static let setVersion: Int32 = 8
    static let getStatusFrames: Int32 = 9
    static let getVersion: Int32 = 10
}

extension Hypercall {
    func grantTable(_ command: UInt64, _ list: UInt64, _ count: UInt64) throws(XenError) -> Int64 {
        guard count <= 1 << 16 else { throw .invalid }
        let number = Int32(truncatingIfNeeded: command)
        switch number {
        case GNTTABOP_setup_table:
            guard count == 1 else { throw .invalid }
            return try setupTable(list)
        case GNTTABOP_query_size:
            guard count == 1 else { throw .invalid }
            var call = try read(list, 16)
            let status: GrantStatus = isSelf(call.u16(0)) ? .okay : .badDomain
            call.set(UInt32(xen.grants.frameCount), at: 4)
            call.set(UInt32(GrantTable.maximumFrames), at: 8)
            call.set(UInt16(bitPattern: status.rawValue), at: 12)
            try write(call.bytes, list)
            return 0
        case GNTTABOP_copy:
            try each(list, count, isLong ? 40 : 24) { call throws(XenError) in
                call.set(UInt16(bitPattern: copy(call).rawValue), at: isLong ? 36 : 20)
            }
            return 0
        // No domain here may map another's frames; statuses lie at 18, 20 and 12.
        case GNTTABOP_map_grant_ref:
            guard let cpu else { return try refuse(list, count, 32, status: 18, .badDomain) }
            try each(list, count, 32) { call throws(XenError) in map(&call, cpu) }
            return 0
        case GNTTABOP_unmap_grant_ref:
            guard let cpu else { return try refuse(list, count, 24, status: 20, .badHandle) }
            try each(list, count, 24) { call throws(XenError) in
                call.set(UInt16(bitPattern: unmap(call, cpu).rawValue), at: 20)
            }
            return 0
        case GNTTABOP_transfer:
            return try refuse(list, count, isLong ? 24 : 16, status: isLong ? 20 : 12, .generalError)
        case GrantCommand.setVersion:
            // Version 2 is not offered; the guest goes on with what it has.
            guard try read(list, 4).u32(0) == 1 else { return XenError.notImplemented.rawValue }
            try write([1, 0, 0, 0], list)
            return 0
        case GrantCommand.getVersion:
            var call = try read(list, 8)
            try requireSelf(call.u16(0))
            call.set(UInt32(1), at: 4)
            try write(call.bytes, list)
            return 0
        case GNTTABOP_dump_table, GrantCommand.getStatusFrames: throw .notPermitted
        default: throw .notImplemented
        }
    }

    private func each(
        _ list: UInt64, _ count: UInt64, _ size: Int, _ body: (inout Record) throws(XenError) -> Void
    ) throws(XenError) {
        for index in 0..<count {
            let address = list &+ index &* UInt64(size)
            var call = try read(address, size)
            try body(&call)
            try write(call.bytes, address)
        }
    }

    private func refuse(
        _ list: UInt64, _ count: UInt64, _ size: Int, status: Int, _ answer: GrantStatus
    ) throws(XenError) -> Int64 {
        try each(list, count, size) { call throws(XenError) in
            call.set(UInt16(bitPattern: answer.rawValue), at: status)
        }
        return 0
    }

    /// struct gnttab_setup_table; a list of frames is for PV guests, HVM guests place frames with add_to_physmap.
    private func setupTable(_ address: UInt64) throws(XenError) -> Int64 {
        var call = try read(address, isLong ? 24 : 16)
        let wanted = Int(call.u32(4))
        var status = GrantStatus.okay
        if !isSelf(call.u16(0)) {
            status = .badDomain
        } else if wanted > GrantTable.maximumFrames || !xen.grants.grow(to: max(wanted, 1)) {
            status = .generalError
        } else {
            var frames = Record(count: wanted * long, isLong: isLong)
            for index in 0..<wanted {
                frames.setLong(xen.flavour == .pv ? machine.ramFrames &+ UInt64(1 + index) : .max, index * long)
            }
            if wanted > 0 { try write(frames.bytes, call.long(isLong ? 16 : 12)) }
        }
        call.set(UInt16(bitPattern: status.rawValue), at: 8)
        try write(call.bytes, address)
        return 0
    }

    /// struct gnttab_copy: two ends (frame or reference, domain, offset), length, flags.
    private func copy(_ call: Record) -> GrantStatus {
        let end = isLong ? 16 : 8
        let (length, flags) = (Int(call.u16(2 * end)), Int32(call.u16(2 * end + 2)))
        let sourceOffset = Int(call.u16(long + 2))
        let targetOffset = Int(call.u16(end + long + 2))
        guard sourceOffset + length <= 4096, targetOffset + length <= 4096 else { return .badCopyArgument }
        guard isSelf(call.u16(long)), isSelf(call.u16(end + long)) else { return .badDomain }
        func frame(_ at: Int, byReference: Bool, writes: Bool) -> Result<UInt64, GrantStatus> {
            guard byReference else { return .success(call.long(at)) }
            return xen.grants.begin(call.u32(at), domid: machine.domid, writes: writes)
        }
        let fromGrant = flags & 1 != 0
        let toGrant = flags & 2 != 0
        let source = frame(0, byReference: fromGrant, writes: false)
        defer { if fromGrant, case .success = source { xen.grants.end(call.u32(0)) } }
        let target = frame(end, byReference: toGrant, writes: true)
        defer { if toGrant, case .success = target { xen.grants.end(call.u32(end)) } }
        switch (source, target) {
        case (.failure(let status), _), (_, .failure(let status)): return status
        case (.success(let from), .success(let to)):
            guard let source = machine.page(from), let target = machine.page(to) else { return .badPage }
            target.write(source.read(sourceOffset, length), at: targetOffset)
            return .okay
        }
    }
}
