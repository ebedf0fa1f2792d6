// A raw image file or block device as a drive's medium.
// Source: open(2) (O_DIRECT), preadv2(2) (RWF_NOWAIT), fdatasync(2), libaio.
// Modelled: direct asynchronous I/O, cached I/O for what is read-only or not aligned. Not modelled: image formats.
// Quirk: a read-only image goes through the host's cache: several domains boot from one ISO, and guests read it in
// small pieces that read-ahead serves best.
internal import Glibc
public import Host

/// An opened image; closed and unlocked with its last owner.
public final class DiskImage: BlockStore {
    public enum Use: Sendable { case disk, cdrom, floppy }
    public let path: String
    public let size: UInt64
    public let isReadOnly: Bool
    /// Address and length alignment of direct transfers; nil if all I/O goes through the host's cache.
    public var directAlignment: Int? { direct?.alignment }
    private let cached: Descriptor
    private let direct: DirectIO?
    private let worker: BlockWorker
    /// Whether the file system answers RWF_NOWAIT.
    private var hasQuickReads = true

    /// Looks whether the image can be what `use` says.
    public init(_ files: ImageFiles, for use: Use, on reactor: Reactor) throws(ImageFailure) {
        let opened = files.top
        try opened.check(for: use)
        (path, size, isReadOnly, cached) = (opened.path, opened.size, files.readOnly, opened.descriptor)
        do {
            worker = try BlockWorker(descriptor: opened.descriptor, size: opened.size, on: reactor)
            direct = try files.direct.map { (file) throws(HostFailure) in try DirectIO(file, on: reactor) } ?? nil
        } catch { throw ImageFailure(path, .host(error.code)) }
    }

    /// Opens `path`, locks it, and looks whether it can be what `use` says.
    public convenience init(
        _ path: String, for use: Use, readOnly: Bool, on reactor: Reactor
    ) throws(ImageFailure) {
        try self.init(try ImageFiles(path, .raw, readOnly: readOnly), for: use, on: reactor)
    }

    public func readNow(at offset: UInt64, into ranges: [HostRange]) -> Bool {
        guard direct == nil, hasQuickReads else { return false }
        switch readWithoutWaiting(cached.number, ranges, at: offset) {
        case .all: return true
        case .notNow: return false
        case .unsupported:
            hasQuickReads = false
            return false
        }
    }

    public func read(at offset: UInt64, into ranges: [HostRange], done: @escaping (Int32) -> Void) {
        let again = { [worker] in worker.submit(.read, at: offset, ranges, done: done) }
        if let direct, direct.submit(.read, at: offset, ranges, done: { $0 ? done(0) : again() }) { return }
        again()
    }

    public func write(at offset: UInt64, from ranges: [HostRange], done: @escaping (Int32) -> Void) {
        guard !isReadOnly else { return worker.submit(.refuse, at: 0, [], done: done) }
        let again = { [worker] in worker.submit(.write, at: offset, ranges, done: done) }
        if let direct, direct.submit(.write, at: offset, ranges, done: { $0 ? done(0) : again() }) { return }
        again()
    }

    public func flush(done: @escaping (Int32) -> Void) {
        guard !isReadOnly else { return worker.submit(.nothing, at: 0, [], done: done) }
        let again = { [worker] in worker.submit(.flush, at: 0, [], done: done) }
        if let direct, direct.flush(done: { $0 ? done(0) : again() }) { return }
        again()
    }

    public var canDiscard: Bool { !isReadOnly }

    public func discard(at offset: UInt64, bytes: UInt64, done: @escaping (Int32) -> Void) {
        worker.submit(isReadOnly ? .refuse : .discard, at: offset, [], bytes: bytes, done: done)
    }

    public func measure() -> UInt64 {
        // All transfers name their place, so the file's own position is free for this.
        let end = lseek(cached.number, 0, SEEK_END)
        return end < 0 ? size : UInt64(end)
    }

    public func take() throws(ImageFailure) {
        guard OpenedImage.lock(cached.number, readOnly: isReadOnly) else { throw ImageFailure(path, .inUse) }
    }

    public func release() {
        drain()
        _ = flock(cached.number, LOCK_UN)
    }

    public func batch(_ body: () -> Void) {
        if let direct { direct.batch(body) } else { body() }
    }

    public func collect() -> Bool {
        guard let direct else { return false }
        direct.collect()
        return direct.isBusy
    }

    public func drain() {
        while true {
            if let direct, direct.isBusy {
                direct.waitForOne()
            } else if worker.isBusy {
                worker.waitForOne()
            } else {
                return
            }
        }
    }
}
