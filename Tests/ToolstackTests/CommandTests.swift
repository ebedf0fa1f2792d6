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
            (["info", "-n"], 0), (["dmesg"], 0), (["sharing"], 0), (["claims"], 0), (["cpupool-list"], 0),
            (["sched-credit2"], 0), (["vm-list"], 0), (["top", "-b", "-i", "1"], 0), (["top", "-z"], 2),
            (["block-list", "Domain-0"], 0), (["network-list", "Domain-0"], 0), (["block-list"], 2),
            (["mem-set", "nosuch", "128"], 1), (["mem-set", "x"], 2), (["vcpu-set", "nosuch", "1"], 1),
            (["vcpu-pin", "nosuch", "0", "all"], 1), (["sysrq", "nosuch", "h"], 1), (["reboot"], 1),
            (["block-attach", "nosuch", "x"], 1), (["block-detach", "nosuch", "xvda"], 1), (["stats", "nosuch"], 1),
            (["dump-core", "nosuch", "/tmp/x"], 1), (["debug-keys", "q"], 0), (["config-update", "nosuch"], 1),
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

    @Test("PV configs are understood")
    func paravirtual() throws {
        let file = fixtures.appendingPathComponent("dry-run/pv1.cfg").path
        let expected = try String(
            contentsOf: fixtures.appendingPathComponent("dry-run/pv1.json"), encoding: .utf8)
        let output = try xl("-N", "create", file).output.replacing(/"uuid": "[-0-9a-f]*"/, with: "\"uuid\": \"\"")
        #expect(output == expected)
    }

    @Test(
        "what commands say is what xl of Xen says",
        arguments: [
            (["list", "nosuch"], "nosuch is an invalid domain identifier (rc=-6)\n"),
            (["list", "77"], "Error: Domain '77' does not exist.\n"),
            (["domid", "nosuch"], "Can't get domid of domain name 'nosuch', maybe this domain does not exist.\n"),
            (["shutdown", "nosuch"], "nosuch is an invalid domain identifier (rc=-6)\n"),
            (["mem-set", "nosuch", "128"], "nosuch is an invalid domain identifier (rc=-6)\n"),
            (["shutdown"], "You must specify -a or a domain id.\n\n"),
            (["destroy"], "'xl destroy' requires at least 1 argument.\n\n"),
            (["console"], "'xl console' requires at least 1 argument.\n\n"),
            (["nosuchcmd"], "command not implemented\n"),
        ] as [([String], String)])
    func sentences(arguments: [String], sentence: String) throws {
        final class Lines { var errors = "" }
        let path = "/tmp/apus-test-\(UUID().uuidString.prefix(8))"
        defer { try? FileManager.default.removeItem(atPath: path) }
        let lines = Lines()
        let session = Session(
            run: try RunDirectory(path), programs: "/nonexistent", environment: [:], print: { _ in },
            complain: { lines.errors += $0 + "\n" })
        _ = XL.main(arguments, session)
        #expect(lines.errors == sentence)
    }

    @Test("tables of the host alone are Xen's but for its figures")
    func tables() throws {
        let digits = { (text: String) in text.replacing(/\ +[0-9.]+/, with: " 0") }
        #expect(
            digits(try xl("sched-credit2").output)
                == digits(
                    "Cpupool Pool-0: ratelimit=1000us\nName                                ID Weight  Cap\n"
                        + "Domain-0                             0    256    0\n"))
        #expect(
            digits(try xl("sharing").output)
                == digits(
                    "Name                                        ID   Mem Shared\n"
                        + "Domain-0                                     0  1536      0\n"))
        #expect(
            digits(try xl("cpupool-list").output)
                == digits(
                    "Name               CPUs   Sched     Active   Domain count\n"
                        + "Pool-0               2   credit2       y          1\n"))
        #expect(
            try xl("block-list", "Domain-0").output
                == "Vdev  BE  handle state evt-ch ring-ref BE-path                       \n")
        #expect(
            try xl("network-list", "Domain-0").output
                == "Idx BE Mac Addr.         handle state evt-ch   tx-/rx-ring-ref BE-path                       \n")
        let top = try xl("top", "-b", "-i", "1").output.split(separator: "\n").map(String.init)
        #expect(top.count == 2)
        let theirs =
            "  Domain-0 -----r        406    0.0    1572864   37.5    1572864      37.5     1    0        0"
            + "        0    0        0        0        0          0          0    0"
        #expect(top[1].prefix(17) == theirs.prefix(17))
        #expect(top[1].count == theirs.count + 22)
    }

    @Test("every command has help, and every listed option is understood")
    func helps() throws {
        for command in XL.commands {
            let result = try xl("help", command.name)
            #expect(result.code == 0)
            #expect(result.output.hasPrefix("Usage: xl [-vftTN] \(command.name) "))
            #expect(try xl(command.name, "-h").output == result.output)
            for entry in command.options {
                for word in entry.option.split(whereSeparator: { ",= ".contains($0) }) where word.hasPrefix("-") {
                    let name = String(word.drop { $0 == "-" })
                    let known = command.specifications.contains {
                        word.hasPrefix("--") ? $0.long == name : $0.short == name.first
                    }
                    #expect(known, "\(command.name) \(word)")
                }
            }
        }
        #expect(XL.commands.count == Set(XL.commands.map(\.name)).count)
    }

    @Test(
        "amounts of memory",
        arguments: [
            ("128", 131072), ("128m", 131072), ("1g", 1_048_576), ("2048k", 2048),
            ("1048576b", 1024), ("1t", 1 << 30),
        ])
    func amounts(text: String, kibibytes: Int) {
        #expect(memoryKiB(text) == kibibytes)
        for wrong in ["", "m", "12x", "-1", "1.5g"] { #expect(memoryKiB(wrong) == nil) }
    }

    @Test("sets of processors")
    func sets() {
        #expect(processorSet("all", count: 4) == [0, 1, 2, 3])
        #expect(processorSet("0-2,^1", count: 4) == [0, 2])
        #expect(processorSet("3,9", count: 4) == [3])
        for wrong in ["", "a", "3-1", "1-", "^"] { #expect(processorSet(wrong, count: 4) == nil) }
        #expect(processorList([0, 1, 2, 5], count: 8) == "0-2,5")
        #expect(processorList([0, 1], count: 2) == "all")
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
