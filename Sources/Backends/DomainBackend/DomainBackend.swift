// The back ends of one domain in one process: xenstore's ring, console, disks, interfaces.
// Source: docs/ARCHITECTURE.md, "Back ends".
// Modelled: one event loop for all of them.
// Quirks: after an event it looks for the next one for some microseconds before it sleeps, as guests send in bursts.

internal import ConsoleBackend
internal import DomainConfig
internal import DomainProcess
internal import Foundation
public import Host
internal import Images
internal import Ioreq
internal import Rings
internal import XenStoreClient

/// Why the back ends could not be set up, or could not go on.
public struct BackendFailure: Error, CustomStringConvertible {
    public let description: String
    init(_ description: String) { self.description = description }
}

public final class DomainBackend {
    /// Times to look for events between two looks at descriptors.
    private static let looks = 50

    private let reactor: Reactor
    private let link: HypervisorLink
    private let store: StoreClient
    private let readers: ConsoleReaders
    private let config: DomainConfig
    private let guestStore: Descriptor
    private let monitor: MessageSocket
    private let log: (String) -> Void
    private let consoleLog: ConsoleLog
    private let directory: String
    private(set) var control: LineServer?
    private var relay: StoreRelay?
    private var console: ConsoleBackend?
    private var disks: [BlockDevices] = []
    private let media: WaitingMedia
    private var interfaces: NetDevices?
    private let display: DisplayDevices?
    /// How long to look for the guest, and for a disk that works, before sleeping.
    private var patience = Patience(least: 30_000)
    private let diskPatience = Patience(least: Patience.limit)
    /// When the guest or a disk last did something, how much the disks and interfaces had done, and whether a disk has worked
    /// since.
    private var quietSince: UInt64 = 0
    private var lastActivity: UInt64 = 0
    private var wasDiskAwaited = false
    private var isRelayBusy = false
    private var isConsoleBusy = false

    /// `hypervisor`: its socket; `guestStore`: xenstored's connection of this domain; `store`: one of Domain-0's;
    /// `monitor`: where others of both come from if xenstored has to be started again.
    public init(
        directory: String, hypervisor: MessageSocket, guestStore: Descriptor, store: Descriptor,
        monitor: MessageSocket, log: @escaping (String) -> Void
    ) throws {
        (self.guestStore, self.monitor, self.log, self.directory) = (guestStore, monitor, log, directory)
        let json = try HostFile.read(directory + "/config.json")
        config = try JSONDecoder().decode(DomainConfig.self, from: Data(json))
        reactor = try Reactor()
        media = try WaitingMedia(config, on: reactor)
        link = try HypervisorLink(hypervisor)
        self.store = StoreClient(StoreSocket(store))
        readers = try ConsoleReaders(reactor: reactor)
        display =
            config.frameBuffer == true
            ? try DisplayDevices(config, directory: directory, link: link, store: self.store, reactor: reactor) : nil
        display?.onReport = log
        consoleLog = try ConsoleLog(directory + "/guest-console.log")
        // The first console of a domain with a board is its serial port.
        try HostFile.link(directory + (config.kind == .hvm ? "/pv-console" : "/console"), to: readers.terminal.path)
    }

    /// Serves until the hypervisor is gone.
    public func run(ready: () throws -> Void) throws {
        control = try serveControl(in: directory, on: reactor)
        try Confinement.backend.enter(as: "backend")
        try link.sayReady()
        // The hypervisor serves requests from now on.
        try serveGuestStore()
        try serveConsole()
        try serveDisks()
        try serveInterfaces()
        try display?.start()
        link.attach(to: reactor)
        try store.attach(to: reactor)
        store.onLost = { [log] in log("the connection to xenstored is lost: devices stay as they are") }
        reactor.watch(monitor.descriptor.number) { [unowned self] _ in hearMonitor() }
        reactor.watch(link.descriptor) { [unowned self] _ in if !link.isAlive { reactor.stop() } }
        reactor.onWake = { [unowned self] in
            link.wake()
            _ = link.serveEvents()
        }
        reactor.maySleep = { [unowned self] in maySleep() }
        try ready()
        reactor.run()
        for kind in disks { kind.stop() }
        interfaces?.stop()
        control?.close()
        display?.stop()
    }

    /// What all devices have done so far.
    var figures: BackendFigures {
        BackendFigures(
            devices: disks.flatMap(\.figures).sorted { $0.number < $1.number }, interfaces: interfaces?.figures,
            eventsReceived: link.eventsReceived,
            eventsSent: link.eventsSent)
    }

    /// Whether a device of this directory is served, or watched by the guest.
    func serves(_ path: String) -> Bool {
        disks.contains { $0.serves(path) } || interfaces?.serves(path) == true || relay?.isWatched(path) == true
    }

    /// How often the guest has looked at `StoreConversation.probe`; nil if it would not.
    var probeReads: UInt64? { relay?.probeReads }

    /// An interface's end of its network; or two connections to a xenstored that has taken the place of one that died:
    /// the guest's, and Domain-0's.
    private func hearMonitor() {
        guard let (message, descriptors) = try? monitor.receive() else {
            return reactor.unwatch(monitor.descriptor.number)
        }
        if let port = NetDevices.Offer(message), descriptors.count == 1 {
            interfaces?.connect(port.interface, descriptors[0])
            return
        }
        guard descriptors.count == 2 else { return log("a message of the monitor's makes no sense") }
        do {
            relay?.reconnect(descriptors[0])
            try store.reconnect(StoreSocket(descriptors[1]))
            for kind in disks { try kind.restate() }
            try interfaces?.restate()
            log("goes on with another xenstored")
        } catch { log("the new xenstored does not answer: \(error)") }
    }

    /// While a disk is in use it is looked at rather than waited for, and its guest needs to send no events.
    private func maySleep() -> Bool {
        var last = monotonicNanoseconds()
        for _ in 0..<Self.looks {
            let isHeard = link.serveEvents()
            if turn() { return false }
            let now = monotonicNanoseconds()
            // What a disk was just given shows when it is looked at again.
            let isDiskAwaited = disks.contains { $0.isWaiting }
            if isHeard || hasActivity() {
                noteActivity(now)
            } else if !isDiskAwaited {
                patience.note(gap: now &- last, at: now)
            } else {
                wasDiskAwaited = true
            }
            last = now
            guard now &- quietSince < (isDiskAwaited ? diskPatience : patience).nanoseconds(at: now) else {
                return disks.allSatisfy { $0.prepareToSleep() } && interfaces?.prepareToSleep() != false
                    && link.prepareToSleep()
            }
        }
        return false
    }

    /// Whether disks or interfaces have done anything since it was asked last.
    private func hasActivity() -> Bool {
        let activity = disks.reduce(interfaces?.activity ?? 0) { $0 &+ $1.activity }
        defer { lastActivity = activity }
        return activity != lastActivity
    }

    private func noteActivity(_ now: UInt64) {
        if !wasDiskAwaited { patience.note(waited: now &- quietSince) }
        (quietSince, wasDiskAwaited) = (now, false)
    }

    /// A piece of work for everyone who has some; whether more is left.
    private func turn() -> Bool {
        if isRelayBusy { isRelayBusy = relay?.turn() ?? false }
        if isConsoleBusy { isConsoleBusy = console?.turn() ?? false }
        var isBusy = isRelayBusy || isConsoleBusy
        if display?.turn() == true { isBusy = true }
        for kind in disks where kind.turn() { isBusy = true }
        if interfaces?.turn() == true { isBusy = true }
        return isBusy
    }

    private func serveGuestStore() throws {
        let port = try link.bind(link.places.storePort)
        guard
            let relay = StoreRelay(
                memory: link.memory, frame: link.places.storeFrame, port: port, socket: guestStore, reactor: reactor)
        else { throw BackendFailure("xenstore's ring is not in the guest's memory") }
        relay.onWork = { [unowned self] in isRelayBusy = true }
        relay.onEnd = log
        (self.relay, isRelayBusy) = (relay, true)
    }

    private func serveConsole() throws {
        let port = try link.bind(link.places.consolePort)
        guard let console = ConsoleBackend(memory: link.memory, frame: link.places.consoleFrame, port: port) else {
            throw BackendFailure("the console's ring is not in the guest's memory")
        }
        console.onWork = { [unowned self] in isConsoleBusy = true }
        console.onOutput = { [readers, consoleLog] bytes in
            readers.show(bytes)
            consoleLog.append(bytes)
        }
        readers.onInput = { [unowned console] in console.type($0) }
        (self.console, isConsoleBusy) = (console, true)
    }

    private func serveInterfaces() throws {
        let interfaces = try NetDevices(
            domid: config.domid, vcpus: config.vcpus, store: store, link: link, reactor: reactor)
        interfaces.onReport = log
        self.interfaces = interfaces
        reactor.nextDeadline = { [weak interfaces] in interfaces?.deadline }
    }

    private func serveDisks() throws {
        for kind in ["vbd", "qdisk"] {
            let devices = try BlockDevices(
                kind, domid: config.domid, vcpus: config.vcpus, store: store, link: link, media: media)
            devices.onReport = log
            disks.append(devices)
        }
    }

    /// A disk whose nodes are in the store, or will be, has its image now.
    func attach(_ files: ImageFiles, isDisc: Bool, number: Int) throws(ImageFailure) {
        try media.put(files, isDisc: isDisc, for: number)
        for kind in disks { kind.look() }
    }
}

extension Confinement {
    /// All files and ports are open; disks, networks and stores that come later come as descriptors.
    static var backend: Confinement { .living + .events + .conversation + .images }
}
