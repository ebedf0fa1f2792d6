// Tests of commands that work through the store.
// Source: xenstore-paths.pandoc; columns and sentences captured on Xen 4.17.7.
// Covered: the real xl, monitor and xenstored; the test plays back ends and guest.
// Quirks: a domain's processes are stand-ins.

import DomainConfig
import Foundation
import Glibc
import Synchronization
import Testing
import XenStoreClient

@testable import Toolstack

@Suite("commands through the store", .serialized) struct StoreCommandTests {
    /// A running domain with its tree in the store, as if it had PV drivers.
    private func domain(_ settings: String...) throws -> (bench: Workbench, store: StoreClient) {
        let bench = try Workbench()
        let store = try bench.startStore()
        let process = try bench.xlWith(["create", "-q", "\(bench.path)/a.cfg"] + settings)
        #expect(process.code == 0, "\(process.errors)")
        if try store.read("/local/domain/1/domid") == nil {
            let config = try DomainDirectory(bench.path + "/run/domains/1").readConfig()
            try store.write(DomainTree(config, services: [.console, .disks], places: DomainTree.Places()))
        }
        return (bench, store)
    }

    @Test("shutdown and reboot ask PV drivers, and ACPI with -F only")
    func shutdown() throws {
        let (bench, store) = try domain()
        let refused = try bench.xl("shutdown", "a")
        #expect(refused.code == 1)
        #expect(
            refused.errors
                == "Shutting down domain 1\nPV control interface not available:\n"
                + "external graceful shutdown not possible.\nUse \"-F\" to fallback to ACPI power event.\n")
        for feature in ["poweroff", "reboot"] { try store.write("/local/domain/1/control/feature-\(feature)", "1") }
        #expect(try bench.xl("shutdown", "a").errors == "Shutting down domain 1\n")
        #expect(try store.read("/local/domain/1/control/shutdown") == "poweroff")
        #expect(try bench.xl("reboot", "a").errors == "Rebooting domain 1\n")
        #expect(try store.read("/local/domain/1/control/shutdown") == "reboot")
        for feature in ["poweroff", "reboot"] { try store.write("/local/domain/1/control/feature-\(feature)", "") }
        let ended = try bench.xl("shutdown", "-F", "-w", "a")
        #expect(ended.code == 0)
        #expect(ended.output == "Waiting for 1 domains\nDomain 1 has been shut down, reason code 0\n")
        #expect(bench.eventually { bench.domains.isEmpty })
    }

    @Test("Who asked how a domain ends is told, even if all of it ends while the monitor cannot run")
    func sudden() throws {
        let (bench, _) = try domain()
        let monitors = bench.processes("xl")
        #expect(monitors.count == 2)
        for monitor in monitors { kill(monitor, SIGSTOP) }
        let answer = Answer()
        nonisolated(unsafe) let shared = bench
        Thread { answer.give { try shared.xl("shutdown", "-F", "-w", "a") } }.start()
        let isOver = bench.eventually {
            ["hypervisor", "device-model", "backend"].allSatisfy { bench.processes($0).isEmpty }
        }
        #expect(isOver)
        for monitor in monitors { kill(monitor, SIGCONT) }
        let ended = try answer.take()
        #expect(ended.output == "Waiting for 1 domains\nDomain 1 has been shut down, reason code 0\n")
        #expect(bench.eventually { bench.domains.isEmpty })
    }

    @Test("sysrq, mem-set, mem-max and vcpu-set write what guests watch")
    func sizes() throws {
        let (bench, store) = try domain("vcpus=1", "maxvcpus=3", "memory=128", "videoram=16")
        #expect(try store.read("/local/domain/1/cpu/1/availability") == "offline")
        #expect(try bench.xl("sysrq", "a", "h").code == 0)
        #expect(try store.read("/local/domain/1/control/sysrq") == "h")
        #expect(try bench.xl("sysrq", "a", "hh").code == 1)
        #expect(try bench.xl("mem-set", "a", "100").code == 0)
        #expect(try store.read("/local/domain/1/memory/target") == "\((100 - 16) * 1024)")
        #expect(try bench.xl("mem-set", "a", "129").code == 1)
        #expect(try bench.xl("mem-set", "a", "zzz").code == 3)
        #expect(try bench.xl("mem-max", "a", "99").code == 1)
        #expect(try bench.xl("mem-max", "a", "256").code == 0)
        #expect(try bench.xl("mem-set", "a", "129").code == 0)
        #expect(try bench.xl("vcpu-set", "-i", "a", "3").code == 0)
        #expect(
            try (0..<3).map { try store.read("/local/domain/1/cpu/\($0)/availability") }
                == .init(repeating: "online", count: 3))
        #expect(try bench.xl("vcpu-set", "a", "1").code == 0)
        #expect(try store.read("/local/domain/1/cpu/2/availability") == "offline")
        #expect(try bench.xl("vcpu-set", "-i", "a", "4").code == 1)
        let many = try bench.xl("vcpu-set", "a", "4000")
        #expect(many.code == 1)
        #expect(many.errors.hasPrefix("You are overcommmitting! You have "))
    }

    @Test("block-attach waits for its back end and its guest, block-detach for the release")
    func disks() throws {
        let (bench, store) = try domain()
        try Data(count: 4096).write(to: URL(fileURLWithPath: bench.path + "/extra.img"))
        let spec = "file:\(bench.path)/extra.img,xvdc,w"
        let lonely = try bench.xl("block-attach", "a", spec)
        #expect(lonely.code == 1)
        #expect(lonely.errors.contains("timed out waiting for the back end of xvdc (state 1, wanted 2)"))
        #expect(try store.read("/libxl/1/device/vbd/51744/backend") == nil)

        let back = "/local/domain/0/backend/vbd/1/51744"
        let player = Player(bench) { store in
            if try store.read("\(back)/state") == "1" { try store.write("\(back)/state", "4") }
            if try store.read("\(back)/state") == "5" { try store.write("\(back)/state", "6") }
        }
        defer { player.stop() }
        #expect(try bench.xl("block-attach", "a", spec).code == 0)
        #expect(try store.read("\(back)/params") == "\(bench.path)/extra.img")
        try store.write("/local/domain/1/device/vbd/51744/state", "4")
        try store.write("/local/domain/1/device/vbd/51744/event-channel", "9")
        try store.write("/local/domain/1/device/vbd/51744/ring-ref", "789")
        let list = try bench.xl("block-list", "a").output
        #expect(list.contains("51744 0   1      4     9      789      /local/domain/0/backend/vbd/1/51744\n"))
        #expect(try bench.xl("block-attach", "a", spec).code == 1)
        #expect(try bench.xl("list", "-l", "a").output.contains("\"vdev\": \"xvdc\""))
        #expect(try bench.xl("block-detach", "a", "xvdc").code == 0)
        #expect(try store.read(back) == nil)
        #expect(try store.read("/libxl/1/device/vbd/51744") == nil)
        let gone = try bench.xl("block-detach", "a", "xvdc")
        #expect(gone.code == 1)
        #expect(gone.errors == "Error: Device xvdc not connected.\n")
    }

    @Test("a guest that does not let go of a disk is an error, and no obstacle for -f")
    func stubborn() throws {
        let (bench, store) = try domain()
        try Data(count: 4096).write(to: URL(fileURLWithPath: bench.path + "/extra.img"))
        let back = "/local/domain/0/backend/vbd/1/51744"
        let player = Player(bench) { store in
            if try store.read("\(back)/state") == "1" { try store.write("\(back)/state", "4") }
        }
        defer { player.stop() }
        #expect(try bench.xl("block-attach", "a", "file:\(bench.path)/extra.img,xvdc,w").code == 0)
        let refused = try bench.xl("block-detach", "a", "xvdc")
        #expect(refused.code == 1)
        #expect(refused.errors.contains("timed out waiting for the guest to release xvdc (state 5, wanted 6)"))
        #expect(try bench.xl("block-detach", "-f", "a", "xvdc").code == 0)
        #expect(try store.read(back) == nil)
    }

    @Test("a tree is written with its permissions, and removed with its empty parents")
    func tree() throws {
        let bench = try Workbench()
        let store = try bench.startStore()
        let before = try listing(bench)
        var config = DomainConfig(
            name: "t", uuid: "5294d373-7171-421f-bd6c-35bb2352bcf4", domid: 7, kind: .pv, memory: 64, vcpus: 2)
        config.disks = [DomainConfig.Disk(target: "/d.img", vdev: "xvda", readWrite: true, cdrom: false)]
        let tree = DomainTree(config, services: [.console, .disks], places: DomainTree.Places())
        try store.write(tree)
        // A tool that is not installed on the host is no reason to fail: the client reads values in any case.
        for node in tree.nodes { #expect(try store.read(node.path) == node.value, "\(node.path)") }
        if let lines = try listing(bench) {
            for line in tree.listing { #expect(lines.contains(line), "\(line)") }
        }
        try store.removeTree(domid: 7, uuid: config.uuid)
        #expect(try store.directory("/local/domain") ?? [] == ["0"] || store.directory("/local/domain") == [])
        #expect(try store.read("/local/domain/0/backend") == nil)
        #expect(try store.directory("/vm") == [])
        #expect(try store.directory("/libxl") == [])
        if let before, let after = try listing(bench) {
            #expect(Set(after).subtracting(before).allSatisfy { $0.contains(" = \"\"") })
        }
    }

    /// Lines of `xenstore-ls -fp`; nil where the tool is not installed.
    private func listing(_ bench: Workbench) throws -> [String]? {
        guard FileManager.default.isExecutableFile(atPath: "/usr/bin/xenstore-ls") else { return nil }
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/xenstore-ls")
        process.arguments = ["-fp"]
        process.environment = ["XENSTORED_PATH": bench.path + "/run/xenstored/socket"]
        let output = Pipe()
        process.standardOutput = output
        try process.run()
        let data = output.fileHandleForReading.readDataToEndOfFile()
        process.waitUntilExit()
        return String(decoding: data, as: UTF8.self).split(separator: "\n").map(String.init)
    }
}

/// What a command on another thread came to.
private final class Answer: Sendable {
    private let isThere = DispatchSemaphore(value: 0)
    private let result = Mutex<Result<Workbench.Result, any Error>?>(nil)

    func give(_ command: () throws -> Workbench.Result) {
        let outcome = Result { try command() }
        result.withLock { $0 = outcome }
        isThere.signal()
    }

    func take() throws -> Workbench.Result {
        isThere.wait()
        return try #require(result.withLock { $0 }).get()
    }
}

/// Plays a back end on a thread of its own.
private final class Player: @unchecked Sendable {
    // Invariant: `isStopped` is only set once, and read by the thread until then.
    private let lock = NSLock()
    private var isStopped = false

    init(_ bench: Workbench, _ step: @escaping @Sendable (StoreClient) throws -> Void) {
        let socket = bench.path + "/run/xenstored/socket"
        Thread { [self] in
            guard let transport = try? StoreSocket(path: socket) else { return }
            let store = StoreClient(transport)
            while !lock.withLock({ isStopped }) {
                try? step(store)
                Thread.sleep(forTimeInterval: 0.01)
            }
        }.start()
    }

    func stop() { lock.withLock { isStopped = true } }
}
