// A qcow2 image as a drive's medium: what needs no change of tables goes straight to the file, the rest to a thread.
// Source: our own; QEMU's docs/interop/qcow2.txt for what the tables mean.
// Modelled: direct I/O for clusters that are in place, everything else one after the other on the image's own thread.
// Quirks: this side keeps copies of L2 tables. The thread alone changes tables, and tells what it changed.
internal import Glibc
public import Host

/// An opened qcow2 image with all that lies below it. Everything but `Qcow2Worker` happens on the reactor's thread.
public final class Qcow2Image: BlockStore {
    public let path: String
    public let size: UInt64
    public let isReadOnly: Bool
    public var canDiscard: Bool { !isReadOnly }
    private let files: ImageFiles
    private let reactor: Reactor
    /// Nil while the image is another owner's.
    private var worker: Qcow2Worker?
    private let direct: DirectIO?
    private let clusterBits: UInt64
    private let hasBacking: Bool
    private let understandsZero: Bool
    /// L2 tables as the thread last told them.
    private var tables: [Int: [UInt64]] = [:]
    private static let cachedTables = 256
    /// Transfers that go to the file without the thread, and what waits until there are none.
    private var underWay = 0
    private var gate: [() -> Void] = []
    private var held: [() -> Void] = []
    private var pending = 0

    public init(_ files: ImageFiles, on reactor: Reactor) throws(ImageFailure) {
        let header = try Self.header(of: files.top)
        (self.files, self.reactor, path, isReadOnly) = (files, reactor, files.path, files.readOnly)
        (size, clusterBits) = (header.size / 512 * 512, UInt64(header.clusterBits))
        (hasBacking, understandsZero) = (header.backing != nil, header.version >= 3)
        do {
            direct = try files.direct.map { (file) throws(HostFailure) in try DirectIO(file, on: reactor) } ?? nil
        } catch { throw ImageFailure(path, .host(error.code)) }
        if !files.isShared { try begin() }
    }

    deinit { worker?.end() }

    private func begin() throws(ImageFailure) {
        let map = try Self.map(files.top, on: files.layers[...], readOnly: isReadOnly)
        do { worker = try Qcow2Worker(map, on: reactor) } catch { throw ImageFailure(path, .host(error.code)) }
    }

    /// What the owner before has changed is on the disk, and read anew.
    public func take() throws(ImageFailure) {
        guard OpenedImage.lock(files.top.descriptor.number, readOnly: isReadOnly) else {
            throw ImageFailure(path, .inUse)
        }
        if worker == nil { try begin() }
    }

    public func release() {
        drain()
        worker?.end()
        (worker, tables) = (nil, [:])
        OpenedImage.unlock(files.top.descriptor.number)
    }

    public var directAlignment: Int? { direct?.alignment }

    // MARK: - BlockStore

    public func readNow(at offset: UInt64, into ranges: [HostRange]) -> Bool {
        guard gate.isEmpty, let pieces = pieces(offset, ranges, writes: false),
            pieces.allSatisfy({ $0.place == nil })
        else { return false }
        ranges.clear()
        return true
    }

    public func read(at offset: UInt64, into ranges: [HostRange], done: @escaping (Int32) -> Void) {
        transfer(.read, offset, ranges, done)
    }

    public func write(at offset: UInt64, from ranges: [HostRange], done: @escaping (Int32) -> Void) {
        guard !isReadOnly else { return ask(.refuse, done) }
        transfer(.write, offset, ranges, done)
    }

    public func flush(done: @escaping (Int32) -> Void) { ask(isReadOnly ? .nothing : .flush, done) }

    /// Clusters that are given up may be given away again, so nothing may be under way to them.
    public func discard(at offset: UInt64, bytes: UInt64, done: @escaping (Int32) -> Void) {
        guard !isReadOnly else { return ask(.refuse, done) }
        pending += 1
        gate.append { [self] in
            tables = [:]
            submit(.discard(offset, bytes)) { [self] reply in
                pending -= 1
                gate.removeFirst()
                done(reply.code)
                openGate()
            }
        }
        if gate.count == 1, underWay == 0 { gate[0]() }
    }

    public func batch(_ body: () -> Void) {
        if let direct { direct.batch(body) } else { body() }
    }

    public func collect() -> Bool {
        worker?.collectIfDone()
        direct?.collect()
        return pending > 0 || direct?.isBusy == true
    }

    public func drain() {
        var isFlushed = isReadOnly || worker == nil
        while true {
            if let direct, direct.isBusy {
                direct.waitForOne()
            } else if let worker, worker.isBusy || pending > 0 {
                worker.waitForOne()
            } else if isFlushed {
                return
            } else {
                isFlushed = true
                ask(.flush) { _ in }
            }
        }
    }

    // MARK: - Ways to the file

    private func ask(_ job: Qcow2Worker.Job, _ done: @escaping (Int32) -> Void) {
        pending += 1
        submit(job) { [self] reply in
            pending -= 1
            note(reply)
            done(reply.code)
        }
    }

    /// An image that is not this owner's any more fails as a disk does that was pulled out.
    private func submit(_ job: Qcow2Worker.Job, _ done: @escaping (Qcow2Worker.Reply) -> Void) {
        if let worker { worker.submit(job, done) } else { done(Qcow2Worker.Reply(code: EIO)) }
    }

    private func note(_ reply: Qcow2Worker.Reply) {
        if let table = reply.table {
            if tables.count >= Self.cachedTables { tables = [:] }
            tables[table.index] = table.entries
        }
        for (index, entry, value) in reply.changes { tables[index]?[entry] = value }
    }

    private func openGate() {
        if let next = gate.first {
            if underWay == 0 { next() }
            return
        }
        let waiting = held
        held = []
        for start in waiting { start() }
    }

    private func transfer(
        _ operation: DirectIO.Operation, _ offset: UInt64, _ ranges: [HostRange], _ done: @escaping (Int32) -> Void
    ) {
        guard gate.isEmpty else {
            pending += 1
            held.append { [self] in
                pending -= 1
                transfer(operation, offset, ranges, done)
            }
            return
        }
        let slow = { [self] in
            let isUnknown = entry(offset) == nil
            ask(operation == .read ? .read(offset, ranges, isUnknown) : .write(offset, ranges, isUnknown), done)
        }
        guard let direct, let pieces = pieces(offset, ranges, writes: operation == .write) else { return slow() }
        // One completion for all pieces; if one fails, the thread does the whole transfer again and says why.
        var (left, isWell) = (1, true)
        let finish = { [self] (_ okay: Bool) in
            left -= 1
            isWell = isWell && okay
            guard left == 0 else { return }
            underWay -= 1
            if isWell { done(0) } else { slow() }
            if underWay == 0, let next = gate.first { next() }
        }
        underWay += 1
        for piece in pieces {
            guard let place = piece.place else {
                piece.ranges.clear()
                continue
            }
            left += 1
            if !direct.submit(operation, at: place, piece.ranges, done: finish) {
                left -= 1
                isWell = false
            }
        }
        // Also when nothing was submitted: `done` comes later.
        left -= 1
        if left > 0 { return }
        underWay -= 1
        if isWell { ask(.nothing, done) } else { slow() }
        if underWay == 0, let next = gate.first { next() }
    }

    private struct Piece {
        /// Offset in the file; nil reads as zeroes.
        var place: UInt64?
        var ranges: [HostRange]
    }

    /// Where a transfer goes in the file; nil if the thread must look.
    private func pieces(_ offset: UInt64, _ ranges: [HostRange], writes: Bool) -> [Piece]? {
        var found: [Piece] = []
        var position = offset
        let mask = (UInt64(1) << clusterBits) - 1
        for range in ranges {
            var done = 0
            while done < range.count {
                guard let entry = entry(position), let place = place(entry, writes: writes) else { return nil }
                let count = min(range.count - done, Int(mask + 1 - position & mask))
                let at = place.offset.map { $0 + position & mask }
                let part = range.part(done, count)
                let isNext = found.last.map { last in
                    last.place == nil && at == nil
                        || at != nil && last.place.map { $0 + UInt64(last.ranges.reduce(0) { $0 + $1.count }) } == at
                }
                if isNext == true {
                    found[found.count - 1].ranges.append(part)
                } else {
                    found.append(Piece(place: at, ranges: [part]))
                }
                done += count
                position += UInt64(count)
            }
        }
        return found
    }

    private func entry(_ position: UInt64) -> UInt64? {
        guard position < size else { return nil }
        let cluster = position >> clusterBits
        let perTable = UInt64(1) << (clusterBits - 3)
        return tables[Int(cluster / perTable)]?[Int(cluster % perTable)]
    }

    /// nil: not without the thread. An offset of nil: zeroes.
    private func place(_ entry: UInt64, writes: Bool) -> (offset: UInt64?, Void)? {
        guard entry & Qcow2Entry.compressed == 0 else { return nil }
        if understandsZero, entry & Qcow2Entry.zero != 0 { return writes ? nil : (nil, ()) }
        let offset = entry & Qcow2Entry.offset
        guard offset != 0 else { return writes || hasBacking ? nil : (nil, ()) }
        guard offset & ((1 << clusterBits) - 1) == 0, !writes || entry & Qcow2Entry.copied != 0 else { return nil }
        return (offset, ())
    }
}
