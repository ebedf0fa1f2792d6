// Entries of netif's rings, as numbers.
// Source: Xen's public/io/netif.h (netif_tx_request, netif_extra_info, netif_rx_request and their responses).
// Linux's include/xen/interface/io/netif.h for what it has added: XDP.
// Modelled: requests, all extras. Not modelled: hashes from the guest (nobody uses them here).
// Quirks: an extra lies in a slot of the transmit ring like a request; its response says NULL.
import CXen

/// NETTXF_* and NETRXF_*, which agree but for the first two.
struct NetFlags: OptionSet {
    let rawValue: UInt16
    /// Transmit: the checksum is to be completed. Receive: it was checked.
    static let blankSent = NetFlags(rawValue: 1)
    static let checkedSent = NetFlags(rawValue: 2)
    static let checkedReceived = NetFlags(rawValue: 1)
    static let blankReceived = NetFlags(rawValue: 2)
    static let moreData = NetFlags(rawValue: 4)
    static let extra = NetFlags(rawValue: 8)
}

/// NETIF_RSP_*.
enum NetStatus {
    static let dropped: Int16 = -2
    static let error: Int16 = -1
    static let okay: Int16 = 0
    static let null: Int16 = 1
}

struct TransmitRequest: Equatable {
    static let slotBytes = MemoryLayout<netif_tx_request>.size
    var reference: UInt32
    var offset: Int
    var flags: UInt16
    var id: UInt16
    /// The first request's is the whole packet's.
    var size: Int

    init(_ bytes: [UInt8]) {
        reference = UInt32(bytes.word(0)) | UInt32(bytes.word(2)) << 16
        (offset, flags, id, size) = (Int(bytes.word(4)), bytes.word(6), bytes.word(8), Int(bytes.word(10)))
    }
    var options: NetFlags { NetFlags(rawValue: flags) }

    static func response(_ id: UInt16, _ status: Int16) -> [UInt8] { id.bytes + UInt16(bitPattern: status).bytes }
}

/// What a slot says besides requests.
enum NetExtra: Equatable {
    case segmentation(size: UInt16, type: UInt8)
    case addGroup([UInt8])
    case removeGroup([UInt8])
    case other(UInt8)

    init(_ bytes: [UInt8]) {
        switch Int32(bytes[0]) {
        case XEN_NETIF_EXTRA_TYPE_GSO: self = .segmentation(size: bytes.word(2), type: bytes[4])
        case XEN_NETIF_EXTRA_TYPE_MCAST_ADD: self = .addGroup(Array(bytes[2..<8]))
        case XEN_NETIF_EXTRA_TYPE_MCAST_DEL: self = .removeGroup(Array(bytes[2..<8]))
        default: self = .other(bytes[0])
        }
    }

    /// For the guest: the size of segments that a large packet stands for.
    static func segmentation(_ size: UInt16, isSix: Bool) -> [UInt8] {
        let type = isSix ? XEN_NETIF_GSO_TYPE_TCPV6 : XEN_NETIF_GSO_TYPE_TCPV4
        return [UInt8(XEN_NETIF_EXTRA_TYPE_GSO), 0] + size.bytes + [UInt8(type), 0, 0, 0]
    }

    /// For the guest: where in its first page a frame begins (XEN_NETIF_EXTRA_TYPE_XDP, which Linux alone has).
    static func headroom(_ bytes: UInt16) -> [UInt8] { [5, 0] + bytes.bytes + [0, 0, 0, 0] }

    /// For the guest: a frame's hash.
    static func hash(_ hash: NetHash.Value) -> [UInt8] {
        [UInt8(XEN_NETIF_EXTRA_TYPE_HASH), 0, hash.type, UInt8(XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ)]
            + UInt16(truncatingIfNeeded: hash.value).bytes + UInt16(truncatingIfNeeded: hash.value >> 16).bytes
    }
}

struct ReceiveRequest: Equatable {
    static let slotBytes = MemoryLayout<netif_rx_request>.size
    var id: UInt16
    var reference: UInt32
    init(_ bytes: [UInt8]) { (id, reference) = (bytes.word(0), UInt32(bytes.word(4)) | UInt32(bytes.word(6)) << 16) }

    func response(_ flags: NetFlags, _ status: Int16) -> [UInt8] {
        id.bytes + [0, 0] + flags.rawValue.bytes + UInt16(bitPattern: status).bytes
    }
}

extension [UInt8] {
    /// Little endian.
    func word(_ place: Int) -> UInt16 { UInt16(self[place]) | UInt16(self[place + 1]) << 8 }
}

extension UInt16 {
    var bytes: [UInt8] { [UInt8(truncatingIfNeeded: self), UInt8(truncatingIfNeeded: self >> 8)] }
}
