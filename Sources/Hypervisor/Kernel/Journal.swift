// The hypervisor's log: lines on standard error, the last of them for `xl dmesg`.

internal import Host
internal import Synchronization

final class Journal: Sendable {
    private let lines = Mutex<[String]>([])
    private static let kept = 500

    func add(_ line: String) {
        lines.withLock { lines in
            lines.append(line)
            if lines.count > Self.kept { lines.removeFirst(lines.count - Self.kept) }
        }
        try? HostFile.write(Array("hypervisor: \(line)\n".utf8), to: 2)
    }

    var text: String { lines.withLock { $0.joined(separator: "\n") } }
}
