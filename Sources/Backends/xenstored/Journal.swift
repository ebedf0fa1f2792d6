// The store's tree on disk, so that another xenstored can go on where one was killed.
// Source: ours.
// Modelled: every change is written before it is answered; the file is written anew when it has grown.
// Quirks: nothing is forced to the disk: a power failure ends the domains, too, and with them what the store is for.

import Glibc
import Host
import XenStore

final class Journal {
    private let path: String
    private var file: Descriptor
    private var size = 0
    private var limit = 0

    /// Puts `store` together from the file, if there is one, and notes all changes from now on.
    init(_ path: String, _ store: inout Store) throws(HostFailure) {
        self.path = path
        let bytes = (try? HostFile.read(path, limit: 1 << 28)) ?? []
        let sound = store.replay(bytes)
        if sound < bytes.count { complain("\(path) ends with \(bytes.count - sound) bytes that make no sense") }
        if sound > 0 { complain("goes on with what another xenstored left: \(path)") }
        file = try HostFile.open(path + ".new", [.write, .create, .truncate])
        try compact(store.records)
    }

    func append(_ record: [UInt8]) {
        // A disk that is full costs the next xenstored something, and this one nothing.
        try? HostFile.write(record, to: file.number)
        size += record.count
    }

    /// Whether the file holds far more than the tree.
    var isLong: Bool { size > limit }

    func compact(_ records: [UInt8]) throws(HostFailure) {
        let new = try HostFile.open(path + ".new", [.write, .create, .truncate])
        try HostFile.write(records, to: new.number)
        guard unsafe rename(path + ".new", path) == 0 else { throw HostFailure("replace", path, code: errno) }
        (file, size, limit) = (new, records.count, records.count * 4 + 1 << 20)
    }

    /// The store has come to its end: the next one begins with nothing.
    func remove() { HostFile.remove(path) }
}
