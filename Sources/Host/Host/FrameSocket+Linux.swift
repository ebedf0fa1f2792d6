// A descriptor over which Ethernet frames go: a tap, or one of two connected sockets that behave like one.
// Source: Linux's Documentation/networking/tuntap.rst (IFF_VNET_HDR), unix(7) SOCK_SEQPACKET.
// Modelled: one frame a call, each behind a header of ten bytes (struct virtio_net_hdr).
// Quirks: a socket that is full says so; a tap drops instead.
internal import CHost
internal import Glibc

/// Never blocks.
public final class FrameSocket {
    public enum Outcome: Equatable, Sendable {
        case done
        /// Try again once the descriptor is writable.
        case full
        /// Refused, too long, or nobody there: the frame is lost.
        case lost
    }
    public static let headerBytes = 10
    /// IP's largest packet behind an Ethernet header with two VLAN tags.
    public static let longestFrame = 65_535 + 22
    public let descriptor: Descriptor
    private let buffer: UnsafeMutableRawBufferPointer

    public init(_ descriptor: Descriptor) {
        self.descriptor = descriptor
        buffer = .allocate(byteCount: Self.longestFrame, alignment: 16)
        _ = chost_fcntl(descriptor.number, F_SETFL, Int(O_RDWR | O_NONBLOCK))
    }

    deinit { buffer.deallocate() }

    /// Two connected ends.
    public static func pair() throws(HostFailure) -> (Descriptor, Descriptor) {
        var ends: [Int32] = [-1, -1]
        let result = chost_frame_sockets(&ends)
        guard result == 0 else { throw HostFailure("make", "a pair of frame sockets", result: Int(result)) }
        return (Descriptor(owning: ends[0]), Descriptor(owning: ends[1]))
    }

    /// A new tap on a bridge (none: ""), which goes with its descriptor.
    public static func tap(_ name: String, bridge: String, mtu: Int) throws(HostFailure) -> Descriptor {
        let result = chost_tap(name, bridge, Int32(clamping: mtu))
        guard result >= 0 else { throw HostFailure("set up the tap", name, result: Int(result)) }
        return Descriptor(owning: result)
    }

    /// Whether the host has a bridge of that name.
    public static func isBridge(_ name: String) -> Bool { chost_is_bridge(name) != 0 }

    /// Sends `start` and, behind it, `pieces` as one frame.
    public func send(
        _ header: [UInt8], _ start: [UInt8], _ pieces: [UnsafeRawBufferPointer]
    ) -> Outcome {
        precondition(header.count == Self.headerBytes, "a frame's header has ten bytes")
        let vectors = pieces.map {
            iovec(iov_base: UnsafeMutableRawPointer(mutating: $0.baseAddress), iov_len: $0.count)
        }
        let result = chost_send_frame(descriptor.number, header, start, start.count, vectors, Int32(vectors.count))
        if result >= 0 { return .done }
        return result == -Int(EAGAIN) || result == -Int(ENOBUFS) ? .full : .lost
    }

    /// Sends a frame.
    public func send(_ header: [UInt8], _ frame: [UInt8]) -> Outcome { send(header, frame, []) }

    /// The next frame and its header; nil if there is none now. `isGone` is set when there will be none any more.
    public func receive() -> (header: [UInt8], frame: [UInt8])? {
        var header = [UInt8](repeating: 0, count: Self.headerBytes)
        let result = chost_receive_frame(descriptor.number, &header, buffer.baseAddress, buffer.count)
        // A tap that is down has errors, too, and comes back.
        if result == 0 || result == -Int(ECONNRESET) { isGone = true }
        guard result > Self.headerBytes else { return nil }
        return (header, [UInt8](UnsafeRawBufferPointer(rebasing: buffer[..<(result - Self.headerBytes)])))
    }

    public private(set) var isGone = false
}

extension Confinement {
    /// Reading these files stays possible, by path; other files only where the host's kernel has no Landlock.
    public static func keepOnly(_ paths: [String]) -> Bool {
        let copies = paths.map { strdup($0) }
        defer { for copy in copies { free(copy) } }
        var pointers = copies.map { UnsafePointer<CChar>($0) }
        return chost_read_only_paths(&pointers, Int32(pointers.count)) == 0
    }
}
