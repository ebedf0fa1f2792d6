// The back end's half of a shared ring of requests and responses.
// Source: Xen's public/io/ring.h (layout of the shared page, notification tests, RING_REQUEST_PROD_OVERFLOW).
// Modelled: rings of one or more pages, attaching to a ring in use, notification avoidance.
// Quirks: its pages need not lie side by side; an entry that crosses a page is copied in two parts. Every request
// is copied out once: what the guest does to the ring afterwards is not seen.
internal import Glibc
internal import Synchronization

/// Why a ring cannot be served any more.
public enum RingFault: Error, Hashable, Sendable {
    /// The guest claims more requests than the ring has room for.
    case tooManyRequests
    /// The pages hold no entry.
    case tooSmall
}

/// The guest produces requests, this side consumes them and produces responses into the same slots.
@safe public struct BackRing: ~Copyable {
    /// Indices and padding before the first entry.
    public static let headerBytes = 64
    private enum Word { static let requests = 0, requestEvent = 1, responses = 2, responseEvent = 3 }

    private let pages: [GrantedPage]
    private let header: UnsafeMutablePointer<Atomic<UInt32>>
    public let slotBytes: Int
    /// A power of two.
    public let slots: UInt32
    /// Requests taken (req_cons).
    private var taken: UInt32
    /// Responses written (rsp_prod_pvt), and those of them that the guest was shown.
    private var written: UInt32
    private var shown: UInt32

    /// Attaches to a ring where its responses end: requests that nobody answered are served again.
    public init(pages: [GrantedPage], slotBytes: Int) throws(RingFault) {
        let room = pages.count * DomainMemory.pageSize - Self.headerBytes
        guard let first = pages.first, slotBytes > 0, room >= slotBytes else { throw .tooSmall }
        let fitting = UInt32(truncatingIfNeeded: room / slotBytes)
        let count = UInt32(1) << (31 - UInt32(fitting.leadingZeroBitCount))
        let words = unsafe first.base.assumingMemoryBound(to: Atomic<UInt32>.self)
        let start = unsafe words[Word.responses].load(ordering: .acquiring)
        guard unsafe words[Word.requests].load(ordering: .acquiring) &- start <= count else { throw .tooManyRequests }
        unsafe header = words
        (self.pages, self.slotBytes, slots) = (pages, slotBytes, count)
        (taken, written, shown) = (start, start, start)
    }

    /// Requests taken and not answered.
    public var unanswered: UInt32 { taken &- written }

    /// Whether `take` would give a request, or a fault.
    public var hasRequests: Bool {
        unsafe header[Word.requests].load(ordering: .acquiring) != taken && unanswered < slots
    }

    /// Requests that `take` would give; more than there is room for is found by it.
    public var available: UInt32 {
        unsafe min(header[Word.requests].load(ordering: .acquiring) &- taken, slots)
    }

    /// Copies the next request into `bytes`, which must have `slotBytes` of them; false if there is none.
    public mutating func take(into bytes: inout [UInt8]) throws(RingFault) -> Bool {
        let end = unsafe header[Word.requests].load(ordering: .acquiring)
        // Also not fewer than were taken already.
        guard end &- taken <= slots &- unanswered else { throw .tooManyRequests }
        guard end != taken else { return false }
        precondition(bytes.count == slotBytes, "a request's copy has the size of a slot")
        let start = offset(of: taken)
        unsafe bytes.withUnsafeMutableBytes { copy in
            var done = 0
            while done < copy.count, let target = copy.baseAddress {
                let (source, part) = unsafe place(start + done, copy.count - done)
                unsafe memcpy(target + done, source, part)
                done += part
            }
        }
        taken &+= 1
        return true
    }

    /// Asks for an event with the next request; true if one has come meanwhile, so that none would be sent.
    public mutating func armForRequests() -> Bool {
        unsafe header[Word.requestEvent].store(taken &+ 1, ordering: .sequentiallyConsistent)
        return unsafe header[Word.requests].load(ordering: .sequentiallyConsistent) != taken && unanswered < slots
    }

    /// Asks for an event once `count` requests wait; true if so many wait already.
    public mutating func arm(for count: UInt32) -> Bool {
        unsafe header[Word.requestEvent].store(taken &+ max(count, 1), ordering: .sequentiallyConsistent)
        return unsafe header[Word.requests].load(ordering: .sequentiallyConsistent) &- taken >= max(count, 1)
    }

    /// Writes a response for one of the requests taken; the guest does not see it yet.
    public mutating func put(_ bytes: [UInt8]) {
        precondition(bytes.count <= slotBytes && unanswered > 0, "a response answers a request")
        let start = offset(of: written)
        unsafe bytes.withUnsafeBytes { copy in
            var done = 0
            while done < copy.count, let source = copy.baseAddress {
                let (target, part) = unsafe place(start + done, copy.count - done)
                unsafe memcpy(target, source + done, part)
                done += part
            }
        }
        written &+= 1
    }

    /// Shows the guest what was put; true if it wants an event for it.
    public mutating func push() -> Bool {
        guard written != shown else { return false }
        unsafe header[Word.responses].store(written, ordering: .sequentiallyConsistent)
        let event = unsafe header[Word.responseEvent].load(ordering: .sequentiallyConsistent)
        defer { shown = written }
        return written &- event < written &- shown
    }

    /// Gives its pages back to the guest. Nothing else may be asked of it afterwards.
    public func release() {
        for page in pages { page.release() }
    }

    private func offset(of index: UInt32) -> Int {
        Self.headerBytes + Int(index & (slots - 1)) * slotBytes
    }

    /// Where byte `offset` of the ring lies, and how many of `count` bytes follow it in the same page.
    private func place(_ offset: Int, _ count: Int) -> (UnsafeMutableRawPointer, Int) {
        let within = offset % DomainMemory.pageSize
        let page = pages[offset / DomainMemory.pageSize]
        return unsafe (page.base + within, min(count, DomainMemory.pageSize - within))
    }
}
