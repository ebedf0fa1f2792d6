// Running PVH and PV guests against captures of Xen: its tree in the store, the lists, its life.
// Source: output captured on Xen 4.17.7 (Tests/Fixtures/xenstore).
// Covered: `xenstore-ls -fp` node by node, xl list, vcpu-list, block-list, mem-set, hot-plug, shutdown, reboot.
// Quirks: what must differ (names, numbers, frames, host paths) is compared as present, with its permissions.

import Foundation
import Testing

extension Guests {
    @Suite("Guests beside Xen's", .serialized) struct XenComparisonTests {
        /// Nodes whose values are the host's or the start's, and persistent grants, which are not offered here.
        static let varying = [
            "/frontend-id$", "/params$", "/physical-device-path$", "/sectors$", "/ring-ref$", "/tty$", "/domid$",
            "/name$", "/start_time$", "^/local/domain/0/memory/", "/event-channel$", "^/libxl/N/type$",
            "^/tool/xenstored$", "/multi-queue-max-queues$", "^/local/domain/0/.*/feature-persistent$",
        ]
        /// What Xen has and this guest has not: interfaces, loop devices, a Linux as Domain-0, a PV kernel.
        static let absent = [
            "/vif", "^/@", "/51712/(node|physical-device)$", "^/local/domain/0/(control|device-model)",
            "^/vm/UUID/image",
        ]

        static func matches(_ path: String, _ patterns: [String]) -> Bool {
            patterns.contains { path.range(of: $0, options: .regularExpression) != nil }
        }

        /// Path to value and permissions, with the domain's number as N and its UUID as UUID.
        static func nodes(
            _ listing: String, domid: Int, uuid: String, absent: [String] = absent, varying: [String] = varying
        ) -> [String: String] {
            var nodes: [String: String] = [:]
            for line in listing.split(separator: "\n") {
                guard let equals = line.range(of: " = "), let permissions = line.range(of: "   (") else { continue }
                let path = line[..<equals.lowerBound].replacing(uuid, with: "UUID")
                    .replacingOccurrences(
                        of: "^(/local/domain/0/(?:backend/[a-z]+|device-model)|/local/domain|/libxl)/\(domid)(?=/|$)",
                        with: "$1/N",
                        options: .regularExpression)
                if matches(path, absent) { continue }
                var value = line[equals.upperBound..<permissions.lowerBound].replacing(uuid, with: "UUID")
                    .replacingOccurrences(of: "/\(domid)(?=/|\")", with: "/N", options: .regularExpression)
                if matches(path, varying) { value = "" }
                let rights = line[permissions.lowerBound...].replacingOccurrences(
                    of: "([nr])\(domid)\\b", with: "$1N", options: .regularExpression)
                nodes[path] = value + rights
            }
            return nodes
        }

        private func boot(_ name: String, type: String = "pvh", memory: Int = 256, most: Int? = nil) throws -> (
            domain: Domain, console: Console
        ) {
            let disk = try Site.makeDisk("\(name).img", bytes: 16 << 20)
            let domain = try Domain(
                name,
                """
                type='\(type)'
                memory=\(memory)
                maxmem=\(most ?? memory)
                kernel='\(Site.guests.path)/vmlinuz'
                ramdisk='\(Site.guests.path)/initrd.gz'
                cmdline='console=hvc0'
                disk=['file:\(disk.path),xvda,w']
                """)
            let console = try domain.console()
            try console.wait(for: "APUS-GUEST-READY", within: 300)
            return (domain, console)
        }

        @Test("Its tree in the store is Xen's, node by node", arguments: ["pvh", "pv"]) func tree(type: String) throws {
            let (domain, console) = try boot("tree-\(type)", type: type, memory: 128)
            // The disk's driver is a module that loads last.
            try console.wait(for: "guest#")
            // Of a PV domain it tells the kernel, too, and that it is one.
            let isPV = type == "pv"
            try Self.compare(
                domain, with: "pv2", domid: 4, uuid: "5bfac518-8197-4b98-9500-ce520f2b2bde",
                absent: isPV ? Self.absent.filter { !$0.hasSuffix("/image") } : Self.absent,
                varying: isPV ? Self.varying.filter { !$0.hasPrefix("^/libxl") } + ["/image/[a-z]+$"] : Self.varying)
        }

        /// Compares the store with a capture of Xen's, both ways.
        static func compare(
            _ domain: Domain, with capture: String, domid: Int, uuid: String, absent: [String] = absent,
            varying: [String] = varying
        ) throws {
            let path = Site.root.appendingPathComponent("Tests/Fixtures/xenstore/\(capture).txt")
            let theirs = nodes(
                try String(contentsOf: path, encoding: .utf8), domid: domid, uuid: uuid, absent: absent,
                varying: varying)
            setenv("XENSTORED_PATH", Site.run.appendingPathComponent("xenstored/socket").path, 1)
            let listing = try Site.run(URL(fileURLWithPath: "/usr/bin/xenstore-ls"), ["-fp"]).output
            let own = try #require(listing.firstMatch(of: /\/vm\/([-0-9a-f]{36})/)).output.1
            let ours = nodes(listing, domid: domain.id, uuid: String(own), absent: absent, varying: varying)
            #expect(theirs.count > 100)
            for (path, text) in theirs { #expect(ours[path] == text, "\(path)") }
            for path in ours.keys { #expect(theirs[path] != nil, "\(path) is not in Xen's tree") }
        }

        @Test("Lists, balloon and hot-plug work as Xen's do") func lists() throws {
            let (domain, console) = try boot("lists", most: 320)
            try console.wait(for: "guest#")
            let row = try Site.xl("list", domain.name).output.split(separator: "\n").last.map(String.init) ?? ""
            #expect(
                row.wholeMatch(of: /lists-[0-9]+ +[0-9]+ +256 {5}1 {5}[-rb]{6} {2} *[0-9]+\.[0-9]/) != nil, "\(row)")
            let vcpu = try Site.xl("vcpu-list", domain.name).output.split(separator: "\n").last.map(String.init) ?? ""
            #expect(vcpu.hasSuffix("  all / all"))
            let backend = "/local/domain/0/backend/vbd/\(domain.id)/51712"
            let disks = try Site.xl("block-list", domain.name).output.split(separator: "\n").map(String.init)
            #expect(disks.count == 2)
            #expect(disks[0] == "Vdev  BE  handle state evt-ch ring-ref BE-path                       ")
            #expect(disks[1].hasPrefix("51712 0   \(domain.id)") && disks[1].contains(" 4 "))
            #expect(disks[1].contains(backend))
            for target in [200, 310] {
                #expect(try Site.xl("mem-set", domain.name, "\(target)").status == 0)
                let isReached = try Site.eventually {
                    try Site.xl("list", domain.name).output.contains("   \(target)     1")
                }
                #expect(isReached)
            }
            let extra = try Site.makeDisk("extra.img", bytes: 8 << 20)
            #expect(try Site.xl("block-attach", domain.name, "file:\(extra.path),xvdb,w").status == 0)
            #expect(try console.run("cat /sys/block/xvdb/size").contains("16384"))
            #expect(try Site.xl("block-detach", domain.name, "xvdb").status == 0)
            #expect(try console.run("ls /sys/block").contains("xvdb") == false)
        }

        @Test("Reboot gives it a new number, shutdown -w says how it ended") func life() throws {
            let (domain, console) = try boot("life")
            try console.wait(for: "guest#")
            let reboot = try Site.xl("reboot", "-w", domain.name)
            #expect(reboot.status == 0)
            #expect(
                reboot.output == "Waiting for 1 domains\nDomain \(domain.id) has been shut down, reason code 1\n")
            let (number, path) = try domain.successor()
            #expect(Int(number).map { $0 > domain.id } == true)
            let next = try Console(path)
            next.send("\n")
            try next.wait(for: "guest#", within: 120)
            let shutdown = try Site.xl("shutdown", "-w", domain.name)
            #expect(shutdown.output == "Waiting for 1 domains\nDomain \(number) has been shut down, reason code 0\n")
            // As on Xen, what is left of it goes just after that.
            #expect(domain.isGone())
        }
    }
}
