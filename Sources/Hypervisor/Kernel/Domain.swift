// A domain: memory, chips, vCPUs, and how it pauses and ends.
// Source: Xen's domain life cycle (xl(1)); docs/ARCHITECTURE.md, "Processes".
// Modelled: one HVM domain for the life of the process. Not modelled: save and restore.
// Lock order: `Gate.changing`, then `commands`, then leaves (`Memory.layout`, `Chipset.lock`, `posting`, `ending`).

internal import Chips
internal import DomainConfig
internal import Host
internal import Ioreq
internal import Machine
internal import Processor
internal import Synchronization

/// Why a domain ended, as the monitor is told.
public enum EndReason: String, Sendable { case poweroff, reboot, crash, watchdog, destroy }

final class Domain: @unchecked Sendable {
    // Invariant: `vcpus` and `xen` are set once before any thread starts; everything else is `let`.
    let config: DomainConfig
    let memory: Memory
    let pages: IoreqPages
    /// Events between the guest and its back ends.
    let eventPages: EventPages
    let client: IoreqClient
    let driveMirror: ChannelMirror
    let serialMirror: SerialMirror
    let chipset: Chipset
    let gate: Gate
    let leaves: XenLeaves
    let tsc: TickRate
    /// UUID, 16 bytes.
    let handle: [UInt8]
    /// The latch at port 0xCF8.
    let configAddress = Atomic<UInt32>(0)
    /// PMBASE of the PIIX4's power management function, register 0x40 at 00:01.3; 0 while it is not set.
    let pmBase = Atomic<UInt32>(0)
    /// PIRQRCA-D of the PIIX3, registers 0x60 to 0x63 at 00:01.0; bit 7 of each: not routed.
    let pirqRoutes = Atomic<UInt32>(0x8080_8080)
    /// Where the IDE channels' bus masters are; nowhere if 0.
    let busMasterBase = Atomic<UInt32>(0)
    private(set) var vcpus: [VCPU] = []
    /// Made with the vCPUs, which use it first.
    private(set) lazy var xen = makeXen()

    private let commands = Mutex<Void>(())
    private let posting = Mutex<Void>(())
    private let ending = Mutex<EndReason?>(nil)
    private let ends = Atomic<Bool>(false)
    /// While paused, the host's time stamp counter at that moment.
    private let pausing = Mutex<UInt64?>(nil)
    private let ended: HostEvent
    private let logger: @Sendable (String) -> Void

    /// `doorbell` wakes the device model; `ended` rings when the domain is over.
    init(
        _ config: DomainConfig, doorbell: Descriptor, ended: HostEvent, tsc: TickRate, handle: [UInt8],
        log: @escaping @Sendable (String) -> Void
    ) throws {
        guard (1...IoreqLayout.maximumVCPUs).contains(config.vcpus) else {
            throw SetupFailure("a domain has 1 to \(IoreqLayout.maximumVCPUs) vCPUs, not \(config.vcpus)")
        }
        (self.config, self.ended, self.tsc, self.handle, logger) = (config, ended, tsc, handle, log)
        memory = try Memory(config)
        let pages = try IoreqPages.make()
        self.pages = pages
        client = IoreqClient(pages, doorbell: doorbell)
        driveMirror = ChannelMirror(pages)
        serialMirror = SerialMirror(pages)
        eventPages = try EventPages.make()
        chipset = Chipset(vcpus: config.vcpus, tsc: tsc, hasHPET: config.hpet, pages: pages)
        let count = config.vcpus
        gate = Gate { for index in 0..<count { pages.kick(index) } }
        leaves = XenLeaves(
            vcpus: count, domid: UInt32(truncatingIfNeeded: config.domid),
            tscKilohertz: UInt32(truncatingIfNeeded: tsc.hertz / 1000),
            hasUpcallVector: Self.flavour(of: config) == .hvm, isParavirtual: config.kind == .pv)
        pages.clockOffset = monotonicNanoseconds()
    }

    func makeVCPUs(_ make: EngineMaker) {
        _ = xen
        vcpus = (0..<config.vcpus).map { unsafe VCPU($0, self, make) }
    }

    /// Lets the guest run, or stand paused at its first instruction.
    func start(paused: Bool) throws(HostFailure) {
        pages.clockOffset = monotonicNanoseconds()
        xen.clockChanged()
        if paused { pause() }
        _ = try HostThread("timer") { [self] in chipset.keepTime { isEnding } }
        try startXenTimers()
        for vcpu in vcpus { try vcpu.start() }
    }

    func log(_ line: String) { logger(line) }

    // MARK: the end

    var isEnding: Bool { ends.load(ordering: .acquiring) }
    var endReason: EndReason? { ending.withLock { $0 } }

    /// Ends the domain; the first reason counts.
    func finish(_ reason: EndReason) {
        let isFirst = ending.withLock { ending in
            if ending != nil { return false }
            ending = reason
            return true
        }
        guard isFirst else { return }
        ends.store(true, ordering: .releasing)
        chipset.wakeTimer()
        xen.timers.wake()
        for index in 0..<config.vcpus { pages.kick(index) }
        ended.ring()
    }

    /// No vCPU is left that could go on.
    func noteDeadVCPU() {
        guard vcpus.allSatisfy({ !$0.isUp || $0.isDead }) else { return }
        log("all vCPUs have halted with interrupts off")
        finish(.poweroff)
    }

    // MARK: pause

    var isPaused: Bool { pausing.withLock { $0 != nil } }

    func pause() {
        pausing.withLock { since in
            guard since == nil else { return }
            gate.close()
            pages.pause()
            since = Clock.sample().ticks
            chipset.wakeTimer()
        }
    }

    func unpause() {
        pausing.withLock { since in
            guard let stopped = since else { return }
            since = nil
            pages.unpause()
            let ticks = Clock.sample().ticks &- stopped
            for vcpu in vcpus { vcpu.send(.timeStoodStill(ticks: ticks)) }
            xen.clockChanged()
            xen.timers.wake()
            gate.open()
            chipset.wakeTimer()
        }
    }

    // MARK: what the device model asks for

    /// Posts a write without waiting; false if it must be sent the slow way.
    func post(_ request: Request) -> Bool {
        posting.withLock { _ in
            guard client.post(request) else { return false }
            if request.kind == .port {
                let port = UInt16(truncatingIfNeeded: request.address)
                driveMirror.note(port, size: request.size, value: UInt32(truncatingIfNeeded: request.data))
                serialMirror.note(port, size: request.size)
            }
            return true
        }
    }

    /// Carries out the device model's commands in order. Called by vCPUs outside their engines.
    func carryOutCommands() {
        guard pages.hasCommands else { return }
        commands.withLock { _ in
            // A command stays in the ring until it has been carried out: whoever finds the ring empty may go on.
            while pages.withCommand(carryOut) {}
        }
    }

    private func carryOut(_ command: Command) {
        switch command {
        case .mapVideo(let address): changeMemory { $0.videoAddress = address }
        case .shadow(let segment, let read, let write):
            changeMemory { $0.segments[segment] = GuestMemoryLayout.Segment(readsRAM: read, writesRAM: write) }
        case .modified(let address, let bytes): codeChanged(at: address, bytes: bytes)
        case .a20(let open): changeMemory { $0.isA20Open = open }
        case .initialise: chipset.initialiseAll(vcpu: 0)
        case .reset: finish(.reboot)
        case .powerOff: finish(.poweroff)
        }
    }

    /// Lays guest-physical memory out anew while no vCPU runs.
    func changeMemory(_ body: (inout GuestMemoryLayout) -> Void) {
        guard memory.differs(body) else { return }
        gate.exclusively {
            memory.change(body)
            for vcpu in vcpus { vcpu.send(.memoryMapChanged) }
        }
    }

    /// Guest RAM was written past the engines.
    func codeChanged(at address: UInt64, bytes: UInt64) {
        for vcpu in vcpus { vcpu.send(.codeChanged(at: address, bytes: bytes)) }
        for index in vcpus.indices { pages.kick(index) }
    }

    // MARK: Xen

    /// WRMSR of the hypercall page: frame address and page number, of which there is one.
    func placeHypercallPage(_ value: UInt64, vcpu: Int) -> Bool {
        let address = value & ~0xFFF
        guard value & 0xFFF == 0, memory.write(address, HypercallPage.bytes) else { return false }
        xen.shared.latch(isLong: vcpus[vcpu].isLongMode)
        codeChanged(at: address, bytes: 4096)
        return true
    }
}
