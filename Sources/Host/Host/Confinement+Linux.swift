// What a process may still ask of Linux once it is set up.
// Source: seccomp(2), "Classic BPF" of Linux' filter.rst, capabilities(7), prctl(2).
// Modelled: one list of rules a process, by call number and at most one 32-bit argument.
// Quirks: calls that C libraries try and can do without are refused with an error, all others end the process.
internal import CHost
internal import Glibc

/// A list of system calls. Whatever is not in it ends the process, with one line on standard error.
public struct Confinement: Sendable {
    /// `argument & mask == value`, of the lower 32 bits.
    public struct Condition: Sendable {
        let argument: Int
        let mask: UInt32
        let value: UInt32
        public init(argument: Int, mask: UInt32 = .max, is value: UInt32) {
            (self.argument, self.mask, self.value) = (argument, mask, value)
        }
    }

    private struct Rule {
        let call: Int32
        /// One of them must hold; none: always allowed.
        let conditions: [Condition]
        /// The error for a call that is not allowed; nil ends the process.
        let refusal: Int32?
        let isAllowed: Bool
    }

    private var rules: [Rule] = []

    public init() {}

    public static func + (first: Confinement, second: Confinement) -> Confinement {
        var sum = first
        sum.rules += second.rules
        return sum
    }

    public static func allowing(_ calls: Int32...) -> Confinement {
        var list = Confinement()
        list.rules = calls.map { Rule(call: $0, conditions: [], refusal: nil, isAllowed: true) }
        return list
    }

    /// Allows `call` if one of the conditions holds; `refusal` is its error otherwise.
    public static func allowing(_ call: Int32, if conditions: Condition..., refusal: Int32? = nil) -> Confinement {
        var list = Confinement()
        list.rules = [Rule(call: call, conditions: conditions, refusal: refusal, isAllowed: true)]
        return list
    }

    /// Answers `calls` with the error `code`.
    public static func refusing(_ calls: Int32..., with code: Int32) -> Confinement {
        var list = Confinement()
        list.rules = calls.map { Rule(call: $0, conditions: [], refusal: code, isAllowed: false) }
        return list
    }

    /// Gives everything else up, for good and for all threads. `name` begins the line about a forbidden call.
    ///
    /// Capabilities belong to threads: call it before the process has a second one.
    public func enter(as name: String, descriptors: Int32 = 1024) throws(HostFailure) {
        let dropped = chost_give_up_privileges(descriptors)
        guard dropped == 0 else { throw HostFailure("drop the privileges of", name, result: Int(dropped)) }
        let filter = program
        let loaded = chost_seccomp(filter, Int32(filter.count), name)
        guard loaded == 0 else { throw HostFailure("load the system call filter of", name, result: Int(loaded)) }
    }
}

/// The filter's program: a chain of comparisons with the call's number, each with its end.
extension Confinement {
    // struct seccomp_data: nr, arch, instruction pointer, six 64-bit arguments.
    private static let numberOffset: UInt32 = 0
    private static let architectureOffset: UInt32 = 4
    private static let argumentsOffset: UInt32 = 16
    private static let trap = UInt32(0x0003_0000)  // SECCOMP_RET_TRAP
    private static let kill = UInt32(0x8000_0000)  // SECCOMP_RET_KILL_PROCESS
    private static let allow = UInt32(0x7FFF_0000)  // SECCOMP_RET_ALLOW
    private static func fail(_ code: Int32) -> UInt32 { 0x0005_0000 | UInt32(truncatingIfNeeded: code) & 0xFFFF }

    private static func load(_ offset: UInt32) -> sock_filter {
        sock_filter(code: UInt16(BPF_LD | BPF_W | BPF_ABS), jt: 0, jf: 0, k: offset)
    }
    private static func end(_ verdict: UInt32) -> sock_filter {
        sock_filter(code: UInt16(BPF_RET | BPF_K), jt: 0, jf: 0, k: verdict)
    }
    /// Passes over `skip` instructions unless the accumulator is `value`.
    private static func unless(_ value: UInt32, skip: Int) -> sock_filter {
        sock_filter(code: UInt16(BPF_JMP | BPF_JEQ | BPF_K), jt: 0, jf: UInt8(skip), k: value)
    }

    var program: [sock_filter] {
        // AUDIT_ARCH_X86_64; calls of the x32 kind have numbers of their own, which no rule names.
        var program = [
            Self.load(Self.architectureOffset),
            sock_filter(code: UInt16(BPF_JMP | BPF_JEQ | BPF_K), jt: 1, jf: 0, k: 0xC000_003E),
            Self.end(Self.kill), Self.load(Self.numberOffset),
        ]
        for rule in rules {
            let body = Self.body(rule)
            program += [Self.unless(UInt32(bitPattern: rule.call), skip: body.count)] + body
        }
        return program + [Self.end(Self.trap)]
    }

    private static func body(_ rule: Rule) -> [sock_filter] {
        let otherwise = end(rule.refusal.map(fail) ?? trap)
        guard rule.isAllowed else { return [otherwise] }
        guard !rule.conditions.isEmpty else { return [end(allow)] }
        let tests = rule.conditions.flatMap { condition in
            [
                load(argumentsOffset + UInt32(condition.argument) * 8),
                sock_filter(code: UInt16(BPF_ALU | BPF_AND | BPF_K), jt: 0, jf: 0, k: condition.mask),
                unless(condition.value, skip: 1), end(allow),
            ]
        }
        return tests + [otherwise]
    }
}

/// Lists that processes put theirs together from.
extension Confinement {
    /// Memory, threads, time, signals of its own, an end; and what C libraries try.
    public static var living: Confinement {
        let own = UInt32(bitPattern: getpid())
        return .allowing(SYS_futex, SYS_read, SYS_write, SYS_close)
            + .allowing(SYS_clock_gettime, SYS_clock_nanosleep, SYS_nanosleep, SYS_gettimeofday, SYS_sched_yield)
            + .allowing(SYS_munmap, SYS_mremap, SYS_madvise, SYS_brk)
            // Nothing becomes executable any more: translated code is mapped before.
            + .allowing(SYS_mmap, if: Condition(argument: 2, mask: UInt32(PROT_EXEC), is: 0))
            + .allowing(SYS_mprotect, if: Condition(argument: 2, mask: UInt32(PROT_EXEC), is: 0))
            // Threads, not processes. clone3's flags lie in memory, where no filter can see them; glibc goes back to clone.
            + .allowing(SYS_clone, if: Condition(argument: 0, mask: 0x10000, is: 0x10000), refusal: EPERM)
            + .refusing(SYS_clone3, with: ENOSYS)
            + .allowing(SYS_set_robust_list, SYS_rseq, SYS_exit, SYS_exit_group, SYS_gettid, SYS_getpid)
            + .allowing(SYS_prctl, if: Condition(argument: 0, is: 15), refusal: EPERM)  // PR_SET_NAME
            + .allowing(SYS_rt_sigprocmask, SYS_rt_sigaction, SYS_rt_sigreturn, SYS_sigaltstack, SYS_restart_syscall)
            + .allowing(SYS_tgkill, if: Condition(argument: 0, is: own))
            + .allowing(SYS_getrandom, SYS_sched_getaffinity, SYS_fstat)
            // AT_EMPTY_PATH: fstat in another form.
            + .allowing(SYS_newfstatat, if: Condition(argument: 3, mask: 0x1000, is: 0x1000), refusal: EACCES)
            + .allowing(SYS_prlimit64, if: Condition(argument: 2, is: 0), refusal: EPERM)
            + .refusing(SYS_open, SYS_openat, SYS_access, SYS_readlink, SYS_readlinkat, SYS_stat, with: EACCES)
            + .refusing(SYS_unlink, SYS_unlinkat, SYS_rename, SYS_socket, with: EACCES)
    }

    /// An event loop.
    public static var events: Confinement {
        .allowing(SYS_epoll_pwait2, SYS_epoll_wait, SYS_epoll_pwait, SYS_epoll_ctl, SYS_eventfd2)
            + .allowing(SYS_poll, SYS_ppoll, SYS_select, SYS_pselect6, SYS_timerfd_create, SYS_timerfd_settime)
    }

    /// Sockets that are open or come in, and their descriptors.
    public static var conversation: Confinement {
        .allowing(SYS_recvfrom, SYS_recvmsg, SYS_sendto, SYS_sendmsg, SYS_readv, SYS_writev, SYS_shutdown)
            + .allowing(SYS_accept, SYS_accept4, SYS_getsockname, SYS_getpeername, SYS_getsockopt, SYS_setsockopt)
            + .allowing(SYS_socketpair, SYS_dup, SYS_dup2, SYS_fcntl)
            // TCGETS, TIOCOUTQ, FIONREAD
            + .allowing(
                SYS_ioctl, if: Condition(argument: 1, is: 0x5401), Condition(argument: 1, is: 0x5411),
                Condition(argument: 1, is: 0x541B), refusal: ENOTTY)
    }

    /// Transfers of image files that are open.
    public static var images: Confinement {
        .allowing(SYS_io_submit, SYS_io_getevents, SYS_preadv2, SYS_pread64, SYS_pwrite64, SYS_preadv, SYS_pwritev)
            + .allowing(
                SYS_fdatasync, SYS_fallocate, SYS_ftruncate, SYS_lseek, SYS_flock, SYS_fadvise64, SYS_io_setup,
                SYS_io_destroy)
    }

    /// New memory to share.
    public static var memoryFiles: Confinement { .allowing(SYS_memfd_create, SYS_ftruncate) }

    /// Running these child processes by ptrace, and nothing else's. It has to come before `living`.
    public static func tracing(_ processes: [Int32]) -> Confinement {
        guard !processes.isEmpty else { return Confinement() }
        func isOne(_ argument: Int) -> [Condition] {
            processes.map { Condition(argument: argument, is: UInt32(bitPattern: $0)) }
        }
        var list = Confinement()
        list.rules = [(SYS_ptrace, 1), (SYS_wait4, 0), (SYS_kill, 0), (SYS_sched_setaffinity, 0)].map {
            call, argument in
            Rule(call: call, conditions: isOne(argument), refusal: nil, isAllowed: true)
        }
        return list
    }

    /// New sockets of the Internet's families. It has to come before `living`.
    public static var internet: Confinement {
        .allowing(
            SYS_socket, if: Condition(argument: 0, is: UInt32(AF_INET)), Condition(argument: 0, is: UInt32(AF_INET6)),
            refusal: EACCES)
            + .allowing(SYS_bind, SYS_listen, SYS_connect)
    }

    /// Opening files to read them. It has to come before `living`.
    public static var reading: Confinement {
        let flags = Condition(argument: 2, mask: UInt32(O_ACCMODE | O_CREAT | O_TRUNC), is: 0)
        return .allowing(SYS_openat, if: flags, refusal: EACCES)
            + .allowing(SYS_newfstatat, SYS_stat, SYS_lseek, SYS_getppid)
    }
}
