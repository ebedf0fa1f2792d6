// xl list, vcpu-list, uptime, domid, domname: what domains there are.
// Source: columns captured on Xen 4.17.7; xl(1).
// Modelled: -l, -v, -Z, -c, -n, --json.
// Quirks: Domain-0 is the host; its memory is what the domains leave of the host's.

internal import DomainConfig
internal import Foundation
internal import Host

/// A row of xl list.
struct DomainRow {
    var domid: Int
    var name: String
    var uuid: String
    var memory: Int
    var processors: [(state: String, seconds: Double, isOnline: Bool)]
    /// Six of `rbpscd`, `-` for what is not so.
    var state: String
    var seconds: Double
    var upSeconds: Double
    /// Xen's number for how it ended, while it is kept.
    var reason: Int?
    /// How often its vCPUs left guest code, where that is counted.
    var exits: Int?
    /// The hypervisor's process.
    var hypervisor: Int32 = 0

    /// vCPUs that the guest has not switched off.
    var onlineCount: Int { processors.count { $0.isOnline } }
}

extension Session {
    /// Domain-0 and the domains, in the order of their numbers.
    func rows() -> [DomainRow] {
        let guests = run.domains().map(row)
        let host = HostFigures.read()
        let taken = guests.reduce(0) { $0 + $1.memory }
        let seconds = host.busySeconds.reduce(0, +)
        let zero = DomainRow(
            domid: 0, name: "Domain-0", uuid: "00000000-0000-0000-0000-000000000000",
            memory: max(0, host.totalMemory - taken),
            processors: host.busySeconds.enumerated().map { ($0.offset == 0 ? "r--" : "-b-", $0.element, true) },
            state: "r-----", seconds: seconds, upSeconds: host.upSeconds)
        return [zero] + guests
    }

    private func row(_ record: DomainRecord) -> DomainRow {
        let directory = run.directory(of: record.domid)
        let config = try? directory.readConfig()
        let reply =
            record.state == .running
            ? try? Control.ask(directory.control, ControlRequest("status"), seconds: 2) : nil
        let count = config?.vcpus ?? 1
        var processors = (reply?.vcpus ?? []).map { vcpu in
            (
                state: vcpu.online == false ? "--p" : Self.flags(vcpu.state ?? "", "rbp"),
                seconds: vcpu.cpuSeconds ?? 0,
                isOnline: vcpu.online != false
            )
        }
        while processors.count < count { processors.append(("--p", 0, true)) }
        let memory = reply?.memoryKiB.map { $0 / 1024 } ?? config?.memory ?? 0
        var row = DomainRow(
            domid: record.domid, name: record.name, uuid: record.uuid, memory: memory,
            processors: Array(processors.prefix(max(1, count))), state: Self.state(record, reply),
            seconds: reply?.cpuSeconds ?? 0, upSeconds: max(0, Date().timeIntervalSince1970 - record.created))
        row.reason = record.state == .shutdown ? ShutdownReason(rawValue: record.reason ?? "")?.code : nil
        (row.exits, row.hypervisor) = (reply?.exits, record.hypervisor)
        return row
    }

    private static func state(_ record: DomainRecord, _ reply: ControlReply?) -> String {
        switch record.state {
        case .building: "--p---"
        case .running: flags(reply?.state ?? "", "rbpscd")
        case .shutdown: record.reason == "crash" ? "---sc-" : "---s--"
        }
    }

    /// The letters of `all`, each as it is if `set` has it and `-` if not.
    private static func flags(_ set: String, _ all: String) -> String {
        String(all.map { set.contains($0) ? $0 : "-" })
    }

    /// The rows that `names` mean; all of them if there is none.
    func rows(named names: [String]) throws(ToolstackError) -> [DomainRow] {
        let all = rows()
        guard !names.isEmpty else { return all }
        var chosen: [DomainRow] = []
        for name in names {
            guard let row = all.first(where: { $0.name == name }) ?? all.first(where: { String($0.domid) == name })
            else {
                if Int(name) != nil {
                    throw ToolstackError("Error: Domain '\(name)' does not exist.", isVerbatim: true)
                }
                throw ToolstackError("\(name) is an invalid domain identifier (rc=-6)", isVerbatim: true)
            }
            chosen.append(row)
        }
        return chosen
    }
}

extension Command {
    static let list = Command(
        name: "list", summary: "List the domains", usage: "[options] [DOMAIN ...]",
        options: [
            ("-l, --long", "their configs, as JSON"), ("-v, --verbose", "with UUIDs"),
            ("-Z, --context", "with security labels"), ("-c, --cpupool", "with their CPU pools"),
            ("-n, --numa", "with NUMA nodes"), ("--json", "the rows as JSON"),
        ],
        specifications: [
            .init("l", "long"), .init("v", "verbose"), .init("Z", "context"), .init("c", "cpupool"), .init("n", "numa"),
            .init(nil, "json"),
        ],
        run: { session, options throws(ToolstackError) in
            let rows = try session.rows(named: options.operands)
            if options.has("long") {
                session.print(PrettyJSON.array(rows.map { longEntry($0, session) }).text + "\n\n")
            } else if options.has("json") {
                session.print(PrettyJSON.array(rows.map(jsonRow)).text + "\n")
            } else {
                session.print(table(rows, options))
            }
            return 0
        })

    static func table(_ rows: [DomainRow], _ options: Options) -> String {
        var header = "\("Name".padded(40)) \("ID".padded(-5)) \("Mem".padded(-5)) \("VCPUs".padded(-5))\tState\tTime(s)"
        if options.has("verbose") { header += "   UUID                            Reason-Code\tSecurity Label" }
        if options.has("context") && !options.has("verbose") { header += "   Security Label" }
        if options.has("cpupool") { header += "         Cpupool" }
        if options.has("numa") { header += " NODE Affinity" }
        var text = header + "\n"
        for row in rows {
            text += "\(row.name.padded(40)) \(row.domid.padded(5)) \(row.memory.padded(5)) "
            text += "\(row.onlineCount.padded(5))     \(row.state)  \(tenths(row.seconds, 8))"
            if options.has("verbose") {
                text += " \(row.uuid) \((row.reason.map(String.init) ?? "-").padded(-8)) \("-".padded(-16))"
            }
            if options.has("context") && !options.has("verbose") { text += " \("-".padded(-16))" }
            if options.has("cpupool") { text += "\("Pool-0".padded(-16))" }
            if options.has("numa") { text += " all" }
            text += "\n"
        }
        return text
    }

    private static func jsonRow(_ row: DomainRow) -> PrettyJSON {
        .object([
            ("name", .string(row.name)), ("domid", .number(row.domid)), ("uuid", .string(row.uuid)),
            ("memory", .number(row.memory)), ("vcpus", .number(row.onlineCount)), ("state", .string(row.state)),
            ("cpuSeconds", .decimal(row.seconds)), ("upSeconds", .decimal(row.upSeconds)),
        ])
    }

    private static func longEntry(_ row: DomainRow, _ session: Session) -> PrettyJSON {
        let directory = session.run.directory(of: row.domid)
        if row.domid != 0, var config = try? directory.readConfig(), let settings = try? directory.readSettings() {
            config.name = row.name
            let form = LongForm(config, from: settings, running: true)
            return .object([("domid", .number(row.domid)), ("config", form.json)])
        }
        let build: [(String, PrettyJSON)] = [
            ("max_memkb", .number(row.memory * 1024)), ("target_memkb", .number(row.memory * 1024)),
            ("sched_params", .object(LongForm.scheduling)), ("type.pv", .object([])), ("arch_arm", .object([])),
            ("arch_x86", .object([])),
        ]
        let creation: [(String, PrettyJSON)] = [("type", .string("pv")), ("name", .string(row.name))]
        let config: [(String, PrettyJSON)] = [("c_info", .object(creation)), ("b_info", .object(build))]
        return .object([("domid", .number(row.domid)), ("config", .object(config))])
    }

    static let vcpuList = Command(
        name: "vcpu-list", summary: "List the virtual CPUs of all or some domains", usage: "[--json] [DOMAIN ...]",
        options: [("--json", "the rows as JSON")], specifications: [.init(nil, "json")],
        run: { session, options throws(ToolstackError) in
            if options.has("json") {
                let rows = try session.rows(named: options.operands)
                session.print(PrettyJSON.array(rows.flatMap(jsonProcessors)).text + "\n")
                return 0
            }
            session.print(
                "\("Name".padded(32)) \("ID".padded(-5)) \("VCPU".padded(-5)) \("CPU".padded(-5)) State   "
                    + "Time(s) Affinity (Hard / Soft)\n")
            let host = HostFigures.read().processors
            for row in try session.rows(named: options.operands) {
                let threads = vcpuThreads(row.hypervisor)
                for (number, vcpu) in row.processors.enumerated() {
                    let place = processor(row, number, threads[number])
                    let set = threads[number].map { Affinity.read($0) } ?? []
                    session.print(
                        "\(row.name.padded(32)) \(row.domid.padded(5)) \(number.padded(5)) \(place.padded(-4))   "
                            + "\(vcpu.state) \(tenths(vcpu.seconds, 9))  \(processorList(set, count: host)) / all\n")
                }
            }
            return 0
        })

    /// The host's processor that a vCPU runs on or ran on last (field 39 of proc(5)'s stat); "-" while it is off.
    private static func processor(_ row: DomainRow, _ number: Int, _ thread: Int32?) -> String {
        if row.domid == 0 { return String(number) }
        guard let thread, row.processors[number].isOnline,
            let bytes = try? HostFile.read("/proc/\(row.hypervisor)/task/\(thread)/stat")
        else { return row.processors[number].state == "--p" ? "-" : String(number) }
        let fields = String(decoding: bytes, as: UTF8.self).split(separator: ")").last?.split(separator: " ") ?? []
        return fields.count > 36 ? String(fields[36]) : "-"
    }

    private static func jsonProcessors(_ row: DomainRow) -> [PrettyJSON] {
        row.processors.enumerated().map { number, processor in
            .object([
                ("name", .string(row.name)), ("domid", .number(row.domid)), ("vcpu", .number(number)),
                ("state", .string(processor.state)), ("cpuSeconds", .decimal(processor.seconds)),
            ])
        }
    }

    static let uptime = Command(
        name: "uptime", summary: "Print how long all or some domains have been up", usage: "[-s] [DOMAIN ...]",
        options: [("-s", "in one line, with the time of day"), ("--json", "the rows as JSON")],
        specifications: [.init("s"), .init(nil, "json")],
        run: { session, options throws(ToolstackError) in
            let rows = try session.rows(named: options.operands)
            if options.has("json") {
                let entries = rows.map { row -> PrettyJSON in
                    .object([
                        ("name", .string(row.name)), ("domid", .number(row.domid)),
                        ("upSeconds", .decimal(row.upSeconds)),
                    ])
                }
                session.print(PrettyJSON.array(entries).text + "\n")
                return 0
            }
            if options.has("s") {
                let time = Date().formatted(.iso8601.time(includingFractionalSeconds: false))
                for row in rows {
                    session.print(" \(time.prefix(8)) up \(clock(row.upSeconds)), \(row.name) (\(row.domid))\n")
                }
                return 0
            }
            session.print("\("Name".padded(33)) \("ID".padded(-4)) Uptime\n")
            for row in rows {
                session.print("\(row.name.padded(33)) \(row.domid.padded(4)) \(clock(row.upSeconds))\n")
            }
            return 0
        })

    private static func clock(_ seconds: Double) -> String {
        let whole = seconds.isFinite ? Int(seconds) : 0
        let days = whole / 86_400
        let two = { (value: Int) in value < 10 ? "0\(value)" : "\(value)" }
        let text = "\((whole / 3600 % 24).padded(2)):\(two(whole / 60 % 60)):\(two(whole % 60))"
        return days == 0 ? text : "\(days) day\(days == 1 ? "" : "s"), \(text)"
    }

    static let domid = Command(
        name: "domid", summary: "Print the number of the domain with a name", usage: "NAME", leastOperands: 1,
        mostOperands: 1,
        run: { session, options throws(ToolstackError) in
            let name = options.operands[0]
            guard let domid = name == "Domain-0" ? 0 : session.run.domains().first(where: { $0.name == name })?.domid
            else {
                throw ToolstackError(
                    "Can't get domid of domain name '\(name)', maybe this domain does not exist.", isVerbatim: true)
            }
            session.print("\(domid)\n")
            return 0
        })

    static let domname = Command(
        name: "domname", summary: "Print the name of the domain with a number", usage: "DOMID", leastOperands: 1,
        mostOperands: 1,
        run: { session, options throws(ToolstackError) in
            let text = options.operands[0]
            guard let domid = Int(text) else { throw ToolstackError("`\(text)' is no domain's number") }
            guard let name = domid == 0 ? "Domain-0" : session.run.domains().first(where: { $0.domid == domid })?.name
            else { throw ToolstackError("there is no domain \(domid)") }
            session.print("\(name)\n")
            return 0
        })
}
