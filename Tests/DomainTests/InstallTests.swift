// A Debian that is installed in an HVM domain, from the network onto an emulated disk, and then boots from that disk.
// Source: Debian 12 (debootstrap, GRUB); `scripts/guests netinst` makes the CD, firmware/tests/install-debian does the work.
// Covered: a long stay on e1000 and IDE, GRUB from a disk, a login on VNC, PV drivers that take over, emulated ones that stay.
// Quirks: `make test-install` runs this; it needs the network, as the machine's mirror of Debian is where packages come from.

import Foundation
import Testing

extension Guests {
    @Suite("an installation", .serialized, .enabled(if: Site.hasInstaller)) struct InstallTests {
        @Test("Debian installs itself over e1000 onto an IDE disk and boots from there, with PV drivers or without")
        func install() throws {
            let disk = try Site.makeDisk("installed.img", bytes: 3 << 30)
            try installDebian(on: disk)
            let checked = try Site.run(
                URL(fileURLWithPath: "/sbin/e2fsck"), ["-fn", "\(disk.path)?offset=1048576"])
            #expect(checked.status == 0, "\(checked.output)")
            try bootInstalled(disk, platform: true)
            try bootInstalled(disk, platform: false)
        }

        private func installDebian(on disk: URL) throws {
            let domain = try Domain(
                "installing",
                """
                type='hvm'
                memory=1024
                boot='d'
                disk=['file:\(disk.path),hda,w','file:\(Site.installer.path),hdc:cdrom,r']
                serial='pty'
                xen_platform_pci=0
                vif=['model=e1000']
                """)
            let console = try domain.console()
            try console.waitForShell()
            let lease = try console.run("udhcpc -i eth0 -n -q -s /bin/lease")
            #expect(lease.contains("lease of 10.0.2.15 obtained"), "\(lease)")
            let start = Date()
            let said = try console.run("install-debian $(cat /etc/mirror) /dev/sda", within: 7200)
            try #require(said.contains("INSTALL-DEBIAN done"), "\(said.suffix(3000))")
            print("Installed in \(Int(Date().timeIntervalSince(start))) s")
            #expect(try console.complaints() == "")
            console.send("poweroff -f\n")
            #expect(domain.isGone())
        }

        /// Boots to a login on VNC; looks at its devices by its Xen console or its serial port, and at its SSH server.
        private func bootInstalled(_ disk: URL, platform: Bool) throws {
            let port = try Site.freePort()
            let domain = try Domain(
                "installed",
                """
                type='hvm'
                memory=512
                boot='c'
                disk=['file:\(disk.path),hda,w']
                xen_platform_pci=\(platform ? 1 : 0)
                vif=['model=e1000,hostfwd=tcp::\(port)-:22']
                """)
            try domain.waitForScreen("debian login:", within: 600)
            try domain.viewer().type("root\n")
            try domain.waitForScreen("Password:")
            try domain.viewer().type("installed\n")
            try domain.waitForScreen("root@debian")
            // What is typed stands on the screen, too: it must not be what is waited for.
            let name = platform ? "xvda" : "sda"
            try domain.viewer().type(
                "clear; test -b /dev/\(name)1 && grep -q ^/dev/\(name)1 /proc/mounts && echo disk in or''der\n")
            try domain.waitForScreen("disk in order")
            let driver = platform ? "vif" : "e1000"
            try domain.viewer().type(
                "clear; readlink /sys/class/net/eth0/device/driver | grep -q /\(driver)$ && echo network in or''der\n")
            try domain.waitForScreen("network in order")
            #expect(try greeting(port: port).hasPrefix("SSH-2.0-OpenSSH"))
            if platform { try domain.keepPicture(as: "installed") }
            let ended = try Site.xl("shutdown", "-Fw", domain.name)
            #expect(ended.status == 0, "\(ended.error)")
            #expect(domain.isGone(within: 120))
        }

        /// What a server behind a port of the host says first.
        private func greeting(port: Int) throws -> String {
            let command = "exec 3<>/dev/tcp/127.0.0.1/\(port); head -n 1 <&3"
            return try Site.run(URL(fileURLWithPath: "/usr/bin/timeout"), ["20", "/bin/bash", "-c", command]).output
        }
    }
}

extension Site {
    static let installer = guests.appendingPathComponent("netinst.iso")
    /// Asked for, and made.
    static let hasInstaller =
        ProcessInfo.processInfo.environment["APUS_INSTALL"] != nil
        && FileManager.default.fileExists(atPath: installer.path)
}
