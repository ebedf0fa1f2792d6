// Ethernet frames as they travel between a domain's cards and the host, and what is still to be done to them.
// Source: Linux's include/uapi/linux/virtio_net.h (struct virtio_net_hdr, little endian, 10 bytes).
// Modelled: unfinished checksums, TCP segmentation over IPv4 and IPv6. Not modelled: UDP segmentation.
// Quirks: a header from a guest says what it likes; `Packet` looks at the bytes and believes those.

/// The header in front of each frame.
public struct FrameHeader: Equatable, Sendable {
    public static let bytes = 10
    public enum Segmentation: UInt8, Sendable {
        case none = 0
        case tcp4 = 1
        case tcp6 = 4
    }
    /// TCP's or UDP's checksum holds the pseudo header's sum only: it is to be summed from `checksumStart` on.
    public var needsChecksum = false
    /// Checksums were checked.
    public var isValid = false
    public var segmentation = Segmentation.none
    /// The segments after the first carry no CWR (ECN).
    public var hasECN = false
    /// Bytes before TCP's payload, and of payload in each segment.
    public var headerBytes: UInt16 = 0
    public var segmentBytes: UInt16 = 0
    public var checksumStart: UInt16 = 0
    public var checksumOffset: UInt16 = 0

    public init() {}

    public init(_ raw: [UInt8]) {
        guard raw.count >= Self.bytes else { return }
        func word(_ place: Int) -> UInt16 { UInt16(raw[place]) | UInt16(raw[place + 1]) << 8 }
        (needsChecksum, isValid) = (raw[0] & 1 != 0, raw[0] & 2 != 0)
        segmentation = Segmentation(rawValue: raw[1] & 0x7F) ?? .none
        hasECN = raw[1] & 0x80 != 0
        (headerBytes, segmentBytes, checksumStart, checksumOffset) = (word(2), word(4), word(6), word(8))
    }

    public var raw: [UInt8] {
        var raw: [UInt8] = [
            (needsChecksum ? 1 : 0) | (isValid ? 2 : 0), segmentation.rawValue | (hasECN ? 0x80 : 0),
        ]
        for word in [headerBytes, segmentBytes, checksumStart, checksumOffset] {
            raw += [UInt8(truncatingIfNeeded: word), UInt8(truncatingIfNeeded: word >> 8)]
        }
        return raw
    }
}

/// A frame without its check sequence.
public struct Frame: Equatable, Sendable {
    /// Two addresses and a type: no frame is shorter.
    public static let headerBytes = 14
    public var header: FrameHeader
    public var bytes: [UInt8]
    public init(_ bytes: [UInt8], header: FrameHeader = FrameHeader()) { (self.bytes, self.header) = (bytes, header) }

    /// To more than one station, or to all.
    public var isGroup: Bool { bytes.first.map { $0 & 1 != 0 } ?? false }
    public var isBroadcast: Bool { bytes.count >= 6 && bytes[..<6].allSatisfy { $0 == 0xFF } }
}

/// What a card can take that is not finished.
public struct Offloads: Equatable, Sendable {
    public var checksum4 = false
    public var checksum6 = false
    public var segmentation4 = false
    public var segmentation6 = false
    public init() {}

    public static var all: Offloads {
        var all = Offloads()
        (all.checksum4, all.checksum6, all.segmentation4, all.segmentation6) = (true, true, true, true)
        return all
    }
}
