internal import CXen

/// One guest access on its way to the device model; Xen's `struct ioreq`.
public struct Request: Equatable, Sendable {
    public enum Kind: UInt8, Sendable {
        case port = 0  // IOREQ_TYPE_PIO
        case memory = 1  // IOREQ_TYPE_COPY
        case pciConfig = 2  // IOREQ_TYPE_PCI_CONFIG: address = SBDF << 32 | register
    }
    public var kind: Kind
    /// Port number or guest-physical address.
    public var address: UInt64
    /// Bytes of one element: 1, 2, 4 or 8.
    public var size: Int
    /// Elements; more than one only with `memoryOperand`.
    public var count: Int
    public var isRead: Bool
    /// A write's value; or, with `memoryOperand`, the guest-physical address of the first element.
    public var data: UInt64
    /// `data` is an address: elements come from or go to guest RAM.
    public var memoryOperand: Bool
    /// Elements go towards lower addresses.
    public var descending: Bool

    public init(
        _ kind: Kind, address: UInt64, size: Int, count: Int = 1, isRead: Bool, data: UInt64 = 0,
        memoryOperand: Bool = false, descending: Bool = false
    ) {
        (self.kind, self.address, self.size, self.count) = (kind, address, size, count)
        (self.isRead, self.data) = (isRead, data)
        (self.memoryOperand, self.descending) = (memoryOperand, descending)
    }
}

/// States of a slot (STATE_IOREQ_*).
enum SlotState: UInt32 { case none = 0, ready = 1, inProcess = 2, responseReady = 3 }

/// A slot's place in `struct ioreq`, public/hvm/ioreq.h. `control` is the 32-bit word of
/// padding, flags and type; its byte 2 holds the state, so it is what the two sides sleep on.
enum SlotField {
    static let address = 0
    static let data = 8
    static let count = 16
    static let size = 20
    static let control = 28

    static func encode(_ request: Request, _ state: SlotState) -> UInt32 {
        var flags = state.rawValue
        if request.memoryOperand { flags |= 1 << 4 }
        if request.isRead { flags |= 1 << 5 }
        if request.descending { flags |= 1 << 6 }
        return flags << 16 | UInt32(request.kind.rawValue) << 24
    }
    static func state(_ control: UInt32) -> UInt32 { control >> 16 & 0xF }
    static func with(_ state: SlotState, _ control: UInt32) -> UInt32 { control & ~(0xF << 16) | state.rawValue << 16 }
}
