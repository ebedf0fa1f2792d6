// What one vCPU reaches outside RAM: chips in this process, the device model behind the ioreq pages.
// Source: PCI local bus 2.2 §3.2.2.3 (CF8/CFC); Xen xen/arch/x86/hvm/io.c for what is posted and what is routed by SBDF.
// Modelled: ports, memory, MSRs, CR8, CPUID. Not modelled: port accesses that straddle two owners (the first takes all).
// Quirks: a read of shadowed memory that nothing backs gives ones; writes to ROM are dropped.

internal import Chips
internal import Ioreq
internal import Machine
internal import Processor
internal import Synchronization

final class VCPUBus: GuestBus {
    private let index: Int
    unowned let domain: Domain
    private let chipset: Chipset
    private let client: IoreqClient
    private let memory: Memory
    private let counters: VCPUCounters
    private let scale: TickScale
    /// A PV domain has nothing of a PC, whatever ports its kernel tries.
    private let hasBoard: Bool
    /// First byte of the local APIC's window.
    private var localWindow: UInt64?
    /// IA32_TSC_DEADLINE as it was written.
    private var deadline: UInt64 = 0
    /// The vCPU, which has this bus; set as soon as it is there.
    weak var engine: (any VCPUEngine)?

    init(_ index: Int, _ domain: Domain, _ counters: VCPUCounters) {
        (self.index, self.domain, self.counters) = (index, domain, counters)
        scale = TickScale(hertz: domain.tsc.hertz)
        hasBoard = domain.memory.map.paravirtual == nil
        (chipset, client, memory) = (domain.chipset, domain.client, domain.memory)
        localWindow = chipset.localWindow(vcpu: index)
    }

    func width(_ size: Int) -> Width { Width(rawValue: size) ?? .byte }

    /// Hands an access to the device model; what it asked for meanwhile is done before the guest goes on.
    private func submit(_ request: Request) -> UInt64 {
        switch request.kind {
        case .port: counters.count(request.isRead ? .portRead : .portWrite)
        case .memory: counters.count(request.isRead ? .memoryRead : .memoryWrite)
        case .pciConfig: counters.count(.configuration)
        }
        let start = TickScale.now
        let value = client.submit(request, vcpu: index)
        counters.countAnswer(nanoseconds: scale.nanoseconds(since: start))
        if client.pages.hasCommands { client.pages.attend(index) }
        return value
    }

    // MARK: ports

    func readPort(_ port: UInt16, size: Int) -> UInt32 {
        let ones = UInt32(truncatingIfNeeded: width(size).ones)
        if !hasBoard { return ones }
        if Chipset.owns(port: port) {
            counters.count(.chip)
            return UInt32(truncatingIfNeeded: chipset.readPort(port, width(size), vcpu: index))
        }
        if let offset = pmTimerOffset(port) {
            return UInt32(truncatingIfNeeded: chipset.readPMTimer(offset: offset, width(size), vcpu: index))
        }
        switch port {
        case 0xCF8 where size == 4: return domain.configAddress.load(ordering: .relaxed)
        case 0xCFC...0xCFF:
            guard let address = configAddress(port) else { return ones }
            let request = Request(.pciConfig, address: address, size: size, isRead: true)
            return UInt32(truncatingIfNeeded: submit(request)) & ones
        default:
            if size == 1, let value = domain.serialMirror.read(port) ?? domain.driveMirror.read(port) {
                counters.count(.mirrored)
                return UInt32(value)
            }
            let request = Request(.port, address: UInt64(port), size: size, isRead: true)
            return UInt32(truncatingIfNeeded: submit(request)) & ones
        }
    }

    func writePort(_ port: UInt16, size: Int, value: UInt32) {
        if !hasBoard { return }
        if Chipset.owns(port: port) {
            counters.count(.chip)
            return chipset.writePort(port, width(size), UInt64(value), vcpu: index)
        }
        switch port {
        case 0xF0: chipset.driveNumericError(false, vcpu: index)
        case 0xCF8 where size == 4: domain.configAddress.store(value, ordering: .relaxed)
        case 0xCFC...0xCFF:
            guard let address = configAddress(port) else { return }
            notePMBase(address, size: size, value: value)
            notePIRQRoute(address, size: size, value: value)
            noteBusMasterBase(address, size: size, value: value)
            _ = submit(Request(.pciConfig, address: address, size: size, isRead: false, data: UInt64(value)))
        default:
            let request = Request(.port, address: UInt64(port), size: size, isRead: false, data: UInt64(value))
            if isPosted(port) { post(request) } else { _ = submit(request) }
        }
    }

    /// Registers of the IDE channels and of the first serial port whose writes need no answer: what a drive does about them
    /// shows in its status and its interrupt only, and a read of the first waits behind them. The data ports of drives are
    /// none of them.
    private func isPosted(_ port: UInt16) -> Bool {
        switch port {
        case 0x1F1...0x1F7, 0x171...0x177, 0x3F6, 0x376, SerialMirror.ports: return true
        default:
            let base = domain.busMasterBase.load(ordering: .relaxed)
            return base != 0 && port &- UInt16(truncatingIfNeeded: base) < 16
        }
    }

    func transferPort(_ port: UInt16, size: Int, count: Int, address: UInt64, isRead: Bool, descending: Bool) {
        guard count > 0 else { return }
        if Chipset.owns(port: port) || (0xCF8...0xCFF).contains(port) {
            return transferEach(port, size: size, count: count, address: address, isRead: isRead, descending)
        }
        var left = count
        // The engine names the lowest byte, an ioreq the first element moved.
        var address = descending ? address &+ UInt64((count - 1) * size) : address
        while left > 0 {
            let chunk = min(left, 1 << 16)
            _ = submit(
                Request(
                    .port, address: UInt64(port), size: size, count: chunk, isRead: isRead, data: address,
                    memoryOperand: true, descending: descending))
            left -= chunk
            let bytes = UInt64(chunk * size)
            address = descending ? address &- bytes : address &+ bytes
        }
    }

    /// One element at a time, for ports of this process.
    private func transferEach(
        _ port: UInt16, size: Int, count: Int, address: UInt64, isRead: Bool, _ descending: Bool
    ) {
        for element in 0..<count {
            let place = address &+ UInt64((descending ? count - 1 - element : element) * size)
            if isRead {
                let value = readPort(port, size: size)
                memory.write(place, (0..<size).map { UInt8(truncatingIfNeeded: value >> UInt32($0 * 8)) })
            } else if let bytes = memory.read(place, bytes: size) {
                let value = bytes.reversed().reduce(UInt32(0)) { $0 << 8 | UInt32($1) }
                writePort(port, size: size, value: value)
            }
        }
    }

    // MARK: memory

    func readMemory(_ address: UInt64, size: Int) -> UInt64 {
        let width = width(size)
        if let localWindow, address &- localWindow < 0x1000 {
            counters.count(.chip)
            return chipset.readLocal(address & 0xFFF, width, vcpu: index)
        }
        if chipset.owns(memory: address) {
            counters.count(.chip)
            return chipset.readMemory(address, width, vcpu: index)
        }
        if GuestMemoryLayout.shadowed.contains(address) { return width.ones }
        return submit(Request(.memory, address: address, size: size, isRead: true)) & width.ones
    }

    func writeMemory(_ address: UInt64, size: Int, value: UInt64) {
        if address &- 0xA_0000 < 0x2_0000 { return post(address, size: size, value: value) }
        let width = width(size)
        if let localWindow, address &- localWindow < 0x1000 {
            counters.count(.chip)
            return chipset.writeLocal(address & 0xFFF, width, value, vcpu: index)
        }
        if chipset.owns(memory: address) {
            counters.count(.chip)
            return chipset.writeMemory(address, width, value, vcpu: index)
        }
        if GuestMemoryLayout.shadowed.contains(address) {
            return memory.writeShadowed(address, size: size, value: value)
        }
        if address >= GuestMemoryLayout.romWindow, address < 1 << 32 { return }
        _ = submit(Request(.memory, address: address, size: size, isRead: false, data: value))
    }

    /// VGA memory: writes need no answer.
    private func post(_ address: UInt64, size: Int, value: UInt64) {
        if size == 8 {
            post(address, size: 4, value: value & 0xFFFF_FFFF)
            return post(address &+ 4, size: 4, value: value >> 32)
        }
        post(Request(.memory, address: address, size: size, isRead: false, data: value))
    }

    /// Does not wait, unless the ring is full.
    private func post(_ request: Request) {
        guard domain.post(request) else {
            _ = submit(request)
            return
        }
        counters.count(.posted)
    }

    // MARK: registers

    func readMSR(_ number: UInt32) -> UInt64? {
        switch number {
        case 0x1B, 0x800...0x8FF: return chipset.readMSR(number, vcpu: index)
        case 0x6E0: return chipset.readMSR(number, vcpu: index) == 0 ? 0 : deadline
        case XenLeaves.hypercallMSR: return 0
        default: return nil
        }
    }

    func writeMSR(_ number: UInt32, _ value: UInt64) -> Bool {
        switch number {
        case 0x6E0:
            deadline = value
            chipset.writeDeadline(value, counter: engine?.timeStampCounter ?? 0, vcpu: index)
            return true
        case 0x1B, 0x800...0x8FF:
            let isTaken = chipset.writeMSR(number, value, vcpu: index)
            if number == 0x1B { localWindow = chipset.localWindow(vcpu: index) }
            return isTaken
        case XenLeaves.hypercallMSR: return domain.placeHypercallPage(value, vcpu: index)
        default: return false
        }
    }

    /// Hypercalls that neither wait nor change what the engine is given between runs; bit n: number n.
    private static let inner: UInt64 =
        [1, 3, 5, 8, 9, 10, 13, 14, 15, 17, 25, 26, 32].reduce(0) { $0 | 1 << UInt64($1) }
    /// VCPUOP_set_singleshot_timer and its end.
    private static let timers: ClosedRange<UInt64> = 8...9

    func hypercall(_ number: UInt64) -> Bool {
        guard let engine, number < 64 else { return false }
        let isTimer = number == 24 && Self.timers.contains(engine[register: 7])
        guard isTimer || Self.inner >> number & 1 != 0 else { return false }
        counters.countHypercall(number)
        let vcpu = domain.vcpus[index]
        vcpu.leaveGuest()
        domain.carryOutHypercall(engine, vcpu: index)
        vcpu.enterGuest()
        // A list of calls may hold one that waits.
        if domain.xen.isWaiting(index) { domain.kick(index) }
        return true
    }

    /// Only the first processor's FERR# is wired.
    func signalFloatingPointError(_ isPending: Bool) {
        if index == 0 { chipset.driveNumericError(isPending, vcpu: index) }
    }

    var taskPriority: UInt8 {
        get { chipset.taskPriority(vcpu: index) }
        set { chipset.setTaskPriority(newValue, vcpu: index) }
    }

    func cpuid(leaf: UInt32, subleaf: UInt32, _ own: CPUIDResult) -> CPUIDResult? {
        if let answer = domain.leaves.answer(leaf, subleaf, vcpu: index) { return answer }
        let hasAPIC = leaf == 1 ? chipset.isAPICEnabled(vcpu: index) : true
        return domain.leaves.amend(leaf, subleaf, own, vcpu: index, hasAPIC: hasAPIC)
    }

    var tscFrequency: UInt64 { domain.tsc.hertz }
}
