// xl sched-credit2, cpupool-list, sharing, claims, vm-list, debug-keys: what Xen's hypervisor would tell of itself.
// Source: output captured on Xen 4.17.7; xl(1).
// Modelled: one pool with all CPUs, no shared pages, no claims, which is how it is. Not modelled: changing any of it.
// Quirks: weights are those every domain has; the host's scheduler treats all the same.

internal import DomainConfig
internal import Foundation
internal import Host

extension Command {
    static let schedCredit2 = Command(
        name: "sched-credit2", summary: "Get credit2 scheduler parameters", usage: "[-d DOMAIN] [-p CPUPOOL] [-s]",
        options: [
            ("-d, --domain=DOMAIN", "this domain only"), ("-p, --cpupool=CPUPOOL", "this pool only"),
            ("-s, --schedparam", "the scheduler's parameters only"), ("-w, --weight=WEIGHT", "256 only"),
            ("-c, --cap=CAP", "0 only"), ("-r, --ratelimit_us=LIMIT", "not supported"), ("--json", "as JSON"),
        ],
        specifications: [
            .init("d", "domain", value: true), .init("p", "cpupool", value: true), .init("s", "schedparam"),
            .init("w", "weight", value: true), .init("c", "cap", value: true), .init("r", "ratelimit_us", value: true),
            .init(nil, "json"),
        ],
        run: { session, options throws(ToolstackError) in
            if let pool = options.value("cpupool"), pool != "Pool-0" {
                throw ToolstackError("unknown cpupool '\(pool)'")
            }
            if options.value("weight") ?? "256" != "256" || options.value("cap") ?? "0" != "0"
                || options.value("ratelimit_us") != nil
            {
                throw ToolstackError("the host's scheduler decides: weight, cap and rate limit cannot be changed")
            }
            let rows = try session.rows(named: options.value("domain").map { [$0] } ?? [])
            if options.has("json") {
                let entries = rows.map { row -> PrettyJSON in
                    .object([
                        ("name", .string(row.name)), ("domid", .number(row.domid)), ("weight", .number(256)),
                        ("cap", .number(0)),
                    ])
                }
                session.print(PrettyJSON.array(entries).text + "\n")
                return 0
            }
            if options.value("domain") == nil { session.print("Cpupool Pool-0: ratelimit=1000us\n") }
            if options.has("schedparam") { return 0 }
            session.print("\("Name".padded(33)) \("ID".padded(-4)) Weight  Cap\n")
            for row in rows {
                session.print("\(row.name.padded(33)) \(row.domid.padded(4)) \(256.padded(6)) \(0.padded(4))\n")
            }
            return 0
        })

    static let cpupoolList = Command(
        name: "cpupool-list", summary: "List CPU pools on host", usage: "[-c|--cpus] [CPUPOOL]",
        options: [("-c, --cpus", "the CPUs of each pool"), ("--json", "as JSON")],
        specifications: [.init("c", "cpus"), .init(nil, "json")], mostOperands: 1,
        run: { session, options throws(ToolstackError) in
            if let pool = options.operands.first, pool != "Pool-0" {
                throw ToolstackError("Pool '\(pool)' does not exist", isVerbatim: true)
            }
            let processors = HostFigures.read().processors
            let domains = session.run.domains().count + 1
            if options.has("json") {
                let pool: [(String, PrettyJSON)] = [
                    ("name", .string("Pool-0")), ("cpus", .number(processors)), ("sched", .string("credit2")),
                    ("domains", .number(domains)),
                ]
                session.print(PrettyJSON.array([.object(pool)]).text + "\n")
            } else if options.has("cpus") {
                let list = (0..<processors).map(String.init).joined(separator: ",")
                session.print("\("Name".padded(19))CPU list\n\("Pool-0".padded(19))\(list)\n")
            } else {
                session.print("\("Name".padded(19))CPUs   Sched     Active   Domain count\n")
                session.print(
                    "\("Pool-0".padded(16)) \(processors.padded(6)) \("credit2".padded(-9))       y      "
                        + "\(domains.padded(5))\n")
            }
            return 0
        })

    static let sharing = Command(
        name: "sharing", summary: "Get information about page sharing", usage: "[--json] [DOMAIN]",
        options: [("--json", "as JSON")], specifications: [.init(nil, "json")], mostOperands: 1,
        run: { session, options throws(ToolstackError) in
            let rows = try session.rows(named: options.operands)
            if options.has("json") {
                let entries = rows.map { row -> PrettyJSON in
                    .object([
                        ("name", .string(row.name)), ("domid", .number(row.domid)), ("memory", .number(row.memory)),
                        ("shared", .number(0)),
                    ])
                }
                session.print(PrettyJSON.array(entries).text + "\n")
                return 0
            }
            session.print("\("Name".padded(40)) \("ID".padded(-5)) \("Mem".padded(-5)) Shared\n")
            for row in rows {
                session.print(
                    "\(row.name.padded(40)) \(row.domid.padded(5)) \(row.memory.padded(5))  \(0.padded(5))\n")
            }
            return 0
        })

    static let claims = Command(
        name: "claims", summary: "List outstanding claim information about all domains", usage: "",
        mostOperands: 0,
        run: { session, _ throws(ToolstackError) in
            let text = table(session.rows(), try Options([], []))
            for (place, line) in text.split(separator: "\n").enumerated() {
                session.print("\(line)\(place == 0 ? "  Claimed" : " \(0.padded(8))")\n")
            }
            return 0
        })

    static let vmList = Command(
        name: "vm-list", summary: "List guest domains, excluding dom0, stubdoms, etc.", usage: "",
        mostOperands: 0,
        run: { session, _ throws(ToolstackError) in
            session.print("UUID                                  ID    name\n")
            for record in session.run.domains() {
                session.print("\(record.uuid)  \(record.domid)    \(record.name.padded(30))\n")
            }
            return 0
        })

    static let debugKeys = Command(
        name: "debug-keys", summary: "Send debug keys to Xen", usage: "KEYS", leastOperands: 1, mostOperands: 1,
        run: { session, options throws(ToolstackError) in
            var text = ""
            for key in options.operands[0] {
                text += "'\(key)' pressed -> "
                switch key {
                case "h":
                    text += "showing installed handlers\n key 'h' => show this message\n key 'q' => dump domain info\n"
                case "q":
                    text += "dumping domain info\n"
                    for row in session.rows() {
                        text +=
                            "General information for domain \(row.domid):\n    name=\(row.name) "
                            + "state=\(row.state) memory=\(row.memory)MiB vcpus=\(row.processors.count) uuid=\(row.uuid)\n"
                        for (number, vcpu) in row.processors.enumerated() {
                            text += "    VCPU\(number): \(vcpu.state) \(tenths(vcpu.seconds, 0))s\n"
                        }
                    }
                default: text += "no handler\n"
                }
            }
            do {
                let log = try HostFile.open(session.run.logFile("debug-keys"), [.write, .create, .append])
                try HostFile.write(Array(text.utf8), to: log.number)
            } catch {
                throw ToolstackError("\(error)")
            }
            return 0
        })
}
