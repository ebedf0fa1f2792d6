// xl network-attach, network-detach, network-list: network interfaces of a running domain.
// Source: xl(1), xl-network-configuration(5); columns captured on Xen 4.17.7.
// Modelled: the store's side, and the monitor's, which connects an interface with the host.
// Quirks: as with xl, a MAC address names an interface too, and a guest that keeps one loses it after ten seconds.

internal import DomainConfig
internal import Foundation
internal import XenStoreClient

extension Command {
    static let networkAttach = Command(
        name: "network-attach", summary: "Create a new virtual network device",
        usage: "DOMAIN [mac=MAC] [bridge=NAME] [ip=ADDRESS] [script=FILE] [vifname=NAME] [rate=RATE] [model=NAME] "
            + "[mtu=NUMBER] [type=TYPE]", leastOperands: 1,
        run: { session, options throws(ToolstackError) in
            let record = try session.running(options.operands[0])
            let devices = try session.withStore { (store) throws(StoreFailure) in
                try store.devices("vif", of: record.domid)
            }
            let taken = Set(devices.map(\.number))
            let free = (0...taken.count).first { !taken.contains($0) } ?? 0
            let interface: NetworkInterface
            do throws(DiskError) {
                let specification = try NetworkSpecification(options.operands.dropFirst().joined(separator: ","))
                for name in specification.unknown { throw DiskError("unrecognized argument `\(name)'") }
                interface = try NetworkInterface(specification, number: free, uuid: record.uuid)
            } catch {
                throw ToolstackError(error.message, exitCode: 1, isVerbatim: true)
            }
            guard let config = try? session.run.directory(of: record.domid).readConfig() else {
                throw ToolstackError("the domain's config is gone")
            }
            let device = DeviceNodes(interface: interface, of: config)
            if session.dryRun {
                for line in device.backEntries.sorted(by: <) { session.print("\(line.key) = \(line.value)\n") }
                return 0
            }
            if taken.contains(interface.number) {
                throw ToolstackError("device vif \(interface.number) is there already")
            }
            if let note = HostNetwork.note(interface) { session.complain(note) }
            guard let json = try? JSONEncoder().encode(interface) else { throw ToolstackError("no interface") }
            let target = String(decoding: json, as: UTF8.self)
            _ = try Control.ask(
                session.run.directory(of: record.domid).monitor, ControlRequest("network-attach", target: target))
            try session.attach(device, called: "vif \(interface.number)", to: record)
            try session.change(record) { $0.interfaces.append(interface) }
            return 0
        })

    static let networkDetach = Command(
        name: "network-detach", summary: "Destroy a domain's virtual network device", usage: "DOMAIN NUMBER|MAC",
        leastOperands: 2, mostOperands: 2,
        run: { session, options throws(ToolstackError) in
            let record = try session.running(options.operands[0])
            let name = options.operands[1].lowercased()
            let devices = try session.withStore { (store) throws(StoreFailure) in
                try store.devices("vif", of: record.domid)
            }
            guard let device = devices.first(where: { String($0.number) == name || $0.back["mac"] == name }) else {
                throw ToolstackError("Unknown device \(name).", isVerbatim: true)
            }
            try session.detach(
                device, kind: "vif", called: "vif \(device.number)", from: record,
                consent: session.force ? .notAsked : .awaited)
            try session.change(record) { config in config.interfaces.removeAll { $0.number == device.number } }
            return 0
        })

    static let networkList = Command(
        name: "network-list", summary: "List virtual network interfaces for a domain", usage: "[--json] DOMAIN ...",
        options: [("--json", "the rows as JSON")], specifications: [.init(nil, "json")], leastOperands: 1,
        run: { session, options throws(ToolstackError) in
            try listDevices(
                "vif", session, options,
                header:
                    "Idx BE Mac Addr.         handle state evt-ch   tx-/rx-ring-ref BE-path                       \n",
                row: { _, device in
                    let number = { (key: String) in device.frontNumber(key) }
                    return "\(String(device.number).padded(3)) 0  \((device.back["mac"] ?? "").padded(17))"
                        + "\(device.number.padded(6)) \((device.state ?? -1).padded(5)) "
                        + "\(number("event-channel").padded(6)) \(number("tx-ring-ref").padded(5))/"
                        + "\(String(number("rx-ring-ref")).padded(11)) \(device.backend.padded(30))\n"
                },
                json: { domid, device in
                    .object([
                        ("domid", .number(domid)), ("handle", .number(device.number)), ("backendDomid", .number(0)),
                        ("mac", .string(device.back["mac"] ?? "")), ("state", .number(device.state ?? -1)),
                        ("bridge", .string(device.back["bridge"] ?? "")), ("backend", .string(device.backend)),
                    ])
                })
        })
}
