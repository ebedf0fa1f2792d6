internal import Host
internal import Synchronization

/// What the device model tells the hypervisor. The vCPUs carry commands out before they go
/// on behind the access that caused them, and before they look at interrupt lines.
public enum Command: Equatable, Sendable {
    /// Video memory is now at this guest-physical address (nil: nowhere).
    case mapVideo(at: UInt64?)
    /// PAM segment 0...12 (0xC0000 + n * 16 KiB; 12 is 0xF0000, 64 KiB): reads and writes reach RAM.
    case shadow(segment: Int, read: Bool, write: Bool)
    /// The device model wrote guest RAM that has been decoded as code.
    case modified(at: UInt64, bytes: UInt64)
    /// A20 gate level.
    case a20(Bool)
    /// INIT to every vCPU, chips keep their state (8042, port 0x92).
    case initialise
    /// The whole machine starts again (port 0xCF9, ACPI reset).
    case reset
    /// The guest turned itself off (ACPI S5).
    case powerOff

    var words: (UInt32, UInt32, UInt64, UInt64) {
        switch self {
        case .mapVideo(let address): return (1, address == nil ? 0 : 1, address ?? 0, 0)
        case .shadow(let segment, let read, let write):
            return (2, UInt32(truncatingIfNeeded: segment), read ? 1 : 0, write ? 1 : 0)
        case .modified(let address, let bytes): return (3, 0, address, bytes)
        case .a20(let open): return (4, open ? 1 : 0, 0, 0)
        case .initialise: return (5, 0, 0, 0)
        case .reset: return (6, 0, 0, 0)
        case .powerOff: return (7, 0, 0, 0)
        }
    }

    init?(_ kind: UInt32, _ a: UInt32, _ b: UInt64, _ c: UInt64) {
        switch kind {
        case 1: self = .mapVideo(at: a == 0 ? nil : b)
        case 2 where a < 13: self = .shadow(segment: Int(a), read: b != 0, write: c != 0)
        case 3: self = .modified(at: b, bytes: c)
        case 4: self = .a20(a != 0)
        case 5: self = .initialise
        case 6: self = .reset
        case 7: self = .powerOff
        default: return nil
        }
    }
}

extension IoreqPages {
    /// Device model: queues `command` and calls vCPU 0. Waits while the ring is full and the peer is there.
    public func send(_ command: Command) {
        let produced = word(IoreqLayout.produced).pointee.load(ordering: .relaxed)
        while produced &- word(IoreqLayout.consumed).pointee.load(ordering: .acquiring) >= IoreqLayout.commandSlots {
            if isPeerGone || peer.map(\.hasHungUp) == true { return }
            kick(0)
            futex(IoreqLayout.consumed).wait(
                while: produced &- IoreqLayout.commandSlots, nanoseconds: 1_000_000)
        }
        let (kind, a, b, c) = command.words
        let entry = base + IoreqLayout.commands + Int(produced % IoreqLayout.commandSlots) * IoreqLayout.commandSize
        entry.storeBytes(of: kind, as: UInt32.self)
        entry.storeBytes(of: a, toByteOffset: 4, as: UInt32.self)
        entry.storeBytes(of: b, toByteOffset: 8, as: UInt64.self)
        entry.storeBytes(of: c, toByteOffset: 16, as: UInt64.self)
        word(IoreqLayout.produced).pointee.store(produced &+ 1, ordering: .sequentiallyConsistent)
        kick(0)
    }

    /// Hypervisor: whether commands wait.
    public var hasCommands: Bool {
        word(IoreqLayout.produced).pointee.load(ordering: .acquiring)
            != word(IoreqLayout.consumed).pointee.load(ordering: .relaxed)
    }

    /// Hypervisor, one thread at a time: carries the oldest command out, then takes it from the ring; false if
    /// there is none. What makes no sense is passed over.
    public func withCommand(_ carryOut: (Command) -> Void) -> Bool {
        guard hasCommands else { return false }
        let consumed = word(IoreqLayout.consumed).pointee.load(ordering: .relaxed)
        let entry = base + IoreqLayout.commands + Int(consumed % IoreqLayout.commandSlots) * IoreqLayout.commandSize
        let kind = entry.load(as: UInt32.self)
        let a = entry.load(fromByteOffset: 4, as: UInt32.self)
        let b = entry.load(fromByteOffset: 8, as: UInt64.self)
        let c = entry.load(fromByteOffset: 16, as: UInt64.self)
        if let command = Command(kind, a, b, c) { carryOut(command) }
        word(IoreqLayout.consumed).pointee.store(consumed &+ 1, ordering: .releasing)
        futex(IoreqLayout.consumed).wake()
        return true
    }
}
