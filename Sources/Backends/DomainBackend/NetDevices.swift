// The virtual interfaces of one domain: found in the store, given a port of the host's, served, and let go.
// Source: the nodes libxl writes for an interface; docs/decisions/0007.md for ports.
// Modelled: any number of interfaces, hot-plug.
// Quirks: node and port come by different ways, in any order; an interface starts once both are there.

internal import Ethernet
internal import Foundation
internal import Host
internal import NetBackend
internal import XenStoreClient

/// All vifs of a domain. Everything happens on the reactor's thread.
final class NetDevices {
    /// The monitor's word about a port, whose descriptor comes with it.
    struct Offer: Codable {
        var interface: Int
        init?(_ message: [UInt8]) {
            guard let offer = try? JSONDecoder().decode(Offer.self, from: Data(message)) else { return nil }
            self = offer
        }
    }

    private let base: String
    private let vcpus: Int
    private let store: StoreClient
    private let link: HypervisorLink
    private let reactor: Reactor
    private var ports: [Int: FramePort] = [:]
    private var devices: [Int: NetBackend] = [:]
    /// The same, to be looked at again and again.
    private var all: [NetBackend] = []
    var onReport: (String) -> Void = { _ in }

    init(domid: Int, vcpus: Int, store: StoreClient, link: HypervisorLink, reactor: Reactor) throws(StoreFailure) {
        base = "/local/domain/0/backend/vif/\(domid)"
        (self.vcpus, self.store, self.link, self.reactor) = (vcpus, store, link, reactor)
        _ = try store.watch(base) { [weak self] path in self?.look(path) }
    }

    /// The host's end of interface `number` is there.
    func connect(_ number: Int, _ descriptor: Descriptor) {
        let port = FramePort(descriptor)
        port.listen(false)
        port.attach(to: reactor)
        ports[number] = port
        look(base)
    }

    /// Serves what waits; whether there is more.
    func turn() -> Bool {
        var isBusy = false
        for device in all where device.turn() { isBusy = true }
        return isBusy
    }

    /// Has all guests' rings send events again; false if there is something to do already.
    func prepareToSleep() -> Bool {
        var isQuiet = true
        for device in all where !device.prepareToSleep() { isQuiet = false }
        return isQuiet
    }

    /// Changes with everything that is served.
    var activity: UInt64 { all.reduce(0) { $0 &+ $1.activity } }

    /// When the first rate allows more.
    var deadline: UInt64? { all.compactMap(\.deadline).min() }

    /// What each has done so far.
    var figures: [BackendFigures.Interface] {
        devices.sorted { $0.key < $1.key }.map { number, device in
            let counted = device.statistics
            return BackendFigures.Interface(
                number: number, state: device.device.state.text, sentFrames: counted.sentFrames,
                sentBytes: counted.sentBytes, receivedFrames: counted.receivedFrames,
                receivedBytes: counted.receivedBytes, sendErrors: counted.sendErrors, dropped: counted.dropped)
        }
    }

    /// Writes all states again, of which a store that died may not have heard.
    func restate() throws(StoreFailure) {
        for interface in all { try interface.device.restate() }
    }

    func serves(_ path: String) -> Bool { number(in: path).map { devices[$0] != nil } ?? false }

    private func number(in path: String) -> Int? {
        guard path.hasPrefix(base + "/") else { return nil }
        return path.dropFirst(base.count + 1).split(separator: "/").first.flatMap { Int($0) }
    }

    func stop() {
        for device in all { device.stop() }
        (devices, all) = ([:], [])
    }

    private func look(_ path: String) {
        // Only an interface that comes is of interest: what changes in one is its own matter.
        if serves(path) { return }
        do {
            for name in try store.directory(base) ?? [] {
                guard let number = Int(name), devices[number] == nil, let port = ports[number] else { continue }
                try open(number, port)
            }
        } catch { onReport("\(base): \(error)") }
    }

    private func open(_ number: Int, _ port: FramePort) throws(StoreFailure) {
        let path = "\(base)/\(number)"
        guard let state = try store.read("\(path)/state"), XenbusState(text: state) == .initialising else { return }
        let device = NetBackend(
            path, port: port, store: store, grants: link.grants, ports: link, queues: vcpus,
            now: monotonicNanoseconds)
        device.device.onReport = { [weak self] in self?.onReport($0) }
        device.device.onEnd = { [weak self, unowned device] in self?.forget(number, device) }
        devices[number] = device
        all.append(device)
        try device.start()
    }

    private func forget(_ number: Int, _ device: NetBackend) {
        device.stop()
        devices[number] = nil
        ports[number] = nil
        all.removeAll { $0 === device }
    }
}
