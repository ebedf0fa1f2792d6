// A client of the store: nodes, watches, transactions.
// Source: Xen's public/io/xs_wire.h and docs/misc/xenstore.txt.
// Modelled: what back ends and the toolstack ask for. Not modelled: introducing domains, control.
// Quirks: watch events that come while an answer is awaited, or right behind it, are kept, and called later from `pump`.
public import Host
internal import XenStore

/// One client's view of the store. Used on one thread.
public final class StoreClient {
    /// 0 outside of transactions.
    public typealias TransactionID = UInt32
    private static let retries = 64

    private var transport: any StoreTransport
    private var reactor: Reactor?
    private var nextRequest: UInt32 = 0
    private var nextToken: UInt64 = 0
    private var watches: [String: (path: String, changed: (String) -> Void)] = [:]
    private var alarm: HostEvent?
    private var events: [(path: String, token: String)] = []
    /// Called once when the store is gone.
    public var onLost: () -> Void = {}
    public private(set) var isLost = false

    public init(_ transport: any StoreTransport) { self.transport = transport }

    /// Has `reactor` call the watches.
    public func attach(to reactor: Reactor) throws(HostFailure) {
        // An event that came before an answer is off the socket already, and wakes nobody by itself.
        let alarm = try HostEvent()
        self.alarm = alarm
        reactor.watch(alarm.descriptor.number) { [weak self] _ in
            alarm.clear()
            self?.pump()
        }
        self.reactor = reactor
        watchTransport()
    }

    private func watchTransport() {
        guard let reactor, let descriptor = transport.descriptor else { return }
        reactor.watch(descriptor) { [weak self, unowned reactor] _ in
            guard let self, !isLost else { return reactor.unwatch(descriptor) }
            pump()
        }
    }

    /// Goes on with another connection, to a store that has the same tree. All watches fire anew.
    public func reconnect(_ new: any StoreTransport) throws(StoreFailure) {
        if let descriptor = transport.descriptor { reactor?.unwatch(descriptor) }
        (transport, isLost, events) = (new, false, [])
        watchTransport()
        for (token, watch) in watches.sorted(by: { $0.key < $1.key }) { _ = try ask(.watch, [watch.path, token]) }
    }

    /// Calls the watches whose events have come.
    public func pump() {
        do {
            while let message = try transport.receive(wait: false) { note(message) }
        } catch { lose() }
        while !events.isEmpty {
            let event = events.removeFirst()
            watches[event.token]?.changed(event.path)
        }
    }

    // MARK: - Nodes

    /// A node's value; nil if there is no such node.
    public func read(_ path: String, in transaction: TransactionID = 0) throws(StoreFailure) -> String? {
        do {
            return String(decoding: try ask(.read, [path], in: transaction), as: UTF8.self)
        } catch .refused(.noEntry) { return nil }
    }

    /// The names of a node's children; nil if there is no such node.
    public func directory(_ path: String, in transaction: TransactionID = 0) throws(StoreFailure) -> [String]? {
        do {
            return Self.strings(try ask(.directory, [path], in: transaction))
        } catch .refused(.noEntry) { return nil }
    }

    public func write(_ path: String, _ value: String, in transaction: TransactionID = 0) throws(StoreFailure) {
        _ = try exchange(.write, Array(path.utf8) + [0] + Array(value.utf8), in: transaction)
    }

    public func makeDirectory(_ path: String, in transaction: TransactionID = 0) throws(StoreFailure) {
        _ = try ask(.makeDirectory, [path], in: transaction)
    }

    /// Removes a node and all below it; that it is not there is no failure.
    public func remove(_ path: String, in transaction: TransactionID = 0) throws(StoreFailure) {
        do {
            _ = try ask(.remove, [path], in: transaction)
        } catch .refused(.noEntry) {}
    }

    /// "n0" for the owner, "r5" for a reader: the first one names the owner.
    public func setPermissions(
        _ path: String, _ permissions: [String], in transaction: TransactionID = 0
    ) throws(StoreFailure) {
        _ = try ask(.setPermissions, [path] + permissions, in: transaction)
    }

    // MARK: - Watches

    /// Ends with `unwatch`.
    public struct Watch: Hashable, Sendable {
        fileprivate let token: String
        fileprivate let path: String
    }

    /// Calls `changed` with the path of every change at `path` or below it, and once at first.
    public func watch(_ path: String, _ changed: @escaping (String) -> Void) throws(StoreFailure) -> Watch {
        nextToken &+= 1
        let token = "w\(nextToken)"
        watches[token] = (path, changed)
        do {
            _ = try ask(.watch, [path, token])
        } catch {
            watches[token] = nil
            throw error
        }
        return Watch(token: token, path: path)
    }

    public func unwatch(_ watch: Watch) throws(StoreFailure) {
        guard watches.removeValue(forKey: watch.token) != nil else { return }
        events.removeAll { $0.token == watch.token }
        _ = try ask(.unwatch, [watch.path, watch.token])
    }

    // MARK: - Transactions

    /// Does `body` as one step: all of it or, when it throws, nothing. It is called anew after a conflict.
    public func transaction<Result>(
        _ body: (TransactionID) throws(StoreFailure) -> Result
    ) throws(StoreFailure) -> Result {
        for _ in 0..<Self.retries {
            let answer = Self.strings(try ask(.transactionStart, [""])).first ?? ""
            guard let id = TransactionID(answer), id != 0 else { throw .disconnected }
            let result: Result
            do {
                result = try body(id)
            } catch {
                _ = try? ask(.transactionEnd, ["F"], in: id)
                throw error
            }
            do {
                _ = try ask(.transactionEnd, ["T"], in: id)
                return result
            } catch .refused(.again) { continue }
        }
        throw .conflict
    }

    // MARK: - Wire

    private func ask(
        _ operation: Operation, _ arguments: [String], in transaction: TransactionID = 0
    ) throws(StoreFailure) -> [UInt8] {
        try exchange(operation, arguments.flatMap { (text) -> [UInt8] in Array(text.utf8) + [0] }, in: transaction)
    }

    private func exchange(
        _ operation: Operation, _ payload: [UInt8], in transaction: TransactionID
    ) throws(StoreFailure) -> [UInt8] {
        guard payload.count <= Message.maximumPayload else { throw .tooLong }
        guard !isLost else { throw .disconnected }
        nextRequest &+= 1
        let request = nextRequest
        do throws(StoreFailure) {
            try transport.send(Message(operation, request: request, transaction: transaction, payload: payload))
            while let message = try transport.receive(wait: true) {
                if message.type == Operation.watchEvent.rawValue {
                    note(message)
                    alarm?.ring()
                    continue
                }
                guard message.request == request else { throw .disconnected }
                keepEvents()
                guard message.type == Operation.error.rawValue else { return message.payload }
                let name = String(decoding: message.payload.prefix { $0 != 0 }, as: UTF8.self)
                throw .refused(StoreError(rawValue: name) ?? .io)
            }
            throw .disconnected
        } catch {
            if error == .disconnected { lose() }
            throw error
        }
    }

    /// Events that came with an answer are off the socket, too, and nobody would hear of them.
    private func keepEvents() {
        do {
            while let message = try transport.receive(wait: false) {
                note(message)
                alarm?.ring()
            }
        } catch { lose() }
    }

    private func note(_ message: Message) {
        let parts = Self.strings(message.payload)
        guard message.type == Operation.watchEvent.rawValue, parts.count >= 2 else { return }
        events.append((parts[0], parts[1]))
    }

    private func lose() {
        guard !isLost else { return }
        isLost = true
        onLost()
    }

    private static func strings(_ payload: [UInt8]) -> [String] {
        payload.split(separator: 0).map { String(decoding: $0, as: UTF8.self) }
    }
}
