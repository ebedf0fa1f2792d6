// A domain's interfaces on the host's side: taps and user networks, made before anything of the guest runs.
// Source: docs/decisions/0007.md.
// Modelled: two ends for an interface that is emulated and PV at once, attaching while the domain runs.
// Quirks: an end goes with the descriptors that are passed on: what nobody holds any more is gone from the host.

internal import DomainConfig
internal import Foundation
internal import Host

extension Monitor {
    /// What goes to the process of user networks.
    private struct UserInterface: Codable {
        var number: Int
        var hostName: String
        var forwards: [String]
        var bootFile: String?
    }

    /// Connects all interfaces with the host; the emulated cards' ends, in their order.
    func makeNetworks(_ service: DomainService) throws -> [Descriptor] {
        var cards: [Descriptor] = []
        for interface in config.interfaces {
            let isCard = config.kind == .hvm && !interface.isParavirtualOnly
            let ends = try connect(interface, isCard: isCard, hasDriver: config.kind != .hvm || config.xenPlatformPCI)
            if let card = ends.card { cards.append(card) }
            if let driver = ends.driver { try service.connect(interface: interface.number, driver) }
        }
        return cards
    }

    private func connect(
        _ interface: NetworkInterface, isCard: Bool, hasDriver: Bool
    ) throws -> (card: Descriptor?, driver: Descriptor?) {
        if HostNetwork.usesTap(interface) {
            return (
                isCard ? try HostNetwork.tap(interface, domid: record.domid, isEmulated: true) : nil,
                hasDriver ? try HostNetwork.tap(interface, domid: record.domid, isEmulated: false) : nil
            )
        }
        let card = isCard ? try FrameSocket.pair() : nil
        let driver = hasDriver ? try FrameSocket.pair() : nil
        let message = UserInterface(
            number: interface.number, hostName: record.name, forwards: interface.hostForwards,
            bootFile: interface.bootFile)
        try ask(message, [card?.1.number, driver?.1.number].compactMap { $0 })
        return (card?.0, driver?.0)
    }

    /// Has the process of user networks take an interface, which it refuses if a port of the host's is taken.
    private func ask(_ interface: UserInterface, _ descriptors: [Int32]) throws {
        let networks = try openUserNetworks()
        try networks.send([UInt8](try JSONEncoder().encode(interface)), descriptors: descriptors)
        guard let answer = try networks.receive() else {
            throw ToolstackError("the process of user networks has ended; its log is \(directory.log(of: "network"))")
        }
        let refusals = try JSONDecoder().decode([String].self, from: Data(answer.message))
        guard refusals.isEmpty else {
            throw ToolstackError("vif \(interface.number): \(refusals.joined(separator: "; "))")
        }
    }

    /// The way to the process of user networks, which is started with the first of them.
    private func openUserNetworks() throws -> MessageSocket {
        if let userNetworks { return userNetworks }
        let (ours, theirs) = try MessageSocket.pair()
        try start(.network, [theirs.descriptor.number])
        memberCount += 1
        userNetworks = ours
        return ours
    }

    /// Runs the scripts that the config names, once the store has the domain's tree, or when it is about to go.
    func runScripts(isComing: Bool) throws {
        for interface in config.interfaces {
            if config.kind == .hvm, !interface.isParavirtualOnly {
                try runScript(interface, isEmulated: true, isComing: isComing)
            }
            if config.kind != .hvm || config.xenPlatformPCI {
                try runScript(interface, isEmulated: false, isComing: isComing)
            }
        }
    }

    private func runScript(_ interface: NetworkInterface, isEmulated: Bool, isComing: Bool) throws {
        try HostNetwork.runScript(
            interface, domid: record.domid, isEmulated: isEmulated, isComing: isComing, store: run.storeSocket,
            log: directory.log(of: "network"))
    }

    /// `xl network-attach`: gives the back ends a new interface's end. Its nodes are the caller's matter.
    func attach(_ description: String?) throws {
        guard phase == .running, let service, let description,
            let interface = try? JSONDecoder().decode(NetworkInterface.self, from: Data(description.utf8))
        else { throw ToolstackError("the domain takes no interface now") }
        guard config.kind != .hvm || config.xenPlatformPCI else {
            throw ToolstackError("the domain has no PV drivers (xen_platform_pci = 0)")
        }
        let ends = try connect(interface, isCard: false, hasDriver: true)
        if let driver = ends.driver { try service.connect(interface: interface.number, driver) }
        try runScript(interface, isEmulated: false, isComing: true)
    }
}
