// The hypervisor process around one domain: handshake, control socket, signals, and the report of how it ended.
// Source: docs/ARCHITECTURE.md, "Processes".
// Modelled: descriptor 3 takes status lines, 4 leads to the device model, 5 to the back ends.
// Quirks: "shutdown" and "reboot" need PV drivers in the guest, as with xl; without them they are refused.

internal import Chips
internal import DomainConfig
public import DomainProcess
internal import Foundation
public import Host
internal import Ioreq
internal import Processor
internal import Synchronization

public final class Hypervisor {
    private let directory: String
    private let config: DomainConfig
    private let deviceModel: MessageSocket
    private let backend: MessageSocket?
    private let doorbell: HostEvent
    private let ended: HostEvent
    private let domain: Domain
    private let reactor: Reactor
    private let journal = Journal()
    private var control: LineServer?
    private var link: BackendLink?
    private var places: SpecialPlaces?
    private var signals: Descriptor?
    private let tscStart: (nanoseconds: UInt64, ticks: UInt64)

    /// Makes the domain and hands its memory to its other processes. Nothing of the guest runs yet.
    public init(directory: String, deviceModel: MessageSocket, backend: MessageSocket?) throws {
        (self.directory, self.deviceModel, self.backend) = (directory, deviceModel, backend)
        tscStart = Clock.sample()
        let json = try HostFile.read(directory + "/config.json")
        config = try JSONDecoder().decode(DomainConfig.self, from: Data(json))
        let make = try unsafe EngineFactory.maker(
            config.engine, override: ProcessInfo.processInfo.environment["APUS_ENGINE"])
        reactor = try Reactor()
        (doorbell, ended) = (try HostEvent(), try HostEvent())
        let uuid = UUID(uuidString: config.uuid)?.uuid
        let handle =
            uuid.map { unsafe withUnsafeBytes(of: $0) { unsafe Array($0) } } ?? [UInt8](repeating: 0, count: 16)
        let journal = journal
        domain = try Domain(
            config, doorbell: doorbell.descriptor, ended: ended, tsc: Clock.frequency(since: tscStart),
            handle: handle, log: { journal.add($0) })
        unsafe domain.makeVCPUs(make)
        signals = try signalDescriptor([SIGTERM, SIGINT, SIGHUP])
    }

    private struct Hello: Codable {
        var ramBytes: UInt64
        var vcpus: Int
    }

    /// Waits for the domain's other processes, then runs the domain until it ends.
    public func run(paused: Bool, ready: (SpecialPlaces?) throws -> Void) throws -> EndReason {
        let start = config.kind == .hvm ? nil : try build()
        if config.kind == .hvm { try meetDeviceModel() }
        // The emulated disks are locked by now; back ends take those that guests unplug.
        try meetBackends()
        if let start { domain.begin(start) }
        try watch()
        let programs = domain.vcpus.compactMap { $0.directExecution?.processNumber }
        try (Confinement.tracing(programs) + .hypervisor).enter(as: "hypervisor")
        try domain.start(paused: paused)
        try ready(places)
        reactor.run()
        control?.close()
        return domain.endReason ?? .crash
    }

    private func meetDeviceModel() throws {
        let memory = domain.memory
        let hello = Hello(ramBytes: memory.ram.size, vcpus: config.vcpus)
        let descriptors = [
            memory.ram.memory.descriptor, memory.ram.codeMap.descriptor, domain.pages.memory.descriptor,
            memory.video.descriptor, doorbell.descriptor,
        ]
        try deviceModel.send(Array(try JSONEncoder().encode(hello)), descriptors: descriptors.map(\.number))
        guard try deviceModel.receive() != nil else {
            throw SetupFailure("the device model ended before it was ready (see device-model.log)")
        }
    }

    /// Lays a PV or PVH domain into memory; how its first vCPU starts.
    private func build() throws -> VCPUStart {
        guard backend != nil else { throw SetupFailure("there is no socket to the back ends") }
        domain.pages.isPeerGone = true
        guard config.kind == .pv else { return .flat(try domain.buildPVH()) }
        let (start, places) = try domain.buildPV()
        self.places = places
        return start
    }

    /// An HVM domain can do without back ends; its guest then finds no xenstore.
    private func meetBackends() throws {
        guard let backend else { return }
        let places = try places.map { domain.grantSpecialPages($0) } ?? domain.bindSpecialPages()
        let link = try BackendLink(backend, domain)
        try link.meet(places)
        link.attach(to: reactor) { [domain] in
            domain.log("the back ends have ended")
            domain.finish(.crash)
        }
        (self.link, self.places) = (link, places)
    }

    private func watch() throws {
        reactor.watch(ended.descriptor.number) { [reactor] _ in reactor.stop() }
        if config.kind == .hvm {
            reactor.watch(deviceModel.descriptor.number) { [domain] _ in
                domain.pages.isPeerGone = true
                domain.log("the device model has ended")
                domain.finish(.crash)
            }
        }
        if let signals { reactor.watch(signals.number) { [domain] _ in domain.finish(.destroy) } }
        control = try LineServer(path: directory + "/control.sock", reactor: reactor) { [unowned self] line, answer in
            answer(self.answer(line))
        }
    }
}

extension Confinement {
    /// Memory, code caches and sockets are made; memory for new frames may still be.
    static var hypervisor: Confinement { .living + .events + .conversation + .memoryFiles }
}

/// The control protocol: one JSON object a line.
extension Hypervisor {
    private struct Request: Codable {
        var command: String
        /// The vCPU that "nmi" is for; 0 if there is none.
        var vcpu: Int?
    }

    private struct Reply: Codable {
        struct Processor: Codable {
            var cpuSeconds: Double
            var state: String
            /// false while the guest has it switched off.
            var online: Bool
        }
        var ok: Bool?
        var error: String?
        var state: String?
        var cpuSeconds: Double?
        var vcpus: [Processor]?
        var memoryKiB: Int?
        /// How often vCPUs left guest code.
        var exits: UInt64?
        var statistics: DomainStatistics?
        var log: String?
    }

    private func answer(_ line: String) -> String {
        let reply: Reply
        if let request = try? JSONDecoder().decode(Request.self, from: Data(line.utf8)) {
            reply = request.command == "nmi" ? sendNMI(request.vcpu ?? 0) : carryOut(request.command)
        } else {
            reply = Reply(error: "not a command: \(line.prefix(80))")
        }
        let json = (try? JSONEncoder().encode(reply)) ?? Data("{\"error\":\"no answer\"}".utf8)
        return String(decoding: json, as: UTF8.self)
    }

    private func carryOut(_ command: String) -> Reply {
        switch command {
        case "pause": domain.pause()
        case "unpause": domain.unpause()
        case "destroy": domain.finish(.destroy)
        case "status": return status
        case "statistics":
            var reply = status
            reply.statistics = DomainStatistics(of: domain)
            return reply
        case "log": return Reply(ok: true, log: journal.text)
        case "memory": return handOverMemory()
        case "shutdown", "reboot":
            return Reply(
                error: "PV control interface not available: external graceful \(command) not possible")
        default: return Reply(error: "unknown command \(command)")
        }
        return Reply(ok: true)
    }

    private func sendNMI(_ vcpu: Int) -> Reply {
        guard domain.vcpus.indices.contains(vcpu) else { return Reply(error: "there is no vCPU \(vcpu)") }
        domain.sendNMI(vcpu)
        return Reply(ok: true)
    }

    /// Gives the guest's memory to the socket that came with the command: for core files.
    private func handOverMemory() -> Reply {
        guard let socket = control?.enclosed.first else { return Reply(error: "no socket came with the command") }
        do throws(HostFailure) {
            try MessageSocket(socket).send([1], descriptors: [domain.memory.ram.memory.descriptor.number])
        } catch { return Reply(error: "\(error)") }
        return Reply(ok: true)
    }

    private var status: Reply {
        let paused = domain.isPaused
        let processors = domain.vcpus.map { vcpu in
            Reply.Processor(
                cpuSeconds: Double(vcpu.cpuNanoseconds) / 1e9, state: paused ? "p" : vcpu.isSleeping ? "b" : "r",
                online: vcpu.isUp && !vcpu.isDead)
        }
        let missing = min(domain.ramFrames, domain.xen.reservation.missing)
        let state = paused ? "p" : processors.contains { $0.state == "r" } ? "r" : "b"
        return Reply(
            ok: true, state: state, cpuSeconds: processors.reduce(0) { $0 + $1.cpuSeconds }, vcpus: processors,
            memoryKiB: Int((domain.ramFrames - missing) << 2),
            exits: domain.vcpus.reduce(0) { $0 &+ $1.counters.exits })
    }
}
