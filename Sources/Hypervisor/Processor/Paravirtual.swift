// What a hypervisor gives the vCPU of a PV guest, beside its registers.
// Source: Xen public/xen.h, public/arch-x86/xen.h and xen-x86_64.h (struct vcpu_guest_context, trap_info).
// Modelled: 64-bit guests. The guest's kernel runs at CPL 1 here and believes to be at CPL 3, as on Xen; its programs
// run at CPL 3. So page rights, code and jump caches tell the two apart as they do for any system.

internal import CProcessor
internal import Synchronization

/// Where a PV guest wants an exception (struct trap_info).
public struct ParavirtualTrap: Equatable, Sendable {
    /// 0: nowhere.
    public var address: UInt64
    /// The least privileged level from which INT may name it.
    public var level: UInt8
    /// Events are masked on the way there.
    public var masksEvents: Bool
    public init(address: UInt64 = 0, level: UInt8 = 0, masksEvents: Bool = false) {
        (self.address, self.level, self.masksEvents) = (address, level, masksEvents)
    }
}

/// Entry points of a PV guest that are no exceptions.
public enum ParavirtualCallback: Int, CaseIterable, Sendable {
    case event, failsafe, systemCall, systemCall32, systemEnter
}

/// Bases of segments that a PV guest sets by hypercall.
public enum ParavirtualBase: Sendable { case fs, gsUser, gsKernel }

/// How a vCPU of a PV guest starts (struct vcpu_guest_context).
public struct ParavirtualStart: Equatable, Sendable {
    /// In hardware order.
    public var registers = [UInt64](repeating: 0, count: 16)
    public var rip: UInt64 = 0
    public var flags: UInt64 = 0x202
    /// Of ES, CS, SS, DS, FS and GS.
    public var selectors: [UInt16] = [0, 0xE033, 0xE02B, 0, 0, 0]
    /// Starts in the guest's kernel, not in one of its programs.
    public var isKernel = true
    /// Physical addresses of top-level tables, 0: none.
    public var kernelTables: UInt64 = 0
    public var userTables: UInt64 = 0
    public var kernelStack: UInt64 = 0
    public var gdtFrames: [UInt64] = []
    public var gdtEntries = 0
    public var ldtBase: UInt64 = 0
    public var ldtEntries = 0
    public var traps: [ParavirtualTrap] = []
    public var callbacks: [ParavirtualCallback: ParavirtualTrap] = [:]
    public var fsBase: UInt64 = 0
    public var gsKernel: UInt64 = 0
    public var gsUser: UInt64 = 0
    public init() {}
}

/// What hypercalls do to the vCPU that makes them. On its own thread, outside `run`.
public protocol ParavirtualCPU: AnyObject {
    func start(_ start: ParavirtualStart)
    /// The guest's vcpu_info, 64 bytes that stay mapped.
    func useInfo(_ info: UnsafeMutableRawPointer)
    func setTrap(_ vector: UInt8, _ trap: ParavirtualTrap)
    func clearTraps()
    func setCallback(_ callback: ParavirtualCallback, _ trap: ParavirtualTrap)
    func setKernelStack(_ pointer: UInt64)
    func setGDT(frames: [UInt64], entries: Int)
    func setLDT(base: UInt64, entries: Int)
    /// Goes to other tables, by the physical address of their top level. What is known of pages is forgotten.
    func setKernelTables(_ root: UInt64)
    func setUserTables(_ root: UInt64)
    func flushAll()
    func flushPage(_ linear: UInt64)
    /// false: not canonical.
    func setBase(_ base: ParavirtualBase, _ value: UInt64) -> Bool
    /// Loads GS for the guest's programs.
    func setUserGS(_ selector: UInt16)
    func setTaskSwitched(_ isSet: Bool)
    /// false: there is no such register, or it does not take that.
    func setDebugRegister(_ number: Int, _ value: UInt64) -> Bool
    func debugRegister(_ number: Int) -> UInt64?
    /// The guest kernel's right to ports, 0 to 3.
    var portLevel: UInt8 { get set }
    /// The guest's kernel runs, not one of its programs.
    var isGuestKernel: Bool { get }
    var kernelTables: UInt64 { get }
}

/// The pages that are a PV domain's page tables, and the memory it may read but does not have: for all its vCPUs.
@safe public final class ParavirtualMemory: @unchecked Sendable {
    // Invariant: everything but the atomic `levels` is constant. A guest that changes tables while another of its vCPUs
    // walks them gets one or the other; what it orders itself is ordered by the flushes it asks for.
    /// Frames of RAM.
    public let frames: UInt64
    /// Physical address and bytes of the machine-to-physical table.
    public let table: UInt64
    public let tableBytes: UInt64
    /// Level of the page table in each frame, 0: none known.
    let levels: UnsafeMutablePointer<Atomic<UInt8>>

    public init(frames: UInt64, table: UInt64, tableBytes: UInt64) {
        (self.frames, self.table, self.tableBytes) = (frames, table, tableBytes)
        levels = .allocate(capacity: Int(frames))
        for frame in 0..<Int(frames) { (levels + frame).initialize(to: Atomic(0)) }
    }
    deinit { levels.deallocate() }

    /// The level of the page table in `frame`; 0: it has none.
    public subscript(frame: UInt64) -> UInt8 {
        get { frame < frames ? levels[Int(frame)].load(ordering: .relaxed) : 0 }
        set { if frame < frames { levels[Int(frame)].store(newValue, ordering: .relaxed) } }
    }
}

/// Linear addresses that are the hypervisor's own: 16 slots of the top-level table.
enum HypervisorHole {
    static let start: UInt64 = 0xFFFF_8000_0000_0000
    static let end: UInt64 = 0xFFFF_8800_0000_0000
    @inline(__always) static func contains(_ linear: UInt64) -> Bool { linear &- start < end &- start }
}

/// What a PV domain does not survive, with the address it is about.
enum ParavirtualCrash {
    case none
    case noHandler(UInt64)
    /// An exception's vector, error code, CR2 and RIP.
    case exception(UInt8, UInt32, UInt64, UInt64)
    case foreignStack(UInt64)
    case badStack(UInt64)
    case badFrame(UInt64)
    case noTables

    var description: String {
        func hex(_ value: UInt64) -> String { String(value, radix: 16) }
        switch self {
        case .none: return "the domain has crashed"
        case .noHandler(let rip): return "there is no handler for what happened at \(hex(rip))"
        case .exception(let vector, let error, let address, let rip):
            return
                "exception \(vector) without a handler: error \(hex(UInt64(error))), CR2 \(hex(address)), RIP \(hex(rip))"
        case .foreignStack(let stack): return "the kernel's stack is at \(hex(stack)), which is the hypervisor's"
        case .badStack(let stack): return "the kernel's stack cannot be written at \(hex(stack))"
        case .badFrame(let stack): return "the frame of iret cannot be read at \(hex(stack))"
        case .noTables: return "iret to a program while there are no tables for programs"
        }
    }
}

/// The engine's part of it.
struct ParavirtualState {
    private let memory: ParavirtualMemory
    /// What walks need of `memory`, without a class in between.
    let levels: UnsafeMutablePointer<Atomic<UInt8>>
    let frames: UInt64
    let table: UInt64
    let tableBytes: UInt64
    let traps: UnsafeMutablePointer<ParavirtualTrap>
    let callbacks: UnsafeMutablePointer<ParavirtualTrap>
    /// vcpu_info; one of its own until the guest's is known.
    var info: UnsafeMutableRawPointer
    private let noInfo: UnsafeMutableRawPointer
    var kernelStack: UInt64 = 0
    let gdtFrames: UnsafeMutablePointer<UInt64>
    var gdtEntries = 0
    var ldtBase: UInt64 = 0
    var ldtEntries = 0
    var portLevel: UInt8 = 0
    /// Why the domain cannot go on.
    var crash = ParavirtualCrash.none

    init(_ memory: ParavirtualMemory) {
        self.memory = memory
        (levels, frames, table, tableBytes) = (memory.levels, memory.frames, memory.table, memory.tableBytes)
        traps = .allocate(capacity: 256)
        traps.initialize(repeating: ParavirtualTrap(), count: 256)
        callbacks = .allocate(capacity: ParavirtualCallback.allCases.count)
        callbacks.initialize(repeating: ParavirtualTrap(), count: ParavirtualCallback.allCases.count)
        gdtFrames = .allocate(capacity: 16)
        gdtFrames.initialize(repeating: 0, count: 16)
        noInfo = .allocate(byteCount: 64, alignment: 64)
        noInfo.initializeMemory(as: UInt8.self, repeating: 0, count: 64)
        noInfo.storeBytes(of: 1, toByteOffset: 1, as: UInt8.self)
        info = noInfo
    }

    func isTable(_ frame: UInt64) -> Bool {
        frame < frames && levels[Int(truncatingIfNeeded: frame)].load(ordering: .relaxed) != 0
    }

    func deallocate() {
        traps.deallocate()
        callbacks.deallocate()
        gdtFrames.deallocate()
        noInfo.deallocate()
    }

    /// evtchn_upcall_mask.
    var areEventsMasked: Bool {
        get { info.load(fromByteOffset: 1, as: UInt8.self) != 0 }
        nonmutating set { info.storeBytes(of: newValue ? 1 : 0, toByteOffset: 1, as: UInt8.self) }
    }
    /// An event waits and may be delivered.
    @inline(__always) var hasEvent: Bool { apus_flag(info.assumingMemoryBound(to: UInt8.self)) && !areEventsMasked }
    /// The last page fault's address, arch.cr2.
    var faultAddress: UInt64 {
        get { info.load(fromByteOffset: 16, as: UInt64.self) }
        nonmutating set { info.storeBytes(of: newValue, toByteOffset: 16, as: UInt64.self) }
    }

    subscript(callback: ParavirtualCallback) -> ParavirtualTrap {
        get { callbacks[callback.rawValue] }
        nonmutating set { callbacks[callback.rawValue] = newValue }
    }
}
