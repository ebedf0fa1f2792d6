// Serves the requests of one virtual disk from its medium.
// Source: Xen's public/io/blkif.h (operations and their order), Linux's blkback for what it answers to wrong requests.
// Modelled: several queues, barriers over all of them, transfers straight between granted pages and the medium.
// Quirks: sectors have 512 bytes whatever the medium's are. A ring whose indices make no sense is served no more.
import CXen
import Images
import Rings

/// One queue: a ring and its event channel.
final class BlockQueue {
    var ring: BackRing
    let port: any EventPort
    let abi: BlockABI
    var scratch: [UInt8]
    var fault: RingFault?

    init(ring: consuming BackRing, port: any EventPort, abi: BlockABI) {
        scratch = [UInt8](repeating: 0, count: ring.slotBytes)
        (self.port, self.abi) = (port, abi)
        self.ring = ring
    }
}

/// What was served, for those who watch.
public struct BlockStatistics: Equatable, Sendable {
    public var reads: UInt64 = 0
    public var writes: UInt64 = 0
    public var flushes: UInt64 = 0
    public var discards: UInt64 = 0
    public var readSectors: UInt64 = 0
    public var writtenSectors: UInt64 = 0
    /// Requests answered with an error.
    public var failures: UInt64 = 0
}

final class BlockEngine {
    static let sectorBytes = 512
    static let indirectSegments = 256
    /// Requests under way at most: what the kernel's queue of one image takes.
    static let depth = 128
    /// Requests taken from a queue in one go, so that one guest disk leaves time for the others.
    static let budget = 64

    /// A request under way and the pages it uses.
    final class Job {
        let queue: BlockQueue
        let request: BlockRequest
        var pages: [GrantedPage] = []
        /// Whether the medium was read into them.
        var writesPages = false
        init(_ queue: BlockQueue, _ request: BlockRequest) { (self.queue, self.request) = (queue, request) }
    }

    let medium: any BlockStore
    private let grants: GrantMap
    private let queues: [BlockQueue]
    /// Sectors of the medium.
    var sectors: UInt64
    /// The host's owner may want a disk that keeps its blocks.
    var allowsDiscard = true
    private(set) var statistics = BlockStatistics()
    /// Called when a queue's ring can be served no more.
    var onFault: (RingFault) -> Void = { _ in }
    /// Called when there is work that a `serve` would do at once.
    var onWork: () -> Void = {}

    private var underWay = 0
    private var isServing = false
    private var isStopped = false
    /// A barrier and what it does once all before it is done; nothing is taken meanwhile.
    private var barrier: (() -> Void)?

    init(medium: any BlockStore, grants: GrantMap, queues: [BlockQueue]) {
        (self.medium, self.grants, self.queues) = (medium, grants, queues)
        sectors = medium.size / UInt64(Self.sectorBytes)
    }

    /// Requests taken and answered so far: whether anything happens here.
    private(set) var activity: UInt64 = 0

    /// Serves what waits in the queues; true if more waits that can be served at once. Whoever looks again soon does
    /// not need events: the guest is asked for them by `prepareToSleep` only.
    func serve() -> Bool {
        guard !isServing else { return false }
        isServing = true
        var more = false
        // What is done is answered, what waits is handed on, each in one go, and with one event.
        isWaiting = medium.collect()
        medium.batch {
            for queue in queues where take(from: queue) { more = true }
        }
        isServing = false
        for queue in queues { push(queue) }
        return more && mayTake
    }

    /// Asks the guest for events with its next requests; false if some have come meanwhile that can be served.
    func prepareToSleep() -> Bool {
        var isQuiet = true
        for queue in queues where queue.fault == nil && queue.ring.armForRequests() { isQuiet = false }
        // What cannot be taken now is looked at when something is done.
        return isQuiet || !mayTake
    }

    /// Whether the medium is about to finish something that `serve` would see.
    private(set) var isWaiting = false

    /// Waits for what is under way and gives all pages back. Nothing is served afterwards.
    func stop() {
        isStopped = true
        while underWay > 0 { medium.drain() }
        for queue in queues {
            queue.port.close()
            queue.ring.release()
        }
    }

    private var mayTake: Bool { !isStopped && barrier == nil && underWay < Self.depth }

    private func take(from queue: BlockQueue) -> Bool {
        for _ in 0..<Self.budget {
            guard mayTake, queue.fault == nil else { return false }
            do {
                guard try queue.ring.take(into: &queue.scratch) else { return false }
                activity &+= 1
                start(Job(queue, BlockRequest(queue.scratch, queue.abi)))
            } catch {
                queue.fault = error
                onFault(error)
                return false
            }
        }
        return queue.ring.hasRequests
    }

    private func push(_ queue: BlockQueue) {
        if queue.ring.push() { queue.port.notify() }
    }

    // MARK: - One request

    private func start(_ job: Job) {
        underWay += 1
        switch job.request.body {
        case .unknown: finish(job, .unsupported)
        case .malformed: finish(job, .error)
        case .discard(let count): discard(job, count)
        case .transfer(let transfer, let segments): begin(job, transfer, segments)
        case .indirect(let transfer, let count, let pages):
            guard count > 0, count <= Self.indirectSegments, let segments = segments(job, count, pages) else {
                return finish(job, .error)
            }
            begin(job, transfer, segments)
        }
    }

    /// Copies the segments out of the pages they lie in, once.
    private func segments(_ job: Job, _ count: Int, _ pages: [UInt32]) -> [BlockSegment]? {
        var bytes: [UInt8] = []
        for reference in pages {
            guard let page = map(reference, .readOnly) else { return nil }
            let part = min(count * BlockSegment.bytes - bytes.count, DomainMemory.pageSize)
            unsafe bytes += UnsafeRawBufferPointer(start: page.base, count: part)
            page.release()
        }
        return (0..<count).map { BlockSegment(bytes.dropFirst($0 * BlockSegment.bytes)) }
    }

    private func begin(_ job: Job, _ transfer: BlockRequest.Transfer, _ segments: [BlockSegment]) {
        switch transfer {
        case .read, .write:
            guard !segments.isEmpty else { return finish(job, .error) }
            move(job, transfer, segments) { self.finish(job, $0) }
        case .flush:
            medium.flush { code in
                guard code == 0, !segments.isEmpty else { return self.finish(job, Self.status(code)) }
                self.move(job, .write, segments) { self.finish(job, $0) }
            }
            statistics.flushes &+= 1
        case .barrier:
            barrier = { self.runBarrier(job, segments) }
            if underWay == 1 { barrier?() }
        }
    }

    /// All before it is done: makes that durable, writes, makes this durable, and lets the others go on.
    private func runBarrier(_ job: Job, _ segments: [BlockSegment]) {
        let end = { (status: BlockStatus) in
            self.barrier = nil
            self.finish(job, status)
        }
        statistics.flushes &+= 1
        medium.flush { code in
            guard code == 0, !segments.isEmpty else { return end(Self.status(code)) }
            self.move(job, .write, segments) { status in
                guard status == .okay else { return end(status) }
                self.medium.flush { end(Self.status($0)) }
            }
        }
    }

    /// Checks and maps all segments, then transfers them.
    private func move(
        _ job: Job, _ transfer: BlockRequest.Transfer, _ segments: [BlockSegment],
        done: @escaping (BlockStatus) -> Void
    ) {
        let reads = transfer == .read
        guard reads || !medium.isReadOnly, let ranges = ranges(job, segments, forReading: reads) else {
            return done(.error)
        }
        let count = UInt64(ranges.reduce(0) { $0 + $1.count } / Self.sectorBytes)
        guard holds(job.request.sector, count) else { return done(.error) }
        let offset = job.request.sector * UInt64(Self.sectorBytes)
        if reads {
            job.writesPages = true
            statistics.reads &+= 1
            statistics.readSectors &+= count
            if medium.readNow(at: offset, into: ranges) { return done(.okay) }
            medium.read(at: offset, into: ranges) { done(Self.status($0)) }
        } else {
            statistics.writes &+= 1
            statistics.writtenSectors &+= count
            medium.write(at: offset, from: ranges) { done(Self.status($0)) }
        }
    }

    /// The host's view of the segments, pages that follow each other in one piece.
    private func ranges(_ job: Job, _ segments: [BlockSegment], forReading: Bool) -> [HostRange]? {
        var ranges: [HostRange] = []
        ranges.reserveCapacity(segments.count)
        for segment in segments {
            guard segment.first <= segment.last, segment.last < DomainMemory.pageSize / Self.sectorBytes,
                let page = map(segment.grant, forReading ? .readWrite : .readOnly)
            else { return nil }
            job.pages.append(page)
            let base = unsafe page.base + Int(segment.first) * Self.sectorBytes
            let count = (Int(segment.last) - Int(segment.first) + 1) * Self.sectorBytes
            if let last = ranges.last, unsafe last.base + last.count == base {
                ranges[ranges.count - 1] = unsafe HostRange(last.base, last.count + count)
            } else {
                ranges.append(unsafe HostRange(base, count))
            }
        }
        return ranges
    }

    private func discard(_ job: Job, _ count: UInt64) {
        guard medium.canDiscard, allowsDiscard else { return finish(job, .unsupported) }
        guard !medium.isReadOnly, count > 0, holds(job.request.sector, count) else { return finish(job, .error) }
        statistics.discards &+= 1
        let size = UInt64(Self.sectorBytes)
        medium.discard(at: job.request.sector * size, bytes: count * size) { self.finish(job, Self.status($0)) }
    }

    private func holds(_ sector: UInt64, _ count: UInt64) -> Bool {
        sector <= sectors && count <= sectors - sector
    }

    private func finish(_ job: Job, _ status: BlockStatus) {
        // The guest takes its pages back when it sees the response.
        for page in job.pages {
            if job.writesPages { page.noteWritten() }
            page.release()
        }
        job.pages = []
        underWay -= 1
        activity &+= 1
        if status != .okay { statistics.failures &+= 1 }
        let response = BlockResponse(id: job.request.id, operation: job.request.operation, status: status)
        job.queue.ring.put(response.bytes(job.queue.abi))
        if barrier != nil && underWay == 1 { barrier?() }
        guard !isServing else { return }
        // Others may be done as well: the next `serve` shows the guest all of them.
        if isStopped { push(job.queue) } else { onWork() }
    }

    private func map(_ reference: UInt32, _ access: GrantAccess) -> GrantedPage? {
        try? grants.map(reference, access)
    }

    private static func status(_ code: Int32) -> BlockStatus {
        // EOPNOTSUPP
        code == 0 ? .okay : code == 95 ? .unsupported : .error
    }
}
