import Host
import Synchronization
import Testing
import XenStore

@testable import XenStoreClient

@Suite struct StoreClientTests {
    @Test func `nodes are written, listed, read and removed`() throws {
        let client = StoreClient(LocalTransport(LocalTransport.Shared()))
        try client.write("/a/b", "one")
        try client.write("/a/c", "")
        try client.makeDirectory("/a/d")
        #expect(try client.directory("/a") == ["b", "c", "d"])
        #expect(try client.read("/a/b") == "one" && client.read("/a/c") == "" && client.read("/a/x") == nil)
        try client.remove("/a")
        try client.remove("/a")
        #expect(try client.directory("/a") == nil)
        #expect(throws: StoreFailure.refused(.invalid)) { try client.write("//", "x") }
        #expect(throws: StoreFailure.tooLong) { try client.write("/a", String(repeating: "x", count: 4096)) }
    }

    @Test func `watches are called for what lies below, also by other clients`() throws {
        let shared = LocalTransport.Shared()
        let (client, other) = (StoreClient(LocalTransport(shared)), StoreClient(LocalTransport(shared)))
        var seen: [String] = []
        let watch = try client.watch("/a") { seen.append($0) }
        try other.write("/a/b", "1")
        // The events come before this answer, and are kept.
        #expect(try client.read("/a/b") == "1")
        #expect(seen.isEmpty)
        client.pump()
        #expect(seen == ["/a", "/a/b"])
        try client.unwatch(watch)
        try other.write("/a/b", "2")
        client.pump()
        #expect(seen.count == 2)
    }

    @Test func `a transaction starts over after a conflict, and vanishes after an error`() throws {
        let shared = LocalTransport.Shared()
        let (client, other) = (StoreClient(LocalTransport(shared)), StoreClient(LocalTransport(shared)))
        try client.write("/n", "1")
        var rounds = 0
        try client.transaction { (transaction) throws(StoreFailure) in
            rounds += 1
            let value = try client.read("/n", in: transaction) ?? ""
            if rounds == 1 { try other.write("/n", "5") }
            try client.write("/n", value + "+", in: transaction)
        }
        #expect(try rounds == 2 && client.read("/n") == "5+")
        #expect(throws: StoreFailure.tooLong) {
            try client.transaction { (transaction) throws(StoreFailure) in
                try client.write("/n", "lost", in: transaction)
                throw .tooLong
            }
        }
        #expect(try client.read("/n") == "5+")
    }

    @Test func `an event that comes with an answer is heard of, though nothing comes after it`() throws {
        let (near, far) = try MessageSocket.pair()
        let client = StoreClient(StoreSocket(near.descriptor))
        let reactor = try Reactor()
        try client.attach(to: reactor)
        reactor.nextDeadline = { monotonicNanoseconds() + 1_000_000_000 }
        var seen: [String] = []
        let answer = { (type: Operation, request: UInt32, text: String) in
            Message(type, request: request, payload: Array(text.utf8)).bytes
        }
        try far.send(answer(.watch, 1, "OK\0"), descriptors: [])
        _ = try client.watch("/a") { seen.append($0) }
        try far.send(answer(.read, 2, "1") + answer(.watchEvent, 0, "/a/b\0w1\0"), descriptors: [])
        #expect(try client.read("/a/b") == "1")
        for _ in 0..<3 where seen.isEmpty { reactor.turn() }
        #expect(seen == ["/a/b"])
    }

    @Test func `over a socket, and when the store goes away`() throws {
        let path = "/tmp/apus-store-test-\(ownProcess())"
        let stop = try HostEvent()
        let ready = FutexWord(0)
        let thread = try HostThread("store") {
            guard let reactor = try? Reactor(), let server = try? StreamServer(path: path, reactor: reactor) else {
                return
            }
            var store = Store()
            var clients: [StreamServer.Client: (ClientID, MessageReader)] = [:]
            server.onConnect = { clients[$0] = (store.connect(domain: 0), MessageReader()) }
            server.onDisconnect = { clients[$0] = nil }
            server.onBytes = { client, bytes in
                clients[client]?.1.append(bytes)
                while let id = clients[client]?.0, let message = try? clients[client]?.1.next() {
                    for delivery in store.handle(message, from: id) {
                        let target = clients.first { $0.value.0 == delivery.client }?.key
                        if let target { server.send(delivery.message.bytes, to: target) }
                    }
                }
            }
            reactor.watch(stop.descriptor.number) { _ in
                server.close()
                clients = [:]
                reactor.stop()
            }
            ready.add(1)
            ready.wake()
            reactor.run()
        }
        _ = thread
        while ready.value == 0 { ready.wait(while: 0, nanoseconds: 5_000_000_000) }
        let client = StoreClient(try StoreSocket(path: path))
        let reactor = try Reactor()
        try client.attach(to: reactor)
        var seen: [String] = []
        var lost = false
        client.onLost = { lost = true }
        _ = try client.watch("/a") { seen.append($0) }
        for number in 0..<100 { try client.write("/a/\(number)", String(repeating: "v", count: number * 10)) }
        #expect(try client.read("/a/99")?.utf8.count == 990)
        while seen.count < 101 { reactor.turn() }
        #expect(seen.last == "/a/99")
        stop.ring()
        while !lost { reactor.turn() }
        #expect(throws: StoreFailure.disconnected) { try client.write("/a", "x") }
    }
}
