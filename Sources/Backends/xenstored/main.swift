// xenstored: the store of one state directory, served on a Unix socket.
//   xenstored --socket PATH
// Clients name the socket by XENSTORED_PATH. It runs until SIGTERM.
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

    init(path: String, reactor: Reactor) throws(HostFailure) {
        server = try StreamServer(path: path, reactor: reactor)
        server.onConnect = { [unowned self] client in
            let identity = store.connect(domain: 0)
            readers[client] = MessageReader()
            identities[client] = identity
            sockets[identity] = client
        }
        server.onDisconnect = { [unowned self] client in
            readers[client] = nil
            guard let identity = identities.removeValue(forKey: client) else { return }
            sockets[identity] = nil
            store.disconnect(identity)
        }
        server.onBytes = { [unowned self] client, bytes in receive(bytes, from: client) }
    }

    private func receive(_ bytes: ArraySlice<UInt8>, from client: StreamServer.Client) {
        readers[client]?.append(bytes)
        while let identity = identities[client] {
            do {
                guard let message = try readers[client]?.next() else { return }
                for delivery in store.handle(message, from: identity) {
                    if let socket = sockets[delivery.client] { server.send(delivery.message.bytes, to: socket) }
                }
            } catch {
                // A stream whose lengths make no sense cannot be followed.
                server.drop(client)
            }
        }
    }

    func close() { server.close() }
}

do {
    let arguments = CommandLine.arguments
    guard arguments.count == 3, arguments[1] == "--socket" else {
        complain("usage: xenstored --socket PATH")
        exit(2)
    }
    let reactor = try Reactor()
    let service = try Service(path: arguments[2], reactor: reactor)
    let signals = try signalDescriptor([SIGTERM, SIGINT])
    reactor.watch(signals.number) { _ in reactor.stop() }
    reactor.run()
    service.close()
} catch {
    complain("\(error)")
    exit(1)
}
