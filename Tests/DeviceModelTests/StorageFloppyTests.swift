import DeviceContract
import Images
import Machine
import TestSupport
import Testing

@testable import Storage

/// A floppy controller with its DMA controller and memory.
private final class FloppyRig {
    let store = MemoryStore(numberedSectors: 2880)
    let memory = FakeMemory(bytes: 0x10000)
    let dma: DMA8237
    let fdc: FDC82077
    let wire = Wire()
    let slot: Slot
    let dmaSlot: Slot
    init() {
        dma = DMA8237(memory: memory)
        fdc = FDC82077(drives: (.drive(store), .nothing), dma: dma, line: wire)
        slot = Slot("fdc", fdc)
        dmaSlot = Slot("dma", dma)
        out(0x1C, 2)
        slot.write(0, Access(region: 1, offset: 0))
    }
    func out(_ value: UInt8, _ offset: UInt64) { slot.write(UInt64(value), Access(offset: offset)) }
    func inByte(_ offset: UInt64) -> UInt8 { UInt8(truncatingIfNeeded: slot.read(Access(offset: offset))) }
    func send(_ bytes: [UInt8]) { for byte in bytes { out(byte, 5) } }
    /// The result phase.
    func result() -> [UInt8] {
        var bytes: [UInt8] = []
        while inByte(4) & 0xC0 == 0xC0, bytes.count < 16 { bytes.append(inByte(5)) }
        return bytes
    }
    func setUpDMA(mode: UInt8, address: UInt16, bytes: UInt16) {
        func port(_ value: UInt8, _ offset: UInt64) { dmaSlot.write(UInt64(value), Access(offset: offset)) }
        port(6, 10)
        port(0, 12)
        port(UInt8(address & 0xFF), 4)
        port(UInt8(address >> 8), 4)
        port(UInt8((bytes - 1) & 0xFF), 5)
        port(UInt8((bytes - 1) >> 8), 5)
        port(mode, 11)
        port(2, 10)
    }
}

@Suite("Floppy controller") struct StorageFloppyTests {
    @Test func contract() throws {
        try expectContract(accesses: 20_000) {
            let memory = FakeMemory(bytes: 65_536)
            return FDC82077(
                drives: (.drive(MemoryStore(numberedSectors: 2880)), .drive(nil)), dma: DMA8237(memory: memory),
                line: Wire())
        }
        try expectContract(accesses: 20_000) { DMA8237(memory: FakeMemory(bytes: 65_536)) }
    }

    @Test("A reset interrupts, and SENSE INTERRUPT STATUS tells of four drives") func reset() {
        let rig = FloppyRig()
        rig.out(0x08, 2)
        rig.out(0x0C, 2)
        #expect(rig.wire.isHigh)
        for drive in 0..<4 as Range<UInt8> {
            rig.send([0x08])
            #expect(rig.result() == [0xC0 | drive, 0])
        }
        rig.send([0x08])
        #expect(rig.result() == [0x80])
        #expect(!rig.wire.isHigh)
    }

    @Test("READ DATA by DMA ends at terminal count with the next sector's address") func readDMA() {
        let rig = FloppyRig()
        rig.send([0x0F, 0, 1])
        rig.send([0x08])
        #expect(rig.result() == [0x20, 1])
        rig.setUpDMA(mode: 0x46, address: 0x2000, bytes: 1024)
        rig.send([0xE6, 0, 1, 0, 3, 2, 18, 0x1B, 0xFF])
        #expect(rig.wire.isHigh)
        #expect(rig.result() == [0, 0, 0, 1, 0, 5, 2])
        // Track 1, head 0, sector 3 is sector 36 + 2.
        #expect(rig.memory[0x2001, 3] == [38, 38, 38])
        #expect(rig.memory[0x2201, 3] == [39, 39, 39])
        #expect(rig.memory[0x2400, 3] == [0, 0, 0])
    }

    @Test("A multi-track read goes on under head 1") func multiTrack() {
        let rig = FloppyRig()
        rig.setUpDMA(mode: 0x46, address: 0x2000, bytes: 2048)
        rig.send([0xE6, 0, 0, 0, 17, 2, 18, 0x1B, 0xFF])
        #expect(rig.result() == [0x04, 0, 0, 0, 1, 3, 2])
        #expect([1, 513, 1025, 1537].map { rig.memory[0x2000 + $0, 1][0] } == [16, 17, 18, 19])
    }

    @Test("A transfer waits for its DMA channel") func waiting() {
        let rig = FloppyRig()
        rig.send([0xE6, 0, 0, 0, 1, 2, 18, 0x1B, 0xFF])
        #expect(rig.inByte(4) == 0x10)
        rig.setUpDMA(mode: 0x46, address: 0x3000, bytes: 512)
        #expect(rig.wire.isHigh)
        #expect(rig.result().count == 7)
    }

    @Test("WRITE DATA is on the medium, and flushed, before it ends") func writeDMA() {
        let rig = FloppyRig()
        rig.memory[0x2000, 512] = [UInt8](repeating: 0x77, count: 512)
        rig.setUpDMA(mode: 0x4A, address: 0x2000, bytes: 512)
        rig.send([0xC5, 4, 0, 1, 1, 2, 18, 0x1B, 0xFF])
        #expect(rig.inByte(4) == 0x10)
        rig.store.drain()
        rig.store.drain()
        #expect(rig.result() == [0x04, 0, 0, 0, 1, 2, 2])
        #expect(rig.store.bytes[18 * 512] == 0x77)
        #expect(rig.store.flushes == 1)
    }

    @Test("Without DMA the bytes come through the FIFO, and the end of the cylinder ends the command") func fifo() {
        let rig = FloppyRig()
        rig.send([0x03, 0xAF, 0x03])
        rig.send([0x46, 0, 0, 0, 18, 2, 18, 0x1B, 0xFF])
        var bytes: [UInt8] = []
        while rig.inByte(4) == 0xF0 { bytes.append(rig.inByte(5)) }
        #expect(bytes.count == 512)
        #expect(bytes[1] == 17)
        #expect(rig.result() == [0x40, 0x80, 0, 1, 0, 1, 2])
    }

    @Test("A wrong data rate, track or sector is not found") func notFound() {
        let rig = FloppyRig()
        rig.slot.write(2, Access(region: 1, offset: 0))
        rig.send([0x4A, 0])
        #expect(rig.result()[0...1] == [0x40, 0x01])
        rig.slot.write(0, Access(region: 1, offset: 0))
        rig.send([0x4A, 0])
        #expect(rig.result() == [0, 0, 0, 0, 0, 1, 2])
        rig.send([0x46, 0, 5, 0, 1, 2, 18, 0x1B, 0xFF])
        #expect(rig.result()[0...2] == [0x40, 0x04, 0x10])
        rig.send([0x46, 0, 0, 0, 19, 2, 19, 0x1B, 0xFF])
        #expect(rig.result()[0...1] == [0x40, 0x04])
    }

    @Test("The disk-change bit goes away with a step, and comes back with another disk") func diskChange() {
        let rig = FloppyRig()
        func changed() -> Bool { rig.slot.read(Access(region: 1, offset: 0)) & 0x80 != 0 }
        #expect(changed())
        rig.send([0x07, 0])
        #expect(!changed())
        #expect(rig.fdc.changeMedium(0, to: MemoryStore(numberedSectors: 1440)))
        #expect(changed())
        #expect(rig.fdc.driveType(0) == .m1_44)
        #expect(rig.fdc.driveType(1) == .none)
    }

    @Test("FORMAT TRACK fills its sectors; VERSION, LOCK and an unknown command answer") func others() {
        let rig = FloppyRig()
        rig.setUpDMA(mode: 0x4A, address: 0x2000, bytes: 72)
        rig.send([0x4D, 0, 2, 18, 0x50, 0xF6])
        rig.store.drain()
        rig.store.drain()
        #expect(rig.result()[0] == 0)
        #expect(rig.store.bytes[..<9216].allSatisfy { $0 == 0xF6 })
        #expect(rig.store.bytes[9217] == 18)
        rig.send([0x10])
        #expect(rig.result() == [0x90])
        rig.send([0x94])
        #expect(rig.result() == [0x10])
        rig.send([0x1F])
        #expect(rig.result() == [0x80])
        rig.send([0x0E])
        #expect(rig.result().count == 10)
    }

    @Test("Random commands with random DMA set-ups are survived, and stay on the disk") func hostileGuest() {
        var random = Seeded(5)
        let rig = FloppyRig()
        let known: [UInt8] = [0xE6, 0x46, 0xC5, 0x45, 0x4D, 0x42, 0xF6, 0x4A, 0x07, 0x0F, 0x8F, 0xCF, 0x08, 0x04, 0x03]
        for round in 0..<5_000 {
            let code = known.randomElement(using: &random) ?? 0
            let arguments = (0..<8).map { _ in UInt8.random(in: 0...(round % 2 == 0 ? 18 : .max), using: &random) }
            if code == 0x03, round % 4 != 0 { continue }
            let modes: [UInt8] = [0x46, 0x4A, 0x66, 0x56, 0x42, 0xC6]
            rig.setUpDMA(
                mode: modes.randomElement(using: &random) ?? 0, address: .random(in: 0 ... .max, using: &random),
                bytes: .random(in: 1...20_000, using: &random))
            rig.send([code] + arguments)
            if Bool.random(using: &random) { rig.store.drain() }
            _ = rig.result()
            if round % 20 == 0 { rig.out(0x18, 2) }
            if round % 20 == 1 { rig.out(0x1C, 2) }
        }
        #expect(rig.store.bytes.count == 2880 * 512)
    }

    @Test("Image sizes tell the format") func formats() {
        #expect(FloppyFormat(imageSize: 1_474_560)?.drive == .m1_44)
        #expect(FloppyFormat(imageSize: 737_280)?.sectors == 9)
        #expect(FloppyFormat(imageSize: 2_949_120)?.rate == 3)
        #expect(FloppyFormat(imageSize: 600_000)?.sectors == 18)
        #expect(FloppyFormat(imageSize: 5_000_000) == nil)
    }
}

@Suite("DMA controller") struct StorageDMATests {
    @Test("Address and count go through the flip-flop, low byte first") func flipFlop() {
        let slot = Slot("dma", DMA8237(memory: FakeMemory(bytes: 4096)))
        slot.write(0, Access(offset: 12))
        slot.write(0x34, Access(offset: 4))
        slot.write(0x12, Access(offset: 4))
        #expect(slot.read(Access(offset: 4)) == 0x34)
        #expect(slot.read(Access(offset: 4)) == 0x12)
    }

    @Test("A transfer wraps in its 64 KiB page and stops at terminal count") func wrap() {
        let memory = FakeMemory(bytes: 0x30000)
        let dma = DMA8237(memory: memory)
        let slot = Slot("dma", dma)
        slot.write(2, Access(region: 2, offset: 1))
        for (value, offset) in [(0, 12), (0xFE, 4), (0xFF, 4), (3, 5), (0, 5), (0x46, 11), (2, 10)]
            as [(UInt64, UInt64)]
        { slot.write(value, Access(offset: offset)) }
        let result = dma.send([1, 2, 3, 4, 5, 6][...], on: 2)
        #expect(result.moved == 4 && result.terminalCount)
        #expect(memory[0x2FFFE, 2] == [1, 2])
        #expect(memory[0x20000, 3] == [3, 4, 0])
        #expect(slot.read(Access(offset: 8)) == 0x04)
        #expect(dma.send([9][...], on: 2).moved == 0, "the channel masked itself")
    }
}
