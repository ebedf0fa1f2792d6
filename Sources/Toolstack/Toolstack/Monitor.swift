// What stays behind of `xl create`: one process per domain that starts the domain's processes and acts on its end.
// Source: design.md §2; xl.cfg(5), "EVENT ACTIONS"; log lines say what xl's own monitor says.
// Modelled: set-up with its errors, restart with a new number, preserve, destroy, the death of any process.
// Quirks: it is two processes: the worker below, and a parent that removes what the worker leaves if it is killed.

internal import DomainConfig
internal import Foundation
internal import Host

/// Runs as `xl .monitor DIRECTORY`: descriptor 3 is the status pipe to `xl create`, 4 the domain's lock.
public final class Monitor {
    enum Phase { case starting, running, ending }

    let run: RunDirectory
    let programs: String
    let reactor: Reactor
    var directory: DomainDirectory
    var record: DomainRecord
    var config: DomainConfig
    private var lock: Descriptor
    /// To `xl create`; nil once it has its answer.
    private var report: Descriptor?
    private var server: LineServer?
    private var service: DomainService?
    /// Whether the user wants the domain paused at first.
    private var startsPaused = false
    var members: [Member] = []
    var phase = Phase.starting
    /// The first thing that went wrong, and which program it was.
    var failure: (program: Member.Program, sentence: String)?
    /// How the domain ended, as far as known.
    var reason: String?
    var deadline: UInt64?
    private var destroyers: [(String) -> Void] = []
    var destroyed = false
    /// The config before a boot loader has filled it in.
    var asConfigured: DomainConfig?
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
            try startMembers()
        } catch {
            fail(!members.isEmpty ? .hypervisor : config.kind == .hvm ? .deviceModel : .backend, "\(error)")
        }
        updateRecord()
        while !members.isEmpty { reactor.turn() }
        deadline = nil
    }

    private func startMembers() throws {
        let (first, second) = try MessageSocket.pair()
        guard config.kind != .hvm else {
            try start(.deviceModel, [second.descriptor.number])
            return try start(.hypervisor, [first.descriptor.number], startsPaused ? ["--paused"] : [])
        }
        let service = try DomainService(run, domid: record.domid, uuid: record.uuid)
        self.service = service
        try start(.backend, [second.descriptor.number, service.ring.number, service.backend.number])
        // It stands until its nodes are in the store.
        try start(.hypervisor, [nil, first.descriptor.number], ["--backend", "--paused"])
    }

    private func start(_ program: Member.Program, _ peers: [Int32?], _ options: [String] = []) throws {
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
        do { try enterStore() } catch { return fail(.backend, "\(error)") }
        phase = .running
        deadline = nil
        record.state = .running
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
        places.consoleTerminal = try? FileManager.default.destinationOfSymbolicLink(atPath: directory.console)
        try service.publish(config, places)
        if !startsPaused { _ = try Control.ask(directory.control, ControlRequest("unpause")) }
    }

    private func tell(_ line: StatusLine) {
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
    private var pendingReport: StatusLine?

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
        default: answer(#"{"error":"the monitor knows destroy, wait and status only"}"#)
        }
    }

    /// Does what `action` says; false if the monitor is no longer needed.
    private func follow(_ action: DomainConfig.EventAction) throws -> Bool {
        switch action {
        case .destroy, .coredumpDestroy:
            remove()
            return false
        case .preserve:
            preserve()
            return false
        case .renameRestart:
            try restartBeside()
            preserve()
            return false
        case .restart, .coredumpRestart, .softReset:
            try restart()
            return true
        }
    }

    private func remove() {
        server?.close()
        service?.end()
        service = nil
        updateRecord()
        run.keepLogs(of: directory, name: record.name)
        HostFile.remove(directory.path)
        Self.log("domain \(record.domid) is gone")
        tell(pendingReport ?? StatusLine(error: "it was destroyed while it was set up"))
        for answer in destroyers { answer(#"{"ok":true}"#) }
        destroyers = []
    }

    /// Keeps the ended domain in the list until someone destroys it.
    private func preserve() {
        record.state = .shutdown
        record.reason = reason
        updateRecord()
        tell(pendingReport ?? StatusLine(ready: true))
        Self.log("domain \(record.domid) is kept until it is destroyed")
        while !destroyed { reactor.turn() }
        remove()
    }

    /// The same domain again, with a new number.
    private func restart() throws {
        let made = try run.locked {
            config = try directory.readConfig()
            config.name = record.name
            config.domid = try run.allocateDomid()
            return try run.makeDomain(config, settings: try directory.readSettings())
        }
        remove()
        (directory, lock) = made
        record = try directory.readRecord()
        Self.log("starting it again as domain \(record.domid)")
    }

    /// A new domain under the old name, with a monitor of its own; this one gets another name.
    private func restartBeside() throws {
        let oldName = record.name
        let made = try run.locked {
            var next = try directory.readConfig()
            next.name = oldName
            next.domid = try run.allocateDomid()
            record.name = "\(oldName)-\(record.domid)"
            try directory.write(record)
            return try run.makeDomain(next, settings: try directory.readSettings())
        }
        let null = try HostFile.open("/dev/null", .write)
        let program = DomainStarter(run: run, programs: programs)
        _ = try program.startMonitor(made.directory, name: oldName, lock: made.lock, report: null, paused: false)
    }

    /// A domain that crashes as soon as it starts is not started again and again (as in xend: 20 seconds).
    private func slowed(_ action: DomainConfig.EventAction, since started: UInt64) -> DomainConfig.EventAction {
        guard monotonicNanoseconds() - started < 20_000_000_000 else { return action }
        let calmer: DomainConfig.EventAction
        switch action {
        case .renameRestart: calmer = .preserve
        case .restart where reason == "crash": calmer = .destroy
        case .coredumpRestart where reason == "crash": calmer = .destroy
        default: return action
        }
        Self.log("it lived less than 20 seconds: \(calmer.rawValue) instead of \(action.rawValue)")
        return calmer
    }

    /// A domain that reboots as soon as it starts must not keep the host busy.
    private func pause(since started: UInt64) {
        let lived = monotonicNanoseconds() - started
        guard lived < 1_000_000_000 else { return }
        Thread.sleep(forTimeInterval: 1 - Double(lived) / 1e9)
    }

    static func log(_ line: String) {
        let formatter = ISO8601DateFormatter()
        FileHandle.standardError.write(Data("\(formatter.string(from: Date())) \(line)\n".utf8))
    }
}
