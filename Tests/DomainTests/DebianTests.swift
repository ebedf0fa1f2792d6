// A whole Debian, as debootstrap makes it, on a block device: systemd, packages, a compiler, long work on two processors.
// Source: Debian 12; `scripts/guests debian` makes the disk.
// Covered: boot to a login, `phy:` disks, pygrub, PV GRUB, files that agree with the host's, JIT and self-modifying code.
// Quirks: `make test-debian` runs these; they take longer than everything else. APUS_WORKLOAD_SECONDS: how long the work goes on.

import Foundation
import Testing

extension Guests {
    @Suite("Debian", .serialized, .enabled(if: Site.hasDebian)) struct DebianTests {
        /// A loop device on a file, let go of with the object.
        private final class LoopDevice {
            let path: String
            init(_ file: URL) throws {
                let made = try Site.run(
                    URL(fileURLWithPath: "/sbin/losetup"), ["--find", "--show", "--partscan", file.path])
                guard made.status == 0 else { throw Domain.Failure(description: "losetup: \(made.error)") }
                path = made.output.trimmingCharacters(in: .whitespacesAndNewlines)
            }
            deinit { _ = try? Site.run(URL(fileURLWithPath: "/sbin/losetup"), ["--detach", path]) }
        }

        /// A copy of the disk, sparse as the original.
        private func copyDisk(_ name: String) throws -> URL {
            let copy = Site.run.appendingPathComponent("\(name).img")
            let copied = try Site.run(
                URL(fileURLWithPath: "/bin/cp"), ["--sparse=always", Site.debianDisk.path, copy.path])
            #expect(copied.status == 0, "\(copied.error)")
            return copy
        }

        private func logIn(_ console: Console) throws {
            try console.wait(for: "debian login:", within: 900)
            console.send("root\n")
            try console.wait(for: "root@debian:~#", within: 120)
            _ = try console.run("stty -echo; unset PROMPT_COMMAND; bind 'set enable-bracketed-paste off' 2>/dev/null")
        }

        private func end(_ domain: Domain) throws {
            #expect(try Site.xl("shutdown", "-w", domain.name).output.contains("reason code 0"))
            #expect(domain.isGone(within: 60))
        }

        /// The bytes of a file in the disk's file system, read on the host.
        private func hostFile(_ path: String, on disk: URL) throws -> String {
            let read = try Site.run(
                URL(fileURLWithPath: "/sbin/debugfs"), ["-R", "cat \(path)", "\(disk.path)?offset=1048576"])
            return read.output
        }

        @Test(
            "It boots to a login from a block device, unpacks, compiles, and the host reads what it wrote",
            arguments: ["pv", "pvh"])
        func blockDevice(type: String) throws {
            let disk = try copyDisk("debian-\(type)")
            let device = try LoopDevice(disk)
            let domain = try Domain(
                "debian-\(type)",
                """
                type='\(type)'
                memory=512
                vcpus=2
                kernel='\(Site.guests.path)/debian-vmlinuz'
                ramdisk='\(Site.guests.path)/debian-initrd.gz'
                cmdline='root=/dev/xvda1 ro console=hvc0'
                disk=['phy:\(device.path),xvda,w']
                """)
            let console = try domain.console()
            try logIn(console)
            #expect(try console.run("systemctl is-system-running --wait", within: 300).contains("running"))
            #expect(
                try console.run("dpkg-deb -x packages/linux-image-6*.deb unpacked", within: 900).contains("DONE-0"))
            let sum = "find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum"
            #expect(try console.run("(cd unpacked && \(sum)) >sum", within: 600).contains("DONE-0"))
            let source = "int puts(const char *); int main(void) { return puts(\"compiled\") < 0; }"
            let built = try console.run("echo '\(source)' >a.c; gcc -o a a.c && ./a", within: 300)
            #expect(built.contains("compiled"))
            let seen = try #require(try console.run("cat sum").firstMatch(of: /[0-9a-f]{64}/)).output
            #expect(try console.complaints().isEmpty)
            try end(domain)

            // The host's view of the same file system: sound, and the same bytes.
            let checked = try Site.run(
                URL(fileURLWithPath: "/sbin/e2fsck"), ["-fn", "\(disk.path)?offset=1048576"])
            #expect(checked.status == 0, "\(checked.output)")
            #expect(try hostFile("/root/sum", on: disk).hasPrefix(seen))
            let unpacked = Site.run.appendingPathComponent("unpacked-\(type)")
            try FileManager.default.createDirectory(at: unpacked, withIntermediateDirectories: true)
            defer { try? FileManager.default.removeItem(at: unpacked) }
            _ = try Site.run(
                URL(fileURLWithPath: "/sbin/debugfs"),
                ["-R", "rdump /root/unpacked \(unpacked.path)", "\(disk.path)?offset=1048576"])
            let again = try Site.run(
                URL(fileURLWithPath: "/bin/sh"), ["-c", "cd \(unpacked.path)/unpacked && \(sum)"])
            #expect(again.output.hasPrefix(seen))
        }

        /// pygrub reads the disk on the host, PV GRUB as the domain's first kernel; both go by GRUB's configuration.
        @Test(
            "GRUB's configuration on its disk says what boots",
            arguments: ["bootloader='pygrub'", "kernel='/usr/lib/grub-xen/grub-x86_64-xen.bin'"])
        func grub(way: String) throws {
            let disk = try copyDisk("debian-grub")
            let domain = try Domain(
                "debian-grub",
                """
                type='pv'
                memory=512
                \(way)
                disk=['file:\(disk.path),xvda,w']
                """)
            let console = try domain.console()
            try logIn(console)
            #expect(try console.run("cat /proc/cmdline").contains("root=/dev/xvda1 ro console=hvc0"))
            #expect(try console.complaints().isEmpty)
            try end(domain)
        }

        @Test("A busy one on two processors always finds the same", arguments: ["pvh"])
        func workload(type: String) throws {
            let seconds = ProcessInfo.processInfo.environment["APUS_WORKLOAD_SECONDS"].flatMap { Int($0) } ?? 1200
            let disk = try copyDisk("busy-\(type)")
            let domain = try Domain(
                "busy-\(type)",
                """
                type='\(type)'
                memory=768
                vcpus=2
                kernel='\(Site.guests.path)/debian-vmlinuz'
                ramdisk='\(Site.guests.path)/debian-initrd.gz'
                cmdline='root=/dev/xvda1 ro console=hvc0'
                disk=['file:\(disk.path),xvda,w']
                """)
            let console = try domain.console()
            try logIn(console)
            let said = try console.run("./workload \(seconds)", within: seconds * 2 + 600)
            #expect(said.contains("WORKLOAD agreed"), "\(said)")
            #expect(try console.complaints().isEmpty)
            try end(domain)
        }
    }
}

extension Site {
    static let debianDisk = guests.appendingPathComponent("debian.img")
    /// Asked for, and made.
    static let hasDebian =
        ProcessInfo.processInfo.environment["APUS_DEBIAN"] != nil
        && FileManager.default.fileExists(atPath: debianDisk.path)
}
