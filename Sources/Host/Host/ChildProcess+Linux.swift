// Processes started by this one.
// Source: fork(2), prctl(2) PR_SET_PDEATHSIG, pidfd_open(2), close_range(2).
// Modelled: exact descriptors, death with the parent, waiting without SIGCHLD.
// Quirks: the death signal follows the thread that started the child: start children from the main thread.
internal import CHost
internal import Glibc

/// How a process ended.
public enum ProcessEnd: Equatable, Sendable, CustomStringConvertible {
    case exit(Int32)
    case signal(Int32)
    public var description: String {
        switch self {
        case .exit(let code): "ended with exit code \(code)"
        case .signal(SIGSYS): "was ended for a forbidden system call"
        case .signal(let number): "was killed by signal \(number) (\(String(cString: strsignal(number))))"
        }
    }
    init(status: Int32) {
        let signal = status & 0x7F
        self = signal == 0 ? .exit((status >> 8) & 0xFF) : .signal(signal)
    }
}

/// A child process and a descriptor that is readable once it has ended.
public final class ChildProcess {
    public let pid: Int32
    public let ended: Descriptor
    public private(set) var end: ProcessEnd?

    /// Starts `path`. `descriptors[i]` becomes its descriptor i, nil is /dev/null; it inherits no others.
    public init(
        path: String, arguments: [String], environment: [String]? = nil, descriptors: [Int32?],
        deathSignal: Int32 = 0, newSession: Bool = false
    ) throws(HostFailure) {
        let numbers = descriptors.map { $0 ?? -1 }
        let result = Self.withStrings([path] + arguments) { argv in
            Self.withStrings(environment ?? Self.inherited) { envp in
                chost_spawn(path, argv, envp, numbers, Int32(numbers.count), deathSignal, newSession ? 1 : 0)
            }
        }
        guard result > 0 else { throw HostFailure("start", path, result: Int(result)) }
        let watch = chost_pidfd(result)
        guard watch >= 0 else {
            kill(result, SIGKILL)
            throw HostFailure("watch", path, result: Int(watch))
        }
        pid = result
        ended = Descriptor(owning: watch)
    }

    /// Takes the exit status if the process has ended; with `wait`, waits for that.
    @discardableResult public func reap(wait: Bool = false) -> ProcessEnd? {
        if end != nil { return end }
        var status: Int32 = 0
        var result: Int32 = -1
        repeat { result = waitpid(pid, &status, wait ? 0 : WNOHANG) } while result < 0 && errno == EINTR
        if result == pid { end = ProcessEnd(status: status) }
        return end
    }

    public func send(_ signal: Int32) {
        if reap() == nil { kill(pid, signal) }
    }

    private static var inherited: [String] {
        var entries: [String] = []
        var place = environ
        while let entry = place.pointee {
            entries.append(String(cString: entry))
            place += 1
        }
        return entries
    }

    private static func withStrings<Result>(
        _ strings: [String], _ body: (UnsafePointer<UnsafePointer<CChar>?>) -> Result
    ) -> Result {
        let copies = strings.map { strdup($0) }
        defer { for copy in copies { free(copy) } }
        let pointers = copies.map { UnsafePointer<CChar>($0) } + [nil]
        return pointers.withUnsafeBufferPointer { buffer in
            var empty: UnsafePointer<CChar>?
            return withUnsafePointer(to: &empty) { body(buffer.baseAddress ?? $0) }
        }
    }
}

/// Splits this process, which must have one thread: nil in the child, which gets SIGTERM when the parent ends.
public func forkWorker() throws(HostFailure) -> Int32? {
    let result = chost_fork(SIGTERM)
    guard result >= 0 else { throw HostFailure("split", "the process", result: Int(result)) }
    return result == 0 ? nil : result
}

/// Waits for any child; nil when there is none left.
public func waitForAnyChild() -> (pid: Int32, end: ProcessEnd)? {
    var status: Int32 = 0
    var result: Int32 = -1
    repeat { result = waitpid(-1, &status, 0) } while result < 0 && errno == EINTR
    return result > 0 ? (result, ProcessEnd(status: status)) : nil
}

/// Orphans among the descendants become children of this process.
public func adoptOrphans() { _ = chost_adopt_orphans() }

/// A descriptor that is readable when one of `signals` has come; they no longer interrupt the process.
public func signalDescriptor(_ signals: [Int32]) throws(HostFailure) -> Descriptor {
    let result = chost_signals(signals, Int32(signals.count))
    guard result >= 0 else { throw HostFailure("catch", "signals", result: Int(result)) }
    return Descriptor(owning: result)
}

/// A pipe, close-on-exec.
public func makePipe() throws(HostFailure) -> (reading: Descriptor, writing: Descriptor) {
    var ends: [Int32] = [-1, -1]
    let result = chost_pipe(&ends)
    guard result == 0 else { throw HostFailure("make", "a pipe", result: Int(result)) }
    return (Descriptor(owning: ends[0]), Descriptor(owning: ends[1]))
}

/// CPUID of the host's processor: eax, ebx, ecx, edx.
public func hostCPUID(_ leaf: UInt32, _ subleaf: UInt32 = 0) -> [UInt32] {
    var registers: [UInt32] = [0, 0, 0, 0]
    chost_cpuid(leaf, subleaf, &registers)
    return registers
}

/// This process's number.
public func ownProcess() -> Int32 { getpid() }

/// Effective user.
public func userNumber() -> UInt32 { geteuid() }
public func isRoot() -> Bool { geteuid() == 0 }

/// Kills a process that is no child of ours, provided its command line shows that it is the one meant.
public func endProcess(_ pid: Int32, ifCommandLineHas text: String) {
    guard let bytes = try? HostFile.read("/proc/\(pid)/cmdline", limit: 65_536) else { return }
    let words = bytes.split(separator: 0).map { String(decoding: $0, as: UTF8.self) }
    if words.contains(text) { kill(pid, SIGKILL) }
}

/// Writing where nobody reads becomes an error instead of a signal.
public func ignoreBrokenPipes() { signal(SIGPIPE, SIG_IGN) }
