internal import CHost
internal import Glibc

/// Calls back at a steady rate from a reactor while it is started (timerfd_create(2)).
public final class RepeatingTimer {
    private let descriptor: Descriptor
    private let reactor: Reactor
    private let interval: UInt64
    private let fire: () -> Void
    public private(set) var isRunning = false

    public init(every nanoseconds: UInt64, on reactor: Reactor, fire: @escaping () -> Void) throws(HostFailure) {
        let result = timerfd_create(CLOCK_MONOTONIC, Int32(TFD_CLOEXEC) | Int32(TFD_NONBLOCK))
        guard result >= 0 else { throw HostFailure("make", "a timer", code: errno) }
        (descriptor, self.reactor, interval, self.fire) = (Descriptor(owning: result), reactor, nanoseconds, fire)
    }

    deinit { reactor.unwatch(descriptor.number) }

    public func start() {
        guard !isRunning else { return }
        isRunning = true
        set(interval)
        reactor.watch(descriptor.number) { [weak self] _ in
            guard let self else { return }
            var expirations: UInt64 = 0
            _ = read(descriptor.number, &expirations, 8)
            if isRunning { fire() }
        }
    }

    public func stop() {
        guard isRunning else { return }
        isRunning = false
        set(0)
        reactor.unwatch(descriptor.number)
    }

    private func set(_ nanoseconds: UInt64) {
        let time = timespec(tv_sec: Int(nanoseconds / 1_000_000_000), tv_nsec: Int(nanoseconds % 1_000_000_000))
        var setting = itimerspec(it_interval: time, it_value: time)
        timerfd_settime(descriptor.number, 0, &setting, nil)
    }
}
