// The software engine: one virtual x86-64 CPU, interpreted.
// Source: Intel SDM volumes 1-3; VCPUEngine in Engine.swift is what the hypervisor sees.
// Modelled: what CPUID.swift tells the guest; see the files of this module for details.
// One thread runs it; `attention` is how others reach that thread.

internal import CProcessor

public final class SoftwareCPU: VCPUEngine {
    /// Number of the vCPU, from 0.
    public let index: Int
    /// The registers and tables that the engine works on. Valid as long as the object is.
    let cpu: UnsafeMutablePointer<apus_vcpu>
    private let engine: Engine
    /// Delivering an interrupt ended in a triple fault; the next `run` says so.
    private var isShutDown = false

    /// `attention` is non-zero when the vCPU is to come out of its loop; the caller clears it.
    public init(
        index: Int, map: PhysicalMap, bus: any GuestBus, attention: UnsafeMutablePointer<UInt32>
    ) {
        self.index = index
        engine = .allocate(capacity: 1)
        engine.initialize(to: EngineState(map: map, bus: bus, attention: attention))
        if index < DirectExecution.mostProcesses, engine.pointee.translator != nil {
            engine.pointee.direct = map.file.flatMap(DirectExecution.init)
        }
        map.engines.add(engine)
        let room = Int(APUS_STACK_ROOM)
        let memory = apus_huge_allocate(room + apus_vcpu_bytes())
        cpu = (memory + room).bindMemory(to: apus_vcpu.self, capacity: 1)
        cpu.pointee.host_mxcsr = 0x1F80
        cpu.pointee.far = 1 << 32
        // Nobody can guess it, and whoever did would only find memory of no use.
        cpu.pointee.near_empty = apus_near(
            tag: 1 << 63 | UInt64.random(in: 0..<1 << 50) << 12,
            host: UInt64(UInt(bitPattern: engine.pointee.spaces.nowhere)), distance: 0)
        cpu.pointee.paravirtual = map.paravirtual == nil ? 0 : 1
        cpu.pointee.context = UnsafeMutableRawPointer(engine)
        cpu.pointee.attention = attention
        cpu.pointee.jumps = apus_first_jump(cpu)
        cpu.pointee.spaces = engine.pointee.spaces.shared
        cpu.pointee.tlb_first = apus_first_entry(cpu)
        cpu.clearTLB(sets: Int(APUS_TLB_WATCHED) * 2 + 1)
        apus_clear_near(cpu)
        cpu.resetState(powerOn: true)
        if index != 0 { cpu.pointee.halted = true }
    }

    deinit {
        engine.pointee.map.engines.remove(engine)
        engine.pointee.deallocate()
        engine.deinitialize(count: 1)
        engine.deallocate()
        let room = Int(APUS_STACK_ROOM)
        apus_huge_free(UnsafeMutableRawPointer(cpu) - room, room + apus_vcpu_bytes())
    }

    public func run() -> EngineExit {
        if isShutDown { return .shutdown }
        if cpu.pointee.halted {
            guard cpu.pointee.nmi_pending, !cpu.pointee.nmi_blocked else { return .halt }
            cpu.pointee.halted = false
        }
        switch cpu.runLoop() {
        case APUS_EXIT_ATTENTION: return .attention
        case APUS_EXIT_HALT: return .halt
        case APUS_EXIT_SHUTDOWN: return .shutdown
        case APUS_EXIT_HYPERCALL: return .hypercall
        case APUS_EXIT_INTERRUPT_WINDOW: return .interruptWindow
        case APUS_EXIT_LOST: return .failed("the process that ran the guest's programs has been killed")
        case APUS_EXIT_CRASH: return .failed(cpu.pv.pointee.crash.description)
        default: return .failed("the processor stopped with code \(cpu.pointee.exit_detail)")
        }
    }

    public var canTakeInterrupt: Bool { cpu.canTakeInterrupt }

    public var wantsInterruptWindow: Bool {
        get { cpu.pointee.window_wanted }
        set { cpu.pointee.window_wanted = newValue }
    }

    public func inject(vector: UInt8) {
        if cpu.pointee.cpl == 3 { cpu.noteProgramInterrupt() }
        cpu.pointee.halted = false
        cpu.enterGuest()
        defer { cpu.leaveGuest() }
        if !cpu.deliverInterrupt(vector: vector) { isShutDown = true }
    }

    public func injectNMI() { cpu.pointee.nmi_pending = true }

    public func reset(powerOn: Bool, isBootProcessor: Bool) {
        isShutDown = false
        cpu.resetState(powerOn: powerOn)
        cpu.flushTLB(keepGlobal: false)
        cpu.pointee.halted = !isBootProcessor
    }

    public func startup(vector: UInt8) {
        let cs = cpu.segmentPointer(segmentCS)
        cs.pointee.selector = UInt16(vector) << 8
        cs.pointee.base = UInt64(vector) << 12
        cs.pointee.limit = 0xFFFF
        cpu.pointee.rip = 0
        cpu.pointee.halted = false
        cpu.updateMode()
    }

    public func startFlat(entry: UInt64, registers: [UInt64]) {
        cpu.resetState(powerOn: false)
        for (index, value) in registers.prefix(8).enumerated() { cpu.gpr[index] = value & 0xFFFF_FFFF }
        for index in 0..<6 {
            cpu.segmentPointer(index).pointee = apus_segment(base: 0, limit: .max, selector: 0x10, access: 0xC093)
        }
        cpu.segmentPointer(segmentCS).pointee = apus_segment(base: 0, limit: .max, selector: 8, access: 0xC09B)
        cpu.segmentPointer(Seg.tr).pointee = apus_segment(base: 0, limit: 0x67, selector: 0, access: 0x8B)
        cpu.pointee.cr0 = CR0.protection | CR0.extensionType
        cpu.pointee.rip = entry & 0xFFFF_FFFF
        cpu.pointee.halted = false
        cpu.flushTLB(keepGlobal: false)
        cpu.updateMode()
    }

    public var directExecution: DirectExecution? { engine.pointee.direct }

    public var timeStampCounter: UInt64 { cpu.timeStampCounter }

    public func memoryMapChanged() {
        engine.pointee.takeRegions()
        cpu.flushTLB(keepGlobal: false)
        cpu.forgetAllCode()
    }

    public func codeChanged(at address: UInt64, bytes: UInt64) { cpu.forgetCode(address, bytes) }

    public func timeStoodStill(ticks: UInt64) { cpu.pointee.tsc_offset &-= ticks }

    public subscript(register register: Int) -> UInt64 {
        get { cpu.gpr[register & 15] }
        set { cpu.gpr[register & 15] = newValue }
    }

    public var isLongMode: Bool { cpu.pointee.code_size == 8 }
    public var privilegeLevel: Int { Int(cpu.pointee.cpl) }
}

extension SoftwareCPU {
    public func physicalAddress(ofLinear address: UInt64) -> UInt64? {
        let right = UInt8(1) << UInt8(APUS_TLB_SUPERVISOR)
        if cpu.isParavirtual, let known = apus_find_far(cpu.pointee.spaces, address, right) {
            return known.pointee.physical | address & 0xFFF
        }
        // A failed walk leaves an exception described; nobody raises it, and the next one overwrites it.
        return try? cpu.walk(address, Intent(mode: UInt8(APUS_TLB_SUPERVISOR_AC))).physical
    }
}
