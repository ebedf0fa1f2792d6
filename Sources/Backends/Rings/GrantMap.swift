// Grants: a guest's permission to use one of its frames, resolved from its own grant table.
// Source: Xen's public/grant_table.h (version 1 entries, GTF_*), the rules of GNTTABOP_map_grant_ref and unmap.
// Modelled: permit_access, read-only grants, use counts, the reading and writing marks. Not modelled: version 2,
// transfer, transitive and sub-page grants (refused, as for a map on Xen), device mappings.
// Quirks: the frame is taken when the first mapping is made; a guest that changes the entry later changes nothing.
internal import CXen
public import Host
internal import Synchronization

/// Why a grant reference gave no page.
public enum GrantError: Error, Hashable, Sendable {
    case badReference, notGranted, readOnly, badFrame, tooMany
    /// The guest changed the entry over and over while it was being marked.
    case unstable
}

public enum GrantAccess: Sendable { case readOnly, readWrite }

/// All grants of one domain that one process has mapped. Used on one thread.
@safe public final class GrantMap {
    public static let entriesPerFrame = 512
    private static let attempts = 5

    private struct Use {
        var frame: UInt32
        var readers = 0
        var writers = 0
    }

    private let memory: DomainMemory
    private let table: SharedMemory
    /// Two words an entry: flags and domain, then the frame.
    private let words: UnsafeMutablePointer<Atomic<UInt32>>
    public let entries: UInt32
    /// The domain that maps: entries for another one are refused.
    private let domain: UInt16
    /// Mappings at most.
    private let limit: Int
    private var uses: [UInt32: Use] = [:]
    /// Mappings now.
    public private(set) var count = 0

    /// The table's frames lie in `table` from `offset` on; nil if they do not fit in.
    public init?(
        table: SharedMemory, offset: Int, frames: Int, memory: DomainMemory, domain: UInt16 = 0, limit: Int = 1 << 16
    ) {
        guard let base = unsafe table.bytes.baseAddress, offset >= 0, offset % 8 == 0, frames > 0, frames <= 1 << 16,
            unsafe offset <= table.bytes.count,
            unsafe frames * DomainMemory.pageSize <= table.bytes.count - offset
        else { return nil }
        (self.memory, self.table, self.domain, self.limit) = (memory, table, domain, limit)
        unsafe words = (base + offset).assumingMemoryBound(to: Atomic<UInt32>.self)
        entries = UInt32(frames * Self.entriesPerFrame)
    }

    /// The page behind a reference, marked as in use until it is released.
    public func map(_ reference: UInt32, _ access: GrantAccess) throws(GrantError) -> GrantedPage {
        guard reference < entries else { throw .badReference }
        guard count < limit else { throw .tooMany }
        var use = uses[reference]
        if use == nil || (access == .readWrite && use?.writers == 0) {
            try mark(reference, access)
        }
        let frame = unsafe use?.frame ?? words[Int(reference) * 2 + 1].load(ordering: .acquiring)
        guard let base = unsafe memory.page(UInt64(frame)) else {
            unmark(reference, GTF_reading | GTF_writing)
            throw .badFrame
        }
        if use == nil { use = Use(frame: frame) }
        if access == .readWrite { use?.writers += 1 } else { use?.readers += 1 }
        uses[reference] = use
        count += 1
        return unsafe GrantedPage(
            reference: reference, access: access, base: base, frame: UInt64(frame), owner: self)
    }

    fileprivate func noteWritten(_ frame: UInt64) { memory.noteWritten(frame) }

    fileprivate func unmap(_ reference: UInt32, _ access: GrantAccess) {
        guard var use = uses[reference] else { return }
        if access == .readWrite { use.writers -= 1 } else { use.readers -= 1 }
        count -= 1
        let isFree = use.writers == 0 && use.readers == 0
        uses[reference] = isFree ? nil : use
        if use.writers == 0 && access == .readWrite { unmark(reference, GTF_writing) }
        if isFree { unmark(reference, GTF_reading) }
    }

    /// Checks type, domain and rights, and sets the marks, in one exchange.
    private func mark(_ reference: UInt32, _ access: GrantAccess) throws(GrantError) {
        let word = Int(reference) * 2
        for _ in 0..<Self.attempts {
            let old = unsafe words[word].load(ordering: .acquiring)
            guard old & (GTF_type_mask | UInt32(GTF_sub_page)) == GTF_permit_access,
                UInt16(truncatingIfNeeded: old >> 16) == domain
            else { throw .notGranted }
            guard access == .readOnly || old & UInt32(GTF_readonly) == 0 else { throw .readOnly }
            let new = old | UInt32(GTF_reading) | (access == .readWrite ? UInt32(GTF_writing) : 0)
            let result = unsafe words[word].compareExchange(
                expected: old, desired: new, ordering: .sequentiallyConsistent)
            if result.exchanged { return }
        }
        throw .unstable
    }

    private func unmark(_ reference: UInt32, _ marks: UInt32) {
        _ = unsafe words[Int(reference) * 2].bitwiseAnd(~marks, ordering: .sequentiallyConsistent)
    }
}

/// One mapped grant. The guest may take its page back once this is released.
@safe public final class GrantedPage {
    private let reference: UInt32
    public let access: GrantAccess
    /// 4096 bytes; valid until `release`. What lies there can change at any time.
    public let base: UnsafeMutableRawPointer
    private let frame: UInt64
    private var owner: GrantMap?

    fileprivate init(
        reference: UInt32, access: GrantAccess, base: UnsafeMutableRawPointer, frame: UInt64, owner: GrantMap
    ) {
        (self.reference, self.access, self.frame, self.owner) = (reference, access, frame, owner)
        unsafe self.base = base
    }

    /// The back end has written here: code that was decoded from the page is void.
    public func noteWritten() { owner?.noteWritten(frame) }

    /// Gives the page back to the guest. Calling it again does nothing.
    public func release() {
        owner?.unmap(reference, access)
        owner = nil
    }

    deinit { release() }
}
