// Video memory and frame buffers: the raw bytes that the guest, the VGA and the VNC server share.
// Source: ours.
// Modelled: checked bytes and 32-bit words; a read outside is zero, a write outside is lost.
// Quirks: the guest writes the same bytes at any time; every caller copies what it looks at once.

internal import Glibc

/// Video memory: a window of bytes that never lets anyone out.
@safe struct VideoMemory {
    // Invariant: `bytes` stays mapped as long as the VGA that holds it lives (init's caller sees to it).
    private let bytes: UnsafeMutableRawBufferPointer
    let count: Int

    @unsafe init(_ bytes: UnsafeMutableRawBufferPointer) {
        unsafe self.bytes = bytes
        count = bytes.count
    }

    /// Whether `size` bytes from `offset` lie inside.
    @inline(__always) func holds(_ offset: Int, _ size: Int) -> Bool {
        offset >= 0 && size >= 0 && size <= count && offset <= count &- size
    }

    @inline(__always) func byte(_ offset: Int) -> UInt8 {
        holds(offset, 1) ? unsafe bytes.load(fromByteOffset: offset, as: UInt8.self) : 0
    }

    /// The 32-bit word number `index`: one byte of each of the four planes.
    @inline(__always) func planes(_ index: Int) -> UInt32 {
        guard index >= 0, index < count / 4 else { return 0 }
        return unsafe bytes.loadUnaligned(fromByteOffset: index &* 4, as: UInt32.self)
    }

    @inline(__always) func setPlanes(_ index: Int, _ value: UInt32) {
        guard index >= 0, index < count / 4 else { return }
        unsafe bytes.storeBytes(of: value, toByteOffset: index &* 4, as: UInt32.self)
    }

    /// `width` bytes from `offset`, low byte first; what lies outside is ones.
    func read(_ offset: Int, bytes width: Int) -> UInt64 {
        var value: UInt64 = 0
        for index in 0..<width {
            let byte = holds(offset &+ index, 1) ? self.byte(offset &+ index) : 0xFF
            value |= UInt64(byte) << UInt64(index &* 8)
        }
        return value
    }

    func write(_ value: UInt64, _ offset: Int, bytes width: Int) {
        for index in 0..<width where holds(offset &+ index, 1) {
            let byte = UInt8(truncatingIfNeeded: value >> UInt64(index &* 8))
            unsafe bytes.storeBytes(of: byte, toByteOffset: offset &+ index, as: UInt8.self)
        }
    }

    func clear(_ offset: Int, bytes size: Int) {
        guard offset >= 0, offset < count, size > 0, let base = unsafe bytes.baseAddress else { return }
        unsafe memset(base + offset, 0, min(size, count &- offset))
    }

    /// Whether `size` bytes at `offset` are those at `at` in `copy`; brings `copy` up to date.
    @inline(__always) func update(_ copy: HostBytes, at: Int, from offset: Int, bytes size: Int) -> Bool {
        guard holds(offset, size), at >= 0, at &+ size <= copy.count, let base = unsafe bytes.baseAddress else {
            return false
        }
        return unsafe copy.take(base + offset, at: at, bytes: size)
    }
}

/// Bytes of our own with a fixed address, for copies of video memory and for frame buffers.
@safe final class HostBytes {
    // Invariant: `base` is owned by this object and has `count` bytes.
    let base: UnsafeMutableRawPointer
    let count: Int

    init(_ count: Int) {
        self.count = max(count, 1)
        unsafe base = UnsafeMutableRawPointer.allocate(byteCount: self.count, alignment: 64)
        unsafe memset(base, 0, self.count)
    }

    deinit { unsafe base.deallocate() }

    /// Copies `size` bytes from `source` if they differ; answers whether they did.
    @unsafe @inline(__always) func take(_ source: UnsafeRawPointer, at offset: Int, bytes size: Int) -> Bool {
        guard unsafe memcmp(base + offset, source, size) != 0 else { return false }
        unsafe memcpy(base + offset, source, size)
        return true
    }

    @inline(__always) func byte(_ offset: Int) -> UInt8 {
        offset >= 0 && offset < count ? unsafe base.load(fromByteOffset: offset, as: UInt8.self) : 0
    }

    @inline(__always) func word(_ offset: Int) -> UInt16 {
        guard offset >= 0, offset &+ 2 <= count else { return 0 }
        return unsafe base.loadUnaligned(fromByteOffset: offset, as: UInt16.self)
    }

    @inline(__always) func long(_ offset: Int) -> UInt32 {
        guard offset >= 0, offset &+ 4 <= count else { return 0 }
        return unsafe base.loadUnaligned(fromByteOffset: offset, as: UInt32.self)
    }

    @inline(__always) func setLong(_ offset: Int, _ value: UInt32) {
        guard offset >= 0, offset &+ 4 <= count else { return }
        unsafe base.storeBytes(of: value, toByteOffset: offset, as: UInt32.self)
    }
}
