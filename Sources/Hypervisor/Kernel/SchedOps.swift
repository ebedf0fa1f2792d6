// sched_op: giving time away, waiting for events, and ending the domain.
// Source: Xen public/sched.h; xen/common/schedule.c (do_poll, vcpu_block).
// Modelled: yield, block, poll with timeout, shutdown, the watchdogs. Not modelled: pinning.
// Quirks: the vCPU leaves the call at once and its thread sleeps before it enters the guest again.

internal import CXen
internal import Synchronization

/// What each vCPU waits for by its own wish, and how it is to start.
final class VCPUWaits: Sendable {
    enum Wait: Equatable, Sendable {
        case event
        case poll([Int], deadline: UInt64?)
    }

    private struct State {
        var waits: [Wait?]
        var starts: [VCPUStart?]
    }
    private let state: Mutex<State>
    /// Bit n: vCPU n waits; so that the others need no lock to know.
    private let waiting = Atomic<UInt64>(0)

    init(vcpus: Int) {
        state = Mutex(
            State(
                waits: [Wait?](repeating: nil, count: vcpus), starts: [VCPUStart?](repeating: nil, count: vcpus)))
    }

    func begin(_ vcpu: Int, _ wait: Wait) {
        state.withLock { $0.waits[vcpu] = wait }
        waiting.bitwiseOr(1 << UInt64(vcpu), ordering: .sequentiallyConsistent)
    }
    func end(_ vcpu: Int) {
        waiting.bitwiseAnd(~(1 << UInt64(vcpu)), ordering: .sequentiallyConsistent)
        state.withLock { $0.waits[vcpu] = nil }
    }
    func isWaiting(_ vcpu: Int) -> Bool {
        waiting.load(ordering: .sequentiallyConsistent) & 1 << UInt64(vcpu) != 0
    }
    func wait(_ vcpu: Int) -> Wait? { state.withLock { $0.waits[vcpu] } }

    /// vCPUs that poll a port.
    func pollers(of port: Int) -> [Int] {
        guard waiting.load(ordering: .sequentiallyConsistent) != 0 else { return [] }
        return state.withLock { state in
            state.waits.indices.filter {
                guard case .poll(let ports, _) = state.waits[$0] else { return false }
                return ports.contains(port)
            }
        }
    }

    func prepare(_ vcpu: Int, _ start: VCPUStart) { state.withLock { $0.starts[vcpu] = start } }
    /// The start prepared; once it was taken, the vCPU can only go on from where it was.
    func takeStart(_ vcpu: Int) -> VCPUStart? {
        state.withLock { state in
            defer { if state.starts[vcpu] != nil { state.starts[vcpu] = .resumed } }
            return state.starts[vcpu]
        }
    }
}

extension Hypercall {
    func schedule(_ command: UInt64, _ address: UInt64) throws(XenError) -> Int64 {
        switch Int32(truncatingIfNeeded: command) {
        case SCHEDOP_yield: machine.yield()
        case SCHEDOP_block:
            if xen.flavour == .pv { xen.shared.info(vcpu)?.store(UInt8(0), at: 1) }
            xen.waits.begin(vcpu, .event)
        case SCHEDOP_poll: try poll(address)
        case SCHEDOP_shutdown: try shutdown(Int32(bitPattern: try read(address, 4).u32(0)))
        case SCHEDOP_shutdown_code: _ = try read(address, 4)
        case SCHEDOP_remote_shutdown:
            try requireSelf(try read(address, 8).u16(0))
            throw .notPermitted
        case SCHEDOP_watchdog:
            // struct sched_watchdog: id, seconds from now on (0: never).
            let call = try read(address, 8)
            let seconds = UInt64(call.u32(4))
            return try xen.timers.watch(
                Int(call.u32(0)), until: seconds == 0 ? nil : machine.nanoseconds &+ seconds &* 1_000_000_000)
        case SCHEDOP_pin_override: throw .notPermitted
        default: throw .notImplemented
        }
        return 0
    }

    /// The old form: the reason in a register.
    func scheduleCompat(_ command: UInt64, _ argument: UInt64) throws(XenError) -> Int64 {
        switch Int32(truncatingIfNeeded: command) {
        case SCHEDOP_yield, SCHEDOP_block: return try schedule(command, 0)
        case SCHEDOP_shutdown:
            try shutdown(Int32(truncatingIfNeeded: argument))
            return 0
        default: throw .notImplemented
        }
    }

    /// struct sched_poll: list of ports, how many, timeout (absolute, 0: none).
    private func poll(_ address: UInt64) throws(XenError) {
        let call = try read(address, isLong ? 24 : 16)
        let count = call.u32(long)
        guard count <= 128 else { throw .invalid }
        var ports: [Int] = []
        let list = count == 0 ? nil : try read(call.long(0), Int(count) * 4)
        for index in 0..<Int(count) {
            let port = Int(list?.u32(index * 4) ?? 0)
            guard port < xen.events.limit else { throw .invalid }
            ports.append(port)
        }
        let timeout = call.u64(isLong ? 16 : 8)
        let deadline = timeout == 0 ? nil : timeout
        xen.waits.begin(vcpu, .poll(ports, deadline: deadline))
        // Looked at again before the thread sleeps, so an event from now on is not lost.
        if let deadline { xen.timers.setPoll(deadline, vcpu: vcpu) }
    }

    private func shutdown(_ reason: Int32) throws(XenError) {
        switch reason {
        case SHUTDOWN_poweroff: machine.finish(.poweroff)
        case SHUTDOWN_reboot: machine.finish(.reboot)
        case SHUTDOWN_crash, SHUTDOWN_watchdog:
            machine.log(reason == SHUTDOWN_crash ? "the guest crashed" : "the guest's watchdog ran out")
            machine.finish(reason == SHUTDOWN_crash ? .crash : .watchdog)
        case SHUTDOWN_suspend, SHUTDOWN_soft_reset: throw .notSupported
        default: throw .invalid
        }
    }
}
