import Foundation
import Glibc
import Testing

extension Guests {
    /// What goes wrong outside the guest: one clear error, nothing left behind, others unharmed.
    @Suite("Failures", .serialized) struct FailureTests {
        static let iso = "/usr/lib/memtest86+/memtest86+x64.iso"

        /// Runs `xl create` on a config that must fail; the error it prints.
        private func refused(_ name: String, _ lines: String) throws -> String {
            let file = Site.run.appendingPathComponent("\(name).cfg")
            try Data("name = '\(name)-\(getpid())'\ntype = 'hvm'\n\(lines)\n".utf8).write(to: file)
            let created = try Site.xl("create", file.path)
            #expect(created.status != 0, "\(name) was accepted")
            #expect(try Site.xl("list", "\(name)-\(getpid())").status != 0, "\(name) left a domain behind")
            return created.error
        }

        @Test("A missing ISO is named") func missingISO() throws {
            let error = try refused("missing", "memory = 64\nboot = 'd'\ndisk = ['file:/nowhere/x.iso,hdc:cdrom,r']")
            #expect(error.contains("/nowhere/x.iso"))
        }

        @Test("An empty ISO is refused by name") func emptyISO() throws {
            let file = Site.run.appendingPathComponent("empty.iso")
            try Data().write(to: file)
            let error = try refused("empty", "memory = 64\nboot = 'd'\ndisk = ['file:\(file.path),hdc:cdrom,r']")
            #expect(error.contains("empty.iso"))
        }

        @Test("Every syntax error of a file is reported with its line and column") func syntax() throws {
            let error = try refused("syntax", "memory = = 3\nvcpus = 'x\ndisk = [")
            #expect(error.contains(":3"), "line 3 is named in: \(error)")
            #expect(error.contains(":4"), "line 4 is named in: \(error)")
        }

        @Test("More memory than the host has is refused") func memory() throws {
            let error = try refused("huge", "memory = 9000000\ndisk = ['file:\(Self.iso),hdc:cdrom,r']")
            #expect(error.lowercased().contains("memory"))
        }

        @Test("A taken VNC port is named") func port() throws {
            let socket = Glibc.socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
            defer { close(socket) }
            var address = sockaddr_in()
            address.sin_family = sa_family_t(AF_INET)
            address.sin_port = in_port_t(5977).bigEndian
            address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
            let bound = withUnsafePointer(to: &address) {
                $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    bind(socket, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
                }
            }
            try #require(bound == 0 && listen(socket, 1) == 0)
            let error = try refused(
                "port",
                "memory = 64\nvnc = 1\nvncdisplay = 77\nvncunused = 0\ndisk = ['file:\(Self.iso),hdc:cdrom,r']")
            #expect(error.contains("5977"))
        }

        @Test(
            "Killing one process ends its domain, removes its files and leaves the other domain alone",
            arguments: [
                "hypervisor", "device-model", "backend",
            ])
        func killed(program: String) throws {
            let victim = try Domain("victim-\(program)", Guests.HVMTests.cdrom(Self.iso, memory: 64))
            let bystander = try Domain("bystander-\(program)", Guests.HVMTests.cdrom(Self.iso, memory: 64))
            let directory = victim.directory
            #expect(try Site.processes(of: directory).count == 3)
            let target = try #require(try Site.processes(of: directory).first { $0.name == program })
            kill(target.id, SIGKILL)
            #expect(victim.isGone())
            let isEmpty = try Site.eventually { try Site.processes(of: directory).isEmpty }
            #expect(isEmpty, "a process of the killed domain is still there")
            let isRemoved = Site.eventually { !FileManager.default.fileExists(atPath: directory.path) }
            #expect(isRemoved, "files of the killed domain are still there")
            #expect(bystander.isListed)
            try bystander.waitForScreen("Memtest86+", "Pass")
        }

        @Test("The domain's processes are confined: no capabilities, no new privileges, a filter on every thread")
        func confined() throws {
            let disk = try Site.makeDisk("confined.qcow2", bytes: 0).path
            let made = try Site.run(
                URL(fileURLWithPath: "/usr/bin/qemu-img"), ["create", "-q", "-f", "qcow2", disk, "8M"])
            #expect(made.status == 0, "\(made.error)")
            let domain = try Domain(
                "confined",
                """
                \(Guests.HVMTests.cdrom(Self.iso, memory: 64))
                disk = ['file:\(Self.iso),hdc:cdrom,r', 'qcow2:\(disk),hda,w']
                vif = ['']
                """)
            let names = ["hypervisor", "device-model", "backend", "network"]
            let all = try Site.processes(of: domain.directory, names)
            #expect(Set(all.map(\.name)) == Set(names))
            for process in all {
                let tasks = try FileManager.default.contentsOfDirectory(atPath: "/proc/\(process.id)/task")
                for task in tasks {
                    let path = "/proc/\(process.id)/task/\(task)/status"
                    let text = String(decoding: FileManager.default.contents(atPath: path) ?? Data(), as: UTF8.self)
                    for line in ["Seccomp:\t2", "NoNewPrivs:\t1", "CapEff:\t0000000000000000"] {
                        #expect(text.contains(line), "\(process.name) has no \(line)")
                    }
                }
            }
        }
    }
}
