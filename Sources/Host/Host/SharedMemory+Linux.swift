internal import CHost
internal import Glibc

/// A memory file and its mapping here; other processes map the same descriptor.
public final class SharedMemory: @unchecked Sendable {
    // Invariant: `bytes` is valid for the object's life; what lies in it is shared and
    // is accessed through atomics or by the one owner each field names.
    public let descriptor: Descriptor
    public let bytes: UnsafeMutableRawBufferPointer

    /// Makes a new memory file of `size` bytes, zero-filled.
    public convenience init(named name: String, size: Int) throws(HostFailure) {
        let result = chost_memfd(name, UInt64(size))
        guard result >= 0 else { throw HostFailure("allocate", "\(size) bytes for \(name)", result: Int(result)) }
        try self.init(mapping: Descriptor(owning: result), size: size, name: name)
    }

    /// Maps a memory file that another process made.
    public init(mapping descriptor: Descriptor, size: Int, name: String) throws(HostFailure) {
        let flags = MAP_SHARED | MAP_NORESERVE
        guard let base = mmap(nil, size, PROT_READ | PROT_WRITE, flags, descriptor.number, 0), base != MAP_FAILED else {
            throw HostFailure("map", name, code: errno)
        }
        self.descriptor = descriptor
        self.bytes = UnsafeMutableRawBufferPointer(start: base, count: size)
    }

    deinit { munmap(bytes.baseAddress, bytes.count) }
}
