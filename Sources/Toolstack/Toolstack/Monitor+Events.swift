// What a monitor does when something happens to its domain.
// Source: xl.cfg(5), "EVENT ACTIONS"; reason codes of Xen's sched.h (SHUTDOWN_poweroff and so on).
// Modelled: set-up, its failure, ends of processes in any order, deadlines.
// Quirks: the first failure is the one that is told; what follows from it (a hang-up) is not.

internal import DomainConfig
internal import Foundation
internal import Host

extension Monitor {
    func onStatus(of member: Member) {
        if let sentence = member.error, phase == .starting { fail(member.program, sentence) }
        if phase == .starting, members.count == memberCount, members.allSatisfy(\.isReady) { announce() }
        guard member.program == .hypervisor, let exit = member.exit else { return }
        reason = reason ?? exit
        if phase == .starting && member.isReady {
            // It ran, and ended before the others' word came; or it ended because one of them did.
            for peer in members where peer !== member { hear(peer) }
            if members.allSatisfy(\.isReady) { announce() } else { fail(member.program, "the device model ended") }
        }
        end()
    }

    func onEnd(of member: Member) {
        drain(member)
        onStatus(of: member)
        let end = member.process.reap()
        forget(member)
        let text = end.map(\.description) ?? "ended"
        if phase == .starting {
            // A clean end is what a hang-up of the peer looks like: the peer may be ending right now.
            if end == .exit(0), !members.isEmpty { hearOthers() }
            if phase == .starting { fail(member.program, "it \(text) before it was set up") }
        } else if phase == .running {
            if member.program != .hypervisor || member.exit == nil {
                failure = failure ?? (member.program, "it \(text) while the domain ran")
                Self.log("domain \(record.domid): \(member.program.rawValue) \(text)")
                reason = "crash"
            }
            self.end()
        } else if end != .exit(0), !member.isKilled {
            Self.log("domain \(record.domid): \(member.program.rawValue) \(text)")
        }
    }

    /// Reads what a process has said and nobody has read yet.
    private func drain(_ member: Member) {
        while !HostFile.waitReadable([member.status.number], milliseconds: 0).isEmpty, member.readStatus() {}
    }

    /// Reads what a process says until it is ready, or has ended; at most for five seconds.
    private func hear(_ member: Member) {
        let limit = monotonicNanoseconds() + 5_000_000_000
        drain(member)
        while !member.isReady, member.error == nil, monotonicNanoseconds() < limit {
            let readable = HostFile.waitReadable(
                [member.status.number, member.process.ended.number], milliseconds: 5000)
            drain(member)
            if readable.contains(member.process.ended.number) { return }
        }
    }

    /// Gives the other processes time to end, until one of them has failed, and reads what they said before.
    private func hearOthers() {
        let limit = monotonicNanoseconds() + 5_000_000_000
        var running = members
        while !running.isEmpty, monotonicNanoseconds() < limit {
            _ = HostFile.waitReadable(running.map(\.process.ended.number), milliseconds: 1000)
            if running.contains(where: { $0.process.reap().map { $0 != .exit(0) } ?? false }) { break }
            running.removeAll { $0.process.reap() != nil }
        }
        for peer in members {
            drain(peer)
            onStatus(of: peer)
        }
    }

    /// Notes why the domain cannot start. A process that only says that another one has ended is not the cause.
    func fail(_ program: Member.Program, _ sentence: String) {
        for peer in members where failure == nil && !peer.isKilled && peer.program != program {
            // What the peer says of itself comes before its end, which can take a while on a busy machine.
            if Self.blamesPeer(sentence) {
                _ = HostFile.waitReadable([peer.status.number, peer.process.ended.number], milliseconds: 5000)
                drain(peer)
                if peer.error == nil { _ = HostFile.waitReadable([peer.process.ended.number], milliseconds: 5000) }
            }
            drain(peer)
            if let error = peer.error {
                if !Self.blamesPeer(error) { failure = (peer.program, error) }
            } else if let end = peer.process.reap(), end != .exit(0) {
                // A clean end is what follows from the failure of another.
                failure = (peer.program, "it \(end) before it was set up")
            }
        }
        failure = failure ?? (program, sentence)
        end()
        for member in members where member.program != program { member.kill() }
    }

    /// Whether a program's sentence is that another one has ended: each begins it in the same words.
    private static func blamesPeer(_ sentence: String) -> Bool {
        ["the device model ended", "the hypervisor ended", "the back ends ended"].contains { sentence.hasPrefix($0) }
    }

    /// The domain is over: what is left of its processes gets two seconds to end by itself.
    func end() {
        guard phase != .ending else { return }
        if phase == .running { try? runScripts(isComing: false) }
        phase = .ending
        userNetworks = nil
        deadline = monotonicNanoseconds() + 2_000_000_000
    }

    func destroy() {
        destroyed = true
        reason = "destroy"
        end()
        // The guest stops at once; the device model ends when it sees that its peer is gone.
        members.first { $0.program == .hypervisor }?.kill()
    }

    func onDeadline() {
        if phase == .starting {
            let late = members.first { !$0.isReady }?.program ?? .hypervisor
            fail(late, "it was not set up after two minutes")
        }
        deadline = nil
        for member in members { member.kill() }
    }

    func logEnd() {
        updateRecord()
        guard failure == nil || record.state != .building else { return }
        let reason = reason ?? "crash"
        self.reason = reason
        let code = ShutdownReason(rawValue: reason).map { ", reason code \($0.code)" } ?? ""
        Self.log("domain \(record.domid) has ended: \(reason)\(code)")
        (record.state, record.reason) = (.shutdown, reason)
        updateRecord()
        tellWaiters(reason)
        guard reason == "crash" else { return }
        for program in ["hypervisor", "device-model", "backend", "network"] {
            let tail = String(decoding: HostFile.tail(directory.log(of: program), limit: 2048), as: UTF8.self)
            for line in tail.split(separator: "\n").suffix(10) { Self.log("  \(program): \(line)") }
        }
    }

    private func tellWaiters(_ reason: String) {
        let answer = "{\"ok\":true,\"reason\":\"\(reason)\"}"
        endAnswer = answer
        for waiter in waiters { waiter(answer) }
        waiters = []
    }

    /// What the config says is to be done about the end.
    func action() -> DomainConfig.EventAction {
        if destroyed { return .destroy }
        let action: DomainConfig.EventAction
        switch reason {
        case "poweroff": action = config.onPoweroff
        case "reboot": action = config.onReboot
        case "watchdog": action = config.onWatchdog
        case "destroy": action = .destroy
        case "soft-reset": action = .softReset
        default: action = config.onCrash
        }
        Self.log("action for this: \(action.rawValue)")
        return action
    }
}
