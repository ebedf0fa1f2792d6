// The three places in the store where a device shows: front end, back end, and libxl's own note of it.
// Source: `xenstore-ls -fp` captured on Xen 4.17.7; libxl's naming of devices (xen-vbd-interface(7)).
// Modelled: vbd, vif, vfb, vkbd, console. Not modelled: USB, PCI, TPM.
// Quirks: CDs of HVM domains and qcow2 images are of type qdisk, as there; the drive of an HVM guest is emulated too.

public import DomainConfig

/// One device of a domain, before its drivers have met.
public struct DeviceNodes: Equatable, Sendable {
    public typealias Entry = (key: String, value: String)
    public var domid: Int
    /// The name among front ends: vbd, vif.
    public var kind: String
    /// The name among back ends: qdisk is one for vbd.
    public var backendKind: String
    public var number: Int
    public var frontEntries: [String: String]
    public var backEntries: [String: String]
    /// Nodes of the front end that the domain may read only.
    public var readOnlyEntries: [String: String] = [:]

    public var frontend: String {
        kind == "console" ? "/local/domain/\(domid)/console" : "/local/domain/\(domid)/device/\(kind)/\(number)"
    }
    public var backend: String { "/local/domain/0/backend/\(backendKind)/\(domid)/\(number)" }
    public var note: String { "/libxl/\(domid)/device/\(kind)/\(number)" }

    public init(_ domid: Int, _ kind: String, backendKind: String? = nil, _ number: Int) {
        (self.domid, self.kind, self.backendKind, self.number) = (domid, kind, backendKind ?? kind, number)
        (frontEntries, backEntries) = (["backend-id": "0", "state": "1"], ["online": "1", "state": "1"])
        backEntries["frontend-id"] = "\(domid)"
    }

    static func all(
        of config: DomainConfig, services: DomainTree.Services
    ) -> [DeviceNodes] {
        var all: [DeviceNodes] = []
        if services.contains(.disks) { all += config.disks.compactMap { DeviceNodes(disk: $0, of: config) } }
        if services.contains(.interfaces) { all += config.interfaces.map { DeviceNodes(interface: $0, of: config) } }
        let hasFrameBuffer = config.kind != .hvm && config.frameBuffer == true
        if services.contains(.frameBuffer), hasFrameBuffer { all.append(DeviceNodes(frameBufferOf: config)) }
        if services.contains(.keyboard), hasFrameBuffer || config.kind == .hvm {
            all.append(DeviceNodes(config.domid, "vkbd", 0))
        }
        return all
    }

    /// A disk; nil if no guest can have a device of that name.
    public init?(disk: DomainConfig.Disk, of config: DomainConfig) {
        guard let device = VirtualDevice(disk.vdev) else { return nil }
        // A floppy has no PV form.
        guard device.bus != .fd else { return nil }
        let isSimple = disk.format == .raw && !(disk.cdrom && config.kind == .hvm)
        self.init(config.domid, "vbd", backendKind: isSimple ? "vbd" : "qdisk", device.number)
        let type = disk.cdrom ? "cdrom" : "disk"
        frontEntries["device-type"] = type
        frontEntries["trusted"] = "1"
        frontEntries["virtual-device"] = "\(device.number)"
        backEntries.merge([
            "bootable": "1", "dev": disk.vdev, "device-type": type, "discard-enable": disk.readWrite ? "1" : "0",
            "mode": disk.readWrite ? "w" : "r", "removable": disk.cdrom ? "1" : "0", "specification": "xen",
            "type": isSimple ? "phy" : "qdisk",
        ]) { $1 }
        if isSimple {
            backEntries["params"] = disk.target
            backEntries["script"] = "/etc/xen/scripts/block"
        } else {
            let format = disk.format == .raw ? "aio" : disk.format.rawValue
            backEntries["params"] = disk.format == .empty ? "" : "\(format):\(disk.target)"
        }
    }

    public init(interface: NetworkInterface, of config: DomainConfig) {
        self.init(config.domid, "vif", interface.number)
        frontEntries["handle"] = "\(interface.number)"
        frontEntries["mac"] = interface.mac
        frontEntries["trusted"] = "1"
        readOnlyEntries["mtu"] = "\(interface.mtu)"
        let isEmulated = config.kind == .hvm && !interface.isParavirtualOnly
        backEntries.merge([
            "bridge": interface.bridge, "handle": "\(interface.number)", "hotplug-status": "", "mac": interface.mac,
            "script": interface.script, "type": isEmulated ? "vif_ioemu" : "vif",
        ]) { $1 }
        if let address = interface.address { backEntries["ip"] = address }
        if let rate = interface.rate { backEntries["rate"] = rate }
        if let device = interface.hostDevice { backEntries["vifname"] = device }
    }

    init(frameBufferOf config: DomainConfig) {
        self.init(config.domid, "vfb", 0)
        backEntries.merge([
            "opengl": "0", "sdl": "0", "vnc": config.display.vnc ? "1" : "0",
            "vncdisplay": "\(config.display.vncDisplay)", "vnclisten": config.display.vncListen,
            "vncunused": config.display.vncUnused ? "1" : "0",
        ]) { $1 }
        if !config.display.vncPassword.isEmpty { backEntries["vncpasswd"] = config.display.vncPassword }
    }
}

extension DomainTree {
    /// Puts a device in its three places.
    public mutating func add(_ device: DeviceNodes) {
        let (readable, domain) = (Self.readable(device.domid), device.domid)
        let own = ["n\(domain)", "r0"]
        put("/local/domain/\(domain)/device/\(device.kind)", "", readable)
        put(device.frontend, "", own)
        put("\(device.frontend)/backend", device.backend, own)
        for (key, value) in device.frontEntries.sorted(by: <) { put("\(device.frontend)/\(key)", value, own) }
        for (key, value) in device.readOnlyEntries { put("\(device.frontend)/\(key)", value, readable) }
        addBackend(device)
    }

    private mutating func addBackend(_ device: DeviceNodes) {
        let readable = Self.readable(device.domid)
        for (base, permissions) in [(device.backend, readable), (device.note, ["n0"])] {
            put(base, "", permissions)
            put("\(base)/frontend", device.frontend, permissions)
            for (key, value) in device.backEntries.sorted(by: <) { put("\(base)/\(key)", value, permissions) }
        }
        put("\(device.note)/backend", device.backend, ["n0"])
    }

    /// The PV console: its front end is /local/domain/N/console, and mostly Domain-0's.
    mutating func addConsole(_ config: DomainConfig, _ places: Places) {
        let base = "/local/domain/\(config.domid)/console"
        let readable = Self.readable(config.domid)
        var device = DeviceNodes(config.domid, "console", 0)
        device.backEntries["protocol"] = "vt100"
        put(base, "", readable)
        put("\(base)/backend", device.backend, readable)
        put("\(base)/backend-id", "0", ["n\(config.domid)", "r0"])
        put("\(base)/limit", "1048576", readable)
        put("\(base)/output", "pty", readable)
        put("\(base)/type", "xenconsoled", readable)
        if let port = places.consolePort { put("\(base)/port", "\(port)", readable) }
        if let frame = places.consoleFrame { put("\(base)/ring-ref", "\(frame)", readable) }
        put("\(base)/tty", places.consoleTerminal ?? "", readable)
        if let vnc = places.vnc {
            put("\(base)/vnc-listen", vnc.address, readable)
            put("\(base)/vnc-port", "\(vnc.port)", readable)
        }
        addBackend(device)
    }
}
