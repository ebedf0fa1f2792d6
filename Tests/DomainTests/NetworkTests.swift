// Networks of real guests: user networks and bridges, PV and emulated cards.
// Source: docs/decisions/0007.md.
// Covered: addresses by DHCP, files both ways, attaching, two guests on a bridge, jumbo frames, links down and up.
// Quirks: each test has a network namespace of its own as its host, so it needs root and disturbs nobody.

import Foundation
import Glibc
import Testing

/// A network namespace that stands for the host.
final class HostNamespace {
    let name: String
    private var servers: [Process] = []

    init() throws {
        name = "apus-\(getpid())-\(UUID().uuidString.prefix(4))"
        try Site.run(Self.ip, ["netns", "add", name])
        try run("/sbin/ip", "link", "set", "lo", "up")
    }

    deinit {
        // It has the test's signal mask, and may not hear others.
        for server in servers { kill(server.processIdentifier, SIGKILL) }
        _ = try? Site.run(Self.ip, ["netns", "del", name])
    }

    private static let ip = URL(fileURLWithPath: "/sbin/ip")

    /// Runs a program there.
    @discardableResult
    func run(_ arguments: String...) throws -> (status: Int32, output: String, error: String) {
        try Site.run(Self.ip, ["netns", "exec", name] + arguments)
    }

    /// Serves a directory by HTTP at an address of the host's.
    func serve(_ directory: URL, at address: String) throws {
        let server = Process()
        server.executableURL = Self.ip
        server.arguments = ["netns", "exec", name, "/bin/busybox", "httpd", "-f", "-p", address, "-h", directory.path]
        try server.run()
        servers.append(server)
    }

    /// The MD5 sum of what is fetched from there.
    func fetch(_ place: String, within seconds: Int = 60) throws -> String {
        let file = Site.run.appendingPathComponent(UUID().uuidString)
        defer { try? FileManager.default.removeItem(at: file) }
        let got = try run("/usr/bin/curl", "-s", "-m", "\(seconds)", "-o", file.path, place)
        guard got.status == 0 else { return "status \(got.status) \(got.error)" }
        return String(try Site.run(URL(fileURLWithPath: "/usr/bin/md5sum"), [file.path]).output.prefix(32))
    }

    /// A directory with a file of random bytes in it, and the file's MD5 sum.
    static func makeFile(bytes: Int) throws -> (directory: URL, sum: String) {
        let directory = Site.run.appendingPathComponent("www-\(UUID().uuidString.prefix(6))")
        try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
        var random = SystemRandomNumberGenerator()
        var data = Data(capacity: bytes)
        for _ in 0..<(bytes / 8) { withUnsafeBytes(of: random.next()) { data.append(contentsOf: $0) } }
        let file = directory.appendingPathComponent("file")
        try data.write(to: file)
        return (directory, String(try Site.run(URL(fileURLWithPath: "/usr/bin/md5sum"), [file.path]).output.prefix(32)))
    }
}

extension Guests {
    @Suite("networks", .serialized, .enabled(if: getuid() == 0)) struct NetworkTests {
        /// A PVH guest at its shell.
        private func boot(
            _ name: String, vif: String, vcpus: Int = 1, in host: HostNamespace
        ) throws -> (Domain, Console) {
            let domain = try Domain(
                name,
                """
                type='pvh'
                memory=192
                vcpus=\(vcpus)
                kernel='\(Site.guests.path)/vmlinuz'
                ramdisk='\(Site.guests.path)/initrd.gz'
                cmdline='console=hvc0'
                vif=[\(vif)]
                """, in: host)
            let console = try domain.console()
            try console.wait(for: "guest#", within: 300)
            // The shell forgets what is typed while it sets its terminal up.
            usleep(700_000)
            return (domain, console)
        }

        /// The guest gets an address, fetches a file, and gives it back: the sums must be the file's.
        private func carryFiles(_ console: Console, _ host: HostNamespace, port: Int, bytes: Int = 8 << 20) throws {
            let (directory, sum) = try HostNamespace.makeFile(bytes: bytes)
            try host.serve(directory, at: "127.0.0.1:8000")
            let lease = try console.run("udhcpc -i eth0 -n -q -s /bin/lease")
            #expect(lease.contains("lease of 10.0.2.15 obtained"), "\(lease)")
            let fetched = try console.run(
                "mkdir -p /www && wget -q -O /www/file http://10.0.2.2:8000/file && md5sum /www/file", within: 120)
            #expect(fetched.contains(sum), "\(fetched)")
            #expect(try console.run("httpd -p 80 -h /www").contains("DONE-0"))
            for _ in 0..<3 { #expect(try host.fetch("http://127.0.0.1:\(port)/file") == sum) }
            #expect(try console.complaints() == "")
        }

        @Test("A PVH guest gets an address, and files go both ways through a user network", arguments: [1, 2])
        func userNetwork(vcpus: Int) throws {
            let host = try HostNamespace()
            let (domain, console) = try boot("net-user\(vcpus)", vif: "'hostfwd=tcp::8081-:80'", vcpus: vcpus, in: host)
            try carryFiles(console, host, port: 8081)
            let list = try Site.xl("network-list", domain.name).output
            #expect(list.contains("/local/domain/0/backend/vif/\(domain.id)/0"))
            let row = try Site.xl("top", "-b", "-i", "1").output.split(separator: "\n").last { $0.contains("net-user") }
            let words = (row ?? "").split(separator: " ")
            // NETS, NETTX(k), NETRX(k).
            #expect(words.count == 21 && words[9] == "1", "\(row ?? "")")
            #expect(words.count > 11 && (Int(words[10]) ?? 0) > 20_000 && (Int(words[11]) ?? 0) > 8000, "\(row ?? "")")
        }

        @Test("Interfaces come and go while the guest runs")
        func attaching() throws {
            let host = try HostNamespace()
            let (domain, console) = try boot("net-hot", vif: "", in: host)
            #expect(try !console.run("ls /sys/class/net").contains("eth0"))
            let attached = try Site.xl("network-attach", domain.name, "mac=00:16:3e:00:00:07", "hostfwd=tcp::8082-:80")
            #expect(attached.status == 0, "\(attached.error)")
            #expect(try console.run("cat /sys/class/net/eth0/address").contains("00:16:3e:00:00:07"))
            try carryFiles(console, host, port: 8082, bytes: 1 << 20)
            let detached = try Site.xl("network-detach", domain.name, "0")
            #expect(detached.status == 0, "\(detached.error)")
            #expect(try !console.run("ls /sys/class/net").contains("eth0"))
            #expect(try !Site.xl("network-list", domain.name).output.contains("/vif/"))
        }

        @Test("Two guests on a bridge reach each other and the host, with jumbo frames, and after their link was down")
        func bridge() throws {
            let host = try HostNamespace()
            for arguments in [
                "link add xenbr0 type bridge", "link set xenbr0 mtu 9000 up", "addr add 192.168.9.1/24 dev xenbr0",
            ] {
                let made = try host.run("/bin/sh", "-c", "ip \(arguments)")
                #expect(made.status == 0, "\(made.error)")
            }
            let (first, one) = try boot("net-one", vif: "'bridge=xenbr0,mtu=9000'", in: host)
            let (second, two) = try boot("net-two", vif: "'mtu=9000'", in: host)
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

        /// An HVM guest at its shell.
        private func bootHVM(
            _ name: String, vif: String, more: String = "", in host: HostNamespace
        ) throws -> (Domain, Console) {
            let disc = try Site.linuxCD("", named: name)
            let domain = try Domain(
                name,
                """
                type='hvm'
                memory=256
                boot='d'
                disk=['file:\(disc.path),hdc:cdrom,r']
                serial='pty'
                vif=[\(vif)]
                \(more)
                """, in: host)
            let console = try domain.console()
            try console.wait(for: "guest#", within: 300)
            // The shell forgets what is typed while it sets its terminal up.
            usleep(700_000)
            return (domain, console)
        }

        @Test("Emulated cards carry files both ways", arguments: ["e1000", "ne2k_pci"])
        func cards(model: String) throws {
            let host = try HostNamespace()
            let (domain, console) = try bootHVM(
                "net-\(model)", vif: "'model=\(model),hostfwd=tcp::8083-:80'", more: "xen_platform_pci=0", in: host)
            let driver = model == "e1000" ? "e1000" : "ne2k-pci"
            #expect(try console.run("readlink /sys/class/net/eth0/device/driver").contains(driver))
            try carryFiles(console, host, port: 8083, bytes: model == "e1000" ? 8 << 20 : 1 << 20)
            #expect(try Site.xl("destroy", domain.name).status == 0)
        }

        @Test("A guest with PV drivers unplugs the emulated card and uses the other")
        func unplugging() throws {
            let host = try HostNamespace()
            let (domain, console) = try bootHVM("net-pvhvm", vif: "'hostfwd=tcp::8084-:80'", in: host)
            #expect(try console.run("cat /sys/bus/xen/devices/vif-0/devtype").contains("vif"))
            #expect(try !console.run("cat /sys/bus/pci/devices/*/device").contains("0x100e"))
            #expect(try console.run("ls /sys/class/net | grep -c eth").contains("\n1\r\n"))
            try carryFiles(console, host, port: 8084)
            #expect(try Site.xl("destroy", domain.name).status == 0)
        }

        @Test("A guest boots from the network: iPXE loads kernel and initrd by HTTP")
        func booting() throws {
            let host = try HostNamespace()
            let directory = Site.run.appendingPathComponent("www-boot")
            try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
            for file in ["vmlinuz", "initrd.gz"] {
                try FileManager.default.copyItem(
                    at: Site.guests.appendingPathComponent(file), to: directory.appendingPathComponent(file))
            }
            let script = """
                #!ipxe
                kernel http://10.0.2.2:8000/vmlinuz console=ttyS0,115200 initrd=initrd.gz
                initrd http://10.0.2.2:8000/initrd.gz
                boot

                """
            try Data(script.utf8).write(to: directory.appendingPathComponent("boot.ipxe"))
            try host.serve(directory, at: "127.0.0.1:8000")
            let domain = try Domain(
                "net-boot",
                """
                type='hvm'
                memory=384
                boot='n'
                serial='pty'
                vif=['bootfile=http://10.0.2.2:8000/boot.ipxe']
                """, in: host)
            try domain.console().wait(for: "guest#", within: 300)
            #expect(try Site.xl("destroy", domain.name).status == 0)
        }
    }
}
