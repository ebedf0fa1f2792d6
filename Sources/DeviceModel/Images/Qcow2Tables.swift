// The tables of a qcow2 image that is in use: where each cluster lies, and how often it is referred to.
// Source: QEMU's docs/interop/qcow2.txt (refcounts, cluster mapping).
// Modelled: tables in memory, read on demand, written back in an order that a crash cannot harm.
// Quirks: what was changed lies in memory until `commit`; a crash before it loses writes that nobody flushed, no more.

/// Where an image's bytes are kept. All calls are on one thread and wait for the host.
protocol ImageFile: AnyObject {
    /// Bytes that the file has.
    var size: UInt64 { get }
    /// What lies behind the file's end is zero.
    func read(_ offset: UInt64, _ range: HostRange) throws(Qcow2Fault)
    func write(_ offset: UInt64, _ range: HostRange) throws(Qcow2Fault)
    /// All that was written before is durable.
    func sync() throws(Qcow2Fault)
    func extend(to size: UInt64) throws(Qcow2Fault)
    /// What a range holds is of no use any more.
    func release(_ offset: UInt64, bytes: UInt64)
}

/// A table of the file, in memory.
final class Qcow2Table {
    var entries: [UInt64]
    let offset: UInt64
    var isDirty = false
    var lastUse: UInt64 = 0
    init(_ entries: [UInt64], at offset: UInt64) { (self.entries, self.offset) = (entries, offset) }

    /// As the file has it.
    static func bytes(_ number: some FixedWidthInteger) -> [UInt8] {
        stride(from: number.bitWidth - 8, through: 0, by: -8).map { UInt8(truncatingIfNeeded: number >> $0) }
    }
}

extension ImageFile {
    func bytes(_ offset: UInt64, _ count: Int) throws(Qcow2Fault) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        var fault: Qcow2Fault?
        unsafe bytes.withUnsafeMutableBytes { buffer in
            guard let base = buffer.baseAddress else { return }
            do throws(Qcow2Fault) { try unsafe read(offset, HostRange(base, count)) } catch { fault = error }
        }
        if let fault { throw fault }
        return bytes
    }

    func write(_ offset: UInt64, _ bytes: [UInt8]) throws(Qcow2Fault) {
        var copy = bytes
        var fault: Qcow2Fault?
        unsafe copy.withUnsafeMutableBytes { buffer in
            guard let base = buffer.baseAddress else { return }
            do throws(Qcow2Fault) { try unsafe write(offset, HostRange(base, buffer.count)) } catch { fault = error }
        }
        if let fault { throw fault }
    }

    func table(_ offset: UInt64, entries: Int) throws(Qcow2Fault) -> [UInt64] {
        let bytes = try bytes(offset, entries * 8)
        return unsafe bytes.withUnsafeBytes { raw in
            (0..<entries).map { unsafe UInt64(bigEndian: raw.loadUnaligned(fromByteOffset: $0 * 8, as: UInt64.self)) }
        }
    }

    func writeTable(_ offset: UInt64, _ entries: some Sequence<UInt64>) throws(Qcow2Fault) {
        try write(offset, entries.flatMap { Qcow2Table.bytes($0) })
    }
}

/// Entries of L1 and L2 tables.
enum Qcow2Entry {
    /// Nobody else refers to the cluster, so it may be written where it is (QCOW_OFLAG_COPIED).
    static let copied: UInt64 = 1 << 63
    static let compressed: UInt64 = 1 << 62
    /// The cluster reads as zeroes, whatever lies at its place.
    static let zero: UInt64 = 1
    static let offset: UInt64 = 0x00FF_FFFF_FFFF_FE00
}
