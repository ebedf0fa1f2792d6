// How a disk's two ends find together, by the nodes of the store.
// Source: Xen's public/io/blkif.h (nodes, state diagrams), public/io/xenbus.h, the transitions of Linux's blkback.
// Modelled: connecting, reconnecting (kexec, restarts), closing, removal. Not modelled: suspended front ends' refusals.
// Quirks: a front end may go to Initialised or straight to Connected; a missing "protocol" means the host's own ABI.
import XenStoreClient

/// The states of this end, as a machine that says what to do.
struct BlockHandshake {
    enum Action: Equatable {
        case announce(XenbusState)
        /// Read the front end's parameters and map its rings; then `connected` or `failed`.
        case connect
        case disconnect
        /// The device is gone for good.
        case end
    }
    private(set) var state = XenbusState.initialising

    mutating func begin() -> [Action] { change(to: .initWait) }
    mutating func connected() -> [Action] { change(to: .connected) }
    mutating func failed() -> [Action] { change(to: .closing) }

    /// What the front end's state asks for; nil when its node is gone. `isOnline`: the toolstack wants the device.
    mutating func frontend(_ peer: XenbusState?, isOnline: Bool) -> [Action] {
        switch peer {
        case .initialising:
            return state == .closed ? change(to: .initWait) : []
        case .initialised, .connected:
            return state == .connected || state == .closing ? [] : [.disconnect, .connect]
        case .closing:
            return change(to: .closing)
        case .closed:
            return [.disconnect] + change(to: .closed) + (isOnline ? [] : [.end])
        case nil:
            return [.disconnect] + change(to: .closed) + [.end]
        case .unknown, .initWait, .reconfiguring, .reconfigured:
            return []
        }
    }

    private mutating func change(to new: XenbusState) -> [Action] {
        guard new != state else { return [] }
        state = new
        return [.announce(new)]
    }
}

/// What this end offers.
public struct BlockLimits: Sendable {
    public var ringPageOrder: UInt32
    public var queues: UInt32
    /// Linux's blkback: 16 pages; a queue for each vCPU.
    public init(ringPageOrder: UInt32 = 4, queues: UInt32 = 4) {
        (self.ringPageOrder, self.queues) = (min(ringPageOrder, 4), max(1, queues))
    }
}

/// Why a front end's parameters cannot be used, in words for the store's error node.
struct BlockParameterFault: Error, Equatable {
    var text: String
    init(_ text: String) { self.text = text }
}

/// What the front end has written.
struct BlockParameters: Equatable {
    struct Queue: Equatable {
        var ring: [UInt32]
        var port: UInt32
    }
    var abi = BlockABI.x86_64
    var persistent = false
    var queues: [Queue] = []

    /// `read` gives the value of a node below the front end's directory.
    init(_ limits: BlockLimits, read: (String) -> String?) throws(BlockParameterFault) {
        if let name = read("protocol") {
            guard let known = BlockABI(rawValue: name) else { throw BlockParameterFault("unknown protocol \(name)") }
            abi = known
        }
        persistent = read("feature-persistent") == "1"
        let count = try Self.number("multi-queue-num-queues", read) ?? 1
        guard count > 0, count <= limits.queues else {
            throw BlockParameterFault("\(count) queues requested, at most \(limits.queues) are offered")
        }
        let order = try Self.number("ring-page-order", read)
        if let order, order > limits.ringPageOrder {
            throw BlockParameterFault("a ring of 2^\(order) pages requested, at most 2^\(limits.ringPageOrder)")
        }
        for index in 0..<count {
            queues.append(try Self.queue(count == 1 ? "" : "queue-\(index)/", order, read))
        }
    }

    private static func queue(
        _ directory: String, _ order: UInt32?, _ read: (String) -> String?
    ) throws(BlockParameterFault) -> Queue {
        guard let port = try number(directory + "event-channel", read) else {
            throw BlockParameterFault("\(directory)event-channel is missing")
        }
        // A ring of one page has its reference under either name.
        if order ?? 0 == 0, let only = try number(directory + "ring-ref", read) {
            return Queue(ring: [only], port: port)
        }
        var ring: [UInt32] = []
        for page in 0..<(UInt32(1) << (order ?? 0)) {
            guard let reference = try number(directory + "ring-ref\(page)", read) else {
                throw BlockParameterFault("\(directory)ring-ref\(order == nil ? "" : "\(page)") is missing")
            }
            ring.append(reference)
        }
        return Queue(ring: ring, port: port)
    }

    private static func number(_ key: String, _ read: (String) -> String?) throws(BlockParameterFault) -> UInt32? {
        guard let text = read(key) else { return nil }
        guard let number = UInt32(text) else { throw BlockParameterFault("\(key) is no number") }
        return number
    }
}
