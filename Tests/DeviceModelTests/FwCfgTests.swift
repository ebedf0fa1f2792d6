import DeviceContract
import Machine
import Testing

@testable import Firmware

@Suite("fw_cfg") struct FwCfgTests {
    let memory = TestMemory()

    private func make() -> Slot {
        var items = FirmwareItems()
        items.add(file: "etc/two", [1, 2, 3, 4])
        items.add(file: "etc/one", [0xAA])
        return Slot("fw-cfg", FirmwareConfig(items, memory: memory))
    }
    private func bytes(_ slot: Slot, _ key: UInt64, _ count: Int) -> [UInt8] {
        slot.write(key, Access(offset: 0, width: .word))
        return (0..<count).map { _ in UInt8(slot.read(Access(offset: 1))) }
    }

    @Test func contract() throws {
        try expectContract { FirmwareConfig(FirmwareItems(), memory: TestMemory()) }
    }

    @Test("The signature and the DMA bit are there; what lies behind an item is zero")
    func signature() {
        let slot = make()
        #expect(bytes(slot, 0, 6) == Array("QEMU".utf8) + [0, 0])
        #expect(bytes(slot, 1, 4) == [3, 0, 0, 0])
        #expect(bytes(slot, 0x7777, 2) == [0, 0])
    }

    @Test("Files are listed by name, in big-endian numbers")
    func directory() {
        let slot = make()
        let directory = bytes(slot, 0x19, 4 + 2 * 64)
        #expect(directory.prefix(12) == [0, 0, 0, 2, 0, 0, 0, 1, 0, 0x20, 0, 0])
        #expect(directory[12..<19].elementsEqual(Array("etc/one".utf8)))
        #expect(bytes(slot, 0x21, 5) == [1, 2, 3, 4, 0])
    }

    @Test("DMA selects, reads with zeros behind the end, and reports a bad address")
    func transfer() {
        let slot = make()
        memory.bytes.replaceSubrange(0x100..<0x110, with: [0, 0x21, 0, 0x0A, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 2, 0])
        memory.bytes.replaceSubrange(0x200..<0x206, with: [9, 9, 9, 9, 9, 9])
        slot.write(0x0001_0000, Access(region: 1, offset: 4, width: .long))
        #expect(memory.bytes[0x200..<0x206].elementsEqual([1, 2, 3, 4, 0, 0]))
        #expect(memory.bytes[0x100..<0x104].elementsEqual([0, 0, 0, 0]))
        memory.bytes.replaceSubrange(0x100..<0x110, with: [0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0, 0, 0xFF, 0, 0, 0])
        slot.write(0x0001_0000, Access(region: 1, offset: 4, width: .long))
        #expect(memory.bytes[0x103] == 1)
    }

    @Test("Boot devices have SeaBIOS's paths, in order")
    func bootOrder() {
        let machine = FirmwareMachine(
            ram: 1 << 30, lowRAM: 1 << 30, vcpus: 1, uuid: Array(repeating: 1, count: 16),
            boot: [.ide(channel: 1, unit: 0), .floppy(drive: 0)])
        let items = FirmwareItems(machine)
        let order = items.file("bootorder").map { String(decoding: $0.dropLast(), as: UTF8.self) }
        #expect(order == "/pci@i0cf8/ide@1,1/drive@1/disk@0\n/pci@i0cf8/isa@1/fdc@03f0/floppy@0")
        #expect(items.file("etc/e820")?.count == 20)
    }
}
