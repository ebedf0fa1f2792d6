// A guest's xenstore ring, passed on to xenstored over a socket that was introduced for this domain.
// Source: Xen's public/io/xs_wire.h (struct xenstore_domain_interface).
// Modelled: bytes both ways. Not modelled: reconnection requested by the guest (no feature bit is offered).
// Quirks: xenstored never maps guest memory; what the bytes mean is between the guest and xenstored.

internal import Host
internal import Rings

/// One domain's ring. Everything happens on the reactor's thread.
final class StoreRelay {
    private let socket: Descriptor
    private let requests: ByteRing
    private let answers: ByteRing
    private let port: any EventPort
    private let reactor: Reactor
    /// Keeps the page.
    private let memory: DomainMemory
    private var toStore: [UInt8] = []
    private var toGuest: [UInt8] = []
    var onWork: () -> Void = {}
    /// xenstored is gone, or the guest's ring makes no sense.
    var onEnd: (String) -> Void = { _ in }
    private var isOpen = true

    init?(memory: DomainMemory, frame: UInt64, port: any EventPort, socket: Descriptor, reactor: Reactor) {
        guard let page = unsafe memory.page(frame) else { return nil }
        unsafe requests = ByteRing(page: page, data: 0, size: 1024, consumer: 2048, producer: 2052)
        unsafe answers = ByteRing(page: page, data: 1024, size: 1024, consumer: 2056, producer: 2060)
        (self.memory, self.port, self.socket, self.reactor) = (memory, port, socket, reactor)
        port.onEvent = { [weak self] in self?.onWork() }
        watch()
    }

    /// Moves bytes both ways; true if there is more to move at once.
    func turn() -> Bool {
        guard isOpen else { return false }
        do {
            let moved = try takeRequests()
            let given = try giveAnswers()
            if moved || given { port.notify() }
            return moved
        } catch {
            end("the guest's xenstore ring makes no sense (\(error)); it is served no more")
            return false
        }
    }

    private func takeRequests() throws(RingFault) -> Bool {
        flush()
        // A store that is slow to take them keeps the guest waiting, not this process's memory growing.
        guard toStore.isEmpty else { return false }
        toStore = try requests.read(limit: 1024)
        guard !toStore.isEmpty else { return false }
        flush()
        return true
    }

    private func giveAnswers() throws(RingFault) -> Bool {
        guard !toGuest.isEmpty else { return false }
        let count = try answers.write(toGuest)
        toGuest.removeFirst(count)
        if toGuest.isEmpty { watch() }
        return count > 0
    }

    private func flush() {
        guard !toStore.isEmpty else { return }
        toStore.removeFirst(NonBlocking.write(toStore[...], to: socket.number))
        if !toStore.isEmpty { watch() }
    }

    /// With answers that the guest has not taken, more of them stay in the socket.
    private func watch() {
        guard isOpen else { return }
        let events = (toGuest.isEmpty ? Reactor.readable : 0) | (toStore.isEmpty ? 0 : Reactor.writable)
        guard events != 0 else { return reactor.unwatch(socket.number) }
        reactor.watch(socket.number, for: events) { [weak self] events in self?.onSocket(events) }
    }

    private func onSocket(_ events: UInt32) {
        if events & Reactor.readable != 0 || events & Reactor.hangUp != 0 {
            let bytes = NonBlocking.read(socket.number, limit: 8192)
            if bytes.isEmpty { return end("the connection to xenstored is lost") }
            toGuest += bytes
        }
        if events & Reactor.writable != 0 { flush() }
        watch()
        onWork()
    }

    private func end(_ why: String) {
        isOpen = false
        reactor.unwatch(socket.number)
        onEnd(why)
    }
}
