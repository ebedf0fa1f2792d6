// The timers a guest gets from Xen: one single shot and one periodic timer a vCPU, and the end of a poll.
// Source: Xen public/vcpu.h; xen/common/schedule.c (vcpu_singleshot_timer_fn and its neighbours).
// Modelled: absolute deadlines in guest time; a periodic timer does not catch up on ticks it missed.
// Quirks: its thread sleeps until the first deadline and never while the domain is paused.

internal import Host
internal import Synchronization

final class XenTimers: Sendable {
    struct Timers: Equatable {
        var single: UInt64?
        var poll: UInt64?
        var period: UInt64 = 0
        var next: UInt64?
        var first: UInt64? { [single, poll, next].compactMap { $0 }.min() }
    }

    /// What is due: a timer interrupt, or the end of a poll.
    struct Due: Equatable { var vcpu: Int, isPoll: Bool }

    /// Deadlines of the guest's watchdogs (xen/common/sched/core.c has two a domain); each ends the domain.
    private let watchdogs = Mutex<[UInt64?]>([nil, nil])
    private let timers: Mutex<[Timers]>
    private let alarm = FutexWord()

    init(vcpus: Int) { timers = Mutex([Timers](repeating: Timers(), count: vcpus)) }

    private func change(_ vcpu: Int, _ body: (inout Timers) -> Void) {
        let isSooner: Bool = timers.withLock { timers in
            guard timers.indices.contains(vcpu) else { return false }
            let before = timers.compactMap(\.first).min()
            body(&timers[vcpu])
            guard let first = timers[vcpu].first else { return false }
            return before.map { first < $0 } ?? true
        }
        if isSooner { wake() }
    }

    func setSingle(_ deadline: UInt64?, vcpu: Int) { change(vcpu) { $0.single = deadline } }
    func setPoll(_ deadline: UInt64?, vcpu: Int) { change(vcpu) { $0.poll = deadline } }
    /// `period` 0: none.
    func setPeriodic(_ period: UInt64, now: UInt64, vcpu: Int) {
        change(vcpu) { ($0.period, $0.next) = (period, period == 0 ? nil : now &+ period) }
    }

    var deadline: UInt64? {
        [timers.withLock { $0.compactMap(\.first).min() }, watchdogs.withLock { $0.compactMap { $0 }.min() }]
            .compactMap { $0 }.min()
    }

    /// Whether a watchdog ran out by `now`.
    func hasExpired(_ now: UInt64) -> Bool { watchdogs.withLock { $0.contains { $0.map { $0 <= now } ?? false } } }

    /// SCHEDOP_watchdog: `id` 0 takes a free one and gives its number; 1 or 2 sets one again, no deadline frees it.
    func watch(_ id: Int, until deadline: UInt64?) throws(XenError) -> Int64 {
        let result: Result<Int64, XenError> = watchdogs.withLock { watchdogs in
            if id == 0 {
                guard let deadline else { return .failure(.invalid) }
                guard let free = watchdogs.firstIndex(of: nil) else { return .failure(.exists) }
                watchdogs[free] = deadline
                return .success(Int64(free + 1))
            }
            guard watchdogs.indices.contains(id - 1), watchdogs[id - 1] != nil else { return .failure(.invalid) }
            watchdogs[id - 1] = deadline
            return .success(0)
        }
        wake()
        return try result.get()
    }

    /// Takes what is due at `now`.
    func take(_ now: UInt64) -> [Due] {
        timers.withLock { timers in
            var due: [Due] = []
            for vcpu in timers.indices {
                var ticks = false
                if let single = timers[vcpu].single, single <= now {
                    timers[vcpu].single = nil
                    ticks = true
                }
                if let next = timers[vcpu].next, next <= now {
                    let period = max(timers[vcpu].period, 1)
                    timers[vcpu].next = next &+ ((now &- next) / period &+ 1) &* period
                    ticks = true
                }
                if ticks { due.append(Due(vcpu: vcpu, isPoll: false)) }
                if let poll = timers[vcpu].poll, poll <= now {
                    timers[vcpu].poll = nil
                    due.append(Due(vcpu: vcpu, isPoll: true))
                }
            }
            return due
        }
    }

    /// Makes the thread look again.
    func wake() {
        alarm.add(1)
        alarm.wake()
    }

    /// The thread: `fire` takes what is due.
    func keepTime(
        now: () -> UInt64, isPaused: () -> Bool, isEnding: () -> Bool, expire: () -> Void, fire: (Due) -> Void
    ) {
        while !isEnding() {
            let seen = alarm.value
            guard !isPaused(), let deadline else {
                alarm.wait(while: seen)
                continue
            }
            let now = now()
            if deadline <= now {
                if hasExpired(now) { return expire() }
                for due in take(now) { fire(due) }
            } else {
                alarm.wait(while: seen, nanoseconds: deadline - now)
            }
        }
    }
}
