import Rings
import Testing
import XenStoreClient

@testable import BlockBackend

@Suite struct BlockHandshakeTests {
    @Test func `the usual way from Initialising to Closed`() {
        var handshake = BackendHandshake()
        #expect(handshake.begin() == [.announce(.initWait)])
        #expect(handshake.frontend(.initialising, isOnline: true) == [])
        #expect(handshake.frontend(.initialised, isOnline: true) == [.disconnect, .connect])
        #expect(handshake.connected() == [.announce(.connected)])
        #expect(handshake.frontend(.connected, isOnline: true) == [])
        #expect(handshake.frontend(.closing, isOnline: true) == [.announce(.closing)])
        #expect(handshake.frontend(.closed, isOnline: true) == [.disconnect, .announce(.closed)])
        #expect(handshake.frontend(.initialising, isOnline: true) == [.announce(.initWait)])
    }

    @Test func `removal ends it`() {
        var handshake = BackendHandshake()
        _ = handshake.begin()
        _ = handshake.frontend(.connected, isOnline: true)
        _ = handshake.connected()
        #expect(handshake.frontend(.closed, isOnline: false) == [.disconnect, .announce(.closed), .end])
        var other = BackendHandshake()
        _ = other.begin()
        #expect(other.frontend(nil, isOnline: true) == [.disconnect, .announce(.closed), .end])
    }

    @Test func `parameters of one queue and of several`() throws {
        let single = try BlockParameters(BlockLimits()) { ["ring-ref": "8", "event-channel": "15"][$0] }
        #expect(single.abi == .x86_64 && single.queues == [.init(ring: [8], port: 15)])
        let nodes = [
            "protocol": "x86_32-abi", "multi-queue-num-queues": "2", "ring-page-order": "1",
            "queue-0/ring-ref0": "1", "queue-0/ring-ref1": "2", "queue-0/event-channel": "3",
            "queue-1/ring-ref0": "4", "queue-1/ring-ref1": "5", "queue-1/event-channel": "6",
        ]
        let several = try BlockParameters(BlockLimits()) { nodes[$0] }
        #expect(several.abi == .x86_32)
        #expect(several.queues == [.init(ring: [1, 2], port: 3), .init(ring: [4, 5], port: 6)])
    }

    @Test(arguments: [
        ["ring-ref": "8"], ["event-channel": "1"], ["event-channel": "1", "ring-ref": "-1"],
        ["event-channel": "x", "ring-ref": "1"], ["event-channel": "1", "ring-ref": "4294967296"],
        ["event-channel": "1", "ring-ref": "1", "protocol": "arm-abi"],
        ["event-channel": "1", "ring-ref": "1", "ring-page-order": "5"],
        ["event-channel": "1", "ring-ref0": "1", "ring-page-order": "1"],
        ["event-channel": "1", "ring-ref": "1", "multi-queue-num-queues": "0"],
        ["event-channel": "1", "ring-ref": "1", "multi-queue-num-queues": "5"],
        ["event-channel": "1", "ring-ref": "1", "multi-queue-num-queues": "2"], [:],
    ])
    func `wrong parameters are refused`(nodes: [String: String]) {
        #expect(throws: ParameterFault.self) { try BlockParameters(BlockLimits()) { nodes[$0] } }
    }
}

/// A vbd between a store, a guest's memory and a medium.
final class BackendBench {
    static let path = "/local/domain/0/backend/vbd/5/51712"
    static let front = "/local/domain/5/device/vbd/51712"
    let tools: StoreClient
    let client: StoreClient
    let guest: StoreClient
    let domain: FakeDomain
    let ports = FakePorts()
    let medium: MemoryMedium
    let backend: BlockBackend
    var hasEnded = false
    var reports: [String] = []

    init(
        _ medium: MemoryMedium = MemoryMedium(sectors: 2048), isCDROM: Bool = false, isPlain: Bool = false
    ) throws {
        let store = try FakeStore(back: Self.path, front: Self.front)
        (tools, client, guest) = (store.tools, store.client, store.guest)
        (domain, self.medium) = (try FakeDomain(), medium)
        backend = BlockBackend(
            BlockDescription(path: Self.path, isCDROM: isCDROM, isPlain: isPlain), medium: medium,
            store: client, grants: domain.grants, ports: ports)
        backend.device.onEnd = { [unowned self] in hasEnded = true }
        backend.device.onReport = { [unowned self] in reports.append($0) }
        try backend.start()
        client.pump()
    }

    func node(_ key: String) throws -> String? { try guest.read(Self.path + "/" + key) }
    func set(_ key: String, _ value: String) throws {
        try guest.write(Self.front + "/" + key, value)
        client.pump()
    }
    func connect() throws {
        domain.grant(8, frame: 50)
        try set("ring-ref", "8")
        try set("event-channel", "15")
        try set("protocol", "x86_64-abi")
        try set("state", "3")
    }
}

@Suite struct BlockBackendTests {
    @Test func `a front end connects, reads, and leaves`() throws {
        let bench = try BackendBench()
        #expect(try bench.node("state") == "2")
        #expect(try bench.node("feature-max-indirect-segments") == "256")
        #expect(try bench.node("max-ring-page-order") == "4")
        #expect(try bench.node("feature-discard") == "1")
        #expect(try bench.node("sectors") == nil)
        try bench.connect()
        #expect(try bench.node("state") == "4")
        #expect(try bench.node("sectors") == "2048" && bench.node("sector-size") == "512")
        #expect(try bench.node("info") == "0")
        try bench.set("state", "4")

        let front = FakeFrontRing(bench.domain, frames: [50], slotBytes: 112)
        bench.domain.grant(20, frame: 60)
        front.put(RequestBytes().transfer(0, id: 7, sector: 3, [(20, 0, 0)]))
        front.push()
        var woken = false
        bench.backend.onWork = { woken = true }
        bench.ports.bound[15]?.onEvent()
        #expect(woken && !bench.backend.turn())
        bench.medium.settle()
        #expect(!bench.backend.turn())
        #expect(front.take(16) == [[7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]])
        #expect(bench.domain.page(60)[0] == 21 && bench.ports.bound[15]?.notifications == 1)

        try bench.set("state", "5")
        #expect(try bench.node("state") == "5")
        try bench.set("state", "6")
        #expect(try bench.node("state") == "6")
        #expect(bench.domain.grants.count == 0 && !bench.domain.isMarked(8))
        #expect(bench.ports.bound[15]?.isClosed == true && !bench.hasEnded)
        #expect(bench.backend.statistics.reads == 1)
        // kexec: the next kernel starts over.
        try bench.set("state", "1")
        #expect(try bench.node("state") == "2")
        try bench.connect()
        #expect(try bench.node("state") == "4")
    }

    @Test func `detaching ends the device`() throws {
        let bench = try BackendBench()
        try bench.connect()
        try bench.tools.write(BackendBench.path + "/online", "0")
        try bench.tools.write(BackendBench.path + "/state", "5")
        try bench.set("state", "6")
        #expect(try bench.node("state") == "6")
        #expect(bench.hasEnded && bench.domain.grants.count == 0)
    }

    @Test func `a front end that vanishes ends the device`() throws {
        let bench = try BackendBench()
        try bench.connect()
        try bench.tools.remove(BackendBench.front)
        bench.client.pump()
        #expect(bench.hasEnded && bench.domain.grants.count == 0)
    }

    @Test func `a CD-ROM says what it is`() throws {
        let bench = try BackendBench(MemoryMedium(sectors: 64, readOnly: true, canDiscard: false), isCDROM: true)
        try bench.connect()
        #expect(try bench.node("info") == "7" && bench.node("feature-discard") == nil)
    }

    @Test(arguments: [false, true])
    func `pages are given back with the response, even to a front end that could leave them`(isPlain: Bool) throws {
        let bench = try BackendBench(MemoryMedium(sectors: 64), isPlain: isPlain)
        #expect(try bench.node("feature-persistent") == (isPlain ? nil : "0"))
        try bench.set("feature-persistent", "1")
        try bench.connect()
        let front = FakeFrontRing(bench.domain, frames: [50], slotBytes: 112)
        bench.domain.grant(20, frame: 60)
        front.put(RequestBytes().transfer(0, id: 7, sector: 3, [(20, 0, 0)]))
        front.push()
        _ = bench.backend.turn()
        #expect(bench.domain.isMarked(20))
        bench.medium.settle()
        _ = bench.backend.turn()
        #expect(front.take(1) == [[7]])
        #expect(!bench.domain.isMarked(20))
    }

    @Test func `a medium that grows is announced`() throws {
        let bench = try BackendBench()
        try bench.connect()
        var states = 0
        _ = try bench.guest.watch(BackendBench.path + "/state") { _ in states += 1 }
        bench.guest.pump()
        bench.medium.newSize = 4096 * 512
        try bench.backend.checkSize()
        try bench.backend.checkSize()
        bench.guest.pump()
        #expect(try bench.node("sectors") == "4096" && states == 2)
    }

    @Test(arguments: [("ring-ref", "9"), ("ring-ref", "x"), ("event-channel", "0"), ("protocol", "vax-abi")])
    func `what cannot be mapped is refused with a reason`(key: String, value: String) throws {
        let bench = try BackendBench()
        bench.domain.grant(8, frame: 50)
        try bench.set("ring-ref", "8")
        try bench.set("event-channel", "15")
        try bench.set(key, value)
        try bench.set("state", "3")
        #expect(try bench.node("state") == "5")
        let error = try bench.tools.read("/local/domain/0/error/backend/vbd/5/51712/error")
        #expect(error?.isEmpty == false && bench.reports.count == 1)
        #expect(bench.domain.grants.count == 0)
    }

    @Test func `a ring in use is taken over`() throws {
        let bench = try BackendBench()
        try bench.connect()
        try bench.set("state", "4")
        let front = FakeFrontRing(bench.domain, frames: [50], slotBytes: 112)
        bench.domain.grant(20, frame: 60)
        front.put(RequestBytes().transfer(0, id: 7, sector: 3, [(20, 0, 0)]))
        front.push()
        bench.backend.stop()
        let next = BlockBackend(
            BlockDescription(path: BackendBench.path), medium: bench.medium, store: bench.client,
            grants: bench.domain.grants, ports: bench.ports)
        try next.start()
        bench.client.pump()
        #expect(try bench.node("state") == "4")
        _ = next.turn()
        bench.medium.settle()
        _ = next.turn()
        #expect(front.take(1) == [[7]])
    }
}
