// What xl does to a running PV domain, and what becomes of one that has ended.
// Source: xl(1); xl.cfg(5), "EVENT ACTIONS"; Xen's docs/misc/dump-core-format.txt.
// Covered: devices that come and go, again and again under the same number; vcpu-set, pause, trigger, rename, config-update,
// dump-core; each way to end, watchdog included, with each action.
// Quirks: nothing waits between two commands on a device: when xl is done with it, so is the guest.

import Foundation
import Testing

extension Guests {
    @Suite("Commands on PV domains", .serialized) struct PVCommandTests {
        @Test("Disks and interfaces come back under their numbers as soon as they are gone") func devices() throws {
            let (domain, console, _) = try PVTests.boot("pv-devices", vcpus: 2)
            try console.wait(for: "guest#", within: 300)
            let extra = try Site.makeDisk("pv-devices-extra.img", bytes: 8 << 20)
            let mac = "00:16:3e:12:34:56"
            for round in 1...5 {
                let disk = try Site.xl("block-attach", domain.name, "file:\(extra.path),xvdb,w")
                #expect(disk.status == 0 && disk.error.isEmpty, "\(disk.error)")
                let card = try Site.xl("network-attach", domain.name, "mac=\(mac)")
                #expect(card.status == 0 && card.error.isEmpty, "\(card.error)")
                let seen = try console.run(
                    "head -c 7 /dev/xvdb; printf 'round %d' \(round) >/note; dd if=/note of=/dev/xvdb conv=fsync;"
                        + " cat /sys/block/xvdb/size /sys/class/net/eth*/address")
                #expect(seen.contains("16384\r\n\(mac)"), "\(seen)")
                #expect(round == 1 || seen.contains("round \(round - 1)"), "\(seen)")
                let (gone, unplugged) = (
                    try Site.xl("block-detach", domain.name, "xvdb"), try Site.xl("network-detach", domain.name, mac)
                )
                #expect(gone.status == 0 && unplugged.status == 0, "\(gone.error)\(unplugged.error)")
                let left = try console.run("ls /sys/block /sys/class/net")
                #expect(!left.contains("xvdb") && !left.contains("eth"), "\(left)")
            }
            #expect(try console.complaints() == "")
            #expect(try Data(contentsOf: extra).prefix(7) == Data("round 5".utf8))
        }

        /// The sections of a core file: Elf64_Ehdr's e_shoff, e_shnum and e_shstrndx, then Elf64_Shdr.
        private struct CoreFile {
            let bytes: Data
            init(_ path: String) throws {
                bytes = try Data(contentsOf: URL(fileURLWithPath: path), options: .alwaysMapped)
            }
            func number(_ offset: Int, _ count: Int = 8) -> Int {
                bytes[offset..<offset + count].reversed().reduce(0) { $0 << 8 | Int($1) }
            }
            /// Offset, size and entry size by name.
            var sections: [String: (at: Int, size: Int, entry: Int)] {
                let (table, count, names) = (number(40), number(60, 2), number(62, 2))
                let strings = number(table + names * 64 + 24)
                return (0..<count).reduce(into: [:]) { all, index in
                    let header = table + index * 64
                    let name = bytes[(strings + number(header, 4))...].prefix { $0 != 0 }
                    all[String(decoding: name, as: UTF8.self)] = (
                        number(header + 24), number(header + 32), number(header + 56)
                    )
                }
            }
        }

        @Test("vcpu-set, pause, trigger, rename, config-update and dump-core do what they do on Xen") func commands()
            throws
        {
            let (domain, console, _) = try PVTests.boot("pv-commands", vcpus: 2)
            try console.wait(for: "guest#", within: 300)
            func rows() throws -> [Substring] {
                Array(try Site.xl("vcpu-list", domain.name).output.split(separator: "\n").dropFirst())
            }
            #expect(try Site.xl("vcpu-set", domain.name, "1").status == 0)
            let isOff = try Site.eventually { try rows().last?.contains(" 1    -   --p ") == true }
            #expect(isOff)
            #expect(try console.run("nproc").contains("\n1\r\n"))
            #expect(try Site.xl("vcpu-set", domain.name, "2").status == 0)
            // As on Xen, it is there again, and the guest's to switch on.
            let online = "/sys/devices/system/cpu/cpu1/online"
            #expect(try console.run("\(Console.awaiting(online)); echo 1 >\(online); nproc").contains("\n2\r\n"))
            #expect(try rows().allSatisfy { !$0.contains("--p") })

            #expect(try Site.xl("pause", domain.name).status == 0)
            #expect(try Site.xl("list", domain.name).output.contains("  --p---  "))
            let dump = Site.run.appendingPathComponent("pv-commands.core").path
            #expect(try Site.xl("dump-core", domain.name, dump).status == 0)
            #expect(try Site.xl("list", domain.name).output.contains("  --p---  "), "it stays paused")
            #expect(try Site.xl("unpause", domain.name).status == 0)
            try checkCore(dump, console)

            #expect(try Site.xl("trigger", domain.name, "nmi", "1").status == 0)
            try console.wait(for: "NMI received for unknown reason")
            for name in ["power", "sleep", "reset"] {
                let refused = try Site.xl("trigger", domain.name, name)
                #expect(refused.status == 1 && refused.error.contains("Send trigger '\(name)' failed"), "\(refused)")
            }
            #expect(try Site.xl("rename", domain.name, "pv-renamed").status == 0)
            #expect(try Site.xl("domid", "pv-renamed").output == "\(domain.id)\n")
            #expect(try Site.xl("rename", "pv-renamed", domain.name).status == 0)
            let file = Site.run.appendingPathComponent("pv-commands.cfg").path
            let updated = try Site.xl("config-update", domain.name, file, "memory=192")
            #expect(
                updated.status == 0 && updated.error.contains("setting dom\(domain.id) configuration"), "\(updated)")
            #expect(try Site.xl("uptime", domain.name).output.contains(/\n\S+ +\d+ +0:\d\d:\d\d\n$/))
            // The new config holds from the next start on.
            #expect(try Site.xl("reboot", "-w", domain.name).output.contains("has been shut down, reason code 1"))
            let isAnew = try Site.eventually {
                try domains(domain.name).contains { $0.id > domain.id }
            }
            #expect(isAnew)
            #expect(try Site.xl("list", domain.name).output.contains("  192     2"))
        }

        /// The kernel's banner lies where its symbol says, by the table of frames.
        private func checkCore(_ path: String, _ console: Console) throws {
            let symbol = try console.run("grep -w linux_banner /proc/kallsyms; cat /proc/version")
            let address = try #require(symbol.firstMatch(of: /(ffffffff[0-9a-f]{8}) . linux_banner/)?.output.1)
            let banner = try #require(symbol.firstMatch(of: /Linux version [^\r\n]*/)?.output)
            let linear = try #require(UInt64(address, radix: 16))
            let core = try CoreFile(path)
            #expect(core.bytes.prefix(6) == Data([0x7F, 0x45, 0x4C, 0x46, 2, 1]) && core.number(16, 2) == 4)
            let sections = core.sections
            let (notes, table) = (try #require(sections[".note.Xen"]), try #require(sections[".xen_p2m"]))
            let pages = try #require(sections[".xen_pages"])
            #expect(table.entry == 16 && pages.entry == 4096 && table.size / 16 == pages.size / 4096)
            // XEN_ELFNOTE_DUMPCORE_HEADER behind the empty first note: magic, vCPUs, pages, page size.
            let header = notes.at + 16 + 16
            #expect(core.number(header - 8, 4) == 0x200_0001)
            let fields = (0..<4).map { core.number(header + $0 * 8) }
            #expect(fields == [0xF00F_EBED, 2, pages.size / 4096, 4096], "\(fields)")
            // What Xen is capable of, in the version's note behind it.
            let text = core.bytes[notes.at..<notes.at + notes.size]
            #expect(text.range(of: Data("xen-3.0-x86_64 hvm-3.0-x86_32 ".utf8)) != nil)
            let frame = Int((linear - 0xFFFF_FFFF_8000_0000) >> 12)
            let index = try #require((0..<table.size / 16).first { core.number(table.at + $0 * 16) == frame })
            let place = pages.at + index * 4096 + Int(linear & 0xFFF)
            #expect(core.bytes[place..<place + banner.utf8.count].elementsEqual(banner.utf8))
        }

        /// All domains whose names begin like that, with their numbers.
        private func domains(_ name: String) throws -> [(name: String, id: Int, state: Substring)] {
            try Site.xl("list").output.split(separator: "\n").compactMap { line in
                let words = line.split(whereSeparator: \.isWhitespace)
                guard line.hasPrefix(name), words.count == 6, let id = Int(words[1]) else { return nil }
                return (String(words[0]), id, words[4])
            }
        }

        @Test(
            "However it ends, its config says what comes of it",
            arguments: [
                ("watchdog", "on_watchdog", "coredump-destroy"), ("watchdog", "on_watchdog", "preserve"),
                ("crash", "on_crash", "coredump-restart"), ("crash", "on_crash", "preserve"),
                ("off", "on_poweroff", "rename-restart"), ("off", "on_poweroff", "destroy"),
                ("reboot", "on_reboot", "coredump-restart"), ("reboot", "on_reboot", "restart"),
            ])
        func ends(_ word: String, _ event: String, _ action: String) throws {
            let kernel = try XenProgramTests.kernel()
            let domain = try Domain(
                "ends-\(word)-\(action)",
                "type = 'pv'\nmemory = 32\nkernel = '\(kernel)'\ncmdline = '\(word)'\n\(event) = '\(action)'")
            // A domain that crashes within a minute is not started again.
            let kept = word == "crash" && action == "coredump-restart" ? "coredump-destroy" : action
            func holds() throws -> Bool {
                let found = try domains(domain.name)
                switch kept {
                case "destroy", "coredump-destroy": return found.isEmpty
                case "preserve": return found.first?.id == domain.id && found.first?.state.contains("s") == true
                case "rename-restart":
                    return found.contains { $0.id == domain.id && $0.name.contains(/-[0-9]{8}T[0-9]{4}Z/) }
                        && found.contains { $0.id > domain.id }
                default: return found.contains { $0.name == domain.name && $0.id > domain.id }
                }
            }
            let held = try Site.eventually(holds)
            let found = try domains(domain.name)
            #expect(held, "\(found)")
            if kept.hasPrefix("coredump") {
                let core = try CoreFile(Site.run.appendingPathComponent("dump/\(domain.name)").path)
                #expect(core.sections[".xen_pages"]?.size == 32 << 20)
            }
            // What is started again and again ends with its name; what was renamed stays until then.
            for _ in 0..<20 {
                let left = try domains(domain.name)
                if left.isEmpty { break }
                for one in left { _ = try Site.xl("destroy", "\(one.id)") }
            }
        }
    }
}
