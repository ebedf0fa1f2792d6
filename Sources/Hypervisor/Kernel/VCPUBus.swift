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
    private unowned let domain: Domain
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

    private func width(_ size: Int) -> Width { Width(rawValue: size) ?? .byte }

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
            _ = submit(Request(.pciConfig, address: address, size: size, isRead: false, data: UInt64(value)))
        default:
            _ = submit(Request(.port, address: UInt64(port), size: size, isRead: false, data: UInt64(value)))
        }
    }

    /// The PM timer lies at PMBASE + 8 (82371AB §7.2); the rest of that block is the device model's.
    private func pmTimerOffset(_ port: UInt16) -> UInt16? {
        let base = domain.pmBase.load(ordering: .relaxed)
        guard base != 0 else { return nil }
        let offset = port &- UInt16(truncatingIfNeeded: base) &- 8
        return offset < 4 ? offset : nil
    }

    /// Follows writes to PMBASE (82371AB §7.1.13: bits 15:6).
    private func notePMBase(_ address: UInt64, size: Int, value: UInt32) {
        guard address >> 32 == 0x0B, address & 0xFC == 0x40 else { return }
        let shift = UInt32(address & 3) * 8
        let mask = UInt32(truncatingIfNeeded: width(size).ones << UInt64(shift)) & 0xFFC0
        let old = domain.pmBase.load(ordering: .relaxed)
        domain.pmBase.store(old & ~mask | (value << shift) & mask, ordering: .relaxed)
    }

    /// Follows writes to PIRQRCA-D, by which a callback through a PCI pin finds its ISA interrupt.
    private func notePIRQRoute(_ address: UInt64, size: Int, value: UInt32) {
        guard address >> 32 == 0x08, address & 0xFC == 0x60 else { return }
        let shift = UInt32(address & 3) * 8
        let mask = UInt32(truncatingIfNeeded: width(size).ones << UInt64(shift))
        let old = domain.pirqRoutes.load(ordering: .relaxed)
        domain.pirqRoutes.store(old & ~mask | (value << shift) & mask, ordering: .relaxed)
    }

    /// SBDF << 32 | register, as Xen's IOREQ_TYPE_PCI_CONFIG has it; nil while the latch is not enabled.
    private func configAddress(_ port: UInt16) -> UInt64? {
        let latch = domain.configAddress.load(ordering: .relaxed)
        guard latch >> 31 != 0 else { return nil }
        return (UInt64(latch & 0xFF_FF00) >> 8) << 32 | UInt64(latch & 0xFC) + UInt64(port & 3)
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
        let request = Request(.memory, address: address, size: size, isRead: false, data: value)
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
