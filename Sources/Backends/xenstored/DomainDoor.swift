// Where the monitors of domains introduce them, each with a socket that carries the guest's ring, and another one on
// which its back ends are Domain-0 for this domain only.
// Source: Xen's XS_INTRODUCE and XS_RELEASE, with a descriptor in place of the frame of the ring.
// Modelled: one connection a monitor; its end releases what it introduced.
// Quirks: a request is one line of JSON with one descriptor, and is answered by one byte.

import Foundation
import Host

final class DomainDoor {
    private struct Request: Codable {
        var introduce: UInt32?
        /// The socket is one of the domain's back ends.
        var serve: UInt32?
        var release: UInt32?
    }

    private let path: String
    private let reactor: Reactor
    private let service: Service
    private let listener: Descriptor
    private var monitors: [Int32: (socket: MessageSocket, domains: Set<UInt32>)] = [:]

    init(path: String, reactor: Reactor, _ service: Service) throws(HostFailure) {
        (self.path, self.reactor, self.service) = (path, reactor, service)
        listener = try StreamSocket.listen(path)
        reactor.watch(listener.number) { [unowned self] _ in accept() }
    }

    func close() { HostFile.remove(path) }

    private func accept() {
        guard let socket = try? StreamSocket.accept(listener) else { return }
        monitors[socket.number] = (MessageSocket(socket), [])
        reactor.watch(socket.number) { [unowned self] _ in serve(socket.number) }
    }

    private func serve(_ number: Int32) {
        guard let socket = monitors[number]?.socket else { return }
        guard let (message, descriptors) = try? socket.receive() else { return end(number) }
        let request = try? JSONDecoder().decode(Request.self, from: Data(message))
        var isDone = false
        if let domain = request?.introduce, let ring = descriptors.first, (1...0x7FEF).contains(domain) {
            service.introduce(domain, ring)
            monitors[number]?.domains.insert(domain)
            isDone = true
        } else if let domain = request?.serve, let backends = descriptors.first,
            monitors[number]?.domains.contains(domain) == true
        {
            service.connect(backends, serving: domain)
            isDone = true
        } else if let domain = request?.release, monitors[number]?.domains.remove(domain) != nil {
            service.release(domain)
            isDone = true
        }
        try? socket.send([isDone ? 1 : 0])
    }

    private func end(_ number: Int32) {
        reactor.unwatch(number)
        for domain in monitors.removeValue(forKey: number)?.domains ?? [] { service.release(domain) }
    }
}
