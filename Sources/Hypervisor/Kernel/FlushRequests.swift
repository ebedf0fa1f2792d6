// What other vCPUs of a PV guest want one to forget of pages, and their wait until it has.
// Source: our own; Xen's flush_tlb_mask waits for all processors likewise.
// Modelled: single pages up to a number, then all. Quirks: a vCPU that runs no guest code is not waited for: it looks here
// before it does.

internal import Glibc
internal import Synchronization

final class FlushRequests: Sendable {
    enum Flush: Equatable {
        case nothing, all
        case pages([UInt64])
    }

    /// How many pages are forgotten one by one.
    private static let longest = 32
    private let wanted = Mutex(Flush.nothing)
    private let isWanted = Atomic<Bool>(false)
    private let isInGuest = Atomic<Bool>(false)

    /// nil: all pages. Whether the vCPU must be kicked to see it.
    func add(_ page: UInt64?) -> Bool {
        wanted.withLock { wanted in
            switch (wanted, page) {
            case (.nothing, let page?): wanted = .pages([page])
            case (.pages(let known), let page?) where known.count < Self.longest: wanted = .pages(known + [page])
            default: wanted = .all
            }
        }
        isWanted.store(true, ordering: .sequentiallyConsistent)
        return isInGuest.load(ordering: .sequentiallyConsistent)
    }

    /// Waits until no guest code runs that does not know.
    func await() {
        var rounds = 0
        while isWanted.load(ordering: .sequentiallyConsistent), isInGuest.load(ordering: .sequentiallyConsistent) {
            rounds += 1
            if rounds > 100 { sched_yield() }
        }
    }

    func leaveGuest() { isInGuest.store(false, ordering: .sequentiallyConsistent) }

    /// Guest code may run once what this answers is forgotten.
    func enterGuest() -> Flush {
        isInGuest.store(true, ordering: .sequentiallyConsistent)
        guard isWanted.exchange(false, ordering: .sequentiallyConsistent) else { return .nothing }
        return wanted.withLock { wanted in
            defer { wanted = .nothing }
            return wanted
        }
    }
}
