// Tests of what xl prints and of its exit codes.
// Source: output and exit codes captured on Xen 4.17.7.
// Covered: columns, keys of `xl info`, JSON, wrong command lines.
// Quirks: figures of the host differ; only their places are compared.

import Foundation
import Testing

@testable import Toolstack

@Suite("command line") struct CommandTests {
    /// Runs a command in this process.
    private func xl(_ arguments: String...) throws -> (code: Int32, output: String, errors: String) {
        final class Lines { var output = "", errors = "" }
        let path = "/tmp/apus-test-\(UUID().uuidString.prefix(8))"
        defer { try? FileManager.default.removeItem(atPath: path) }
        let lines = Lines()
        let session = Session(
            run: try RunDirectory(path), programs: "/nonexistent", environment: [:], print: { lines.output += $0 },
            complain: { lines.errors += $0 + "\n" })
        return (XL.main(arguments, session), lines.output, lines.errors)
    }

    @Test(
        "exit codes of wrong command lines are Xen's",
        arguments: [
            (["nosuchcmd"], 1), ([], 1), (["--help"], 1), (["-V"], 1), (["help"], 0), (["help", "nosuch"], 0),
            (["help", "create"], 0), (["create", "-h"], 0), (["list", "-h"], 0), (["create"], 6), (["destroy"], 2),
            (["console"], 2), (["shutdown"], 1), (["destroy", "nosuch"], 1), (["destroy", "0"], 1),
            (["list", "nosuch"], 1),
            (["list", "77"], 1), (["domid", "nosuch"], 1), (["domid", "Domain-0"], 0), (["domname", "0"], 0),
            (["pause", "nosuch"], 1), (["shutdown", "nosuch"], 1), (["vcpu-list", "nosuch"], 1),
            (["vncviewer", "nosuch"], 1), (["console", "nosuch"], 1), (["create", "/nosuch.cfg"], 3),
            (["create", "-q", "/nosuch.cfg"], 3), (["create", "--nosuch"], 2), (["list", "-l"], 0), (["uptime"], 0),
            (["info", "-n"], 0), (["dmesg"], 0),
        ] as [([String], Int32)])
    func codes(arguments: [String], code: Int32) throws {
        let path = "/tmp/apus-test-\(UUID().uuidString.prefix(8))"
        defer { try? FileManager.default.removeItem(atPath: path) }
        let session = Session(
            run: try RunDirectory(path), programs: "/nonexistent", environment: [:], print: { _ in }, complain: { _ in }
        )
        #expect(XL.main(arguments, session) == code)
    }

    @Test("xl list has Xen's columns")
    func list() throws {
        let lines = try xl("list").output.split(separator: "\n").map(String.init)
        #expect(lines.first == "Name                                        ID   Mem VCPUs\tState\tTime(s)")
        let row = try #require(lines.last)
        #expect(row.wholeMatch(of: /Domain-0 {33} *0 +[0-9]+ +[0-9]+ {5}r----- {2} *[0-9]+\.[0-9]/) != nil)
        #expect(row.prefix(46) == "Domain-0                                     0")
        #expect(
            try xl("list", "-v").output.hasPrefix(
                "Name                                        ID   Mem VCPUs\tState\tTime(s)   "
                    + "UUID                            Reason-Code\tSecurity Label\n"))
    }

    @Test("xl vcpu-list and uptime have Xen's columns")
    func rows() throws {
        let lines = try xl("vcpu-list").output.split(separator: "\n").map(String.init)
        #expect(lines[0] == "Name                                ID  VCPU   CPU State   Time(s) Affinity (Hard / Soft)")
        #expect(lines[1].hasPrefix("Domain-0                             0     0    0   r--"))
        #expect(lines[1].hasSuffix("  all / all"))
        #expect(lines[1].count == "Domain-0                             0     0    0   -b-     196.7  all / all".count)
        let uptime = try xl("uptime").output.split(separator: "\n").map(String.init)
        #expect(uptime[0] == "Name                                ID Uptime")
        #expect(uptime[1].hasPrefix("Domain-0                             0 "))
    }

    @Test("xl info has Xen's keys in Xen's order")
    func info() throws {
        let keys = [
            "host", "release", "version", "machine", "nr_cpus", "max_cpu_id", "nr_nodes", "cores_per_socket",
            "threads_per_core", "cpu_mhz", "hw_caps", "virt_caps", "total_memory", "free_memory",
            "sharing_freed_memory", "sharing_used_memory", "outstanding_claims", "free_cpus", "xen_major", "xen_minor",
            "xen_extra", "xen_version", "xen_caps", "xen_scheduler", "xen_pagesize", "platform_params",
            "xen_changeset", "xen_commandline", "cc_compiler", "cc_compile_by", "cc_compile_domain", "cc_compile_date",
            "build_id", "xend_config_format",
        ]
        let lines = try xl("info").output.split(separator: "\n").map(String.init)
        #expect(lines.map { String($0.prefix { $0 != " " }) } == keys)
        #expect(lines.allSatisfy { $0.dropFirst(23).hasPrefix(": ") })
    }

    @Test("xl -N create prints what xl of Xen prints")
    func dryRun() throws {
        let folder = fixtures.appendingPathComponent("dry-run")
        let file = folder.appendingPathComponent("hvm1.cfg").path
        let expected = try String(contentsOf: folder.appendingPathComponent("hvm1.json"), encoding: .utf8)
        for arguments in [["-N", "create", file], ["create", "-n", file], ["create", file, "--dryrun"]] {
            let path = "/tmp/apus-test-\(UUID().uuidString.prefix(8))"
            defer { try? FileManager.default.removeItem(atPath: path) }
            final class Lines { var output = "" }
            let lines = Lines()
            let session = Session(
                run: try RunDirectory(path), programs: "/nonexistent", environment: [:],
                print: { lines.output += $0 }, complain: { _ in })
            #expect(XL.main(arguments, session) == 0)
            let output = lines.output.replacing(/"uuid": "[-0-9a-f]*"/, with: "\"uuid\": \"\"")
            #expect(output == expected)
        }
    }

    @Test("PV configs are understood, and said not to be supported yet")
    func paravirtual() throws {
        let file = fixtures.appendingPathComponent("dry-run/pv1.cfg").path
        let expected = try String(
            contentsOf: fixtures.appendingPathComponent("dry-run/pv1.json"), encoding: .utf8)
        let output = try xl("-N", "create", file).output.replacing(/"uuid": "[-0-9a-f]*"/, with: "\"uuid\": \"\"")
        #expect(output == expected)
        let result = try xl("create", "-q", file)
        #expect(result.code == 3)
        #expect(result.errors.contains("type='pv' is not supported yet"))
    }

    @Test("options: grouped, long, abbreviated, behind operands")
    func options() throws {
        let known: [Options.Specification] = [
            .init("a"), .init("b", "bold", value: true), .init("q", "quiet"), .init(nil, "quit"),
        ]
        let options = try Options(["-aq", "x", "-bone", "--bold=two", "--bol", "three", "--", "-a"], known)
        #expect(
            options.given.map { $0.name + "=" + $0.value } == ["a=", "quiet=", "bold=one", "bold=two", "bold=three"])
        #expect(options.operands == ["x", "-a"])
        for wrong in [["-z"], ["--qui"], ["--quiet=1"], ["-b"], ["--nosuch"]] {
            #expect(throws: ToolstackError.self) { try Options(wrong, known) }
        }
    }
}
