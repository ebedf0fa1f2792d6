// A piece of memory that guest and hypervisor both use: bounds-checked loads, stores and atomics.
// Source: our own; the layouts that lie in it are those of Xen's public headers.
// Quirks: the guest may change any byte at any time, so whoever checks a value checks a copy of it.

internal import Synchronization

@safe struct GuestArea: @unchecked Sendable {
    // Invariant: the memory stays mapped for the domain's life; each word is the guest's as much as ours.
    let base: UnsafeMutableRawPointer
    let bytes: Int

    init(_ base: UnsafeMutableRawPointer, bytes: Int) {
        unsafe self.base = unsafe base
        self.bytes = bytes
    }

    private func holds(_ offset: Int, _ count: Int) -> Bool { offset >= 0 && count >= 0 && offset <= bytes - count }

    /// The value at a byte offset; 0 outside.
    func load<T: FixedWidthInteger & BitwiseCopyable>(_ offset: Int, as type: T.Type = T.self) -> T {
        guard holds(offset, MemoryLayout<T>.size) else { return 0 }
        return unsafe base.loadUnaligned(fromByteOffset: offset, as: T.self)
    }

    func store<T: FixedWidthInteger & BitwiseCopyable>(_ value: T, at offset: Int) {
        guard holds(offset, MemoryLayout<T>.size) else { return }
        unsafe base.storeBytes(of: value, toByteOffset: offset, as: T.self)
    }

    func read(_ offset: Int, _ count: Int) -> [UInt8] {
        guard holds(offset, count) else { return [] }
        return unsafe Array(UnsafeRawBufferPointer(start: base + offset, count: count))
    }

    func write(_ source: some Collection<UInt8>, at offset: Int) {
        guard holds(offset, source.count) else { return }
        unsafe UnsafeMutableRawBufferPointer(start: base + offset, count: source.count).copyBytes(from: source)
    }

    /// A part of it.
    func part(_ offset: Int, _ count: Int) -> GuestArea? {
        guard holds(offset, count) else { return nil }
        return unsafe GuestArea(base + offset, bytes: count)
    }

    // MARK: atomics

    private func byte(_ offset: Int) -> UnsafeMutablePointer<Atomic<UInt8>> {
        unsafe (base + offset).assumingMemoryBound(to: Atomic<UInt8>.self)
    }

    /// Sets bit `index`, counted from the area's start; whether it was set.
    func setBit(_ index: Int) -> Bool {
        guard holds(index >> 3, 1) else { return true }
        let bit = UInt8(1) << UInt8(index & 7)
        return unsafe byte(index >> 3).pointee.bitwiseOr(bit, ordering: .sequentiallyConsistent).oldValue & bit != 0
    }

    /// Clears bit `index`; whether it was set.
    @discardableResult func clearBit(_ index: Int) -> Bool {
        guard holds(index >> 3, 1) else { return false }
        let bit = UInt8(1) << UInt8(index & 7)
        return unsafe byte(index >> 3).pointee.bitwiseAnd(~bit, ordering: .sequentiallyConsistent).oldValue & bit != 0
    }

    func hasBit(_ index: Int) -> Bool {
        guard holds(index >> 3, 1) else { return false }
        let value = unsafe byte(index >> 3).pointee.load(ordering: .sequentiallyConsistent)
        return value & UInt8(1) << UInt8(index & 7) != 0
    }

    /// Replaces a byte; its old value.
    func exchange(_ value: UInt8, at offset: Int) -> UInt8 {
        guard holds(offset, 1) else { return 0 }
        return unsafe byte(offset).pointee.exchange(value, ordering: .sequentiallyConsistent)
    }

    /// Replaces a 16-bit word if it holds `expected`; whether it did.
    func compareExchange(_ expected: UInt16, _ value: UInt16, at offset: Int) -> Bool {
        guard holds(offset, 2), offset & 1 == 0 else { return false }
        let word = unsafe (base + offset).assumingMemoryBound(to: Atomic<UInt16>.self)
        return unsafe word.pointee.compareExchange(
            expected: expected, desired: value, ordering: .sequentiallyConsistent
        ).exchanged
    }

    /// Replaces an aligned 32-bit word if it holds `expected`; whether it did.
    func compareExchange(_ expected: UInt32, _ value: UInt32, at offset: Int) -> Bool {
        guard holds(offset, 4), offset & 3 == 0 else { return false }
        let word = unsafe (base + offset).assumingMemoryBound(to: Atomic<UInt32>.self)
        return unsafe word.pointee.compareExchange(
            expected: expected, desired: value, ordering: .sequentiallyConsistent
        ).exchanged
    }

    /// Replaces an aligned 64-bit word by what `change` makes of it.
    func replace64(at offset: Int, _ change: (UInt64) -> UInt64) {
        guard holds(offset, 8), offset & 7 == 0 else { return }
        let word = unsafe (base + offset).assumingMemoryBound(to: Atomic<UInt64>.self)
        var old = unsafe word.pointee.load(ordering: .relaxed)
        while true {
            let (isDone, seen) = unsafe word.pointee.compareExchange(
                expected: old, desired: change(old), ordering: .sequentiallyConsistent)
            if isDone { return }
            old = seen
        }
    }

    /// A 32-bit word as the other side last released it.
    func acquire(_ offset: Int) -> UInt32 {
        guard holds(offset, 4), offset & 3 == 0 else { return 0 }
        return unsafe (base + offset).assumingMemoryBound(to: Atomic<UInt32>.self).pointee.load(
            ordering: .sequentiallyConsistent)
    }

    func release(_ value: UInt32, at offset: Int) {
        guard holds(offset, 4), offset & 3 == 0 else { return }
        unsafe (base + offset).assumingMemoryBound(to: Atomic<UInt32>.self).pointee.store(
            value, ordering: .sequentiallyConsistent)
    }
}

/// A structure at a guest's virtual address, found once: its pieces in guest-physical memory.
struct GuestSpan: Sendable {
    let pieces: [GuestArea]

    func write(_ bytes: [UInt8]) {
        var rest = bytes[...]
        for piece in pieces {
            piece.write(rest.prefix(piece.bytes), at: 0)
            rest = rest.dropFirst(piece.bytes)
        }
    }
}
