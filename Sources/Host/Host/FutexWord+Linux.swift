internal import Glibc
internal import Synchronization

/// A counter that threads of this process change atomically and can sleep on.
public final class FutexWord: Sendable {
    private let word: Futex
    private let atomic: Unchecked

    /// The same word as an atomic.
    private struct Unchecked: @unchecked Sendable {
        // Invariant: it lives as long as its `FutexWord`, which frees it.
        let pointer: UnsafeMutablePointer<Atomic<UInt32>>
    }

    public init(_ value: UInt32 = 0) {
        let pointer = UnsafeMutablePointer<Atomic<UInt32>>.allocate(capacity: 1)
        pointer.initialize(to: Atomic(value))
        atomic = Unchecked(pointer: pointer)
        word = Futex(UnsafeMutableRawPointer(pointer).assumingMemoryBound(to: UInt32.self))
    }

    deinit {
        atomic.pointer.deinitialize(count: 1)
        atomic.pointer.deallocate()
    }

    public var value: UInt32 { atomic.pointer.pointee.load(ordering: .sequentiallyConsistent) }

    /// Adds `count` and wakes nobody; the new value.
    @discardableResult public func add(_ count: UInt32) -> UInt32 {
        atomic.pointer.pointee.wrappingAdd(count, ordering: .sequentiallyConsistent).newValue
    }
    /// Takes `count` away and wakes nobody; the new value.
    @discardableResult public func subtract(_ count: UInt32) -> UInt32 {
        atomic.pointer.pointee.wrappingSubtract(count, ordering: .sequentiallyConsistent).newValue
    }

    /// Sleeps while the word holds `expected`, at most `nanoseconds`. May wake early.
    public func wait(while expected: UInt32, nanoseconds: UInt64? = nil) {
        word.wait(while: expected, nanoseconds: nanoseconds)
    }
    public func wake() { word.wake() }
}
