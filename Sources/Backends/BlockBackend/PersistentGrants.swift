// Grants that stay mapped from one request to the next.
// Source: Xen's public/io/blkif.h (feature-persistent, notes 7 to 9).
// Modelled: a bounded cache, least recently used out first. Not modelled: copying into own pages (the guest does it).
// Quirks: all of them are mapped for writing, as the protocol lets a back end do, since a page serves both ways.
import Rings

final class PersistentGrants {
    private struct Entry {
        let page: GrantedPage
        var users: Int
        var lastUse: UInt64
    }
    private var entries: [UInt32: Entry] = [:]
    private var uses: UInt64 = 0
    private let grants: GrantMap
    let limit: Int
    var count: Int { entries.count }

    /// Linux's blkback keeps 1056 by default: eleven segments of a ring's 32 requests, three times.
    init(_ grants: GrantMap, limit: Int = 1056) { (self.grants, self.limit) = (grants, limit) }

    /// The page of a reference, mapped now or before. Each `take` has its `giveBack`.
    func take(_ reference: UInt32) throws(GrantError) -> GrantedPage {
        uses &+= 1
        if let page = entries[reference]?.page {
            entries[reference]?.users += 1
            entries[reference]?.lastUse = uses
            return page
        }
        let page = try grants.map(reference, .readWrite)
        if entries.count >= limit { evict() }
        // Without room, it is an ordinary mapping.
        if entries.count < limit { entries[reference] = Entry(page: page, users: 1, lastUse: uses) }
        return page
    }

    func giveBack(_ page: GrantedPage) {
        guard entries[page.reference]?.page === page else { return page.release() }
        entries[page.reference]?.users -= 1
    }

    /// Only while nobody has a page.
    func releaseAll() {
        for entry in entries.values { entry.page.release() }
        entries = [:]
    }

    /// Makes room for a sixteenth, so that it is not looked for at every request.
    private func evict() {
        let idle = entries.filter { $0.value.users == 0 }.sorted { $0.value.lastUse < $1.value.lastUse }
        for (reference, entry) in idle.prefix(max(1, limit / 16)) {
            entry.page.release()
            entries[reference] = nil
        }
    }
}
