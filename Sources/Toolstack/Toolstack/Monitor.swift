// What stays behind of `xl create`: one process per domain that starts the domain's processes and acts on its end.
// Source: design.md §2; xl.cfg(5), "EVENT ACTIONS"; log lines say what xl's own monitor says.
// Modelled: set-up with its errors, restart with a new number, preserve, destroy, the death of any process.
// Quirks: it is two processes: the worker below, and a parent that removes what the worker leaves if it is killed.

internal import DomainConfig
internal import DomainProcess
internal import Foundation
internal import Host
internal import XenStoreClient

/// Runs as `xl .monitor DIRECTORY`: descriptor 3 is the status pipe to `xl create`, 4 the domain's lock.
public final class Monitor {
    enum Phase { case starting, running, ending }

    let run: RunDirectory
    let programs: String
    let reactor: Reactor
    var directory: DomainDirectory
    var record: DomainRecord
    var config: DomainConfig
    var lock: Descriptor
    /// To `xl create`; nil once it has its answer.
    var report: Descriptor?
    var server: LineServer?
    var service: DomainService?
    /// Whether the user wants the domain paused at first.
    var startsPaused = false
    var members: [Member] = []
    /// How many processes the domain has once all are started.
    var memberCount = 0
    /// The way to the process of user networks, if there is one; it ends with it.
    var userNetworks: MessageSocket?
    var phase = Phase.starting
    /// The first thing that went wrong, and which program it was.
    var failure: (program: Member.Program, sentence: String)?
    /// How the domain ended, as far as known.
    var reason: String?
    var deadline: UInt64?
    var destroyers: [(String) -> Void] = []
    var destroyed = false
    /// The config before a boot loader has filled it in.
    var asConfigured: DomainConfig?
    /// Whether a boot loader runs.
    var isLoading = false
    /// The domain's memory, for a core file after its end.
    var core: CoreDump?
    /// Keeps the store running while the domain has no connection to it.
    var storeKeeper: StoreClient?
    /// Those who want to know how the domain ends.
    var waiters: [(String) -> Void] = []
    /// The answer for them, once it has ended.
    var endAnswer: String?

    /// Serves until the domain is gone for good. The exit code of the process.
    public static func main(directory path: String, paused: Bool, programs: String) -> Int32 {
        let lock = Descriptor(owning: 4)
        let report = Descriptor(owning: 3)
        let url = URL(fileURLWithPath: path)
        do {
            let run = try RunDirectory(url.deletingLastPathComponent().deletingLastPathComponent().path)
            adoptOrphans()
            if let worker = try forkWorker() {
                closeInGuardian(lock, report)
                return guardWorker(worker, run: run)
            }
            ignoreBrokenPipes()
            let monitor = try Monitor(
                run: run, directory: DomainDirectory(path), programs: programs, lock: lock, report: report)
            return try monitor.serve(paused: paused)
        } catch {
            log("the monitor cannot work: \(error)")
            return 1
        }
    }

    /// The guardian must not hold the lock or the pipe: both end with the worker.
    private static func closeInGuardian(_ lock: Descriptor, _ report: Descriptor) {
        closeDescriptor(lock.number)
        closeDescriptor(report.number)
    }

    private static func guardWorker(_ worker: Int32, run: RunDirectory) -> Int32 {
        var code: Int32 = 0
        while let (pid, end) = waitForAnyChild() {
            guard pid == worker else { continue }
            if case .exit(let number) = end { code = number } else { code = 1 }
            if case .signal = end { log("the domain's monitor \(end): ending the domain") }
        }
        _ = run.domains()
        return code
    }

    private init(
        run: RunDirectory, directory: DomainDirectory, programs: String, lock: Descriptor, report: Descriptor
    ) throws {
        (self.run, self.directory, self.programs) = (run, directory, programs)
        (self.lock, self.report) = (lock, report)
        reactor = try Reactor()
        record = try directory.readRecord()
        config = try directory.readConfig()
        reactor.nextDeadline = { [unowned self] in deadline }
        reactor.onDeadline = { [unowned self] in onDeadline() }
    }

    private func serve(paused: Bool) throws -> Int32 {
        let signals = try signalDescriptor([15, 2, 1])
        reactor.watch(signals.number) { [unowned self] _ in
            _ = try? HostFile.readAvailable(signals.number, limit: 128)
            Self.log("told to end: destroying domain \(record.domid)")
            destroy()
        }
        var startsPaused = paused
        var answered = false
        while true {
            let started = monotonicNanoseconds()
            runDomain(paused: startsPaused)
            startsPaused = false
            let failed = failure != nil && record.state == .building
            if failed { explainFailure(toCreator: !answered) }
            answered = true
            logEnd()
            let next = failed ? .destroy : slowed(action(), since: started)
            guard try follow(next) else { return failed ? 3 : 0 }
            pause(since: started)
        }
    }

    /// One life of the domain: from the start of its processes until the end of the last one.
    private func runDomain(paused: Bool) {
        startsPaused = paused
        (phase, failure, reason, members, endAnswer) = (.starting, nil, nil, [], nil)
        do {
            // 120 seconds: a host under heavy load may need many to set up; for ever would hide a hang.
            deadline = monotonicNanoseconds() + 120_000_000_000
            server = try LineServer(path: directory.monitor, reactor: reactor) { [unowned self] line, answer in
                serve(line, answer)
            }
            try load()
            if !destroyed { try startMembers() }
        } catch {
            let culprit = config.kind == .hvm ? Member.Program.deviceModel : isLoading ? .bootloader : .backend
            fail(members.isEmpty ? culprit : .hypervisor, "\(error)")
        }
        updateRecord()
        while !members.isEmpty { reactor.turn() }
        deadline = nil
    }

    private func startMembers() throws {
        let service = try DomainService(run, domid: record.domid, uuid: record.uuid)
        self.service = service
        watchStore(service)
        let models = config.kind == .hvm ? try MessageSocket.pair() : nil
        let backends = try MessageSocket.pair()
        memberCount = config.kind == .hvm ? 3 : 2
        let cards = try makeNetworks(service)
        if let models { try start(.deviceModel, [models.1.descriptor.number] + cards.map(\.number)) }
        withExtendedLifetime(cards) {}
        let ends = [backends.1, service.backendsMonitor].map(\.descriptor.number)
        try start(.backend, [ends[0], service.ring.number, service.backend.number, ends[1]])
        // It stands until its nodes are in the store.
        try start(
            .hypervisor, [models?.0.descriptor.number, backends.0.descriptor.number], ["--backend", "--paused"])
    }

    /// Puts another store in the place of one that dies: its tree is on disk, and the domain needs it.
    private func watchStore(_ service: DomainService) {
        let number = service.descriptor
        reactor.watch(number) { [unowned self, unowned service] _ in
            reactor.unwatch(number)
            guard phase != .ending else { return }
            Self.log("domain \(record.domid): xenstored has died; another one takes over")
            do {
                try service.restore(run, programs: programs)
                watchStore(service)
            } catch { Self.log("domain \(record.domid): no xenstored any more: \(error)") }
        }
    }

    func start(_ program: Member.Program, _ peers: [Int32?], _ options: [String] = []) throws {
        let member = try Member(program, programs: programs, directory: directory, peers: peers, options: options)
        members.append(member)
        reactor.watch(member.status.number) { [unowned self] _ in
            if !member.readStatus() { reactor.unwatch(member.status.number) }
            onStatus(of: member)
        }
        reactor.watch(member.process.ended.number) { [unowned self] _ in onEnd(of: member) }
    }

    func forget(_ member: Member) {
        reactor.unwatch(member.status.number)
        reactor.unwatch(member.process.ended.number)
        members.removeAll { $0 === member }
    }

    func updateRecord() {
        // `xl rename` changes the file.
        if let current = try? directory.readRecord() { record.name = current.name }
        record.monitor = ownProcess()
        record.hypervisor = members.first { $0.program == .hypervisor }?.process.pid ?? 0
        record.deviceModel = members.first { $0.program == .deviceModel }?.process.pid ?? 0
        record.backend = members.first { $0.program == .backend }?.process.pid ?? 0
        do { try directory.write(record) } catch { Self.log("cannot write the domain's record: \(error)") }
    }

    /// The processes are set up: the domain runs.
    func announce() {
        // It may end as soon as it runs.
        holdMemory()
        do { try enterStore() } catch { return fail(.backend, "\(error)") }
        phase = .running
        deadline = nil
        record.state = .running
        removeLoaded()
        storeKeeper = nil
        updateRecord()
        Self.log("domain \(record.domid) (\(record.name)) runs: monitor \(ownProcess())")
        tell(StatusLine(ready: true))
    }

    /// Writes the domain's nodes and lets it run.
    private func enterStore() throws {
        guard let service, let known = members.first(where: { $0.program == .hypervisor })?.places else { return }
        var places = DomainTree.Places()
        (places.storePort, places.storeFrame) = (known.storePort, known.storeFrame)
        (places.consolePort, places.consoleFrame) = (known.consolePort, known.consoleFrame)
        places.startTime = record.created
        places.consoleTerminal = Self.terminal(directory.pvConsole(of: config.kind))
        if config.kind == .hvm {
            places.deviceModel = record.deviceModel
            places.serialTerminal = Self.terminal(directory.console)
            places.vnc = directory.vncAddress.map { ($0.host, $0.port) }
        }
        try service.publish(config, places)
        try runScripts(isComing: true)
        if !startsPaused { _ = try Control.ask(directory.control, ControlRequest("unpause")) }
    }

    /// What a console's link leads to.
    private static func terminal(_ link: String) -> String? {
        try? FileManager.default.destinationOfSymbolicLink(atPath: link)
    }

    func tell(_ line: StatusLine) {
        guard let report, let bytes = try? JSONEncoder().encode(line) else { return }
        try? HostFile.write([UInt8](bytes) + [10], to: report.number)
        self.report = nil
    }

    private func explainFailure(toCreator: Bool) {
        guard let failure else { return }
        let sentence = "\(failure.program.rawValue): \(failure.sentence)"
        Self.log("domain \(record.domid) was not started: \(sentence)")
        let tail = HostFile.tail(directory.log(of: failure.program.rawValue), limit: 4096)
        let all = String(decoding: tail, as: UTF8.self).split(separator: "\n").map(String.init)
        // Its last line often is the error again.
        let lines = Array(all.filter { $0 != sentence }.suffix(8))
        if toCreator { pendingReport = StatusLine(error: sentence, log: lines) }
    }
    /// Told once nothing of the domain is left.
    var pendingReport: StatusLine?

    private func serve(_ line: String, _ answer: @escaping (String) -> Void) {
        guard let request = try? JSONDecoder().decode(ControlRequest.self, from: Data(line.utf8)) else {
            return answer(#"{"error":"a request is one JSON object with a command"}"#)
        }
        switch request.command {
        case "destroy":
            destroyers.append(answer)
            destroy()
        case "wait": if let known = endAnswer { answer(known) } else { waiters.append(answer) }
        case "status": answer(#"{"ok":true}"#)
        case "network-attach":
            do {
                try attach(request.target)
                answer(#"{"ok":true}"#)
            } catch {
                let reply = try? JSONEncoder().encode(ControlReply(error: "\(error)"))
                answer(String(decoding: reply ?? Data(), as: UTF8.self))
            }
        default: answer(#"{"error":"the monitor knows destroy, wait, network-attach and status only"}"#)
        }
    }

    static func log(_ line: String) {
        let formatter = ISO8601DateFormatter()
        FileHandle.standardError.write(Data("\(formatter.string(from: Date())) \(line)\n".utf8))
    }
}
