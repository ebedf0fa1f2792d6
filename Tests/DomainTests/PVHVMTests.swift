import Foundation
import Testing

extension Guests {
    /// Debian's kernel as an HVM guest that finds Xen's devices, from `xl create` to the image on the host.
    @Suite("PV drivers in HVM guests", .serialized) struct PVHVMTests {
        /// A guest with a disk of 64 MiB at hda, booted from the Linux CD. `memory` counts MiB.
        private func boot(
            _ name: String, vcpus: Int = 1, parameters: String = "", more: String = ""
        ) throws -> (domain: Domain, console: Console, disk: URL) {
            let disk = try Site.makeDisk("\(name).img", bytes: 64 << 20)
            let disc = try Site.linuxCD(parameters, named: name)
            let domain = try Domain(
                name,
                """
                type = 'hvm'
                memory = 384
                vcpus = \(vcpus)
                boot = 'd'
                disk = ['file:\(disk.path),hda,w', 'file:\(disc.path),hdc:cdrom,r']
                serial = 'pty'
                \(more)
                """)
            let console = try domain.console()
            try console.wait(for: "guest#", within: 300)
            return (domain, console, disk)
        }

        /// What lies in a file of an ext4 image of the host.
        private func checksum(of file: String, in image: URL) throws -> String {
            let copy = Site.run.appendingPathComponent(UUID().uuidString)
            defer { try? FileManager.default.removeItem(at: copy) }
            try Site.run(URL(fileURLWithPath: "/sbin/debugfs"), ["-R", "dump \(file) \(copy.path)", image.path])
            let sum = try Site.run(URL(fileURLWithPath: "/usr/bin/md5sum"), [copy.path]).output
            return String(sum.prefix(32))
        }

        private func waitUntilGone(_ domain: Domain) { #expect(domain.isGone(), "\(domain.name) has ended") }

        @Test("The emulated disk is unplugged, xvda carries a file system, the CD stays", arguments: [1, 2])
        func disk(vcpus: Int) throws {
            let (domain, console, disk) = try boot("pvhvm-disk\(vcpus)", vcpus: vcpus)
            let block = try console.run("ls /sys/block")
            #expect(block.contains("xvda") && block.contains("sr0") && !block.contains("sda"), "\(block)")
            let written = try console.run(
                "mkfs.ext4 -q /dev/xvda && mount -t ext4 /dev/xvda /mnt && for i in 1 2 3 4; do"
                    + " cat /bin/busybox; done >/mnt/file && umount /mnt && mount -t ext4 /dev/xvda /mnt &&"
                    + " md5sum </mnt/file && umount /mnt", within: 120)
            let sum = try #require(written.firstMatch(of: /[0-9a-f]{32}/)).output
            #expect(written.contains("DONE-0"))
            #expect(try console.run("mount -t iso9660 /dev/sr0 /mnt && ls /mnt").contains("vmlinuz"))
            #expect(try console.run("nproc").contains("\n\(vcpus)\r\n"))
            #expect(try console.complaints() == "")
            #expect(try console.run("i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; echo $i").contains("300000"))
            try checkFigures(domain)
            let shutdown = try Site.xl("shutdown", "-w", domain.name)
            #expect(shutdown.output == "Waiting for 1 domains\nDomain \(domain.id) has been shut down, reason code 0\n")
            waitUntilGone(domain)
            #expect(try checksum(of: "/file", in: disk) == sum, "the host sees what the guest wrote")
        }

        /// The guest has used its disk and its board: all figures say so.
        private func checkFigures(_ domain: Domain) throws {
            let stats = try Site.xl("stats", "--json", domain.name).output
            let json = try #require(
                try JSONSerialization.jsonObject(with: Data(stats.utf8)) as? [String: Any])
            let backend = json["backend"] as? [String: Any]
            let disk = (backend?["devices"] as? [[String: Any]])?.first { $0["number"] as? Int == 768 }
            #expect((disk?["writtenSectors"] as? Int ?? 0) > 1000 && (disk?["reads"] as? Int ?? 0) > 0)
            let hypervisor = json["hypervisor"] as? [String: Any]
            let statistics = hypervisor?["statistics"] as? [String: Any]
            let answers = statistics?["answers"] as? [String: Any]
            #expect((answers?["count"] as? Int ?? 0) > 1000, "\(stats.prefix(2000))")
            let programs = statistics?["programs"] as? [String: Any]
            #expect((programs?["nanoseconds"] as? Int ?? 0) > 1_000_000, "a busy program runs by itself")
            #expect(((statistics?["hypercalls"] as? [String: Int])?["event_channel_op"] ?? 0) > 100)
            let metrics = try Site.xl("metrics").output
            for line in [
                "apus_vbd_requests_total{domain=\"\(domain.name)\",domid=\"\(domain.id)\",device=\"768\",kind=\"write\"} ",
                "apus_device_accesses_total{domain=\"\(domain.name)\",domid=\"\(domain.id)\",process=\"device-model\",",
                "# TYPE apus_ioreq_seconds histogram",
            ] { #expect(metrics.contains(line), "\(line)") }
            let row = try Site.xl("top", "-b", "-i", "1").output.split(separator: "\n").last { $0.contains("pvhvm") }
            let words = (row ?? "").split(separator: " ")
            #expect(words.count == 21 && (Int(words[19]) ?? 0) > 1000 && (Int(words[20]) ?? 0) > 100, "\(row ?? "")")
        }

        @Test("Its tree in the store is Xen's, node by node")
        func tree() throws {
            let (domain, _, _) = try boot("pvhvm-tree")
            // Interfaces and keyboard come from others; Domain-0 is no Linux, its device model no QEMU.
            let absent = [
                "/vif", "^/@", "/768/(node|physical-device)$", "^/local/domain/0/(control|device-model/0)", "/vkbd",
                "^/local/domain/0/device-model/N/backends",
            ]
            // Its display has 16 MiB at least.
            let varying =
                XenComparisonTests.varying + ["/device-model-pid$", "/vnc-port$", "/memory/(videoram|target)$"]
            try XenComparisonTests.compare(
                domain, with: "hvm2-booted", domid: 3, uuid: "991c8a0b-7870-49fe-b56d-908b8a4eeb98", absent: absent,
                varying: varying)
        }

        @Test("Xen's console, sysrq, balloon, reboot: all by the store")
        func control() throws {
            let (domain, console, _) = try boot("pvhvm-control", vcpus: 2)
            let xen = try domain.pvConsole()
            _ = try console.run("echo to the host >/dev/hvc0; head -n 1 </dev/hvc0 >/line & true")
            try xen.wait(for: "to the host")
            xen.send("from the host\n")
            #expect(try console.run("wait; cat /line").contains("from the host"))
            #expect(try Site.xl("sysrq", domain.name, "h").status == 0)
            try console.wait(for: "HELP :")
            #expect(try Site.xl("mem-set", domain.name, "300").status == 0)
            // The balloon aims at what is left besides video memory, as on Xen.
            let isSmaller = try Site.eventually { try Site.xl("list", domain.name).output.contains("  284     2") }
            #expect(isSmaller)
            let reboot = try Site.xl("reboot", "-w", domain.name)
            #expect(reboot.output == "Waiting for 1 domains\nDomain \(domain.id) has been shut down, reason code 1\n")
            // Its successor must be there before it can be destroyed.
            _ = try domain.successor()
            #expect(domain.isListed)
        }

        /// How a kernel takes events, and which disks it then has.
        struct Variant: CustomTestStringConvertible, Sendable {
            var name: String
            var parameters = ""
            var more = ""
            var disk = "xvda"
            /// What /proc/interrupts says of the way events come.
            var interrupts = "xen-percpu"
            var testDescription: String { name }
        }
        static let variants = [
            Variant(
                name: "intx", parameters: "xen_no_vector_callback pci=nomsi",
                interrupts: "IO-APIC.*fasteoi.*xen-platform-pci"),
            Variant(
                name: "pic", parameters: "noapic pci=nomsi xen_no_vector_callback",
                interrupts: "XT-PIC.*xen-platform-pci"),
            Variant(name: "nopv", parameters: "xen_nopv", disk: "sda", interrupts: "IO-APIC.*timer"),
            Variant(name: "never", parameters: "xen_emul_unplug=never", disk: "sda"),
            Variant(name: "noplatform", more: "xen_platform_pci = 0", disk: "sda"),
        ]

        @Test("Each way to be told of events works, and no unplugging leaves the emulated disk", arguments: variants)
        func matrix(variant: Variant) throws {
            let (domain, console, _) = try boot(
                "pvhvm-\(variant.name)", parameters: variant.parameters, more: variant.more)
            let block = try console.run("ls /sys/block")
            let other = variant.disk == "sda" ? "xvda" : "sda"
            #expect(block.contains(variant.disk) && !block.contains(other), "\(block)")
            #expect(
                try console.run(
                    "dd if=/bin/busybox of=/dev/\(variant.disk) bs=64k conv=fsync && grep -cE"
                        + " '\(variant.interrupts)' /proc/interrupts"
                ).contains("DONE-0"))
            console.send("poweroff -f\n")
            waitUntilGone(domain)
        }
    }
}
