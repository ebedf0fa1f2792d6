// One direction of fixed-size events in a shared page: the frame buffer's and the keyboard's rings.
// Source: Xen's public/io/fbif.h and kbdif.h (events of 40 bytes, indices that run on, places by remainder).
// Modelled: taking and putting. Not modelled: –
// Quirks: a ring holds no power of two of events, so where indices wrap around 2^32 both sides jump alike.
internal import Glibc
internal import Synchronization

/// The page must outlive it.
@safe public struct EventRing {
    // Invariant: whoever makes it keeps the page mapped (a `GrantedPage` or the domain's memory).
    public static let eventBytes = 40
    private let data: UnsafeMutableRawPointer
    private let count: UInt32
    private let consumer: UnsafeMutablePointer<Atomic<UInt32>>
    private let producer: UnsafeMutablePointer<Atomic<UInt32>>

    /// Offsets within a page of 4096 bytes; `size` bytes of events.
    public init(page: UnsafeMutableRawPointer, data: Int, size: Int, consumer: Int, producer: Int) {
        precondition(data >= 0 && size >= Self.eventBytes && data + size <= 4096, "a ring lies in its page")
        precondition([consumer, producer].allSatisfy { $0 >= 0 && $0 <= 4092 && $0 % 4 == 0 }, "so do its indices")
        unsafe self.data = unsafe page + data
        count = UInt32(size / Self.eventBytes)
        unsafe self.consumer = unsafe (page + consumer).assumingMemoryBound(to: Atomic<UInt32>.self)
        unsafe self.producer = unsafe (page + producer).assumingMemoryBound(to: Atomic<UInt32>.self)
    }

    /// The next event of the other side, copied once; nil if there is none.
    public func take() throws(RingFault) -> [UInt8]? {
        let index = unsafe consumer.pointee.load(ordering: .relaxed)
        let waiting = unsafe producer.pointee.load(ordering: .acquiring) &- index
        guard waiting <= count else { throw .tooManyRequests }
        guard waiting > 0 else { return nil }
        let place = unsafe data + Int(index % count) * Self.eventBytes
        let event = unsafe [UInt8](UnsafeRawBufferPointer(start: place, count: Self.eventBytes))
        unsafe consumer.pointee.store(index &+ 1, ordering: .sequentiallyConsistent)
        return event
    }

    /// Puts an event, padded with zeroes; false if the other side has left no room.
    public func put(_ event: [UInt8]) throws(RingFault) -> Bool {
        let index = unsafe producer.pointee.load(ordering: .relaxed)
        let waiting = unsafe index &- consumer.pointee.load(ordering: .sequentiallyConsistent)
        guard waiting <= count else { throw .tooManyRequests }
        guard waiting < count else { return false }
        let padded = event.prefix(Self.eventBytes) + [UInt8](repeating: 0, count: max(0, Self.eventBytes - event.count))
        unsafe padded.withUnsafeBytes { bytes in
            guard let base = bytes.baseAddress else { return }
            unsafe memcpy(data + Int(index % count) * Self.eventBytes, base, Self.eventBytes)
        }
        unsafe producer.pointee.store(index &+ 1, ordering: .sequentiallyConsistent)
        return true
    }
}
