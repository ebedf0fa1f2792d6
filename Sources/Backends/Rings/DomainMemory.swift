// A domain's frames as its back ends reach them.
// Source: Xen's public/grant_table.h (a grant names a frame), public/memory.h.
// Modelled: RAM in one or more extents of shared memory. Not modelled: frames of other domains.
// Quirks: frames that are not RAM (grant table, shared info) are no part of it, so nobody can grant them.
public import Host

/// The RAM of one domain, by frame number.
@safe public final class DomainMemory {
    public static let pageSize = 4096

    /// Consecutive frames at consecutive host addresses.
    @safe private struct Extent {
        let first: UInt64
        let count: UInt64
        let base: UnsafeMutableRawPointer
    }
    private let extents: [Extent]
    /// Keeps the mappings that the extents point into.
    private let memory: SharedMemory

    /// What `memory` holds from `offset` on is `bytes` bytes of RAM that begin at frame `first`.
    public typealias Part = (first: UInt64, offset: Int, bytes: Int)

    /// Takes the parts of `memory` that lie in it whole.
    public init(_ memory: SharedMemory, parts: [Part]) {
        self.memory = memory
        extents = parts.compactMap { part in
            guard let base = unsafe memory.bytes.baseAddress, part.offset >= 0, part.bytes > 0,
                unsafe part.offset <= memory.bytes.count, unsafe part.bytes <= memory.bytes.count - part.offset
            else { return nil }
            return unsafe Extent(
                first: part.first, count: UInt64(part.bytes / Self.pageSize), base: base + part.offset)
        }
    }

    /// A PV domain's memory: frame n at n pages.
    public convenience init(flat memory: SharedMemory, bytes: Int) {
        self.init(memory, parts: [(0, 0, bytes)])
    }

    /// The host's view of a frame; nil if it is not RAM.
    public func page(_ frame: UInt64) -> UnsafeMutableRawPointer? {
        for extent in extents where frame >= extent.first && frame - extent.first < extent.count {
            return unsafe extent.base + Int(frame - extent.first) * Self.pageSize
        }
        return nil
    }
}
