// What a vCPU engine is: it runs guest code until something outside must act.
// The software engine and, later, KVM stand behind the same protocol.

/// Why an engine came back to its caller.
public enum EngineExit: Equatable, Sendable {
    /// The attention word was set.
    case attention
    /// An interrupt that was announced with `wantsInterruptWindow` can be delivered now.
    case interruptWindow
    /// HLT; nothing runs until an interrupt, NMI or INIT.
    case halt
    /// Triple fault.
    case shutdown
    /// VMCALL or VMMCALL, or a PV kernel's SYSCALL; the registers hold number and arguments, RIP is behind it.
    case hypercall
    /// The engine cannot go on; a sentence says why.
    case failed(String)
}

/// One virtual CPU. Used by one thread, which is its own.
public protocol VCPUEngine: AnyObject {
    /// Runs until an exit. Port and memory accesses that are no RAM go to the bus in the middle of it.
    func run() -> EngineExit
    /// Whether an external interrupt could be delivered right now (IF, no shadow).
    var canTakeInterrupt: Bool { get }
    /// Asks for `.interruptWindow` as soon as `canTakeInterrupt` turns true.
    var wantsInterruptWindow: Bool { get set }
    /// Delivers an external interrupt; only when `canTakeInterrupt`. Ends a halt.
    func inject(vector: UInt8)
    /// Delivers an NMI as soon as none is being handled. Ends a halt.
    func injectNMI()
    /// INIT or power-on reset; `isBootProcessor` starts at the reset vector, others wait for `startup`.
    func reset(powerOn: Bool, isBootProcessor: Bool)
    /// Start-up IPI: begins at `vector` << 12 in real mode.
    func startup(vector: UInt8)
    /// Starts, or waits to be scheduled, in flat 32-bit protected mode without paging, interrupts off.
    /// `registers`: EAX, ECX, EDX, EBX, ESP, EBP, ESI, EDI.
    func startFlat(entry: UInt64, registers: [UInt64])
    /// Drops translations: guest-physical memory is laid out differently now.
    func memoryMapChanged()
    /// Forgets code decoded from these bytes of guest RAM; another process wrote them.
    func codeChanged(at address: UInt64, bytes: UInt64)
    /// Guest time stood still for so many ticks of the host's time stamp counter; the guest's goes on where it was.
    func timeStoodStill(ticks: UInt64)
    /// The time stamp counter as RDTSC would give it to the guest now.
    var timeStampCounter: UInt64 { get }
    /// General registers in hardware order (RAX, RCX, RDX, RBX, RSP ... R15), for hypercalls.
    subscript(register register: Int) -> UInt64 { get set }
    /// In 64-bit mode, which is what a hypercall's ABI depends on.
    var isLongMode: Bool { get }
    /// Current privilege level.
    var privilegeLevel: Int { get }
    /// Where a linear address lies in guest-physical memory by the present page tables; nil if it is not mapped.
    func physicalAddress(ofLinear address: UInt64) -> UInt64?
    /// What hypercalls of PV guests work on; nil: this is none's vCPU.
    var paravirtual: (any ParavirtualCPU)? { get }
    /// Where the guest's programs run by themselves; nil: they do not.
    var directExecution: DirectExecution? { get }
}

extension VCPUEngine {
    public var directExecution: DirectExecution? { nil }
    public var paravirtual: (any ParavirtualCPU)? { nil }
}

/// Everything of a machine that is not RAM, as a vCPU reaches it. Called on the vCPU's thread.
public protocol GuestBus: AnyObject {
    /// `size`: 1, 2 or 4 bytes.
    func readPort(_ port: UInt16, size: Int) -> UInt32
    func writePort(_ port: UInt16, size: Int, value: UInt32)
    /// INS and OUTS with many elements: moves `count` elements between `port` and the contiguous RAM whose
    /// lowest byte is at `address`; the element there moves first, or last if `descending`.
    func transferPort(_ port: UInt16, size: Int, count: Int, address: UInt64, isRead: Bool, descending: Bool)
    /// Memory that is no RAM; `size`: 1, 2, 4 or 8 bytes, not crossing a page.
    func readMemory(_ address: UInt64, size: Int) -> UInt64
    func writeMemory(_ address: UInt64, size: Int, value: UInt64)
    /// Model-specific registers that belong to the machine: APIC base, x2APIC, Xen's. nil: no such register.
    func readMSR(_ number: UInt32) -> UInt64?
    /// false: no such register or a value it does not take (the guest gets #GP).
    func writeMSR(_ number: UInt32, _ value: UInt64) -> Bool
    /// CR8, the task priority of the local APIC (bits 7:4 of TPR).
    var taskPriority: UInt8 { get set }
    /// The machine's CPUID leaves (0x40000000 and up, APIC ids); nil: the engine's own answer stands.
    func cpuid(leaf: UInt32, subleaf: UInt32, _ own: CPUIDResult) -> CPUIDResult?
    /// Time stamp counter ticks per second that the guest is told, and its value now.
    var tscFrequency: UInt64 { get }
    /// A PV kernel's hypercall, whose number is in RAX: carried out at once, or (false) when the engine has come back.
    func hypercall(_ number: UInt64) -> Bool
    /// FERR#: an unmasked x87 exception waits for the guest, which has CR0.NE clear and so is told by IRQ 13.
    func signalFloatingPointError(_ isPending: Bool)
}

extension GuestBus {
    /// A machine without that line.
    public func signalFloatingPointError(_ isPending: Bool) {}
    /// A machine that sees to hypercalls between runs.
    public func hypercall(_ number: UInt64) -> Bool { false }
}

/// What CPUID returns.
public struct CPUIDResult: Equatable, Sendable {
    public var eax, ebx, ecx, edx: UInt32
    public init(eax: UInt32, ebx: UInt32, ecx: UInt32, edx: UInt32) {
        (self.eax, self.ebx, self.ecx, self.edx) = (eax, ebx, ecx, edx)
    }
}

/// A range of guest-physical memory that is backed by host memory.
public struct PhysicalRegion {
    public var start: UInt64
    public var bytes: UInt64
    public var host: UnsafeMutableRawPointer
    /// false: ROM; writes go to the bus, which drops them.
    public var isWritable: Bool
    /// One byte per page, non-zero where code was decoded; shared with whoever else writes the region.
    public var codeMap: UnsafeMutablePointer<UInt8>?
    public init(
        start: UInt64, bytes: UInt64, host: UnsafeMutableRawPointer, isWritable: Bool,
        codeMap: UnsafeMutablePointer<UInt8>?
    ) {
        (self.start, self.bytes, self.host, self.isWritable, self.codeMap) = (start, bytes, host, isWritable, codeMap)
    }
}

/// A memory file and where this process has mapped it, whole.
public struct MemoryFile {
    public var descriptor: Int32
    public var bytes: UnsafeMutableRawBufferPointer
    public init(descriptor: Int32, bytes: UnsafeMutableRawBufferPointer) {
        (self.descriptor, self.bytes) = (descriptor, bytes)
    }
}

/// Guest-physical memory of one domain as its engines see it: disjoint, page-aligned regions.
/// Replaced as a whole, with every vCPU out of its engine or told by `memoryMapChanged`.
public final class PhysicalMap: @unchecked Sendable {
    // Invariant: `regions` is only replaced while no engine of the domain runs guest code.
    /// Sorted by start address; what lies between them is the bus's.
    public private(set) var regions: [PhysicalRegion] = []
    /// The software engines that run on this memory.
    let engines = EngineList()
    /// Of a PV domain; set before its engines are made.
    public let paravirtual: ParavirtualMemory?
    /// Where most of it lies; nil: no other process can map it.
    public let file: MemoryFile?
    public init(paravirtual: ParavirtualMemory? = nil, file: MemoryFile? = nil) {
        (self.paravirtual, self.file) = (paravirtual, file)
    }

    /// What the CPU's address lines let through: without bit 20 while the A20 gate is closed.
    public private(set) var addressMask = UInt64.max

    public func replace(with regions: [PhysicalRegion], addressMask: UInt64 = .max) {
        self.regions = regions.sorted { $0.start < $1.start }
        self.addressMask = addressMask
    }
}
