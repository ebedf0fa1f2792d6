// The emulated network cards of a board, each on its PCI function and with its port.
// Source: docs/decisions/0007.md; identities as QEMU's cards have them; Xen's unplug protocol for cards.
// Modelled: back-pressure both ways, unplugging, a link that is down once the host's end is gone, boot ROMs.
// Quirks: a boot ROM is only there if the domain may boot from the network: it costs seconds at each start.

public import DomainConfig
public import Ethernet
internal import Host
internal import Machine
internal import NetworkCards
internal import PCI

/// One card and what it is plugged into.
final class NetworkSocket {
    private let card: any NetworkCard
    private let port: FramePort
    private let memory: GuestMemory
    private let now: () -> Instant
    /// A frame that waits for the guest's buffers.
    private var waiting: Frame?

    init(_ card: any NetworkCard, _ port: FramePort, memory: GuestMemory, now: @escaping () -> Instant) {
        (self.card, self.port, self.memory, self.now) = (card, port, memory, now)
        port.onFrame = { [unowned self] in pump() }
        port.onRoom = { [unowned self] in
            card.advance(to: self.now())
            card.resume()
            pump()
        }
        port.onEnd = { card.setLink(false) }
        pump()
    }

    /// Gives the card frames until it has no buffers, or there are none.
    func pump() {
        card.advance(to: now())
        while card.hasRoom, let frame = waiting ?? port.receive() {
            waiting = card.receive(frame) ? nil : frame
            if waiting != nil { break }
        }
        port.listen(waiting == nil && card.hasRoom)
        card.settle()
        memory.flush()
    }

    func unplug() { port.detach() }
}

extension PCBoard {
    /// Plugs the config's cards in, in its order. `roms`: boot ROMs by card; ports are attached to a reactor already.
    public func plugNetwork(_ ports: [FramePort], roms: [NetworkInterface.Model: [UInt8]]) {
        for (interface, port) in zip(config.emulatedInterfaces, ports) {
            switch interface.card {
            case .e1000: plugE1000(interface, port, rom: roms[.e1000] ?? [])
            case .ne2000PCI: plugNE2000(interface, port, rom: roms[.ne2000PCI] ?? [])
            case .ne2000ISA: plugISA(interface, port)
            }
        }
    }

    /// 8086:100E.
    private func plugE1000(_ interface: NetworkInterface, _ port: FramePort, rom: [UInt8]) {
        let function = makeFunction(vendor: 0x8086, device: 0x100E, revision: 3)
        let card = E1000(mac: interface.macBytes, line: function.interrupt, dma: function.dma) { frame in
            port.send(frame) != .full
        }
        let slot = board.attachUnmapped("e1000-\(interface.number)", card)
        let bars = [
            BaseAddress(0, .memory, size: E1000.memoryBytes, target: (slot, E1000.RegionIndex.memory)),
            BaseAddress(1, .io, size: E1000.portBytes, target: (slot, E1000.RegionIndex.ports)),
        ]
        let device = plug(function, slot.name, bars, rom: rom)
        let socket = connect(card, port) { [pci] in pci.detach(device: device) }
        card.onRoom = { [weak socket] in socket?.pump() }
    }

    /// 10EC:8029.
    private func plugNE2000(_ interface: NetworkInterface, _ port: FramePort, rom: [UInt8]) {
        let function = makeFunction(vendor: 0x10EC, device: 0x8029, revision: 0)
        let card = NE2000(mac: interface.macBytes, isPCI: true, line: function.interrupt) { frame in
            port.send(frame) != .full
        }
        let slot = board.attachUnmapped("ne2000-\(interface.number)", card)
        let bars = [BaseAddress(0, .io, size: NE2000.portBytes, target: (slot, 0))]
        let device = plug(function, slot.name, bars, rom: rom)
        let socket = connect(card, port) { [pci] in pci.detach(device: device) }
        card.onRoom = { [weak socket] in socket?.pump() }
    }

    /// The ISA card: one at 0x300 with interrupt 10; the next ones 32 ports up, with the same interrupt.
    private func plugISA(_ interface: NetworkInterface, _ port: FramePort) {
        let base = UInt64(0x300 + 0x20 * isaCards)
        isaCards += 1
        let wire = lines.input(10)
        let card = NE2000(mac: interface.macBytes, isPCI: false, base: base, line: wire) { frame in
            port.send(frame) != .full
        }
        let slot = board.attach("ne2000-\(interface.number)", card)
        let socket = connect(card, port) { [board] in
            board.ports.unmap(slot, region: 0)
            wire.drive(false)
        }
        card.onRoom = { [weak socket] in socket?.pump() }
    }

    private func makeFunction(vendor: UInt16, device: UInt16, revision: UInt8) -> PCIFunction {
        var identity = PCIIdentity(vendor: vendor, device: device, classCode: 0x02_0000, revision: revision)
        identity.interruptPin = 1
        return PCIFunction(identity, on: board, memory: memory)
    }

    /// The PCI device that it has become.
    private func plug(_ function: PCIFunction, _ name: String, _ bars: [BaseAddress], rom: [UInt8]) -> Int {
        let device = takeDevice()
        pci.attach("\(name)-function", function, device: device, on: board)
        var bars = bars
        if !rom.isEmpty {
            let image = ROMImage(rom)
            let slot = board.attachUnmapped("\(name)-rom", image)
            bars.append(BaseAddress(0, .rom, size: image.size, target: (slot, 0)))
        }
        function.connect(bars)
        return device
    }

    private func connect(
        _ card: any NetworkCard, _ port: FramePort, remove: @escaping () -> Void
    ) -> NetworkSocket {
        let socket = NetworkSocket(card, port, memory: memory) { [unowned self] in now }
        networkCards.append {
            socket.unplug()
            remove()
        }
        return socket
    }
}

extension DomainConfig {
    /// Interfaces that the board shows as cards.
    var emulatedInterfaces: [NetworkInterface] { interfaces.filter { kind == .hvm && !$0.isParavirtualOnly } }
}
