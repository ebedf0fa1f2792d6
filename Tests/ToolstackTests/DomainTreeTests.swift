// Tests of what the store says about a domain.
// Source: `xenstore-ls -fp` captured on Xen 4.17.7 of three running domains, with the configs they were made from.
// Covered: every node the toolstack writes, its value and its permissions, in both directions.
// Quirks: what drivers write is left out by name; states and host paths are compared as present only.

import DomainConfig
import Foundation
import Testing

@testable import Toolstack

@Suite("tree of a domain in the store") struct DomainTreeTests {
    /// Nodes that drivers of guest or host write, and what Domain-0 has for itself.
    private static let drivers = [
        "/feature-(?!poweroff|reboot|suspend|s3|s4)",
        "/domain/[0-9]+/device/.*(ring-ref|event-channel-?[rt]?x?|protocol)$",
        "/page-g?ref$", "/request-", "/multi-queue-", "/xdp-headroom$", "/discard-(alignment|granularity|secure)$",
        "/backend/.*/(hotplug-status|info|max-ring-page-order|node|physical-.*|sector-size|sectors)$",
        "/domain/0/(control|domid|name|memory)(/|$)", "/device-model/[0-9]+/backends", "/device-model/0",
        "^/(tool|@[a-z]*Domain|local/pool)",
    ]
    /// Nodes that differ from start to start: the value is not compared.
    private static let varying = [
        "/state$", "/control/feature-", "/ring-ref$", "/tty$", "/device-model-pid$", "/start_time$",
    ]

    private func captured(_ name: String) throws -> [String: String] {
        let path = fixtures.appendingPathComponent("xenstore/\(name).txt")
        return nodes(try String(contentsOf: path, encoding: .utf8).split(separator: "\n").map(String.init))
    }

    /// Path to value and permissions, without what drivers write.
    private func nodes(_ lines: [String]) -> [String: String] {
        var nodes: [String: String] = [:]
        for line in lines {
            guard let equals = line.range(of: " = ") else { continue }
            let path = String(line[..<equals.lowerBound])
            let matches = { (pattern: String) in path.range(of: pattern, options: .regularExpression) != nil }
            if Self.drivers.contains(where: matches) && !path.hasSuffix("suspend/event-channel") { continue }
            let text = String(line[equals.upperBound...])
            nodes[path] = Self.varying.contains(where: matches) ? String(text.split(separator: "(").last ?? "") : text
        }
        return nodes
    }

    private func config(_ name: String, domid: Int, uuid: String) throws -> DomainConfig {
        let path = fixtures.appendingPathComponent("xenstore/\(name).cfg")
        let reading = DomainConfig.read(ConfigFile([UInt8](try Data(contentsOf: path)), source: name))
        var config = try #require(reading.config)
        (config.domid, config.uuid) = (domid, uuid)
        return config
    }

    @Test(
        "the tree of a domain is Xen's",
        arguments: [
            ("pv1", 1, "5294d373-7171-421f-bd6c-35bb2352bcf4"), ("pv2", 4, "5bfac518-8197-4b98-9500-ce520f2b2bde"),
            ("hvm2", 3, "991c8a0b-7870-49fe-b56d-908b8a4eeb98"),
        ])
    func tree(name: String, domid: Int, uuid: String) throws {
        var config = try config(name, domid: domid, uuid: uuid)
        // The captured domain has a Cirrus card with 8 MiB.
        config.display.videoMemory = 8
        var places = DomainTree.Places()
        (places.storePort, places.storeFrame, places.consolePort, places.consoleFrame) = (1, 7, 2, 8)
        places.consoleTerminal = "/dev/pts/0"
        if name != "pv2" { (places.deviceModel, places.vnc) = (365, ("127.0.0.1", 5900)) }
        if name == "hvm2" { places.serialTerminal = "/dev/pts/1" }
        let ours = nodes(DomainTree(config, places: places).listing)
        var theirs = try captured(name)
        if name != "hvm2" {
            // A PV domain of Apus has no device model.
            theirs = theirs.filter { !$0.key.hasPrefix("/local/domain/0/device-model") }
        }
        #expect(theirs.count > 100)
        for (path, text) in theirs { #expect(ours[path] == text, "\(path)") }
        for path in ours.keys { #expect(theirs[path] != nil, "\(path) is not in Xen's tree") }
    }

    @Test("devices without a back end do not show")
    func services() throws {
        let config = try config("pv1", domid: 1, uuid: "5294d373-7171-421f-bd6c-35bb2352bcf4")
        let tree = DomainTree(
            config, services: [.console, .disks], places: DomainTree.Places())
        #expect(tree["/local/domain/1/device/vbd/51712/state"] == "1")
        #expect(tree["/local/domain/1/console/type"] == "xenconsoled")
        for name in ["vif", "vfb", "vkbd"] { #expect(tree["/local/domain/1/device/\(name)"] == nil) }
    }

    @Test("parents come before children, and all above a domain is Domain-0's")
    func order() throws {
        let config = try config("pv1", domid: 1, uuid: "5294d373-7171-421f-bd6c-35bb2352bcf4")
        let tree = DomainTree(config, places: DomainTree.Places())
        var seen: Set<String> = ["/"]
        for node in tree.nodes {
            #expect(seen.contains(DomainTree.parent(of: node.path)), "\(node.path)")
            seen.insert(node.path)
        }
        for path in ["/local", "/local/domain", "/libxl", "/vm", "/local/domain/0/backend/vbd/1"] {
            #expect(tree.node(path)?.permissions == ["n0"], "\(path)")
        }
    }

    @Test(
        "device numbers",
        arguments: [
            ("xvda", 51712), ("xvdb", 51728), ("xvda2", 51714), ("hda", 768), ("hdb", 832), ("hdc", 5632),
            ("sda1", 2049), ("xvdq", 268_439_552),
        ])
    func numbers(name: String, number: Int) { #expect(VirtualDevice(name)?.number == number) }

    @Test("an interface without MAC has one of Xen's range that stays")
    func addresses() throws {
        let file = ConfigFile(
            Array("name='a'\nkernel='/k'\nvif=['','bridge=br1','mac=00:16:3E:46:B7:45']".utf8), source: "")
        let specifications = DomainConfig.read(file).interfaces
        let make = {
            try specifications.enumerated().map { try NetworkInterface($0.element, number: $0.offset, uuid: "u") }
        }
        let interfaces = try make()
        #expect(try interfaces == make())
        #expect(interfaces.count == 3)
        #expect(Set(interfaces.map(\.mac)).count == 3)
        for interface in interfaces { #expect(interface.mac.wholeMatch(of: /00:16:3e(:[0-9a-f]{2}){3}/) != nil) }
        #expect(interfaces[1].bridge == "br1")
        #expect(interfaces[2].mac == "00:16:3e:46:b7:45")
    }
}
