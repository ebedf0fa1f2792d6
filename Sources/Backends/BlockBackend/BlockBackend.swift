// The back end of one virtual disk: store, rings and medium put together.
// Source: Xen's public/io/blkif.h; which nodes Linux's blkback writes, and when.
// Modelled: disks and CD-ROMs, read-only media, resizing while connected, reconnecting, removal.
// Not modelled: secure discard, sectors larger than 512 bytes (the protocol's larger ones are rarely understood).
// Quirks: features are written before InitWait, where the protocol wants them; Linux's front end reads them later.
// Persistent grants are not offered: to map a page costs nothing here, while their guests copy all data in and out.
internal import CXen
public import Images
public import Rings
internal import XenStore
public import XenStoreClient

/// What a virtual disk is besides its bytes.
public struct BlockDescription: Sendable {
    /// The back end's directory, /local/domain/0/backend/vbd/DOMAIN/DEVICE.
    public var path: String
    public var isCDROM: Bool
    /// It offers no more than QEMU's back end does, and says at once what the medium is.
    public var isPlain: Bool
    public var limits: BlockLimits

    public init(path: String, isCDROM: Bool = false, isPlain: Bool = false, limits: BlockLimits = BlockLimits()) {
        (self.path, self.isCDROM, self.isPlain, self.limits) = (path, isCDROM, isPlain, limits)
    }
}

/// One vbd. Everything happens on one thread.
public final class BlockBackend {
    private let description: BlockDescription
    private let store: StoreClient
    private let grants: GrantMap
    private let ports: any EventPorts
    private let medium: any BlockStore
    public let device: BackendDevice
    private var engine: BlockEngine?
    private var sectors: UInt64
    private var past = BlockStatistics()
    private var allowsDiscard = true

    /// Called when `turn` has something to do.
    public var onWork: () -> Void = {}

    public init(
        _ description: BlockDescription, medium: any BlockStore, store: StoreClient, grants: GrantMap,
        ports: any EventPorts
    ) {
        (self.description, self.medium, self.store) = (description, medium, store)
        (self.grants, self.ports) = (grants, ports)
        sectors = medium.size / UInt64(BlockEngine.sectorBytes)
        device = BackendDevice(description.path, store: store)
        device.onConnect = { [unowned self] in try connect() }
        device.onDisconnect = { [unowned self] in disconnect() }
    }

    public var statistics: BlockStatistics { engine?.statistics ?? past }

    /// Says what is offered and waits for the front end.
    public func start() throws(StoreFailure) { try device.start(try features()) }

    /// Serves what waits; true if there is more.
    public func turn() -> Bool { engine?.serve() ?? false }

    /// Asks the guest for events; false if there is something to do already.
    public func prepareToSleep() -> Bool { engine?.prepareToSleep() ?? true }

    /// Changes with everything that is served.
    public var activity: UInt64 { engine?.activity ?? 0 }

    /// Whether the medium will be done with something soon, so that looking for it beats sleeping.
    public var isWaiting: Bool { engine?.isWaiting ?? false }

    /// Looks whether the medium has another size, and tells the front end.
    public func checkSize() throws(StoreFailure) {
        let now = medium.measure() / UInt64(BlockEngine.sectorBytes)
        guard now != sectors else { return }
        sectors = now
        engine?.sectors = now
        guard device.state == .connected else { return }
        device.onReport("\(description.path): now \(now) sectors")
        // Writing the state again is how the front end learns of it.
        let connected = XenbusState.connected.text
        try store.transaction { (transaction) throws(StoreFailure) in
            try store.write(node("sectors"), "\(now)", in: transaction)
            try store.write(node("state"), connected, in: transaction)
        }
    }

    /// Waits for what is under way and lets go of the guest. The nodes stay as they are.
    public func stop() { device.stop() }

    // MARK: - Handshake

    private func node(_ key: String) -> String { "\(description.path)/\(key)" }

    /// Values are those of Linux's blkback.
    private func features() throws(StoreFailure) -> [(String, String)] {
        if description.isPlain {
            return [
                ("feature-flush-cache", "1"), ("max-ring-page-order", "\(description.limits.ringPageOrder)"),
                ("sectors", "\(sectors)"), ("sector-size", "\(BlockEngine.sectorBytes)"), ("info", "\(information)"),
            ]
        }
        var features = [
            // What is only read has no cache to write back.
            ("feature-flush-cache", medium.isReadOnly ? "0" : "1"), ("feature-barrier", medium.isReadOnly ? "0" : "1"),
            ("feature-persistent", "0"),
            ("feature-max-indirect-segments", "\(BlockEngine.indirectSegments)"),
            ("max-ring-page-order", "\(description.limits.ringPageOrder)"),
            ("multi-queue-max-queues", "\(description.limits.queues)"),
        ]
        allowsDiscard = try store.read(node("discard-enable")) != "0"
        if medium.canDiscard, allowsDiscard {
            let granularity = medium.size % 4096 == 0 ? 4096 : BlockEngine.sectorBytes
            features += [
                ("feature-discard", "1"), ("discard-granularity", "\(granularity)"), ("discard-alignment", "0"),
                ("discard-secure", "0"),
            ]
        }
        return features
    }

    /// VDISK_*.
    private var information: Int32 {
        let removable = description.isPlain ? 0 : VDISK_REMOVABLE
        return (description.isCDROM ? VDISK_CDROM | removable : 0) | (medium.isReadOnly ? VDISK_READONLY : 0)
    }

    private func connect() throws {
        let parameters = try BlockParameters(description.limits) { device.read($0) }
        do { try medium.take() } catch { throw ParameterFault("\(error): is the emulated disk unplugged?") }
        let queues = try bind(parameters)
        do { try publish() } catch {
            for queue in queues { queue.port.close() }
            throw error
        }
        let engine = BlockEngine(medium: medium, grants: grants, queues: queues)
        engine.sectors = sectors
        engine.allowsDiscard = allowsDiscard
        engine.onWork = { [weak self] in self?.onWork() }
        engine.onFault = { [weak self] in self?.report($0) }
        for queue in queues { queue.port.onEvent = { [weak self] in self?.onWork() } }
        self.engine = engine
        // Requests may wait already, and nobody sends an event for those.
        onWork()
    }

    /// Maps the rings and binds the event channels; on failure nothing of it stays.
    private func bind(_ parameters: BlockParameters) throws(ParameterFault) -> [BlockQueue] {
        var queues: [BlockQueue] = []
        do {
            for queue in parameters.queues {
                let pages = try queue.ring.map { (reference) throws(GrantError) in
                    try grants.map(reference, .readWrite)
                }
                let ring = try BackRing(pages: pages, slotBytes: parameters.abi.slotBytes)
                let port = try ports.bind(queue.port)
                queues.append(BlockQueue(ring: ring, port: port, abi: parameters.abi))
            }
            return queues
        } catch {
            for queue in queues { queue.port.close() }
            throw ParameterFault("cannot map the ring or bind its event channel: \(error)")
        }
    }

    private func publish() throws(StoreFailure) {
        let physical = medium.size % 4096 == 0 && medium.prefersPages ? 4096 : BlockEngine.sectorBytes
        let values = [
            ("sectors", "\(sectors)"), ("info", "\(information)"), ("sector-size", "\(BlockEngine.sectorBytes)"),
            ("physical-sector-size", "\(physical)"),
        ]
        try store.transaction { (transaction) throws(StoreFailure) in
            for (key, value) in values { try store.write(node(key), value, in: transaction) }
        }
    }

    private func disconnect() {
        guard let engine else { return }
        engine.stop()
        past = engine.statistics
        self.engine = nil
    }

    private func report(_ fault: RingFault) {
        device.onReport("\(description.path): the front end's ring makes no sense (\(fault)); it is served no more")
    }
}

extension BlockStore {
    /// Whether transfers should be whole pages.
    fileprivate var prefersPages: Bool { directAlignment == 4096 }
}
