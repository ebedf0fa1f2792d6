// The store as a domain's life needs it: started with the first domain, told of each one, cleaned up behind it.
// Source: libxl's order of things: tree, introduction, unpause; docs/misc/xenstore.txt.
// Modelled: one xenstored a state directory, started by `xl create`, ending with the last domain and client.
// Quirks: xenstored is no child of a monitor: it outlives the domain that it was started for.

internal import DomainConfig
internal import Foundation
internal import Host
internal import XenStoreClient

extension RunDirectory {
    /// Where this state directory's store listens.
    public var storeSocket: String { path + "/xenstored/socket" }
    /// Where domains are introduced to it.
    var storeDoor: String { path + "/xenstored/domains" }

    /// A connection to the store, which is started if it does not run. Call it in `locked`.
    func openStore(programs: String) throws -> StoreClient {
        if let socket = try? StoreSocket(path: storeSocket) { return StoreClient(socket) }
        try HostFile.makeDirectory(path + "/xenstored")
        let log = try HostFile.open(logFile("xenstored"), [.write, .create, .append])
        let pipe = try makePipe()
        let process = try ChildProcess(
            path: programs + "/xenstored",
            arguments: ["--socket", storeSocket, "--domains", storeDoor, "--state", path + "/xenstored/state"],
            descriptors: [nil, log.number, log.number, pipe.writing.number], newSession: true)
        closeDescriptor(pipe.writing.number)
        let word = try HostFile.readAvailable(pipe.reading.number)
        guard !word.isEmpty, let socket = try? StoreSocket(path: storeSocket) else {
            let end = process.reap(wait: true).map { "\($0)" } ?? "does not answer"
            throw ToolstackError("xenstored \(end); see \(logFile("xenstored"))", exitCode: 3)
        }
        let store = StoreClient(socket)
        let memory = HostFigures.read().totalMemory * 1024
        try store.write(DomainTree.host(memory: memory, store: programs + "/xenstored"))
        return store
    }

    /// Takes what a dead domain left out of the store.
    func forgetInStore(domid: Int, uuid: String) {
        guard let socket = try? StoreSocket(path: storeSocket) else { return }
        try? StoreClient(socket).removeTree(domid: domid, uuid: uuid)
    }
}

/// One domain's place in the store, from its introduction on.
final class DomainService {
    private var store: StoreClient
    private var door: MessageSocket
    private let domid: Int
    private let uuid: String
    /// The back ends' end of the domain's own connection, and one that is Domain-0's for what they serve.
    private(set) var ring: Descriptor
    private(set) var backend: Descriptor
    /// The way to the back ends' process, and its end of it.
    private let monitor: MessageSocket
    let backendsMonitor: MessageSocket

    /// Introduces the domain to the store, which must run.
    init(_ run: RunDirectory, domid: Int, uuid: String) throws {
        (self.domid, self.uuid) = (domid, uuid)
        (monitor, backendsMonitor) = try MessageSocket.pair()
        (store, door, ring, backend) = try Self.connect(run, domid)
    }

    private static func connect(
        _ run: RunDirectory, _ domid: Int
    ) throws -> (StoreClient, MessageSocket, ring: Descriptor, backend: Descriptor) {
        do {
            let store = StoreClient(try StoreSocket(path: run.storeSocket))
            let door = MessageSocket(try StreamSocket.connect(run.storeDoor))
            let ring = try introduce("introduce", domid, at: door)
            return (store, door, ring, try introduce("serve", domid, at: door))
        } catch let error as ToolstackError { throw error } catch {
            throw ToolstackError("xenstored does not answer: \(error)")
        }
    }

    /// A connection that the store takes for what `role` says.
    private static func introduce(_ role: String, _ domid: Int, at door: MessageSocket) throws -> Descriptor {
        let (ours, theirs) = try StreamSocket.pair(isBlocking: true)
        try door.send(Array("{\"\(role)\":\(domid)}".utf8), descriptors: [theirs.number])
        guard try door.receive()?.message == [1] else { throw ToolstackError("xenstored refused domain \(domid)") }
        return ours
    }

    /// Readable when xenstored is gone.
    var descriptor: Int32 { door.descriptor.number }

    /// xenstored is gone: starts another one, unless somebody else has, and connects this domain with it.
    func restore(_ run: RunDirectory, programs: String) throws {
        // A process that is being killed loses its descriptors one by one: its socket may still take connections.
        var attempts = 20
        while true {
            do {
                let keeper = try run.locked { try run.openStore(programs: programs) }
                defer { withExtendedLifetime(keeper) {} }
                (store, door, ring, backend) = try Self.connect(run, domid)
                break
            } catch {
                attempts -= 1
                guard attempts > 0 else { throw error }
                usleep(100_000)
            }
        }
        try monitor.send(Array("{}".utf8), descriptors: [ring.number, backend.number])
    }

    /// Gives the back ends an interface's end of its network.
    func connect(interface number: Int, _ port: Descriptor) throws(HostFailure) {
        try monitor.send(Array("{\"interface\":\(number)}".utf8), descriptors: [port.number])
    }

    /// Writes the domain's nodes.
    func publish(_ config: DomainConfig, _ places: DomainTree.Places) throws {
        // An HVM guest would wait for a keyboard that nobody serves.
        let services: DomainTree.Services =
            config.kind == .hvm
            ? [.console, .disks, .interfaces] : [.console, .disks, .interfaces, .frameBuffer, .keyboard]
        try store.write(DomainTree(config, services: services, places: places))
    }

    /// Takes the domain out of the store.
    func end() {
        try? store.removeTree(domid: domid, uuid: uuid)
        try? door.send(Array("{\"release\":\(domid)}".utf8))
        _ = try? door.receive()
    }
}
