internal import CHost
internal import Glibc

/// A POSIX thread with a name and its processor time.
public final class HostThread: @unchecked Sendable {
    // Invariant: `thread` is set before the object is handed out and never changes.
    private var thread = pthread_t()

    private final class Start {
        let name: String
        let body: () -> Void
        init(_ name: String, _ body: @escaping () -> Void) { (self.name, self.body) = (name, body) }
    }

    /// Starts a thread with a stack of `stackBytes` that runs `body`. It is never joined.
    public init(_ name: String, stackBytes: Int = 8 << 20, _ body: @escaping @Sendable () -> Void)
        throws(HostFailure)
    {
        var attributes = pthread_attr_t()
        pthread_attr_init(&attributes)
        defer { pthread_attr_destroy(&attributes) }
        pthread_attr_setstacksize(&attributes, stackBytes)
        let start = Unmanaged.passRetained(Start(name, body))
        let result = pthread_create(
            &thread, &attributes,
            { argument in
                guard let argument else { return nil }
                let start = Unmanaged<Start>.fromOpaque(argument).takeRetainedValue()
                chost_name_thread(String(start.name.prefix(15)))
                start.body()
                return nil
            }, start.toOpaque())
        guard result == 0 else {
            start.release()
            throw HostFailure("start", "thread \(name)", code: result)
        }
    }

    /// Processor time it has used so far; nil once it has ended.
    public var cpuNanoseconds: UInt64? {
        var clock = clockid_t()
        var time = timespec()
        guard pthread_getcpuclockid(thread, &clock) == 0, clock_gettime(clock, &time) == 0 else { return nil }
        return UInt64(time.tv_sec) &* 1_000_000_000 &+ UInt64(time.tv_nsec)
    }
}
