// A console's log on disk.
// Source: open(2) (O_APPEND), rename(2).
// Modelled: a limit, with the log before it kept under another name. Not modelled: time stamps.
// Quirks: a disk that is full loses lines of the log, and nothing else.
internal import Glibc
public import Host

/// Appends what a guest writes; `path` and `path`.1 hold at most `limit` bytes each.
public final class ConsoleLog {
    public let path: String
    private let limit: Int
    private var file: Descriptor
    private var size: Int

    public init(_ path: String, limit: Int = 1 << 20) throws(HostFailure) {
        (self.path, self.limit) = (path, max(1, limit))
        file = try HostFile.open(path, [.write, .create, .append])
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
        guard unsafe rename(path, path + ".1") == 0,
            let next = try? HostFile.open(path, [.write, .create, .append])
        else { return }
        (file, size) = (next, 0)
    }
}
