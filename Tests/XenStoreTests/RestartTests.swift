import Testing
import XenStore

@Suite("xenstore after a restart") struct RestartTests {
    private func ask(
        _ store: inout Store, _ operation: Operation, _ text: String, _ client: ClientID, _ transaction: UInt32 = 0
    ) -> String {
        let message = Message(operation, request: 1, transaction: transaction, payload: Array(text.utf8))
        let answers = store.handle(message, from: client).filter { $0.message.type != Operation.watchEvent.rawValue }
        return answers.first.map { String(decoding: $0.message.payload, as: UTF8.self) } ?? ""
    }

    @Test("A store that replays the records has the same tree") func records() {
        var store = Store()
        var journal: [UInt8] = store.records
        store.onRecord = { journal += $0 }
        let tools = store.connect(domain: 0)
        _ = ask(&store, .write, "/local/domain/5/data\0\u{1}\u{2}binary", tools)
        _ = ask(&store, .setPermissions, "/local/domain/5\0n5\0r0\0b7\0", tools)
        _ = ask(&store, .write, "/gone/below\0x", tools)
        _ = ask(&store, .remove, "/gone\0", tools)
        let guest = store.connect(domain: 5)
        let number = ask(&store, .transactionStart, "\0", guest)
        _ = ask(&store, .write, "in\0done", guest, UInt32(number.dropLast()) ?? 0)
        #expect(ask(&store, .transactionEnd, "T\0", guest, UInt32(number.dropLast()) ?? 0) == "OK\0")
        let open = ask(&store, .transactionStart, "\0", guest)
        _ = ask(&store, .write, "never\0x", guest, UInt32(open.dropLast()) ?? 0)

        var again = Store()
        #expect(again.replay(journal) == journal.count)
        #expect(again.records == store.records)
        let reader = again.connect(domain: 0)
        #expect(ask(&again, .read, "/local/domain/5/data\0", reader) == "\u{1}\u{2}binary")
        #expect(ask(&again, .getPermissions, "/local/domain/5\0", reader) == "n5\0r0\0b7\0")
        #expect(ask(&again, .read, "/local/domain/5/in\0", reader) == "done")
        for path in ["/gone", "/gone/below", "/local/domain/5/never"] {
            #expect(ask(&again, .read, path + "\0", reader) == "ENOENT\0")
        }
        // A record that was cut off is as if it had not been.
        var cut = Store()
        let sound = cut.replay(Array(journal.dropLast(3)))
        #expect(sound < journal.count - 3 && cut.replay(Array(journal[sound...])) == journal.count - sound)
        #expect(cut.records == store.records)
        // Neither is noise.
        var state: UInt32 = 1
        for _ in 0..<200 {
            var noise = journal
            for _ in 0..<4 {
                state = state &* 1_664_525 &+ 1_013_904_223
                noise[Int(state >> 8) % noise.count] = UInt8(truncatingIfNeeded: state >> 24)
            }
            var other = Store()
            other.replay(noise)
        }
    }

    @Test("A domain that comes back hears of what may have been lost, and of nothing else") func lastChanges() {
        var store = Store()
        var journal: [UInt8] = store.records
        store.onRecord = { journal += $0 }
        let tools = store.connect(domain: 0)
        _ = ask(&store, .write, "/local/domain/5/device/vbd/1/state\0" + "6", tools)
        _ = ask(&store, .write, "/local/domain/6/secret\0x", tools)
        for number in [5, 6] { _ = ask(&store, .setPermissions, "/local/domain/\(number)\0n\(number)\0", tools) }
        _ = ask(&store, .setPermissions, "/local/domain/5/device\0n5\0", tools)
        _ = ask(&store, .setPermissions, "/local/domain/5/device/vbd\0n5\0", tools)
        _ = ask(&store, .setPermissions, "/local/domain/5/device/vbd/1\0n5\0", tools)
        _ = ask(&store, .remove, "/local/domain/5/device/vbd/1\0", tools)

        func events(hasComeBack: Bool, _ path: String) -> [String] {
            var next = Store()
            next.replay(journal)
            let guest = next.connect(domain: 5, hasComeBack: hasComeBack)
            let watch = Message(.watch, request: 1, payload: Array("\(path)\0t\0".utf8))
            return next.handle(watch, from: guest).filter { $0.message.type == Operation.watchEvent.rawValue }
                .map { String(decoding: $0.message.payload.prefix { $0 != 0 }, as: UTF8.self) }
        }
        #expect(events(hasComeBack: false, "device") == ["device"])
        let heard = events(hasComeBack: true, "device")
        #expect(heard.first == "device" && heard.last == "device/vbd/1")
        #expect(events(hasComeBack: true, "/local/domain/6") == ["/local/domain/6"])
        #expect(events(hasComeBack: true, "@releaseDomain") == ["@releaseDomain"])
    }

    private func message(_ operation: Operation, _ request: UInt32, _ text: String, _ transaction: UInt32 = 0)
        -> Message
    {
        Message(operation, request: request, transaction: transaction, payload: Array(text.utf8))
    }

    @Test("Another store hears of watches and of what was not answered") func conversation() {
        var talk = StoreConversation()
        func asks(_ question: Message) -> Message? { talk.asks(question) }
        func hears(_ message: Message) -> Bool { talk.hears(message) }
        func exchange(_ question: Message, _ answer: String) {
            #expect(asks(question) == nil)
            let type = answer.hasPrefix("E") ? Operation.error : Operation(rawValue: question.type) ?? .error
            #expect(hears(message(type, question.request, answer, question.transaction)))
        }
        exchange(message(.watch, 1, "a\0t1\0"), "OK\0")
        exchange(message(.watch, 2, "b\0t2\0"), "OK\0")
        exchange(message(.watch, 3, "c\0t3\0"), "EACCES\0")
        exchange(message(.unwatch, 4, "a\0t1\0"), "OK\0")
        #expect(hears(message(.watchEvent, 0, "b\0t2\0")))
        exchange(message(.transactionStart, 5, "\0"), "77\0")
        exchange(message(.transactionStart, 6, "\0"), "78\0")
        exchange(message(.transactionEnd, 7, "T\0", 78), "OK\0")
        #expect(asks(message(.write, 8, "x\0y")) == nil)
        #expect(asks(message(.read, 9, "x\0", 77)) == nil)
        let (requests, answers) = talk.restart()
        #expect(requests.map(\.payload) == [Array("b\0t2\0".utf8), Array("x\0y".utf8)])
        #expect(requests[1].request == 8)
        #expect(answers == [Message(.error, request: 9, transaction: 77, payload: Array("EAGAIN\0".utf8))])
        // The guest never asked for the first, and sees the answer to the second.
        #expect(!hears(message(.watch, requests[0].request, "OK\0")))
        #expect(hears(message(.write, 8, "OK\0")))
        // Its transaction is to be done again, by every word of it, until it has ended.
        #expect(asks(message(.write, 10, "x\0z", 77))?.payload == Array("EAGAIN\0".utf8))
        #expect(asks(message(.transactionEnd, 11, "T\0", 77))?.type == Operation.error.rawValue)
        #expect(asks(message(.transactionEnd, 12, "T\0", 77)) == nil)
        exchange(message(.transactionStart, 13, "\0"), "90\0")
        _ = talk.restart()
        #expect(asks(message(.transactionEnd, 14, "F\0", 90)) == message(.transactionEnd, 14, "OK\0", 90))
    }

    @Test("Whoever listens to a conversation knows its watches, and how far the client has come with its events")
    func follows() {
        var conversation = StoreConversation()
        func say(_ operation: Operation, _ text: String) {
            let message = Message(operation, request: 1, payload: Array(text.utf8))
            let (answer, answered) = (
                conversation.asks(message),
                conversation.hears(Message(operation, request: 1, payload: Array("OK\0".utf8)))
            )
            #expect(answer == nil && answered)
        }
        say(.watch, "/backend/vbd/1/51728/state\0a\0")
        #expect(conversation.isWatched("/backend/vbd/1/51728") && conversation.isWatched("/backend/vbd/1/51728/state"))
        #expect(
            !conversation.isWatched("/backend/vbd/1/5172") && !conversation.isWatched("/backend/vbd/1/51728/state/x"))
        say(.unwatch, "/backend/vbd/1/51728/state\0a\0")
        #expect(!conversation.isWatched("/backend/vbd/1/51728"))
        // A client that does not watch the node says nothing by reading it.
        say(.read, "control/sysrq\0")
        #expect(conversation.probeReads == nil)
        say(.watch, "control/sysrq\0b\0")
        for (path, isProbe) in [("control/sysrq", true), ("/local/domain/1/control/sysrq", true), ("sysrq", false)] {
            let before = conversation.probeReads ?? 0
            say(.read, path + "\0")
            #expect((conversation.probeReads == before + 1) == isProbe, "\(path)")
        }
    }
}
