// One virtual CPU: a thread that runs its engine, answers its exits and gives it interrupts.
// Source: Intel SDM volume 3 §9.1 (INIT), §11.4.7 (wait-for-SIPI).
// Modelled: halt, INIT, start-up, NMI, external interrupts. Not modelled: SMI, hot-plug.
// Order of work: events of back ends, commands of the device model, its lines, signals, interrupts; then guest code.

internal import Glibc
internal import Host
internal import Ioreq
internal import Processor
internal import Synchronization

@safe final class VCPU: @unchecked Sendable {
    // Invariant: `engine` and what follows it belong to the vCPU's thread once `start` was called;
    // `errands` and `sleeps` are the only words that others touch.
    let index: Int
    private unowned let domain: Domain
    private let bus: VCPUBus
    let counters = VCPUCounters()
    private let engine: any VCPUEngine
    private var isHalted = false
    private var waitsForStartup: Bool
    private var patience = Patience()
    private let errands = Mutex<[Errand]>([])
    private let hasErrands = Atomic<Bool>(false)
    private let sleeps = Atomic<Bool>(false)
    private let thread = Mutex<HostThread?>(nil)
    private let orders = Mutex<[Order]>([])
    private let hasOrders = Atomic<Bool>(false)
    private let running = Atomic<Bool>(false)
    private let dead = Atomic<Bool>(false)
    private let flushes = FlushRequests()

    /// Something that other threads want done to the engine, which only its own thread may touch.
    enum Errand {
        case memoryMapChanged
        case codeChanged(at: UInt64, bytes: UInt64)
        case timeStoodStill(ticks: UInt64)
        /// A PV guest's vcpu_info.
        case infoMoved
    }

    /// What a hypercall wants done to a vCPU, whether it runs or not.
    enum Order {
        case start(VCPUStart)
        case stop
        case nonMaskable
    }

    init(_ index: Int, _ domain: Domain, _ make: EngineMaker) {
        (self.index, self.domain) = (index, domain)
        bus = VCPUBus(index, domain, counters)
        unsafe engine = make(index, domain.memory.map, bus, domain.pages.attention(index))
        waitsForStartup = index != 0
        bus.engine = engine
        engine.reset(powerOn: true, isBootProcessor: index == 0)
        running.store(index == 0, ordering: .relaxed)
        useInfo()
    }

    private func useInfo() {
        guard let paravirtual = engine.paravirtual, let info = domain.xen.shared.info(index) else { return }
        unsafe paravirtual.useInfo(info.base)
    }

    func start() throws(HostFailure) {
        let thread = try HostThread("vcpu\(index)") { [self] in loop() }
        self.thread.withLock { $0 = thread }
        guard let direct = engine.directExecution else { return }
        _ = try HostThread("direct\(index)", stackBytes: 1 << 16) { [domain, index] in
            direct.watch { domain.pages.sleep(index, nanoseconds: nil) }
        }
    }

    /// On its own thread: whether it runs 64-bit code.
    var isLongMode: Bool { engine.isLongMode }

    var isSleeping: Bool { sleeps.load(ordering: .relaxed) }
    var cpuNanoseconds: UInt64 {
        thread.withLock { $0?.cpuNanoseconds ?? 0 } &+ (engine.directExecution?.cpuNanoseconds ?? 0)
    }

    /// Where the guest's programs run by themselves, if the host allows that.
    var directExecution: DirectExecution? { engine.directExecution }

    /// Has the engine told before it runs on.
    func send(_ errand: Errand) {
        errands.withLock { $0.append(errand) }
        hasErrands.store(true, ordering: .releasing)
    }

    /// Not waiting to be started.
    var isUp: Bool { running.load(ordering: .acquiring) }

    /// It halted with interrupts off: only an NMI or INIT would bring it back.
    var isDead: Bool { dead.load(ordering: .acquiring) }

    func order(_ order: Order) {
        orders.withLock { $0.append(order) }
        hasOrders.store(true, ordering: .releasing)
        domain.pages.kick(index)
    }

    private func takeOrders() {
        guard hasOrders.exchange(false, ordering: .acquiring) else { return }
        let list = orders.withLock { orders in
            defer { orders = [] }
            return orders
        }
        for order in list {
            switch order {
            case .start(let start):
                begin(start)
                (isHalted, waitsForStartup) = (false, false)
            case .stop: waitsForStartup = true
            case .nonMaskable where !waitsForStartup:
                engine.injectNMI()
                isHalted = false
            case .nonMaskable: break
            }
        }
    }

    private func begin(_ start: VCPUStart) {
        switch start {
        case .flat(let start): engine.startFlat(entry: start.entry, registers: start.registers)
        case .paravirtual(let start): engine.paravirtual?.start(start)
        case .resumed: break
        }
    }

    /// Another vCPU of a PV guest changed tables that both use; nil: any of them.
    func wantFlush(_ page: UInt64?) {
        if flushes.add(page) { domain.pages.kick(index) }
    }

    /// Waits until no guest code runs here that does not know.
    func awaitFlush() { flushes.await() }

    /// From here on no guest code runs; see `awaitFlush`.
    func leaveGuest() { flushes.leaveGuest() }

    /// Forgets what others wanted forgotten; guest code may run from here on.
    func enterGuest() {
        switch flushes.enterGuest() {
        case .nothing: break
        case .pages(let pages): for page in pages { engine.paravirtual?.flushPage(page) }
        case .all: engine.paravirtual?.flushAll()
        }
    }

    /// Tells Xen's side when the vCPU comes to life or goes.
    private func noteStartup() {
        guard running.exchange(!waitsForStartup, ordering: .acquiringAndReleasing) == waitsForStartup else { return }
        if !waitsForStartup { domain.xen.note(index, isBlocked: false) }
    }

    /// Xen takes HLT with interrupts off for a shutdown of the vCPU (hvm_hlt), and the last one's for the domain's.
    private func noteDeath() {
        dead.store(domain.xen.flavour != .plain && !engine.canTakeInterrupt, ordering: .sequentiallyConsistent)
        if isDead { domain.noteDeadVCPU() }
    }

    private func loop() {
        let pages = domain.pages
        while !domain.isEnding {
            // Events come first: they raise interrupts, and call for attention once more.
            repeat { _ = pages.takeAttention(index) } while domain.takeNotifications()
            domain.carryOutCommands()
            if index == 0 { domain.chipset.takeLines(vcpu: 0) }
            let work = domain.chipset.work(vcpu: index)
            handle(work.signals)
            takeOrders()
            noteStartup()
            domain.xen.attend(index, hasInterrupt: work.hasInterrupt)
            let callback = domain.xen.callbackVector(index)
            let hasInterrupt = work.hasInterrupt || callback != nil
            if waitsForStartup || domain.xen.isWaiting(index)
                || isHalted && !(hasInterrupt && engine.canTakeInterrupt)
            {
                sleep()
                continue
            }
            dead.store(false, ordering: .relaxed)
            domain.gate.enter()
            runErrands()
            domain.xen.refreshClock(index) { engine.timeStampCounter }
            deliver(work.hasInterrupt, callback: callback)
            enterGuest()
            let exit = engine.run()
            leaveGuest()
            domain.gate.leave()
            handle(exit)
        }
    }

    /// Until somebody kicks: the timer thread, the device model, another vCPU.
    private func sleep() {
        sleeps.store(true, ordering: .relaxed)
        if !waitsForStartup { domain.xen.note(index, isBlocked: true) }
        let began = monotonicNanoseconds()
        if !domain.pages.look(index, from: began, &patience) { domain.pages.sleep(index, nanoseconds: nil) }
        patience.note(waited: monotonicNanoseconds() &- began)
        if !waitsForStartup { domain.xen.note(index, isBlocked: false) }
        sleeps.store(false, ordering: .relaxed)
    }

    private func runErrands() {
        guard hasErrands.exchange(false, ordering: .acquiring) else { return }
        let list = errands.withLock { errands in
            defer { errands = [] }
            return errands
        }
        for errand in list {
            switch errand {
            case .memoryMapChanged: engine.memoryMapChanged()
            case .codeChanged(let address, let bytes): engine.codeChanged(at: address, bytes: bytes)
            case .timeStoodStill(let ticks): engine.timeStoodStill(ticks: ticks)
            case .infoMoved: useInfo()
            }
        }
    }

    private func handle(_ signals: Fabric.Signals) {
        if signals.isEmpty { return }
        if signals.initialise {
            engine.reset(powerOn: false, isBootProcessor: index == 0)
            (isHalted, waitsForStartup) = (false, index != 0)
        }
        if let vector = signals.startup, waitsForStartup {
            engine.startup(vector: vector)
            waitsForStartup = false
        }
        if signals.nonMaskable, !waitsForStartup {
            engine.injectNMI()
            isHalted = false
        }
    }

    /// `callback`: a vector that comes from Xen past the local APIC.
    private func deliver(_ hasInterrupt: Bool, callback: UInt8?) {
        guard hasInterrupt || callback != nil else {
            if engine.wantsInterruptWindow { engine.wantsInterruptWindow = false }
            return
        }
        guard engine.canTakeInterrupt else {
            engine.wantsInterruptWindow = true
            return
        }
        if let callback {
            engine.inject(vector: callback)
            counters.count(.callback)
            isHalted = false
            engine.wantsInterruptWindow = hasInterrupt
            return
        }
        let (vector, more) = domain.chipset.acknowledge(vcpu: index)
        if let vector {
            engine.inject(vector: vector)
            counters.count(.interrupt)
            isHalted = false
        }
        engine.wantsInterruptWindow = more
    }

    private func handle(_ exit: EngineExit) {
        switch exit {
        case .attention: counters.count(.attention)
        case .interruptWindow: counters.count(.interruptWindow)
        case .halt:
            counters.count(.halt)
            isHalted = true
            noteDeath()
        case .hypercall:
            counters.countHypercall(engine[register: 0])
            domain.carryOutHypercall(engine, vcpu: index)
        case .shutdown:
            domain.log("vCPU \(index): triple fault")
            domain.finish(.reboot)
        case .failed(let reason):
            domain.log("vCPU \(index): \(reason)")
            domain.finish(.crash)
        }
    }
}
