// The host's network as tests see it: a namespace with its servers, bridges and guests.
// Source: ip-netns(8).
// Quirks: a namespace of its own needs root and disturbs nobody.

import Foundation
import Glibc
import Testing

/// Serves a directory by HTTP.
final class FileServer {
    private let process = Process()

    /// `within`: a program and arguments that run it somewhere else.
    init(_ directory: URL, at address: String, within: [String] = []) throws {
        let words = within + ["/bin/busybox", "httpd", "-f", "-p", address, "-h", directory.path]
        process.executableURL = URL(fileURLWithPath: words[0])
        process.arguments = Array(words.dropFirst())
        try process.run()
    }

    /// It has the test's signal mask, and may not hear others.
    func stop() { kill(process.processIdentifier, SIGKILL) }
}

/// A network namespace that stands for the host.
final class HostNamespace {
    let name: String
    private var servers: [FileServer] = []

    init() throws {
        name = "apus-\(getpid())-\(UUID().uuidString.prefix(4))"
        try Site.run(Self.ip, ["netns", "add", name])
        try run("/sbin/ip", "link", "set", "lo", "up")
    }

    deinit {
        for server in servers { server.stop() }
        _ = try? Site.run(Self.ip, ["netns", "del", name])
    }

    private static let ip = URL(fileURLWithPath: "/sbin/ip")

    /// Runs a program there.
    @discardableResult
    func run(_ arguments: String...) throws -> (status: Int32, output: String, error: String) {
        try Site.run(Self.ip, ["netns", "exec", name] + arguments)
    }

    /// Serves a directory by HTTP at an address of the host's.
    func serve(_ directory: URL, at address: String) throws {
        servers.append(try FileServer(directory, at: address, within: [Self.ip.path, "netns", "exec", name]))
    }

    /// The MD5 sum of what is fetched from there.
    func fetch(_ place: String, within seconds: Int = 60) throws -> String {
        let file = Site.run.appendingPathComponent(UUID().uuidString)
        defer { try? FileManager.default.removeItem(at: file) }
        let got = try run("/usr/bin/curl", "-s", "-m", "\(seconds)", "-o", file.path, place)
        guard got.status == 0 else { return "status \(got.status) \(got.error)" }
        return String(try Site.run(URL(fileURLWithPath: "/usr/bin/md5sum"), [file.path]).output.prefix(32))
    }

    /// A directory with a file of random bytes in it, and the file's MD5 sum.
    static func makeFile(bytes: Int) throws -> (directory: URL, sum: String) {
        let directory = Site.run.appendingPathComponent("www-\(UUID().uuidString.prefix(6))")
        try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
        var random = SystemRandomNumberGenerator()
        var data = Data(capacity: bytes)
        for _ in 0..<(bytes / 8) { withUnsafeBytes(of: random.next()) { data.append(contentsOf: $0) } }
        let file = directory.appendingPathComponent("file")
        try data.write(to: file)
        return (directory, String(try Site.run(URL(fileURLWithPath: "/usr/bin/md5sum"), [file.path]).output.prefix(32)))
    }
}

extension HostNamespace {
    /// A guest that is on its way.
    struct Guest {
        let domain: Domain
        let console: Console

        /// Waits until it is at its shell.
        func ready() throws -> (Domain, Console) {
            try console.waitForShell()
            return (domain, console)
        }
    }

    /// Starts a guest from its kernel; `type` is `pv` or `pvh`.
    func start(_ name: String, type: String, vif: String, vcpus: Int = 1) throws -> Guest {
        let domain = try Domain(
            name,
            """
            type='\(type)'
            memory=192
            vcpus=\(vcpus)
            kernel='\(Site.guests.path)/vmlinuz'
            ramdisk='\(Site.guests.path)/initrd.gz'
            cmdline='console=hvc0'
            vif=[\(vif)]
            """, in: self)
        return Guest(domain: domain, console: try domain.console())
    }

    /// Starts an HVM guest from its CD.
    func startHVM(_ name: String, vif: String, more: String = "") throws -> Guest {
        let disc = try Site.linuxCD("", named: name)
        let domain = try Domain(
            name,
            """
            type='hvm'
            memory=256
            boot='d'
            disk=['file:\(disc.path),hdc:cdrom,r']
            serial='pty'
            vif=[\(vif)]
            \(more)
            """, in: self)
        return Guest(domain: domain, console: try domain.console())
    }

    /// A PVH guest at its shell.
    func bootPVH(_ name: String, vif: String, vcpus: Int = 1) throws -> (Domain, Console) {
        try start(name, type: "pvh", vif: vif, vcpus: vcpus).ready()
    }

    /// An HVM guest at its shell.
    func bootHVM(_ name: String, vif: String, more: String = "") throws -> (Domain, Console) {
        try startHVM(name, vif: vif, more: more).ready()
    }

    /// Makes the bridge xenbr0, which takes jumbo frames, with the host at 192.168.9.1.
    func makeBridge() throws {
        for arguments in [
            "link add xenbr0 type bridge", "link set xenbr0 mtu 9000 up", "addr add 192.168.9.1/24 dev xenbr0",
        ] {
            let made = try run("/bin/sh", "-c", "ip \(arguments)")
            #expect(made.status == 0, "\(made.error)")
        }
    }
}
