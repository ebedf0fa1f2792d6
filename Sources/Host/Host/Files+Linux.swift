// Files, locks and directories.
// Source: open(2), flock(2), rename(2).
// Modelled: what the toolstack needs; whole small files, atomic replacement, locks that end with their holder.
// Quirks: a lock belongs to the open file, so a child that is handed the descriptor holds it on.
internal import CHost
internal import Glibc

public enum HostFile {
    public struct Mode: OptionSet, Sendable {
        public let rawValue: Int32
        public init(rawValue: Int32) { self.rawValue = rawValue }
        public static let read = Mode(rawValue: O_RDONLY)
        public static let write = Mode(rawValue: O_WRONLY)
        public static let readWrite = Mode(rawValue: O_RDWR)
        public static let create = Mode(rawValue: O_CREAT)
        public static let append = Mode(rawValue: O_APPEND)
        public static let truncate = Mode(rawValue: O_TRUNC)
        public static let noTerminal = Mode(rawValue: O_NOCTTY)
        public static let nonBlocking = Mode(rawValue: O_NONBLOCK)
    }

    /// Opens `path`, close-on-exec.
    public static func open(_ path: String, _ mode: Mode, permissions: UInt32 = 0o600) throws(HostFailure) -> Descriptor
    {
        let result = chost_open(path, mode.rawValue | O_CLOEXEC, permissions)
        guard result >= 0 else { throw HostFailure("open", path, result: Int(result)) }
        return Descriptor(owning: result)
    }

    /// The bytes of a file, at most `limit`.
    public static func read(_ path: String, limit: Int = 1 << 24) throws(HostFailure) -> [UInt8] {
        let file = try open(path, .read)
        var bytes: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 65_536)
        while bytes.count < limit {
            let count = Glibc.read(file.number, &chunk, min(chunk.count, limit - bytes.count))
            guard count >= 0 else { throw HostFailure("read", path, code: errno) }
            if count == 0 { break }
            bytes += chunk.prefix(count)
        }
        return bytes
    }

    /// The last `limit` bytes of a file; empty if it cannot be read.
    public static func tail(_ path: String, limit: Int) -> [UInt8] {
        guard let file = try? open(path, .read) else { return [] }
        let end = lseek(file.number, 0, SEEK_END)
        lseek(file.number, max(0, end - limit), SEEK_SET)
        var bytes = [UInt8](repeating: 0, count: limit)
        let count = Glibc.read(file.number, &bytes, limit)
        return Array(bytes.prefix(max(0, count)))
    }

    public static func write(_ bytes: some Collection<UInt8>, to descriptor: Int32) throws(HostFailure) {
        var rest = Array(bytes)
        while !rest.isEmpty {
            let count = Glibc.write(descriptor, rest, rest.count)
            if count < 0 && errno == EINTR { continue }
            guard count >= 0 else { throw HostFailure("write to", "descriptor \(descriptor)", code: errno) }
            rest.removeFirst(count)
        }
    }

    /// Puts `bytes` in the place of the file at once: readers see the old content or the new.
    public static func replace(_ path: String, with bytes: some Collection<UInt8>) throws(HostFailure) {
        let temporary = path + ".new"
        do {
            let file = try open(temporary, [.write, .create, .truncate])
            try write(bytes, to: file.number)
        }
        guard rename(temporary, path) == 0 else { throw HostFailure("replace", path, code: errno) }
    }

    /// Makes `path` a symbolic link to `target`, in place of whatever was there.
    public static func link(_ path: String, to target: String) throws(HostFailure) {
        unlink(path)
        guard symlink(target, path) == 0 else { throw HostFailure("make", path, code: errno) }
    }

    /// Makes a directory for this user only; that it is there already is no failure.
    public static func makeDirectory(_ path: String) throws(HostFailure) {
        guard mkdir(path, 0o700) == 0 || errno == EEXIST else { throw HostFailure("make directory", path, code: errno) }
    }

    /// Owner, whether others may write, and whether it is a directory.
    public static func status(_ path: String) throws(HostFailure) -> FileStatus {
        var status = stat()
        guard stat(path, &status) == 0 else { throw HostFailure("find", path, code: errno) }
        return FileStatus(status)
    }

    public static func list(_ path: String) -> [String] {
        guard let stream = opendir(path) else { return [] }
        defer { closedir(stream) }
        var names: [String] = []
        while let entry = readdir(stream) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            if name != "." && name != ".." { names.append(name) }
        }
        return names
    }

    /// Removes a file, or a directory and all in it. What is not there is gone already.
    public static func remove(_ path: String) {
        if unlink(path) == 0 || errno == ENOENT { return }
        for name in list(path) { remove(path + "/" + name) }
        rmdir(path)
    }

    /// Locks a file for this process alone; false if another holds it (only without `wait`).
    public static func lock(_ descriptor: Descriptor, wait: Bool) throws(HostFailure) -> Bool {
        let result = chost_lock(descriptor.number, wait ? 1 : 0)
        if result == -EWOULDBLOCK { return false }
        guard result == 0 else { throw HostFailure("lock", "descriptor \(descriptor.number)", result: Int(result)) }
        return true
    }
}

/// What stat(2) says of a file.
public struct FileStatus: Sendable {
    public var device: UInt64
    public var inode: UInt64
    public var owner: UInt32
    public var isDirectory: Bool
    public var isBlockDevice: Bool
    public var isRegular: Bool
    public var othersMayWrite: Bool
    public var size: Int

    init(_ status: stat) {
        device = UInt64(status.st_dev)
        inode = UInt64(status.st_ino)
        owner = status.st_uid
        let kind = status.st_mode & S_IFMT
        (isDirectory, isBlockDevice, isRegular) = (kind == S_IFDIR, kind == S_IFBLK, kind == S_IFREG)
        othersMayWrite = status.st_mode & 0o022 != 0
        size = Int(status.st_size)
    }
}

extension HostFile {
    /// What one read(2) gives; empty at the end.
    public static func readAvailable(_ descriptor: Int32, limit: Int = 65_536) throws(HostFailure) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: limit)
        var count = -1
        repeat { count = Glibc.read(descriptor, &bytes, limit) } while count < 0 && errno == EINTR
        guard count >= 0 else { throw HostFailure("read from", "descriptor \(descriptor)", code: errno) }
        return Array(bytes.prefix(count))
    }

    /// Whether a descriptor of this number is open.
    public static func isOpen(_ number: Int32) -> Bool { fcntl(number, F_GETFD) >= 0 }

    /// Waits until one of the descriptors can be read or has ended; the ready ones.
    public static func waitReadable(_ descriptors: [Int32], milliseconds: Int32 = -1) -> [Int32] {
        var watches = descriptors.map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
        guard poll(&watches, nfds_t(watches.count), milliseconds) > 0 else { return [] }
        return watches.filter { $0.revents != 0 }.map(\.fd)
    }
}

/// Closes a descriptor that its owner will not close in time: an exec or a fork has passed it on.
/// The number is replaced by /dev/null, so that the owner's own close stays harmless.
public func closeDescriptor(_ number: Int32) {
    let null = chost_open("/dev/null", O_RDONLY | O_CLOEXEC, 0)
    guard null >= 0 else { return }
    dup2(null, number)
    _ = chost_fcntl(number, F_SETFD, Int(FD_CLOEXEC))
    close(null)
}
