// A console's log on disk.
// Source: open(2) (O_APPEND), ftruncate(2).
// Modelled: a limit, with the log before it kept under another name. Not modelled: time stamps.
// Quirks: a disk that is full loses lines of the log, and nothing else. Both files stay open, as a process that is
// confined opens none; so a full log is copied into the other one.
internal import Glibc
public import Host

/// Appends what a guest writes; `path` and `path`.1 hold at most `limit` bytes each.
public final class ConsoleLog {
    public let path: String
    private let limit: Int
    private let file: Descriptor
    private let older: Descriptor
    private var size: Int

    public init(_ path: String, limit: Int = 1 << 20) throws(HostFailure) {
        (self.path, self.limit) = (path, max(1, limit))
        file = try HostFile.open(path, [.readWrite, .create, .append])
        older = try HostFile.open(path + ".1", [.write, .create, .append])
        size = Int(lseek(file.number, 0, SEEK_END))
    }

    public func append(_ bytes: [UInt8]) {
        if size > 0 && size + bytes.count > limit { turnOver() }
        let part = bytes.suffix(limit)
        do {
            try HostFile.write(part, to: file.number)
            size += part.count
        } catch {}
    }

    private func turnOver() {
        var bytes = [UInt8](repeating: 0, count: size)
        let got = unsafe pread(file.number, &bytes, size, 0)
        guard got >= 0, ftruncate(older.number, 0) == 0 else { return }
        try? HostFile.write(bytes.prefix(got), to: older.number)
        if ftruncate(file.number, 0) == 0 { size = 0 }
    }
}
