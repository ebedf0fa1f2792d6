import DeviceContract
import DomainConfig
import Firmware
import Foundation
import Host
import Images
import Ioreq
import Machine
import Storage
import TestSupport
import Testing

@testable import PCBoard

/// A board with 32 MiB of RAM, and the hypervisor's end of its shared pages.
private final class Rig {
    let ram: GuestRAM
    let pages: IoreqPages
    let video: SharedMemory
    let machine: PCBoard
    private(set) var commands: [Command] = []
    private(set) var log: [UInt8] = []

    init(drives: Drives = Drives(), _ change: (inout DomainConfig) -> Void = { _ in }) throws {
        var config = DomainConfig(
            name: "test", uuid: "01234567-89ab-cdef-0123-456789abcdef", domid: 1, kind: .hvm, memory: 32, vcpus: 1)
        change(&config)
        ram = try GuestRAM.make(size: 32 << 20)
        pages = try IoreqPages.make()
        video = try SharedMemory(named: "video", size: 16 << 20)
        var heard: (UInt8) -> Void = { _ in }
        var outputs = BoardOutputs()
        outputs.log = { heard($0) }
        machine = unsafe PCBoard(
            config, ram: ram, pages: pages, video: video.bytes, roms: BoardROMs(video: [0x55, 0xAA, 1]),
            drives: drives, time: 0, outputs: outputs)
        heard = { [unowned self] in log.append($0) }
        drain()
    }

    func drain() {
        while pages.withCommand({ commands.append($0) }) {}
    }
    @discardableResult func handle(_ request: Request) -> UInt64 {
        defer { drain() }
        return machine.handle(request)
    }
    func out(_ port: UInt64, _ value: UInt64, size: Int = 1) {
        handle(Request(.port, address: port, size: size, isRead: false, data: value))
    }
    func `in`(_ port: UInt64, size: Int = 1) -> UInt64 {
        handle(Request(.port, address: port, size: size, isRead: true))
    }
    func config(_ device: UInt64, _ function: UInt64, _ register: UInt64, size: Int = 4) -> UInt64 {
        handle(
            Request(.pciConfig, address: (device << 3 | function) << 32 | register, size: size, isRead: true))
    }
    func config(_ device: UInt64, _ function: UInt64, _ register: UInt64, size: Int = 4, write value: UInt64) {
        handle(
            Request(
                .pciConfig, address: (device << 3 | function) << 32 | register, size: size, isRead: false, data: value))
    }
}

@Suite("PC board") struct BoardTests {
    @Test("PCI shows the functions of an HVM domain's board")
    func listing() throws {
        let rig = try Rig()
        let seen = (0..<32).flatMap { device in
            (0..<8).compactMap { function -> String? in
                let id = rig.config(UInt64(device), UInt64(function), 0)
                guard id != 0xFFFF_FFFF else { return nil }
                return "\(device).\(function) " + String(id & 0xFFFF, radix: 16) + ":" + String(id >> 16, radix: 16)
            }
        }
        #expect(
            seen == [
                "0.0 8086:1237", "1.0 8086:7000", "1.1 8086:7010", "1.3 8086:7113", "2.0 5853:1", "3.0 1234:1111",
            ])
        #expect(rig.config(0, 0, 0x2C) == 0x1100_1AF4, "how SeaBIOS knows this machine")
    }

    @Test("Setting the frame buffer's address tells the hypervisor where video memory is")
    func video() throws {
        let rig = try Rig()
        rig.config(3, 0, 0x10, write: 0xF000_0000)
        #expect(!rig.commands.contains(.mapVideo(at: 0xF000_0000)))
        rig.config(3, 0, 0x04, size: 2, write: 3)
        #expect(rig.commands.last == .mapVideo(at: 0xF000_0000))
        rig.handle(Request(.memory, address: 0xF000_0004, size: 4, isRead: false, data: 0x1122_3344))
        #expect(rig.video.bytes[4] == 0x44)
        rig.config(3, 0, 0x04, size: 2, write: 0)
        #expect(rig.commands.last == .mapVideo(at: nil))
    }

    @Test("The video ROM is read where its base address says")
    func rom() throws {
        let rig = try Rig()
        rig.config(3, 0, 0x30, write: 0xFEB0_0001)
        rig.config(3, 0, 0x04, size: 2, write: 2)
        #expect(rig.handle(Request(.memory, address: 0xFEB0_0000, size: 2, isRead: true)) == 0xAA55)
    }

    @Test("PAM and the reset port reach the hypervisor")
    func commands() throws {
        let rig = try Rig()
        rig.config(0, 0, 0x59, size: 1, write: 0x30)
        #expect(rig.commands.last == .shadow(segment: 12, read: true, write: true))
        rig.out(0xCF9, 0x02)
        rig.out(0xCF9, 0x06)
        #expect(rig.commands.last == .reset)
    }

    @Test("fw_cfg answers a string read in one request, and a long DMA item arrives in RAM")
    func firmware() throws {
        let rig = try Rig()
        rig.out(0x510, 0, size: 2)
        rig.handle(Request(.port, address: 0x511, size: 1, count: 4, isRead: true, data: 0x1000, memoryOperand: true))
        let pointer = try #require(unsafe rig.ram.pointer(to: 0x1000, bytes: 4))
        #expect(unsafe UnsafeRawBufferPointer(start: pointer, count: 4).elementsEqual(Array("QEMU".utf8)))
        #expect(rig.in(0x402) == 0xE9)
        #expect(rig.in(0x1234) == 0xFF)
    }

    @Test("CMOS tells memory, boot order and CPUs")
    func cmos() throws {
        let rig = try Rig {
            $0.boot = "dc"
            $0.vcpus = 2
        }
        func read(_ index: UInt64) -> UInt64 {
            rig.out(0x70, index)
            return rig.in(0x71)
        }
        #expect(read(0x34) | read(0x35) << 8 == 0x100, "16 MiB above 16 MiB")
        #expect(read(0x17) | read(0x18) << 8 == 31 * 1024)
        #expect(read(0x3D) == 0x23)
        #expect(read(0x5F) == 1)
    }

    @Test("COM1's interrupt is line 4, and code that DMA overwrites is told")
    func lines() throws {
        let rig = try Rig()
        rig.out(0x3FC, 8)
        rig.out(0x3F9, 2)
        #expect(rig.pages.takeLines().levels & 1 << 4 != 0)
        #expect(rig.in(0x3FA) == 2)
        #expect(rig.pages.takeLines().levels & 1 << 4 == 0)
        rig.ram.codeMap.bytes[1] = 1
        rig.out(0x510, 0, size: 2)
        rig.handle(Request(.port, address: 0x511, size: 1, count: 4, isRead: true, data: 0x1000, memoryOperand: true))
        #expect(rig.commands.last == .modified(at: 0x1000, bytes: 4))
    }

    @Test("Boot letters become drives in their order")
    func bootOrder() {
        var config = DomainConfig(name: "t", uuid: "", domid: 1, kind: .hvm, memory: 32, vcpus: 1)
        config.disks = [
            .init(target: "/a", vdev: "hda", readWrite: true, cdrom: false),
            .init(target: "/c", vdev: "hdc", readWrite: false, cdrom: true),
            .init(target: "/f", vdev: "fda", readWrite: true, cdrom: false),
        ]
        config.boot = "dca"
        #expect(
            PCBoard.bootOrder(config) == [
                .ide(channel: 1, unit: 0), .ide(channel: 0, unit: 0), .floppy(drive: 0),
            ])
        #expect(DrivePlace("xvdb") == .ide(channel: 0, unit: 1))
        #expect(DrivePlace("hde") == nil && DrivePlace("") == nil)
    }

    /// APUS_FUZZ_SECONDS makes it run longer, each time with another seed.
    @Test("No stream of requests makes the board trap")
    func fuzz() throws {
        let environment = ProcessInfo.processInfo.environment
        let seconds = environment["APUS_FUZZ_SECONDS"].flatMap(Double.init)
        let end = Date(timeIntervalSinceNow: seconds ?? 0)
        var seed: UInt64 = seconds == nil ? 2026 : UInt64.random(in: 0 ... .max)
        repeat {
            try run(seed: seed, requests: 20_000, unplugs: false)
            try run(seed: seed, requests: 10_000, unplugs: true)
            seed &+= 1
        } while Date() < end
    }

    private func run(seed: UInt64, requests: Int, unplugs: Bool) throws {
        let disk = MemoryStore(numberedSectors: 2048)
        let disc = MemoryStore(numberedSectors: 2048, isReadOnly: true)
        let floppy = MemoryStore(numberedSectors: 2880)
        var drives = Drives()
        drives.ide = [.disk(disk), .nothing, .cdrom(disc), .cdrom(nil)]
        drives.floppies[0] = .drive(floppy)
        // Without disks there is less to find: half the streams cannot unplug them.
        let rig = try Rig(drives: drives) { $0.xenPlatformPCI = unplugs }
        var random = Seeded(seed)
        // Everything decoded somewhere, so that random addresses find it.
        for (device, function) in [(1, 1), (1, 3), (2, 0), (3, 0)] as [(UInt64, UInt64)] {
            rig.config(device, function, 0x04, size: 2, write: 7)
        }
        rig.config(1, 1, 0x20, write: 0xC000)
        rig.config(1, 1, 0x40, write: 0x8000_8000)
        let vga: UInt64 = unplugs ? 3 : 2
        if unplugs { rig.config(2, 0, 0x10, write: 0xC100) }
        rig.config(vga, 0, 0x10, write: 0xF000_0000)
        rig.config(vga, 0, 0x18, write: 0xF100_0000)
        rig.config(1, 3, 0x40, write: 0x601)
        rig.config(1, 3, 0x80, size: 1, write: 1)
        let ports: [UInt64] = [
            0x10, 0x60, 0x64, 0x70, 0x72, 0x80, 0x92, 0xB2, 0xE9, 0x170, 0x1CE, 0x1F0, 0x376, 0x3B0, 0x3C0, 0x3F0,
            0x3F8,
            0x510, 0x514, 0x600, 0xAFE0, 0xC000, 0xC100, 0xCF9,
        ]
        let places: [UInt64] = [0xA0000, 0xB8000, 0xF000_0000, 0xF100_0000, 0xFEB0_0000, .max - 16]
        for _ in 0..<requests {
            let size = [1, 1, 2, 4, 8].randomElement(using: &random) ?? 1
            let kind = [Request.Kind.port, .port, .memory, .pciConfig].randomElement(using: &random) ?? .port
            var address: UInt64
            switch kind {
            case .port: address = (ports.randomElement(using: &random) ?? 0) + .random(in: 0...15, using: &random)
            case .memory: address = (places.randomElement(using: &random) ?? 0) + .random(in: 0...15, using: &random)
            case .pciConfig:
                let functions: [UInt64] = [0x00, 0x08, 0x09, 0x0B, 0x10, 0x18]
                address = (functions.randomElement(using: &random) ?? 0) << 32 | .random(in: 0...0x104, using: &random)
            }
            if UInt8.random(in: 0...50, using: &random) == 0 { address = .random(in: 0 ... .max, using: &random) }
            let string = kind != .pciConfig && UInt8.random(in: 0...9, using: &random) == 0
            let data: UInt64 =
                string
                ? .random(in: 0...(33 << 20), using: &random)
                : UInt64.random(in: 0 ... .max, using: &random) >> UInt64.random(in: 0...63, using: &random)
            rig.handle(
                Request(
                    kind, address: address, size: size, count: string ? .random(in: 1...600, using: &random) : 1,
                    isRead: .random(using: &random), data: data, memoryOperand: string,
                    descending: .random(using: &random)))
            guard UInt8.random(in: 0...99, using: &random) == 0 else { continue }
            rig.machine.advance()
            for store in [disk, disc, floppy] { store.drain() }
            disc.isCached.toggle()
            rig.drain()
        }
    }
}
