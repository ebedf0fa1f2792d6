import Foundation
import Testing

extension Guests {
    /// Programs of firmware/tests that say on the debug port, or on Xen's console, what they find.
    @Suite("Test programs as guests", .serialized) struct XenProgramTests {
        /// Assembles a program of `firmware/tests` into a disk image.
        private func image(_ name: String) throws -> URL {
            let tests = Site.root.appendingPathComponent("firmware/tests")
            let (program, image) = (Site.run.appendingPathComponent("\(name).elf"), "\(name).img")
            let made = try Site.run(
                URL(fileURLWithPath: "/usr/bin/cc"),
                [
                    "-m32", "-march=i686", "-Os", "-Wall", "-Werror", "-ffreestanding", "-fno-pic", "-no-pie",
                    "-nostdlib",
                    "-static", "-fno-stack-protector", "-fcf-protection=none", "-mgeneral-regs-only", "-DSECTORS=96",
                    "-Wl,-T,\(tests.path)/common/link.ld", "-Wl,--build-id=none", "-Wl,-z,noexecstack", "-o",
                    program.path,
                    "\(tests.path)/common/start.S", "\(tests.path)/\(name)/tests.c",
                ])
            guard made.status == 0 else { throw Domain.Failure(description: made.error) }
            let disk = try Site.makeDisk(image, bytes: 0)
            try Site.run(URL(fileURLWithPath: "/usr/bin/objcopy"), ["-O", "binary", program.path, disk.path])
            try FileHandle(forWritingTo: disk).truncate(atOffset: 1 << 20)
            return disk
        }

        /// What the program has said when it powered off; each FAIL is an issue.
        private func facts(of domain: Domain, within seconds: Int, in log: String = "bios") throws -> [Substring] {
            #expect(domain.isGone(within: seconds), "it powers off through SCHEDOP_shutdown")
            let file = Site.run.appendingPathComponent("logs/\(log)-\(domain.name).log")
            let lines = try String(contentsOf: file, encoding: .utf8).split(separator: "\n")
            for line in lines where line.hasPrefix("FAIL") { Issue.record("\(line.dropFirst(5))") }
            return lines
        }

        @Test("Xen's interfaces, callbacks, ports, grants and unplugging, one sentence a fact")
        func xen() throws {
            let disk = try image("xen")
            let disc = Site.guests.appendingPathComponent("linux.iso").path
            let domain = try Domain(
                "program",
                """
                type = 'hvm'
                memory = 64
                boot = 'c'
                disk = ['file:\(disk.path),hda,w', 'file:\(disc),hdc:cdrom,r']
                """)
            let lines = try facts(of: domain, within: 60)
            #expect(lines.filter { $0.hasPrefix("PASS") }.count > 50)
            #expect(lines.last == "XEN-TESTS OK")
            #expect(lines.contains("xen platform: the test guest was here"))
            let console = Site.run.appendingPathComponent("logs/guest-console-\(domain.name).log")
            #expect(try String(contentsOf: console, encoding: .utf8).contains("hello from the test guest"))
        }

        /// Builds `firmware/tests/pv`, a kernel for PV domains; its path. On the command line: "foo" tests, "watchdog",
        /// "crash", "reboot" and "off" end it.
        static func kernel() throws -> String {
            let tests = Site.root.appendingPathComponent("firmware/tests/pv").path
            let kernel = Site.run.appendingPathComponent("pv.elf").path
            let made = try Site.run(
                URL(fileURLWithPath: "/usr/bin/cc"),
                [
                    "-m64", "-Os", "-Wall", "-Werror", "-ffreestanding", "-fno-pic", "-no-pie", "-mcmodel=kernel",
                    "-mno-red-zone", "-mgeneral-regs-only", "-nostdlib", "-static", "-fno-stack-protector",
                    "-fcf-protection=none", "-Wl,-T,\(tests)/link.ld", "-Wl,--build-id=none", "-Wl,-z,noexecstack",
                    "-Wl,-z,max-page-size=4096", "-Wl,--no-warn-rwx-segments", "-o", kernel, "\(tests)/start.S",
                    "\(tests)/tests.c",
                ])
            guard made.status == 0 else { throw Domain.Failure(description: made.error) }
            return kernel
        }

        @Test("Each group of hypercalls that PV guests have, by a kernel of a few pages")
        func paravirtual() throws {
            let kernel = try Self.kernel()
            let domain = try Domain(
                "pv-program",
                """
                type = 'pv'
                memory = 64
                maxmem = 80
                vcpus = 2
                kernel = '\(kernel)'
                cmdline = 'foo'
                """)
            let lines = try facts(of: domain, within: 60, in: "guest-console")
            #expect(lines.filter { $0.hasPrefix("PASS") }.count > 140)
            #expect(lines.last == "PV-TESTS OK")
            let log = Site.run.appendingPathComponent("logs/hypervisor-\(domain.name).log")
            let said = try String(contentsOf: log, encoding: .utf8)
            #expect(said.contains(") hello to Xen's log!\n"))
            // Once, though it was called twice.
            #expect(said.split(separator: "\n").filter { $0.contains("hypercall 70 is not implemented") }.count == 1)
        }

        @Test("A hostile guest harms its own disk only, while another domain works on")
        func hostile() throws {
            let victimsDisk = try Site.makeDisk("victim.img", bytes: 16 << 20)
            let victim = try Domain(
                "victim",
                """
                type = 'pvh'
                memory = 128
                kernel = '\(Site.guests.path)/vmlinuz'
                ramdisk = '\(Site.guests.path)/initrd.gz'
                cmdline = 'console=hvc0'
                disk = ['file:\(victimsDisk.path),xvda,w']
                """)
            let console = try victim.console()
            try console.wait(for: "guest#", within: 300)
            let disk = try image("hostile")
            let domain = try Domain(
                "hostile",
                """
                type = 'hvm'
                memory = 64
                boot = 'c'
                vnc = 0
                disk = ['file:\(disk.path),hda,w']
                """)
            let write = "dd if=/dev/urandom of=/noise bs=1M count=8 && dd if=/noise of=/dev/xvda bs=64k conv=fsync"
            var rounds = 0
            while domain.isListed, rounds < 100 {
                #expect(try console.run(write).contains("DONE-0"))
                #expect(try console.run("cmp -n 8388608 /noise /dev/xvda").contains("DONE-0"))
                rounds += 1
            }
            #expect(rounds > 0)
            let lines = try facts(of: domain, within: 120)
            #expect(lines.filter { $0.hasPrefix("PASS") }.count > 50)
            #expect(lines.last == "HOSTILE-TESTS OK")
            #expect(try console.complaints().isEmpty)
            #expect(try Site.xl("shutdown", "-w", victim.name).output.contains("reason code 0"))
        }
    }
}
