// A domain's frames as its back ends reach them.
// Source: Xen's public/grant_table.h (a grant names a frame), public/memory.h.
// Modelled: RAM in one or more extents of shared memory, pages that hold decoded code. Not modelled: foreign frames.
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
        /// A byte for each frame, if there is a code map.
        let code: UnsafeMutableRawPointer?
    }
    private var extents: [Extent]
    private let codeMap: SharedMemory?
    /// Called with a frame that was written and from which code has been decoded.
    public var onCodeWritten: (UInt64) -> Void = { _ in }
    /// Keeps the mappings that the extents point into.
    private let memory: SharedMemory
    private var others: [SharedMemory] = []

    /// What `memory` holds from `offset` on is `bytes` bytes of RAM that begin at frame `first`.
    public typealias Part = (first: UInt64, offset: Int, bytes: Int)

    /// Takes the parts of `memory` that lie in it whole. `codeMap`: one byte for each page of `memory`.
    public init(_ memory: SharedMemory, parts: [Part], codeMap: SharedMemory? = nil) {
        (self.memory, self.codeMap) = (memory, codeMap)
        let code = unsafe codeMap.flatMap { map in
            unsafe map.bytes.count >= memory.bytes.count / Self.pageSize ? map.bytes.baseAddress : nil
        }
        extents = parts.compactMap { part in
            guard let base = unsafe memory.bytes.baseAddress, part.offset >= 0, part.bytes > 0,
                unsafe part.offset <= memory.bytes.count, unsafe part.bytes <= memory.bytes.count - part.offset
            else { return nil }
            return unsafe Extent(
                first: part.first, count: UInt64(part.bytes / Self.pageSize), base: base + part.offset,
                code: code.map { unsafe $0 + part.offset / Self.pageSize })
        }
    }

    /// A PV domain's memory: frame n at n pages.
    public convenience init(flat memory: SharedMemory, bytes: Int) {
        self.init(memory, parts: [(0, 0, bytes)])
    }

    /// Frames from `first` on lie in other memory that holds no code. Nothing of the domain is mapped yet.
    public func add(_ other: SharedMemory, first: UInt64, offset: Int, bytes: Int) {
        guard let base = unsafe other.bytes.baseAddress, offset >= 0, bytes > 0,
            unsafe offset <= other.bytes.count, unsafe bytes <= other.bytes.count - offset
        else { return }
        others.append(other)
        unsafe extents.append(
            Extent(first: first, count: UInt64(bytes / Self.pageSize), base: base + offset, code: nil))
    }

    /// Tells the engine, through `onCodeWritten`, that a frame has other contents now.
    public func noteWritten(_ frame: UInt64) {
        for extent in extents where frame >= extent.first && frame - extent.first < extent.count {
            guard let code = unsafe extent.code else { return }
            if unsafe code.load(fromByteOffset: Int(frame - extent.first), as: UInt8.self) != 0 { onCodeWritten(frame) }
        }
    }

    /// The host's view of a frame; nil if it is not RAM.
    public func page(_ frame: UInt64) -> UnsafeMutableRawPointer? {
        for extent in extents where frame >= extent.first && frame - extent.first < extent.count {
            return unsafe extent.base + Int(frame - extent.first) * Self.pageSize
        }
        return nil
    }
}
