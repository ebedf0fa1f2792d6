// The process of a domain's user networks: one libslirp for each interface, in one loop.
// Source: docs/decisions/0007.md; poll(2).
// Modelled: interfaces that come while the domain runs, each with one port or two (emulated card and PV driver).
// Quirks: frames for the guest go to the port that it last sent by, and to all before it has sent.

internal import Ethernet
internal import Foundation
internal import Glibc
public import Host

/// What the monitor says of a new interface; its ports' descriptors come with it.
public struct UserInterface: Codable, Equatable, Sendable {
    public var number: Int
    /// The name that DHCP gives the host.
    public var hostName: String
    public var forwards: [String]
    /// What a boot ROM is told to load.
    public var bootFile: String?
    public init(number: Int, hostName: String, forwards: [String], bootFile: String? = nil) {
        (self.number, self.hostName, self.forwards, self.bootFile) = (number, hostName, forwards, bootFile)
    }
}

/// Ends with its monitor.
public final class UserNetwork {
    /// Frames taken from a port in one go.
    private static let budget = 64
    /// Frames that wait for a guest that takes none; more are lost, as on a wire. As long as a tap's queue (txqueuelen): a
    /// longer one only delays what comes behind a flood.
    private static let mostWaiting = 1000

    private final class Port {
        let socket: FrameSocket
        var waiting: [[UInt8]] = []
        /// The first that has not been sent.
        var first = 0
        var isWaiting: Bool { first < waiting.count }
        init(_ descriptor: Descriptor) { socket = FrameSocket(descriptor) }
    }
    private final class Network {
        let slirp: Slirp
        var ports: [Port]
        weak var active: Port?
        init(_ slirp: Slirp, _ ports: [Port]) { (self.slirp, self.ports) = (slirp, ports) }
    }

    private let monitor: MessageSocket
    private let log: (String) -> Void
    private var networks: [Network] = []
    private static let header: [UInt8] = {
        var header = FrameHeader()
        header.isValid = true
        return header.raw
    }()

    public init(monitor: MessageSocket, log: @escaping (String) -> Void) { (self.monitor, self.log) = (monitor, log) }

    public func run(ready: () throws -> Void) throws {
        // What libslirp reads again and again; its other files are of no use to it.
        if !Confinement.keepOnly(["/etc/resolv.conf", "/dev/urandom"]) {
            log("the host's kernel has no Landlock: files can be read")
        }
        try Confinement.userNetwork.enter(as: "network")
        try ready()
        while turn() {}
    }

    /// Waits and serves once; false at the end.
    private func turn() -> Bool {
        var polled = [pollfd(fd: monitor.descriptor.number, events: Int16(POLLIN), revents: 0)]
        var parts: [(ports: Range<Int>, slirp: Range<Int>)] = []
        var timeout: Int32 = 1000
        for network in networks {
            let start = polled.count
            for port in network.ports {
                let events = POLLIN | (port.isWaiting ? POLLOUT : 0)
                polled.append(pollfd(fd: port.socket.descriptor.number, events: Int16(events), revents: 0))
            }
            let middle = polled.count
            let (descriptors, milliseconds) = network.slirp.prepare()
            polled += descriptors
            timeout = min(timeout, milliseconds)
            parts.append((start..<middle, middle..<polled.count))
        }
        let count = unsafe poll(&polled, nfds_t(polled.count), timeout)
        for (network, part) in zip(networks, parts) {
            network.slirp.serve(polled[part.slirp], failed: count < 0)
            for (port, state) in zip(network.ports, polled[part.ports]) where state.revents != 0 {
                flush(port)
                receive(from: port, for: network)
            }
            network.ports.removeAll { $0.socket.isGone }
        }
        networks.removeAll { $0.ports.isEmpty }
        return polled[0].revents == 0 || hear()
    }

    private func receive(from port: Port, for network: Network) {
        for _ in 0..<Self.budget {
            guard let (header, bytes) = port.socket.receive() else { return }
            network.active = port
            network.slirp.input(Frame(bytes, header: FrameHeader(header)).completed().bytes)
        }
    }

    private func send(_ bytes: [UInt8], to port: Port) {
        if !port.isWaiting {
            guard port.socket.send(Self.header, bytes) == .full else { return }
        }
        guard port.waiting.count - port.first < Self.mostWaiting else { return }
        port.waiting.append(bytes)
    }

    private func flush(_ port: Port) {
        while port.first < port.waiting.count {
            guard port.socket.send(Self.header, port.waiting[port.first]) != .full else { break }
            port.first += 1
        }
        if port.first == port.waiting.count || port.first > 1024 {
            port.waiting.removeFirst(port.first)
            port.first = 0
        }
    }

    /// Why ports cannot be forwarded: nothing if all are.
    private func forward(_ ports: [String], by slirp: Slirp) -> [String] {
        ports.compactMap { port in
            do throws(HostFailure) { try slirp.forward(port) } catch { return "\(error)" }
            return nil
        }
    }

    /// Takes an interface from the monitor, which hears why its ports cannot be forwarded; false once that is gone.
    private func hear() -> Bool {
        guard let (message, descriptors) = try? monitor.receive() else { return false }
        guard let interface = try? JSONDecoder().decode(UserInterface.self, from: Data(message)), !descriptors.isEmpty
        else {
            log("a message of the monitor's makes no sense")
            return true
        }
        let slirp = Slirp(hostName: interface.hostName, bootFile: interface.bootFile)
        let network = Network(slirp, descriptors.map { Port($0) })
        slirp.onFrame = { [unowned self, unowned network] frame in
            if let active = network.active { return send(frame, to: active) }
            for port in network.ports { send(frame, to: port) }
        }
        slirp.onComplaint = { [log] in log("vif \(interface.number): \($0)") }
        let refusals = forward(interface.forwards, by: slirp)
        if refusals.isEmpty { networks.append(network) }
        return (try? monitor.send([UInt8](JSONEncoder().encode(refusals)))) != nil
    }
}

extension Confinement {
    /// Sockets of any kind that users may have, and files to read, of which Landlock leaves one.
    static var userNetwork: Confinement { .internet + .reading + .living + .events + .conversation }
}
