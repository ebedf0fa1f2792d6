// What a client and the store have said to each other, as far as another store would need to know it.
// Source: docs/misc/xenstore.txt; what Linux's xenbus does with EAGAIN (it starts the transaction over).
// Modelled: watches, open transactions, requests without an answer. Not modelled: watches' depths across a restart.
// Quirks: a store that comes back fires all watches, as a watch that is set always fires once.

/// One client's side, seen from the middle.
public struct StoreConversation {
    /// Requests of our own have numbers from here on; the client's answers to those are ours.
    private static let ownRequests: UInt32 = 0xFFFF_0000
    /// More than a client may have: those who say more are not followed any further.
    private static let limit = 4096
    /// Linux reads this node whenever it changes, after it has dealt with all events before; empty, it means nothing.
    public static let probe = "control/sysrq"

    private var unanswered: [Message] = []
    private var watches: [[UInt8]] = []
    /// How often the client has read `probe`.
    private var probes: UInt64 = 0
    private var transactions: Set<UInt32> = []
    /// Transactions of a store that is no more.
    private var lost: Set<UInt32> = []

    public init() {}

    /// Whether a watch of the client lies at `path` or below it.
    public func isWatched(_ path: String) -> Bool {
        let (whole, below) = (Array(path.utf8), Array((path + "/").utf8))
        return watches.contains { watch in
            let place = watch.prefix { $0 != 0 }
            return place.elementsEqual(whole) || place.starts(with: below)
        }
    }

    private static func isProbe(_ payload: [UInt8]) -> Bool {
        let path = String(decoding: payload.prefix { $0 != 0 }, as: UTF8.self)
        return path == probe || path.hasSuffix("/\(probe)")
    }

    /// How often the client has read `probe`; nil if it does not watch it.
    public var probeReads: UInt64? { watches.contains(where: Self.isProbe) ? probes : nil }

    /// Notes a request on its way to the store; an answer if the store must not see it.
    public mutating func asks(_ message: Message) -> Message? {
        if message.transaction != 0, lost.contains(message.transaction) { return again(message) }
        if unanswered.count < Self.limit { unanswered.append(message) }
        if message.type == Operation.read.rawValue, Self.isProbe(message.payload) { probes &+= 1 }
        return nil
    }

    /// Notes a message of the store; false if the client must not see it.
    public mutating func hears(_ message: Message) -> Bool {
        guard message.type != Operation.watchEvent.rawValue else { return true }
        if message.request >= Self.ownRequests { return false }
        guard let index = unanswered.firstIndex(where: { $0.request == message.request }) else { return true }
        let request = unanswered.remove(at: index)
        if message.type != Operation.error.rawValue { note(request, message) }
        // Whatever the answer, the transaction is over.
        if request.type == Operation.transactionEnd.rawValue { transactions.remove(request.transaction) }
        return true
    }

    private mutating func note(_ request: Message, _ answer: Message) {
        switch Operation(rawValue: request.type) {
        case .watch where watches.count < Self.limit: watches.append(request.payload)
        case .unwatch: watches.removeAll { $0 == request.payload }
        case .resetWatches: watches = []
        case .transactionStart:
            let digits = String(decoding: answer.payload.prefix { $0 != 0 }, as: UTF8.self)
            if let number = UInt32(digits), transactions.count < Self.limit { transactions.insert(number) }
        default: break
        }
    }

    /// Another store takes over: what it must be told, and what the client must be answered.
    public mutating func restart() -> (requests: [Message], answers: [Message]) {
        lost.formUnion(transactions)
        transactions = []
        let waiting = unanswered
        unanswered = []
        var requests = watches.enumerated().map { index, payload in
            Message(.watch, request: Self.ownRequests + UInt32(index), payload: payload)
        }
        var answers: [Message] = []
        for message in waiting {
            if message.transaction != 0 {
                lost.insert(message.transaction)
                answers.append(again(message))
            } else {
                unanswered.append(message)
                requests.append(message)
            }
        }
        return (requests, answers)
    }

    /// The answer to a request of a lost transaction: its end may be told, all else is to be tried again.
    private mutating func again(_ message: Message) -> Message {
        let isEnd = message.type == Operation.transactionEnd.rawValue
        if isEnd { lost.remove(message.transaction) }
        let isAbort = isEnd && message.payload.first == UInt8(ascii: "F")
        return Message(
            type: isAbort ? message.type : Operation.error.rawValue, request: message.request,
            transaction: message.transaction, payload: Array((isAbort ? "OK" : StoreError.again.rawValue).utf8) + [0])
    }
}
