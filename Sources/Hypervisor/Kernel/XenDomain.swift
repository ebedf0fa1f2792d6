// What a domain has because it runs under Xen: shared info, event channels, grants, timers, parameters.
// Source: Xen's public headers; xen/common and xen/arch/x86 for what each object keeps.
// Not modelled: foreign domains: only domain 0 (the back ends) is at the other end of a channel or grant.
// Lock order: every lock of these objects is a leaf; the machine is called with none held.

internal import Processor
internal import Synchronization

/// What the Xen objects ask of the machine around them. From any thread.
protocol XenMachine: AnyObject, Sendable {
    var domid: UInt16 { get }
    var vcpuCount: Int { get }
    /// Frames of guest memory from 0 on, one past the highest of them, and the ranges the guest is told of.
    var ramFrames: UInt64 { get }
    var maximumFrame: UInt64 { get }
    var memoryMap: [E820Entry] { get }
    /// A page of guest memory by its frame number, RAM only.
    func page(_ frame: UInt64) -> GuestArea?
    /// Gives a page of RAM back to the host; it reads as zeroes from then on.
    func discard(_ frame: UInt64)
    /// Shows the hypervisor's frame `index` (0: shared info, then grant frames) at a guest frame; nil: nowhere.
    func place(_ index: Int, at frame: UInt64?)
    /// Takes away what of the hypervisor's is shown at a guest frame; false if nothing is.
    func unplace(_ frame: UInt64) -> Bool
    /// Guest RAM was written past the engines.
    func noteWritten(_ address: UInt64, bytes: UInt64)

    /// Of a PV domain: its page tables, and an entry of its machine-to-physical table.
    var paravirtual: ParavirtualMemory? { get }
    func setFrame(_ machineFrame: UInt64, to frame: UInt64)
    /// Has vCPUs of a set forget what they know of a page (nil: of all) before they run on.
    func flush(_ page: UInt64?, of vcpus: UInt64)
    /// A vCPU's info lies elsewhere now.
    func infoMoved(_ vcpu: Int)

    /// Guest time, and the host's wall clock, in nanoseconds.
    var nanoseconds: UInt64 { get }
    var wallNanoseconds: UInt64 { get }
    var tscKilohertz: UInt32 { get }

    /// Calls a vCPU out of its loop or sleep.
    func kick(_ vcpu: Int)
    /// Raises a vector at a vCPU's local APIC.
    func raise(vector: UInt8, vcpu: Int)
    /// Whether the local APIC holds a vector: it waits or is in service.
    func holds(vector: UInt8, vcpu: Int) -> Bool
    /// Drives the lines that a callback stands for, and no others; nil: none.
    func driveCallback(_ callback: HVMParameters.Callback?)
    func isUp(_ vcpu: Int) -> Bool
    /// The vCPU that is to be kicked for events from a back end's port.
    func route(_ remotePort: Int, to vcpu: Int)
    func bringUp(_ vcpu: Int, _ start: VCPUStart)
    func takeDown(_ vcpu: Int)
    func sendNMI(_ vcpu: Int)
    /// Lets other threads run for a moment.
    func yield()

    func log(_ line: String)
    func finish(_ reason: EndReason)
}

/// A range of memory as E820 has it.
struct E820Entry: Equatable, Sendable {
    var address: UInt64
    var size: UInt64
    /// 1 RAM, 2 reserved, 3 ACPI data.
    var type: UInt32
}

/// Registers of a vCPU that starts in flat 32-bit protected mode.
struct FlatStart: Equatable, Sendable {
    var entry: UInt64
    var registers: [UInt64] = [UInt64](repeating: 0, count: 8)
}

/// How a vCPU starts.
enum VCPUStart: Equatable, Sendable {
    case flat(FlatStart)
    case paravirtual(ParavirtualStart)
    /// Where it was when it went down.
    case resumed
}

final class XenDomain: @unchecked Sendable {
    // Invariant: everything is `let`; `machine` outlives the Xen side.
    unowned let machine: any XenMachine
    let shared: SharedInfo
    let events: EventChannels
    let grants: GrantTable
    let maps = GrantMaps()
    let timers: XenTimers
    let waits: VCPUWaits
    let parameters: HVMParameters
    let reservation: Reservation
    let output: GuestOutput
    let callbacks: Callbacks
    let counters = EventCounters()
    /// UUID, 16 bytes.
    let handle: [UInt8]
    /// Whether the guest gets an HVM guest's features, a PV guest's, or (HVM without platform device) none.
    let flavour: Flavour

    enum Flavour: Sendable { case plain, hvm, pv }

    /// `frames`: memory for shared info (first page) and the grant table. `initialFrames`: RAM that the guest begins with.
    init(_ machine: any XenMachine, frames: GuestArea, handle: [UInt8], flavour: Flavour, initialFrames: UInt64) {
        (self.machine, self.handle, self.flavour) = (machine, handle, flavour)
        let count = machine.vcpuCount
        shared = SharedInfo(frames, vcpus: count)
        grants = GrantTable(frames)
        waits = VCPUWaits(vcpus: count)
        parameters = HVMParameters(vcpus: count)
        events = EventChannels(shared, domid: machine.domid, vcpus: count)
        timers = XenTimers(vcpus: count)
        reservation = Reservation(
            frames: machine.ramFrames, initial: initialFrames, isOnDemand: flavour != .pv)
        output = GuestOutput()
        callbacks = Callbacks(vcpus: count)
    }

    // MARK: events

    /// Makes a port pending and tells its vCPU.
    func deliver(_ port: Int) {
        guard let target = events.setPending(port) else { return }
        counters.delivered.wrappingAdd(1, ordering: .relaxed)
        if target.isNew { announce(target.vcpu) }
        for vcpu in waits.pollers(of: port) { machine.kick(vcpu) }
    }

    func deliver(virq: Int, vcpu: Int) {
        if let port = events.port(virq: virq, vcpu: vcpu) { deliver(port) }
    }

    /// A back end signals by its port.
    func notify(_ remotePort: Int) {
        guard let port = events.local(of: remotePort) else { return }
        counters.fromBackends.wrappingAdd(1, ordering: .relaxed)
        deliver(port)
    }

    /// Tells the back end at the other end of a port which vCPU is to hear of its events.
    func route(_ port: Int) {
        if let remote = events.remote(of: port) { machine.route(remote, to: events.status(port)?.vcpu ?? 0) }
    }

    /// evtchn_upcall_pending went from 0 to 1.
    func announce(_ vcpu: Int) {
        if let vector = parameters.upcallVector(vcpu) {
            machine.raise(vector: vector, vcpu: vcpu)
        } else if vcpu == 0, parameters.callback.isLevel {
            machine.driveCallback(parameters.callback)
        }
        machine.kick(vcpu)
    }

    /// The vector that is to be delivered past the local APIC as long as events are pending (HVM callback by vector).
    func callbackVector(_ vcpu: Int) -> UInt8? {
        guard flavour == .hvm, case .vector(let vector) = parameters.callback,
            parameters.upcallVector(vcpu) == nil, shared.isUpcallPending(vcpu)
        else { return nil }
        return vector
    }

    /// On the vCPU's own thread, before it goes on: lost vectors, the level of a callback line, the end of a wait.
    func attend(_ vcpu: Int, hasInterrupt: Bool) {
        guard flavour != .plain else { return }
        // INIT empties the local APIC, whatever was pending.
        if let vector = parameters.upcallVector(vcpu), shared.isUpcallPending(vcpu),
            !machine.holds(vector: vector, vcpu: vcpu)
        {
            machine.raise(vector: vector, vcpu: vcpu)
        }
        if vcpu == 0, parameters.callback.isLevel, !shared.isUpcallPending(0) { machine.driveCallback(nil) }
        if waits.isWaiting(vcpu), hasInterrupt || isWaitOver(vcpu) { endWait(vcpu) }
    }

    /// On the vCPU's own thread, with the machine's clocks as the guest is to see them.
    func refreshClock(_ vcpu: Int, tsc: () -> UInt64) {
        guard flavour != .plain else { return }
        shared.refreshTime(vcpu, nanoseconds: machine.nanoseconds, kilohertz: machine.tscKilohertz, tsc: tsc)
    }

    /// Whether the vCPU gave its time away with SCHEDOP_block or SCHEDOP_poll.
    func isWaiting(_ vcpu: Int) -> Bool { waits.isWaiting(vcpu) }

    private func isWaitOver(_ vcpu: Int) -> Bool {
        switch waits.wait(vcpu) {
        case nil: return true
        case .event: return shared.isUpcallPending(vcpu)
        case .poll(let ports, let deadline):
            return ports.contains { events.isPending($0) } || deadline.map { $0 <= machine.nanoseconds } ?? false
        }
    }

    private func endWait(_ vcpu: Int) {
        waits.end(vcpu)
        timers.setPoll(nil, vcpu: vcpu)
    }

    /// The vCPU sleeps now, or runs again.
    func note(_ vcpu: Int, isBlocked: Bool) {
        guard flavour != .plain else { return }
        shared.setRunstate(vcpu, isBlocked ? .blocked : .running, nanoseconds: machine.nanoseconds)
    }

    /// Guest time was stopped for a while, or began.
    func clockChanged() {
        guard flavour != .plain else { return }
        shared.setWallClock(machine.wallNanoseconds &- machine.nanoseconds)
    }
}
