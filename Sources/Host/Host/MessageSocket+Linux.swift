internal import CHost
internal import Glibc

/// One end of a Unix socket that carries messages with descriptors.
public struct MessageSocket: Sendable {
    public let descriptor: Descriptor
    public init(_ descriptor: Descriptor) { self.descriptor = descriptor }

    /// Two connected ends (SOCK_SEQPACKET, close-on-exec).
    public static func pair() throws(HostFailure) -> (MessageSocket, MessageSocket) {
        var ends: [Int32] = [-1, -1]
        let type = Int32(SOCK_SEQPACKET.rawValue) | Int32(SOCK_CLOEXEC.rawValue)
        guard socketpair(AF_UNIX, type, 0, &ends) == 0 else { throw HostFailure("make", "a socket pair", code: errno) }
        return (MessageSocket(Descriptor(owning: ends[0])), MessageSocket(Descriptor(owning: ends[1])))
    }

    /// Sends one message of at most 64 KiB with up to 72 descriptors.
    public func send(_ message: [UInt8], descriptors: [Int32] = []) throws(HostFailure) {
        let sent = chost_send_descriptors(
            descriptor.number, message, message.count, descriptors, Int32(descriptors.count))
        guard sent >= 0 else { throw HostFailure("send a message to", "the peer process", result: sent) }
    }

    /// Waits for one message; nil when the other end is gone.
    public func receive() throws(HostFailure) -> (message: [UInt8], descriptors: [Descriptor])? {
        var bytes = [UInt8](repeating: 0, count: 65_536)
        var descriptors = [Int32](repeating: -1, count: Int(CHOST_MOST_DESCRIPTORS))
        var count: Int32 = 0
        let received = chost_receive_descriptors(descriptor.number, &bytes, bytes.count, &descriptors, &count)
        guard received >= 0 else { throw HostFailure("receive from", "the peer process", result: received) }
        let held = descriptors.prefix(Int(count)).map { Descriptor(owning: $0) }
        return received == 0 ? nil : (Array(bytes.prefix(received)), held)
    }
}
