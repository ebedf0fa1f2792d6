import Host
import Images
import Rings
import TestSupport
import Testing

@testable import BlockBackend

/// A guest with one queue, and the engine that serves it.
final class BlockBench {
    let domain: FakeDomain
    let medium: MemoryMedium
    let port = FakePort()
    let front: FakeFrontRing
    let engine: BlockEngine
    let make: RequestBytes
    var fault: RingFault?
    let queue: BlockQueue

    /// Grants 100... are frames 100..., writable; 300... the same frames, read-only.
    init(
        _ medium: MemoryMedium = MemoryMedium(sectors: 4096), abi: BlockABI = .x86_64, ringPages: Int = 1
    ) throws {
        let domain = try FakeDomain()
        (self.domain, self.medium) = (domain, medium)
        let frames = (0..<ringPages).map { 50 - $0 * 2 }
        for (index, frame) in frames.enumerated() { domain.grant(8 + index, frame: UInt32(frame)) }
        for number in 0..<200 {
            domain.grant(100 + number, frame: UInt32(100 + number))
            domain.grant(300 + number, frame: UInt32(100 + number), readOnly: true)
        }
        let pages = try (0..<ringPages).map { try domain.grants.map(UInt32(8 + $0), .readWrite) }
        front = FakeFrontRing(domain, frames: frames, slotBytes: abi.slotBytes)
        queue = BlockQueue(ring: try BackRing(pages: pages, slotBytes: abi.slotBytes), port: port, abi: abi)
        engine = BlockEngine(medium: medium, grants: domain.grants, queues: [queue])
        make = RequestBytes(abi: abi)
        engine.onFault = { [unowned self] in fault = $0 }
    }

    /// Serves until nothing moves; the responses' numbers and codes.
    func run(_ requests: [UInt8]...) -> [[Int]] { run(requests) }
    func run(_ requests: [[UInt8]]) -> [[Int]] {
        for request in requests { front.put(request) }
        front.push()
        return settle()
    }
    func settle() -> [[Int]] {
        for _ in 0..<1000 {
            let more = engine.serve()
            if !more && !medium.isBusy { break }
            medium.settle()
        }
        _ = engine.serve()
        return responses()
    }
    func responses() -> [[Int]] {
        front.take(engine.responseBytes(queue)).map { bytes in
            [Int(bytes[0]) | Int(bytes[1]) << 8, Int(Int8(bitPattern: bytes[10]))]
        }
    }
}

extension BlockEngine {
    func responseBytes(_ queue: BlockQueue) -> Int { queue.abi.responseBytes }
}

@Suite struct BlockTests {
    @Test(arguments: [BlockABI.x86_64, .x86_32])
    func `reads and writes go to the granted pages`(abi: BlockABI) throws {
        let bench = try BlockBench(abi: abi)
        bench.domain.fill(101, 0xAA)
        bench.domain.fill(102, 0xBB)
        // Sectors 6 and 7 of one page, 0 to 2 of the other, to sector 16.
        #expect(bench.run(bench.make.transfer(1, id: 5, sector: 16, [(301, 6, 7), (302, 0, 2)])) == [[5, 0]])
        #expect(bench.medium.bytes[16 * 512] == 0xAA && bench.medium.bytes[18 * 512 - 1] == 0xAA)
        #expect(bench.medium.bytes[18 * 512] == 0xBB && bench.medium.bytes[21 * 512 - 1] == 0xBB)
        #expect(bench.medium.bytes[21 * 512] == 21 * 7)
        #expect(bench.run(bench.make.transfer(0, id: 6, sector: 20, [(103, 7, 7), (104, 0, 0)])) == [[6, 0]])
        #expect(bench.domain.page(103)[7 * 512] == 0xBB && bench.domain.page(104)[0] == 21 * 7)
        #expect(bench.domain.page(103)[7 * 512 - 1] == 0)
        #expect(bench.engine.statistics.readSectors == 2 && bench.engine.statistics.writtenSectors == 5)
        #expect(bench.domain.grants.count == 1)
    }

    @Test func `pages are given back before the guest sees the response`() throws {
        let bench = try BlockBench()
        bench.front.put(bench.make.transfer(0, id: 1, sector: 0, [(100, 0, 7)]))
        bench.front.push()
        #expect(!bench.engine.serve())
        #expect(bench.domain.flags(100) == 1 | 8 | 16)
        bench.medium.settle()
        #expect(bench.domain.flags(100) == 1 && bench.port.notifications == 0)
        // The next look shows the guest everything that is done, with one event.
        #expect(!bench.engine.serve())
        #expect(bench.responses() == [[1, 0]] && bench.port.notifications == 1)
    }

    @Test func `the guest is asked for events before this end sleeps, and only then`() throws {
        let bench = try BlockBench()
        bench.front.setWord(1, 0)
        #expect(bench.run(bench.make.transfer(0, id: 1, sector: 0, [(100, 0, 7)])) == [[1, 0]])
        #expect(bench.front.word(1) == 0)
        #expect(bench.engine.prepareToSleep() && bench.front.word(1) == 2)
        // One that comes in between is not slept over.
        bench.front.put(bench.make.transfer(0, id: 2, sector: 0, [(100, 0, 7)]))
        bench.front.push()
        #expect(!bench.engine.prepareToSleep())
        #expect(bench.settle() == [[2, 0]] && bench.engine.activity == 4)
    }

    @Test func `completions of one moment make one event`() throws {
        let bench = try BlockBench()
        let answers = bench.run((0..<16).map { bench.make.transfer(0, id: $0, sector: 0, [(100, 0, 7)]) })
        #expect(answers.count == 16 && bench.port.notifications == 1)
    }

    @Test func `wrong requests are errors and touch nothing`() throws {
        let bench = try BlockBench()
        let before = bench.medium.bytes
        let make = bench.make
        var tooMany = make.transfer(0, id: 9, sector: 0)
        tooMany[1] = 12
        let answers = bench.run([
            make.transfer(0, id: 1, sector: 4095, [(100, 0, 1)]),
            make.transfer(0, id: 2, sector: .max, [(100, 0, 7)]),
            make.transfer(0, id: 3, sector: 0, [(100, 0, 8)]),
            make.transfer(0, id: 4, sector: 0, [(100, 3, 2)]),
            make.transfer(0, id: 5, sector: 0, [(7, 0, 7)]),
            make.transfer(0, id: 6, sector: 0, [(301, 0, 7)]),
            make.transfer(1, id: 7, sector: 0, [(100, 0, 7), (99999, 0, 7)]),
            make.transfer(0, id: 8, sector: 0),
            tooMany,
            make.transfer(4, id: 10, sector: 0, [(100, 0, 7)]),
            make.transfer(200, id: 11, sector: 0, [(100, 0, 7)]),
            make.discard(id: 12, sector: 4000, count: 97),
            make.discard(id: 13, sector: .max, count: .max),
            make.discard(id: 14, sector: 0, count: 0),
            make.indirect(0, id: 15, sector: 0, count: 0, pages: [100]),
            make.indirect(0, id: 16, sector: 0, count: 257, pages: [100]),
            make.indirect(3, id: 17, sector: 0, count: 1, pages: [100]),
            make.indirect(0, id: 18, sector: 0, count: 1, pages: [7]),
            make.indirect(0, id: 19, sector: 0, count: .max, pages: [100]),
        ])
        let expected = (1...19).map { [$0, $0 == 10 || $0 == 11 ? -2 : -1] }
        #expect(answers.sorted { $0[0] < $1[0] } == expected)
        #expect(bench.medium.bytes == before && bench.medium.log.isEmpty)
        #expect(bench.engine.statistics.failures == 19)
        // Only the ring's page is still mapped.
        #expect(bench.domain.grants.count == 1)
        #expect(bench.run(make.transfer(0, id: 20, sector: 0, [(100, 0, 7)])) == [[20, 0]])
    }

    @Test(arguments: [BlockABI.x86_64, .x86_32])
    func `an indirect request moves 256 segments`(abi: BlockABI) throws {
        let bench = try BlockBench(abi: abi)
        let list = (0..<256).map { (index: Int) -> (Int, UInt8, UInt8) in
            let sector = UInt8(index % 8)
            return (100 + index % 190, sector, sector)
        }
        let bytes = RequestBytes.segments(list)
        for (index, byte) in bytes.enumerated() { bench.domain.page(295)[index] = byte }
        #expect(bench.run(bench.make.indirect(0, id: 300, sector: 8, count: 256, pages: [495])) == [[300, 0]])
        #expect(bench.engine.statistics.readSectors == 256)
        #expect(bench.domain.page(100 + 65)[512] == UInt8(truncatingIfNeeded: (8 + 65) * 7))
        #expect(bench.run(bench.make.indirect(1, id: 301, sector: 1008, count: 256, pages: [295])) == [[301, 0]])
    }

    @Test func `a read-only medium takes no writes`() throws {
        let bench = try BlockBench(MemoryMedium(sectors: 64, readOnly: true, canDiscard: false))
        let make = bench.make
        let answers = bench.run(
            make.transfer(1, id: 1, sector: 0, [(100, 0, 7)]), make.transfer(0, id: 2, sector: 0, [(100, 0, 7)]),
            make.discard(id: 3, sector: 0, count: 8))
        #expect(answers.sorted { $0[0] < $1[0] } == [[1, -1], [2, 0], [3, -2]])
    }

    @Test func `a barrier waits for all before it and holds all behind it`() throws {
        let bench = try BlockBench()
        bench.medium.backwards = true
        let make = bench.make
        let answers = bench.run(
            make.transfer(1, id: 1, sector: 0, [(100, 0, 7)]), make.transfer(1, id: 2, sector: 8, [(101, 0, 7)]),
            make.transfer(2, id: 3, sector: 16, [(102, 0, 7)]), make.transfer(1, id: 4, sector: 24, [(103, 0, 7)]),
            make.transfer(2, id: 5, sector: 0))
        #expect(answers == [[2, 0], [1, 0], [3, 0], [4, 0], [5, 0]])
        #expect(bench.medium.log == ["write 8", "write 0", "flush", "write 16", "flush", "write 24", "flush"])
    }

    @Test func `flush and discard reach the medium`() throws {
        let bench = try BlockBench()
        let make = bench.make
        #expect(bench.run(make.transfer(3, id: 1, sector: 0)) == [[1, 0]])
        #expect(bench.run(make.discard(id: 2, sector: 8, count: 16)) == [[2, 0]])
        #expect(bench.medium.log == ["flush", "discard 8 16"])
        bench.medium.failure = 5
        #expect(bench.run(make.transfer(3, id: 3, sector: 0)) == [[3, -1]])
        #expect(bench.run(make.transfer(0, id: 4, sector: 0, [(100, 0, 7)])) == [[4, -1]])
        bench.medium.failure = 95
        #expect(bench.run(make.discard(id: 5, sector: 8, count: 16)) == [[5, -2]])
    }

    @Test func `a full ring is served within the medium's depth`() throws {
        let bench = try BlockBench(ringPages: 8)
        #expect(bench.front.slots == 256)
        for number in 0..<256 {
            bench.front.put(
                bench.make.transfer(0, id: UInt64(number), sector: UInt64(number), [(100 + number % 200, 0, 0)]))
        }
        bench.front.push()
        #expect(bench.engine.serve() && !bench.engine.serve())
        #expect(bench.domain.grants.count == 8 + BlockEngine.depth)
        var answers = bench.settle()
        #expect(answers.count == 256 && answers.allSatisfy { $0[1] == 0 })
        bench.medium.isQuick = true
        for number in 0..<256 {
            bench.front.put(bench.make.transfer(0, id: UInt64(number), sector: 0, [(100, 0, 0)]))
        }
        bench.front.push()
        // One turn ends, however much the guest asks for.
        #expect(bench.engine.serve())
        #expect(bench.responses().count == BlockEngine.budget)
        #expect(bench.settle().count == 256 - BlockEngine.budget)
        answers = bench.run((0..<256).map { bench.make.transfer(0, id: UInt64($0), sector: 0, [(100, 0, 0)]) })
        #expect(answers.map { $0[0] } == Array(0..<256))
    }

    @Test func `a ring with garbage indices is served no more`() throws {
        let bench = try BlockBench()
        bench.front.put(bench.make.transfer(0, id: 1, sector: 0, [(100, 0, 7)]))
        bench.front.push()
        _ = bench.engine.serve()
        bench.front.setWord(0, 0x8000_0000)
        #expect(!bench.engine.serve())
        #expect(bench.fault == .tooManyRequests)
        // What was taken before is still answered.
        #expect(bench.settle() == [[1, 0]])
        bench.front.setWord(0, 2)
        #expect(bench.settle() == [])
        bench.engine.stop()
        #expect(bench.domain.grants.count == 0 && bench.port.isClosed)
    }

    @Test func `stopping waits for what is under way, also for a barrier`() throws {
        let bench = try BlockBench()
        bench.front.put(bench.make.transfer(1, id: 1, sector: 0, [(100, 0, 7)]))
        bench.front.put(bench.make.transfer(2, id: 2, sector: 0, [(101, 0, 7)]))
        bench.front.put(bench.make.transfer(1, id: 3, sector: 0, [(102, 0, 7)]))
        bench.front.push()
        _ = bench.engine.serve()
        bench.engine.stop()
        #expect(bench.responses() == [[1, 0], [2, 0]])
        #expect(bench.domain.grants.count == 0)
    }

    @Test func `a file takes what the guest's own pages hold`() throws {
        let path = "/tmp/apus-block-test-\(ownProcess())"
        defer { HostFile.remove(path) }
        do {
            let file = try HostFile.open(path, [.write, .create, .truncate])
            try HostFile.write([UInt8](repeating: 0x11, count: 1 << 20), to: file.number)
        }
        let reactor = try Reactor()
        let image = try DiskImage(path, for: .disk, readOnly: false, on: reactor)
        let domain = try FakeDomain()
        for number in 0..<8 { domain.grant(100 + number, frame: UInt32(100 + number)) }
        domain.grant(8, frame: 50)
        let front = FakeFrontRing(domain, frames: [50], slotBytes: 112)
        let ring = try BackRing(pages: [try domain.grants.map(8, .readWrite)], slotBytes: 112)
        let port = FakePort()
        let engine = BlockEngine(
            medium: image, grants: domain.grants, queues: [BlockQueue(ring: ring, port: port, abi: .x86_64)])
        let make = RequestBytes()
        func run(_ request: [UInt8]) -> Int {
            front.put(request)
            front.push()
            _ = engine.serve()
            for _ in 0..<1000 where front.word(2) != front.produced {
                reactor.turn()
                _ = engine.serve()
            }
            return front.take(16).map { Int(Int8(bitPattern: $0[10])) }.first ?? 1
        }
        domain.fill(100, 0xAA)
        domain.fill(101, 0xBB)
        domain.fill(103, 0xCC)
        #expect(run(make.transfer(1, id: 1, sector: 8, [(100, 0, 7), (101, 0, 7), (103, 5, 5)])) == 0)
        #expect(run(make.transfer(3, id: 2, sector: 0)) == 0)
        #expect(run(make.transfer(0, id: 3, sector: 15, [(104, 0, 1)])) == 0)
        #expect(domain.page(104)[0] == 0xAA && domain.page(104)[512] == 0xBB)
        let bytes = try HostFile.read(path)
        #expect(bytes[4095] == 0x11 && bytes[4096] == 0xAA && bytes[8192] == 0xBB && bytes[12288] == 0xCC)
        #expect(bytes[12288 + 512] == 0x11 && bytes.count == 1 << 20)
        #expect([0, -2].contains(run(make.discard(id: 4, sector: 8, count: 8))))
        #expect(image.measure() == 1 << 20)
        engine.stop()
        #expect(domain.grants.count == 0)
    }
}
