// Networks of real guests: user networks, PV and emulated cards.
// Source: docs/decisions/0007.md.
// Covered: addresses by DHCP, files both ways, attaching, unplugging, booting.
// Quirks: each test has a network namespace of its own as its host, so it needs root and disturbs nobody.

import Foundation
import Glibc
import Testing

extension Guests {
    @Suite("networks", .serialized, .enabled(if: getuid() == 0)) struct NetworkTests {
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
            let (domain, console) = try host.bootPVH("net-user\(vcpus)", vif: "'hostfwd=tcp::8081-:80'", vcpus: vcpus)
            try carryFiles(console, host, port: 8081)
            #expect(try console.run("ls -d /sys/class/net/eth0/queues/tx-* | wc -l").contains("\n\(vcpus)\r"))
            let list = try Site.xl("network-list", domain.name).output
            #expect(list.contains("/local/domain/0/backend/vif/\(domain.id)/0"))
            let row = try Site.xl("top", "-b", "-i", "1").output.split(separator: "\n").last { $0.contains("net-user") }
            let words = (row ?? "").split(separator: " ")
            // NETS, NETTX(k), NETRX(k).
            #expect(words.count == 21 && words[9] == "1", "\(row ?? "")")
            #expect(words.count > 11 && (Int(words[10]) ?? 0) > 20_000 && (Int(words[11]) ?? 0) > 8000, "\(row ?? "")")
        }

        @Test("A port of the host's that is taken is one clear error, at start and while the guest runs")
        func takenPort() throws {
            let host = try HostNamespace()
            let (domain, console) = try host.bootPVH("net-first", vif: "'hostfwd=tcp::8085-:80'")
            let error = #expect(throws: Domain.Failure.self) {
                try host.start("net-second", type: "pvh", vif: "'hostfwd=tcp::8085-:80'")
            }
            let lines = (error?.description ?? "").split(separator: "\n").filter { $0.contains("8085") }
            #expect(lines.count == 1, "\(error?.description ?? "")")
            #expect(lines.first?.contains("vif 0: cannot forward tcp::8085-:80: Address already in use") == true)
            let attached = try Site.xl("network-attach", domain.name, "hostfwd=tcp::8085-:81")
            #expect(attached.status == 1 && attached.error.contains("8085-:81: Address already in use"), "\(attached)")
            #expect(try !console.run("ls /sys/class/net").contains("eth1"))
            // The next one is none the worse for it.
            let next = try Site.xl("network-attach", domain.name, "hostfwd=tcp::8086-:81")
            #expect(next.status == 0, "\(next.error)")
            #expect(try console.run("ls /sys/class/net").contains("eth1"))
        }

        @Test("Interfaces come and go while the guest runs")
        func attaching() throws {
            let host = try HostNamespace()
            let (domain, console) = try host.bootPVH("net-hot", vif: "")
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

        @Test("Emulated cards carry files both ways", arguments: ["e1000", "ne2k_pci"])
        func cards(model: String) throws {
            let host = try HostNamespace()
            let (domain, console) = try host.bootHVM(
                "net-\(model)", vif: "'model=\(model),hostfwd=tcp::8083-:80'", more: "xen_platform_pci=0")
            let driver = model == "e1000" ? "e1000" : "ne2k-pci"
            #expect(try console.run("readlink /sys/class/net/eth0/device/driver").contains(driver))
            try carryFiles(console, host, port: 8083, bytes: model == "e1000" ? 8 << 20 : 1 << 20)
            #expect(try Site.xl("destroy", domain.name).status == 0)
        }

        @Test("A guest with PV drivers unplugs the emulated card and uses the other")
        func unplugging() throws {
            let host = try HostNamespace()
            let (domain, console) = try host.bootHVM("net-pvhvm", vif: "'hostfwd=tcp::8084-:80'")
            #expect(try console.run("cat /sys/bus/xen/devices/vif-0/devtype").contains("vif"))
            #expect(try !console.run("cat /sys/bus/pci/devices/*/device").contains("0x100e"))
            #expect(try console.run("ls /sys/class/net | grep -c eth").contains("\n1\r\n"))
            try carryFiles(console, host, port: 8084)
            #expect(try Site.xl("destroy", domain.name).status == 0)
        }

        /// Its screen is looked at, so it lives in the test's own network.
        @Test("iPXE finds the ISA card at port 300 and loads what it is told to")
        func isaCard() throws {
            let directory = Site.run.appendingPathComponent("www-isa")
            try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
            try Data("#!ipxe\necho By way of ${net0/chip}\nsleep 600\n".utf8)
                .write(to: directory.appendingPathComponent("boot.ipxe"))
            let port = try Site.freePort()
            let server = try FileServer(directory, at: "127.0.0.1:\(port)")
            defer { server.stop() }
            let domain = try Domain(
                "net-isa",
                """
                type='hvm'
                memory=64
                boot='d'
                disk=['file:/usr/lib/ipxe/ipxe.iso,hdc:cdrom,r']
                xen_platform_pci=0
                vif=['model=ne2k_isa,bootfile=http://10.0.2.2:\(port)/boot.ipxe']
                """)
            try domain.waitForScreen("using ne on ISA0300", "10.0.2.15", "By way of ne", within: 120)
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
