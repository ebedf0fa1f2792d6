// Guests on a bridge of their host's: taps, netback and emulated cards with each other.
// Source: docs/decisions/0007.md.
// Covered: two guests of each kind, pings, iperf3 each way without loss, jumbo frames, links down and up.
// Quirks: APUS_TRAFFIC_SECONDS is how long iperf3 sends in each direction.

import Foundation
import Glibc
import Testing

extension Guests {
    @Suite("guests on a bridge", .serialized, .enabled(if: getuid() == 0)) struct BridgeTests {
        /// A guest with its address on the bridge.
        private struct Neighbour {
            let domain: Domain
            let console: Console
            let address: String

            /// Sends by iperf3 to another one; megabits a second that arrived.
            func send(to other: Neighbour, seconds: Int) throws -> Double {
                let said = try console.run("iperf3 -f m -t \(seconds) -c \(other.address)", within: seconds + 60)
                let rate = try #require(
                    said.firstMatch(of: /([\d.]+) Mbits\/sec +receiver/), "\(domain.name): \(said)")
                return Double(rate.1) ?? 0
            }
        }

        private static let trafficSeconds =
            ProcessInfo.processInfo.environment["APUS_TRAFFIC_SECONDS"].flatMap { Int($0) } ?? 2

        /// Gives guests at their shells addresses, and has each answer iperf3.
        private func settle(_ guests: [HostNamespace.Guest]) throws -> [Neighbour] {
            try guests.enumerated().map { index, guest in
                let (domain, console) = try guest.ready()
                let address = "192.168.9.\(index + 2)"
                let up = try console.run("ip link set eth0 mtu 9000 up && ip addr add \(address)/24 dev eth0")
                #expect(up.contains("DONE-0"), "\(domain.name): \(up)")
                #expect(try console.run("iperf3 -s -D").contains("DONE-0"))
                return Neighbour(domain: domain, console: console, address: address)
            }
        }

        @Test("Two HVM and two PV domains ping each other, and iperf3 loses nothing either way")
        func four() throws {
            let host = try HostNamespace()
            try host.makeBridge()
            let all = try settle([
                try host.start("bridge-pv1", type: "pv", vif: "'mtu=9000'"),
                try host.start("bridge-pv2", type: "pv", vif: "'mtu=9000'"),
                try host.startHVM("bridge-e1000", vif: "'mtu=9000,model=e1000'", more: "xen_platform_pci=0"),
                try host.startHVM("bridge-pvhvm", vif: "'mtu=9000'"),
            ])
            for one in all {
                for other in all where other.address != one.address {
                    let heard = try one.console.run("ping -c 3 -W 5 -i 0.2 -s 8900 \(other.address)")
                    #expect(heard.contains(" 0% packet loss"), "\(one.domain.name): \(heard)")
                }
            }
            for (one, other) in [(all[0], all[1]), (all[2], all[3]), (all[0], all[2])] {
                for (from, to) in [(one, other), (other, one)] {
                    let rate = try from.send(to: to, seconds: Self.trafficSeconds)
                    print("\(from.domain.name) to \(to.domain.name): \(rate) Mbit/s")
                    #expect(rate > 10)
                }
            }
            for one in all {
                let statistics = try Site.xl("stats", one.domain.name).output
                for match in statistics.matches(of: /interfaces\[0\]\.(sendErrors|dropped) +(\d+)/) {
                    #expect(match.2 == "0", "\(one.domain.name): \(match.0)")
                }
                #expect(try one.console.complaints() == "")
            }
        }

        @Test("Two guests on a bridge reach each other and the host, with jumbo frames, and after their link was down")
        func bridge() throws {
            let host = try HostNamespace()
            try host.makeBridge()
            let (first, one) = try host.bootPVH("net-one", vif: "'bridge=xenbr0,mtu=9000'")
            let (second, two) = try host.bootPVH("net-two", vif: "'mtu=9000'")
            for (index, console) in [one, two].enumerated() {
                let up = try console.run(
                    "ip link set eth0 mtu 9000 up && ip addr add 192.168.9.\(index + 2)/24 dev eth0")
                #expect(up.contains("DONE-0"), "\(up)")
            }
            #expect(try host.run("/sbin/ip", "link", "show", "vif\(first.id).0").output.contains("master xenbr0"))
            #expect(try one.run("ping -c 5 -W 5 -i 0.2 192.168.9.3").contains(" 0% packet loss"))
            #expect(try two.run("ping -c 5 -W 5 -i 0.2 -s 8900 192.168.9.2").contains(" 0% packet loss"))
            let (directory, sum) = try HostNamespace.makeFile(bytes: 16 << 20)
            try host.serve(directory, at: "192.168.9.1:8000")
            let fetched = try one.run(
                "mkdir /www && wget -q -O /www/file http://192.168.9.1:8000/file && md5sum /www/file")
            #expect(fetched.contains(sum), "\(fetched)")
            #expect(try one.run("httpd -p 80 -h /www").contains("DONE-0"))
            #expect(try two.run("wget -q -O - http://192.168.9.2/file | md5sum").contains(sum))
            #expect(try host.fetch("http://192.168.9.2/file") == sum)
            let statistics = try Site.xl("stats", first.name).output
            #expect(statistics.firstMatch(of: /interfaces\[0\]\.sendErrors +0/) != nil, "\(statistics)")
            try host.run("/sbin/ip", "link", "set", "vif\(first.id).0", "down")
            #expect(try two.run("ping -c 2 -W 1 192.168.9.2").contains("100% packet loss"))
            try host.run("/sbin/ip", "link", "set", "vif\(first.id).0", "up")
            #expect(try two.run("ping -c 5 -W 5 192.168.9.2").contains(" 0% packet loss"))
            _ = (first, second)
            #expect(try Site.xl("destroy", first.name).status == 0)
            #expect(try !host.run("/sbin/ip", "link").output.contains("vif\(first.id).0"))
        }
    }
}
