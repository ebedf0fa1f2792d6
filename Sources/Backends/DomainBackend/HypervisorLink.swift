// The back ends' end of the socket to the hypervisor: the domain's memory, and its event channels.
// Source: docs/ARCHITECTURE.md, "Back ends"; Xen's public/event_channel.h.
// Modelled: binding, sending both ways, code that was written. Quirks: a request waits for its answer, a matter of
// microseconds: the hypervisor's thread for it does nothing else.

internal import DomainProcess
internal import Foundation
internal import Host
internal import Ioreq
internal import Rings

final class HypervisorLink: EventPorts {
    /// A bound port, by the number it has on this side.
    private final class Port: EventPort {
        let number: UInt32
        unowned let link: HypervisorLink
        var onEvent: () -> Void = {}
        init(_ number: UInt32, _ link: HypervisorLink) { (self.number, self.link) = (number, link) }
        func notify() { link.notify(number) }
        func close() { link.close(self) }
    }

    private let socket: MessageSocket
    private let doorbell: Descriptor
    private let pages: IoreqPages
    private let events: EventPages
    private var ports: [UInt32: Port] = [:]
    let places: SpecialPlaces
    let memory: DomainMemory
    let grants: GrantMap
    private(set) var eventsReceived: UInt64 = 0
    private(set) var eventsSent: UInt64 = 0

    /// Takes the hypervisor's first message.
    init(_ socket: MessageSocket) throws {
        self.socket = socket
        guard let (message, descriptors) = try socket.receive() else {
            throw BackendFailure("the hypervisor ended before it gave its memory")
        }
        let hello = try JSONDecoder().decode(BackendHello.self, from: Data(message))
        guard descriptors.count == 6, hello.ramBytes > 0, hello.ramBytes < 1 << 46,
            (1...1024).contains(hello.grantFrames), hello.special.count <= 16
        else {
            throw BackendFailure("the hypervisor's first message makes no sense")
        }
        let size = Int(hello.ramBytes)
        let ram = GuestRAM(
            memory: try SharedMemory(mapping: descriptors[0], size: size, name: "guest RAM"),
            codeMap: try SharedMemory(mapping: descriptors[1], size: size >> 12, name: "the code map"),
            isFlat: hello.isFlat)
        // Shared info comes first, then the grant table, then special pages.
        let frames = try SharedMemory(
            mapping: descriptors[2], size: (1 + hello.grantFrames + hello.special.count) * 4096,
            name: "the grant table")
        pages = IoreqPages(try SharedMemory(mapping: descriptors[3], size: IoreqLayout.size, name: "ioreq pages"))
        events = EventPages(try SharedMemory(mapping: descriptors[4], size: EventPages.size, name: "event pages"))
        doorbell = descriptors[5]
        places = hello.places
        let low = Int(ram.lowSize)
        memory = DomainMemory(
            ram.memory, parts: [(0, 0, low), (GuestRAM.highStart >> 12, low, Int(ram.highSize))], codeMap: ram.codeMap)
        for page in hello.special { memory.add(frames, first: page.frame, offset: page.offset, bytes: 4096) }
        guard let grants = GrantMap(table: frames, offset: 4096, frames: hello.grantFrames, memory: memory) else {
            throw BackendFailure("the hypervisor gave no grant table")
        }
        self.grants = grants
        memory.onCodeWritten = { [unowned self] frame in _ = ask(.modified(frame << 12)) }
    }

    /// Lets the hypervisor start the guest.
    func sayReady() throws(HostFailure) { try socket.send(Array("r".utf8)) }

    /// Whether the hypervisor lives still. Call it when its socket is readable and no answer is awaited.
    var isAlive: Bool { (try? socket.receive()) != nil }
    var descriptor: Int32 { socket.descriptor.number }

    // MARK: events

    /// Has `reactor` wake up for events of the guest.
    func attach(to reactor: Reactor) {
        reactor.watch(doorbell.number) { [doorbell] _ in _ = NonBlocking.read(doorbell.number, limit: 8) }
    }

    /// Calls the ports that the guest has sent on; whether there were any.
    func serveEvents() -> Bool {
        events.takeSignals { number in
            eventsReceived &+= 1
            ports[UInt32(number)]?.onEvent()
        }
    }

    /// False if an event has come meanwhile.
    func prepareToSleep() -> Bool { events.prepareToSleep() }
    func wake() { events.wake() }

    // MARK: EventPorts

    func bind(_ guestPort: UInt32) throws(EventError) -> any EventPort {
        let number = UInt32(ask(.bind(guestPort)))
        guard number > 0 else { throw .badPort }
        // The guest has bound this port twice: the older end is void.
        let port = Port(number, self)
        ports[number] = port
        return port
    }

    private func close(_ port: Port) {
        guard ports[port.number] === port else { return }
        ports[port.number] = nil
        _ = ask(.unbind(port.number))
    }

    private func notify(_ number: UInt32) {
        eventsSent &+= 1
        pages.kick(events.notifyGuest(Int(number)))
    }

    /// The hypervisor's answer; 0 if it did not do what was asked.
    private func ask(_ request: BackendRequest) -> Int {
        guard let json = try? JSONEncoder().encode(request), (try? socket.send(Array(json))) != nil,
            let answer = (try? socket.receive())?.message, answer.count == 2
        else { return 0 }
        return Int(answer[0]) | Int(answer[1]) << 8
    }
}
