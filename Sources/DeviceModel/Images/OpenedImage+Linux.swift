// Opening and judging an image: type, size, lock, first bytes.
// Source: open(2), flock(2), ECMA-119 §8.4, the magic numbers of image formats.
// Modelled: files and block devices. Not modelled: –
// Quirk: a volume may end in 150 sectors of padding that some tools cut off, so an ISO may be shorter by that.
internal import CAIO
internal import Glibc
internal import Host

/// An image that is open and locked.
struct OpenedImage {
    let path: String
    let descriptor: Descriptor
    let size: UInt64

    init(_ path: String, readOnly: Bool, isShared: Bool = false) throws(ImageFailure) {
        var status = stat()
        guard unsafe stat(path, &status) == 0 else {
            throw ImageFailure(path, errno == ENOENT || errno == ENOTDIR ? .missing : .unreadable(errno))
        }
        let type = status.st_mode & S_IFMT
        guard type == S_IFREG || type == S_IFBLK else { throw ImageFailure(path, .notAnImage) }
        // A block device that is mounted cannot be opened exclusively.
        let flags = readOnly ? O_RDONLY : O_RDWR | (type == S_IFBLK && !isShared ? O_EXCL : 0)
        let number = unsafe open(path, flags | O_CLOEXEC)
        guard number >= 0 else {
            let code = errno
            if code == EBUSY { throw ImageFailure(path, .inUse) }
            let isUnreadable = unsafe access(path, R_OK) != 0
            throw ImageFailure(path, readOnly || isUnreadable ? .unreadable(code) : .unwritable(code))
        }
        try self.init(path, Descriptor(owning: number), readOnly: readOnly, isShared: isShared)
    }

    /// Shared by readers, or a writer's alone; false if somebody else has it.
    static func lock(_ number: Int32, readOnly: Bool) -> Bool {
        flock(number, (readOnly ? LOCK_SH : LOCK_EX) | LOCK_NB) == 0 || errno != EWOULDBLOCK
    }

    static func unlock(_ number: Int32) { _ = flock(number, LOCK_UN) }

    var bytesNow: UInt64 { UInt64(max(0, lseek(descriptor.number, 0, SEEK_END))) }

    /// Takes a file that somebody else has opened; `path` is its name in messages.
    init(_ path: String, _ descriptor: Descriptor, readOnly: Bool, isShared: Bool = false) throws(ImageFailure) {
        (self.path, self.descriptor) = (path, descriptor)
        let number = descriptor.number
        var status = stat()
        let type = unsafe fstat(number, &status) == 0 ? status.st_mode & S_IFMT : 0
        guard type == S_IFREG || type == S_IFBLK else { throw ImageFailure(path, .notAnImage) }
        let end = lseek(number, 0, SEEK_END)
        guard end >= 0 else { throw ImageFailure(path, .unreadable(errno)) }
        size = UInt64(end)
        guard isShared || Self.lock(number, readOnly: readOnly) else { throw ImageFailure(path, .inUse) }
        // Guests read in pieces of 2 to 64 KiB; a wider read-ahead saves waits. What it cannot do, it ignores.
        if readOnly { _ = posix_fadvise(number, 0, 0, POSIX_FADV_SEQUENTIAL) }
    }

    func hasMagic(_ magic: [UInt8]) throws(ImageFailure) -> Bool { try bytes(at: 0, magic.count) == magic }

    func check(for use: DiskImage.Use) throws(ImageFailure) {
        guard size > 0 else { throw ImageFailure(path, .empty) }
        if try hasMagic(Qcow2Header.magic) { throw ImageFailure(path, .unsupported(format: "qcow2")) }
        switch use {
        case .disk:
            guard size >= 512 else { throw ImageFailure(path, .truncated(holds: size, needs: 512)) }
        case .floppy:
            guard FloppyFormat(imageSize: size) != nil else { throw ImageFailure(path, .notAFloppy(size: size)) }
        case .cdrom: try checkVolume()
        }
    }

    /// Compares the primary volume descriptor's size with the image's (ECMA-119 §8.4.8).
    private func checkVolume() throws(ImageFailure) {
        let descriptor = try bytes(at: 16 * 2048, 132)
        guard descriptor.count == 132 else {
            throw ImageFailure(path, .truncated(holds: size, needs: 17 * 2048))
        }
        guard Array(descriptor[1..<6]) == Array("CD001".utf8), descriptor[0] == 1 else { return }
        let blocks = (0..<4).reduce(0) { $0 | UInt64(descriptor[80 + $1]) << UInt64(8 * $1) }
        let blockSize = UInt64(descriptor[128]) | UInt64(descriptor[129]) << 8
        let needs = blocks * (blockSize == 0 ? 2048 : blockSize)
        guard needs <= size || needs - size <= 150 * 2048 else {
            throw ImageFailure(path, .truncated(holds: size, needs: needs))
        }
    }

    private func bytes(at offset: Int, _ count: Int) throws(ImageFailure) -> [UInt8] {
        var buffer = [UInt8](repeating: 0, count: count)
        let got = unsafe pread(descriptor.number, &buffer, count, offset)
        guard got >= 0 else { throw ImageFailure(path, .unreadable(errno)) }
        return Array(buffer.prefix(got))
    }
}

/// How an attempt to read from the host's cache went.
enum QuickRead { case all, notNow, unsupported }

/// Reads only what needs no waiting (preadv2(2), RWF_NOWAIT).
func readWithoutWaiting(_ descriptor: Int32, _ ranges: [HostRange], at offset: UInt64) -> QuickRead {
    guard ranges.count <= 1024, let position = Int(exactly: offset) else { return .notNow }
    let vectors = unsafe ranges.map { unsafe iovec(iov_base: $0.base, iov_len: $0.count) }
    let got = unsafe caio_read_now(descriptor, vectors, Int32(vectors.count), position)
    if got < 0 { return errno == EAGAIN || errno == EINTR ? .notNow : .unsupported }
    return got == ranges.reduce(0) { $0 + $1.count } ? .all : .notNow
}
