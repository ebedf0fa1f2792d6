// The virtual disks of one domain: found in the store, opened, served, and let go.
// Source: the nodes libxl writes for a disk (docs/misc/xenstore-paths.pandoc); Linux's xen-blkback.
// Modelled: raw images and block devices, disks and CDs, hot-plug. Not modelled: image formats, hotplug scripts.
// Quirks: back ends of kind "qdisk" are served like "vbd": their parameters name the format first.

internal import BlockBackend
internal import Host
internal import Rings
internal import Storage
internal import XenStoreClient

/// All vbds of a domain. Everything happens on the reactor's thread.
final class BlockDevices {
    private let base: String
    private let store: StoreClient
    private let link: HypervisorLink
    private let reactor: Reactor
    private let limits: BlockLimits
    /// Disks that the device model has until the guest unplugs them.
    private let isEmulated: (String) -> Bool
    private var devices: [String: BlockBackend] = [:]
    private var busy: Set<String> = []
    var onReport: (String) -> Void = { _ in }

    /// `kind`: the name among back ends, "vbd" or "qdisk". `isEmulated`: by the name in the config, hda.
    init(
        _ kind: String, domid: Int, vcpus: Int, store: StoreClient, link: HypervisorLink, reactor: Reactor,
        isEmulated: @escaping (String) -> Bool
    ) throws(StoreFailure) {
        base = "/local/domain/0/backend/\(kind)/\(domid)"
        (self.store, self.link, self.reactor, self.isEmulated) = (store, link, reactor, isEmulated)
        limits = BlockLimits(queues: UInt32(max(1, vcpus)))
        _ = try store.watch(base) { [weak self] path in self?.look(path) }
    }

    /// Serves what waits; whether there is more.
    func turn() -> Bool {
        let now = busy
        busy = []
        for name in now where devices[name]?.turn() == true { busy.insert(name) }
        return !busy.isEmpty
    }

    func stop() {
        for device in devices.values { device.stop() }
        devices = [:]
    }

    private func look(_ path: String) {
        // Only a device that comes is of interest: what changes in one is its own matter.
        if path != base, let name = name(in: path), devices[name] != nil { return }
        do {
            for name in try store.directory(base) ?? [] where devices[name] == nil { try open(name) }
        } catch { onReport("\(base): \(error)") }
    }

    private func name(in path: String) -> String? {
        guard path.hasPrefix(base + "/") else { return nil }
        return path.dropFirst(base.count + 1).split(separator: "/").first.map(String.init)
    }

    private func open(_ name: String) throws(StoreFailure) {
        let path = "\(base)/\(name)"
        // The toolstack writes all nodes at once; one whose state is missing is on its way out.
        guard let parameters = try store.read("\(path)/params"), let state = try store.read("\(path)/state"),
            XenbusState(text: state) == .initialising
        else { return }
        let target = Self.target(parameters)
        let isCDROM = try store.read("\(path)/device-type") == "cdrom"
        let isReadOnly = try store.read("\(path)/mode") != "w"
        guard !target.isEmpty else { return }
        let device = try store.read("\(path)/dev") ?? ""
        let isPlain = isCDROM && base.contains("/qdisk/")
        let isShared = !isCDROM && isEmulated(device)
        do {
            let medium = try DiskImage(
                target, for: isCDROM ? .cdrom : .disk, readOnly: isReadOnly, isShared: isShared, on: reactor)
            let device = BlockBackend(
                BlockDescription(path: path, isCDROM: isCDROM, isPlain: isPlain, limits: limits), medium: medium,
                store: store, grants: link.grants, ports: link)
            device.onWork = { [weak self] in _ = self?.busy.insert(name) }
            device.onReport = { [weak self] in self?.onReport($0) }
            device.onEnd = { [weak self] in _ = self?.devices.removeValue(forKey: name) }
            devices[name] = device
            if !isPlain { try store.write("\(path)/physical-device-path", target) }
            try store.write("\(path)/hotplug-status", "connected")
            try device.start()
        } catch let error as ImageFailure {
            onReport("disk \(target): \(error)")
            try store.write("\(path)/hotplug-error", "\(error)")
            try store.write("\(path)/hotplug-status", "error")
        } catch let error as StoreFailure {
            devices[name] = nil
            throw error
        } catch { devices[name] = nil }
    }

    /// The file or device that "params" names: "/path", "aio:/path", "phy:/path", "file:/path".
    private static func target(_ parameters: String) -> String {
        guard !parameters.hasPrefix("/"), let colon = parameters.firstIndex(of: ":") else { return parameters }
        return String(parameters[parameters.index(after: colon)...])
    }
}
