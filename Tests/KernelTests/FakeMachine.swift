import Foundation
import Processor
import Synchronization

@testable import Kernel

/// A machine of a few pages, and what the Xen objects did to it.
final class FakeMachine: XenMachine, @unchecked Sendable {
    // Invariant: one test's thread uses it.
    let domid: UInt16 = 7
    let vcpuCount: Int
    let ramFrames: UInt64 = 64
    var maximumFrame: UInt64 { ramFrames - 1 }
    let memoryMap = [E820Entry(address: 0, size: 64 << 12, type: 1), E820Entry(address: 64 << 12, size: 4096, type: 2)]
    var nanoseconds: UInt64 = 5_000
    let wallNanoseconds: UInt64 = 1_700_000_000_000_005_000
    let tscKilohertz: UInt32 = 2_000_000
    private let ram: UnsafeMutableRawPointer
    private let frames: UnsafeMutableRawPointer
    private(set) var actions: [String] = []
    var up: Set<Int> = [0]

    init(vcpus: Int = 2) {
        vcpuCount = vcpus
        ram = .allocate(byteCount: 64 << 12, alignment: 4096)
        frames = .allocate(byteCount: 65 << 12, alignment: 4096)
        memset(ram, 0, 64 << 12)
        memset(frames, 0, 65 << 12)
    }
    deinit {
        ram.deallocate()
        frames.deallocate()
    }

    var frameArea: GuestArea { GuestArea(frames, bytes: 65 << 12) }
    func page(_ frame: UInt64) -> GuestArea? {
        frame < ramFrames ? GuestArea(ram + Int(frame << 12), bytes: 4096) : nil
    }
    func discard(_ frame: UInt64) { actions.append("discard \(frame)") }
    func place(_ index: Int, at frame: UInt64?) { actions.append("place \(index) at \(frame ?? 0)") }
    func unplace(_ frame: UInt64) -> Bool {
        actions.append("unplace \(frame)")
        return frame == 99
    }
    func kick(_ vcpu: Int) { actions.append("kick \(vcpu)") }
    func raise(vector: UInt8, vcpu: Int) { actions.append("vector \(vector) to \(vcpu)") }
    var held: Set<UInt8> = []
    func holds(vector: UInt8, vcpu: Int) -> Bool { held.contains(vector) }
    private var callback: HVMParameters.Callback?
    func driveCallback(_ next: HVMParameters.Callback?) {
        if next != callback { actions.append(next.map { "\($0) high" } ?? "low") }
        callback = next
    }
    func route(_ port: Int, to vcpu: Int) {}
    func isUp(_ vcpu: Int) -> Bool { up.contains(vcpu) }
    func bringUp(_ vcpu: Int, _ start: VCPUStart) {
        switch start {
        case .flat(let start): actions.append("up \(vcpu) at \(start.entry)")
        case .paravirtual(let start): actions.append("up \(vcpu) at \(start.rip)")
        case .resumed: actions.append("up \(vcpu) again")
        }
    }
    func noteWritten(_ address: UInt64, bytes: UInt64) {}
    private(set) lazy var paravirtual: ParavirtualMemory? = ParavirtualMemory(
        frames: ramFrames, table: 0, tableBytes: 0)
    func setFrame(_ machineFrame: UInt64, to frame: UInt64) { actions.append("frame \(machineFrame) is \(frame)") }
    func flush(_ page: UInt64?, of vcpus: UInt64) {
        actions.append("flush \(page.map { String($0) } ?? "all") of \(vcpus)")
    }
    func infoMoved(_ vcpu: Int) {}
    func takeDown(_ vcpu: Int) { actions.append("down \(vcpu)") }
    func sendNMI(_ vcpu: Int) { actions.append("nmi \(vcpu)") }
    func yield() { actions.append("yield") }
    func log(_ line: String) { actions.append("log \(line)") }
    func finish(_ reason: EndReason) { actions.append("finish \(reason.rawValue)") }
    func take() -> [String] {
        defer { actions = [] }
        return actions
    }
}

/// Linear addresses are physical ones.
struct FlatMemory: LinearMemory {
    let machine: FakeMachine

    func read(_ address: UInt64, _ count: Int) -> [UInt8]? {
        var bytes: [UInt8] = []
        for offset in 0..<UInt64(count) {
            guard let page = machine.page((address &+ offset) >> 12) else { return nil }
            bytes.append(page.load(Int((address &+ offset) & 0xFFF)))
        }
        return bytes
    }
    func write(_ bytes: [UInt8], _ address: UInt64) -> Bool {
        for (offset, byte) in bytes.enumerated() {
            guard let page = machine.page((address &+ UInt64(offset)) >> 12) else { return false }
            page.store(byte, at: Int((address &+ UInt64(offset)) & 0xFFF))
        }
        return true
    }
    func span(_ address: UInt64, _ count: Int) -> GuestSpan? {
        let first = 4096 - Int(address & 0xFFF)
        guard let page = machine.page(address >> 12),
            let area = page.part(Int(address & 0xFFF), min(first, count))
        else { return nil }
        guard first < count else { return GuestSpan(pieces: [area]) }
        guard let rest = machine.page(address >> 12 + 1)?.part(0, count - first) else { return nil }
        return GuestSpan(pieces: [area, rest])
    }
}

/// A guest that makes hypercalls with arguments at address 0x1000.
final class Caller {
    let machine: FakeMachine
    let xen: XenDomain
    var isLong = true
    var vcpu = 0
    var memory: FlatMemory { FlatMemory(machine: machine) }
    var page: GuestArea { machine.frameArea }

    init(vcpus: Int = 2, flavour: XenDomain.Flavour = .hvm) {
        machine = FakeMachine(vcpus: vcpus)
        xen = XenDomain(
            machine, frames: machine.frameArea, handle: Array(0..<16), flavour: flavour,
            initialFrames: machine.ramFrames)
    }

    var call: Hypercall { Hypercall(xen: xen, memory: memory, vcpu: vcpu, isLong: isLong) }

    /// Hypercall `number` with plain arguments.
    func plain(_ number: UInt64, _ arguments: UInt64...) -> Int64 {
        call.result(number, arguments + [UInt64](repeating: 0, count: 5 - arguments.count))
    }

    /// Puts a structure of (value, bytes) at 0x1000, and calls `command` of `number`.
    @discardableResult func structured(_ number: UInt64, _ command: UInt64, _ fields: (UInt64, Int)...) -> Int64 {
        put(fields, at: 0x1000)
        return plain(number, command, 0x1000)
    }

    func put(_ fields: [(UInt64, Int)], at address: UInt64) {
        let bytes = fields.flatMap { value, count in
            (0..<count).map { UInt8(truncatingIfNeeded: value >> UInt64($0 * 8)) }
        }
        _ = memory.write(bytes, address)
    }

    func u32(_ address: UInt64) -> UInt32 {
        Record(memory.read(address, 4) ?? [], isLong: true).u32(0)
    }
    func u64(_ address: UInt64) -> UInt64 {
        Record(memory.read(address, 8) ?? [], isLong: true).u64(0)
    }
    func u16(_ address: UInt64) -> UInt16 { UInt16(truncatingIfNeeded: u32(address)) }
}
