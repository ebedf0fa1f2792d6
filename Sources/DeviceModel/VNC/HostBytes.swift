// Bytes of our own: copies of video memory, and the frame buffers that the VNC server reads.
// Source: ours.
// Modelled: checked bytes and words; a read outside is zero, a write outside is lost.
// Quirks: the accesses are inlined into other modules: a screen is redrawn by them pixel for pixel.

public import Glibc

/// Bytes of our own with a fixed address, for copies of video memory and for frame buffers.
@safe public final class HostBytes {
    // Invariant: `base` is owned by this object and has `count` bytes.
    public let base: UnsafeMutableRawPointer
    public let count: Int

    public init(_ count: Int) {
        self.count = max(count, 1)
        unsafe base = UnsafeMutableRawPointer.allocate(byteCount: self.count, alignment: 64)
        unsafe memset(base, 0, self.count)
    }

    deinit { unsafe base.deallocate() }

    /// Copies `size` bytes from `source` if they differ; answers whether they did.
    @unsafe @inlinable public func take(_ source: UnsafeRawPointer, at offset: Int, bytes size: Int) -> Bool {
        guard unsafe memcmp(base + offset, source, size) != 0 else { return false }
        unsafe memcpy(base + offset, source, size)
        return true
    }

    @inlinable public func byte(_ offset: Int) -> UInt8 {
        offset >= 0 && offset < count ? unsafe base.load(fromByteOffset: offset, as: UInt8.self) : 0
    }

    @inlinable public func word(_ offset: Int) -> UInt16 {
        guard offset >= 0, offset &+ 2 <= count else { return 0 }
        return unsafe base.loadUnaligned(fromByteOffset: offset, as: UInt16.self)
    }

    @inlinable public func long(_ offset: Int) -> UInt32 {
        guard offset >= 0, offset &+ 4 <= count else { return 0 }
        return unsafe base.loadUnaligned(fromByteOffset: offset, as: UInt32.self)
    }

    @inlinable public func setLong(_ offset: Int, _ value: UInt32) {
        guard offset >= 0, offset &+ 4 <= count else { return }
        unsafe base.storeBytes(of: value, toByteOffset: offset, as: UInt32.self)
    }
}
