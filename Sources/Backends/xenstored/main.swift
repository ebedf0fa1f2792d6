// xenstored: the store of one state directory, served on a Unix socket.
//   xenstored --socket PATH [--domains PATH --state PATH]
// Clients name the socket by XENSTORED_PATH. It runs until SIGTERM; with --domains, where monitors introduce their
// domains, also only until the last domain and the last client have gone. Descriptor 3, if open, is told of readiness.
// --state names a file that lets another xenstored go on where this one was killed.
import Glibc
import Host
import XenStore

func complain(_ text: String) { try? HostFile.write(Array("xenstored: \(text)\n".utf8), to: 2) }

/// Connects sockets with the store: bytes in, answers and watch events out.
final class Service {
    private var store = Store()
    private var readers: [StreamServer.Client: MessageReader] = [:]
    private var identities: [StreamServer.Client: ClientID] = [:]
    private var sockets: [ClientID: StreamServer.Client] = [:]
    private let server: StreamServer
    private var journal: Journal?
    /// Called when a client or a domain has gone and none is left.
    var onIdle: () -> Void = {}

    init(path: String, state: String?, reactor: Reactor) throws(HostFailure) {
        // No transaction of before has a number that is given again.
        store.firstTransaction = UInt32(truncatingIfNeeded: monotonicNanoseconds() >> 20) & 0x3FFF_FFFF | 1
        if let state {
            let journal = try Journal(state, &store)
            store.onRecord = { journal.append($0) }
            self.journal = journal
        }
        server = try StreamServer(path: path, reactor: reactor)
        server.onConnect = { [unowned self] client in note(client, store.connect(domain: 0)) }
        server.onDisconnect = { [unowned self] client in
            readers[client] = nil
            guard let identity = identities.removeValue(forKey: client) else { return }
            sockets[identity] = nil
            store.disconnect(identity)
            noteIdle()
        }
        server.onBytes = { [unowned self] client, bytes in receive(bytes, from: client) }
    }

    // MARK: domains

    /// `socket` carries the ring of `domain`.
    func introduce(_ domain: UInt32, _ socket: Descriptor) {
        domains[domain] = adopt(socket, as: store.connect(domain: domain, hasComeBack: true))
        deliver(store.domainChanged(domain, isAlive: true))
    }

    /// `socket` leads to the back ends of `domain`.
    func connect(_ socket: Descriptor, serving domain: UInt32) {
        _ = adopt(socket, as: store.connect(serving: domain))
    }

    private func adopt(_ socket: Descriptor, as identity: ClientID) -> StreamServer.Client {
        let client = server.adopt(socket)
        note(client, identity)
        return client
    }

    private func note(_ client: StreamServer.Client, _ identity: ClientID) {
        readers[client] = MessageReader()
        identities[client] = identity
        sockets[identity] = client
    }

    func release(_ domain: UInt32) {
        guard let client = domains.removeValue(forKey: domain) else { return }
        server.drop(client)
        deliver(store.domainChanged(domain, isAlive: false))
        noteIdle()
    }

    private var domains: [UInt32: StreamServer.Client] = [:]

    private func noteIdle() {
        if domains.isEmpty && readers.isEmpty { onIdle() }
    }

    private func deliver(_ deliveries: [Delivery]) {
        for delivery in deliveries {
            if let socket = sockets[delivery.client] { server.send(delivery.message.bytes, to: socket) }
        }
    }

    private func receive(_ bytes: ArraySlice<UInt8>, from client: StreamServer.Client) {
        readers[client]?.append(bytes)
        while let identity = identities[client] {
            do {
                guard let message = try readers[client]?.next() else { return }
                deliver(store.handle(message, from: identity))
                if let journal, journal.isLong { try? journal.compact(store.records) }
            } catch {
                // A stream whose lengths make no sense cannot be followed.
                server.drop(client)
            }
        }
    }

    /// `isOver`: nobody is left who would want another store to go on.
    func close(isOver: Bool) {
        server.close()
        if isOver { journal?.remove() }
    }
}

do {
    let arguments = CommandLine.arguments
    guard arguments.count == 3 || arguments.count == 7 && arguments[3] == "--domains" && arguments[5] == "--state",
        arguments[1] == "--socket"
    else {
        complain("usage: xenstored --socket PATH [--domains PATH --state PATH]")
        exit(2)
    }
    // Looked at first: what is opened below may get the number.
    let isAwaited = HostFile.isOpen(3)
    let reactor = try Reactor()
    let service = try Service(
        path: arguments[2], state: arguments.count == 7 ? arguments[6] : nil, reactor: reactor)
    var door: DomainDoor?
    var isOver = false
    if arguments.count == 7 {
        door = try DomainDoor(path: arguments[4], reactor: reactor, service)
        service.onIdle = {
            isOver = true
            reactor.stop()
        }
        if isAwaited {
            try? HostFile.write(Array("{\"ready\":true}\n".utf8), to: 3)
            closeDescriptor(3)
        }
    }
    let signals = try signalDescriptor([SIGTERM, SIGINT])
    reactor.watch(signals.number) { _ in reactor.stop() }
    reactor.run()
    door?.close()
    service.close(isOver: isOver)
} catch {
    complain("\(error)")
    exit(1)
}
