// A guest's xenstore ring, passed on to xenstored over a socket that was introduced for this domain.
// Source: Xen's public/io/xs_wire.h (struct xenstore_domain_interface).
// Modelled: messages both ways; another xenstored in the place of one that died, of which the guest notices nothing but
// transactions to be done again. Not modelled: reconnection requested by the guest (no feature bit is offered).
// Quirks: xenstored never maps guest memory; what the messages say is between the guest and xenstored.

internal import Host
internal import Rings
internal import XenStore

/// One domain's ring. Everything happens on the reactor's thread.
final class StoreRelay {
    private var socket: Descriptor
    private let requests: ByteRing
    private let answers: ByteRing
    private let port: any EventPort
    private let reactor: Reactor
    /// Keeps the page.
    private let memory: DomainMemory
    private var fromGuest = MessageReader()
    private var fromStore = MessageReader()
    private var toStore: [UInt8] = []
    private var toGuest: [UInt8] = []
    private var conversation = StoreConversation()
    var onWork: () -> Void = {}
    /// xenstored is gone, or the guest's ring makes no sense.
    var onEnd: (String) -> Void = { _ in }
    private var isConnected = true
    private var isSane = true

    init?(memory: DomainMemory, frame: UInt64, port: any EventPort, socket: Descriptor, reactor: Reactor) {
        guard let page = unsafe memory.page(frame) else { return nil }
        unsafe requests = ByteRing(page: page, data: 0, size: 1024, consumer: 2048, producer: 2052)
        unsafe answers = ByteRing(page: page, data: 1024, size: 1024, consumer: 2056, producer: 2060)
        (self.memory, self.port, self.socket, self.reactor) = (memory, port, socket, reactor)
        port.onEvent = { [weak self] in self?.onWork() }
        watch()
    }

    /// Whether the guest wants to hear of changes at `path` or below.
    func isWatched(_ path: String) -> Bool { conversation.isWatched(path) }

    /// How often the guest has looked at `StoreConversation.probe`; nil if it would not.
    var probeReads: UInt64? { conversation.probeReads }

    /// Moves bytes both ways; true if there is more to move at once.
    func turn() -> Bool {
        guard isSane else { return false }
        do {
            let moved = try takeRequests()
            let given = try giveAnswers()
            if moved || given { port.notify() }
            return moved
        } catch let error as RingFault {
            giveUp("\(error)")
        } catch { giveUp("a message is too long") }
        return false
    }

    /// Goes on with another xenstored: it hears of the guest's watches, and of what was not answered.
    func reconnect(_ new: Descriptor) {
        // What the dead one has still said.
        while isConnected, hear() {}
        reactor.unwatch(socket.number)
        (socket, isConnected, fromStore) = (new, true, MessageReader())
        let (again, answers) = conversation.restart()
        toStore = again.flatMap(\.bytes)
        toGuest += answers.flatMap(\.bytes)
        flush()
        watch()
        onWork()
    }

    private func takeRequests() throws -> Bool {
        flush()
        // A store that is slow to take them, or not there, keeps the guest waiting, not this process's memory growing.
        guard toStore.isEmpty, isConnected else { return false }
        let bytes = try requests.read(limit: 1024)
        guard !bytes.isEmpty else { return false }
        fromGuest.append(bytes)
        while let message = try fromGuest.next() {
            if let answer = conversation.asks(message) {
                toGuest += answer.bytes
            } else {
                toStore += message.bytes
            }
        }
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
        guard !toStore.isEmpty, isConnected else { return }
        toStore.removeFirst(NonBlocking.write(toStore[...], to: socket.number))
        if !toStore.isEmpty { watch() }
    }

    /// With answers that the guest has not taken, more of them stay in the socket.
    private func watch() {
        guard isSane, isConnected else { return }
        let events = (toGuest.isEmpty ? Reactor.readable : 0) | (toStore.isEmpty ? 0 : Reactor.writable)
        guard events != 0 else { return reactor.unwatch(socket.number) }
        reactor.watch(socket.number, for: events) { [weak self] events in self?.onSocket(events) }
    }

    private func onSocket(_ events: UInt32) {
        if events & Reactor.readable != 0 || events & Reactor.hangUp != 0 {
            guard hear() else { return lose() }
        }
        if events & Reactor.writable != 0 { flush() }
        watch()
        onWork()
    }

    /// Takes what the store has sent; false if that is nothing, or makes no sense.
    private func hear() -> Bool {
        let bytes = NonBlocking.read(socket.number, limit: 8192)
        fromStore.append(bytes)
        do {
            while let message = try fromStore.next() {
                if conversation.hears(message) { toGuest += message.bytes }
            }
        } catch { return false }
        return !bytes.isEmpty
    }

    private func lose() {
        isConnected = false
        reactor.unwatch(socket.number)
        onEnd("the guest's connection to xenstored is lost: it waits for another one")
    }

    private func giveUp(_ why: String) {
        isSane = false
        reactor.unwatch(socket.number)
        onEnd("the guest's xenstore ring makes no sense (\(why)); it is served no more")
    }
}
