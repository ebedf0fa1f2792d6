// The thread of a qcow2 image: everything that reads or changes its tables, in the order it came.
// Source: our own.
// Modelled: one queue; what it has changed is committed when nobody asked for anything for a second.
// Quirks: an image whose tables turn out to be damaged takes no more writes: each fails with EIO.
internal import Glibc
internal import Host
internal import Synchronization

/// The reactor's end.
final class Qcow2Worker {
    enum Job: Sendable {
        /// The flag: whether the L2 table of the first cluster is to be told as well.
        case read(UInt64, [HostRange], Bool)
        case write(UInt64, [HostRange], Bool)
        case discard(UInt64, UInt64)
        case flush, nothing, refuse
    }
    struct Reply: Sendable {
        var code: Int32 = 0
        var table: (index: Int, entries: [UInt64])?
        var changes: [(Int, Int, UInt64)] = []
    }

    private let shop: Shop
    private let reactor: Reactor
    private var waiting: [UInt64: (Reply) -> Void] = [:]
    private var nextNumber: UInt64 = 0
    /// Started with the first job: a process is confined while it has one thread.
    private var runs = false
    var isBusy: Bool { !waiting.isEmpty }

    init(_ map: Qcow2Map, on reactor: Reactor) throws(HostFailure) {
        let finished = try HostEvent()
        shop = try Shop(map, finished)
        self.reactor = reactor
        reactor.watch(finished.descriptor.number) { [weak self] _ in self?.collect() }
    }

    func submit(_ job: Job, _ done: @escaping (Reply) -> Void) {
        nextNumber &+= 1
        waiting[nextNumber] = done
        guard begin() else {
            shop.results.withLock { $0.append((nextNumber, Reply(code: EAGAIN))) }
            return shop.finished.ring()
        }
        shop.jobs.withLock { $0.append((nextNumber, job)) }
        shop.work.ring()
    }

    private func begin() -> Bool {
        if !runs { runs = (try? HostThread("qcow2") { [shop] in shop.serve() }) != nil }
        return runs
    }

    func waitForOne() {
        _ = HostFile.waitReadable([shop.finished.descriptor.number])
        collect()
    }

    /// Commits, and ends the thread.
    func end() {
        reactor.unwatch(shop.finished.descriptor.number)
        guard runs else { return }
        shop.jobs.withLock { $0.append((0, .flush)) }
        shop.work.ring()
    }

    /// Without a system call unless there is something.
    func collectIfDone() {
        if isBusy, shop.results.withLock({ !$0.isEmpty }) { collect() }
    }

    private func collect() {
        shop.finished.clear()
        let results = shop.results.withLock { results in
            defer { results = [] }
            return results
        }
        for result in results { waiting.removeValue(forKey: result.0)?(result.1) }
    }
}

extension Qcow2Worker {
    /// What both threads use; the map belongs to the worker's alone.
    final class Shop: @unchecked Sendable {
        // Invariant: `map` and `isBroken` are touched by `serve` only.
        private let map: Qcow2Map
        private var isBroken = false
        let work: HostEvent
        let finished: HostEvent
        let jobs = Mutex<[(UInt64, Job)]>([])
        let results = Mutex<[(UInt64, Reply)]>([])

        init(_ map: Qcow2Map, _ finished: HostEvent) throws(HostFailure) {
            (self.map, self.finished) = (map, finished)
            work = try HostEvent()
        }

        /// The thread's life.
        func serve() {
            while true {
                let wait: Int32 = map.isDirty ? 1000 : -1
                if HostFile.waitReadable([work.descriptor.number], milliseconds: wait).isEmpty {
                    commit()
                    continue
                }
                work.clear()
                let taken = jobs.withLock { jobs in
                    defer { jobs = [] }
                    return jobs
                }
                for (number, job) in taken {
                    let reply = perform(job)
                    if number == 0 { return }
                    results.withLock { $0.append((number, reply)) }
                }
                if !taken.isEmpty { finished.ring() }
            }
        }

        private func commit() {
            do { try map.commit() } catch { isBroken = true }
        }

        private func perform(_ job: Job) -> Reply {
            var reply = Reply()
            do throws(Qcow2Fault) {
                switch job {
                case .read(let offset, let ranges, let isUnknown):
                    try map.read(offset, into: ranges)
                    if isUnknown { try tell(offset, &reply) }
                case .write(let offset, let ranges, let isUnknown):
                    guard !isBroken else { throw .host(EIO) }
                    try map.write(offset, from: ranges)
                    if isUnknown { try tell(offset, &reply) }
                    try tellChanges(offset, ranges, &reply)
                case .discard(let offset, let bytes):
                    guard !isBroken else { throw .host(EIO) }
                    try map.discard(offset, bytes: bytes)
                case .flush:
                    try map.flush()
                    if isBroken { throw .host(EIO) }
                case .refuse: throw .host(EROFS)
                case .nothing: break
                }
            } catch {
                if case .damaged = error { isBroken = true }
                reply.code = error.code
            }
            return reply
        }

        /// Tells the reactor's side of a table that it does not know.
        private func tell(_ offset: UInt64, _ reply: inout Reply) throws(Qcow2Fault) {
            let index = Int(offset >> bits / perTable)
            if let entries = try map.places(index) { reply.table = (index, entries) }
        }

        /// Tells it of entries that may be others now.
        private func tellChanges(_ offset: UInt64, _ ranges: [HostRange], _ reply: inout Reply) throws(Qcow2Fault) {
            let bytes = ranges.reduce(0) { $0 + $1.count }
            guard bytes > 0 else { return }
            for cluster in (offset >> bits)...((offset + UInt64(bytes) - 1) >> bits) {
                let (index, entry) = (Int(cluster / perTable), Int(cluster % perTable))
                if let entries = try map.places(index) { reply.changes.append((index, entry, entries[entry])) }
            }
        }

        private var bits: UInt64 { UInt64(map.header.clusterBits) }
        private var perTable: UInt64 { 1 << (bits - 3) }
    }
}
