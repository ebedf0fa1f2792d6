// A domain as its Xen side sees it, and a hypercall's way from a vCPU's registers to that side.
// Source: Xen public/arch-x86/xen-x86_64.h and xen-x86_32.h ("Hypercall interface"); xen/arch/x86/hvm/hypercall.c.
// Modelled: HVM and PVH domains. Quirks: frames of the hypervisor's own lie where the guest asks for them.

internal import DomainConfig
internal import Glibc
internal import Host
internal import Ioreq
internal import Processor
internal import Synchronization

extension Domain: XenMachine {
    /// `xen_platform_pci = 0` takes the platform device away and with it what drivers of disks and networks need;
    /// the rest of Xen stays, as there.
    static func flavour(of config: DomainConfig) -> XenDomain.Flavour { config.kind == .pv ? .pv : .hvm }

    func makeXen() -> XenDomain {
        guard let base = unsafe memory.frames.bytes.baseAddress else { preconditionFailure("frames are not mapped") }
        let frames = unsafe GuestArea(base, bytes: memory.frames.bytes.count)
        return XenDomain(
            self, frames: frames, handle: handle, flavour: Self.flavour(of: config),
            initialFrames: UInt64(config.memory) << 8)
    }

    /// The thread of the guest's Xen timers.
    func startXenTimers() throws(HostFailure) {
        guard xen.flavour != .plain else { return }
        _ = try HostThread("xen-timer") { [self] in
            xen.timers.keepTime(
                now: { pages.guestNanoseconds }, isPaused: { pages.isPaused }, isEnding: { isEnding },
                expire: {
                    log("the guest's watchdog ran out")
                    finish(.watchdog)
                },
                fire: { due in
                    if due.isPoll { pages.kick(due.vcpu) } else { xen.deliver(virq: 0, vcpu: due.vcpu) }
                })
        }
    }

    // MARK: XenMachine

    var domid: UInt16 { UInt16(truncatingIfNeeded: config.domid) }
    var vcpuCount: Int { config.vcpus }
    var ramFrames: UInt64 { memory.ram.size >> 12 }
    var maximumFrame: UInt64 {
        let high = memory.ram.highSize
        return ((high > 0 ? GuestRAM.highStart + high : memory.ram.lowSize) >> 12) - 1
    }
    var memoryMap: [E820Entry] {
        switch config.kind {
        case .hvm: GuestMap(memory.ram).boardEntries
        case .pvh: GuestMap(memory.ram).entries
        case .pv: [E820Entry(address: 0, size: memory.ram.size, type: 1)]
        }
    }

    func page(_ frame: UInt64) -> GuestArea? {
        guard frame < 1 << 40, let page = unsafe memory.ram.pointer(to: frame << 12, bytes: 4096) else { return nil }
        return unsafe GuestArea(page, bytes: 4096)
    }

    func discard(_ frame: UInt64) {
        guard frame < 1 << 40, let page = unsafe memory.ram.pointer(to: frame << 12, bytes: 4096) else { return }
        if unsafe madvise(page, 4096, MADV_REMOVE) != 0 {
            unsafe GuestArea(page, bytes: 4096).write([UInt8](repeating: 0, count: 4096), at: 0)
        }
        noteWritten(frame << 12, bytes: 4096)
    }

    func place(_ index: Int, at frame: UInt64?) { changeMemory { $0.frames[index] = frame.map { $0 << 12 } } }

    func unplace(_ frame: UInt64) -> Bool {
        var isFound = false
        changeMemory { layout in
            guard let placed = layout.frames.first(where: { $0.value == frame << 12 })?.key else { return }
            layout.frames[placed] = nil
            isFound = true
        }
        return isFound
    }

    var nanoseconds: UInt64 { pages.guestNanoseconds }
    var wallNanoseconds: UInt64 {
        var time = timespec()
        unsafe clock_gettime(CLOCK_REALTIME, &time)
        let seconds = Int64(time.tv_sec) &+ Int64(config.rtcOffset)
        return UInt64(bitPattern: seconds &* 1_000_000_000 &+ Int64(time.tv_nsec))
    }
    var tscKilohertz: UInt32 { leaves.tscKilohertz }

    func kick(_ vcpu: Int) { pages.kick(vcpu) }
    func raise(vector: UInt8, vcpu: Int) { chipset.raise(vector: vector, vcpu: vcpu) }
    func holds(vector: UInt8, vcpu: Int) -> Bool { chipset.holds(vector: vector, vcpu: vcpu) }
    func driveCallback(_ callback: HVMParameters.Callback?) {
        switch callback {
        case .line(let line): chipset.driveCallback(1 << UInt64(line))
        case .pin(let device, let pin):
            // Its I/O APIC input, and the ISA interrupt that PIRQ routing gives it (82371SB §2.2.9).
            let input = UInt64(1) << UInt64(16 + ((device * 4 + pin) & 31))
            let route = pirqRoutes.load(ordering: .relaxed) >> UInt32(((device + 3 + pin) & 3) * 8) & 0xFF
            chipset.driveCallback(input | (route & 0x80 == 0 ? 1 << UInt64(route & 0xF) & ~0x2107 : 0))
        case nil, .some(.none), .vector: chipset.driveCallback(0)
        }
    }
    func route(_ remotePort: Int, to vcpu: Int) { eventPages.route(remotePort, to: vcpu) }

    /// Makes the ports pending that back ends have sent on; whether there were any. Called by vCPUs outside their engines.
    func takeNotifications() -> Bool {
        guard eventPages.hasNotifications else { return false }
        eventPages.takeNotifications { xen.notify($0) }
        return true
    }

    func isUp(_ vcpu: Int) -> Bool { vcpus[vcpu].isUp }
    func bringUp(_ vcpu: Int, _ start: VCPUStart) { vcpus[vcpu].order(.start(start)) }
    func takeDown(_ vcpu: Int) { vcpus[vcpu].order(.stop) }
    func sendNMI(_ vcpu: Int) { vcpus[vcpu].order(.nonMaskable) }
    func yield() { sched_yield() }

    /// Guest RAM was written past the engines: tells them if there was code.
    func noteWritten(_ address: UInt64, bytes: UInt64) {
        guard let offset = memory.ram.offset(of: address, bytes: bytes),
            memory.ram.holdsCode(offset: offset, bytes: bytes)
        else { return }
        codeChanged(at: address, bytes: bytes)
    }

    // MARK: hypercalls

    private static let longArguments = [7, 6, 2, 10, 8]
    private static let shortArguments = [3, 1, 2, 6, 7]

    /// Carries out what the registers ask for and leaves the result in RAX.
    /// 64-bit callers: RDI, RSI, RDX, R10, R8; others: EBX, ECX, EDX, ESI, EDI.
    func carryOutHypercall(_ engine: any VCPUEngine, vcpu: Int) {
        let isLong = engine.isLongMode
        let mask: UInt64 = isLong ? .max : 0xFFFF_FFFF
        let number = engine[register: 0] & mask
        let arguments = (isLong ? Self.longArguments : Self.shortArguments).map { engine[register: $0] & mask }
        var result = XenError.notPermitted.rawValue
        if engine.privilegeLevel == 0 || engine.paravirtual?.isGuestKernel ?? false {
            let call = Hypercall(
                xen: xen, memory: EngineMemory(domain: self, engine: engine), vcpu: vcpu, isLong: isLong,
                cpu: engine.paravirtual)
            result = call.result(number, arguments)
        }
        engine[register: 0] = UInt64(bitPattern: result) & mask
    }
}

/// Guest memory by the page tables of the vCPU that called.
struct EngineMemory: LinearMemory {
    let domain: Domain
    let engine: any VCPUEngine

    func read(_ address: UInt64, _ count: Int) -> [UInt8]? {
        if Int(address & 0xFFF) + count <= 4096 {
            return engine.physicalAddress(ofLinear: address).flatMap { domain.memory.read($0, bytes: count) }
        }
        var result: [UInt8] = []
        for (start, bytes) in parts(address, count) {
            guard let physical = engine.physicalAddress(ofLinear: start),
                let part = domain.memory.read(physical, bytes: bytes)
            else { return nil }
            result += part
        }
        return result
    }

    func write(_ bytes: [UInt8], _ address: UInt64) -> Bool {
        var rest = bytes[...]
        for (start, count) in parts(address, bytes.count) {
            guard let physical = engine.physicalAddress(ofLinear: start),
                domain.memory.write(physical, Array(rest.prefix(count)))
            else { return false }
            domain.noteWritten(physical, bytes: UInt64(count))
            rest = rest.dropFirst(count)
        }
        return true
    }

    func span(_ address: UInt64, _ count: Int) -> GuestSpan? {
        var pieces: [GuestArea] = []
        for (start, bytes) in parts(address, count) {
            guard let physical = engine.physicalAddress(ofLinear: start),
                let area = domain.page(physical >> 12)?.part(Int(physical & 0xFFF), bytes)
            else { return nil }
            pieces.append(area)
        }
        return GuestSpan(pieces: pieces)
    }

    /// Parts that do not cross a page.
    private func parts(_ address: UInt64, _ count: Int) -> [(UInt64, Int)] {
        var result: [(UInt64, Int)] = []
        var done = 0
        while done < count {
            let start = address &+ UInt64(done)
            let bytes = min(count - done, 4096 - Int(start & 0xFFF))
            result.append((start, bytes))
            done += bytes
        }
        return result
    }
}

/// Guest-physical memory as a PVH guest is told of it, and what the hypervisor keeps at the end of low RAM.
struct GuestMap {
    let low: UInt64
    let high: UInt64

    init(_ ram: GuestRAM) { (low, high) = (ram.lowSize, ram.highSize) }

    static let specialPages: UInt64 = 4
    static let tableBytes: UInt64 = 0x1_0000

    /// Pages of the rings for xenstore and console.
    var storeFrame: UInt64 { (low >> 12) - 1 }
    var consoleFrame: UInt64 { (low >> 12) - 2 }
    /// ACPI tables, below the special pages.
    var tables: UInt64 { low - Self.specialPages << 12 - Self.tableBytes }

    /// As an HVM domain has it: firmware adds its own to that.
    var boardEntries: [E820Entry] {
        var entries = [
            E820Entry(address: 0, size: 0xA_0000, type: 1), E820Entry(address: 0xF_0000, size: 0x1_0000, type: 2),
            E820Entry(address: 0x10_0000, size: low - 0x10_0000, type: 1),
            E820Entry(address: 0xFC00_0000, size: 0x400_0000, type: 2),
        ]
        if high > 0 { entries.append(E820Entry(address: GuestRAM.highStart, size: high, type: 1)) }
        return entries
    }

    var entries: [E820Entry] {
        let (tables, special) = (tables, low - Self.specialPages << 12)
        var entries = [
            E820Entry(address: 0, size: 0xA_0000, type: 1),
            E820Entry(address: 0xA_0000, size: 0x6_0000, type: 2),
            E820Entry(address: 0x10_0000, size: tables - 0x10_0000, type: 1),
            E820Entry(address: tables, size: Self.tableBytes, type: 3),
            E820Entry(address: special, size: low - special, type: 2),
        ]
        if high > 0 { entries.append(E820Entry(address: GuestRAM.highStart, size: high, type: 1)) }
        return entries
    }
}
