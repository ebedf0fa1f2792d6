// The store: clients, their requests, watches and quotas. A pure state machine: bytes in, messages out.
// Source: docs/misc/xenstore.txt; behaviour of Xen 4.17's xenstored where the document is silent.
// Not modelled: live update, the socket's "restrict" operation (removed from Xen).

/// What one unprivileged domain may use (the defaults of Xen's C xenstored).
public struct Quota: Sendable {
    public var nodes = 1000
    public var watches = 128
    public var transactions = 10
    public var nodesPerTransaction = 1024
    public var valueBytes = 2048
    public var permissions = 5
    public init() {}
}

/// A connection of a guest's ring or of a socket.
public struct ClientID: Hashable, Sendable {
    let number: Int
}

/// A message for a client.
public struct Delivery: Equatable, Sendable {
    public var client: ClientID
    public var message: Message
}

public struct Store {
    struct Watch {
        var client: ClientID
        /// As the client wrote it; events name paths the same way.
        var path: String
        var absolute: String
        var token: [UInt8]
        var depth: Int?
    }
    struct Client {
        var domain: UInt32
        /// Domain-0's back ends of this domain only.
        var serves: UInt32?
        var hasComeBack = false
        var target: UInt32?
        var transactions: [UInt32: Transaction] = [:]
        var nextTransaction: UInt32 = 1
    }

    public var quota = Quota()
    /// The number of each client's first transaction: another one than a store before this had given.
    public var firstTransaction: UInt32 = 1
    /// Domains that have been introduced, with the frame of their ring and their event channel.
    public internal(set) var introduced: [UInt32: (frame: UInt64, port: UInt32)] = [:]
    var tree = Tree()
    var clients: [ClientID: Client] = [:]
    var watches: [Watch] = []
    /// The last changes before this store took over from another one, of which not everybody may have heard.
    var lastChanges: [Change] = []
    private var nextClient = 1

    public init() {
        for path in ["/tool", "/tool/xenstored"] { try? makeNode(path) }
    }

    private mutating func makeNode(_ path: String) throws(StoreError) {
        guard let parentPath = StorePath.parent(path), var parent = tree.node(parentPath) else { throw .noEntry }
        parent.children.append(StorePath.name(path))
        tree.put(parentPath, parent)
        tree.put(path, Node(permissions: parent.permissions))
    }

    /// A new connection of `domain`; 0 is the toolstack and may do everything. `hasComeBack`: it may have been
    /// connected with the store before this one, and missed the last events.
    public mutating func connect(domain: UInt32, hasComeBack: Bool = false) -> ClientID {
        let id = ClientID(number: nextClient)
        nextClient += 1
        clients[id] = Client(domain: domain, hasComeBack: hasComeBack, nextTransaction: firstTransaction)
        return id
    }

    /// A new connection of those who serve `domain` as Domain-0: it reaches the domain's tree and its back ends' only.
    public mutating func connect(serving domain: UInt32) -> ClientID {
        let id = connect(domain: 0)
        clients[id]?.serves = domain
        return id
    }

    /// The connection is gone, with its watches and transactions.
    public mutating func disconnect(_ id: ClientID) {
        clients[id] = nil
        watches.removeAll { $0.client == id }
    }

    /// Carries out one message of `id`; the answer comes first in what is returned.
    public mutating func handle(_ message: Message, from id: ClientID) -> [Delivery] {
        guard clients[id] != nil else { return [] }
        var context = Context(client: id, transaction: message.transaction)
        var answer = Message(
            type: message.type, request: message.request, transaction: message.transaction, payload: [])
        do throws(StoreError) {
            guard let operation = Operation(rawValue: message.type) else { throw .notImplemented }
            answer.payload = try perform(operation, message.payload, &context)
            if answer.payload.count > Message.maximumPayload { throw .tooBig }
        } catch {
            answer.type = Operation.error.rawValue
            answer.payload = Array(error.rawValue.utf8) + [0]
            context.changes = []
            context.events = []
        }
        return [Delivery(client: id, message: answer)] + context.events + context.changes.flatMap { notify($0) }
    }

    /// Tells the watches of `@introduceDomain` and `@releaseDomain`.
    mutating func notifySpecial(_ name: String) -> [Delivery] {
        notify(Change(path: name, isExact: true, permissions: [Permission(0, [])]))
    }

    /// A domain came or went by the toolstack's hand rather than by message.
    public mutating func domainChanged(_ domain: UInt32, isAlive: Bool) -> [Delivery] {
        if !isAlive { introduced[domain] = nil }
        return notifySpecial(isAlive ? "@introduceDomain" : "@releaseDomain")
    }

    private func notify(_ change: Change) -> [Delivery] {
        watches.compactMap { tell($0, of: change) }
    }

    /// The event for a watch, if the change concerns it.
    func tell(_ watch: Watch, of change: Change) -> Delivery? {
        guard let depth = StorePath.depth(of: change.path, below: watch.absolute) else { return nil }
        if change.isExact, depth != 0 { return nil }
        if let limit = watch.depth, depth > limit { return nil }
        guard mayLearn(of: change, watch.client) else { return nil }
        return Delivery(client: watch.client, message: event(watch, change.path))
    }

    /// A watcher hears of a node only if it may read it (XSA-115).
    private func mayLearn(of change: Change, _ id: ClientID) -> Bool {
        guard let client = clients[id] else { return false }
        if client.domain == 0 { return true }
        let permissions = tree.node(change.path)?.permissions ?? change.permissions
        return Node(permissions: permissions).access(for: client.domain, target: client.target).contains(.read)
    }

    func event(_ watch: Watch, _ path: String) -> Message {
        var shown = path
        if !watch.path.hasPrefix("/"), !watch.path.hasPrefix("@") {
            let prefix = watch.absolute.dropLast(watch.path.utf8.count)
            shown = String(path.dropFirst(prefix.count))
        }
        return Message(.watchEvent, payload: Array(shown.utf8) + [0] + watch.token + [0])
    }
}

/// What one request works on and leaves to be told.
struct Context {
    var client: ClientID
    var transaction: UInt32
    /// Applied changes, told to watches after the answer.
    var changes: [Change] = []
    /// Messages for the client itself behind the answer.
    var events: [Delivery] = []
}
