import DeviceContract
import Ethernet
import Machine
import TestSupport
import Testing

@testable import NetworkCards

/// A card as a driver programs it.
private final class Bench {
    let line = Wire()
    var sent: [Frame] = []
    var isFull = false
    var time: UInt64 = 0
    private(set) var card: NE2000!
    private(set) var slot: Slot!
    static let mac: [UInt8] = [0, 0x16, 0x3E, 1, 2, 3]

    init() {
        card = NE2000(mac: Self.mac, isPCI: true, line: line) { [unowned self] frame in
            if !isFull { sent.append(frame) }
            return !isFull
        }
        slot = Slot("ne2000", card)
    }
    func out(_ offset: UInt64, _ value: UInt64, _ width: Width = .byte) {
        slot.write(value, Access(offset: offset, width: width), at: Instant(nanoseconds: time))
    }
    func `in`(_ offset: UInt64, _ width: Width = .byte) -> UInt64 {
        slot.read(Access(offset: offset, width: width), at: Instant(nanoseconds: time))
    }
    func remote(_ address: UInt64, _ count: UInt64, _ command: UInt64) {
        for (offset, value) in [(8, address & 0xFF), (9, address >> 8), (10, count & 0xFF), (11, count >> 8)] {
            out(UInt64(offset), value)
        }
        out(0, command | 2)
    }
    /// As Linux' 8390 driver: words, a ring from 0x4C to 0x80, its own address, broadcasts and groups.
    func start() {
        out(0, 0x21)
        for (offset, value) in [
            (14, 0x49), (12, 0x20), (13, 2), (1, 0x4C), (3, 0x4C), (2, 0x80), (7, 0xFF), (15, 0x3F),
        ] {
            out(UInt64(offset), UInt64(value))
        }
        out(0, 0x61)
        for (index, byte) in Self.mac.enumerated() { out(UInt64(1 + index), UInt64(byte)) }
        out(7, 0x4D)
        out(0, 0x22)
        out(13, 0)
        out(12, 0x0C)
    }
    func transmit(_ bytes: [UInt8]) {
        remote(0x4000, UInt64(bytes.count), 0x10)
        for place in stride(from: 0, to: bytes.count, by: 2) {
            out(0x10, UInt64(bytes[place]) | UInt64(bytes[place + 1]) << 8, .word)
        }
        out(4, 0x40)
        out(5, UInt64(bytes.count & 0xFF))
        out(6, UInt64(bytes.count >> 8))
        out(0, 0x26)
    }
    func take(_ address: UInt64, _ count: Int) -> [UInt8] {
        remote(address, UInt64(count), 0x08)
        return (0..<(count / 2)).flatMap { _ -> [UInt8] in
            let word = self.in(0x10, .word)
            return [UInt8(word & 0xFF), UInt8(word >> 8)]
        }
    }
}

private func frame(_ count: Int, to station: [UInt8] = Bench.mac) -> Frame {
    Frame(station + [2, 0, 0, 0, 0, 1, 0x88, 0xB5] + (0..<(count - 14)).map { UInt8(truncatingIfNeeded: $0) })
}

@Suite("NE2000") struct NE2000Tests {
    @Test("It keeps the rules of devices")
    func contract() throws {
        try expectContract { NE2000(mac: Bench.mac, isPCI: true, line: Wire()) { _ in true } }
    }

    @Test("The address ROM is doubled, and says that the card has 16 bits")
    func rom() {
        let bench = Bench()
        bench.out(14, 0x49)
        let bytes = bench.take(0, 32)
        #expect((0..<6).map { bytes[$0 * 2] } == Bench.mac && (0..<6).map { bytes[$0 * 2 + 1] } == Bench.mac)
        #expect(bytes[28] == 0x57 && bytes[30] == 0x57)
        #expect(bench.in(7) & 0x40 != 0, "remote DMA is done")
        #expect(bench.in(10) == 0x50 && bench.in(11) == 0x43)
    }

    @Test("A packet is written, sent and told of")
    func transmit() {
        let bench = Bench()
        bench.start()
        let packet = frame(100)
        bench.transmit(packet.bytes)
        #expect(bench.sent == [packet] && bench.in(7) & 2 == 0 && bench.in(0) & 4 != 0)
        // 8 µs for 100 bytes.
        bench.time = 8_000
        #expect(bench.in(7) & 2 != 0 && bench.in(4) == 1 && bench.in(0) & 4 == 0 && bench.line.isHigh)
        bench.out(7, 0xFF)
        #expect(!bench.line.isHigh)
        bench.isFull = true
        bench.transmit(packet.bytes)
        #expect(bench.in(0) & 4 != 0 && bench.in(7) & 2 == 0)
        bench.isFull = false
        bench.card.resume()
        #expect(bench.sent.count == 2)
        bench.time = 16_000
        #expect(bench.in(7) & 2 != 0)
    }

    @Test("Packets fill the ring, wrap around its end, and wait when it is full")
    func receive() {
        let bench = Bench()
        bench.start()
        var page: UInt64 = 0x4D
        for round in 0..<40 {
            let packet = frame(1000 + round * 2)
            // As drivers change pages: neither STA nor STP.
            bench.out(0, 0x20)
            #expect(bench.card.receive(packet))
            let header = bench.take(page << 8, 4)
            #expect(header[0] == 1 && Int(header[2]) | Int(header[3]) << 8 == packet.bytes.count + 4)
            let start = Int(page) << 8 + 4
            let first = min(packet.bytes.count, 0x8000 - start)
            var bytes = bench.take(UInt64(start), first)
            if first < packet.bytes.count { bytes += bench.take(0x4C00, packet.bytes.count - first) }
            #expect(bytes == packet.bytes)
            page = UInt64(header[1])
            bench.out(3, page == 0x4C ? 0x7F : page - 1)
        }
        var count = 0
        while bench.card.hasRoom, bench.card.receive(frame(1514)) { count += 1 }
        #expect((6...9).contains(count))
        #expect(!bench.card.receive(frame(1514)))
        var rooms = 0
        bench.card.onRoom = { rooms += 1 }
        bench.out(3, page)
        #expect(rooms == 1)
    }

    @Test("Only what the filters let through is received")
    func filters() {
        let bench = Bench()
        bench.start()
        func hears(_ station: [UInt8]) -> Bool {
            let before = bench.card.state.current
            #expect(bench.card.receive(frame(60, to: station)))
            return bench.card.state.current != before
        }
        #expect(hears(Bench.mac) && hears([UInt8](repeating: 0xFF, count: 6)))
        #expect(!hears([0, 0x16, 0x3E, 1, 2, 4]) && !hears([1, 0, 0x5E, 0, 0, 1]))
        bench.out(0, 0x62)
        for register in 8..<16 { bench.out(UInt64(register), 0xFF) }
        bench.out(0, 0x22)
        #expect(hears([1, 0, 0x5E, 0, 0, 1]))
        bench.out(12, 0x1C)
        #expect(hears([0, 0x16, 0x3E, 1, 2, 4]))
    }

    @Test("Wild pointers harm nobody")
    func hostile() {
        var random = Seeded(9)
        for _ in 0..<300 {
            let bench = Bench()
            bench.start()
            for _ in 0..<30 {
                let width = [Width.byte, .word, .long].randomElement(using: &random) ?? .byte
                bench.out(.random(in: 0...0x1F, using: &random), .random(in: 0...0xFFFF_FFFF, using: &random), width)
                _ = bench.in(.random(in: 0...0x17, using: &random), width)
                bench.out(0, 0x22)
                bench.out(12, 0x1C)
                _ = bench.card.receive(frame(.random(in: 14...1514, using: &random)))
                bench.out(0, 0x26)
            }
        }
    }
}
