// A thread that does what would make the reactor wait: cached I/O, fdatasync, discards.
// Source: preadv(2), pwritev(2), fdatasync(2), eventfd(2).
// Modelled: one queue, served in order. Not modelled: several threads for one image.
// Quirk: a read that fails for one bad block fails as a whole, as one disk command does.
internal import CAIO
internal import Glibc
internal import Host
internal import Synchronization

/// The reactor's end of one worker thread.
final class BlockWorker {
    enum Operation: Sendable { case read, write, flush, discard, nothing, refuse, stop }
    struct Job: Sendable {
        var number: UInt64
        var operation: Operation
        var offset: UInt64
        var ranges: [HostRange]
        /// Of a discard, which has no memory.
        var bytes: UInt64 = 0
    }
    /// What both threads use.
    final class Mailbox: Sendable {
        let file: Descriptor
        let size: UInt64
        let work: Descriptor
        let finished: Descriptor
        let jobs = Mutex<[Job]>([])
        let results = Mutex<[(number: UInt64, code: Int32)]>([])
        init(file: Descriptor, size: UInt64, work: Descriptor, finished: Descriptor) {
            (self.file, self.size, self.work, self.finished) = (file, size, work, finished)
        }
    }

    private let mailbox: Mailbox
    private let reactor: Reactor
    private var waiting: [UInt64: (Int32) -> Void] = [:]
    private var nextNumber: UInt64 = 0
    private var runs = false
    var isBusy: Bool { !waiting.isEmpty }

    init(descriptor: Descriptor, size: UInt64, on reactor: Reactor) throws(HostFailure) {
        // The thread sleeps in read(2) on `work`; the reactor watches `finished`.
        let work = eventfd(0, Int32(EFD_CLOEXEC))
        let finished = eventfd(0, Int32(EFD_CLOEXEC) | Int32(EFD_NONBLOCK))
        guard work >= 0, finished >= 0 else { throw HostFailure("make", "an event descriptor", code: errno) }
        mailbox = Mailbox(
            file: descriptor, size: size, work: Descriptor(owning: work), finished: Descriptor(owning: finished))
        self.reactor = reactor
        reactor.watch(finished) { [weak self] _ in self?.collect() }
    }

    deinit {
        reactor.unwatch(mailbox.finished.number)
        if runs { post(Job(number: 0, operation: .stop, offset: 0, ranges: [])) }
    }

    func submit(
        _ operation: Operation, at offset: UInt64, _ ranges: [HostRange], bytes: UInt64 = 0,
        done: @escaping (Int32) -> Void
    ) {
        nextNumber &+= 1
        waiting[nextNumber] = done
        let job = Job(number: nextNumber, operation: operation, offset: offset, ranges: ranges, bytes: bytes)
        if !runs { runs = start() }
        guard runs else { return mailbox.finish(job.number, EAGAIN) }
        post(job)
    }

    func waitForOne() {
        var wait = pollfd(fd: mailbox.finished.number, events: Int16(POLLIN), revents: 0)
        _ = unsafe poll(&wait, 1, -1)
        collect()
    }

    private func post(_ job: Job) {
        mailbox.jobs.withLock { $0.append(job) }
        var one: UInt64 = 1
        _ = unsafe Glibc.write(mailbox.work.number, &one, 8)
    }

    private func collect() {
        var count: UInt64 = 0
        _ = unsafe Glibc.read(mailbox.finished.number, &count, 8)
        let results = mailbox.results.withLock { results in
            defer { results = [] }
            return results
        }
        for result in results { waiting.removeValue(forKey: result.number)?(result.code) }
    }

    private func start() -> Bool {
        var thread = pthread_t()
        let owned = unsafe Unmanaged.passRetained(mailbox)
        let result = unsafe pthread_create(
            &thread, nil,
            { argument in
                guard let argument = unsafe argument else { return nil }
                unsafe Unmanaged<Mailbox>.fromOpaque(argument).takeRetainedValue().serve()
                return nil
            }, owned.toOpaque())
        guard result == 0 else {
            unsafe owned.release()
            return false
        }
        pthread_detach(thread)
        return true
    }
}

extension BlockWorker.Mailbox {
    func finish(_ number: UInt64, _ code: Int32) {
        results.withLock { $0.append((number, code)) }
        var one: UInt64 = 1
        _ = unsafe Glibc.write(finished.number, &one, 8)
    }

    /// The thread's life.
    func serve() {
        while true {
            var count: UInt64 = 0
            _ = unsafe Glibc.read(work.number, &count, 8)
            let taken = jobs.withLock { jobs in
                defer { jobs = [] }
                return jobs
            }
            for job in taken {
                if job.operation == .stop { return }
                finish(job.number, perform(job))
            }
        }
    }

    private func perform(_ job: BlockWorker.Job) -> Int32 {
        switch job.operation {
        case .read: return move(job, read: true)
        case .write: return move(job, read: false)
        case .flush: return fdatasync(file.number) == 0 ? 0 : errno
        case .discard: return discard(job)
        case .refuse: return EROFS
        case .nothing, .stop: return 0
        }
    }

    /// Makes a hole (fallocate(2), FALLOC_FL_PUNCH_HOLE and KEEP_SIZE); on block devices it unmaps.
    private func discard(_ job: BlockWorker.Job) -> Int32 {
        guard let position = Int(exactly: job.offset), let bytes = Int(exactly: job.bytes) else { return EINVAL }
        return caio_punch_hole(file.number, position, bytes) == 0 ? 0 : errno
    }

    private func move(_ job: BlockWorker.Job, read: Bool) -> Int32 {
        guard var position = Int(exactly: job.offset) else { return EINVAL }
        for range in job.ranges {
            var moved = 0
            while moved < range.count {
                let address = unsafe range.base + moved
                let left = range.count - moved
                let result =
                    unsafe read
                    ? pread(file.number, address, left, position) : pwrite(file.number, address, left, position)
                if result < 0 {
                    if errno == EINTR { continue }
                    return errno
                }
                if result == 0 {
                    guard read, position >= size else { return EIO }
                    unsafe memset(address, 0, left)
                }
                moved += result == 0 ? left : result
                position += result == 0 ? left : result
            }
        }
        return 0
    }
}
