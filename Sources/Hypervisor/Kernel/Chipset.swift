// The fabric behind a lock: what vCPU threads, the timer thread and the control socket may call.
// Lock order: `lock` is a leaf. Nothing waits, calls the device model or takes another lock while it is held;
// vCPUs are called after it was released.

internal import Chips
internal import Host
internal import Ioreq
internal import Machine
internal import Synchronization

final class Chipset: @unchecked Sendable {
    // Invariant: `fabric` and `armed` are only touched with `lock` held.
    private let lock = Mutex<Void>(())
    private let fabric: Fabric
    /// What the timer thread sleeps for.
    private var armed: Instant?
    let pages: IoreqPages
    private let hasHPET: Bool
    /// Changes when the timer thread must look again.
    private let tsc: TickRate
    private let alarm = FutexWord()

    init(vcpus: Int, tsc: TickRate, hasHPET: Bool, pages: IoreqPages) {
        fabric = Fabric(vcpus: vcpus, tsc: tsc)
        (self.tsc, self.pages, self.hasHPET) = (tsc, pages, hasHPET)
    }

    /// Read with `lock` held, so that no chip sees time go back between two vCPUs.
    private var now: Instant { Instant(nanoseconds: pages.guestNanoseconds) }

    /// Runs `body` with the fabric, then calls the vCPUs that have something to do.
    /// `caller`: the vCPU whose thread this is. `timers`: deadlines may have moved.
    private func with<T>(_ caller: Int?, timers: Bool = false, _ body: (Fabric) -> T) -> T {
        let (result, calls, wakes) = lock.withLock { _ in
            let result = body(fabric)
            return (result, fabric.takeCalls(), timers && rearm())
        }
        if calls != 0 { call(calls, from: caller) }
        if wakes { alarm.wake() }
        return result
    }

    /// Whether the timer thread sleeps too long now.
    private func rearm() -> Bool {
        guard let deadline = fabric.deadline, armed.map({ deadline < $0 }) ?? true else { return false }
        armed = deadline
        alarm.add(1)
        return true
    }

    private func call(_ calls: UInt32, from caller: Int?) {
        var rest = calls
        while rest != 0 {
            let index = rest.trailingZeroBitCount
            rest &= rest - 1
            if index == caller { pages.attend(index) } else { pages.kick(index) }
        }
    }

    // MARK: accesses

    /// How often each chip was read and written.
    var accesses: [(name: String, reads: UInt64, writes: UInt64)] {
        with(nil) { fabric in
            let shared = [fabric.pic, fabric.pit, fabric.ioapic, fabric.hpet, fabric.pmTimer]
            let locals = fabric.locals.enumerated().map { ("\($1.name)\($0)", $1.reads, $1.writes) }
            return shared.map { ($0.name, $0.reads, $0.writes) } + locals
        }
    }

    /// Whether a port belongs to a chip here, other than the PM timer.
    static func owns(port: UInt16) -> Bool {
        switch port {
        case 0x20, 0x21, 0xA0, 0xA1, 0x40...0x43, 0x61, 0x4D0, 0x4D1: return true
        default: return false
        }
    }

    private func slot(port: UInt16) -> (Slot, region: Int, base: UInt16, timers: Bool) {
        switch port {
        case 0x20, 0x21: return (fabric.pic, 0, 0x20, false)
        case 0xA0, 0xA1: return (fabric.pic, 1, 0xA0, false)
        case 0x4D0, 0x4D1: return (fabric.pic, 2, 0x4D0, false)
        case 0x40...0x43: return (fabric.pit, 0, 0x40, true)
        default: return (fabric.pit, 1, 0x61, true)
        }
    }

    func readPort(_ port: UInt16, _ width: Width, vcpu: Int) -> UInt64 {
        let (slot, region, base, _) = slot(port: port)
        let access = Access(region: region, offset: UInt64(port - base), width: width)
        return with(vcpu) { _ in slot.read(access, at: now) }
    }

    func writePort(_ port: UInt16, _ width: Width, _ value: UInt64, vcpu: Int) {
        let (slot, region, base, timers) = slot(port: port)
        let access = Access(region: region, offset: UInt64(port - base), width: width)
        with(vcpu, timers: timers) { _ in slot.write(value, access, at: now) }
    }

    /// PMTMR, wherever its port is now.
    func readPMTimer(offset: UInt16, _ width: Width, vcpu: Int) -> UInt64 {
        return with(vcpu) { $0.pmTimer.read(Access(offset: UInt64(offset), width: width), at: now) }
    }

    /// Whether a page of memory belongs to the I/O APIC or the HPET.
    func owns(memory address: UInt64) -> Bool {
        switch address {
        case 0xFEC0_0000...0xFEC0_0FFF: return true
        case 0xFED0_0000...0xFED0_03FF: return hasHPET
        default: return false
        }
    }

    func readMemory(_ address: UInt64, _ width: Width, vcpu: Int) -> UInt64 {
        let (slot, mask) = address < 0xFED0_0000 ? (fabric.ioapic, UInt64(0xFFF)) : (fabric.hpet, 0x3FF)
        return with(vcpu) { _ in slot.read(Access(offset: address & mask, width: width), at: now) }
    }

    func writeMemory(_ address: UInt64, _ width: Width, _ value: UInt64, vcpu: Int) {
        let (slot, mask) = address < 0xFED0_0000 ? (fabric.ioapic, UInt64(0xFFF)) : (fabric.hpet, 0x3FF)
        with(vcpu, timers: slot === fabric.hpet) { _ in
            slot.write(value, Access(offset: address & mask, width: width), at: now)
        }
    }

    func readLocal(_ offset: UInt64, _ width: Width, vcpu: Int) -> UInt64 {
        return with(vcpu) { $0.locals[vcpu].read(Access(offset: offset, width: width), at: now) }
    }

    func writeLocal(_ offset: UInt64, _ width: Width, _ value: UInt64, vcpu: Int) {
        // LVT timer, initial count and divisor are what moves a deadline.
        let timers = offset == 0x320 || offset == 0x380 || offset == 0x3E0
        with(vcpu, timers: timers) { $0.locals[vcpu].write(value, Access(offset: offset, width: width), at: now) }
    }

    func readMSR(_ number: UInt32, vcpu: Int) -> UInt64? {
        return with(vcpu) {
            $0.apics[vcpu].advance(to: now)
            return $0.apics[vcpu].readMSR(number)
        }
    }

    func writeMSR(_ number: UInt32, _ value: UInt64, vcpu: Int) -> Bool {
        return with(vcpu, timers: true) {
            $0.apics[vcpu].advance(to: now)
            return $0.apics[vcpu].writeMSR(number, value)
        }
    }

    /// Arms the local APIC's timer in TSC-deadline mode. `counter` is what the vCPU's time stamp counter reads now; the
    /// APIC itself counts from guest time zero. A deadline that has passed is due at once.
    func writeDeadline(_ deadline: UInt64, counter: UInt64, vcpu: Int) {
        with(vcpu, timers: true) {
            let (apic, now) = ($0.apics[vcpu], now)
            apic.advance(to: now)
            let ticks = max(tsc.ticks(at: now), 1)
            let left = Int64(bitPattern: deadline &- counter)
            _ = apic.writeMSR(0x6E0, deadline == 0 ? 0 : left <= 0 ? ticks : ticks &+ UInt64(left))
            apic.advance(to: now)
        }
    }

    /// The address of a vCPU's local APIC window; nil while it has none.
    func localWindow(vcpu: Int) -> UInt64? {
        with(nil) {
            let state = $0.apics[vcpu].state
            return state.isEnabled && !state.isX2 ? state.base & 0xF_FFFF_F000 : nil
        }
    }

    func taskPriority(vcpu: Int) -> UInt8 { with(vcpu) { $0.apics[vcpu].state.taskPriority >> 4 } }

    func setTaskPriority(_ value: UInt8, vcpu: Int) {
        with(vcpu) {
            $0.apics[vcpu].state.taskPriority = value << 4
            $0.apics[vcpu].settle()
        }
    }

    // MARK: processors

    /// What a vCPU has to do before it goes on.
    struct Work {
        var signals: Fabric.Signals
        var hasInterrupt: Bool
        var apicIsEnabled: Bool
    }

    func work(vcpu: Int) -> Work {
        with(vcpu) {
            Work(
                signals: $0.takeSignals(vcpu), hasInterrupt: $0.hasInterrupt(vcpu),
                apicIsEnabled: $0.apics[vcpu].state.isEnabled)
        }
    }

    /// INTA, and whether another interrupt waits behind this one.
    func acknowledge(vcpu: Int) -> (vector: UInt8?, more: Bool) {
        with(vcpu) {
            let vector = $0.acknowledge(vcpu)
            return (vector, $0.hasInterrupt(vcpu))
        }
    }

    func isAPICEnabled(vcpu: Int) -> Bool { with(nil) { $0.apics[vcpu].state.isEnabled } }

    /// Takes over the lines as the device model drives them.
    func takeLines(vcpu: Int) {
        let (levels, rises) = pages.takeLines()
        with(vcpu) { $0.drive(levels: levels, rises: rises) }
    }

    /// An edge-triggered interrupt from the hypervisor itself.
    func raise(vector: UInt8, vcpu: Int) {
        with(nil) { $0.apics[vcpu].post(vector: vector) }
    }

    func holds(vector: UInt8, vcpu: Int) -> Bool { with(nil) { $0.apics[vcpu].holds(vector: vector) } }

    /// FERR# of the first processor; port F0 takes the line back while it lasts.
    func driveNumericError(_ high: Bool, vcpu: Int) { with(vcpu) { $0.driveNumericError(high) } }

    func driveCallback(_ lines: UInt64) { with(nil) { $0.driveCallback(lines) } }

    /// INIT for every processor.
    func initialiseAll(vcpu: Int) {
        with(vcpu) { fabric in
            for index in fabric.apics.indices { fabric.initialise(index) }
        }
    }

    // MARK: time

    /// The timer thread: acts when deadlines come, until `isEnding`.
    func keepTime(isEnding: () -> Bool) {
        while !isEnding() {
            let seen = alarm.value
            if pages.isPaused {
                alarm.wait(while: seen)
                continue
            }
            let now = now
            let deadline = lock.withLock { _ in
                armed = fabric.deadline
                return armed
            }
            guard let deadline else {
                alarm.wait(while: seen)
                continue
            }
            if deadline <= now {
                with(nil) { $0.advance(to: now) }
            } else {
                alarm.wait(while: seen, nanoseconds: deadline.since(now))
            }
        }
    }

    /// Makes the timer thread look again: the domain was unpaused or ends.
    func wakeTimer() {
        alarm.add(1)
        alarm.wake()
    }
}
