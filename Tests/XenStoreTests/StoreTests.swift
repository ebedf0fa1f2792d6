import Testing
import XenStore

/// A client that speaks to a store and keeps the watch events it got.
private struct Shell {
    var store = Store()
    var events: [ClientID: [String]] = [:]

    mutating func request(
        _ operation: Operation, _ text: String, _ client: ClientID, transaction: UInt32 = 0
    ) -> String {
        let message = Message(operation, request: 7, transaction: transaction, payload: Array(text.utf8))
        var answer = "nothing"
        for delivery in store.handle(message, from: client) {
            let text = String(decoding: delivery.message.payload, as: UTF8.self)
            if delivery.message.type == Operation.watchEvent.rawValue {
                events[delivery.client, default: []].append(text)
            } else {
                answer = text
                #expect(delivery.client == client && delivery.message.request == 7)
            }
        }
        return answer
    }
}

@Suite("xenstore") struct StoreTests {
    @Test("What was written is read back, and missing parents are made") func writeAndRead() {
        var shell = Shell()
        let tools = shell.store.connect(domain: 0)
        #expect(shell.request(.write, "/a/b/c\0value", tools) == "OK\0")
        #expect(shell.request(.read, "/a/b/c\0", tools) == "value")
        #expect(shell.request(.read, "/a/b\0", tools) == "")
        #expect(shell.request(.directory, "/a\0", tools) == "b\0")
        #expect(shell.request(.read, "/nothing\0", tools) == "ENOENT\0")
        #expect(shell.request(.read, "//a\0", tools) == "EINVAL\0")
    }

    @Test("A guest writes where it owns, below its own path, and nowhere else") func permissions() {
        var shell = Shell()
        let tools = shell.store.connect(domain: 0)
        let guest = shell.store.connect(domain: 5)
        _ = shell.request(.write, "/local/domain/5\0", tools)
        #expect(shell.request(.write, "data/x\0" + "1", guest) == "EACCES\0")
        _ = shell.request(.setPermissions, "/local/domain/5\0n5\0", tools)
        #expect(shell.request(.write, "data/x\0" + "1", guest) == "OK\0")
        #expect(shell.request(.getPermissions, "data/x\0", guest) == "n5\0")
        #expect(shell.request(.write, "/tool/x\0" + "1", guest) == "EACCES\0")
        #expect(shell.request(.read, "/secret/below\0", guest) == "EACCES\0", "not even whether it exists")
        #expect(shell.request(.setPermissions, "data/x\0n6\0", guest) == "EPERM\0", "nodes cannot be given away")
    }

    @Test("Back ends of a domain reach its tree and its devices, and nobody else's") func serving() {
        var shell = Shell()
        let tools = shell.store.connect(domain: 0)
        for domain in [5, 6] {
            _ = shell.request(.write, "/local/domain/\(domain)/device/vbd/768/state\0" + "1", tools)
            _ = shell.request(.write, "/local/domain/0/backend/vbd/\(domain)/768/state\0" + "1", tools)
        }
        let backends = shell.store.connect(serving: 5)
        let own = "/local/domain/0/backend/vbd/5"
        #expect(shell.request(.read, "/local/domain/5/device/vbd/768/state\0", backends) == "1")
        #expect(shell.request(.watch, "/local/domain/5/device/vbd/768/state\0w\0", backends) == "OK\0")
        #expect(shell.request(.watch, "/local/domain/0/backend/vif/5\0w\0", backends) == "OK\0")
        #expect(shell.request(.directory, "\(own)\0", backends) == "768\0")
        #expect(shell.request(.directory, "/local/domain/0/backend/vif/5\0", backends) == "ENOENT\0")
        #expect(shell.request(.write, "\(own)/768/state\0" + "4", backends) == "OK\0")
        #expect(shell.request(.write, "/local/domain/0/error/backend/vbd/5/768/error\0" + "why", backends) == "OK\0")
        let id = shell.request(.transactionStart, "\0", backends).dropLast()
        let transaction = UInt32(id) ?? 0
        #expect(shell.request(.write, "\(own)/768/sectors\0" + "8", backends, transaction: transaction) == "OK\0")
        #expect(shell.request(.transactionEnd, "T\0", backends, transaction: transaction) == "OK\0")
        #expect(shell.request(.read, "\(own)/768/sectors\0", tools) == "8")
        for path in [
            "/local/domain/0/backend/vbd/6/768/state", "/local/domain/6/device/vbd/768/state", "/local/domain/0/name",
            "/vm", "/", "/tool", "/local/domain/50",
        ] {
            #expect(shell.request(.read, "\(path)\0", backends) == "EACCES\0", "\(path)")
            #expect(shell.request(.watch, "\(path)\0w\0", backends) == "EACCES\0", "\(path)")
        }
        for path in [
            "/local/domain/0/backend/vbd/6/768/state", "/local/domain/5/device/vbd/768/state", "\(own)/769/state",
            "\(own)/768", "\(own)/768/deep/er", "/local/domain/5/backend/vbd/5/768/state", "/local/domain/5/data/x",
            "/local/domain/0/error/backend/vbd/6/768/error", "/local/domain/0/error/backend/vbd/5/999/error",
        ] {
            #expect(shell.request(.write, "\(path)\0" + "x", backends) == "EACCES\0", "\(path)")
        }
        #expect(shell.request(.remove, "\(own)/768/state\0", backends) == "EACCES\0")
        #expect(shell.request(.makeDirectory, "\(own)/768/more\0", backends) == "EACCES\0")
        #expect(shell.request(.setPermissions, "\(own)/768/state\0b6\0", backends) == "EACCES\0")
        #expect(shell.request(.watch, "@introduceDomain\0w\0", backends) == "EACCES\0")
        #expect(shell.request(.introduce, "9\0" + "1\0" + "2\0", backends) == "EACCES\0")
        // What it can make is bounded.
        let answers = (0..<100).map { shell.request(.write, "\(own)/768/n\($0)\0" + "x", backends) }
        #expect(answers.contains("OK\0") && answers.last == "ENOSPC\0")
        #expect(shell.request(.write, "\(own)/768/state\0" + "5", backends) == "OK\0")
        let long = String(repeating: "x", count: 3000)
        #expect(shell.request(.write, "\(own)/768/state\0\(long)", backends) == "ENOSPC\0")
    }

    @Test("A watch fires once when set, then for every change at or below its path") func watches() {
        var shell = Shell()
        let tools = shell.store.connect(domain: 0)
        #expect(shell.request(.watch, "/w\0token\0", tools) == "OK\0")
        _ = shell.request(.write, "/w/deep/er\0" + "1", tools)
        _ = shell.request(.write, "/elsewhere\0" + "1", tools)
        _ = shell.request(.remove, "/w\0", tools)
        #expect(shell.events[tools] == ["/w\0token\0", "/w/deep/er\0token\0", "/w\0token\0"])
        #expect(shell.request(.unwatch, "/w\0other\0", tools) == "ENOENT\0")
        #expect(shell.request(.unwatch, "/w\0token\0", tools) == "OK\0")
    }

    @Test("A watch with a depth hears nothing from further below") func depth() {
        var shell = Shell()
        let tools = shell.store.connect(domain: 0)
        _ = shell.request(.watch, "/w\0t\0" + "1\0", tools)
        _ = shell.request(.write, "/w/a\0" + "1", tools)
        _ = shell.request(.write, "/w/a/b\0" + "1", tools)
        #expect(shell.events[tools] == ["/w\0t\0", "/w/a\0t\0"])
    }

    @Test("A transaction sees its own writes; a conflict makes it start again") func transactions() {
        var shell = Shell()
        let (one, two) = (shell.store.connect(domain: 0), shell.store.connect(domain: 0))
        _ = shell.request(.write, "/n\0" + "1", one)
        #expect(shell.request(.transactionStart, "\0", one) == "1\0")
        #expect(shell.request(.read, "/n\0", one, transaction: 1) == "1")
        _ = shell.request(.write, "/n\0" + "2", one, transaction: 1)
        #expect(shell.request(.read, "/n\0", one, transaction: 1) == "2")
        #expect(shell.request(.read, "/n\0", two) == "1", "nobody else sees it yet")
        _ = shell.request(.write, "/n\0" + "3", two)
        #expect(shell.request(.transactionEnd, "T\0", one, transaction: 1) == "EAGAIN\0")
        #expect(shell.request(.read, "/n\0", two) == "3")
        _ = shell.request(.transactionStart, "\0", one)
        _ = shell.request(.write, "/n\0" + "4", one, transaction: 2)
        _ = shell.request(.write, "/unrelated\0" + "x", two)
        #expect(shell.request(.transactionEnd, "T\0", one, transaction: 2) == "OK\0")
        #expect(shell.request(.read, "/n\0", two) == "4")
    }

    @Test("An aborted transaction leaves nothing") func abort() {
        var shell = Shell()
        let tools = shell.store.connect(domain: 0)
        _ = shell.request(.transactionStart, "\0", tools)
        _ = shell.request(.write, "/x\0" + "1", tools, transaction: 1)
        #expect(shell.request(.transactionEnd, "F\0", tools, transaction: 1) == "OK\0")
        #expect(shell.request(.read, "/x\0", tools) == "ENOENT\0")
        #expect(shell.request(.read, "/x\0", tools, transaction: 1) == "ENOENT\0", "the transaction is over")
    }

    @Test("A guest cannot use more than its quota") func quota() {
        var shell = Shell()
        shell.store.quota.nodes = 10
        shell.store.quota.watches = 2
        let tools = shell.store.connect(domain: 0)
        let guest = shell.store.connect(domain: 3)
        _ = shell.request(.write, "/local/domain/3\0", tools)
        _ = shell.request(.setPermissions, "/local/domain/3\0n3\0", tools)
        let answers = (0..<20).map { shell.request(.write, "n\($0)\0", guest) }
        #expect(answers.contains("ENOSPC\0"))
        #expect(answers.prefix(5).allSatisfy { $0 == "OK\0" })
        #expect(shell.request(.write, "n0\0" + String(repeating: "x", count: 2049), guest) == "ENOSPC\0")
        let watches = (0..<3).map { shell.request(.watch, "n\($0)\0t\0", guest) }
        #expect(watches == ["OK\0", "OK\0", "E2BIG\0"])
    }

    @Test("A long directory comes in parts") func directoryPart() {
        var shell = Shell()
        let tools = shell.store.connect(domain: 0)
        let names = (0..<600).map { "a-rather-long-name-\($0)" }
        for name in names { _ = shell.request(.write, "/big/\(name)\0", tools) }
        #expect(shell.request(.directory, "/big\0", tools) == "E2BIG\0")
        var list = ""
        while !list.hasSuffix("\0\0") {
            let part = shell.request(.directoryPart, "/big\0\(list.utf8.count)\0", tools)
            guard let end = part.firstIndex(of: "\0") else { break }
            list += part[part.index(after: end)...]
        }
        #expect(list.split(separator: "\0").map(String.init) == names)
    }

    @Test("Random bytes from a client never trap and never break the tree", arguments: [1, 2, 3, 4] as [UInt64])
    func fuzz(seed: UInt64) {
        var random = Random(state: seed)
        var shell = Shell()
        let clients = [0, 1, 2].map { shell.store.connect(domain: $0) }
        let words = [
            "/", "/a", "/a/b", "a", "b/c", "@releaseDomain", "t", "T", "F", "1", "0", "n1", "r2", "", "//", "w9",
        ]
        for _ in 0..<5_000 {
            var reader = MessageReader()
            let count = Int(random.next() % 4)
            var payload = (0..<count).flatMap { _ -> [UInt8] in
                Array(words[Int(random.next() % UInt64(words.count))].utf8) + (random.next() % 8 == 0 ? [] : [0])
            }
            if random.next() % 16 == 0 { payload.append(UInt8(truncatingIfNeeded: random.next())) }
            let message = Message(
                type: UInt32(random.next() % 26), request: 1, transaction: UInt32(random.next() % 4), payload: payload)
            reader.append(message.bytes)
            guard let parsed = try? reader.next() else { continue }
            #expect(parsed == message)
            _ = shell.store.handle(parsed, from: clients[Int(random.next() % 3)])
        }
        #expect(shell.request(.control, "check\0", clients[0]) == "OK\0")
    }
}

private struct Random: RandomNumberGenerator {
    var state: UInt64
    mutating func next() -> UInt64 {
        state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
        return state >> 33
    }
}
