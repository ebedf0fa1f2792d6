// What a monitor does once its domain has ended: removal, restart, core file.
// Source: xl.cfg(5), "EVENT ACTIONS"; names of kept domains and core files are those of xl.
// Modelled: all actions. A soft reset is a restart here: nothing of the old memory is kept for it.
// Quirks: a guest that crashes within its first minute is not started again and again (xend's rule; xl has none).

internal import DomainConfig
internal import DomainProcess
internal import Foundation
internal import Host

extension Monitor {
    /// Does what `action` says; false if the monitor is no longer needed.
    func follow(_ action: DomainConfig.EventAction) throws -> Bool {
        if [.coredumpDestroy, .coredumpRestart].contains(action) { dumpCore() }
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

    /// Opens the memory while the hypervisor lives, if a core file may be wanted.
    func holdMemory() {
        let actions = [config.onPoweroff, config.onReboot, config.onCrash, config.onWatchdog]
        guard actions.contains(where: { [.coredumpDestroy, .coredumpRestart].contains($0) }) else { return }
        do throws(ToolstackError) {
            core = try CoreDump(config, control: directory.control)
        } catch {
            Self.log("there will be no core file: \(error.message)")
        }
    }

    private func dumpCore() {
        guard let core else { return }
        self.core = nil
        let file = "\(run.path)/dump/\(record.name.replacing("/", with: "_"))"
        do {
            try HostFile.makeDirectory(run.path + "/dump")
            Self.log("dumping core to \(file)")
            try core.write(to: file)
        } catch {
            Self.log("dumping core failed: \(error)")
        }
    }

    func remove() {
        // All processes may have ended in the turn in which somebody began to ask how.
        server?.serveReceived()
        server?.close()
        if let service { reactor.unwatch(service.descriptor) }
        service?.end()
        (service, core) = (nil, nil)
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
            config = unloaded(try directory.readConfig())
            config.name = record.name
            config.domid = try run.allocateDomid()
            storeKeeper = try run.openStore(programs: programs)
            return try run.makeDomain(config, settings: try directory.readSettings())
        }
        remove()
        (directory, lock) = made
        record = try directory.readRecord()
        Self.log("starting it again as domain \(record.domid)")
    }

    /// A new domain under the old name, with a monitor of its own; this one gets the time as a part of its name.
    private func restartBeside() throws {
        let oldName = record.name
        let made = try run.locked {
            var next = unloaded(try directory.readConfig())
            next.name = oldName
            next.domid = try run.allocateDomid()
            record.name = oldName + Self.suffix(Date())
            if run.domains().contains(where: { $0.name == record.name }) { record.name += "-\(record.domid)" }
            try directory.write(record)
            return try run.makeDomain(next, settings: try directory.readSettings())
        }
        let null = try HostFile.open("/dev/null", .write)
        let program = DomainStarter(run: run, programs: programs)
        _ = try program.startMonitor(made.directory, name: oldName, lock: made.lock, report: null, paused: false)
    }

    /// As xl names what it keeps: "-20260101T1200Z".
    static func suffix(_ date: Date) -> String {
        let text = date.formatted(.iso8601.dateSeparator(.omitted).timeSeparator(.omitted))
        return "-\(text.prefix(13))Z"
    }

    /// A domain that crashes as soon as it has started is not started again and again.
    func slowed(_ action: DomainConfig.EventAction, since started: UInt64) -> DomainConfig.EventAction {
        guard monotonicNanoseconds() - started < 60_000_000_000, reason == "crash" || reason == "watchdog" else {
            return action
        }
        let calmer: DomainConfig.EventAction
        switch action {
        case .renameRestart: calmer = .preserve
        case .restart: calmer = .destroy
        case .coredumpRestart: calmer = .coredumpDestroy
        default: return action
        }
        Self.log("it lived less than 60 seconds: \(calmer.rawValue) instead of \(action.rawValue)")
        return calmer
    }

    /// A domain that reboots as soon as it starts must not keep the host busy.
    func pause(since started: UInt64) {
        let lived = monotonicNanoseconds() - started
        guard lived < 1_000_000_000 else { return }
        Thread.sleep(forTimeInterval: 1 - Double(lived) / 1e9)
    }
}
