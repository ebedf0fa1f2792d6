// What a disk's front end asks for, by the nodes of the store.
// Source: Xen's public/io/blkif.h (nodes).
// Modelled: rings of several pages, several queues, 32-bit packing. Not modelled: –
// Quirks: a missing "protocol" means the host's own ABI.
import XenStoreClient

/// What this end offers.
public struct BlockLimits: Sendable {
    public var ringPageOrder: UInt32
    public var queues: UInt32
    /// Linux's blkback: 16 pages; a queue for each vCPU.
    public init(ringPageOrder: UInt32 = 4, queues: UInt32 = 4) {
        (self.ringPageOrder, self.queues) = (min(ringPageOrder, 4), max(1, queues))
    }
}

/// What the front end has written.
struct BlockParameters: Equatable {
    struct Queue: Equatable {
        var ring: [UInt32]
        var port: UInt32
    }
    var abi = BlockABI.x86_64
    var queues: [Queue] = []

    /// `read` gives the value of a node below the front end's directory.
    init(_ limits: BlockLimits, read: (String) -> String?) throws(ParameterFault) {
        if let name = read("protocol") {
            guard let known = BlockABI(rawValue: name) else { throw ParameterFault("unknown protocol \(name)") }
            abi = known
        }
        let count = try Self.number("multi-queue-num-queues", read) ?? 1
        guard count > 0, count <= limits.queues else {
            throw ParameterFault("\(count) queues requested, at most \(limits.queues) are offered")
        }
        let order = try Self.number("ring-page-order", read)
        if let order, order > limits.ringPageOrder {
            throw ParameterFault("a ring of 2^\(order) pages requested, at most 2^\(limits.ringPageOrder)")
        }
        for index in 0..<count {
            queues.append(try Self.queue(count == 1 ? "" : "queue-\(index)/", order, read))
        }
    }

    private static func queue(
        _ directory: String, _ order: UInt32?, _ read: (String) -> String?
    ) throws(ParameterFault) -> Queue {
        guard let port = try number(directory + "event-channel", read) else {
            throw ParameterFault("\(directory)event-channel is missing")
        }
        // A ring of one page has its reference under either name.
        if order ?? 0 == 0, let only = try number(directory + "ring-ref", read) {
            return Queue(ring: [only], port: port)
        }
        var ring: [UInt32] = []
        for page in 0..<(UInt32(1) << (order ?? 0)) {
            guard let reference = try number(directory + "ring-ref\(page)", read) else {
                throw ParameterFault("\(directory)ring-ref\(order == nil ? "" : "\(page)") is missing")
            }
            ring.append(reference)
        }
        return Queue(ring: ring, port: port)
    }

    private static func number(_ key: String, _ read: (String) -> String?) throws(ParameterFault) -> UInt32? {
        guard let text = read(key) else { return nil }
        guard let number = UInt32(text) else { throw ParameterFault("\(key) is no number") }
        return number
    }
}
