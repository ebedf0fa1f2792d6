import Ethernet
import Host
import Rings
import TestSupport
import Testing
import XenStoreClient

@testable import NetBackend

/// A vif between a store, a guest's memory and the other end of its port.
final class NetBench {
    static let path = "/local/domain/0/backend/vif/5/0"
    static let front = "/local/domain/5/device/vif/0"
    let client: StoreClient
    let guest: StoreClient
    let domain: FakeDomain
    let ports = FakePorts()
    let wire: FramePort
    let backend: NetBackend
    let transmit: FakeFrontRing
    let receive: FakeFrontRing
    var reports: [String] = []
    private let clock: Clock
    private let reactor: Reactor
    final class Clock { var now: UInt64 = 1 << 40 }

    init(rate: String? = nil, queues: Int = 2) throws {
        let store = try FakeStore(back: Self.path, front: Self.front)
        (client, guest) = (store.client, store.guest)
        domain = try FakeDomain()
        if let rate { try store.tools.write(Self.path + "/rate", rate) }
        let (ours, theirs) = try FrameSocket.pair()
        reactor = try Reactor()
        reactor.maySleep = { false }
        let port = FramePort(ours)
        port.attach(to: reactor)
        wire = FramePort(theirs)
        wire.attach(to: reactor)
        wire.offloads = .all
        let clock = Clock()
        self.clock = clock
        transmit = FakeFrontRing(domain, frames: [50], slotBytes: 12)
        receive = FakeFrontRing(domain, frames: [51], slotBytes: 8)
        domain.grant(8, frame: 50)
        domain.grant(9, frame: 51)
        domain.grant(10, frame: 52)
        for number in 0..<200 {
            domain.grant(100 + number, frame: UInt32(100 + number))
            domain.grant(300 + number, frame: UInt32(100 + number), readOnly: true)
        }
        backend = NetBackend(
            Self.path, port: port, store: client, grants: domain.grants, ports: ports, queues: queues
        ) { clock.now }
        backend.device.onReport = { [unowned self] in reports.append($0) }
        try backend.start()
        client.pump()
    }

    func pass(_ nanoseconds: UInt64) { clock.now += nanoseconds }
    func set(_ key: String, _ value: String) throws {
        try guest.write(Self.front + "/" + key, value)
        client.pump()
    }
    func connect(_ more: [String: String] = [:]) throws {
        var nodes = [
            "request-rx-copy": "1", "feature-sg": "1", "feature-gso-tcpv4": "1", "feature-gso-tcpv6": "1",
            "feature-ipv6-csum-offload": "1", "tx-ring-ref": "8", "rx-ring-ref": "9", "event-channel-tx": "15",
            "event-channel-rx": "16",
        ]
        nodes.merge(more) { $1 }
        for (key, value) in nodes.sorted(by: <) { try guest.write(Self.front + "/" + key, value) }
        try set("state", "4")
    }
    var state: String? { try? guest.read(Self.path + "/state") }

    static func request(_ reference: Int, _ offset: Int, _ flags: Int, _ id: Int, _ size: Int) -> [UInt8] {
        littleEndian(UInt32(reference)) + littleEndian(UInt16(offset)) + littleEndian(UInt16(flags))
            + littleEndian(UInt16(id)) + littleEndian(UInt16(truncatingIfNeeded: size))
    }
    func put(_ bytes: some Collection<UInt8>, frame: Int, at offset: Int = 0) {
        for (index, byte) in bytes.enumerated() { domain.page(frame)[offset + index] = byte }
    }
    /// Statuses by id.
    func send(_ requests: [UInt8]...) -> [[Int]] {
        for request in requests { transmit.put(request) }
        transmit.push()
        while backend.turn() {}
        reactor.turn()
        return answers()
    }
    func answers() -> [[Int]] {
        transmit.take(4).map {
            [Int($0[0]) | Int($0[1]) << 8, Int(Int16(bitPattern: UInt16($0[2]) | UInt16($0[3]) << 8))]
        }
    }
    func post(_ references: Range<Int>) {
        for reference in references {
            receive.put(littleEndian(UInt16(receive.produced & 255)) + [0, 0] + littleEndian(UInt32(reference)))
        }
        receive.push()
    }
    /// id, offset, flags, status of each response.
    func received() -> [[Int]] {
        reactor.turn()
        while backend.turn() {}
        return receive.take(8).map { bytes in
            (0..<4).map { Int(Int16(bitPattern: UInt16(bytes[$0 * 2]) | UInt16(bytes[$0 * 2 + 1]) << 8)) }
        }
    }
}

@Suite struct NetBackendTests {
    @Test func `a front end connects, with what Linux offers and asks for`() throws {
        let bench = try NetBench()
        #expect(bench.state == "2")
        #expect(try bench.guest.read(NetBench.path + "/feature-rx-copy") == "1")
        #expect(try bench.guest.read(NetBench.path + "/hotplug-status") == "connected")
        #expect(try bench.guest.read(NetBench.path + "/multi-queue-max-queues") == "2")
        try bench.connect()
        #expect(bench.state == "4")
        #expect(Set(bench.ports.bound.keys) == [15, 16])
        #expect(bench.domain.isMarked(8) && bench.domain.isMarked(9))
        try bench.set("state", "6")
        #expect(bench.state == "6" && !bench.domain.isMarked(8))
        #expect(!bench.ports.bound.values.contains { !$0.isClosed })
    }

    @Test(arguments: [
        ["request-rx-copy": "0"], ["tx-ring-ref": "7777"], ["rx-ring-ref": "x"], ["event-channel-tx": "99999"],
        ["multi-queue-num-queues": "3"], ["multi-queue-num-queues": "2"], ["multi-queue-num-queues": "0"],
    ])
    func `wrong parameters are refused, and nothing stays`(nodes: [String: String]) throws {
        let bench = try NetBench()
        try bench.connect(nodes)
        #expect(bench.state == "5")
        #expect(!bench.reports.isEmpty)
        #expect(!bench.domain.isMarked(8) && !bench.domain.isMarked(9))
    }

    @Test func `a packet in three slots arrives as one frame`() throws {
        let bench = try NetBench()
        try bench.connect()
        let frame = SampleFrame.tcp(payload: 3000)
        bench.put(frame.bytes[..<100], frame: 110, at: 50)
        bench.put(frame.bytes[100..<2000], frame: 111, at: 2196)
        bench.put(frame.bytes[2000...], frame: 112)
        let size = frame.bytes.count
        let answers = bench.send(
            NetBench.request(310, 50, 4 | 1, 7, size), NetBench.request(311, 2196, 4, 8, 1900),
            NetBench.request(312, 0, 0, 9, size - 2000))
        #expect(answers == [[7, 0], [8, 0], [9, 0]])
        #expect(bench.wire.receive() == frame)
        #expect(!bench.domain.isMarked(310))
        #expect(bench.ports.bound[15]?.notifications == 1)
        #expect(bench.backend.statistics.sentBytes == UInt64(size))
    }

    @Test func `a large packet says how it is to be cut`() throws {
        let bench = try NetBench()
        try bench.connect()
        var frame = SampleFrame.tcp(payload: 4000)
        bench.put(frame.bytes, frame: 110)
        let answers = bench.send(
            NetBench.request(310, 0, 8 | 1, 1, frame.bytes.count), [1, 0] + littleEndian(UInt16(1400)) + [1, 0, 0, 0])
        #expect(answers == [[1, 0], [0, 1]])
        frame.header.segmentation = .tcp4
        (frame.header.segmentBytes, frame.header.headerBytes) = (1400, 54)
        #expect(bench.wire.receive() == frame)
    }

    @Test func `frames for the guest fill the pages it has posted`() throws {
        let bench = try NetBench()
        try bench.connect()
        var large = SampleFrame.tcp(payload: 9000)
        large.header.segmentation = .tcp4
        (large.header.segmentBytes, large.header.headerBytes) = (1448, 54)
        #expect(bench.wire.send(large) == .done)
        #expect(bench.received().isEmpty)
        // Not enough: it waits, and asks for an event at the fourth.
        bench.post(120..<122)
        #expect(bench.received().isEmpty)
        #expect(bench.backend.prepareToSleep())
        #expect(bench.receive.word(1) == 4)
        bench.post(122..<124)
        // First page, extra, two pages: more data 4, extra 8, blank 2, checked 1.
        #expect(bench.received() == [[0, 0, 15, 4096], [1, 1448, 1, 0], [2, 0, 4, 4096], [3, 0, 0, 862]])
        let bytes = [120, 122, 123].flatMap { Array(bench.domain.page($0)) }
        let isWhole = Array(bytes.prefix(9054)) == large.bytes
        #expect(isWhole)
        #expect(bench.ports.bound[16]?.notifications == 1)
    }

    @Test func `a guest that cannot cut gets segments with sums`() throws {
        let bench = try NetBench()
        try bench.connect(["feature-gso-tcpv4": "0", "feature-no-csum-offload": "1"])
        var large = SampleFrame.tcp(payload: 3000)
        large.header.segmentation = .tcp4
        large.header.segmentBytes = 1400
        _ = bench.wire.send(large)
        bench.post(120..<130)
        #expect(bench.received().map { $0[3] } == [1454, 1454, 254])
        #expect(SampleFrame.isSound(Frame(Array(bench.domain.page(121)[..<1454]))))
    }

    @Test func `groups are heard once they are asked for`() throws {
        let bench = try NetBench()
        try bench.connect(["request-multicast-control": "1"])
        bench.post(120..<140)
        var frame = SampleFrame.tcp(payload: 10)
        frame.header = FrameHeader()
        frame.bytes.replaceSubrange(0..<6, with: [1, 0, 0x5E, 0, 0, 1])
        _ = bench.wire.send(frame)
        #expect(bench.received().isEmpty && bench.backend.statistics.dropped == 1)
        #expect(bench.send(NetBench.request(310, 0, 8, 3, 64), [2, 0, 1, 0, 0x5E, 0, 0, 1]) == [[3, 0], [0, 1]])
        _ = bench.wire.send(frame)
        #expect(bench.received().count == 1)
        #expect(bench.send(NetBench.request(310, 0, 8, 3, 64), [3, 0, 1, 0, 0x5E, 0, 0, 1]) == [[3, 0], [0, 1]])
        _ = bench.wire.send(frame)
        #expect(bench.received().isEmpty)
        try bench.set("request-multicast-control", "0")
        _ = bench.wire.send(frame)
        #expect(bench.received().count == 1)
        #expect(bench.wire.receive() == nil, "what changes the list is no packet")
    }

    @Test func `a guest that runs XDP programs gets its frames with headroom, from when it says so`() throws {
        let bench = try NetBench()
        #expect(try bench.guest.read(NetBench.path + "/feature-xdp-headroom") == "1")
        try bench.connect()
        bench.post(120..<140)
        var frame = SampleFrame.tcp(payload: 1000)
        frame.header = FrameHeader()
        _ = bench.wire.send(frame)
        #expect(bench.received() == [[0, 0, 0, 1054]])
        // As Linux's front end does: the state first, then what it wants, then it waits for the answer.
        try bench.set("state", "7")
        try bench.set("xdp-headroom", "256")
        #expect(bench.state == "8")
        try bench.set("state", "4")
        #expect(bench.state == "4")
        _ = bench.wire.send(frame)
        #expect(bench.received() == [[1, 0, 8, 1054], [5, 256, 0, 0]])
        #expect(Array(bench.domain.page(121)[256..<(256 + 1054)]) == frame.bytes)
        // One that fits no more takes another page.
        frame = SampleFrame.tcp(payload: 4000)
        frame.header = FrameHeader()
        _ = bench.wire.send(frame)
        #expect(bench.received() == [[3, 0, 12, 3840], [5, 256, 0, 0], [5, 0, 0, 214]])
        #expect(Array(bench.domain.page(125)[..<214]) == Array(frame.bytes[3840...]))
        for nonsense in ["0", "-1", "4096", "x"] {
            try bench.set("xdp-headroom", nonsense)
            frame = SampleFrame.tcp(payload: 10)
            frame.header = FrameHeader()
            _ = bench.wire.send(frame)
            #expect(bench.received().map { $0[3] } == [64])
        }
    }

    @Test func `a rate lets so many bytes go in each interval`() throws {
        let bench = try NetBench(rate: "3000,50000")
        try bench.connect()
        for id in 0..<5 { bench.transmit.put(NetBench.request(310, 0, 0, id, 1000)) }
        #expect(bench.send().count == 3)
        let deadline = try #require(bench.backend.deadline)
        #expect(deadline > 1 << 40)
        bench.pass(50_000_000)
        while bench.backend.turn() {}
        #expect(bench.answers().count == 2)
    }

    @Test(arguments: [
        (NetBench.request(311, 0, 0, 1, 10), "short"), (NetBench.request(7000, 0, 0, 1, 100), "no grant"),
        (NetBench.request(90, 0, 0, 1, 100), "not granted"),
    ])
    func `a packet that makes no sense is an error`(request: [UInt8], what: String) throws {
        let bench = try NetBench()
        try bench.connect()
        #expect(bench.send(request) == [[1, -1]], "\(what)")
        #expect(bench.reports.isEmpty)
        #expect(bench.send(NetBench.request(310, 0, 0, 2, 60)) == [[2, 0]])
    }

    @Test(arguments: [
        [NetBench.request(310, 4000, 0, 1, 200)], [NetBench.request(310, 0, 4, 1, 200)],
        [NetBench.request(310, 0, 4, 1, 200), NetBench.request(311, 0, 0, 2, 201)],
        [NetBench.request(310, 0, 8, 1, 200)], [NetBench.request(310, 0, 8, 1, 200), [9, 0, 0, 0, 0, 0, 0, 0]],
        Array(repeating: NetBench.request(310, 0, 4, 1, 1), count: 30),
        Array(repeating: NetBench.request(310, 0, 8, 1, 1), count: 30),
    ])
    func `what can only be malice ends the queue`(requests: [[UInt8]]) throws {
        let bench = try NetBench()
        try bench.connect()
        for request in requests { bench.transmit.put(request) }
        #expect(bench.send().isEmpty)
        #expect(bench.reports.count == 1)
    }

    @Test func `random rings harm nobody`() throws {
        var random = Seeded(3)
        for round in 0..<150 {
            let bench = try NetBench()
            try bench.connect()
            for _ in 0..<Int.random(in: 1...60, using: &random) {
                let isWild = Int.random(in: 0..<12, using: &random) == 0
                let request = NetBench.request(
                    isWild ? .random(in: 0...5000, using: &random) : .random(in: 300...330, using: &random),
                    isWild ? .random(in: 0...65535, using: &random) : .random(in: 0...64, using: &random),
                    [0, 0, 1, 3, 4, 8, 12].randomElement(using: &random) ?? 0, .random(in: 0...255, using: &random),
                    .random(in: 0...(isWild ? 65535 : 3000), using: &random))
                bench.transmit.put(request)
            }
            for frame in 100..<132 {
                bench.put(SampleFrame.tcp(payload: round, six: round % 2 == 0).bytes, frame: frame)
            }
            var frame = SampleFrame.tcp(payload: .random(in: 0...20000, using: &random))
            frame.header.segmentation = Bool.random(using: &random) ? .tcp4 : .none
            frame.header.segmentBytes = .random(in: 0...2000, using: &random)
            _ = bench.wire.send(frame)
            bench.post(120..<(120 + .random(in: 0...40, using: &random)))
            if round % 10 == 0 { bench.receive.setWord(0, .random(in: 0 ... .max, using: &random)) }
            if round % 10 == 5 { bench.transmit.setWord(0, .random(in: 0 ... .max, using: &random)) }
            _ = bench.send()
            _ = bench.backend.prepareToSleep()
            while bench.wire.receive() != nil {}
            try bench.set("state", "6")
            #expect(bench.domain.grants.count == 0)
        }
    }
}
