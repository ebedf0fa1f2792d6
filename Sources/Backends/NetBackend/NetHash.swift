// How a guest wants its frames dealt out to queues: algorithm, key, table, as it sets them by the control ring.
// Source: Xen's public/io/netif.h ("Hash types", "Hash algorithms", "Control messages"); Linux's netback for the limits.
// Modelled: Toeplitz over addresses, and ports of TCP; key, table, the hash told with a frame. Not modelled: static
// grants (answered as not supported).
// Quirks: a table's entry is checked when it is set, so that no number of a queue is wrong later.
import CXen
import Ethernet

struct NetHash: Equatable {
    /// Octets of a key and entries of a table at most (Linux's XEN_NETBK_MAX_HASH_KEY_SIZE, _MAPPING_SIZE).
    static let mostKeyBytes = 40
    static let mostEntries = 128
    private static let allTypes: UInt32 = 0xF

    /// XEN_NETIF_CTRL_STATUS_*.
    enum Status: UInt32 { case success = 0, notSupported, invalidParameter, bufferOverflow }
    struct Request: Equatable {
        static let slotBytes = MemoryLayout<xen_netif_ctrl_request>.size
        var id: UInt16
        var type: UInt16
        var data: [UInt32]

        init(_ bytes: [UInt8]) {
            (id, type) = (bytes.word(0), bytes.word(2))
            data = (1...3).map { UInt32(bytes.word($0 * 4)) | UInt32(bytes.word($0 * 4 + 2)) << 16 }
        }

        func response(_ status: Status, _ data: UInt32) -> [UInt8] {
            id.bytes + type.bytes
                + [status.rawValue, data].flatMap { word in
                    UInt16(truncatingIfNeeded: word).bytes + UInt16(truncatingIfNeeded: word >> 16).bytes
                }
        }
    }
    /// What a frame's hash was calculated over, as a bit's number (_XEN_NETIF_CTRL_HASH_TYPE_*), and its value.
    struct Value: Equatable {
        var type: UInt8
        var value: UInt32
    }

    private let queues: UInt32
    private var isToeplitz = false
    private var types: UInt32 = 0
    private var key: [UInt8] = []
    private var table: [UInt32] = []

    init(queues: Int) { self.queues = UInt32(queues) }

    /// Does what a request asks for. `page` reads so many bytes from the start of a granted page; nil if it cannot.
    mutating func carryOut(_ request: Request, page: (UInt32, Int) -> [UInt8]?) -> (Status, UInt32) {
        let data = request.data
        switch UInt32(request.type) {
        case UInt32(XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM):
            guard data[0] <= UInt32(XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ) else { return (.invalidParameter, 0) }
            isToeplitz = data[0] == UInt32(XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ)
            return (.success, 0)
        case UInt32(XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS):
            return isToeplitz ? (.success, Self.allTypes) : (.notSupported, 0)
        case UInt32(XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS):
            guard isToeplitz, data[0] & ~Self.allTypes == 0 else { return (.invalidParameter, 0) }
            types = data[0]
            return (.success, 0)
        case UInt32(XEN_NETIF_CTRL_TYPE_SET_HASH_KEY): return (setKey(data, page), 0)
        case UInt32(XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE): return (.success, UInt32(Self.mostEntries))
        case UInt32(XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE):
            guard data[0] <= Self.mostEntries else { return (.invalidParameter, 0) }
            table = [UInt32](repeating: 0, count: Int(data[0]))
            return (.success, 0)
        case UInt32(XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING): return (setTable(data, page), 0)
        default: return (.notSupported, 0)
        }
    }

    private mutating func setKey(_ data: [UInt32], _ page: (UInt32, Int) -> [UInt8]?) -> Status {
        guard data[1] <= Self.mostKeyBytes else { return .bufferOverflow }
        if data[1] == 0 {
            key = []
        } else {
            guard let bytes = page(data[0], Int(data[1])) else { return .invalidParameter }
            key = bytes
        }
        return .success
    }

    /// A part of the table; nothing of it is taken if any of it is wrong.
    private mutating func setTable(_ data: [UInt32], _ page: (UInt32, Int) -> [UInt8]?) -> Status {
        guard data[1] <= Self.mostEntries else { return .bufferOverflow }
        let (count, start) = (Int(data[1]), Int(data[2]))
        guard start <= table.count, count <= table.count - start else { return .invalidParameter }
        guard count > 0 else { return .success }
        guard let bytes = page(data[0], count * 4) else { return .invalidParameter }
        let entries = (0..<count).map { UInt32(bytes.word($0 * 4)) | UInt32(bytes.word($0 * 4 + 2)) << 16 }
        guard entries.allSatisfy({ $0 < queues }) else { return .invalidParameter }
        table.replaceSubrange(start..<(start + count), with: entries)
        return .success
    }

    // MARK: frames

    /// A frame's hash, over as much as the guest has asked for; nil if it wants none of such a frame.
    func value(of frame: Frame) -> Value? {
        guard isToeplitz, types != 0 else { return nil }
        let start = Array(frame.bytes.prefix(128))
        guard let packet = Packet(start, length: frame.bytes.count) else { return nil }
        // Bits: IPv4, TCP over it, IPv6, TCP over it.
        let first: UInt8 = packet.version == 4 ? 0 : 2
        let addresses = packet.networkStart + (packet.version == 4 ? 12 : 8)
        var input = Array(start[addresses..<(addresses + (packet.version == 4 ? 8 : 32))])
        let isTCP = packet.carried == .tcp && packet.transportStart + 4 <= start.count
        if isTCP, types >> (first + 1) & 1 != 0 {
            input += start[packet.transportStart..<(packet.transportStart + 4)]
            return Value(type: first + 1, value: Self.toeplitz(input, key: key))
        }
        guard types >> first & 1 != 0 else { return nil }
        return Value(type: first, value: Self.toeplitz(input, key: key))
    }

    /// The queue for a frame with that hash.
    func queue(for hash: Value) -> Int {
        let entry = table.isEmpty ? hash.value % queues : table[Int(hash.value) % table.count]
        return Int(entry)
    }

    /// For each bit of `input` that is one, from the left, the 32 leftmost bits of the key, which moves on with the bits.
    /// Octets that a key lacks are zero.
    static func toeplitz(_ input: [UInt8], key: [UInt8]) -> UInt32 {
        func octet(_ index: Int) -> UInt64 { index < key.count ? UInt64(key[index]) : 0 }
        var hash: UInt32 = 0
        for (index, byte) in input.enumerated() {
            // The key's 40 bits that a byte of the input meets.
            let window = (0..<5).reduce(UInt64(0)) { $0 << 8 | octet(index + $1) }
            for bit in 0..<8 where byte >> UInt8(7 - bit) & 1 != 0 {
                hash ^= UInt32(truncatingIfNeeded: window >> UInt64(8 - bit))
            }
        }
        return hash
    }
}
