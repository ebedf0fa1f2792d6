import Ethernet
import Rings
import Testing
import XenStoreClient

@testable import NetBackend

/// A vif whose guest has a control ring.
private final class ControlBench {
    let bench: NetBench
    let ring: FakeFrontRing

    init() throws {
        bench = try NetBench()
        ring = FakeFrontRing(bench.domain, frames: [52], slotBytes: 16)
        try bench.connect(["ctrl-ring-ref": "10", "event-channel-ctrl": "17"])
    }

    /// Status and data of the answer.
    func ask(_ type: UInt16, _ data: UInt32...) throws -> [UInt32] {
        let words = data + [UInt32](repeating: 0, count: 3 - data.count)
        ring.put(littleEndian(UInt16(7)) + littleEndian(type) + words.flatMap { littleEndian($0) })
        ring.push()
        _ = bench.backend.turn()
        let answer = try #require(ring.take(12).first)
        #expect(Array(answer[..<4]) == littleEndian(UInt16(7)) + littleEndian(type))
        return [4, 8].map { place in (0..<4).reduce(0) { $0 | UInt32(answer[place + $1]) << UInt32(8 * $1) } }
    }

    func put(_ words: [UInt32], frame: Int) { bench.put(words.flatMap { littleEndian($0) }, frame: frame) }
}

@Suite struct NetControlTests {
    /// Microsoft, "Verifying the RSS hash calculation".
    static let key: [UInt8] = [
        0x6D, 0x5A, 0x56, 0xDA, 0x25, 0x5B, 0x0E, 0xC2, 0x41, 0x67, 0x25, 0x3D, 0x43, 0xA3, 0x8F, 0xB0, 0xD0, 0xCA,
        0x2B,
        0xCB, 0xAE, 0x7B, 0x30, 0xB4, 0x77, 0xCB, 0x2D, 0xA3, 0x80, 0x30, 0xF2, 0x0C, 0x6A, 0x42, 0xB7, 0x3B, 0xBE,
        0xAC,
        0x01, 0xFA,
    ]

    @Test func `the hash is Toeplitz's, by Microsoft's examples`() {
        let addresses: [UInt8] = [66, 9, 149, 187, 161, 142, 100, 80]
        let ports: [UInt8] = [0x0A, 0xEA, 0x06, 0xE6]
        #expect(NetHash.toeplitz(addresses, key: Self.key) == 0x323E_8FC2)
        #expect(NetHash.toeplitz(addresses + ports, key: Self.key) == 0x51CC_C178)
        let source: [UInt8] = [0x3F, 0xFE, 0x25, 0x01, 0x02, 0, 0x1F, 0xFF, 0, 0, 0, 0, 0, 0, 0, 7]
        let target: [UInt8] = [0x3F, 0xFE, 0x25, 0x01, 0x02, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 1]
        #expect(NetHash.toeplitz(source + target, key: Self.key) == 0x2CC1_8CD5)
        #expect(NetHash.toeplitz(source + target + ports, key: Self.key) == 0x4020_7D3D)
        #expect(NetHash.toeplitz(addresses, key: []) == 0)
    }

    @Test func `a frame comes with its hash once the guest has set one up`() throws {
        let control = try ControlBench()
        let bench = control.bench
        #expect(try bench.guest.read(NetBench.path + "/feature-ctrl-ring") == "1")
        #expect(bench.state == "4" && bench.ports.bound[17] != nil && bench.domain.isMarked(10))
        #expect(try control.ask(1) == [1, 0], "no algorithm, no flags")
        #expect(try control.ask(2, 1) == [2, 0])
        #expect(try control.ask(7, 2) == [2, 0])
        #expect(try control.ask(7, 1) == [0, 0])
        #expect(try control.ask(1) == [0, 15])
        #expect(try control.ask(2, 16) == [2, 0])
        #expect(try control.ask(2, 3) == [0, 0])
        bench.put(Self.key, frame: 130)
        #expect(try control.ask(3, 330, 40) == [0, 0])
        #expect(!bench.domain.isMarked(330))
        bench.post(120..<130)
        var frame = SampleFrame.tcp(payload: 100)
        frame.header = FrameHeader()
        _ = bench.wire.send(frame)
        let value = NetHash.toeplitz(Array(frame.bytes[26..<38]), key: Self.key)
        let words = [value, value >> 16].map { Int(Int16(truncatingIfNeeded: $0)) }
        // Type 4; hash over IPv4 and TCP, which is 1, by algorithm 1.
        #expect(bench.received() == [[0, 0, 8, 154], [4, 0x101] + words])
        // A large packet's cut comes before it, and says that it follows.
        frame.header.segmentation = .tcp4
        (frame.header.segmentBytes, frame.header.headerBytes) = (50, 54)
        frame.header.needsChecksum = true
        (frame.header.checksumStart, frame.header.checksumOffset) = (34, 16)
        _ = bench.wire.send(frame)
        let large = bench.received()
        #expect(large.count == 3 && large[0][2] & 8 != 0)
        #expect(large[1] == [0x101, 50, 1, 0])
        #expect(large[2] == [4, 0x101] + words)
        #expect(try control.ask(7, 0) == [0, 0])
        frame.header = FrameHeader()
        _ = bench.wire.send(frame)
        #expect(bench.received().map { $0[2] } == [0])
    }

    @Test func `the table deals frames out to queues, and takes no wrong one`() throws {
        var hash = NetHash(queues: 3)
        let value = NetHash.Value(type: 1, value: 10)
        #expect(hash.queue(for: value) == 1, "10 mod 3")
        func carryOut(_ type: UInt16, _ data: [UInt32], _ page: [UInt32] = []) -> NetHash.Status {
            let words = data + [UInt32](repeating: 0, count: 3 - data.count)
            let request = NetHash.Request([0, 0] + littleEndian(type) + words.flatMap { littleEndian($0) })
            return hash.carryOut(request) { _, count in
                page.isEmpty ? nil : Array(page.flatMap { littleEndian($0) }.prefix(count))
            }.0
        }
        #expect(carryOut(5, [129]) == .invalidParameter)
        #expect(carryOut(5, [4]) == .success)
        #expect(hash.queue(for: value) == 0, "a new table is zero")
        #expect(carryOut(6, [99, 2, 2], [2, 1]) == .success)
        #expect(hash.queue(for: value) == 2, "entry 10 mod 4")
        #expect(carryOut(6, [99, 2, 2], [0, 3]) == .invalidParameter, "there is no queue 3")
        #expect(carryOut(6, [99, 2, 3], [0, 0]) == .invalidParameter, "behind the table")
        #expect(carryOut(6, [99, 1, .max], [0]) == .invalidParameter)
        #expect(carryOut(6, [99, 129, 0], [0]) == .bufferOverflow)
        #expect(carryOut(6, [99, 2, 0]) == .invalidParameter, "no such grant")
        #expect(hash.queue(for: value) == 2)
        #expect(carryOut(3, [99, 41]) == .bufferOverflow)
        #expect(carryOut(3, [99, 4]) == .invalidParameter)
        #expect(carryOut(4, []) == .success)
        for type: UInt16 in [0, 8, 9, 10, 11] { #expect(carryOut(type, []) == .notSupported) }
    }

    @Test func `a control ring that makes no sense is left alone, and the interface goes on`() throws {
        let control = try ControlBench()
        control.ring.setWord(0, 5000)
        _ = control.bench.backend.turn()
        _ = control.bench.backend.turn()
        #expect(control.bench.reports.count == 1)
        control.bench.post(120..<122)
        _ = control.bench.wire.send(SampleFrame.tcp(payload: 100))
        #expect(control.bench.received().count == 1)
        try control.bench.set("state", "6")
        #expect(control.bench.domain.grants.count == 0 && control.bench.ports.bound[17]?.isClosed == true)
    }

    @Test(arguments: [["ctrl-ring-ref": "10"], ["ctrl-ring-ref": "7777", "event-channel-ctrl": "17"]])
    func `a control ring that is not there is refused`(nodes: [String: String]) throws {
        let bench = try NetBench()
        try bench.connect(nodes)
        #expect(bench.state == "5" && bench.domain.grants.count == 0)
    }
}
