import DeviceContract
import DomainConfig
import Host
import Ioreq
import Machine
import Storage
import Testing

@testable import PCBoard

/// A board with one disk on each cable and a CD drive.
private final class Rig {
    let machine: PCBoard
    let disks = [MemoryStore(numberedSectors: 64), MemoryStore(numberedSectors: 64)]
    let disc = MemoryStore(numberedSectors: 64, isReadOnly: true)
    private(set) var log: [UInt8] = []
    private(set) var isFree = false

    init(hasPlatform: Bool = true) throws {
        var config = DomainConfig(name: "test", uuid: "", domid: 1, kind: .hvm, memory: 32, vcpus: 1)
        config.xenPlatformPCI = hasPlatform
        var drives = Drives()
        drives.ide = [.disk(disks[0]), .nothing, .cdrom(disc), .disk(disks[1])]
        let video = try SharedMemory(named: "video", size: 16 << 20)
        var outputs = BoardOutputs()
        var heard: (UInt8) -> Void = { _ in }
        outputs.log = { heard($0) }
        machine = unsafe PCBoard(
            config, ram: try GuestRAM.make(size: 32 << 20), pages: try IoreqPages.make(), video: video.bytes,
            roms: BoardROMs(), drives: drives, time: 0, outputs: outputs)
        heard = { [unowned self] in log.append($0) }
        machine.onUnpluggedDisks = { [unowned self] in isFree = true }
        decodeCables()
    }

    /// Both cables answer at their usual ports.
    func decodeCables() {
        config(1, 1, 0x40, 4, 0x8000_8000)
        config(1, 1, 0x04, 2, 1)
    }

    var text: String { String(decoding: log, as: UTF8.self) }

    func config(_ device: UInt64, _ function: UInt64, _ register: UInt64, _ size: Int, _ value: UInt64) {
        let address = (device << 3 | function) << 32 | register
        _ = machine.handle(Request(.pciConfig, address: address, size: size, isRead: false, data: value))
    }
    func config(_ device: UInt64, _ register: UInt64) -> UInt64 {
        machine.handle(Request(.pciConfig, address: device << 35 | register, size: 4, isRead: true))
    }
    func out(_ port: UInt64, _ value: UInt64, _ size: Int = 1) {
        _ = machine.handle(Request(.port, address: port, size: size, isRead: false, data: value))
    }
    func `in`(_ port: UInt64, _ size: Int = 1) -> UInt64 {
        machine.handle(Request(.port, address: port, size: size, isRead: true))
    }
    /// The status register of a drive after it was selected: 0 where there is none.
    func status(_ cable: Int, _ unit: UInt64) -> UInt64 {
        let base: UInt64 = cable == 0 ? 0x1F0 : 0x170
        out(base + 6, 0xA0 | unit << 4)
        return self.in(base + 7)
    }
    /// What Linux does (arch/x86/xen/platform-pci-unplug.c).
    func unplugAsLinux(_ mask: UInt64) {
        out(0x12, 3, 2)
        out(0x10, 0x60100, 4)
        out(0x10, mask, 2)
    }
}

@Suite("Xen's platform device") struct XenPlatformTests {
    @Test("It keeps the rules of devices")
    func contract() throws {
        try expectContract { XenPlatform(unplug: { _ in }, log: { _ in }) }
    }

    @Test("It shows as Xen's, with 256 ports, 16 MiB of memory and INTA")
    func identity() throws {
        let rig = try Rig()
        #expect(rig.config(2, 0x00) == 0x0001_5853)
        #expect(rig.config(2, 0x08) == 0xFF80_0001, "class and revision")
        #expect(rig.config(2, 0x2C) == 0x0001_5853, "subsystem")
        #expect(rig.config(2, 0x3C) >> 8 & 0xFF == 1)
        rig.config(2, 0, 0x10, 4, 0xFFFF_FFFF)
        rig.config(2, 0, 0x14, 4, 0xFFFF_FFFF)
        #expect(rig.config(2, 0x10) == 0xFFFF_FF01 && rig.config(2, 0x14) == 0xFF00_0008)
    }

    @Test("Drivers find magic number and version, and their words arrive in the log")
    func protocolVersion() throws {
        let rig = try Rig()
        #expect(rig.in(0x10, 2) == 0x49D2)
        #expect(rig.in(0x12) == 1)
        rig.unplugAsLinux(0)
        #expect(rig.text.contains("product 3, build 393472"))
        for byte in "PV says\u{1B}: hello\n".utf8 { rig.out(0x12, UInt64(byte)) }
        #expect(rig.text.hasSuffix("PV says: hello\n"))
        #expect(rig.in(0x10, 2) == 0x49D2, "nothing was taken away")
        #expect(rig.status(0, 0) == 0x50)
        rig.out(0x10, 0xFF)
        #expect(rig.in(0x10) == 1, "the ROM lock flag is kept")
    }

    @Test("Unplugging takes disks and leaves CD drives; a write under way is finished before")
    func disks() throws {
        let rig = try Rig()
        rig.disks[0].isCached = false
        rig.out(0x1F6, 0xE0)
        for (register, value) in [(2, 1), (3, 7), (4, 0), (5, 0), (7, 0x30)] as [(UInt64, UInt64)] {
            rig.out(0x1F0 + register, value)
        }
        for _ in 0..<128 { rig.out(0x1F0, 0xA5A5_A5A5, 4) }
        #expect(rig.disks[0].requests == 1 && rig.disks[0].bytes[7 * 512 + 1] == 7)
        rig.unplugAsLinux(1)
        #expect(rig.disks[0].bytes[7 * 512..<8 * 512].allSatisfy { $0 == 0xA5 })
        #expect(rig.disks[0].isReleased && rig.disks[1].isReleased && !rig.disc.isReleased)
        #expect(rig.isFree)
        #expect(rig.status(0, 0) == 0 && rig.status(1, 1) == 0)
        rig.out(0x176, 0xA0)
        rig.out(0x177, 0xA1)
        #expect(rig.in(0x177) == 0x58, "IDENTIFY PACKET DEVICE is answered")
        rig.machine.board.reset(.powerOn)
        rig.decodeCables()
        #expect(rig.status(0, 0) == 0, "a reset brings nothing back")
    }

    @Test("Auxiliary disks are all but the primary master; network cards are told")
    func masks() throws {
        let rig = try Rig()
        var removed = 0
        rig.machine.networkCards = [{ removed += 1 }, { removed += 1 }]
        rig.unplugAsLinux(4)
        #expect(!rig.disks[0].isReleased && rig.disks[1].isReleased && removed == 0)
        rig.unplugAsLinux(2)
        rig.unplugAsLinux(2)
        #expect(removed == 2)
        #expect(!rig.disks[0].isReleased)
    }

    @Test("xen_platform_pci = 0: neither device nor ports")
    func absent() throws {
        let rig = try Rig(hasPlatform: false)
        #expect(rig.in(0x10, 2) == 0xFFFF)
        #expect(rig.config(2, 0x00) == 0x1111_1234)
        rig.unplugAsLinux(1)
        #expect(!rig.disks[0].isReleased)
    }
}
