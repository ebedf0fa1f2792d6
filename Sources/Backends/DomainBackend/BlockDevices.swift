// The virtual disks of one domain: found in the store, given their media, served, and let go.
// Source: the nodes libxl writes for a disk (docs/misc/xenstore-paths.pandoc); Linux's xen-blkback.
// Modelled: raw and qcow2 images and block devices, disks and CDs, hot-plug. Not modelled: hotplug scripts.
// Quirks: back ends of kind "qdisk" are served like "vbd". Node and medium come by different ways, in any order.

internal import BlockBackend
internal import Rings
internal import XenStoreClient

/// All vbds of a domain. Everything happens on the reactor's thread.
final class BlockDevices {
    private let base: String
    private let store: StoreClient
    private let link: HypervisorLink
    private let media: WaitingMedia
    private let limits: BlockLimits
    private var devices: [String: BlockBackend] = [:]
    /// The same, to be looked at again and again.
    private var all: [BlockBackend] = []
    var onReport: (String) -> Void = { _ in }

    /// `kind`: the name among back ends, "vbd" or "qdisk".
    init(
        _ kind: String, domid: Int, vcpus: Int, store: StoreClient, link: HypervisorLink, media: WaitingMedia
    ) throws(StoreFailure) {
        base = "/local/domain/0/backend/\(kind)/\(domid)"
        (self.store, self.link, self.media) = (store, link, media)
        limits = BlockLimits(queues: UInt32(max(1, vcpus)))
        _ = try store.watch(base) { [weak self] path in self?.look(path) }
    }

    /// Serves what waits; whether there is more.
    func turn() -> Bool {
        var isBusy = false
        for device in all where device.turn() { isBusy = true }
        return isBusy
    }

    /// Has all guests' rings send events again; false if there is something to do already.
    func prepareToSleep() -> Bool { all.allSatisfy { $0.prepareToSleep() } }

    /// Whether a medium will be done with something soon.
    var isWaiting: Bool { all.contains { $0.isWaiting } }

    /// Changes with everything that is served.
    var activity: UInt64 { all.reduce(0) { $0 &+ $1.activity } }

    /// What each has done so far.
    var figures: [BackendFigures.Device] { devices.compactMap { name, device in Int(name).map { device.figures($0) } } }

    /// Writes all states again, of which a store that died may not have heard.
    func restate() throws(StoreFailure) {
        for disk in all { try disk.device.restate() }
    }

    func serves(_ path: String) -> Bool { name(in: path).map { devices[$0] != nil } ?? false }

    func stop() {
        for device in devices.values { device.stop() }
        (devices, all) = ([:], [])
    }

    /// Looks for a device whose medium has come.
    func look() { look(base) }

    private func look(_ path: String) {
        // Only a device that comes is of interest: what changes in one is its own matter.
        if path != base, let name = name(in: path), devices[name] != nil { return }
        do {
            for name in try store.directory(base) ?? [] where devices[name] == nil {
                if let number = Int(name), media.isThere(for: number) { try open(name, number) }
            }
        } catch { onReport("\(base): \(error)") }
    }

    private func name(in path: String) -> String? {
        guard path.hasPrefix(base + "/") else { return nil }
        return path.dropFirst(base.count + 1).split(separator: "/").first.map(String.init)
    }

    private func open(_ name: String, _ number: Int) throws(StoreFailure) {
        let path = "\(base)/\(name)"
        // The toolstack writes all nodes at once; one whose state is missing is on its way out.
        guard let state = try store.read("\(path)/state"), XenbusState(text: state) == .initialising,
            let (target, medium) = media.take(for: number)
        else { return }
        let isCDROM = try store.read("\(path)/device-type") == "cdrom"
        let isPlain = isCDROM && base.contains("/qdisk/")
        let disk = BlockBackend(
            BlockDescription(path: path, isCDROM: isCDROM, isPlain: isPlain, limits: limits), medium: medium,
            store: store, grants: link.grants, ports: link)
        disk.device.onReport = { [weak self] in self?.onReport($0) }
        disk.device.onEnd = { [weak self, unowned disk] in self?.forget(name, disk) }
        devices[name] = disk
        all.append(disk)
        do {
            if !isPlain { try store.write("\(path)/physical-device-path", target) }
            try store.write("\(path)/hotplug-status", "connected")
            try disk.start()
        } catch {
            forget(name, disk)
            throw error
        }
    }

    private func forget(_ name: String, _ device: BlockBackend) {
        devices[name] = nil
        all.removeAll { $0 === device }
    }
}
