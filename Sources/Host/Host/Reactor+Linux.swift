internal import CHost
internal import Glibc

/// One thread's event loop: descriptors, one timer, and a hook before sleeping.
///
/// It is made and run on the thread that owns it; handlers run there too.
public final class Reactor {
    private let poll: Descriptor
    private var handlers: [Int32: (UInt32) -> Void] = [:]
    private var running = true
    /// When to call `onDeadline`, in CLOCK_MONOTONIC nanoseconds; asked before each sleep.
    public var nextDeadline: () -> UInt64? = { nil }
    public var onDeadline: () -> Void = {}
    /// Called before sleeping; answers false if there is work and the loop must not sleep.
    public var maySleep: () -> Bool = { true }
    /// Called after each wake-up, before handlers.
    public var onWake: () -> Void = {}

    public static let readable = UInt32(EPOLLIN.rawValue)
    public static let writable = UInt32(EPOLLOUT.rawValue)
    public static let hangUp = UInt32(EPOLLHUP.rawValue) | UInt32(EPOLLERR.rawValue)

    public init() throws(HostFailure) {
        let result = epoll_create1(Int32(EPOLL_CLOEXEC))
        guard result >= 0 else { throw HostFailure("make", "an event loop", code: errno) }
        poll = Descriptor(owning: result)
    }

    /// Calls `handler` with the ready events while `descriptor` is watched. Replaces an earlier watch.
    public func watch(_ descriptor: Int32, for events: UInt32 = Reactor.readable, _ handler: @escaping (UInt32) -> Void)
    {
        var event = epoll_event()
        event.events = events
        event.data.fd = descriptor
        let operation = handlers[descriptor] == nil ? EPOLL_CTL_ADD : EPOLL_CTL_MOD
        handlers[descriptor] = handler
        epoll_ctl(poll.number, operation, descriptor, &event)
    }

    public func unwatch(_ descriptor: Int32) {
        guard handlers.removeValue(forKey: descriptor) != nil else { return }
        epoll_ctl(poll.number, EPOLL_CTL_DEL, descriptor, nil)
    }

    public func stop() { running = false }

    /// Runs until `stop`.
    public func run() {
        while running { turn() }
    }

    /// Waits for events once and serves them.
    public func turn() {
        var events = [epoll_event](repeating: epoll_event(), count: 32)
        let sleeps = maySleep()
        let count = wait(&events, sleeps: sleeps)
        // Without its own descriptor a loop would spin for ever.
        precondition(count >= 0 || errno == EINTR, "the event loop has lost its descriptor")
        onWake()
        if let deadline = nextDeadline(), deadline <= monotonicNanoseconds() { onDeadline() }
        guard count > 0 else { return }
        for event in events.prefix(Int(count)) { handlers[event.data.fd]?(event.events) }
    }

    /// Waits for events, to the nanosecond of the deadline (epoll_pwait2(2)).
    private func wait(_ events: inout [epoll_event], sleeps: Bool) -> Int32 {
        guard sleeps, let deadline = nextDeadline() else {
            return epoll_wait(poll.number, &events, 32, sleeps ? -1 : 0)
        }
        let now = monotonicNanoseconds()
        let left = deadline > now ? deadline - now : 0
        var time = timespec(tv_sec: Int(left / 1_000_000_000), tv_nsec: Int(left % 1_000_000_000))
        return epoll_pwait2(poll.number, &events, 32, &time, nil)
    }
}
