// Debian's kernel as a PV domain, from `xl create` to how it ends.
// Source: the log of the same kernel under Xen 4.17.7 (the lines below were printed there, too).

import Foundation
import Testing

extension Guests {
    @Suite("PV domains", .serialized) struct PVTests {
        static func boot(
            _ name: String, vcpus: Int = 1, more: String = ""
        ) throws -> (domain: Domain, console: Console, disk: URL) {
            let disk = try Site.makeDisk("\(name).img", bytes: 64 << 20)
            // One partition of Linux's, from 1 MiB on.
            var table = Data(count: 446) + Data([0, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 0xF0, 1, 0])
            table += Data(count: 48) + Data([0x55, 0xAA])
            let file = try FileHandle(forWritingTo: disk)
            try file.write(contentsOf: table)
            let domain = try Domain(
                name,
                """
                type = 'pv'
                memory = 256
                vcpus = \(vcpus)
                kernel = '\(Site.guests.path)/vmlinuz'
                ramdisk = '\(Site.guests.path)/initrd.gz'
                extra = 'console=hvc0 panic=-1'
                disk = ['file:\(disk.path),xvda,w']
                \(more)
                """)
            let console = try domain.console()
            return (domain, console, disk)
        }

        /// The first partition's contents in a file of their own: e2fsck opens no part of a file a second time.
        private func partition(of disk: URL) throws -> URL {
            let file = disk.appendingPathExtension("1")
            try Data(contentsOf: disk).dropFirst(1 << 20).write(to: file)
            return file
        }

        /// What Linux says on Xen, whatever the machine is.
        private static let lines = [
            "Xen: [mem 0x0000000000000000-0x000000000009ffff] usable", "Hypervisor detected: Xen PV",
            "ACPI in unprivileged domain disabled", "Released 0 page(s)", "Remapped 0 page(s)",
            "NX (Execute Disable) protection: active", "Booting kernel on Xen", "Xen version: 4.17.",
            "(preserve-AD)", "x86/PAT: Configuration [0-7]: WB  WT  UC- UC  WC  WP  UC  UC  ",
            "Using NULL legacy PIC", "installing Xen timer for CPU 0", "VPMU disabled by hypervisor.",
            " software events only.",
            "Grant table initialized", "clocksource: Switched to clocksource xen",
            "tsc: Marking TSC unstable due to TSCs unsynchronized", "PCI: System does not support PCI",
            "x86/mm: Checked W+X mappings: passed, no W+X pages found.", "Run /init as init process",
        ]

        @Test("Debian's kernel boots, says what it says on Xen, and keeps a file system on xvda", arguments: [1, 2])
        func boots(vcpus: Int) throws {
            let (domain, console, disk) = try Self.boot("pv\(vcpus)", vcpus: vcpus)
            let log = try console.wait(for: "guest#", within: 300)
            // On Xen it has no such clock either if there is but one processor, and so says less. It trusts Intel's.
            let isIntel = try String(contentsOfFile: "/proc/cpuinfo", encoding: .utf8).contains("GenuineIntel")
            for line in Self.lines where (vcpus > 1 && !isIntel) || !line.contains("TSCs unsynchronized") {
                #expect(log.contains(line), "it never said '\(line)'")
            }
            #expect(!log.contains("unchecked MSR access"))
            #expect(try console.complaints() == "")
            #expect(try console.run("nproc").contains("\n\(vcpus)\r\n"))
            #expect(try console.run("cat /sys/hypervisor/type /sys/hypervisor/guest_type").contains("xen\r\nPV\r\n"))
            #expect(try console.run("cat /proc/partitions").contains("xvda1"))
            let written = try console.run(
                "mkfs.ext4 -q /dev/xvda1 && mount /dev/xvda1 /mnt && cat /bin/busybox >/mnt/file && umount /mnt"
                    + " && mount /dev/xvda1 /mnt && cmp /bin/busybox /mnt/file && umount /mnt", within: 120)
            #expect(written.contains("DONE-0"), "\(written)")
            #expect(try console.complaints() == "")
            let shutdown = try Site.xl("shutdown", "-w", domain.name)
            #expect(shutdown.output == "Waiting for 1 domains\nDomain \(domain.id) has been shut down, reason code 0\n")
            #expect(domain.isGone())
            let checked = try Site.run(
                URL(fileURLWithPath: "/sbin/e2fsck"), ["-fn", try partition(of: disk).path])
            #expect(checked.status == 0, "\(checked.output)\(checked.error)")
        }

        @Test("Balloon and sysrq reach it, and a reboot makes it anew") func control() throws {
            let (domain, console, _) = try Self.boot("pv-control", vcpus: 2, more: "maxmem = 320")
            try console.wait(for: "guest#", within: 300)
            #expect(try Site.xl("sysrq", domain.name, "h").status == 0)
            try console.wait(for: "HELP :")
            for target in ["192", "320", "256"] {
                #expect(try Site.xl("mem-set", domain.name, target).status == 0)
                let isReached = try Site.eventually {
                    try Site.xl("list", domain.name).output.contains("  \(target)     2")
                }
                #expect(isReached)
            }
            #expect(try console.run("smp-stress 2 2>&1 | tail -n 1", within: 120).contains("DONE-0"))
            #expect(try console.complaints() == "")
            #expect(try Site.xl("reboot", domain.name).status == 0)
            let again = try Console(try domain.successor().console)
            try again.wait(for: "guest#", within: 300)
        }

        @Test("A panic is a crash, and on_crash says what comes of it") func panics() throws {
            let (domain, console, _) = try Self.boot("pv-panic", more: "on_crash = 'preserve'")
            try console.wait(for: "guest#", within: 300)
            console.send("echo c >/proc/sysrq-trigger\n")
            try console.wait(for: "Kernel panic - not syncing")
            let isKept = try Site.eventually { try Site.xl("list", domain.name).output.contains("---sc-") }
            #expect(isKept)
        }

        @Test(
            "Destroyed in the middle of writes, or without its back ends at once, it loses nothing that was synced",
            arguments: ["xl destroy", "SIGKILL"])
        func destroyed(by means: String) throws {
            let (domain, console, disk) = try Self.boot("pv-\(means.replacing(" ", with: "-"))")
            try console.wait(for: "guest#", within: 300)
            let made = try console.run("mkfs.ext4 -q /dev/xvda1 && mount /dev/xvda1 /mnt")
            #expect(made.contains("DONE-0"), "\(made)")
            console.send("while :; do cat /bin/busybox >/mnt/a; cp /mnt/a /mnt/b; done &\n")
            console.send(
                "i=0; while i=$((i+1)); do echo $i | dd of=/mnt/n$i conv=fsync 2>/dev/null && echo SYN''CED $i.; done\n"
            )
            try console.wait(for: "SYNCED 20.")
            if means == "xl destroy" {
                #expect(try Site.xl("destroy", domain.name).status == 0)
            } else {
                let pids = try Site.processes(of: domain.directory, ["backend"]).map(\.id)
                #expect(pids.count == 1)
                for pid in pids { kill(pid, SIGKILL) }
                #expect(domain.isGone())
                let log = Site.run.appendingPathComponent("logs/xl-\(domain.name).log")
                let said = try String(contentsOf: log, encoding: .utf8)
                #expect(said.contains("backend was killed by signal 9 (Killed)"), "\(said)")
            }
            let numbers = try console.rest().matches(of: /SYNCED ([0-9]+)\./).compactMap { Int($0.output.1) }
            let last = numbers.last ?? 20
            let place = try partition(of: disk).path
            #expect(try Site.run(URL(fileURLWithPath: "/sbin/e2fsck"), ["-fy", place]).status < 4)
            for number in 1...last {
                let kept = try Site.run(URL(fileURLWithPath: "/sbin/debugfs"), ["-R", "cat /n\(number)", place])
                #expect(kept.output == "\(number)\n", "\(number) of \(last): \(kept)")
            }
        }

        @Test("PV GRUB boots the kernel that lies on the guest's disk") func grub() throws {
            let root = Site.run.appendingPathComponent("pv-grub-root")
            let boot = root.appendingPathComponent("boot/grub")
            try FileManager.default.createDirectory(at: boot, withIntermediateDirectories: true)
            for name in ["vmlinuz", "initrd.gz"] {
                try FileManager.default.copyItem(
                    at: Site.guests.appendingPathComponent(name), to: root.appendingPathComponent("boot/\(name)"))
            }
            let entry = "menuentry 'Linux' {\n linux /boot/vmlinuz console=hvc0\n initrd /boot/initrd.gz\n}\n"
            try Data("set timeout=0\n\(entry)".utf8).write(to: boot.appendingPathComponent("grub.cfg"))
            let disk = try Site.makeDisk("pv-grub.img", bytes: 64 << 20)
            try Site.run(URL(fileURLWithPath: "/sbin/mkfs.ext4"), ["-q", "-d", root.path, disk.path])
            let domain = try Domain(
                "pv-grub",
                """
                type = 'pv'
                memory = 256
                kernel = '/usr/lib/grub-xen/grub-x86_64-xen.bin'
                disk = ['file:\(disk.path),xvda,w']
                """)
            let console = try domain.console()
            try console.wait(for: "Welcome to GRUB!")
            try console.wait(for: "guest#", within: 300)
            #expect(try console.run("mount /dev/xvda /mnt && ls /mnt/boot").contains("vmlinuz"))
            #expect(try console.complaints() == "")
        }

        @Test("Eight domains of 128 MiB run side by side and cost next to nothing while idle") func eight() throws {
            let domains = try (1...8).map { number in
                try Domain(
                    "pv-eight\(number)",
                    """
                    type = 'pv'
                    memory = 128
                    kernel = '\(Site.guests.path)/vmlinuz'
                    ramdisk = '\(Site.guests.path)/initrd.gz'
                    extra = 'console=hvc0'
                    """)
            }
            for domain in domains { try domain.console().wait(for: "guest#", within: 400) }
            func seconds() throws -> [Double] {
                try domains.map { domain in
                    let row = try Site.xl("list", domain.name).output.split(separator: "\n").last ?? ""
                    return row.split(separator: " ").last.flatMap { Double($0) } ?? 0
                }
            }
            sleep(3)
            let before = try seconds()
            sleep(10)
            let used = zip(try seconds(), before).map { $0 - $1 }
            let memory = try domains.map { try Self.kibibytes(of: $0) >> 10 }
            print("eight PV domains, idle: CPU seconds in 10 s \(used), MiB of each \(memory)")
            // xl list tells tenths of a second.
            #expect(used.allSatisfy { $0 <= 0.21 }, "\(used)")
            #expect(memory.allSatisfy { $0 < 220 }, "\(memory)")
        }

        /// Memory that a domain's processes have to themselves, their share of what they have in common included.
        private static func kibibytes(of domain: Domain) throws -> Int {
            try FileManager.default.contentsOfDirectory(atPath: "/proc").reduce(0) { sum, entry in
                let line = FileManager.default.contents(atPath: "/proc/\(entry)/cmdline") ?? Data()
                let words = line.split(separator: 0).map { String(decoding: $0, as: UTF8.self) }
                guard Int(entry) != nil, words.contains(domain.directory.path) else { return sum }
                let map = FileManager.default.contents(atPath: "/proc/\(entry)/smaps_rollup") ?? Data()
                let found = String(decoding: map, as: UTF8.self).firstMatch(of: /\nPss: +([0-9]+) kB/)
                return sum + (found.flatMap { Int($0.output.1) } ?? 0)
            }
        }

        @Test("What is no kernel for it is refused in one line") func refused() throws {
            func error(_ name: String, _ lines: String) throws -> String {
                let file = Site.run.appendingPathComponent("\(name).cfg")
                try Data("name = '\(name)'\ntype = 'pv'\nmemory = 128\n\(lines)\n".utf8).write(to: file)
                let created = try Site.xl("create", file.path)
                #expect(created.status != 0)
                return created.error
            }
            func cut(_ name: String, _ bytes: Int, of file: String = "vmlinuz") throws -> String {
                let whole = try Data(contentsOf: Site.guests.appendingPathComponent(file))
                let file = Site.run.appendingPathComponent(name)
                try whole.prefix(bytes).write(to: file)
                return file.path
            }
            #expect(try error("pv-text", "kernel = '/etc/passwd'").contains("neither a bzImage nor an ELF file"))
            #expect(try error("pv-tool", "kernel = '/bin/busybox'").contains("no Xen ELF notes"))
            #expect(try error("pv-cut", "kernel = '\(try cut("cut", 1 << 20))'").contains("payload"))
            var foreign = try Data(contentsOf: URL(fileURLWithPath: "/bin/busybox"))
            foreign[18] = 183
            let arm = Site.run.appendingPathComponent("pv-arm.elf")
            try foreign.write(to: arm)
            #expect(try error("pv-arm", "kernel = '\(arm.path)'").contains("ELF machine 183, not for x86"))
            let kernel = "kernel = '\(Site.guests.path)/vmlinuz'"
            let half = try cut("half.gz", 1 << 20, of: "initrd.gz")
            #expect(
                try error("pv-half", "\(kernel)\nramdisk = '\(half)'")
                    .contains("ramdisk \(half): the file ends within its gzip data"))
            #expect(try error("pv-disk", "\(kernel)\nramdisk = '/nowhere'").contains("/nowhere"))
            #expect(try error("pv-small", "\(kernel)\nmemory = 32").contains("MiB"))
        }
    }
}
