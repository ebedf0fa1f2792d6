// Back ends under guests that do anything: requests, indices, grants and the store's nodes at random.
// Source: `fuzz` (DeviceContract) says how long and from which seed.
// Covered: blkback's rings of either ABI, netback with its rings, its wire and its handshake.
// Quirks: what a round has mapped must be let go of at its end.

import DeviceContract
import Ethernet
import Rings
import TestSupport
import Testing

@testable import BlockBackend
@testable import NetBackend

@Suite("Back ends survive everything", .serialized) struct BackendFuzzTests {
    @Test func blkback() throws {
        try fuzz("blkback") { random in
            let abi: BlockABI = random.once(in: 2) ? .x86_64 : .x86_32
            let medium = MemoryMedium(sectors: 512, readOnly: random.once(in: 5))
            let bench = try BlockBench(medium, abi: abi, ringPages: random.number(1...3))
            medium.isQuick = random.once(in: 4)
            medium.backwards = random.once(in: 2)
            for _ in 0..<60 {
                let room = Int(bench.front.slots &- (bench.front.produced &- bench.front.word(2)) & 0xFF)
                for _ in 0..<min(room, random.number(0...20)) { bench.front.put(blockRequest(bench, &random)) }
                if random.once(in: 40) {
                    bench.front.setWord(random.number(0...3), UInt32(truncatingIfNeeded: random.next()))
                } else {
                    bench.front.push()
                }
                if random.once(in: 2) { medium.settle() }
                _ = bench.engine.serve()
                change(bench.domain, &random)
            }
            bench.engine.stop()
            #expect(bench.domain.grants.count == 0)
        }
    }

    private func blockRequest(_ bench: BlockBench, _ random: inout Seeded) -> [UInt8] {
        let kind = random.number(0...9)
        if kind == 0 { return random.bytes(bench.make.abi.slotBytes) }
        let sector = random.once(in: 10) ? random.next() : UInt64(random.number(0...519))
        if kind == 1 {
            return bench.make.discard(id: 0, sector: sector, count: random.next() >> UInt64(random.number(0...63)))
        }
        if kind == 2 {
            return bench.make.indirect(
                UInt8(random.number(0...2)), id: 1, sector: sector, count: UInt16(random.number(0...299)),
                pages: [random.number(100...499)])
        }
        let segments = (0..<random.number(0...11)).map { _ in
            (
                random.once(in: 20) ? random.number(0...69_999) : random.number(100...499), UInt8(random.number(0...8)),
                UInt8(random.number(0...8))
            )
        }
        return bench.make.transfer(UInt8(random.number(0...3)), id: 2, sector: sector, segments)
    }

    /// Grants and pages change under the back end's hands.
    private func change(_ domain: FakeDomain, _ random: inout Seeded) {
        let reference = random.number(21...519)
        if random.once(in: 2) {
            domain.grant(reference, frame: UInt32(random.number(60...599)), readOnly: random.once(in: 4))
        }
        if random.once(in: 4) { domain.fill(random.number(100...299), UInt8(random.number(0...255))) }
    }

    @Test func netback() throws {
        try fuzz("netback") { random in
            let bench = try NetBench(
                rate: random.once(in: 4) ? "\(random.number(1...100_000)),\(random.number(1...50_000))" : nil)
            let control = FakeFrontRing(bench.domain, frames: [52], slotBytes: 16)
            try bench.connect(handshake(&random))
            for _ in 0..<60 {
                for _ in 0..<random.number(0...3) { control.put(controlRequest(&random)) }
                if random.once(in: 100) {
                    control.setWord(random.number(0...3), UInt32(truncatingIfNeeded: random.next()))
                } else {
                    control.push()
                }
                for _ in 0..<random.number(0...12) { bench.transmit.put(netRequest(&random)) }
                if random.once(in: 60) {
                    let ring = random.once(in: 2) ? bench.transmit : bench.receive
                    ring.setWord(random.number(0...3), UInt32(truncatingIfNeeded: random.next()))
                } else {
                    bench.transmit.push()
                }
                if random.once(in: 2) { bench.post(100..<(100 + random.number(0...20))) }
                if random.once(in: 2) { _ = bench.wire.send(incoming(&random)) }
                bench.pass(UInt64(random.number(0...1_000_000)))
                _ = bench.received()
                _ = bench.answers()
                _ = control.take(12)
                _ = bench.backend.prepareToSleep()
                while bench.wire.receive() != nil {}
                change(bench.domain, &random)
                if random.once(in: 80) { try bench.set("state", "\(random.number(0...9))") }
                if random.once(in: 40) { try bench.set("request-multicast-control", "\(random.number(0...2))") }
                if random.once(in: 40) { try bench.set("xdp-headroom", "\(random.number(-1...2100))") }
            }
            bench.backend.stop()
            #expect(bench.domain.grants.count == 0)
        }
    }

    /// What the front end asks for, and now and then what makes no sense.
    private func handshake(_ random: inout Seeded) -> [String: String] {
        var nodes: [String: String] = [:]
        for key in [
            "feature-sg", "feature-gso-tcpv4", "feature-gso-tcpv6", "feature-ipv6-csum-offload",
            "feature-no-csum-offload",
        ] {
            nodes[key] = "\(random.number(0...1))"
        }
        if !random.once(in: 5) { (nodes["ctrl-ring-ref"], nodes["event-channel-ctrl"]) = ("10", "17") }
        if random.once(in: 20) { nodes["tx-ring-ref"] = "\(random.next() >> UInt64(random.number(0...63)))" }
        return nodes
    }

    /// A type, and numbers that make sense for most: an algorithm, flags, a page, how much of it.
    private func controlRequest(_ random: inout Seeded) -> [UInt8] {
        let data = (0..<3).map { _ in
            switch random.number(0...4) {
            case 0: UInt32(random.number(0...2))
            case 1: UInt32(random.number(0...16))
            case 2: UInt32(random.number(0...130))
            case 3: UInt32(random.number(100...499))
            default: UInt32(truncatingIfNeeded: random.next())
            }
        }
        return littleEndian(UInt16(random.number(0...9))) + littleEndian(UInt16(random.number(0...11)))
            + data.flatMap { littleEndian($0) }
    }

    private func netRequest(_ random: inout Seeded) -> [UInt8] {
        switch random.number(0...9) {
        case 0: return random.bytes(12)
        case 1:
            // An extra: a type, whether another follows, its parameters.
            return [UInt8(random.number(0...6)), UInt8(random.number(0...1))] + random.bytes(10)
        default:
            let size = random.once(in: 5) ? random.number(0...65_535) : random.number(14...1514)
            let flags = random.once(in: 3) ? random.number(0...15) : random.number(0...3)
            return NetBench.request(
                random.once(in: 20) ? random.number(0...70_000) : random.number(100...499),
                random.once(in: 5) ? random.number(0...4095) : 0, flags, random.number(0...255), size)
        }
    }

    private func incoming(_ random: inout Seeded) -> Frame {
        var frame = Frame(random.bytes(random.once(in: 5) ? random.number(0...60_000) : random.number(0...2000)))
        if random.once(in: 2) {
            frame = SampleFrame.tcp(payload: random.number(0...50_000))
            frame.header.segmentation = random.once(in: 2) ? .tcp4 : .tcp6
            (frame.header.segmentBytes, frame.header.headerBytes) = (
                UInt16(random.number(0...65_535)), UInt16(random.number(0...128))
            )
        }
        return frame
    }
}
