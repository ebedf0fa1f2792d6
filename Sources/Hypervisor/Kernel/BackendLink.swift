// The hypervisor's end of the socket to the domain's back ends: hand-over of memory, then their requests.
// Source: docs/ARCHITECTURE.md, "Back ends"; Xen's EVTCHNOP_bind_interdomain for what binding means.
// Modelled: binding, unbinding, written code. Quirks: a request is a line of JSON and waits for its answer.

internal import DomainConfig
internal import DomainProcess
internal import Foundation
internal import Host
internal import Ioreq
internal import Synchronization

/// Belongs to the reactor's thread.
final class BackendLink {
    private let socket: MessageSocket
    private let domain: Domain
    private let doorbell: HostEvent

    init(_ socket: MessageSocket, _ domain: Domain) throws(HostFailure) {
        (self.socket, self.domain) = (socket, domain)
        doorbell = try HostEvent()
    }

    /// Hands the domain's memory over and waits until the back ends are set up.
    func meet(_ places: SpecialPlaces) throws {
        let memory = domain.memory
        let special = domain.config.kind == .hvm ? SpecialFrame.all : []
        let hello = BackendHello(
            ramBytes: memory.ram.size, grantFrames: GrantTable.maximumFrames, places: places,
            isFlat: domain.config.kind == .pv,
            special: special.map { BackendHello.SpecialPage(frame: $0.guestFrame, offset: $0.index << 12) })
        let descriptors = [
            memory.ram.memory.descriptor, memory.ram.codeMap.descriptor, memory.frames.descriptor,
            domain.pages.memory.descriptor, domain.eventPages.memory.descriptor, doorbell.descriptor,
        ]
        try socket.send(Array(try JSONEncoder().encode(hello)), descriptors: descriptors.map(\.number))
        guard try socket.receive() != nil else {
            throw SetupFailure("the back ends ended before they were ready (see backend.log)")
        }
    }

    /// Serves requests; `onEnd` is called when the process at the other end is gone.
    func attach(to reactor: Reactor, onEnd: @escaping () -> Void) {
        reactor.watch(socket.descriptor.number) { [self, unowned reactor] _ in
            guard let message = try? socket.receive()?.message else {
                reactor.unwatch(socket.descriptor.number)
                return onEnd()
            }
            let answer = (try? JSONDecoder().decode(BackendRequest.self, from: Data(message))).map(carryOut) ?? 0
            try? socket.send([UInt8(truncatingIfNeeded: answer), UInt8(truncatingIfNeeded: answer >> 8)])
        }
    }

    /// 0: it could not be done; for a binding, the back ends' own port.
    private func carryOut(_ request: BackendRequest) -> Int {
        switch request {
        case .bind(let port): return bind(Int(port)) ?? 0
        case .unbind(let port): domain.xen.events.detach(Int(port))
        case .modified(let address): domain.noteWritten(address & ~0xFFF, bytes: 4096)
        }
        return 1
    }

    private func bind(_ port: Int) -> Int? {
        let (pages, doorbell, counters) = (domain.eventPages, doorbell, domain.xen.counters)
        let bound = domain.xen.events.attach(port) {
            counters.toBackends.wrappingAdd(1, ordering: .relaxed)
            pages.signalBackend($0, doorbell: doorbell)
        }
        domain.xen.route(port)
        return bound
    }
}
