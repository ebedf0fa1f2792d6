// Why an image cannot be a drive's medium, as one sentence for the user.
// Source: open(2), flock(2), ECMA-119 §8.4 (volume space size).
// Modelled: every reason `DiskImage.init` has. Not modelled: –
// Quirk: none.
internal import Glibc

/// An image that cannot be used.
public struct ImageFailure: Error, CustomStringConvertible, Equatable, Sendable {
    public enum Reason: Equatable, Sendable {
        case missing
        case notAnImage
        /// errno(3) of open(2) or of the first read.
        case unreadable(Int32)
        case unwritable(Int32)
        case empty
        case truncated(holds: UInt64, needs: UInt64)
        case notAFloppy(size: UInt64)
        case inUse
        case unsupported(format: String)
        /// The format's own trouble: a feature we do not have, tables that make no sense, no orderly end.
        case lacking(String)
        case damaged(String)
        case unclean
        /// The host lacks a resource (threads, descriptors, asynchronous I/O contexts).
        case host(Int32)
    }
    public var path: String
    public var reason: Reason
    public init(_ path: String, _ reason: Reason) { (self.path, self.reason) = (path, reason) }

    public var description: String {
        func text(_ code: Int32) -> String { unsafe String(cString: strerror(code)) }
        switch reason {
        case .missing: return "disk image \(path) does not exist"
        case .notAnImage: return "\(path) is neither a file nor a block device"
        case .unreadable(let code): return "cannot read disk image \(path): \(text(code))"
        case .unwritable(let code): return "cannot write to disk image \(path): \(text(code))"
        case .empty: return "disk image \(path) is empty"
        case .truncated(let holds, let needs):
            return "disk image \(path) is truncated: it holds \(holds) bytes of a volume of \(needs)"
        case .notAFloppy(let size): return "\(path) is no floppy image: no floppy disk holds \(size) bytes"
        case .inUse: return "disk image \(path) is in use by another domain or program"
        case .unsupported(let format):
            return "disk image \(path) is in \(format) format, which is not what the config says or not supported"
        case .lacking(let what): return "disk image \(path) has \(what), which is not supported"
        case .damaged(let what): return "disk image \(path) is damaged: \(what); `qemu-img check` tells more"
        case .unclean:
            return "disk image \(path) was not closed properly: `qemu-img check -r all \(path)` repairs it"
        case .host(let code): return "cannot set up I/O for disk image \(path): \(text(code))"
        }
    }
}
