// How a client's messages reach the store.
// Source: Xen's docs/misc/xenstore.txt (one answer to each request, watch events in between).
// Modelled: the Unix socket. Not modelled: the guest's ring (back ends are no guests).
// Quirks: a request is sent and answered while the thread waits: the store never waits for its clients.
internal import Glibc
public import Host
public import XenStore

/// The connection between a client and the store.
public protocol StoreTransport: AnyObject {
    /// Readable when a message may have come.
    var descriptor: Int32? { get }
    func send(_ message: Message) throws(StoreFailure)
    /// The next message; nil if there is none and `wait` is false.
    func receive(wait: Bool) throws(StoreFailure) -> Message?
}

/// Why an operation on the store failed.
public enum StoreFailure: Error, Equatable, Sendable, CustomStringConvertible {
    /// The store refused.
    case refused(StoreError)
    /// The store is gone, or speaks nonsense.
    case disconnected
    /// A transaction was started over too often.
    case conflict
    /// Longer than the protocol's limits.
    case tooLong

    public var description: String {
        switch self {
        case .refused(let error): "xenstored answered \(error.rawValue)"
        case .disconnected: "the connection to xenstored is lost"
        case .conflict: "a xenstore transaction met conflicts again and again"
        case .tooLong: "a xenstore request is too long"
        }
    }
}

/// The store's Unix socket.
public final class StoreSocket: StoreTransport {
    private let socket: Descriptor
    private var reader = MessageReader()
    private var isOpen = true
    public var descriptor: Int32? { socket.number }

    /// A connection that was made already.
    public init(_ socket: Descriptor) { self.socket = socket }

    public init(path: String) throws(HostFailure) { socket = try StreamSocket.connect(path) }

    public func send(_ message: Message) throws(StoreFailure) {
        var rest = message.bytes[...]
        while !rest.isEmpty {
            guard isOpen else { throw .disconnected }
            let sent = unsafe rest.withUnsafeBytes {
                unsafe Glibc.send(socket.number, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
            }
            if sent < 0 && (errno == EINTR || errno == EAGAIN) { continue }
            guard sent > 0 else { throw close() }
            rest = rest.dropFirst(sent)
        }
    }

    public func receive(wait: Bool) throws(StoreFailure) -> Message? {
        var chunk = [UInt8](repeating: 0, count: 8192)
        while true {
            guard isOpen else { throw .disconnected }
            do {
                if let message = try reader.next() { return message }
            } catch { throw close() }
            let count = unsafe recv(socket.number, &chunk, chunk.count, wait ? 0 : Int32(MSG_DONTWAIT))
            if count < 0 && errno == EINTR { continue }
            if count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK) {
                if wait { continue }
                return nil
            }
            guard count > 0 else { throw close() }
            reader.append(chunk.prefix(count))
        }
    }

    private func close() -> StoreFailure {
        isOpen = false
        return .disconnected
    }
}
