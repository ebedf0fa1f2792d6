import Chips
import DomainConfig
import Foundation
import Host
import Ioreq
import Processor
import Synchronization
import Testing

@testable import Kernel

/// A domain with a fake engine and a device model made of one closure.
private final class Bench {
    let domain: Domain
    let ended: HostEvent
    private(set) var engines: [FakeEngine] = []
    let requests: Requests
    private let thread: HostThread

    final class Requests: Sendable {
        let all = Mutex<[Request]>([])
        let isOver = Atomic<Bool>(false)
    }

    init(vcpus: Int = 1, memory: Int = 4, answer: @escaping @Sendable (Request) -> UInt64 = { _ in 0x5A }) throws {
        let directory = NSTemporaryDirectory() + "apus-kernel-\(UUID().uuidString)"
        try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(atPath: directory) }
        try Data(repeating: 0xEA, count: 0x4_0000).write(to: URL(fileURLWithPath: directory + "/bios-256k.bin"))
        var config = DomainConfig(
            name: "t", uuid: "6ba7b810-9dad-11d1-80b4-00c04fd430c8", domid: 7, kind: .hvm, memory: memory, vcpus: vcpus)
        config.firmwareDirectory = directory
        config.display.videoMemory = 1
        ended = try HostEvent()
        let doorbell = try HostEvent()
        let domain = try Domain(
            config, doorbell: doorbell.descriptor, ended: ended, tsc: TickRate(hertz: 2_300_000_000),
            handle: Array(0..<16), log: { _ in })
        self.domain = domain
        let requests = Requests()
        self.requests = requests
        thread = try HostThread("server") {
            let server = IoreqServer(domain.pages, vcpus: vcpus, doorbell: doorbell.descriptor)
            server.handler = { request in
                requests.all.withLock { $0.append(request) }
                return answer(request)
            }
            while !requests.isOver.load(ordering: .relaxed) { if !server.serve() { usleep(50) } }
        }
        var engines: [FakeEngine] = []
        domain.makeVCPUs { _, _, bus, attention in
            let engine = FakeEngine(bus, attention)
            engines.append(engine)
            return engine
        }
        self.engines = engines
    }

    deinit {
        domain.finish(.destroy)
        requests.isOver.store(true, ordering: .relaxed)
        // Its threads use the domain until they have seen that it is over: it outlives the bench by far.
        let domain = domain
        DispatchQueue.global().asyncAfter(deadline: .now() + 10) { withExtendedLifetime(domain) {} }
    }

    var bus: any GuestBus { engines[0].bus }
    /// Waits until `condition` holds; false after twenty seconds, which only a failure takes.
    func until(_ condition: () -> Bool) -> Bool {
        for _ in 0..<20_000 {
            if condition() { return true }
            usleep(1000)
        }
        return false
    }
}

@Suite("Domain", .serialized) struct DomainTests {
    @Test("More memory than the host has is one clear error")
    func tooLarge() {
        let error = #expect(throws: SetupFailure.self) { _ = try Bench(memory: 1 << 30) }
        #expect(error?.description.contains("MiB are available") == true)
    }

    @Test("Ports of chips stay here, others go to the device model, CFC goes by bus and function")
    func ports() throws {
        let bench = try Bench()
        bench.bus.writePort(0x21, size: 1, value: 0xFE)
        #expect(bench.bus.readPort(0x21, size: 1) == 0xFE)
        #expect(bench.bus.readPort(0x70, size: 1) == 0x5A)
        #expect(bench.bus.readPort(0xCFC, size: 4) == 0xFFFF_FFFF, "the latch is not enabled")
        bench.bus.writePort(0xCF8, size: 4, value: 0x8000_0944)
        #expect(bench.bus.readPort(0xCF8, size: 4) == 0x8000_0944)
        bench.bus.writePort(0xCFE, size: 2, value: 0x1234)
        #expect(
            bench.requests.all.withLock { $0 } == [
                Request(.port, address: 0x70, size: 1, isRead: true),
                Request(.pciConfig, address: 9 << 32 | 0x46, size: 2, isRead: false, data: 0x1234),
            ])
    }

    @Test("The PM timer follows PMBASE")
    func pmTimer() throws {
        let bench = try Bench()
        bench.bus.writePort(0xCF8, size: 4, value: 0x8000_0B40)
        bench.bus.writePort(0xCFC, size: 4, value: 0x601)
        let first = bench.bus.readPort(0x608, size: 4)
        usleep(1000)
        #expect(bench.bus.readPort(0x608, size: 4) != first)
        #expect(bench.bus.readPort(0x604, size: 2) == 0x5A)
    }

    @Test("VGA writes are posted in order, eight bytes as two")
    func posted() throws {
        let bench = try Bench()
        bench.bus.writeMemory(0xB8000, size: 2, value: 0x0741)
        bench.bus.writeMemory(0xA0000, size: 8, value: 0x1111_1111_2222_2222)
        _ = bench.bus.readMemory(0xA0000, size: 1)
        let seen = bench.requests.all.withLock { $0.map(\.address) }
        #expect(seen == [0xB8000, 0xA0000, 0xA0004, 0xA0000])
    }

    @Test("IDE's registers are written without waiting, its bus masters' wherever they are; reads wait")
    func postedPorts() throws {
        let bench = try Bench()
        bench.bus.writePort(0xCF8, size: 4, value: 0x8000_0920)
        bench.bus.writePort(0xCFC, size: 4, value: 0xC001)
        bench.bus.writePort(0x1F2, size: 1, value: 8)
        bench.bus.writePort(0xC004, size: 4, value: 0x1234_5678)
        bench.bus.writePort(0xC000, size: 1, value: 9)
        #expect(bench.bus.readPort(0x1F7, size: 1) == 0x5A)
        let seen = bench.requests.all.withLock { $0 }
        #expect(seen.map(\.address) == [9 << 32 | 0x20, 0x1F2, 0xC004, 0xC000, 0x1F7])
        #expect(seen[2] == Request(.port, address: 0xC004, size: 4, isRead: false, data: 0x1234_5678))
        #expect(bench.domain.vcpus[0].counters[.posted] == 3)
    }

    @Test("String output is one request, downwards from its highest element")
    func strings() throws {
        let bench = try Bench()
        bench.bus.transferPort(0x1F0, size: 2, count: 256, address: 0x1000, isRead: true, descending: false)
        bench.bus.transferPort(0x1F0, size: 2, count: 4, address: 0x2000, isRead: false, descending: true)
        let seen = bench.requests.all.withLock { $0 }
        #expect(seen.count == 2 && seen[0].count == 256 && seen[0].data == 0x1000)
        #expect(seen.last?.data == 0x2006 && seen.last?.descending == true)
    }

    @Test("PAM changes reach the map before the guest goes on, and writes under ROM reach RAM")
    func shadow() throws {
        let bench = try Bench { _ in 0 }
        let domain = bench.domain
        bench.bus.writeMemory(0xF_0000, size: 4, value: 0x1122_3344)
        #expect(domain.memory.read(0xF_0000, bytes: 4) == [0, 0, 0, 0])
        domain.pages.send(.shadow(segment: 12, read: false, write: true))
        domain.carryOutCommands()
        bench.bus.writeMemory(0xF_0000, size: 4, value: 0x1122_3344)
        #expect(domain.memory.read(0xF_0000, bytes: 4) == [0x44, 0x33, 0x22, 0x11])
        bench.engines[0].script = { engine in
            engine.note("ran")
            return .halt
        }
        try domain.start(paused: false)
        domain.pages.send(.mapVideo(at: 0xFD00_0000))
        #expect(bench.until { domain.memory.map.regions.contains { $0.start == 0xFD00_0000 } })
        #expect(bench.engines[0].saw("map"))
    }

    @Test("A halted vCPU sleeps until an interrupt is due, and takes it")
    func halt() throws {
        let bench = try Bench()
        let engine = bench.engines[0]
        engine.script = { engine in
            if !engine.log.withLock({ $0.contains("ready") }) {
                // One-shot timer of 2 ms, vector 0x44.
                engine.bus.writeMemory(0xFEE0_00F0, size: 4, value: 0x1FF)
                engine.bus.writeMemory(0xFEE0_03E0, size: 4, value: 0xB)
                engine.bus.writeMemory(0xFEE0_0320, size: 4, value: 0x44)
                engine.bus.writeMemory(0xFEE0_0380, size: 4, value: 200_000)
                engine.note("ready")
            }
            return .halt
        }
        try bench.domain.start(paused: false)
        #expect(engine.saw("vector 68"))
        #expect(bench.until { bench.domain.vcpus[0].isSleeping })
    }

    @Test("An x87 error is IRQ 13 until port F0 is written")
    func numericError() throws {
        let bench = try Bench()
        let bus = bench.bus
        // ICW1 forgets what came before; OCW3: reads give IRR.
        func initialise() {
            bus.writePort(0xA0, size: 1, value: 0x11)
            for value in [0x70, 2, 1] as [UInt32] { bus.writePort(0xA1, size: 1, value: value) }
            bus.writePort(0xA0, size: 1, value: 0x0A)
        }
        func isRequested() -> Bool { bus.readPort(0xA0, size: 1) & 0x20 != 0 }
        initialise()
        bus.signalFloatingPointError(true)
        #expect(isRequested())
        initialise()
        bus.signalFloatingPointError(true)
        #expect(!isRequested(), "a line that is high has no edge")
        bus.writePort(0xF0, size: 1, value: 0)
        bus.signalFloatingPointError(true)
        #expect(isRequested())
        initialise()
        bus.signalFloatingPointError(false)
        bus.signalFloatingPointError(true)
        #expect(isRequested())
    }

    @Test("A TSC deadline is met on the vCPU's own counter, reads back, and is over once it was met")
    func deadline() throws {
        let bench = try Bench()
        let engine = bench.engines[0]
        engine.bus.writeMemory(0xFEE0_00F0, size: 4, value: 0x1FF)
        #expect(engine.bus.writeMSR(0x6E0, 5000))
        #expect(engine.bus.readMSR(0x6E0) == 0, "the timer is in another mode")
        // TSC deadline, vector 0x45. The counter stands at 1000; a second is 2.3e9 ticks.
        engine.bus.writeMemory(0xFEE0_0320, size: 4, value: 0x4_0045)
        #expect(engine.bus.writeMSR(0x6E0, 2_300_000_000 * 3600))
        #expect(engine.bus.readMSR(0x6E0) == 2_300_000_000 * 3600)
        #expect(engine.bus.writeMSR(0x6E0, 0))
        #expect(engine.bus.readMSR(0x6E0) == 0)
        #expect(engine.bus.cpuid(leaf: 1, subleaf: 0, CPUIDResult(eax: 0, ebx: 0, ecx: 0, edx: 0))?.ecx == 0x8120_0000)
        try bench.domain.start(paused: false)
        #expect(engine.bus.writeMSR(0x6E0, 1000 + 4_600_000))
        #expect(engine.saw("vector 69"))
        #expect(engine.bus.readMSR(0x6E0) == 0)
        #expect(engine.bus.writeMSR(0x6E0, 999))
        #expect(engine.bus.readMSR(0x6E0) == 0, "what has passed is due at once")
    }

    @Test("While paused no guest code runs and guest time stands still")
    func pause() throws {
        let began = monotonicNanoseconds()
        let bench = try Bench()
        let domain = bench.domain
        let turns = Turns()
        bench.engines[0].script = { engine in
            turns.count.add(1, ordering: .relaxed)
            usleep(100)
            return .attention
        }
        try domain.start(paused: true)
        usleep(5000)
        #expect(turns.count.load(ordering: .relaxed) == 0)
        let before = domain.pages.guestNanoseconds
        usleep(5000)
        #expect(domain.pages.guestNanoseconds == before)
        domain.unpause()
        #expect(bench.until { turns.count.load(ordering: .relaxed) > 3 })
        domain.pause()
        let stopped = turns.count.load(ordering: .relaxed)
        let time = domain.pages.guestNanoseconds
        usleep(5000)
        #expect(turns.count.load(ordering: .relaxed) == stopped)
        #expect(domain.pages.guestNanoseconds == time)
        #expect(time < monotonicNanoseconds() - began - 15_000_000, "the pauses are no guest time")
        domain.unpause()
        #expect(bench.until { turns.count.load(ordering: .relaxed) > stopped })
        let corrections = bench.engines[0].log.withLock { $0.filter { $0 == "time stood still" }.count }
        #expect(corrections == 2, "the time stamp counter is told of both pauses")
    }
    final class Turns: Sendable { let count = Atomic<Int>(0) }

    @Test(
        "How a domain ends",
        arguments: [
            (EngineExit.shutdown, EndReason.reboot), (.failed("no such thing"), .crash),
        ])
    func ends(exit: EngineExit, reason: EndReason) throws {
        let bench = try Bench()
        bench.engines[0].script = { _ in exit }
        try bench.domain.start(paused: false)
        #expect(bench.until { bench.domain.isEnding })
        #expect(bench.domain.endReason == reason)
        bench.domain.finish(.destroy)
        #expect(bench.domain.endReason == reason, "the first reason counts")
    }

    @Test(
        "Power-off and reset by the device model",
        arguments: [
            (Command.powerOff, EndReason.poweroff), (.reset, .reboot),
        ])
    func power(command: Command, reason: EndReason) throws {
        let bench = try Bench()
        try bench.domain.start(paused: false)
        bench.domain.pages.send(command)
        #expect(bench.until { bench.domain.isEnding })
        #expect(bench.domain.endReason == reason)
    }

    @Test("A second vCPU waits for its start-up IPI")
    func secondary() throws {
        let bench = try Bench(vcpus: 2)
        bench.engines[0].script = { engine in
            if !engine.log.withLock({ $0.contains("sent") }) {
                engine.bus.writeMemory(0xFEE0_00F0, size: 4, value: 0x1FF)
                engine.bus.writeMemory(0xFEE0_0300, size: 4, value: 0xC_4500)
                engine.bus.writeMemory(0xFEE0_0300, size: 4, value: 0xC_4612)
                engine.note("sent")
            }
            return .halt
        }
        bench.engines[1].script = { engine in
            engine.note("ran")
            return .halt
        }
        try bench.domain.start(paused: false)
        #expect(bench.engines[1].saw("ran"))
        let log = bench.engines[1].log.withLock { $0 }
        #expect(log.contains("startup 18"))
        #expect((log.firstIndex(of: "startup 18") ?? .max) < (log.firstIndex(of: "ran") ?? 0))
    }

    // MARK: several processors

    /// Runs a script on vCPU 0 once; the others only halt and note what happens to them.
    private func processors(
        _ count: Int, _ commands: @escaping @Sendable (any GuestBus, [FakeEngine]) -> Void
    ) throws -> Bench {
        let bench = try Bench(vcpus: count)
        let others = Array(bench.engines.dropFirst())
        for (index, engine) in bench.engines.enumerated() {
            engine.script = { engine in
                if index == 0, !engine.log.withLock({ $0.contains("done") }) {
                    commands(engine.bus, others)
                    engine.note("done")
                } else if index != 0 {
                    engine.bus.writeMemory(0xFEE0_00F0, size: 4, value: 0x1FF)
                    engine.bus.writeMemory(0xFEE0_00B0, size: 4, value: 0)
                    engine.note("ran")
                }
                return .halt
            }
        }
        try bench.domain.start(paused: false)
        return bench
    }

    private static func send(_ bus: any GuestBus, _ low: UInt64, to id: UInt64 = 0) {
        bus.writeMemory(0xFEE0_0310, size: 4, value: id << 24)
        bus.writeMemory(0xFEE0_0300, size: 4, value: low)
    }

    /// Gives the others time to act on what they should not heed.
    private static func pause() { usleep(20_000) }

    @Test("INIT stops a processor until the next start-up IPI; one that was started ignores the second")
    func restart() throws {
        let bench = try processors(2) { bus, others in
            Self.send(bus, 0x4500, to: 2)
            Self.send(bus, 0x4611, to: 2)
            _ = others[0].saw("startup 17")
            Self.send(bus, 0x4612, to: 2)
            Self.pause()
            Self.send(bus, 0x4500, to: 2)
            Self.pause()
            Self.send(bus, 0x4030, to: 2)  // lost: it waits for start-up, and INIT switched its APIC off
            Self.pause()
            Self.send(bus, 0x4613, to: 2)
        }
        #expect(bench.engines[1].saw("startup 19"))
        let log = bench.engines[1].log.withLock { $0 }.filter { $0.hasPrefix("startup") || $0.hasPrefix("reset false") }
        #expect(log == ["reset false", "startup 17", "reset false", "startup 19"])
        #expect(!bench.engines[1].saw("vector 48", within: 50))
    }

    @Test("IPIs find halted processors by id, by logical id and by shorthand; APIC ids are even")
    func interprocessor() throws {
        let bench = try processors(3) { bus, others in
            Self.send(bus, 0xC_4500)
            Self.send(bus, 0xC_4610)
            for other in others { _ = other.saw("ran") }
            Self.send(bus, 0x4041, to: 4)
            Self.send(bus, 0x4032, to: 1)  // nobody's id
            Self.send(bus, 0xC_4033)
            Self.send(bus, 0x4400, to: 2)
        }
        #expect(bench.engines[2].saw("vector 65") && bench.engines[2].saw("vector 51"))
        #expect(bench.engines[1].saw("vector 51") && bench.engines[1].saw("nmi"))
        #expect(!bench.engines[1].saw("vector 65", within: 20) && !bench.engines[2].saw("nmi", within: 20))
        for engine in bench.engines { #expect(!engine.saw("vector 50", within: 20)) }
        #expect(!bench.engines[0].saw("vector 51", within: 20), "all but the sender")
    }

    @Test("A thousand IPIs to and fro wake the halted processor each time")
    func pingPong() throws {
        let bench = try Bench(vcpus: 2)
        let second = bench.engines[1]
        let rounds = 1000
        for (index, engine) in bench.engines.enumerated() {
            let other: UInt64 = index == 0 ? 2 : 0
            var isReady = false
            engine.script = { engine in
                if !isReady {
                    isReady = true
                    engine.bus.writeMemory(0xFEE0_00F0, size: 4, value: 0x1FF)
                    engine.note("ready")
                    guard index == 0 else { return .halt }
                    Self.send(engine.bus, 0xC_4500)
                    Self.send(engine.bus, 0xC_4610)
                    _ = second.saw("ready")
                    Self.send(engine.bus, 0x4040, to: other)
                    return .halt
                }
                let seen = engine.log.withLock { $0.filter { $0 == "vector 64" }.count }
                guard seen > engine.registers[0] else { return .halt }
                engine.registers[0] = UInt64(seen)
                engine.bus.writeMemory(0xFEE0_00B0, size: 4, value: 0)
                if seen < rounds { Self.send(engine.bus, 0x4040, to: other) }
                return .halt
            }
        }
        try bench.domain.start(paused: false)
        let isThrough = bench.until {
            bench.engines[1].log.withLock { $0.filter { $0 == "vector 64" }.count } >= rounds
        }
        #expect(isThrough, "an IPI was lost")
    }

    @Test("No processor enters its engine with the old memory map once a command was taken")
    func memoryChanges() throws {
        let bench = try Bench(vcpus: 2)
        let changes = Atomic<Int>(0)
        let stale = Atomic<Int>(0)
        bench.domain.pages.send(.shadow(segment: 12, read: true, write: true))
        for engine in bench.engines {
            engine.script = { engine in
                // Every change that a vCPU sees in the memory map, its engine was told of before it ran.
                let told = engine.log.withLock { $0.filter { $0 == "map" }.count }
                if told < changes.load(ordering: .sequentiallyConsistent) {
                    stale.add(1, ordering: .sequentiallyConsistent)
                }
                return .attention
            }
        }
        try bench.domain.start(paused: false)
        #expect(bench.until { bench.engines[0].saw("map") })
        for round in 0..<200 {
            bench.domain.changeMemory { $0.isA20Open = round & 1 != 0 }
            changes.add(1, ordering: .sequentiallyConsistent)
        }
        #expect(stale.load(ordering: .sequentiallyConsistent) == 0)
    }
}

@Suite("Xen interface", .serialized) struct XenTests {
    @Test("CPUID: signature, version 4.17, hypercall MSR, vCPU and domain ids")
    func leaves() throws {
        let bench = try Bench()
        let none = CPUIDResult(eax: 0, ebx: 0, ecx: 0, edx: 0)
        let first = bench.bus.cpuid(leaf: 0x4000_0000, subleaf: 0, none)
        let name = [first?.ebx, first?.ecx, first?.edx].flatMap { word in
            (0..<4).map { UInt8(truncatingIfNeeded: (word ?? 0) >> UInt32($0 * 8)) }
        }
        #expect(String(decoding: name, as: UTF8.self) == "XenVMMXenVMM")
        #expect(bench.bus.cpuid(leaf: 0x4000_0001, subleaf: 0, none)?.eax == 0x0004_0011)
        #expect(bench.bus.cpuid(leaf: 0x4000_0002, subleaf: 0, none)?.ebx == 0x4000_0000)
        let identity = bench.bus.cpuid(leaf: 0x4000_0004, subleaf: 0, none)
        #expect(identity?.eax == 0x58 && identity?.ebx == 0 && identity?.ecx == 7)
        #expect(bench.bus.cpuid(leaf: 7, subleaf: 0, none) == nil)
    }

    @Test("CPUID of a second vCPU: its APIC id is 2, and Xen knows it as vCPU 1")
    func secondary() throws {
        let bench = try Bench(vcpus: 2)
        let none = CPUIDResult(eax: 0, ebx: 0, ecx: 0, edx: 0)
        #expect(bench.engines[1].bus.cpuid(leaf: 0x4000_0004, subleaf: 0, none)?.ebx == 1)
        #expect(bench.engines[1].bus.cpuid(leaf: 1, subleaf: 0, none).map { $0.ebx >> 24 } == 2)
        #expect(bench.engines[1].bus.cpuid(leaf: 0xB, subleaf: 0, none)?.edx == 2)
    }

    @Test("Nanoseconds from ticks by multiplier and shift", arguments: [1_000_000, 2_300_000, 5_100_000, 900_000])
    func scale(kilohertz: UInt32) {
        let (multiplier, shift) = XenLeaves.scale(kilohertz)
        let ticks = UInt64(kilohertz) * 1000
        let shifted = shift >= 0 ? ticks << UInt64(shift) : ticks >> UInt64(-shift)
        let nanoseconds = shifted.multipliedFullWidth(by: UInt64(multiplier))
        let result = nanoseconds.high << 32 | nanoseconds.low >> 32
        #expect(result > 999_999_000 && result <= 1_000_000_000)
    }

    private func call(_ bench: Bench, _ number: UInt64, _ arguments: UInt64...) -> Int64 {
        let engine = bench.engines[0]
        engine.registers[0] = number
        for (register, value) in zip([7, 6, 2], arguments) { engine.registers[register] = value }
        bench.domain.carryOutHypercall(engine, vcpu: 0)
        return Int64(bitPattern: engine.registers[0])
    }

    @Test("The hypercall page loads a number and calls")
    func page() throws {
        let bench = try Bench()
        #expect(!bench.bus.writeMSR(0x4000_0000, 0x5001), "there is one page")
        #expect(bench.bus.writeMSR(0x4000_0000, 0x5000))
        #expect(
            bench.domain.memory.read(0x5000 + 17 * 32, bytes: 9) == [0xB8, 17, 0, 0, 0, 0x0F, 0x01, 0xC1, 0xC3])
        #expect(!bench.bus.writeMSR(0x4000_0000, 0x7000_0000))
    }

    @Test("xen_version answers; what is missing is ENOSYS; user code is refused; bad pointers are EFAULT")
    func version() throws {
        let bench = try Bench()
        #expect(call(bench, 17, 0, 0) == 0x40011)
        #expect(call(bench, 17, 8, 0x2FF8) == 0, "the handle crosses a page")
        #expect(bench.domain.memory.read(0x2FF8, bytes: 16) == Array(0..<16))
        #expect(call(bench, 17, 8, 0x7000_0000) == -14)
        #expect(call(bench, 99) == -38)
        bench.engines[0].privilegeLevel = 3
        #expect(call(bench, 17, 0, 0) == -1)
    }

    @Test("The shared info page is laid over the frame that the guest names")
    func sharedInfo() throws {
        let bench = try Bench()
        let argument: [UInt8] = [0xF0, 0x7F, 0, 0, 0, 0, 0, 0] + [0, 0, 0, 0, 0, 0, 0, 0] + [3, 0, 0, 0, 0, 0, 0, 0]
        bench.domain.memory.write(0x1000, argument)
        #expect(call(bench, 12, 7, 0x1000) == 0)
        #expect(bench.domain.memory.map.regions.contains { $0.start == 0x3000 && $0.bytes == 0x1000 })
        #expect(call(bench, 12, 7, 0x3000) == -1, "an empty argument names another domain")
    }
}
