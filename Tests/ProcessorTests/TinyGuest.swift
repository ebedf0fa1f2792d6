// A guest without a machine: memory, registers, one engine.
// Source: our own; register values behind reset from Intel SDM vol. 3 table 10-1.
// Modelled: RAM, a bus on which nothing answers. Not modelled: devices, interrupts.
// Quirks: a watchdog takes the engine out of endless loops.

import CNative
import CProcessor
import Dispatch
import Host

@testable import Processor

/// A bus on which nothing answers.
final class EmptyBus: GuestBus {
    var taskPriority: UInt8 = 0
    var tscFrequency: UInt64 { 1_000_000_000 }
    func readPort(_ port: UInt16, size: Int) -> UInt32 { .max }
    func writePort(_ port: UInt16, size: Int, value: UInt32) {}
    var memory: [RAM] = []
    func transferPort(_ port: UInt16, size: Int, count: Int, address: UInt64, isRead: Bool, descending: Bool) {
        guard isRead else { return }
        for ram in memory where address >= ram.start && address - ram.start < UInt64(ram.bytes) {
            let host = ram.host + Int(address - ram.start)
            host.initializeMemory(as: UInt8.self, repeating: 0xFF, count: size * count)
        }
    }
    func readMemory(_ address: UInt64, size: Int) -> UInt64 { .max }
    func writeMemory(_ address: UInt64, size: Int, value: UInt64) {}
    func readMSR(_ number: UInt32) -> UInt64? { nil }
    func writeMSR(_ number: UInt32, _ value: UInt64) -> Bool { false }
    func cpuid(leaf: UInt32, subleaf: UInt32, _ own: CPUIDResult) -> CPUIDResult? { nil }
}

/// A range of guest RAM.
struct RAM {
    var start: UInt64
    var host: UnsafeMutableRawPointer
    var bytes: Int

    init(start: UInt64, bytes: Int) throws {
        guard let host = native_memory(bytes) else { throw TestSetUp.noMemory }
        (self.start, self.host, self.bytes) = (start, host, bytes)
    }

    /// All of `file`.
    init(start: UInt64, file: SharedMemory) throws {
        guard let host = file.bytes.baseAddress else { throw TestSetUp.noMemory }
        (self.start, self.host, self.bytes) = (start, host, file.bytes.count)
    }
}

enum TestSetUp: Error { case noMemory, noFixture }

final class TinyGuest {
    let engine: SoftwareCPU
    let map: PhysicalMap
    private let attention: UnsafeMutablePointer<UInt32>
    private let memory: [RAM]
    private var maps: [UnsafeMutablePointer<UInt8>] = []
    private let watchdog: any DispatchSourceTimer
    private let progress: UnsafeMutablePointer<UInt64>

    var cpu: UnsafeMutablePointer<apus_vcpu> { engine.cpu }

    /// `patience`: milliseconds that one run may take; `file`: the one of which all lies in `memory`.
    init(_ memory: [RAM], file: SharedMemory? = nil, patience: Int = 2000) {
        self.memory = memory
        map = PhysicalMap(file: file.map { MemoryFile(descriptor: $0.descriptor.number, bytes: $0.bytes) })
        attention = .allocate(capacity: 1)
        attention.initialize(to: 0)
        progress = .allocate(capacity: 1)
        progress.initialize(to: 0)
        for ram in memory {
            let pages = ram.bytes >> 12
            let codeMap = UnsafeMutablePointer<UInt8>.allocate(capacity: pages)
            codeMap.initialize(repeating: 0, count: pages)
            maps.append(codeMap)
        }
        map.replace(
            with: zip(memory, maps).map { ram, codeMap in
                PhysicalRegion(
                    start: ram.start, bytes: UInt64(ram.bytes), host: ram.host, isWritable: true, codeMap: codeMap)
            })
        let bus = EmptyBus()
        bus.memory = memory
        engine = SoftwareCPU(index: 0, map: map, bus: bus, attention: attention)
        engine.reset(powerOn: true, isBootProcessor: true)
        let timer = DispatchSource.makeTimerSource(queue: .global())
        nonisolated(unsafe) let (word, count) = (attention, progress)
        nonisolated(unsafe) var last = UInt64.max
        timer.schedule(deadline: .now() + .milliseconds(patience), repeating: .milliseconds(patience))
        timer.setEventHandler {
            if count.pointee == last { word.pointee = 1 }
            last = count.pointee
        }
        watchdog = timer
        timer.resume()
    }

    deinit { watchdog.cancel() }

    /// Runs until HLT, shutdown or the end of patience.
    func run() -> EngineExit {
        progress.pointee &+= 1
        attention.pointee = 0
        return engine.run()
    }

    func host(_ address: UInt64) -> UnsafeMutableRawPointer? {
        for ram in memory where address >= ram.start && address - ram.start < UInt64(ram.bytes) {
            return ram.host + Int(address - ram.start)
        }
        return nil
    }

    subscript(_ address: UInt64) -> UInt8 {
        get { host(address)?.load(as: UInt8.self) ?? 0xFF }
        set { host(address)?.storeBytes(of: newValue, as: UInt8.self) }
    }

    func write(_ bytes: [UInt8], at address: UInt64) {
        for (index, byte) in bytes.enumerated() { self[address + UInt64(index)] = byte }
    }

    func write64(_ value: UInt64, at address: UInt64) { host(address)?.storeBytes(of: value, as: UInt64.self) }

    /// Real-mode segment register: base = selector * 16.
    func setRealSegment(_ index: Int, _ selector: UInt16) {
        let segment = cpu.segment(index)
        segment.pointee.selector = selector
        segment.pointee.base = UInt64(selector) << 4
        segment.pointee.limit = 0xFFFF
        segment.pointee.access = 0x93
    }
}
