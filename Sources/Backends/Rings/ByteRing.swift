// One direction of a byte stream in a shared page: the console's and xenstore's rings.
// Source: Xen's public/io/console.h, public/io/xs_wire.h (xencons_interface, xenstore_domain_interface).
// Modelled: reading and writing with wrapping indices. Not modelled: –
// Quirks: nothing is kept on this side, so a back end that starts anew goes on where the last one was.
internal import Glibc
internal import Synchronization

/// Bytes between a producer's and a consumer's index. The page must outlive it.
@safe public struct ByteRing {
    // Invariant: whoever makes it keeps the page mapped (a `GrantedPage` or the domain's memory).
    private let data: UnsafeMutableRawPointer
    private let size: UInt32
    private let consumer: UnsafeMutablePointer<Atomic<UInt32>>
    private let producer: UnsafeMutablePointer<Atomic<UInt32>>

    /// Offsets within a page of 4096 bytes; `size` is a power of two.
    public init(page: UnsafeMutableRawPointer, data: Int, size: Int, consumer: Int, producer: Int) {
        precondition(size > 0 && size & (size - 1) == 0 && data >= 0 && data + size <= 4096, "a ring lies in its page")
        precondition([consumer, producer].allSatisfy { $0 >= 0 && $0 <= 4092 && $0 % 4 == 0 }, "so do its indices")
        unsafe self.data = unsafe page + data
        self.size = UInt32(size)
        unsafe self.consumer = unsafe (page + consumer).assumingMemoryBound(to: Atomic<UInt32>.self)
        unsafe self.producer = unsafe (page + producer).assumingMemoryBound(to: Atomic<UInt32>.self)
    }

    /// Takes at most `limit` bytes that the other side wrote.
    public func read(limit: Int) throws(RingFault) -> [UInt8] {
        let start = unsafe consumer.pointee.load(ordering: .relaxed)
        let waiting = unsafe producer.pointee.load(ordering: .acquiring) &- start
        guard waiting <= size else { throw .tooManyRequests }
        let count = min(waiting, UInt32(clamping: limit))
        var bytes = [UInt8](repeating: 0, count: Int(count))
        unsafe bytes.withUnsafeMutableBytes { copy in
            guard let target = copy.baseAddress else { return }
            let (place, part) = split(start, Int(count))
            unsafe memcpy(target, data + place, part)
            unsafe memcpy(target + part, data, Int(count) - part)
        }
        unsafe consumer.pointee.store(start &+ count, ordering: .sequentiallyConsistent)
        return bytes
    }

    /// Writes what there is room for; how many bytes that were.
    public func write(_ bytes: [UInt8]) throws(RingFault) -> Int {
        let start = unsafe producer.pointee.load(ordering: .relaxed)
        let waiting = unsafe start &- consumer.pointee.load(ordering: .sequentiallyConsistent)
        guard waiting <= size else { throw .tooManyRequests }
        let count = min(bytes.count, Int(size - waiting))
        unsafe bytes.withUnsafeBytes { copy in
            guard let source = copy.baseAddress else { return }
            let (place, part) = split(start, count)
            unsafe memcpy(data + place, source, part)
            unsafe memcpy(data, source + part, count - part)
        }
        unsafe producer.pointee.store(start &+ UInt32(count), ordering: .sequentiallyConsistent)
        return count
    }

    /// Where the byte of an index lies, and how many of `count` bytes come before the ring's end.
    private func split(_ index: UInt32, _ count: Int) -> (Int, Int) {
        let place = Int(index & (size - 1))
        return (place, min(count, Int(size) - place))
    }
}
