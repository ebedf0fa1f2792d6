// The back end of one virtual interface: store, rings and port put together.
// Source: Xen's public/io/netif.h; which nodes Linux's netback writes, and when.
// Modelled: all queues, multicast control, the control ring, headroom for XDP, rate, reconnecting, removal.
// Quirks: a frame for a guest without free slots waits, and the port with it.
internal import CXen
public import Ethernet
internal import Host
public import Rings
internal import XenStore
public import XenStoreClient

/// One vif. Everything happens on one thread.
public final class NetBackend {
    /// Packets taken from a queue, or given to the guest, in one go.
    private static let budget = 64
    private static let mostGroups = 64

    public let device: BackendDevice
    private let store: StoreClient
    private let grants: GrantMap
    private let ports: any EventPorts
    private let port: FramePort
    private let queueLimit: UInt32
    private var queues: [NetQueue] = []
    /// A frame that waits for slots of a queue.
    private var incoming: (frame: NetQueue.Incoming, queue: NetQueue)?
    private var control: NetControl?
    /// Bytes that the guest wants free before each frame.
    private var headroom = 0
    private var groups: Set<[UInt8]> = []
    private var filters = false
    private var rate: RateLimit?
    private var watches: [StoreClient.Watch] = []
    public private(set) var statistics = NetStatistics()
    /// When the rate allows the next packet.
    public private(set) var deadline: UInt64?
    /// Changes with everything that is served.
    public private(set) var activity: UInt64 = 0
    private var now: () -> UInt64

    /// Called when `turn` has something to do.
    public var onWork: () -> Void = {}

    public init(
        _ path: String, port: FramePort, store: StoreClient, grants: GrantMap, ports: any EventPorts, queues: Int,
        now: @escaping () -> UInt64
    ) {
        device = BackendDevice(path, store: store)
        (self.store, self.grants, self.ports, self.port, self.now) = (store, grants, ports, port, now)
        queueLimit = UInt32(clamping: max(1, min(queues, 8)))
        device.onConnect = { [unowned self] in try connect() }
        device.onDisconnect = { [unowned self] in disconnect() }
        port.onFrame = { [weak self] in self?.onWork() }
        port.onRoom = { [weak self] in self?.onWork() }
    }

    /// Says what is offered and waits for the front end.
    public func start() throws(StoreFailure) {
        rate = RateLimit(try store.read("\(device.path)/rate"))
        try store.write("\(device.path)/hotplug-status", "connected")
        try device.start([
            ("feature-sg", "1"), ("feature-gso-tcpv4", "1"), ("feature-gso-tcpv6", "1"),
            ("feature-ipv6-csum-offload", "1"), ("feature-rx-copy", "1"), ("feature-rx-flip", "0"),
            ("feature-multicast-control", "1"), ("feature-dynamic-multicast-control", "1"),
            ("feature-split-event-channels", "1"), ("multi-queue-max-queues", "\(queueLimit)"),
            ("feature-ctrl-ring", "1"), ("feature-xdp-headroom", "1"),
        ])
    }

    /// Lets go of guest and port. The nodes stay as they are.
    public func stop() {
        device.stop()
        port.detach()
    }

    private func connect() throws(ParameterFault) {
        let parameters = try NetParameters(queueLimit: queueLimit) { device.read($0) }
        do {
            for queue in parameters.queues { queues.append(try bind(queue, gathers: parameters.gathers)) }
            if let parts = parameters.control { control = try bind(parts.ring, parts.port) }
        } catch {
            for queue in queues { queue.close() }
            queues = []
            throw ParameterFault("cannot map a ring or bind its event channel: \(error)")
        }
        port.offloads = parameters.offloads
        // What came before is nobody's.
        while port.receive() != nil {}
        port.listen(true)
        // Both may change while the interface is up.
        for key in ["request-multicast-control", "xdp-headroom"] {
            guard let watch = try? store.watch("\(device.frontend)/\(key)", { [weak self] _ in self?.readWishes() })
            else { continue }
            watches.append(watch)
        }
        readWishes()
        onWork()
    }

    private func readWishes() {
        filters = device.read("request-multicast-control") == "1"
        // Linux's front end asks for 256; what would leave less than half a page for frames makes no sense.
        let bytes = device.read("xdp-headroom").flatMap { Int($0) } ?? 0
        headroom = (0...DomainMemory.pageSize / 2).contains(bytes) ? bytes : 0
    }

    private func bind(_ reference: UInt32, _ port: UInt32) throws -> NetControl {
        let ring = try BackRing(pages: [try grants.map(reference, .readWrite)], slotBytes: NetHash.Request.slotBytes)
        let port = try ports.bind(port)
        port.onEvent = { [weak self] in self?.onWork() }
        return NetControl(ring: ring, port: port, grants: grants, queues: queues.count)
    }

    private func bind(_ parameters: NetParameters.Queue, gathers: Bool) throws -> NetQueue {
        let transmit = try BackRing(
            pages: [try grants.map(parameters.transmitRing, .readWrite)], slotBytes: TransmitRequest.slotBytes)
        let receive = try BackRing(
            pages: [try grants.map(parameters.receiveRing, .readWrite)], slotBytes: ReceiveRequest.slotBytes)
        let first = try ports.bind(parameters.transmitPort)
        var second = first
        if parameters.receivePort != parameters.transmitPort {
            do { second = try ports.bind(parameters.receivePort) } catch {
                first.close()
                throw error
            }
        }
        for port in [first, second] { port.onEvent = { [weak self] in self?.onWork() } }
        return NetQueue(
            transmit: transmit, receive: receive, ports: (first, second), grants: grants, gathers: gathers)
    }

    private func disconnect() {
        for queue in queues { queue.close() }
        control?.close()
        (queues, incoming, groups, filters, deadline, control, headroom) = ([], nil, [], false, nil, nil, 0)
        for watch in watches { try? store.unwatch(watch) }
        watches = []
        port.listen(false)
    }

    // MARK: serving

    /// Serves what waits; true if there is more that can be served at once.
    public func turn() -> Bool {
        guard !queues.isEmpty else { return false }
        deadline = nil
        var isBusy = false
        if let fault = control?.serve() { report("its control ring", "\(fault)") }
        for queue in queues where serve(queue) { isBusy = true }
        if deliver() { isBusy = true }
        for queue in queues { queue.push() }
        return isBusy
    }

    /// Asks the guest for events; false if there is something to do already.
    public func prepareToSleep() -> Bool {
        var isQuiet = true
        for queue in queues where queue.fault == nil {
            // A packet that waits for port or time is woken by those.
            if queue.outgoing == nil, queue.transmit.armForRequests() { isQuiet = false }
        }
        if let incoming, incoming.queue.receive.arm(for: incoming.frame.slots) { isQuiet = false }
        if let control, !control.prepareToSleep() { isQuiet = false }
        port.listen(incoming == nil && !queues.isEmpty)
        return isQuiet
    }

    private func serve(_ queue: NetQueue) -> Bool {
        for _ in 0..<Self.budget {
            guard !port.isFull, let packet = queue.next() else {
                report(queue)
                return false
            }
            guard take(packet, from: queue) else { return false }
            activity &+= 1
        }
        return true
    }

    /// Does what a packet asks for; false if it has to wait.
    private func take(_ packet: NetQueue.Outgoing, from queue: NetQueue) -> Bool {
        if !packet.groups.isEmpty {
            queue.finish(packet.groups.allSatisfy(change) ? NetStatus.okay : NetStatus.error)
            return true
        }
        if rate != nil, let answer = rate?.takes(packet.total, at: now()), !answer.taken {
            deadline = answer.next
            return false
        }
        switch queue.send(packet, to: port) {
        case .full: return false
        case .done:
            statistics.sentFrames &+= 1
            statistics.sentBytes &+= UInt64(packet.total)
            queue.finish(NetStatus.okay)
        case .lost:
            statistics.sendErrors &+= 1
            queue.finish(NetStatus.dropped)
        case nil:
            statistics.sendErrors &+= 1
            queue.finish(NetStatus.error)
        }
        return true
    }

    private func change(_ extra: NetExtra) -> Bool {
        switch extra {
        case .addGroup(let address):
            guard groups.count < Self.mostGroups || groups.contains(address) else { return false }
            groups.insert(address)
        case .removeGroup(let address): groups.remove(address)
        case .segmentation, .other: return false
        }
        return true
    }

    private var reported: Set<ObjectIdentifier> = []
    private func report(_ queue: NetQueue) {
        guard let fault = queue.fault, reported.insert(ObjectIdentifier(queue)).inserted else { return }
        report("the front end's ring", "\(fault)")
    }
    private func report(_ ring: String, _ fault: String) {
        device.onReport("\(device.path): \(ring) makes no sense (\(fault)); it is served no more")
    }

    /// Gives the guest frames; true if there are more, and room for them.
    private func deliver() -> Bool {
        for _ in 0..<Self.budget {
            guard let next = incoming ?? take() else { return false }
            guard next.queue.fault == nil, next.queue.receive.available >= next.frame.slots else {
                if next.queue.fault != nil { statistics.dropped &+= 1 }
                incoming = next.queue.fault == nil ? next : nil
                return false
            }
            incoming = nil
            activity &+= 1
            if next.queue.give(next.frame) {
                statistics.receivedFrames &+= 1
                statistics.receivedBytes &+= UInt64(next.frame.frame.bytes.count)
            } else {
                statistics.dropped &+= 1
                report(next.queue)
            }
        }
        return true
    }

    /// The next frame that the guest wants, and its queue.
    private func take() -> (frame: NetQueue.Incoming, queue: NetQueue)? {
        while let frame = port.receive() {
            let isWanted = !filters || !frame.isGroup || frame.isBroadcast || groups.contains(Array(frame.bytes[..<6]))
            let hash = control?.hash.value(of: frame)
            let incoming = NetQueue.Incoming(frame: frame, headroom: headroom, hash: hash)
            let queue = queues[number(of: frame, hash)]
            if isWanted, queue.takes(incoming) { return (incoming, queue) }
            statistics.dropped &+= 1
        }
        return nil
    }

    /// The queue that a frame goes to: by the guest's own hash, if it has set one up.
    private func number(of frame: Frame, _ hash: NetHash.Value?) -> Int {
        guard queues.count > 1 else { return 0 }
        if let hash, let control { return control.hash.queue(for: hash) }
        return Int(flow(of: frame) % UInt32(queues.count))
    }

    /// A number that all frames of a connection have in common (FNV-1a over addresses and ports).
    private func flow(of frame: Frame) -> UInt32 {
        let start = Array(frame.bytes.prefix(128))
        guard let packet = Packet(start, length: frame.bytes.count) else { return 0 }
        let addresses = packet.networkStart + (packet.version == 4 ? 12 : 8)
        var hash = UInt32(2_166_136_261)
        for place in addresses..<(addresses + (packet.version == 4 ? 8 : 32)) {
            hash = (hash ^ UInt32(start[place])) &* 16_777_619
        }
        guard packet.carried != nil, packet.transportStart + 4 <= start.count else { return hash }
        for place in packet.transportStart..<(packet.transportStart + 4) {
            hash = (hash ^ UInt32(start[place])) &* 16_777_619
        }
        return hash
    }
}
