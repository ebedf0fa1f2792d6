internal import CHost
internal import Glibc

/// A 32-bit word in memory that threads and processes can sleep on (futex(2)).
public struct Futex: @unchecked Sendable {
    // Invariant: the word outlives every copy; the mapping's owner keeps it.
    public let word: UnsafeMutablePointer<UInt32>
    public init(_ word: UnsafeMutablePointer<UInt32>) { self.word = word }

    /// Sleeps while the word holds `expected`, at most `nanoseconds`. May wake early.
    public func wait(while expected: UInt32, nanoseconds: UInt64? = nil) {
        _ = chost_futex_wait(word, expected, nanoseconds ?? .max)
    }

    public func wake(_ count: Int32 = .max) { _ = chost_futex_wake(word, count) }
}

/// CLOCK_MONOTONIC in nanoseconds.
public func monotonicNanoseconds() -> UInt64 {
    var time = timespec()
    clock_gettime(CLOCK_MONOTONIC, &time)
    return UInt64(time.tv_sec) &* 1_000_000_000 &+ UInt64(time.tv_nsec)
}
