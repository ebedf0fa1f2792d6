// Emulated devices under guests that do anything: registers, descriptors, tables and frames at random, near enough to what
// drivers do to get deep into the chips.
// Source: `fuzz` (DeviceContract) says how long and from which seed.
// Covered: e1000, NE2000, IDE with its bus master, VGA with its screen, the floppy controller with its DMA controller.
// Quirks: tests are built for debugging, so that an overflow or a wrong index anywhere traps.

import DeviceContract
import Display
import Ethernet
import Foundation
import Images
import Machine
import TestSupport
import Testing

@testable import NetworkCards
@testable import Storage

/// A device at which accesses are thrown.
private struct Victim<D: Device> {
    let device: D
    let slot: Slot
    /// Offsets that drivers use, of the first region, with the width they use there.
    let favourites: (offsets: [UInt64], width: Width)
    let memoryBytes: Int
    var time: UInt64 = 0

    init(_ device: D, _ favourites: [UInt64], _ width: Width, memory: Int = 1 << 16) {
        (self.device, self.favourites, memoryBytes) = (device, (favourites, width), memory)
        slot = Slot("victim", device)
    }

    private func access(_ random: inout Seeded) -> Access {
        if !random.once(in: 4), let offset = favourites.offsets.randomElement(using: &random) {
            return Access(offset: offset, width: favourites.width)
        }
        let region = random.number(0...(device.regions.count - 1))
        let range = device.regions[region].range
        let widths: [Width] = [.byte, .word, .long, .quad]
        return Access(
            region: region, offset: .random(in: 0...(range.upperBound - range.lowerBound), using: &random),
            width: widths[random.number(0...3)])
    }

    mutating func step(_ random: inout Seeded) {
        time += UInt64(random.number(0...100_000))
        let now = Instant(nanoseconds: time)
        let access = access(&random)
        if random.once(in: 3) {
            _ = slot.read(access, at: now)
        } else {
            slot.write(random.value(memory: memoryBytes), access, at: now)
        }
    }

    /// What holds whatever was done: outputs follow from the state, and it can be saved.
    func check() throws {
        let before = device.state
        device.settle()
        #expect(device.state == before)
        let saved = try JSONEncoder().encode(device.state)
        #expect(try JSONDecoder().decode(D.State.self, from: saved) == before)
    }
}

/// A frame as a port gives it: with a header.
private func frame(_ random: inout Seeded, to station: [UInt8]) -> Frame {
    let length = random.once(in: 8) ? random.number(14...17_000) : random.number(14...1600)
    var bytes = random.bytes(length)
    // A frame that its receiver wants, most of the time.
    if !random.once(in: 3) { bytes.replaceSubrange(0..<6, with: station) }
    return Frame(bytes)
}

@Suite("Devices survive everything", .serialized) struct DeviceFuzzTests {
    private static let mac: [UInt8] = [0, 0x16, 0x3E, 1, 2, 3]

    @Test func e1000() throws {
        let registers: [UInt64] = [
            0x0, 0x8, 0x10, 0x14, 0x20, 0xC0, 0xC4, 0xC8, 0xD0, 0xD8, 0x100, 0x400, 0x2800, 0x2804, 0x2808, 0x2810,
            0x2818,
            0x2820, 0x282C, 0x3800, 0x3804, 0x3808, 0x3810, 0x3818, 0x3820, 0x5000, 0x5200, 0x5400, 0x5404,
        ]
        try fuzz("e1000") { random in
            let memory = FakeMemory(bytes: 1 << 16)
            var isFull = false
            var sentBytes = 0
            let card = E1000(mac: Self.mac, line: Wire(), dma: memory) { frame in
                sentBytes += frame.bytes.count
                return !isFull
            }
            var victim = Victim(card, registers, .long)
            for (offset, value) in [
                (0x3800, 0x1000), (0x3808, 0x80), (0x400, 2), (0x2800, 0x2000), (0x2808, 0x80), (0x2818, 7),
            ]
                as [(UInt64, UInt64)]
            {
                victim.slot.write(value, Access(offset: offset, width: .long), at: .zero)
            }
            victim.slot.write(0x0400_8022, Access(offset: 0x100, width: .long), at: .zero)
            for _ in 0..<400 {
                isFull = random.once(in: 5)
                switch random.number(0...5) {
                case 0: describe(&random, memory)
                case 1 where card.hasRoom: _ = card.receive(frame(&random, to: Self.mac))
                case 2 where !isFull: card.resume()
                case 3:
                    let tail = [0x3818, 0x2818].randomElement(using: &random) ?? 0x3818
                    victim.slot.write(
                        UInt64(random.number(0...8)), Access(offset: UInt64(tail), width: .long),
                        at: Instant(nanoseconds: victim.time))
                default: victim.step(&random)
                }
                card.settle()
            }
            try victim.check()
        }
    }

    /// A descriptor of either ring, with a buffer in memory or beside it, legacy, context or data.
    private func describe(_ random: inout Seeded, _ memory: FakeMemory) {
        let place = (random.once(in: 2) ? 0x1000 : 0x2000) + random.number(0...7) * 16
        let address = random.once(in: 8) ? random.next() : UInt64(random.number(0...0xFFFF))
        let length = random.once(in: 4) ? random.number(0...0xFFFFF) : random.number(0...2000)
        let type = [0, 0x2000_0000, 0x2010_0000].randomElement(using: &random) ?? 0
        let command = random.number(0...255) << 24
        let low = UInt64(length | type | command)
        let high = random.next() & 0xFFFF_FFFF
        memory.memory.storeBytes(of: address, toByteOffset: place, as: UInt64.self)
        memory.memory.storeBytes(of: high << 32 | low, toByteOffset: place + 8, as: UInt64.self)
    }

    @Test(arguments: [true, false]) func ne2000(isPCI: Bool) throws {
        try fuzz(isPCI ? "ne2000-pci" : "ne2000-isa") { random in
            var isFull = false
            let card = NE2000(mac: Self.mac, isPCI: isPCI, line: Wire()) { _ in !isFull }
            var victim = Victim(card, Array(0...0x10), .byte)
            // Started as Linux does it; from there on, anything.
            for (offset, value) in [(0, 0x21), (14, 0x49), (1, 0x4C), (2, 0x80), (3, 0x4C), (12, 0x1C), (0, 0x22)]
                as [(UInt64, UInt64)]
            {
                victim.slot.write(value, Access(offset: offset), at: .zero)
            }
            for _ in 0..<600 {
                isFull = random.once(in: 5)
                switch random.number(0...6) {
                case 0 where card.hasRoom: _ = card.receive(frame(&random, to: Self.mac))
                case 1 where !isFull: card.resume()
                case 2:
                    var bytes = random.bytes(random.number(0...300) * 2)
                    let access = Access(offset: 0x10, width: .word)
                    if random.once(in: 2) {
                        bytes.withUnsafeBytes { card.write($0, access) }
                    } else {
                        bytes.withUnsafeMutableBytes { card.read(access, into: $0) }
                    }
                default: victim.step(&random)
                }
                card.settle()
            }
            try victim.check()
        }
    }

    @Test func ide() throws {
        let commands: [UInt8] = [
            0x20, 0x24, 0x29, 0x30, 0x34, 0x39, 0xC4, 0xC5, 0xC6, 0xC8, 0xCA, 0x25, 0x35, 0x3D, 0xA0, 0xA1, 0xEC, 0xEF,
            0xB0, 0x08, 0x90, 0x91, 0xE7, 0xF8, 0x27, 0x40,
        ]
        let packets: [UInt8] = [0x00, 0x03, 0x12, 0x1B, 0x1E, 0x25, 0x28, 0x43, 0x46, 0x4A, 0x51, 0x5A, 0xA8, 0xBE]
        try fuzz("ide") { random in
            let disk = MemoryStore(numberedSectors: 200)
            let rig = IDERig(.disk(disk), .cdrom(MemoryStore(numberedSectors: 400)), memory: 65_536)
            for _ in 0..<800 {
                disk.isCached = random.once(in: 3)
                let value = UInt8(truncatingIfNeeded: random.next())
                switch random.number(0...12) {
                case 0: rig.out(random.once(in: 8) ? value : commands.randomElement(using: &random) ?? 0, 7)
                case 1: rig.out(value, UInt64(random.number(1...6)))
                case 2: rig.out(value & 7, UInt64(random.number(2...5)))
                case 3: rig.control(value & 0x86)
                case 4: rig.busMaster.write(random.value(), Access(offset: UInt64(random.number(0...7))))
                case 5: rig.memory[random.number(0...65_000), 8] = random.bytes(8)
                case 6: _ = rig.read(random.number(0...3000))
                case 7: rig.write(random.bytes(random.number(0...3000)))
                case 8: _ = disk.serve()
                case 9:
                    rig.packet([packets.randomElement(using: &random) ?? 0] + random.bytes(11), dma: random.once(in: 2))
                case 10: rig.startBusMaster(table: UInt32(random.number(0...65_535)), toMemory: random.once(in: 2))
                case 11: rig.command(commands.randomElement(using: &random) ?? 0, lba: UInt32(value), count: value & 3)
                default: _ = rig.status
                }
            }
            disk.drain()
            #expect(disk.bytes.count == 200 * 512, "nothing was written outside the disk")
        }
    }

    @Test func vga() throws {
        try fuzz("vga") { random in
            let card = Card(memory: 1 << 20)
            defer { card.bytes.deallocate() }
            let screen = Screen(card.vga)
            var victim = Victim(card.vga, Array(0x10...0x2B), .byte)
            for _ in 0..<300 {
                switch random.number(0...7) {
                case 0: card.set(UInt64(random.number(0...0x18)), UInt64(random.number(0...255)), at: 0x3D4)
                case 1: card.set(UInt64(random.number(0...4)), UInt64(random.number(0...255)), at: 0x3C4)
                case 2: card.set(UInt64(random.number(0...8)), UInt64(random.number(0...255)), at: 0x3CE)
                case 3: card.attribute(UInt64(random.number(0...0x34)), UInt64(random.number(0...255)))
                default: victim.step(&random)
                }
            }
            _ = screen.refresh()
            try victim.check()
        }
    }

    @Test func floppy() throws {
        let commands: [UInt8] = [2, 3, 4, 5, 6, 7, 8, 9, 0xA, 0xC, 0xD, 0xE, 0xF, 0x10, 0x11, 0x12, 0x13, 0x19, 0x1D]
        try fuzz("floppy") { random in
            let store = MemoryStore(numberedSectors: 2880)
            let dma = DMA8237(memory: FakeMemory(bytes: 0x10000))
            let controller = FDC82077(drives: (.drive(store), .drive(nil)), dma: dma, line: Wire())
            var victim = Victim(controller, [2, 2, 4, 5, 5, 5, 7], .byte)
            var channel = Victim(dma, Array(0...15), .byte)
            for _ in 0..<800 {
                store.isCached = random.once(in: 2)
                switch random.number(0...5) {
                case 0:
                    let command =
                        (commands.randomElement(using: &random) ?? 0) | [0, 0x40, 0x80, 0xC0][random.number(0...3)]
                    for byte in [command] + random.bytes(random.number(0...9)) {
                        victim.slot.write(UInt64(byte & 0x3F | command & 0xC0), Access(offset: 5), at: .zero)
                    }
                case 1: channel.step(&random)
                case 2: _ = store.serve()
                default: victim.step(&random)
                }
            }
            store.drain()
            #expect(store.bytes.count == 2880 * 512)
            try channel.check()
        }
    }
}
