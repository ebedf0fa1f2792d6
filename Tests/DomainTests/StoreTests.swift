// xenstored by the programs of Xen's packages, and its sudden end while a domain runs.
// Source: Debian's xenstore-utils and xen-utils-4.17 (test-xenstore); XENSTORED_PATH names the socket.
// Covered: Xen's own tests of a store, tools, a killed store that another one follows, watches that outlive it.
// Quirks: who was in the middle of a request when the store died asks again.

import Foundation
import Testing

extension Guests {
    @Suite("xenstored", .serialized) struct StoreTests {
        /// A store of its own, with nothing around it.
        private final class Store {
            let process = Process()
            let socket = Site.run.appendingPathComponent("store-\(UUID().uuidString.prefix(8))")
            init() throws {
                process.executableURL = Site.programs.appendingPathComponent("xenstored")
                process.arguments = ["--socket", socket.path]
                try process.run()
                _ = Site.eventually { FileManager.default.fileExists(atPath: socket.path) }
                setenv("XENSTORED_PATH", socket.path, 1)
            }
            deinit { process.terminate() }
            func tool(_ name: String, _ arguments: String...) throws -> (status: Int32, output: String, error: String) {
                try Site.run(URL(fileURLWithPath: name.hasPrefix("/") ? name : "/usr/bin/\(name)"), arguments)
            }
        }

        @Test("Xen's own test program and tools work with it") func tools() throws {
            let store = try Store()
            let test = try store.tool("/usr/lib/xen-4.17/bin/test-xenstore", "-i", "2", "-r", "2")
            #expect(test.status == 0, "\(test.output)\(test.error)")
            #expect(try store.tool("xenstore-write", "/a/b", "one", "/a/c", "two").status == 0)
            #expect(try store.tool("xenstore-read", "/a/b").output == "one\n")
            #expect(try store.tool("xenstore-chmod", "/a/c", "n0", "r3").status == 0)
            #expect(try store.tool("xenstore-ls", "-fp", "/a").output.contains("/a/c = \"two\"   (n0,r3)"))
            #expect(try store.tool("xenstore-list", "/a").output == "b\nc\n")
            #expect(try store.tool("xenstore-exists", "/a/none").status == 1)
            // It prints what fires: once at first, then for the change.
            let watcher = Process()
            let printed = Pipe()
            watcher.executableURL = URL(fileURLWithPath: "/usr/bin/xenstore-watch")
            watcher.arguments = ["-n", "2", "/a"]
            watcher.standardOutput = printed
            try watcher.run()
            var changes = 0
            while watcher.isRunning, changes < 100 {
                _ = try store.tool("xenstore-write", "/a/watched", "\(changes)")
                changes += 1
            }
            #expect(changes < 100)
            watcher.terminate()
            let lines = String(decoding: printed.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
            #expect(lines == "/a\n/a/watched\n")
            #expect(try store.tool("xenstore-rm", "/a").status == 0)
            #expect(try store.tool("xenstore-read", "/a/b").status != 0)
        }

        /// The store of all domains of these tests.
        private func storeProcess() throws -> pid_t? {
            try FileManager.default.contentsOfDirectory(atPath: "/proc").lazy.compactMap { pid_t($0) }.first { id in
                let line = FileManager.default.contents(atPath: "/proc/\(id)/cmdline") ?? Data()
                let words = line.split(separator: 0).map { String(decoding: $0, as: UTF8.self) }
                return words.first?.hasSuffix("/xenstored") == true
                    && words.contains(Site.run.appendingPathComponent("xenstored/socket").path)
            }
        }

        @Test("A killed store is followed by another, and the guest notices nothing") func killed() throws {
            let disk = try Site.makeDisk("store.img", bytes: 16 << 20)
            let domain = try Domain(
                "store",
                """
                type='pvh'
                memory=128
                kernel='\(Site.guests.path)/vmlinuz'
                ramdisk='\(Site.guests.path)/initrd.gz'
                cmdline='console=hvc0'
                disk=['file:\(disk.path),xvda,w']
                """)
            let console = try domain.console()
            try console.wait(for: "guest#", within: 300)
            for round in 1...2 {
                let store = try #require(try storeProcess())
                kill(store, SIGKILL)
                let isFollowed = try Site.eventually { try storeProcess().map { $0 != store } == true }
                #expect(isFollowed)
                #expect(
                    try console.run("dd if=/dev/urandom of=/dev/xvda bs=1M count=2 conv=fsync && echo written")
                        .contains("DONE-0"))
                // The guest's drivers and the back ends meet in the new store.
                let extra = try Site.makeDisk("extra\(round).img", bytes: 8 << 20)
                let attached = try Site.xl("block-attach", domain.name, "file:\(extra.path),xvdb,w")
                #expect(attached.status == 0, "\(attached.error)")
                #expect(try console.run("cat /sys/block/xvdb/size").contains("16384"))
                #expect(try Site.xl("block-detach", domain.name, "xvdb").status == 0)
            }
            let shutdown = try Site.xl("shutdown", "-w", domain.name)
            #expect(shutdown.output.contains("has been shut down, reason code 0"), "\(shutdown)")
            #expect(domain.isGone())
        }
    }
}
