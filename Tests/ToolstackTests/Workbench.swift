// A state directory of its own, with xl and stand-ins for the other programs.
// Source: Tests/Fixtures/programs/fake.pl speaks the protocols of hypervisor, device-model and backend.
// Covered: what tests of whole commands need.
// Quirks: the real xl is used, from beside the test program; everything is ended and removed at the end.

import Foundation
import Glibc
import Testing
import XenStoreClient

final class Workbench {
    struct Result {
        var code: Int32
        var output: String
        var errors: String
    }

    let path: String
    private let environment: [String: String]

    init() throws {
        path = "/tmp/apus-test-\(UUID().uuidString.prefix(8))"
        let files = FileManager.default
        try files.createDirectory(atPath: path + "/bin", withIntermediateDirectories: true)
        let own = try files.destinationOfSymbolicLink(atPath: "/proc/self/exe")
        let xl = URL(fileURLWithPath: CommandLine.arguments[0]).deletingLastPathComponent().appendingPathComponent("xl")
        let beside = URL(fileURLWithPath: own).deletingLastPathComponent().appendingPathComponent("xl")
        let built = [xl, beside].first { files.isExecutableFile(atPath: $0.path) }
        let program = try #require(built)
        try files.copyItem(at: program, to: URL(fileURLWithPath: path + "/bin/xl"))
        let store = program.deletingLastPathComponent().appendingPathComponent("xenstored")
        if files.isExecutableFile(atPath: store.path) {
            try files.copyItem(at: store, to: URL(fileURLWithPath: path + "/bin/xenstored"))
        }
        let fake = fixtures.appendingPathComponent("programs/fake.pl")
        for name in ["hypervisor", "device-model", "backend"] {
            let copy = URL(fileURLWithPath: "\(path)/bin/\(name)")
            try files.copyItem(at: fake, to: copy)
            try files.setAttributes([.posixPermissions: 0o755], ofItemAtPath: copy.path)
        }
        var variables = ProcessInfo.processInfo.environment
        variables["APUS_RUN_DIR"] = path + "/run"
        variables["APUS_DEVICE_TIMEOUT"] = "1"
        environment = variables
        #expect(files.createFile(atPath: path + "/disk.img", contents: Data(count: 4096)))
        #expect(files.createFile(atPath: path + "/cd.iso", contents: Data(count: 4096)))
        try write(
            "a.cfg",
            """
            type='hvm'
            name='a'
            memory=64
            disk=['file:\(path)/disk.img,hda,w','file:\(path)/cd.iso,hdc:cdrom,r']
            serial='pty'
            vnc=1
            """)
    }

    deinit {
        for pid in processes() { kill(pid, SIGKILL) }
        try? FileManager.default.removeItem(atPath: path)
    }

    func write(_ name: String, _ text: String) throws {
        try text.write(toFile: "\(path)/\(name)", atomically: true, encoding: .utf8)
    }

    /// Starts the real xenstored where commands look for it; a connection as Domain-0.
    func startStore() throws -> StoreClient {
        let socket = path + "/run/xenstored/socket"
        if let store = try? StoreSocket(path: socket) { return StoreClient(store) }
        try FileManager.default.createDirectory(
            atPath: path + "/run/xenstored", withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
        let process = Process()
        // It says on descriptor 3 that it is ready.
        process.executableURL = URL(fileURLWithPath: "/bin/sh")
        process.arguments = [
            "-c", "exec \"$0\" \"$@\" 3>/dev/null", path + "/bin/xenstored", "--socket", socket, "--domains",
            path + "/run/xenstored/domains", "--state", path + "/run/xenstored/state",
        ]
        process.environment = environment
        try process.run()
        for _ in 0..<500 {
            if let store = try? StoreSocket(path: socket) { return StoreClient(store) }
            Thread.sleep(forTimeInterval: 0.01)
        }
        throw StoreFailure.disconnected
    }

    /// Makes a stand-in go wrong from now on; nil: right again.
    func misbehave(_ program: String, _ how: String?) throws {
        let file = "bin/mode-\(program)"
        guard let how else { return try FileManager.default.removeItem(atPath: "\(path)/\(file)") }
        try write(file, how)
    }

    @discardableResult func xl(_ arguments: String..., input: String? = nil) throws -> Result {
        try xlWith(arguments, input: input)
    }

    func xlWith(_ arguments: [String], input: String? = nil) throws -> Result {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: path + "/bin/xl")
        process.arguments = arguments
        process.environment = environment
        let (output, errors) = (path + "/out-\(UUID().uuidString)", path + "/err-\(UUID().uuidString)")
        for file in [output, errors] { #expect(FileManager.default.createFile(atPath: file, contents: nil)) }
        process.standardOutput = try FileHandle(forWritingTo: URL(fileURLWithPath: output))
        process.standardError = try FileHandle(forWritingTo: URL(fileURLWithPath: errors))
        let pipe = Pipe()
        process.standardInput = input == nil ? FileHandle.nullDevice : pipe
        try process.run()
        if let input {
            Thread.sleep(forTimeInterval: 0.4)
            for piece in input.split(separator: "|") {
                pipe.fileHandleForWriting.write(Data(piece.utf8))
                Thread.sleep(forTimeInterval: 0.3)
            }
        }
        let deadline = Date(timeIntervalSinceNow: 20)
        while process.isRunning && Date() < deadline { Thread.sleep(forTimeInterval: 0.005) }
        if process.isRunning {
            Issue.record("xl \(arguments.joined(separator: " ")) does not end")
            kill(process.processIdentifier, SIGKILL)
        }
        process.waitUntilExit()
        return Result(
            code: process.terminationStatus, output: try String(contentsOfFile: output, encoding: .utf8),
            errors: try String(contentsOfFile: errors, encoding: .utf8))
    }

    /// Processes whose program is in this workbench, or that serve its domains.
    func processes(_ program: String? = nil) -> [Int32] {
        let all = (try? FileManager.default.contentsOfDirectory(atPath: "/proc")) ?? []
        return all.compactMap { Int32($0) }.filter { pid in
            guard let line = FileManager.default.contents(atPath: "/proc/\(pid)/cmdline") else { return false }
            let words = line.split(separator: 0).map { String(decoding: $0, as: UTF8.self) }
            return words.prefix(2).contains { $0.hasPrefix("\(path)/bin/\(program ?? "")") }
        }
    }

    /// Directories of domains.
    var domains: [String] {
        ((try? FileManager.default.contentsOfDirectory(atPath: path + "/run/domains")) ?? []).sorted()
    }

    func log(_ name: String) -> String {
        (try? String(contentsOfFile: "\(path)/run/logs/\(name).log", encoding: .utf8)) ?? ""
    }

    /// Waits until `condition` holds, ten seconds at most.
    func eventually(_ condition: () -> Bool) -> Bool {
        for _ in 0..<500 {
            if condition() { return true }
            Thread.sleep(forTimeInterval: 0.02)
        }
        return false
    }
}
