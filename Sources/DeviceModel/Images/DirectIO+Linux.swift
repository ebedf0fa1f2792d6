// Transfers between a disk and memory by the kernel itself: O_DIRECT and asynchronous I/O.
// Source: open(2), io_submit(2), io_getevents(2), sched_yield(2), libaio.h.
// Modelled: vectored reads and writes, flushes.
// Quirks: file systems differ in what they take; whatever they refuse is done through the cache instead. The kernel flushes
// on a thread of this CPU, so whoever looks for the end of a flush gives that thread the CPU each time.
internal import CAIO
internal import Glibc
internal import Host

/// One asynchronous I/O context on one file opened with O_DIRECT.
@safe final class DirectIO {
    enum Operation { case read, write }
    /// One request in the kernel's hands: its control block and its vectors.
    @safe private final class Request {
        let block: UnsafeMutablePointer<iocb>
        let vectors: UnsafeMutablePointer<iovec>
        let bytes: Int
        let done: (Bool) -> Void
        init(_ ranges: [HostRange], done: @escaping (Bool) -> Void) {
            unsafe block = .allocate(capacity: 1)
            unsafe block.initialize(to: iocb())
            unsafe vectors = .allocate(capacity: ranges.count)
            for (index, range) in ranges.enumerated() {
                unsafe (vectors + index).initialize(to: iovec(iov_base: range.base, iov_len: range.count))
            }
            bytes = ranges.reduce(0) { $0 + $1.count }
            self.done = done
        }
        deinit {
            unsafe block.deallocate()
            unsafe vectors.deallocate()
        }
    }

    static let depth = 128
    let alignment: Int
    private let file: Descriptor
    private let event: Descriptor
    private let reactor: Reactor
    private var context: io_context_t?
    /// Requests under way, by the number that travels through the kernel.
    private var requests: [UInt: Request] = [:]
    private var nextNumber: UInt = 1
    /// Requests that the kernel has not been given yet, and how many `batch`es are open.
    private var unsent: [UInt] = []
    private var openBatches = 0
    private var events: [io_event] = unsafe []
    private var flushes = 0
    var isBusy: Bool { !requests.isEmpty }

    /// `file` is open by O_DIRECT; nil if its file system takes no direct transfers after all.
    init?(_ file: Descriptor, on reactor: Reactor) throws(HostFailure) {
        self.file = file
        guard let found = Self.findAlignment(file.number) else { return nil }
        alignment = found
        let eventNumber = eventfd(0, Int32(EFD_CLOEXEC) | Int32(EFD_NONBLOCK))
        guard eventNumber >= 0 else { throw HostFailure("make", "an event descriptor", code: errno) }
        event = Descriptor(owning: eventNumber)
        self.reactor = reactor
        let result = unsafe io_setup(Int32(Self.depth), &context)
        guard result == 0 else { return nil }
        unsafe events = [io_event](repeating: io_event(), count: Self.depth)
        reactor.watch(eventNumber) { [weak self] _ in self?.wake() }
    }

    deinit {
        reactor.unwatch(event.number)
        if let context = unsafe context { unsafe io_destroy(context) }
    }

    /// Tries reads of 512 and of 4096 bytes, memory no better aligned than that.
    private static func findAlignment(_ number: Int32) -> Int? {
        let buffer = TransferBuffer(bytes: 16_384)
        return [512, 4096].first { size in
            unsafe pread(number, buffer.part(size, size).base, size, size) >= 0
        }
    }

    /// Hands a request to the kernel; false if it does not fit direct I/O. `done` tells whether it succeeded in full.
    func submit(
        _ operation: Operation, at offset: UInt64, _ ranges: [HostRange], done: @escaping (Bool) -> Void
    ) -> Bool {
        guard requests.count < Self.depth, !ranges.isEmpty, ranges.count <= 1024, let position = Int64(exactly: offset),
            offset % UInt64(alignment) == 0, ranges.allSatisfy(isAligned)
        else { return false }
        let request = Request(ranges, done: done)
        let count = Int32(ranges.count)
        switch operation {
        case .read: unsafe io_prep_preadv(request.block, file.number, request.vectors, count, position)
        case .write: unsafe io_prep_pwritev(request.block, file.number, request.vectors, count, position)
        }
        queue(request)
        return true
    }

    /// Makes what was written durable (as fdatasync(2) does); false if the kernel has its hands full.
    func flush(done: @escaping (Bool) -> Void) -> Bool {
        guard requests.count < Self.depth else { return false }
        flushes += 1
        let request = Request([]) { [unowned self] isDone in
            flushes -= 1
            done(isDone)
        }
        unsafe io_prep_fdsync(request.block, file.number)
        queue(request)
        return true
    }

    private func queue(_ request: Request) {
        unsafe io_set_eventfd(request.block, event.number)
        let number = nextNumber
        nextNumber &+= 1
        unsafe request.block.pointee.data = UnsafeMutableRawPointer(bitPattern: number)
        requests[number] = request
        unsent.append(number)
        if openBatches == 0 { send() }
    }

    /// Gives the kernel in one call what `body` submits.
    func batch(_ body: () -> Void) {
        openBatches += 1
        body()
        openBatches -= 1
        if openBatches == 0 { send() }
    }

    private func send() {
        let numbers = unsent
        unsent = []
        var first = 0
        while first < numbers.count {
            var list = unsafe numbers[first...].map { unsafe requests[$0]?.block }
            let sent = unsafe Int(io_submit(context, list.count, &list))
            if sent == -Int(EINTR) { continue }
            // One that the kernel refuses is done in another way, the rest is tried again.
            if sent <= 0 { requests.removeValue(forKey: numbers[first])?.done(false) }
            first += max(1, sent)
        }
    }

    private func isAligned(_ range: HostRange) -> Bool {
        unsafe range.count % alignment == 0 && Int(bitPattern: range.base) % alignment == 0
    }

    func waitForOne() { take(atLeast: 1) }

    /// Takes what is done. libaio looks into the ring that the kernel shares before it calls the kernel.
    func collect() {
        guard !requests.isEmpty else { return }
        if flushes > 0 { sched_yield() }
        take(atLeast: 0)
    }

    private func wake() {
        var count: UInt64 = 0
        _ = unsafe Glibc.read(event.number, &count, 8)
        collect()
    }

    private func take(atLeast minimum: Int) {
        var now = timespec()
        let got =
            unsafe minimum == 0
            ? io_getevents(context, 0, Self.depth, &events, &now)
            : io_getevents(context, minimum, Self.depth, &events, nil)
        guard got > 0 else { return }
        // A closure may submit, and even wait: the array is its own while they run.
        let done = unsafe events[..<Int(got)].map { unsafe (UInt(bitPattern: $0.data), $0.res) }
        for (number, result) in done {
            guard let request = requests.removeValue(forKey: number) else { continue }
            request.done(result == UInt(request.bytes))
        }
    }
}
