import Foundation
import Testing

extension Guests {
    /// Flat programs of firmware/tests that say on the debug port what they find.
    @Suite("Test programs in HVM guests", .serialized) struct XenProgramTests {
        /// Assembles a program of `firmware/tests` into a disk image.
        private func image(_ name: String) throws -> URL {
            let source = Site.root.appendingPathComponent("firmware/tests/\(name)")
            let (program, image) = (Site.run.appendingPathComponent("\(name).elf"), "\(name).img")
            let made = try Site.run(
                URL(fileURLWithPath: "/usr/bin/cc"),
                [
                    "-m32", "-march=i686", "-Os", "-Wall", "-Werror", "-ffreestanding", "-fno-pic", "-no-pie",
                    "-nostdlib",
                    "-static", "-fno-stack-protector", "-fcf-protection=none", "-mgeneral-regs-only", "-DSECTORS=96",
                    "-Wl,-T,\(source.path)/link.ld", "-Wl,--build-id=none", "-Wl,-z,noexecstack", "-o", program.path,
                    "\(source.path)/start.S", "\(source.path)/tests.c",
                ])
            guard made.status == 0 else { throw Domain.Failure(description: made.error) }
            let disk = try Site.makeDisk(image, bytes: 0)
            try Site.run(URL(fileURLWithPath: "/usr/bin/objcopy"), ["-O", "binary", program.path, disk.path])
            try FileHandle(forWritingTo: disk).truncate(atOffset: 1 << 20)
            return disk
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
            let end = Date().addingTimeInterval(60)
            while domain.isListed, Date() < end { usleep(100_000) }
            #expect(!domain.isListed, "it powers off through SCHEDOP_shutdown")
            let logs = Site.run.appendingPathComponent("logs")
            let log = try String(contentsOf: logs.appendingPathComponent("bios-\(domain.name).log"), encoding: .utf8)
            let lines = log.split(separator: "\n")
            for line in lines where line.hasPrefix("FAIL") { Issue.record("\(line.dropFirst(5))") }
            #expect(lines.filter { $0.hasPrefix("PASS") }.count > 50)
            #expect(lines.last == "XEN-TESTS OK")
            #expect(lines.contains("xen platform: the test guest was here"))
            let console = logs.appendingPathComponent("guest-console-\(domain.name).log")
            #expect(try String(contentsOf: console, encoding: .utf8).contains("hello from the test guest"))
        }
    }
}
