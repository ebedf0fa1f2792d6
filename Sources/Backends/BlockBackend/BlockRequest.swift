// Requests and responses of the block interface, as private copies.
// Source: Xen's public/io/blkif.h (structures, operations, status codes), Linux's include/xen/interface/io/blkif.h
// for the packing that x86_64 and x86_32 guests use.
// Modelled: read, write, barrier, flush, discard, indirect. Not modelled: the reserved operation 4.
// Quirks: 32-bit guests align 64-bit fields to 4 bytes, so everything behind the first word lies 4 bytes lower.
internal import CXen

/// How a guest packs its requests ("protocol" node).
public enum BlockABI: String, Sendable {
    case x86_64 = "x86_64-abi"
    case x86_32 = "x86_32-abi"

    /// Size of a request, which is that of a ring entry.
    public var slotBytes: Int { self == .x86_64 ? 112 : 108 }
    var responseBytes: Int { self == .x86_64 ? 16 : 12 }
    /// Where the guest's own number of a request lies; the sector follows it.
    var idOffset: Int { self == .x86_64 ? 8 : 4 }
}

/// A part of a page: sectors `first` through `last`.
struct BlockSegment: Equatable {
    static let bytes = 8
    static let perPage = 512
    var grant: UInt32
    var first: UInt8
    var last: UInt8

    init(_ bytes: ArraySlice<UInt8>) {
        (grant, first, last) = (UInt32(littleEndian: bytes, at: 0), bytes.byte(at: 4), bytes.byte(at: 5))
    }
    init(grant: UInt32, first: UInt8, last: UInt8) { (self.grant, self.first, self.last) = (grant, first, last) }
}

/// What a guest asks for; nothing of it is checked yet.
struct BlockRequest: Equatable {
    enum Transfer: UInt8 { case read = 0, write = 1, barrier = 2, flush = 3 }
    enum Body: Equatable {
        case transfer(Transfer, [BlockSegment])
        /// The segments lie in pages of their own.
        case indirect(Transfer, count: Int, pages: [UInt32])
        case discard(sectors: UInt64)
        /// It cannot be understood: too many segments, or an indirect request for something else than data.
        case malformed
        case unknown
    }
    /// For the response: what an indirect request is to do, else the request's own (Linux's front end checks it).
    var operation: UInt8
    var id: UInt64
    var sector: UInt64
    var body: Body

    init(_ bytes: [UInt8], _ abi: BlockABI) {
        let slot = bytes[...]
        let start = abi.idOffset
        let request = slot.byte(at: 0)
        operation = request == UInt8(BLKIF_OP_INDIRECT) ? slot.byte(at: 1) : request
        id = UInt64(littleEndian: slot, at: start)
        sector = UInt64(littleEndian: slot, at: start + 8)
        switch UInt32(request) {
        case UInt32(BLKIF_OP_DISCARD): body = .discard(sectors: UInt64(littleEndian: slot, at: start + 16))
        case UInt32(BLKIF_OP_INDIRECT): body = Self.indirect(slot, start)
        default:
            guard let transfer = Transfer(rawValue: request) else {
                body = .unknown
                return
            }
            let count = Int(slot.byte(at: 1))
            guard count <= Int(BLKIF_MAX_SEGMENTS_PER_REQUEST) else {
                body = .malformed
                return
            }
            let first = start + 16
            body = .transfer(
                transfer,
                (0..<count).map { BlockSegment(slot.dropFirst(first + $0 * BlockSegment.bytes)) })
        }
    }

    private static func indirect(_ slot: ArraySlice<UInt8>, _ start: Int) -> Body {
        let count = Int(slot.byte(at: 2)) | Int(slot.byte(at: 3)) << 8
        let pages = (count + BlockSegment.perPage - 1) / BlockSegment.perPage
        guard let transfer = Transfer(rawValue: slot.byte(at: 1)), transfer == .read || transfer == .write,
            pages <= Int(BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST)
        else { return .malformed }
        // A 16-bit handle follows the sector, then, on 4 bytes, the references.
        let first = start + 20
        return .indirect(
            transfer, count: count, pages: (0..<pages).map { UInt32(littleEndian: slot, at: first + $0 * 4) })
    }
}

/// BLKIF_RSP_*.
enum BlockStatus: Int16 {
    case okay = 0
    case error = -1
    case unsupported = -2
}

struct BlockResponse {
    var id: UInt64
    var operation: UInt8
    var status: BlockStatus

    /// Padding is zero: a guest learns nothing of this process.
    func bytes(_ abi: BlockABI) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: abi.responseBytes)
        for index in 0..<8 { bytes[index] = UInt8(truncatingIfNeeded: id >> UInt64(8 * index)) }
        bytes[8] = operation
        let code = UInt16(bitPattern: status.rawValue)
        (bytes[10], bytes[11]) = (UInt8(truncatingIfNeeded: code), UInt8(truncatingIfNeeded: code >> 8))
        return bytes
    }
}

extension ArraySlice<UInt8> {
    /// Byte `offset` of the slice; 0 behind its end.
    func byte(at offset: Int) -> UInt8 {
        offset < count ? self[startIndex + offset] : 0
    }
}

extension FixedWidthInteger {
    /// From bytes at `offset` of a slice, lowest first; what is missing is 0.
    init(littleEndian bytes: ArraySlice<UInt8>, at offset: Int) {
        self = 0
        for index in 0..<(Self.bitWidth / 8) {
            self |= Self(truncatingIfNeeded: bytes.byte(at: offset + index)) << Self(truncatingIfNeeded: 8 * index)
        }
    }
}
