// Where an interface's frames go on this host: to a tap on a bridge, to a script's tap, or into a user network.
// Source: docs/decisions/0007.md; xl-network-configuration(5); Xen's docs/misc/vif hotplug scripts (their environment).
// Modelled: taps for root, user networks for everybody, scripts that a config names.
// Quirks: what Xen's own vif-bridge does is done here, without a shell.

internal import DomainConfig
internal import Foundation
internal import Host

enum HostNetwork {
    private static let ownScript = "/etc/xen/scripts/vif-bridge"

    /// Whether a script of the config's sets the tap up.
    static func hasScript(_ interface: NetworkInterface) -> Bool {
        interface.script != ownScript && (try? HostFile.status(interface.script))?.isRegular == true
    }

    /// Whether it gets a tap. Without one it gets a user network.
    static func usesTap(_ interface: NetworkInterface) -> Bool {
        guard isRoot(), interface.hostForwards.isEmpty, interface.bootFile == nil else { return false }
        return hasScript(interface) || FrameSocket.isBridge(interface.bridge)
    }

    /// What the user may not have meant.
    static func note(_ interface: NetworkInterface) -> String? {
        guard interface.namesBridge, !usesTap(interface), interface.hostForwards.isEmpty else { return nil }
        let why =
            FrameSocket.isBridge(interface.bridge)
            ? "only root can use the bridge \(interface.bridge)" : "there is no bridge \(interface.bridge)"
        return "vif \(interface.number): \(why): the interface gets a user network"
    }

    /// The host's name of an interface; `isEmulated`: of the card's that the device model shows.
    static func device(_ interface: NetworkInterface, domid: Int, isEmulated: Bool) -> String {
        (interface.hostDevice ?? "vif\(domid).\(interface.number)") + (isEmulated ? "-emu" : "")
    }

    /// A tap for one of the interface's two forms.
    static func tap(_ interface: NetworkInterface, domid: Int, isEmulated: Bool) throws(HostFailure) -> Descriptor {
        try FrameSocket.tap(
            device(interface, domid: domid, isEmulated: isEmulated),
            bridge: hasScript(interface) ? "" : interface.bridge,
            mtu: interface.mtu)
    }

    /// Runs the interface's script, if it has one of its own, as libxl does.
    static func runScript(
        _ interface: NetworkInterface, domid: Int, isEmulated: Bool, isComing: Bool, store: String, log: String
    ) throws {
        guard usesTap(interface), hasScript(interface) else { return }
        let verb = isEmulated ? isComing ? "add" : "remove" : isComing ? "online" : "offline"
        let device = device(interface, domid: domid, isEmulated: isEmulated)
        var environment = [
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "XENSTORED_PATH=\(store)",
            "XENBUS_PATH=backend/vif/\(domid)/\(interface.number)", "XENBUS_BASE_PATH=backend", "XENBUS_TYPE=vif",
            "script=\(interface.script)", "bridge=\(interface.bridge)", "vif=\(device)",
        ]
        if isEmulated { environment.append("INTERFACE=\(device)") }
        if let address = interface.address { environment.append("ip=\(address)") }
        let file = try HostFile.open(log, [.write, .create, .append])
        let process = try ChildProcess(
            path: interface.script, arguments: [verb, "type_if=\(isEmulated ? "tap" : "vif")"],
            environment: environment, descriptors: [nil, file.number, file.number], deathSignal: 9)
        let end = process.reap(wait: true)
        guard end == .exit(0) || !isComing else {
            throw ToolstackError(
                "\(interface.script) \(verb) for \(device) \(end.map { "\($0)" } ?? "failed"); see \(log)")
        }
    }
}
