import DeviceContract
import Images
import Machine
import TestSupport
import Testing

@testable import Storage

@Suite("ATA disk") struct StorageDiskTests {
    let store = MemoryStore(numberedSectors: 4096)

    @Test func contract() throws {
        try expectContract(accesses: 20_000) { [store] in
            IDEChannel(
                drives: (.disk(store), .cdrom(MemoryStore(numberedSectors: 64))), line: Wire(),
                dma: FakeMemory(bytes: 65_536))
        }
        try expectContract { PIIX3IDE(primary: IDERig(.disk(store)).channel, secondary: IDERig(.nothing).channel) }
    }

    @Test("Random register accesses that start commands and bus masters are survived")
    func hostileGuest() {
        var random = Seeded(7)
        let commands: [UInt8] = [
            0x20, 0x24, 0x29, 0x30, 0x34, 0x39, 0xC4, 0xC5, 0xC6, 0xC8, 0xCA, 0x25, 0x35, 0x3D, 0xA0, 0xA1, 0xEC, 0xEF,
            0xB0, 0x08, 0x90, 0x91, 0xE7, 0xF8, 0x27, 0x40,
        ]
        let small = MemoryStore(numberedSectors: 200)
        let rig = IDERig(.disk(small), .cdrom(MemoryStore(numberedSectors: 400)), memory: 65_536)
        for round in 0..<25_000 {
            small.isCached = round % 3 == 0
            let value = UInt8.random(in: 0 ... .max, using: &random)
            switch Int.random(in: 0..<12, using: &random) {
            case 0: rig.out(commands.randomElement(using: &random) ?? 0, 7)
            case 1: rig.out(value, .random(in: 1...6, using: &random))
            case 2: rig.out(value & 7, .random(in: 2...5, using: &random))
            case 3: rig.control(value & 0x86)
            case 4: rig.busMaster.write(UInt64(value), Access(offset: .random(in: 0...7, using: &random)))
            case 5: rig.memory[Int.random(in: 0..<65_000, using: &random), 4] = [value, value, 0, value]
            case 6: _ = rig.read(Int.random(in: 0...3000, using: &random))
            case 7: rig.write([UInt8](repeating: value, count: Int.random(in: 0...3000, using: &random)))
            case 8: _ = small.serve()
            case 9:
                rig.packet([[0x28, 0xBE, 0xA8, 0x43, 0x5A, 0x12, value].randomElement(using: &random) ?? 0, value])
            case 10: _ = rig.status
            default: rig.channel.settle()
            }
        }
        #expect(small.bytes.count == 200 * 512, "nothing was written outside the disk")
    }

    @Test("After power-on the registers hold a disk's signature") func signature() {
        let rig = IDERig(.disk(store))
        #expect([rig.inByte(1), rig.inByte(2), rig.inByte(3), rig.inByte(4), rig.inByte(5)] == [1, 1, 1, 0, 0])
        #expect(rig.status == 0x50)
        rig.out(0x10, 6)
        #expect(rig.status == 0, "device 0 answers for device 1 with a status of 0")
    }

    @Test("An empty cable reads as zeroes") func absent() {
        let rig = IDERig(.nothing)
        rig.out(0x55, 2)
        #expect(rig.inByte(2) == 0)
        #expect(rig.status == 0)
    }

    @Test("IDENTIFY DEVICE tells size, geometry and features, and its checksum is right") func identify() {
        let rig = IDERig(.disk(store))
        rig.command(0xEC)
        #expect(rig.wire.isHigh)
        #expect(rig.status == 0x58)
        #expect(!rig.wire.isHigh, "reading the status takes the interrupt back")
        let bytes = rig.read(512)
        func word(_ index: Int) -> Int { Int(bytes[index * 2]) | Int(bytes[index * 2 + 1]) << 8 }
        #expect(word(60) | word(61) << 16 == 4096)
        #expect(word(100) == 4096)
        #expect(word(83) & 0x0400 != 0, "48-bit addresses")
        #expect([word(1), word(3), word(6)] == [4, 16, 63])
        #expect(String(decoding: [bytes[55], bytes[54], bytes[57], bytes[56]], as: UTF8.self) == "APUS")
        #expect(bytes.reduce(0, &+) == 0)
        #expect(rig.status == 0x50)
    }

    @Test("READ SECTORS gives one block and one interrupt a sector") func readSectors() {
        let rig = IDERig(.disk(store))
        rig.command(0x20, lba: 300, count: 3)
        for sector in 300..<303 {
            #expect(rig.wire.isHigh)
            #expect(rig.status == 0x58)
            let bytes = rig.read(512)
            #expect(bytes[0] == 1)
            #expect(bytes[1...].allSatisfy { $0 == UInt8(truncatingIfNeeded: sector) })
        }
        #expect(rig.status == 0x50)
        #expect(!rig.wire.isHigh)
    }

    @Test("A read longer than the buffer goes on behind it, also when data comes late") func longRead() {
        let rig = IDERig(.disk(store))
        store.isCached = false
        rig.command(0x20, lba: 0, count: 0)
        #expect(rig.status == 0xC0)
        store.drain()
        for sector in 0..<256 {
            if rig.alternateStatus & 0x80 != 0 { store.drain() }
            #expect(rig.status == 0x58)
            #expect(rig.read(512)[5] == UInt8(sector))
        }
        #expect(rig.status == 0x50)
    }

    @Test("What a medium has done is found by looking, and shows in the channel's activity") func look() {
        let rig = IDERig(.disk(store))
        store.isCached = false
        let before = rig.channel.activity
        rig.command(0x20, lba: 3, count: 1)
        rig.channel.look()
        #expect(rig.alternateStatus == 0xC0 && !rig.wire.isHigh, "nothing is done yet")
        let asked = rig.channel.activity
        #expect(asked != before)
        store.isDone = true
        rig.channel.look()
        #expect(rig.wire.isHigh)
        #expect(rig.status == 0x58)
        #expect(rig.channel.activity != asked)
        #expect(rig.read(512)[5] == 3)
        let ended = rig.channel.activity
        rig.channel.look()
        #expect(rig.channel.activity == ended, "nothing is under way")
    }

    @Test("READ MULTIPLE moves blocks of the set size; without SET MULTIPLE it is aborted") func readMultiple() {
        let rig = IDERig(.disk(store))
        rig.command(0xC4, lba: 0, count: 4)
        #expect(rig.status == 0x51)
        #expect(rig.error == 0x04)
        rig.command(0xC6, count: 16)
        let edges = rig.wire.edges
        rig.command(0xC4, lba: 0, count: 20)
        _ = rig.status
        #expect(rig.read(16 * 512).count == 8192)
        #expect(rig.status == 0x58)
        let rest = rig.read(4 * 512)
        #expect(rest[513] == 17)
        #expect(rig.status == 0x50)
        #expect(rig.wire.edges - edges == 5, "set multiple's fell, and two blocks' rose and fell")
    }

    @Test("CHS addresses follow INITIALIZE DEVICE PARAMETERS; sector 0 is not found") func cylinders() {
        let rig = IDERig(.disk(store))
        rig.out(10, 2)
        rig.out(0xA3, 6)
        rig.out(0x91, 7)
        #expect(rig.status == 0x50)
        // Four heads, ten sectors: (2 * 4 + 3) * 10 + 5 - 1 = 114.
        for (value, register) in [(1, 2), (5, 3), (2, 4), (0, 5), (0xA3, 6)] as [(UInt8, UInt64)] {
            rig.out(value, register)
        }
        rig.out(0x20, 7)
        #expect(rig.read(512)[1] == 114)
        rig.out(0, 3)
        rig.out(0x20, 7)
        #expect(rig.status == 0x51)
        #expect(rig.error == 0x10)
    }

    @Test("A range that passes the disk's end is refused as a whole") func outOfRange() {
        let rig = IDERig(.disk(store))
        rig.command(0x20, lba: 4095, count: 2)
        #expect(rig.status == 0x51)
        #expect(rig.error == 0x10)
        rig.command48(0x24, lba: 0xFFFF_FFFF_FFFF, count: 0)
        #expect(rig.error == 0x10)
    }

    @Test("48-bit commands take both bytes of each register; HOB shows the older one") func extended() {
        let rig = IDERig(.disk(store))
        rig.command48(0x24, lba: 0x0F01, count: 1)
        #expect(rig.read(512)[0...1] == [0x0F, 0x01])
        rig.out(0x12, 3)
        rig.out(0x34, 3)
        #expect(rig.inByte(3) == 0x34)
        rig.control(0x80)
        #expect(rig.inByte(3) == 0x12)
        rig.command48(0x27, lba: 0, count: 0)
        #expect(rig.inByte(3) == 0xFF)
        #expect(rig.inByte(4) == 0x0F)
    }

    @Test("WRITE SECTORS reaches the medium before the command ends; FLUSH CACHE reaches its flush") func write() {
        let rig = IDERig(.disk(store))
        rig.command(0x30, lba: 10, count: 2)
        #expect(!rig.wire.isHigh, "the first block is asked for without an interrupt")
        #expect(rig.status == 0x58)
        rig.write([UInt8](repeating: 0xAB, count: 512))
        #expect(rig.wire.isHigh)
        #expect(rig.status == 0x58)
        rig.write([UInt8](repeating: 0xCD, count: 512))
        #expect(rig.alternateStatus == 0xC0)
        #expect(store.bytes[10 * 512] == 0)
        store.drain()
        #expect(rig.status == 0x50)
        #expect(store.bytes[10 * 512] == 0xAB)
        #expect(store.bytes[11 * 512 + 511] == 0xCD)
        rig.command(0xE7)
        #expect(rig.status == 0xC0)
        store.drain()
        #expect(rig.status == 0x50)
        #expect(store.flushes == 1)
    }

    @Test("With the write cache off, and for FUA, a write ends only after a flush") func durable() {
        let rig = IDERig(.disk(store))
        rig.command(0xEF, feature: 0x82)
        store.drain()
        rig.command(0x30, lba: 0, count: 1)
        rig.write([UInt8](repeating: 1, count: 512))
        store.serve()
        #expect(rig.status == 0xC0)
        store.serve()
        #expect(rig.status == 0x50)
        #expect(store.flushes == 2)
    }

    @Test("A medium that fails gives UNC and the sector's address") func mediumError() {
        let rig = IDERig(.disk(store))
        store.failure = 5
        rig.command(0x20, lba: 77, count: 1)
        store.drain()
        #expect(rig.status == 0x51)
        #expect(rig.error == 0x40)
        #expect(rig.inByte(3) == 77)
    }

    @Test("A read-only disk refuses writes and stays as it is") func readOnly() {
        let protected = MemoryStore(numberedSectors: 8, isReadOnly: true)
        let rig = IDERig(.disk(protected))
        rig.command(0x30, lba: 0, count: 1)
        #expect(rig.status == 0x51)
        rig.command(0xCA, lba: 0, count: 1)
        #expect(rig.error == 0x04)
        #expect(protected.requests == 0)
    }

    @Test("SRST ends a transfer under way and leaves the signature") func softReset() {
        let rig = IDERig(.disk(store))
        store.isCached = false
        rig.command(0x20, lba: 1, count: 8)
        rig.control(0x04)
        #expect(rig.alternateStatus & 0x80 != 0)
        rig.control(0)
        #expect(rig.alternateStatus == 0x50)
        #expect(rig.inByte(2) == 1)
        #expect(store.requests == 0)
    }

    @Test("nIEN keeps the interrupt line low; clearing it lets a pending interrupt through") func interruptEnable() {
        let rig = IDERig(.disk(store))
        rig.control(0x02)
        rig.command(0xE5)
        #expect(!rig.wire.isHigh)
        #expect(rig.inByte(2) == 0xFF, "active")
        rig.control(0)
        #expect(rig.wire.isHigh)
    }

    @Test("SMART needs its key and reports a healthy disk") func smart() {
        let rig = IDERig(.disk(store))
        rig.command(0xB0, feature: 0xDA)
        #expect(rig.status == 0x51)
        rig.command(0xB0, lba: 0xC24F00, feature: 0xDA)
        #expect(rig.status == 0x50)
        #expect([rig.inByte(4), rig.inByte(5)] == [0x4F, 0xC2])
        rig.command(0xB0, lba: 0xC24F00, feature: 0xD0)
        #expect(rig.read(512).reduce(0, &+) == 0)
    }
}

@Suite("IDE bus master") struct StorageBusMasterTests {
    let store = MemoryStore(numberedSectors: 4096)

    @Test(
        "READ DMA follows the table of regions, and ends with active clear and interrupt set", arguments: [true, false])
    func read(cached: Bool) {
        let rig = IDERig(.disk(store))
        store.isCached = cached
        rig.memory.putTable([(0x2000, 512), (0x8002, 1024)], at: 0x1000)
        rig.command(0xC8, lba: 5, count: 3)
        rig.startBusMaster(table: 0x1000, toMemory: true)
        store.drain()
        #expect(rig.busMasterStatus == 0x04)
        #expect(rig.wire.isHigh)
        #expect(rig.status == 0x50)
        #expect(rig.memory[0x2001, 511] == [UInt8](repeating: 5, count: 511))
        #expect(rig.memory[0x8003, 511] == [UInt8](repeating: 6, count: 511))
        #expect(rig.memory[0x8203, 511] == [UInt8](repeating: 7, count: 511))
        #expect(rig.memory.written.map(\.1) == [512, 1024])
    }

    @Test("WRITE DMA EXT takes guest memory to the medium") func write() {
        let rig = IDERig(.disk(store))
        rig.memory[0x3000, 4096] = [UInt8](repeating: 0x5A, count: 4096)
        rig.memory.putTable([(0x3000, 4096)], at: 0x1000)
        rig.command48(0x35, lba: 100, count: 8)
        rig.startBusMaster(table: 0x1000, toMemory: false)
        store.drain()
        #expect(rig.status == 0x50)
        #expect(store.bytes[51_200..<55_296].allSatisfy { $0 == 0x5A })
    }

    @Test("Memory without a window is served through the buffer") func indirect() {
        let rig = IDERig(.disk(store))
        rig.memory.hasWindows = false
        rig.memory.putTable([(0x2000, 0), (0x2_0000, 0)], at: 0x1000)
        rig.command(0xC8, lba: 0, count: 0)
        rig.startBusMaster(table: 0x1000, toMemory: true)
        #expect(rig.status == 0x50)
        #expect(rig.memory[0x2_0001, 2] == [128, 128])
    }

    @Test("A larger table leaves the bus master active; a smaller one leaves the drive waiting") func sizes() {
        let rig = IDERig(.disk(store))
        rig.memory.putTable([(0x2000, 4096)], at: 0x1000)
        rig.command(0xC8, lba: 0, count: 1)
        rig.startBusMaster(table: 0x1000, toMemory: true)
        #expect(rig.busMasterStatus == 0x05)
        rig.busMaster.write(0, Access(offset: 0))
        rig.memory.putTable([(0x2000, 512)], at: 0x1000)
        rig.command(0xC8, lba: 0, count: 2)
        rig.startBusMaster(table: 0x1000, toMemory: true)
        #expect(rig.busMasterStatus == 0x00)
        #expect(rig.alternateStatus & 0x08 != 0)
        rig.control(4)
        rig.control(0)
        #expect(rig.status == 0x50)
    }

    @Test("A region outside memory ends the command with an error") func fault() {
        let rig = IDERig(.disk(store))
        rig.memory.putTable([(0xFFFF_F000, 512)], at: 0x1000)
        rig.command(0xC8, lba: 0, count: 1)
        rig.startBusMaster(table: 0x1000, toMemory: true)
        #expect(rig.busMasterStatus & 0x03 == 0x02)
        #expect(rig.status == 0x51)
        rig.command(0xC8, lba: 0, count: 1)
        rig.startBusMaster(table: 0xFFFF_F000, toMemory: true)
        #expect(rig.status == 0x51, "so does a table outside memory")
    }

    @Test("Stopping the bus master abandons the request under way") func stop() {
        let rig = IDERig(.disk(store))
        store.isCached = false
        rig.memory.putTable([(0x2000, 512)], at: 0x1000)
        rig.command(0xC8, lba: 0, count: 1)
        rig.startBusMaster(table: 0x1000, toMemory: true)
        #expect(store.requests == 1)
        rig.busMaster.write(0, Access(offset: 0))
        #expect(store.requests == 0)
        #expect(rig.alternateStatus & 0x08 != 0)
    }

    @Test("The channels decode nothing until IDETIM says so") func decoding() {
        var seen: [Bool] = []
        let rig = IDERig(.nothing)
        let function = PIIX3IDE(primary: rig.channel, secondary: rig.channel) { _, enabled in seen.append(enabled) }
        #expect(!function.isDecoding(0))
        function.writeConfiguration(0x80, 0x41)
        #expect(function.isDecoding(0) && !function.isDecoding(1))
        #expect(seen == [true, false])
    }
}
