// When a vCPU lets a program run by itself, and what happens when that stops.
// Source: our own design; docs/decisions/0010.md.
// Modelled: a program that calls or faults often stays with the engine, which does that in a hundredth of the time.

internal import CProcessor

/// Whether it is worth it. Times are nanoseconds.
struct DirectPolicy {
    /// How long programs run between calls and faults, on the average, if they are to run by themselves.
    private static let longStretch: UInt64 = 60_000
    /// Interrupts that have to find a program busy in a row.
    private static let patience = 2
    private static let longestPause = 64
    /// How often it is looked at what was won, in stops, and how much more than that may have been spent: on pages, at first.
    private static let window: UInt64 = 32
    private static let credit: Int64 = 10_000_000

    private var lastInterrupt: UInt64 = 0
    private var lastDepartures: UInt32 = 0
    private var busy = 0
    /// Interrupts to let pass, how many they were last time, and for which program.
    private var pause = 0
    private var lastPause = 2
    private var paused: UInt64 = 0

    private var stops: UInt64 = 0
    private var balance: Int64 = 0
    private var debt: Int64 = 0

    /// An interrupt has come while the engine ran the program of these page tables: whether it should run by itself.
    mutating func noteInterrupt(of program: UInt64, departures: UInt32, now: UInt64) -> Bool {
        let elapsed = now &- lastInterrupt
        if elapsed < 1_000_000 { return false }
        let isBusy = elapsed / UInt64(departures &- lastDepartures &+ 1) > Self.longStretch
        (lastInterrupt, lastDepartures) = (now, departures)
        if program != paused { (pause, lastPause, paused) = (0, 2, program) }
        if pause > 0 {
            pause -= 1
            return false
        }
        busy = isBusy ? busy + 1 : 0
        if busy < Self.patience { return false }
        (stops, balance, debt, busy) = (0, 0, 0, 0)
        return true
    }

    /// A program that ran by itself has used so much time and stopped so often, which cost the host so much: whether that goes on.
    mutating func noteStop(stops: UInt64, used: UInt64, cost: UInt64) -> Bool {
        self.stops &+= stops
        balance &+= Int64(bitPattern: cost) &- Int64(bitPattern: used)
        if self.stops < Self.window { return true }
        debt = max(0, debt &+ balance)
        (self.stops, balance) = (0, 0)
        if debt == 0 { lastPause = 2 }
        if debt < Self.credit { return true }
        rest()
        return false
    }

    /// Leaves programs to the engine for some time; for longer each time that happens in a row.
    mutating func rest() {
        lastPause = min(lastPause * 2, Self.longestPause)
        pause = lastPause
    }
}

extension DirectExecution {
    /// An interrupt has come to a program that the engine runs.
    func noteInterrupt(_ cpu: UnsafeMutablePointer<apus_vcpu>) {
        guard cpu.pointee.direct == UInt32(APUS_DIRECT_OFF) else { return }
        let program = tables(cpu)
        if policy.noteInterrupt(of: program, departures: cpu.pointee.departures, now: apus_direct_clock()) {
            begin(cpu)
        }
    }

    /// It has stopped so often since this thread had used `start` of its time; false: it was not worth it.
    func noteStop(_ stops: UInt64, since start: UInt64) -> Bool {
        let (program, system) = (apus_direct_program_time(process), apus_direct_system_time(process))
        defer { (programTime, systemTime) = (program, system) }
        let own = apus_direct_thread_time() &- start
        return policy.noteStop(stops: stops, used: program &- programTime, cost: own &+ system &- systemTime)
    }
}

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// The kernel returns to a program, perhaps.
    @inline(__always) func noteProgram() {
        if self.pointee.direct != UInt32(APUS_DIRECT_OFF), self.pointee.cpl == 3 {
            self.pointee.direct = UInt32(APUS_DIRECT_ON)
        }
    }

    /// An interrupt comes while a program runs.
    @inline(never) func noteProgramInterrupt() { engine.pointee.direct?.noteInterrupt(self) }

    /// The page at `linear`, or any, may lead elsewhere from now on.
    @inline(never) func forgetDirectly(_ linear: UInt64?) {
        if let linear { engine.pointee.direct?.forget(linear) } else { engine.pointee.direct?.forgetAll() }
    }

    /// The same for a part of 2^`shift` bytes.
    @inline(never) func forgetDirectPart(_ linear: UInt64, _ shift: UInt64) {
        engine.pointee.direct?.forgetPart(linear, shift)
    }
    @inline(never) func renameDirectSpace(_ old: UInt32) {
        engine.pointee.direct?.rename(old, engine.pointee.spaces.current)
    }

    /// See `DirectExecution.forgetStores`.
    @inline(never) func forgetDirectStores(to host: UnsafeMutableRawPointer) -> Bool {
        engine.pointee.direct?.forgetStores(to: host) ?? false
    }

    /// The program's mode is the one that the host would run it in.
    private var isDirectMode: Bool {
        let key = ModeKey(rawValue: self.pointee.mode_key)
        let isWatched = key.contains(.taskSwitched) || key.contains(.emulation) || key.contains(.alignmentCheck)
        return apus_is_plain_level(self, self.pointee.system_flags) && key.contains(.osFXSR) && key.contains(.avx)
            && !isWatched
            && self.pointee.cr0 & CR0.numericError != 0 && self.pointee.cr4 & CR4.fsgsBase != 0 && iopl == 0
            && self.pointee.paging && !hasPendingX87
    }

    /// Runs the program until something stops it that the engine, or somebody outside, must see to. An exit, or nil.
    @inline(never) func runProgram() -> Int? {
        self.pointee.direct = UInt32(APUS_DIRECT_RESTING)
        guard let direct = engine.pointee.direct else { return nil }
        guard direct.isWanted(self) else {
            // Another program than the one that was found busy.
            self.pointee.direct = UInt32(APUS_DIRECT_OFF)
            return nil
        }
        let start = apus_direct_thread_time()
        guard isDirectMode, direct.prepare(self) else {
            giveUpDirectly(direct)
            return nil
        }
        let process = direct.process
        var stops: UInt64 = 1
        var reason = attention
        apus_direct_advance(process)
        while reason == attention, apus_attention(self.pointee.attention) == 0 {
            reason = Int(apus_direct_run(process))
            if reason == Int(APUS_DIRECT_FAULT), direct.resolve(self) {
                stops &+= 1
                reason = attention
            }
        }
        apus_direct_advance(process)
        takeProgram(process)
        if !direct.noteStop(stops, since: start) {
            self.pointee.direct = UInt32(APUS_DIRECT_OFF)
        } else if reason == attention {
            self.pointee.direct = UInt32(APUS_DIRECT_ON)
        }
        return settleProgram(reason)
    }

    private var attention: Int { Int(APUS_DIRECT_ATTENTION) }

    /// The program's registers become the vCPU's.
    private func takeProgram(_ process: OpaquePointer) {
        let flags = self.pointee.system_flags
        apus_direct_take(process, self)
        if UInt64(flags ^ self.pointee.system_flags) & (RFLAGS.trap | RFLAGS.alignmentCheck) != 0 { updateMode() }
    }

    /// What has stopped it is carried out, as far as it is not the next instruction's to do.
    private func settleProgram(_ reason: Int) -> Int? {
        switch reason {
        case Int(APUS_DIRECT_STEPPED):
            _ = raise(Vector.debug)
            self.pointee.pending_kind = 1
            self.pointee.pending_dr6 = 1 << 14
            return deliverPending() ? nil : Int(self.pointee.exit_reason)
        case Int(APUS_DIRECT_MOVED):
            guard let process = engine.pointee.direct?.process else { return nil }
            do throws(Fault) {
                try takeSegments(code: apus_direct_cs(process), stack: apus_direct_ss(process))
            } catch { return deliverPending() ? nil : Int(self.pointee.exit_reason) }
            return nil
        case Int(APUS_DIRECT_LOST): return APUS_EXIT_LOST
        default: return nil
        }
    }

    private func giveUpDirectly(_ direct: DirectExecution) {
        direct.policy.rest()
        self.pointee.direct = UInt32(APUS_DIRECT_OFF)
    }
}
