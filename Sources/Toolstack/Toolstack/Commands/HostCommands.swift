// xl info and xl dmesg: the host and its messages.
// Source: keys and their order captured on Xen 4.17.7.
// Modelled: the host's figures. What a hypervisor without a Xen underneath has not is empty or 0.
// Quirks: keys are padded to 23 columns.

internal import DomainConfig
internal import Foundation
internal import Host

extension Command {
    static let info = Command(
        name: "info", summary: "Print information about the host", usage: "[-n] [--json]",
        options: [("-n, --numa", "with its NUMA nodes and CPU topology"), ("--json", "as JSON")],
        specifications: [.init("n", "numa"), .init(nil, "json")],
        run: { session, options throws(ToolstackError) in
            let host = HostFigures.read()
            let used = session.rows().dropFirst().reduce(0) { $0 + $1.memory }
            let free = max(0, min(host.freeMemory, host.totalMemory - used))
            let (first, second) = (hostEntries(host, free: free), versionEntries())
            if options.has("json") {
                let members = (first + second).map { ($0.0, PrettyJSON.string($0.1)) }
                session.print(PrettyJSON.object(members).text + "\n")
                return 0
            }
            var text = first.map { "\($0.0.padded(23)): \($0.1)\n" }.joined()
            if options.has("numa") { text += topology(host, free: free) }
            text += second.map { "\($0.0.padded(23)): \($0.1)\n" }.joined()
            session.print(text)
            return 0
        })

    private static func hostEntries(_ host: HostFigures, free: Int) -> [(String, String)] {
        let megahertz = tenths(host.megahertz, 0) + "00"
        return [
            ("host", host.name), ("release", host.release), ("version", host.version), ("machine", "x86_64"),
            ("nr_cpus", "\(host.processors)"), ("max_cpu_id", "\(host.processors - 1)"), ("nr_nodes", "1"),
            ("cores_per_socket", "\(host.coresPerSocket)"), ("threads_per_core", "\(host.threadsPerCore)"),
            ("cpu_mhz", megahertz), ("hw_caps", capabilities()), ("virt_caps", "pv hvm gnttab-v1"),
            ("total_memory", "\(host.totalMemory)"), ("free_memory", "\(free)"), ("sharing_freed_memory", "0"),
            ("sharing_used_memory", "0"), ("outstanding_claims", "0"), ("free_cpus", "0"),
        ]
    }

    /// Feature words in Xen's order: 1.edx, 1.ecx, 80000001.edx, .ecx, D:1.eax, 7:0.ebx, 7:0.ecx, 80000007.edx.
    private static func capabilities() -> String {
        let (one, extended, xsave) = (hostCPUID(1), hostCPUID(0x8000_0001), hostCPUID(0xD, 1))
        let (seven, power) = (hostCPUID(7), hostCPUID(0x8000_0007))
        let words = [one[3], one[2], extended[3], extended[2], xsave[0], seven[1], seven[2], power[3]]
        return words.map { word in
            let digits = String(word, radix: 16)
            return String(repeating: "0", count: 8 - digits.count) + digits
        }.joined(separator: ":")
    }

    private static func versionEntries() -> [(String, String)] {
        [
            ("xen_major", "4"), ("xen_minor", "17"), ("xen_extra", XenVersion.extra),
            ("xen_version", "4.17\(XenVersion.extra)"), ("xen_caps", XenVersion.capabilities),
            ("xen_scheduler", "linux"),
            ("xen_pagesize", "4096"), ("platform_params", "virt_start=0xffff800000000000"), ("xen_changeset", ""),
            ("xen_commandline", ""), ("cc_compiler", "swift"), ("cc_compile_by", ""), ("cc_compile_domain", ""),
            ("cc_compile_date", ""), ("build_id", ""), ("xend_config_format", "4"),
        ]
    }

    private static func topology(_ host: HostFigures, free: Int) -> String {
        var text = "\("cpu_topology".padded(23)):\ncpu:    core    socket     node\n"
        for (number, place) in host.topology.enumerated() {
            text += "\(number.padded(3)):    \(place.core.padded(4))     \(place.socket.padded(4))     \(0.padded(4))\n"
        }
        text += "device topology        :\ndevice           node\nNo device topology data available\n"
        text += "\("numa_info".padded(23)):\nnode:    memsize    memfree    distances\n"
        return text + "\(0.padded(4)):    \(host.totalMemory.padded(6))     \(free.padded(6))      10\n"
    }

    static let dmesg = Command(
        name: "dmesg", summary: "Print the messages of the hypervisors and of the domains' firmware", usage: "[-c]",
        options: [("-c", "clear them after printing")], specifications: [.init("c")],
        run: { session, options throws(ToolstackError) in
            for record in session.run.domains() {
                let directory = session.run.directory(of: record.domid)
                for (program, mark) in [("hypervisor", "XEN"), ("bios", "d\(record.domid)")] {
                    let path = directory.log(of: program)
                    guard let bytes = try? HostFile.read(path) else { continue }
                    let name = program == "bios" ? "" : " \(record.name):"
                    for line in String(decoding: bytes, as: UTF8.self).split(whereSeparator: \.isNewline) {
                        session.print("(\(mark))\(name) \(line)\n")
                    }
                    if options.has("c") { _ = try? HostFile.open(path, [.write, .truncate]) }
                }
            }
            let keys = session.run.logFile("debug-keys")
            for line in String(decoding: (try? HostFile.read(keys)) ?? [], as: UTF8.self).split(separator: "\n") {
                session.print("(XEN) \(line)\n")
            }
            if options.has("c") { HostFile.remove(keys) }
            return 0
        })
}
