// Xenstore's wire protocol: 16-byte headers and payloads of at most 4096 bytes.
// Source: Xen's public/io/xs_wire.h and docs/misc/xenstore.txt (limits, error names, argument forms).
// The same bytes travel over a guest's ring and over the Unix socket.

/// What a message asks for or answers (enum xsd_sockmsg_type).
public enum Operation: UInt32, Sendable, CaseIterable {
    case control = 0
    case directory, read, getPermissions, watch, unwatch, transactionStart, transactionEnd, introduce, release
    case getDomainPath, write, makeDirectory, remove, setPermissions, watchEvent, error, isDomainIntroduced
    case resume, setTarget
    case resetWatches = 21
    case directoryPart
}

/// One message, header and payload.
public struct Message: Equatable, Sendable {
    public static let headerSize = 16
    /// XENSTORE_PAYLOAD_MAX.
    public static let maximumPayload = 4096

    public var type: UInt32
    /// Echoed in the answer.
    public var request: UInt32
    /// 0 outside of transactions.
    public var transaction: UInt32
    public var payload: [UInt8]

    public init(type: UInt32, request: UInt32, transaction: UInt32, payload: [UInt8]) {
        (self.type, self.request, self.transaction, self.payload) = (type, request, transaction, payload)
    }

    public init(_ operation: Operation, request: UInt32 = 0, transaction: UInt32 = 0, payload: [UInt8] = []) {
        self.init(type: operation.rawValue, request: request, transaction: transaction, payload: payload)
    }

    /// The bytes on the wire; integers are little-endian.
    public var bytes: [UInt8] {
        var bytes: [UInt8] = []
        bytes.reserveCapacity(Self.headerSize + payload.count)
        for field in [type, request, transaction, UInt32(truncatingIfNeeded: payload.count)] {
            for shift in stride(from: UInt32(0), to: 32, by: 8) {
                bytes.append(UInt8(truncatingIfNeeded: field >> shift))
            }
        }
        return bytes + payload
    }
}

/// Bytes of a stream, cut into messages. What a peer sends is untrusted.
public struct MessageReader: Sendable {
    public enum Failure: Error, Equatable { case payloadTooLong(UInt32) }
    private var bytes: [UInt8] = []
    private var start = 0

    public init() {}

    public mutating func append(_ more: some Sequence<UInt8>) {
        if start > 0 {
            bytes.removeFirst(start)
            start = 0
        }
        bytes.append(contentsOf: more)
    }

    /// The next whole message, nil if more bytes are needed; throws when the stream cannot be followed any more.
    public mutating func next() throws(Failure) -> Message? {
        guard bytes.count - start >= Message.headerSize else { return nil }
        let length = field(3)
        guard length <= UInt32(Message.maximumPayload) else { throw .payloadTooLong(length) }
        let end = start + Message.headerSize + Int(length)
        guard bytes.count >= end else { return nil }
        let message = Message(
            type: field(0), request: field(1), transaction: field(2),
            payload: Array(bytes[(start + Message.headerSize)..<end]))
        start = end
        return message
    }

    private func field(_ index: Int) -> UInt32 {
        (0..<4).reduce(0) { $0 | UInt32(bytes[start + index * 4 + $1]) << UInt32($1 * 8) }
    }
}

/// Errors as the protocol names them.
public enum StoreError: String, Error, Sendable {
    case invalid = "EINVAL"
    case denied = "EACCES"
    case exists = "EEXIST"
    case isDirectory = "EISDIR"
    case noEntry = "ENOENT"
    case noMemory = "ENOMEM"
    case noSpace = "ENOSPC"
    case io = "EIO"
    case notEmpty = "ENOTEMPTY"
    case notImplemented = "ENOSYS"
    case readOnly = "EROFS"
    case busy = "EBUSY"
    case again = "EAGAIN"
    case isConnected = "EISCONN"
    case tooBig = "E2BIG"
    case notPermitted = "EPERM"
}
