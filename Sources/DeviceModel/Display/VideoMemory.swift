// Video memory: the raw bytes that the guest and the VGA share.
// Source: ours.
// Modelled: checked bytes and 32-bit words; a read outside is zero, a write outside is lost.
// Quirks: the guest writes the same bytes at any time; every caller copies what it looks at once.

internal import Glibc
internal import VNC

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
