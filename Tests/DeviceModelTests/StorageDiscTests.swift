import DeviceContract
import Images
import Machine
import TestSupport
import Testing

@testable import Storage

@Suite("ATAPI CD-ROM") struct StorageDiscTests {
    let store = MemoryStore(numberedSectors: 4000, isReadOnly: true)
    var rig: IDERig { IDERig(.cdrom(store)) }

    /// Sends a packet and collects all its data.
    private func ask(_ rig: IDERig, _ packet: [UInt8], limit: UInt16 = 2048) -> [UInt8] {
        rig.packet(packet, limit: limit)
        var data: [UInt8] = []
        while rig.status & 0x08 != 0 {
            data += rig.read(Int(rig.inByte(4)) | Int(rig.inByte(5)) << 8)
        }
        return data
    }
    private func sense(_ rig: IDERig) -> [UInt8] {
        let data = ask(rig, [0x03, 0, 0, 0, 18])
        return [data[2] & 0x0F, data[12], data[13]]
    }

    @Test("Power-on leaves the packet signature, and IDENTIFY DEVICE is aborted") func signature() {
        let rig = rig
        #expect([rig.inByte(4), rig.inByte(5)] == [0x14, 0xEB])
        rig.out(0xEC, 7)
        #expect(rig.status == 0x51)
        #expect([rig.inByte(4), rig.inByte(5)] == [0x14, 0xEB])
        rig.out(0xA1, 7)
        let bytes = rig.read(512)
        #expect(bytes[0...1] == [0xC0, 0x85])
        #expect(bytes.reduce(0, &+) == 0)
    }

    @Test("The packet protocol shows its phases in the sector count register") func phases() {
        let rig = rig
        rig.out(0, 1)
        rig.out(0, 4)
        rig.out(8, 5)
        rig.out(0xA0, 7)
        #expect(rig.status == 0x58)
        #expect(rig.inByte(2) == 1, "command out")
        rig.write([0x25] + [UInt8](repeating: 0, count: 11))
        #expect(rig.wire.isHigh)
        #expect(rig.status == 0x58)
        #expect(rig.inByte(2) == 2, "data in")
        #expect([rig.inByte(4), rig.inByte(5)] == [8, 0])
        #expect(rig.read(8) == [0, 0, 0x03, 0xE7, 0, 0, 8, 0])
        #expect(rig.wire.isHigh, "the status phase interrupts")
        #expect(rig.status == 0x50)
        #expect(rig.inByte(2) == 3, "status")
    }

    @Test("READ (10) gives blocks of at most the byte count limit", arguments: [2048, 512, 65_535, 3000] as [UInt16])
    func read(limit: UInt16) {
        let rig = rig
        let data = ask(rig, [0x28, 0, 0, 0, 0, 10, 0, 0, 5], limit: limit)
        #expect(data == Array(store.bytes[20_480..<30_720]))
        #expect(rig.status == 0x50)
    }

    @Test("READ (12) beyond the end and an address that overflows are out of range")
    func outOfRange() {
        let rig = rig
        #expect(ask(rig, [0xA8, 0, 0, 0, 3, 0xE7, 0, 0, 0, 2]) == [])
        #expect(rig.error == 0x54)
        #expect(sense(rig) == [5, 0x21, 0])
        #expect(ask(rig, [0xA8, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]) == [])
        #expect(sense(rig) == [5, 0x21, 0])
        #expect(sense(rig) == [0, 0, 0], "sense is told once")
    }

    @Test("READ (10) by DMA goes straight to guest memory") func dma() {
        let rig = rig
        rig.memory.putTable([(0x4000, 4096)], at: 0x1000)
        rig.packet([0x28, 0, 0, 0, 0, 1, 0, 0, 2], dma: true)
        rig.startBusMaster(table: 0x1000, toMemory: true)
        #expect(rig.status == 0x50)
        #expect(rig.memory[0x4000, 4096] == Array(store.bytes[2048..<6144]))
        rig.memory.putTable([(0x4000, 36)], at: 0x1000)
        rig.packet([0x12, 0, 0, 0, 36], dma: true)
        rig.startBusMaster(table: 0x1000, toMemory: true)
        #expect(rig.memory[0x4000, 2] == [5, 0x80])
        #expect(rig.status == 0x50)
    }

    @Test("READ CD makes whole sectors with header, EDC and parity") func readCD() {
        let rig = rig
        let sector = ask(rig, [0xBE, 0, 0, 0, 0, 16, 0, 0, 1, 0xF8])
        #expect(sector.count == 2352)
        #expect(Array(sector[12..<16]) == [0, 2, 0x16, 1], "block 16 is at 00:02:16")
        #expect(Array(sector[16..<2064]) == Array(store.bytes[32_768..<34_816]))
        // A codeword of P and of Q has no syndrome: the sum of its bytes is zero (ECMA-130 annex A).
        for column in 0..<86 {
            let sum = (0..<24).reduce(0 as UInt8) { $0 ^ sector[12 + column + $1 * 86] }
            #expect(sum ^ sector[2076 + column] ^ sector[2076 + 86 + column] == 0)
        }
        #expect(ask(rig, [0xBE, 0, 0, 0, 0, 16, 0, 0, 1, 0x10]) == Array(store.bytes[32_768..<34_816]))
    }

    @Test("READ TOC tells one data track and the lead-out, in blocks and in minutes") func tableOfContents() {
        let rig = rig
        #expect(
            ask(rig, [0x43, 0, 0, 0, 0, 0, 0, 0, 20])
                == [0, 18, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0, 0, 0x14, 0xAA, 0, 0, 0, 3, 0xE8])
        #expect(ask(rig, [0x43, 2, 0, 0, 0, 0, 0xAA, 0, 12]) == [0, 10, 1, 1, 0, 0x14, 0xAA, 0, 0, 0, 15, 25])
        #expect(ask(rig, [0x43, 0, 1, 0, 0, 0, 0, 0, 4]) == [0, 10, 1, 1], "the allocation length cuts")
        #expect(ask(rig, [0x43, 2, 2, 0, 0, 0, 1, 0, 255]).count == 48)
    }

    @Test("Mode pages, configuration and disc information are well formed") func structure() {
        let rig = rig
        let page = ask(rig, [0x5A, 0, 0x2A, 0, 0, 0, 0, 0, 255])
        #expect(page[8...9] == [0x2A, 18])
        #expect(page.count == Int(page[0]) << 8 + Int(page[1]) + 2)
        #expect(ask(rig, [0x5A, 0, 0x3F, 0, 0, 0, 0, 0, 255]).count == 8 + 8 + 16 + 20)
        #expect(ask(rig, [0x5A, 0, 0x05, 0, 0, 0, 0, 0, 255]) == [])
        #expect(sense(rig) == [5, 0x24, 0])
        let features = ask(rig, [0x46, 0, 0, 0, 0, 0, 0, 1, 0])
        #expect(features[7] == 8, "a CD-ROM is in")
        #expect(features.count == Int(features[3]) + 4)
        #expect(ask(rig, [0x51, 0, 0, 0, 0, 0, 0, 0, 34]).count == 34)
        #expect(ask(rig, [0x52, 1, 0, 0, 0, 1, 0, 0, 36]).count == 36)
        #expect(ask(rig, [0x12, 0, 0, 0, 36]).count == 36)
        #expect(ask(rig, [0xBD, 0, 0, 0, 0, 0, 0, 0, 0, 8]).count == 8)
    }

    @Test("A medium change is told: absent, then a unit attention once, and a media event") func mediumChange() {
        let rig = rig
        #expect(rig.channel.changeMedium(0, to: nil))
        #expect(ask(rig, [0x00]) == [])
        #expect(sense(rig) == [2, 0x3A, 1])
        #expect(ask(rig, [0x4A, 1, 0, 0, 0x10, 0, 0, 0, 8]) == [0, 6, 4, 0x10, 3, 0, 0, 0])
        #expect(rig.channel.changeMedium(0, to: MemoryStore(numberedSectors: 80)))
        _ = ask(rig, [0x25])
        #expect(rig.error == 0x64)
        #expect(sense(rig) == [6, 0x28, 0])
        #expect(ask(rig, [0x4A, 1, 0, 0, 0x10, 0, 0, 0, 8])[4...5] == [2, 2])
        #expect(ask(rig, [0x25])[3] == 19)
    }

    @Test("The guest opens and closes the tray, unless it locked it") func tray() {
        let rig = rig
        _ = ask(rig, [0x1E, 0, 0, 0, 1])
        _ = ask(rig, [0x1B, 0, 0, 0, 2])
        #expect(sense(rig) == [5, 0x53, 2])
        _ = ask(rig, [0x1E, 0, 0, 0, 0])
        _ = ask(rig, [0x1B, 0, 0, 0, 2])
        _ = ask(rig, [0x00])
        #expect(sense(rig) == [2, 0x3A, 2])
        #expect(rig.channel.medium(0) == nil)
        _ = ask(rig, [0x1B, 0, 0, 0, 3])
        _ = ask(rig, [0x00])
        #expect(sense(rig) == [6, 0x28, 0])
        #expect(rig.channel.medium(0) != nil)
    }

    @Test("Random packets, limits, transfers and medium changes are survived") func hostileGuest() {
        var random = Seeded(11)
        let small = MemoryStore(numberedSectors: 90, isReadOnly: true)
        let rig = IDERig(.cdrom(small), memory: 65_536)
        let known: [UInt8] = [
            0x00, 0x03, 0x12, 0x1A, 0x1B, 0x1E, 0x25, 0x28, 0xA8, 0x2B, 0x42, 0x43, 0x46, 0x4A, 0x51, 0x52, 0x5A, 0xAD,
            0xBB, 0xBD, 0xBE,
        ]
        for round in 0..<6_000 {
            small.isCached = round % 2 == 0
            var packet = (0..<12).map { _ in round % 3 == 0 ? UInt8.random(in: 0 ... .max, using: &random) : 0 }
            packet[0] = known.randomElement(using: &random) ?? 0
            packet[.random(in: 1..<12, using: &random)] = .random(in: 0 ... .max, using: &random)
            rig.packet(packet, limit: .random(in: 0 ... .max, using: &random), dma: Bool.random(using: &random))
            rig.memory.putTable(
                [(.random(in: 0...70_000, using: &random), .random(in: 0 ... .max, using: &random))], at: 0)
            if Bool.random(using: &random) { rig.startBusMaster(table: 0, toMemory: true) }
            if round % 5 != 0 { small.drain() }
            _ = rig.read(.random(in: 0...5000, using: &random))
            if round % 50 == 0 { _ = rig.channel.changeMedium(0, to: round % 100 == 0 ? nil : small) }
        }
        rig.control(4)
        rig.control(0)
        #expect(rig.alternateStatus == 0)
    }

    @Test("A host error is a medium error") func mediumError() {
        let rig = rig
        store.failure = 5
        rig.packet([0x28, 0, 0, 0, 0, 1, 0, 0, 1])
        store.drain()
        #expect(rig.status == 0x51)
        #expect(rig.error == 0x34)
        store.failure = 0
        #expect(sense(rig) == [3, 0x11, 0])
    }
}
