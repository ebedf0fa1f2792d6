/// What is wrong with a kernel or with its fit into a domain.
public enum KernelError: Error, Equatable, CustomStringConvertible, Sendable {
    case notAKernel
    case truncated(String)
    case wrongMachine(UInt16)
    case unknownCompression
    case damaged(String)
    case noXenNotes
    case missingNote(String)
    case unsupportedFeature(String)
    case tooLarge(needed: UInt64, available: UInt64)

    public var description: String {
        switch self {
        case .notAKernel: "neither a bzImage nor an ELF file"
        case .truncated(let part): "the file ends within its \(part)"
        case .wrongMachine(let number): "built for ELF machine \(number), not for x86"
        case .unknownCompression: "compressed in a way that is not known (gzip, xz, lzma, zstd and lz4 are)"
        case .damaged(let format): "its \(format) data is damaged"
        case .noXenNotes: "no Xen ELF notes: this kernel cannot run as a PV or PVH domain"
        case .missingNote(let name): "the Xen ELF note \(name) is missing"
        case .unsupportedFeature(let name): "it requires the feature \(name), which is not offered"
        case .tooLarge(let needed, let available):
            "kernel, ramdisk and tables need \(needed >> 20) MiB, the domain has \(available >> 20) MiB"
        }
    }
}

/// Little-endian fields of an untrusted file; reading outside of it is an error, never a trap.
struct Fields {
    let bytes: ArraySlice<UInt8>
    let part: String

    init(_ bytes: ArraySlice<UInt8>, part: String) { (self.bytes, self.part) = (bytes, part) }

    func number<T: FixedWidthInteger & UnsignedInteger>(_ offset: Int, as: T.Type) throws(KernelError) -> T {
        let size = MemoryLayout<T>.size
        guard offset >= 0, offset <= bytes.count - size else { throw .truncated(part) }
        let start = bytes.startIndex + offset
        return (0..<size).reduce(0) { $0 | T(bytes[start + $1]) << T($1 * 8) }
    }

    func slice(_ offset: UInt64, _ count: UInt64) throws(KernelError) -> ArraySlice<UInt8> {
        guard offset <= UInt64(bytes.count), count <= UInt64(bytes.count) - offset else { throw .truncated(part) }
        let start = bytes.startIndex + Int(offset)
        return bytes[start..<(start + Int(count))]
    }
}
