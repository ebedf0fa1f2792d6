// A domain as Debian's xen-create-image makes it: its images, its config file, a bridge that may not be there.
// Source: xen-tools 4.9.2 (`scripts/xen-tools` unpacks it): xt-create-xen-config and xm.tmpl, called as
// xen-create-image calls them for `--dir DIR --dhcp --bridge xenbr0`.
// Covered: root= and extra=, partitions without a disk around them, DHCP. Quirks: the guest's own start script keeps its
// ramdisk as root; whether root= names a file system that is there is seen by mounting it.

import Foundation
import Testing

extension Guests {
    @Suite("xen-tools", .serialized, .enabled(if: Site.hasXenTools)) struct XenToolsTests {
        /// Writes NAME.cfg into `directory` for images in domains/NAME below it; its path.
        private func writeConfig(_ name: String, in directory: URL) throws -> String {
            let images = "\(directory.path)/domains/\(name)"
            let variables = [
                "hostname": name, "dir": directory.path, "memory": "192M", "vcpus": "1",
                "kernel": "\(Site.guests.path)/vmlinuz", "initrd": "\(Site.guests.path)/initrd.gz", "dhcp": "1",
                "bridge": "xenbr0", "mac": "00:16:3E:5A:01:02", "NUMPARTITIONS": "2",
                "PARTITION1": "swap:128M:swap:::file::\(images)/swap.img",
                "PARTITION2": "disk:64M:ext4:/:defaults:file::\(images)/disk.img",
            ]
            let run = try Site.run(
                URL(fileURLWithPath: "/usr/bin/env"),
                ["-i", "PATH=/usr/bin:/bin", "PERL5LIB=\(Site.xenTools.path)/usr/share/perl5"]
                    + variables.map { "\($0.key)=\($0.value)" } + [
                        "perl", "\(Site.xenTools.path)/usr/bin/xt-create-xen-config", "--output=\(directory.path)",
                        "--template=\(Site.xenTools.path)/etc/xen-tools/xm.tmpl",
                    ])
            try #require(run.status == 0, "\(run.output)\(run.error)")
            return "\(directory.path)/\(name).cfg"
        }

        @Test("The config file that xen-create-image writes starts the domain, with its disks and its network")
        func fileImage() throws {
            let directory = Site.run.appendingPathComponent("xen-tools")
            let name = "web-\(getpid())"
            try FileManager.default.createDirectory(
                at: directory.appendingPathComponent("domains/\(name)"), withIntermediateDirectories: true)
            let root = try Site.makeDisk("xen-tools/domains/\(name)/disk.img", bytes: 64 << 20).path
            let swap = try Site.makeDisk("xen-tools/domains/\(name)/swap.img", bytes: 128 << 20).path
            for (program, path) in [("mke2fs", root), ("mkswap", swap)] {
                #expect(try Site.run(URL(fileURLWithPath: "/sbin/\(program)"), ["-q", path]).status == 0)
            }
            let config = try String(contentsOfFile: try writeConfig(name, in: directory), encoding: .utf8)
            #expect(config.contains("root        = '/dev/xvda2 ro'"))
            let domain = try Domain("xen-tools", config.replacing(/name +=.*\n/, with: ""), in: try HostNamespace())
            let console = try domain.console()
            try console.wait(for: "guest#", within: 300)
            #expect(try console.run("cat /proc/cmdline").contains("root=/dev/xvda2 ro elevator=noop"))
            #expect(try console.run("mount -t ext4 /dev/xvda2 /mnt && ls /mnt").contains("lost+found"))
            #expect(try console.run("swapon /dev/xvda1 && cat /proc/swaps").contains("/dev/xvda1"))
            #expect(try console.run("cat /sys/class/net/eth0/address").contains("00:16:3e:5a:01:02"))
            #expect(try console.run("udhcpc -q -n -i eth0 -s /bin/lease").contains("DONE-0"))
            #expect(try console.complaints() == "")
        }
    }
}

extension Site {
    static let xenTools = guests.appendingPathComponent("xen-tools")
    static let hasXenTools = FileManager.default.fileExists(atPath: xenTools.path + "/usr/bin/xt-create-xen-config")
}
