// What a drive reads and writes: blocks behind an offset, without the chip knowing a file.
// Source: our own; shaped by libaio's and preadv2(2)'s abilities.
// Modelled: reads, writes, flushes, discards, waiting for all of them. Not modelled: write zeroes.
// Quirk: `readNow` exists because a CD image is nearly always in the host's cache, and PIO guests wait for each block.

/// Host memory that one transfer fills or drains: guest RAM or a chip's buffer.
@safe public struct HostRange: @unchecked Sendable {
    // Invariant: whoever starts a transfer keeps the memory until `done` was called.
    public let base: UnsafeMutableRawPointer
    public let count: Int
    public init(_ base: UnsafeMutableRawPointer, _ count: Int) {
        unsafe self.base = base
        self.count = count
    }
    public var bytes: UnsafeMutableRawBufferPointer {
        unsafe UnsafeMutableRawBufferPointer(start: base, count: count)
    }
}

/// A medium. All calls and all `done` closures are on the reactor's thread;
/// `done` gets 0 or an errno(3) and is never called before the function returned.
public protocol BlockStore: AnyObject {
    /// Bytes.
    var size: UInt64 { get }
    var isReadOnly: Bool { get }
    /// Reads at once if the host has the data in memory; otherwise answers false.
    func readNow(at offset: UInt64, into ranges: [HostRange]) -> Bool
    /// Reads; what lies behind the medium's end comes as zeroes.
    func read(at offset: UInt64, into ranges: [HostRange], done: @escaping (Int32) -> Void)
    func write(at offset: UInt64, from ranges: [HostRange], done: @escaping (Int32) -> Void)
    /// Makes what was written durable.
    func flush(done: @escaping (Int32) -> Void)
    /// Hands to the host in one go what `body` asks for.
    func batch(_ body: () -> Void)
    /// Calls `done` of what the host has finished meanwhile, without a system call; whether waiting for more pays.
    func collect() -> Bool
    /// Waits until nothing is under way, and calls what `done` is left.
    func drain()
    /// Whether `discard` may do something.
    var canDiscard: Bool { get }
    /// Gives up what a range holds; EOPNOTSUPP where the host cannot.
    func discard(at offset: UInt64, bytes: UInt64, done: @escaping (Int32) -> Void)
    /// Makes the medium this owner's, who has not used it before: others of the same domain may have.
    func take() throws(ImageFailure)
    /// Lets another owner take the medium. Nothing is under way, and this owner asks for nothing any more.
    func release()
    /// What direct transfers must be multiples of, in bytes; nil if there are none.
    var directAlignment: Int? { get }
    /// Bytes that the medium has now: someone may have resized it since it was opened.
    func measure() -> UInt64
}

extension BlockStore {
    public func batch(_ body: () -> Void) { body() }
    public func collect() -> Bool { false }
    public var canDiscard: Bool { false }
    public func discard(at offset: UInt64, bytes: UInt64, done: @escaping (Int32) -> Void) { flush { _ in done(95) } }
    public func take() throws(ImageFailure) {}
    public func release() {}
    public var directAlignment: Int? { nil }
    public func measure() -> UInt64 { size }
}

/// Page-aligned memory for transfers that cannot go to guest RAM directly.
@safe public final class TransferBuffer {
    public let range: HostRange
    public init(bytes: Int) {
        range = unsafe HostRange(.allocate(byteCount: bytes, alignment: 4096), bytes)
        unsafe range.bytes.initializeMemory(as: UInt8.self, repeating: 0)
    }
    deinit { unsafe range.base.deallocate() }

    /// The part of `bytes` from `offset` on.
    public func part(_ offset: Int, _ bytes: Int) -> HostRange {
        precondition(offset >= 0 && bytes >= 0 && bytes <= range.count - offset, "outside the transfer buffer")
        return unsafe HostRange(range.base + offset, bytes)
    }
}
