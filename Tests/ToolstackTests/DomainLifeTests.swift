// Tests of a domain's life: create, ends of all kinds, and that nothing is left behind.
// Source: design.md §2; exit codes captured on Xen 4.17.7.
// Covered: the real xl and monitor, with stand-ins for hypervisor, device-model and backend.
// Quirks: processes are killed for real.

import Foundation
import Glibc
import Testing

@Suite("life of a domain", .serialized) struct DomainLifeTests {
    @Test("create, list, pause, rename, shutdown")
    func life() throws {
        let bench = try Workbench()
        #expect(try bench.xl("create", "\(bench.path)/a.cfg").code == 0)
        #expect(try bench.xl("domid", "a").output == "1\n")
        #expect(try bench.xl("domname", "1").output == "a\n")
        let row = try bench.xl("list", "a").output.split(separator: "\n").last.map(String.init)
        #expect(row == "a                                            1    64     1     r-----       1.5")
        #expect(try bench.xl("pause", "a").code == 0)
        #expect(try bench.xl("list", "a").output.contains("--p---"))
        #expect(try bench.xl("unpause", "1").code == 0)
        #expect(try bench.xl("rename", "a", "b").code == 0)
        #expect(try bench.xl("cd-eject", "b", "hdc").code == 0)
        #expect(try bench.xl("list", "-l", "b").output.contains("\"format\": \"empty\""))
        #expect(try bench.xl("cd-insert", "b", "hdc", "\(bench.path)/cd.iso").code == 0)
        #expect(try bench.xl("cd-insert", "b", "hda", "\(bench.path)/cd.iso").code == 1)
        #expect(try bench.xl("dmesg").output.contains("(d1) SeaBIOS says hello\n"))
        #expect(try bench.xl("shutdown", "-F", "-w", "b").code == 0)
        #expect(bench.eventually { bench.domains.isEmpty && bench.processes().isEmpty })
    }

    @Test("children get their descriptors and no others")
    func descriptors() throws {
        let bench = try Workbench()
        try bench.xl("create", "\(bench.path)/a.cfg")
        for program in ["hypervisor", "device-model", "backend"] {
            let log = try String(contentsOfFile: "\(bench.path)/run/domains/1/\(program).log", encoding: .utf8)
            #expect(log == "\(program) starts\n")
        }
    }

    @Test(
        "a process that is killed ends the domain, and the crash is logged",
        arguments: ["hypervisor", "device-model", "backend"])
    func kills(program: String) throws {
        let bench = try Workbench()
        try bench.xl("create", "\(bench.path)/a.cfg")
        try bench.xl("create", "\(bench.path)/a.cfg", "name='other'", "disk=[]")
        let victims = bench.processes(program).filter { pid in
            let line = FileManager.default.contents(atPath: "/proc/\(pid)/cmdline") ?? Data()
            return String(decoding: line, as: UTF8.self).contains("domains/1")
        }
        for pid in victims { kill(pid, SIGKILL) }
        #expect(victims.count == 1)
        #expect(
            bench.eventually { bench.domains == ["2"] && bench.processes().count == 6 }, "one domain, and the store")
        #expect(bench.log("xl-a").contains("domain 1: \(program) was killed by signal 9"))
        #expect(bench.log("xl-a").contains("domain 1 has ended: crash"))
        #expect(try bench.xl("list", "other").output.contains(" r----- "))
    }

    @Test("a killed monitor takes the domain with it", arguments: [[0], [1], [0, 1]])
    func monitor(which: [Int]) throws {
        let bench = try Workbench()
        try bench.xl("create", "\(bench.path)/a.cfg")
        let monitors = bench.processes("xl").sorted()
        #expect(monitors.count == 2)
        for place in which where place < monitors.count { kill(monitors[place], SIGKILL) }
        #expect(bench.eventually { bench.processes().isEmpty })
        // With both gone, the next command cleans up.
        if which.count == 2 { #expect(try bench.xl("list").code == 0) }
        #expect(bench.domains.isEmpty)
    }

    @Test(
        "a failing set-up is one error with exit code 3", arguments: ["hypervisor", "device-model", "backend"],
        ["fail", "die"])
    func failure(program: String, how: String) throws {
        let bench = try Workbench()
        try bench.misbehave(program, how)
        let result = try bench.xl("create", "-q", "\(bench.path)/a.cfg")
        #expect(result.code == 3)
        let reason = how == "fail" ? "the disk is made of cheese" : "it was killed by signal 11"
        #expect(result.errors.hasPrefix("xl create: \(program): \(reason)"))
        #expect(result.errors.contains("    | \(program) starts\n"))
        #expect(bench.domains.isEmpty)
        #expect(bench.eventually { bench.processes().isEmpty })
        try bench.misbehave(program, nil)
        #expect(try bench.xl("create", "\(bench.path)/a.cfg").code == 0)
        #expect(bench.domains == ["2"])
    }

    @Test("the process that failed is named, not the one that noticed first")
    func blame() throws {
        let bench = try Workbench()
        try bench.misbehave("hypervisor", "blame")
        try bench.misbehave("device-model", "late")
        let result = try bench.xl("create", "-q", "\(bench.path)/a.cfg")
        #expect(result.code == 3)
        #expect(result.errors.hasPrefix("xl create: device-model: the port is taken\n"))
        #expect(bench.eventually { bench.domains.isEmpty && bench.processes().isEmpty })
    }

    @Test("a missing program is said to be missing")
    func missing() throws {
        let bench = try Workbench()
        try FileManager.default.removeItem(atPath: bench.path + "/bin/hypervisor")
        let result = try bench.xl("create", "-q", "\(bench.path)/a.cfg")
        #expect(result.code == 3)
        #expect(result.errors.contains("hypervisor: cannot start"))
        #expect(bench.eventually { bench.processes().isEmpty })
    }

    @Test(
        "what a config asks of the host is checked, and uses up a number",
        arguments: [
            ("name='a'", "already"), ("name='Domain-0'", "already"),
            ("disk=['file:/nosuch,hda,w']", "/nosuch"), ("memory=99999999", "memory"), ("kernel='/nosuch'", "/nosuch"),
        ])
    func host(setting: String, word: String) throws {
        let bench = try Workbench()
        try bench.xl("create", "\(bench.path)/a.cfg")
        let name = setting.hasPrefix("name") ? "disk=[]" : "name='b'"
        let result = try bench.xl("create", "-q", "\(bench.path)/a.cfg", name, setting)
        #expect(result.code == 3, "\(result.errors)")
        #expect(result.errors.contains(word))
        #expect(bench.domains == ["1"])
    }

    @Test("two domains do not share a disk that one of them writes")
    func sharing() throws {
        let bench = try Workbench()
        try bench.xl("create", "\(bench.path)/a.cfg")
        let result = try bench.xl("create", "-q", "\(bench.path)/a.cfg", "name='b'")
        #expect(result.code == 3)
        #expect(result.errors.contains("in use by domain a"))
        let reader = "disk=['file:\(bench.path)/cd.iso,hdc:cdrom,r']"
        #expect(try bench.xl("create", "-q", "\(bench.path)/a.cfg", "name='b'", reader).code == 0)
    }

    @Test("a reboot gives the domain a new number, and its new name stays")
    func reboot() throws {
        let bench = try Workbench()
        try bench.xl("create", "\(bench.path)/a.cfg")
        try bench.xl("rename", "a", "b")
        #expect(try bench.xl("reboot", "-F", "b").code == 0)
        #expect(
            bench.eventually { bench.domains == ["2"] && (try? bench.xl("list", "b").output.contains("r---")) == true })
    }

    @Test(
        "events do what the config says",
        arguments: [
            ("poweroff", "preserve", "---s--"), ("crash", "preserve", "---sc-"), ("crash", "rename-restart", "---sc-"),
            ("reboot", "preserve", "---s--"), ("poweroff", "destroy", ""), ("crash", "restart", ""),
        ])
    func events(event: String, action: String, state: String) throws {
        let bench = try Workbench()
        try bench.misbehave("hypervisor", "exit \(event)")
        #expect(try bench.xl("create", "\(bench.path)/a.cfg", "on_\(event)='\(action)'").code == 0)
        if state.isEmpty {
            #expect(bench.eventually { bench.domains.isEmpty && bench.processes().isEmpty })
        } else {
            #expect(bench.eventually { (try? bench.xl("list", "a").output.contains(state)) == true })
            #expect(bench.domains == ["1"])
            #expect(try bench.xl("destroy", "a").code == 0)
            #expect(bench.domains.isEmpty)
        }
    }

    @Test("destroy removes everything at once")
    func destroy() throws {
        let bench = try Workbench()
        try bench.xl("create", "-p", "\(bench.path)/a.cfg")
        #expect(try bench.xl("list", "a").output.contains("--p---"))
        #expect(try bench.xl("destroy", "a").code == 0)
        #expect(bench.domains.isEmpty)
        #expect(bench.eventually { bench.processes().isEmpty })
    }

    @Test("the console shows, takes keys, and ctrl-] leaves")
    func console() throws {
        let bench = try Workbench()
        try bench.xl("create", "\(bench.path)/a.cfg")
        let result = try bench.xl("console", "a", input: "hello|\u{1D}")
        #expect(result.code == 0)
        #expect(result.output == "login: HELLO")
        #expect(try bench.xl("console", "-t", "pv", "a").code == 1)
    }

    @Test("many at once get different numbers")
    func concurrency() async throws {
        let bench = try Workbench()
        let path = bench.path
        nonisolated(unsafe) let shared = bench
        let codes = await withTaskGroup(of: Int32.self) { group in
            for number in 0..<6 {
                group.addTask {
                    (try? shared.xl("create", "-q", "\(path)/a.cfg", "name='d\(number)'", "disk=[]").code) ?? -1
                }
            }
            return await group.reduce(into: []) { $0.append($1) }
        }
        #expect(codes == [0, 0, 0, 0, 0, 0])
        #expect(bench.domains == ["1", "2", "3", "4", "5", "6"])
        for number in 0..<6 { #expect(try bench.xl("destroy", "d\(number)").code == 0) }
        #expect(bench.domains.isEmpty)
    }
}
