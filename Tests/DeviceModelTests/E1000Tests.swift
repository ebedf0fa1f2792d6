import DeviceContract
import Ethernet
import Machine
import TestSupport
import Testing

@testable import NetworkCards

/// A card, its guest's memory, and what it has sent.
private final class Bench {
    let memory = FakeMemory(bytes: 1 << 20)
    let line = Wire()
    var sent: [Frame] = []
    var isFull = false
    private(set) var card: E1000!
    private(set) var slot: Slot!
    var time: UInt64 = 0
    static let mac: [UInt8] = [0, 0x16, 0x3E, 1, 2, 3]

    init() {
        card = E1000(mac: Self.mac, line: line, dma: memory) { [unowned self] frame in
            if !isFull { sent.append(frame) }
            return !isFull
        }
        slot = Slot("e1000", card)
    }

    func write(_ offset: UInt64, _ value: UInt64) {
        slot.write(value, Access(offset: offset, width: .long), at: Instant(nanoseconds: time))
    }
    func read(_ offset: UInt64) -> UInt64 {
        slot.read(Access(offset: offset, width: .long), at: Instant(nanoseconds: time))
    }
    func put(_ bytes: [UInt8], at place: Int) {
        for (index, byte) in bytes.enumerated() { memory.memory[place + index] = byte }
    }
    func words(_ values: UInt64...) -> [UInt8] {
        values.flatMap { value in (0..<8).map { UInt8(truncatingIfNeeded: value >> UInt64($0 * 8)) } }
    }

    /// Rings of eight descriptors: transmit at 0x1000, receive at 0x2000 with buffers of 2 KiB from 0x10000 on.
    func start(receiveControl: UInt64 = 0x0400_8002) {
        write(0x3800, 0x1000)
        write(0x3808, 128)
        write(0x0400, 2)
        for index in 0..<8 { put(words(UInt64(0x10000 + index * 2048), 0), at: 0x2000 + index * 16) }
        write(0x2800, 0x2000)
        write(0x2808, 128)
        write(0x2818, 7)
        write(0x0100, receiveControl)
        write(0x00D0, 0x9F)
    }
    var next = 0
    func describe(_ low: UInt64, _ high: UInt64) {
        put(words(low, high), at: 0x1000 + next * 16)
        next = (next + 1) & 7
    }
    func kick() { write(0x3818, UInt64(next)) }
    /// Length and status of the receive descriptor.
    func received(_ index: Int) -> (length: Int, status: UInt8) {
        let place = 0x2000 + index * 16
        return (Int(memory.memory[place + 8]) | Int(memory.memory[place + 9]) << 8, memory.memory[place + 12])
    }
    func give(_ frame: Frame) -> Bool {
        defer { card.settle() }
        return card.receive(frame)
    }
}

private func tcp(payload: Int, six: Bool = false, to station: [UInt8] = Bench.mac) -> Frame {
    var bytes = station + [2, 0, 0, 0, 0, 1]
    if six {
        bytes += [0x86, 0xDD, 0x60, 0, 0, 0, 0, 0, 6, 64] + (0..<32).map { UInt8($0) }
    } else {
        bytes += [8, 0, 0x45, 0, 0, 0, 1, 2, 0x40, 0, 64, 6, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2]
    }
    bytes += [1, 1, 0, 80, 0, 0, 0, 9, 0, 0, 0, 0, 0x50, 0x18, 0x20, 0, 0, 0, 0, 0]
    return Frame(bytes + (0..<payload).map { UInt8(truncatingIfNeeded: $0 &* 5) })
}

@Suite("e1000") struct E1000Tests {
    @Test("It keeps the rules of devices")
    func contract() throws {
        try expectContract { E1000(mac: Bench.mac, line: Wire(), dma: FakeMemory(bytes: 1 << 16)) { _ in true } }
    }

    @Test("The EEPROM is read bit by bit, and by EERD")
    func eeprom() {
        let bench = Bench()
        func bits(_ value: UInt64, _ count: Int) {
            for bit in (0..<count).reversed() {
                let pin: UInt64 = 0x42 | (value >> UInt64(bit) & 1 != 0 ? 4 : 0)
                bench.write(0x10, pin)
                bench.write(0x10, pin | 1)
                bench.write(0x10, pin)
            }
        }
        func word(_ address: UInt64) -> UInt64 {
            bench.write(0x10, 0x40)
            #expect(bench.read(0x10) & 0x80 != 0, "granted")
            bench.write(0x10, 0x42)
            bits(0b110 << 6 | address, 9)
            var value: UInt64 = 0
            for _ in 0..<16 {
                bench.write(0x10, 0x43)
                value = value << 1 | bench.read(0x10) >> 3 & 1
                bench.write(0x10, 0x42)
            }
            bench.write(0x10, 0x40)
            return value
        }
        #expect((0..<3).map { word($0) } == [0x1600, 0x013E, 0x0302])
        #expect((0..<64).reduce(UInt64(0)) { ($0 + word(UInt64($1))) & 0xFFFF } == 0xBABA)
        bench.write(0x14, 0x0D << 8 | 1)
        #expect(bench.read(0x14) == 0x100E_0D10)
        #expect(bench.read(0x5400) == 0x013E_1600 && bench.read(0x5404) == 0x8000_0302)
    }

    @Test("The PHY answers at address 1 and has a link of a gigabit")
    func phy() {
        let bench = Bench()
        func phy(_ register: UInt64, _ address: UInt64 = 1) -> UInt64 {
            bench.write(0x20, register << 16 | address << 21 | 2 << 26)
            return bench.read(0x20)
        }
        #expect(phy(2) & 0xFFFF == 0x0141 && phy(3) & 0xFFFF == 0x0C20)
        #expect(phy(1) & 0x1000_0024 == 0x1000_0024)
        #expect(phy(2, 2) & 0x4000_0000 != 0, "nobody there")
        #expect(bench.read(8) & 0x83 == 0x83)
        bench.card.setLink(false)
        #expect(bench.read(8) & 2 == 0 && phy(1) & 4 == 0)
        #expect(bench.read(0xC0) & 4 != 0)
    }

    @Test("A packet in two descriptors is sent, and told of once it is asked for")
    func transmit() {
        let bench = Bench()
        bench.start()
        let frame = tcp(payload: 100)
        bench.put(frame.bytes, at: 0x8000)
        bench.describe(0x8000, 54)
        bench.describe(0x8000 + 54, 100 | 9 << 24)
        bench.kick()
        #expect(bench.sent == [frame])
        #expect(bench.memory.memory[0x100C] == 0 && bench.memory.memory[0x101C] == 1)
        #expect(bench.line.isHigh && bench.read(0xC0) == 3 && !bench.line.isHigh)
        #expect(bench.read(0x3810) == 2)
        #expect(bench.read(0x4080) == 1 && bench.read(0x4080) == 0, "statistics are cleared by reading")
    }

    @Test("A full port holds a packet back, and the ring with it")
    func held() {
        let bench = Bench()
        bench.start()
        bench.put(tcp(payload: 100).bytes, at: 0x8000)
        bench.isFull = true
        for _ in 0..<3 { bench.describe(0x8000, 154 | 9 << 24) }
        bench.kick()
        #expect(bench.sent.isEmpty && bench.read(0x3810) == 1)
        bench.isFull = false
        bench.card.resume()
        #expect(bench.sent.count == 3 && bench.read(0x3810) == 3)
    }

    @Test("Checksums are inserted where the context says, or left to the next one")
    func checksums() throws {
        let bench = Bench()
        bench.start()
        var frame = tcp(payload: 77)
        frame.bytes[17] = 117
        frame.leaveChecksum(isSummed: false)
        bench.put(frame.bytes, at: 0x8000)
        // IPCSS 14, IPCSO 24, IPCSE 33, TUCSS 34, TUCSO 50, TUCSE 0.
        bench.describe(14 | 24 << 8 | 33 << 16 | 34 << 32 | 50 << 40, 0x2B << 24)
        bench.describe(0x8000, UInt64(frame.bytes.count) | 1 << 20 | 0x29 << 24 | 3 << 40)
        bench.kick()
        let sent = try #require(bench.sent.first)
        #expect(sent.header.needsChecksum && sent.header.checksumStart == 34 && sent.header.checksumOffset == 16)
        #expect(Checksum.fold(Checksum.sum(sent.bytes, 14..<34)) == 0xFFFF)
        let finished = sent.completed()
        let packet = try #require(Packet(finished.bytes))
        #expect(
            Checksum.fold(Checksum.sum(finished.bytes, 34..<131, packet.pseudoSum(finished.bytes, transportBytes: 97)))
                == 0xFFFF)
    }

    @Test("A large packet leaves in one piece, and its segments are sound", arguments: [false, true])
    func large(six: Bool) throws {
        let bench = Bench()
        bench.start()
        let frame = tcp(payload: 6000, six: six)
        let header = UInt64(frame.bytes.count - 6000)
        bench.put(frame.bytes, at: 0x8000)
        let network: UInt64 = 14 | 24 << 8 | (six ? 0 : 33 << 16)
        bench.describe(
            network | (header - 20) << 32 | (header - 4) << 40,
            6000 | (six ? 0x2D : 0x2F) << 24 | header << 40 | 1448 << 48)
        bench.describe(0x8000, header | 1 << 20 | 0x24 << 24 | (six ? 2 : 3) << 40)
        bench.describe(0x8000 + header, 6000 | 1 << 20 | 0x2D << 24)
        bench.kick()
        let sent = try #require(bench.sent.first)
        #expect(bench.sent.count == 1 && sent.header.segmentation == (six ? .tcp6 : .tcp4))
        let segments = sent.finished(for: Offloads())
        #expect(segments.count == 5)
        #expect(segments.flatMap { $0.bytes[Int(header)...] } == Array(frame.bytes[Int(header)...]))
        for segment in segments {
            let packet = try #require(Packet(segment.bytes))
            let range = packet.transportStart..<packet.end
            #expect(packet.end == segment.bytes.count)
            let sum = packet.pseudoSum(segment.bytes, transportBytes: range.count)
            #expect(Checksum.fold(Checksum.sum(segment.bytes, range, sum)) == 0xFFFF)
            if !six { #expect(Checksum.fold(Checksum.sum(segment.bytes, 14..<34)) == 0xFFFF) }
        }
    }

    @Test("Frames fill the guest's buffers in order, and wait where there are none")
    func receive() {
        let bench = Bench()
        bench.start()
        var frame = tcp(payload: 500)
        frame.header.isValid = true
        #expect(bench.give(frame))
        #expect(bench.received(0).length == 554 && bench.received(0).status == 0x63)
        #expect(Array(bench.memory.memory[0x10000..<(0x10000 + 554)]) == frame.bytes)
        #expect(bench.line.isHigh && bench.read(0xC0) & 0x80 != 0)
        for _ in 0..<6 { #expect(bench.give(frame)) }
        #expect(!bench.card.hasRoom && !bench.give(frame))
        var rooms = 0
        bench.card.onRoom = { rooms += 1 }
        bench.write(0x2818, 3)
        #expect(rooms == 1 && bench.give(frame))
        #expect(bench.received(7).status == 0x63 && bench.read(0x2810) == 0)
    }

    @Test("A frame of several buffers, with its check sequence")
    func long() {
        let bench = Bench()
        // Long packets, buffers of 256 bytes.
        bench.start(receiveControl: 0x0003_8022)
        #expect(bench.give(tcp(payload: 500)))
        #expect((0..<4).map { bench.received($0).length } == [256, 256, 46, 0])
        #expect((0..<4).map { bench.received($0).status & 3 } == [1, 1, 3, 0])
    }

    @Test("Only what the filters let through is received")
    func filters() {
        let bench = Bench()
        bench.start()
        let group: [UInt8] = [1, 0, 0x5E, 0, 0, 0xFB]
        func hears(_ station: [UInt8]) -> Bool {
            let before = bench.read(0x2810)
            #expect(bench.give(tcp(payload: 10, to: station)))
            return bench.read(0x2810) != before
        }
        #expect(hears(Bench.mac) && hears([UInt8](repeating: 0xFF, count: 6)))
        #expect(!hears([0, 0x16, 0x3E, 1, 2, 4]) && !hears(group))
        // Bits 47 to 36 of the address: 0xFB0.
        bench.write(0x5200 + UInt64(0xFB0 >> 5) * 4, 1 << 0x10)
        #expect(hears(group))
        bench.write(0x0100, 0x0400_800A)
        #expect(hears([0, 0x16, 0x3E, 1, 2, 4]))
    }

    @Test("The throttle keeps interrupts apart")
    func throttle() {
        let bench = Bench()
        bench.start()
        // 1000 * 256 ns.
        bench.write(0xC4, 1000)
        bench.write(0xC8, 4)
        #expect(bench.line.isHigh)
        _ = bench.read(0xC0)
        bench.write(0xC8, 4)
        #expect(!bench.line.isHigh)
        #expect(bench.card.deadline == Instant(nanoseconds: 256_000))
        bench.card.advance(to: Instant(nanoseconds: 256_000))
        bench.card.settle()
        #expect(bench.line.isHigh)
    }

    @Test("Wild rings, chains without end and addresses outside of memory harm nobody")
    func hostile() {
        var random = Seeded(5)
        for round in 0..<300 {
            let bench = Bench()
            bench.start(receiveControl: .random(in: 0...0xFFF_FFFF, using: &random) | 2)
            for place in 0x1000..<0x3000 { bench.memory.memory[place] = .random(in: 0...255, using: &random) }
            for index in 0..<8 where Bool.random(using: &random) {
                // Extended, without an end.
                bench.put([0x20 | UInt8(index & 1)], at: 0x1000 + index * 16 + 11)
            }
            for _ in 0..<10 {
                let offset =
                    [0x2800, 0x2808, 0x2810, 0x2818, 0x3800, 0x3808, 0x3810, 0x3818, 0x0400, 0x2804]
                    .randomElement(using: &random) ?? 0
                let isWild = Int.random(in: 0..<4, using: &random) == 0
                bench.write(UInt64(offset), .random(in: 0...(isWild ? 0xFFFF_FFFF : 0x80), using: &random))
            }
            bench.kick()
            _ = bench.give(tcp(payload: .random(in: 0...9000, using: &random), six: round % 2 == 0))
            // The card's own registers are no memory: there is nobody at 0xF0000000.
            bench.describe(0xF000_0000, 2000 | 9 << 24)
            bench.kick()
        }
    }
}
