// What a network front end asks for, by the nodes of the store.
// Source: Xen's public/io/netif.h (nodes); Linux's netback for the order in which names are tried.
// Modelled: several queues, split event channels, offloads, the control ring. Not modelled: page flipping.
// Quirks: the checksums of IPv4 are on unless switched off, those of IPv6 off unless switched on.
import Ethernet
import XenStoreClient

struct NetParameters {
    struct Queue: Equatable {
        var transmitRing: UInt32
        var receiveRing: UInt32
        var transmitPort: UInt32
        /// The same if there is only one.
        var receivePort: UInt32
    }
    var queues: [Queue] = []
    /// What the guest takes unfinished.
    var offloads = Offloads()
    /// Page and port of the control ring, if it has one.
    var control: (ring: UInt32, port: UInt32)?
    /// It takes packets in several slots.
    var gathers = false

    /// `read` gives the value of a node below the front end's directory.
    init(queueLimit: UInt32, read: (String) -> String?) throws(ParameterFault) {
        guard read("request-rx-copy") == "1" else { throw ParameterFault("request-rx-copy is not 1") }
        gathers = read("feature-sg") == "1"
        offloads.checksum4 = read("feature-no-csum-offload") != "1"
        offloads.checksum6 = read("feature-ipv6-csum-offload") == "1"
        offloads.segmentation4 = gathers && offloads.checksum4 && read("feature-gso-tcpv4") == "1"
        offloads.segmentation6 = gathers && offloads.checksum6 && read("feature-gso-tcpv6") == "1"
        let count = read("multi-queue-num-queues") == nil ? 1 : try Self.number("multi-queue-num-queues", read)
        guard count > 0, count <= queueLimit else {
            throw ParameterFault("\(count) queues requested, at most \(queueLimit) are offered")
        }
        if read("ctrl-ring-ref") != nil {
            control = (try Self.number("ctrl-ring-ref", read), try Self.number("event-channel-ctrl", read))
        }
        for index in 0..<count { queues.append(try Self.queue(count == 1 ? "" : "queue-\(index)/", read)) }
    }

    private static func queue(_ directory: String, _ read: (String) -> String?) throws(ParameterFault) -> Queue {
        let transmitRing = try number(directory + "tx-ring-ref", read)
        let receiveRing = try number(directory + "rx-ring-ref", read)
        var ports: [UInt32] = []
        if read(directory + "event-channel-tx") != nil {
            ports = [
                try number(directory + "event-channel-tx", read), try number(directory + "event-channel-rx", read),
            ]
        } else {
            ports = [try number(directory + "event-channel", read)]
        }
        return Queue(
            transmitRing: transmitRing, receiveRing: receiveRing, transmitPort: ports[0],
            receivePort: ports.count > 1 ? ports[1] : ports[0])
    }

    private static func number(_ key: String, _ read: (String) -> String?) throws(ParameterFault) -> UInt32 {
        guard let text = read(key) else { throw ParameterFault("\(key) is missing") }
        guard let number = UInt32(text) else { throw ParameterFault("\(key) is no number") }
        return number
    }
}
