// xl top and xl stats: figures of running domains.
// Source: columns captured from xentop of Xen 4.17.7.
// Modelled: live and batch mode, disks and interfaces as far as back ends count, exits. Not modelled: xentop's sorting.
// Quirks: EXITS and RING_EVTS are ours: how often guests left their code, and events between them and back ends.

internal import DomainConfig
internal import Foundation
internal import Host
internal import XenStoreClient

/// What a domain's devices have done.
struct DeviceFigures {
    var interfaces = 0
    var sentKiB = 0
    var receivedKiB = 0
    var disks = 0
    var waits = 0
    var reads = 0
    var writes = 0
    var readSectors = 0
    var writtenSectors = 0
    /// Requests of rings that were served, and the events that told of them.
    var requests: Int { reads + writes }
    var events = 0
}

extension Command {
    static let top = Command(
        name: "top", summary: "Monitor a host and the domains in real time", usage: "[-b] [-d SECONDS] [-i COUNT]",
        options: [
            ("-b, --batch", "print tables and take no keys"), ("-d, --delay=SECONDS", "between two tables: 3"),
            ("-i, --iterations=COUNT", "end after as many tables"), ("--json", "one table as JSON"),
        ],
        specifications: [
            .init("b", "batch"), .init("d", "delay", value: true), .init("i", "iterations", value: true),
            .init(nil, "json"),
        ], mostOperands: 0,
        run: { session, options throws(ToolstackError) in
            let delay = options.value("delay").map { Double($0) } ?? 3
            guard let delay, delay > 0, delay.isFinite else { throw ToolstackError("-d needs seconds", exitCode: 2) }
            let count = options.value("iterations").map { Int($0) } ?? Int.max
            guard let count, count > 0 else { throw ToolstackError("-i needs a number", exitCode: 2) }
            if options.has("json") {
                session.print(PrettyJSON.array(TopTable(session, since: nil).json).text + "\n")
                return 0
            }
            return TopRun(session, isBatch: options.has("batch"), delay: delay).run(count)
        })

    static let stats = Command(
        name: "stats", summary: "Print what a domain's processes count", usage: "[--json] DOMAIN",
        options: [("--json", "as JSON")], specifications: [.init(nil, "json")], leastOperands: 1, mostOperands: 1,
        run: { session, options throws(ToolstackError) in
            let record = try session.running(options.operands[0])
            let directory = session.run.directory(of: record.domid)
            var sections: [(String, PrettyJSON)] = [
                ("name", .string(record.name)), ("domid", .number(record.domid)),
                ("upSeconds", .decimal(Date().timeIntervalSince1970 - record.created)),
            ]
            for (name, socket) in [
                ("hypervisor", directory.control), ("device-model", directory.deviceModel),
                ("backend", directory.backend),
            ] {
                guard let line = try? LineClient.request("{\"command\":\"statistics\"}", at: socket, seconds: 2),
                    let value = PrettyJSON(line)
                else { continue }
                sections.append((name, value))
            }
            let all = PrettyJSON.object(sections)
            if options.has("json") {
                session.print(all.text + "\n")
            } else {
                for (key, value) in all.leaves { session.print("\(key.padded(40)) \(value)\n") }
            }
            return 0
        })
}

/// Tables until the count is reached or `q` is pressed.
private struct TopRun {
    let session: Session
    let isBatch: Bool
    let delay: Double

    init(_ session: Session, isBatch: Bool, delay: Double) {
        (self.session, self.isBatch, self.delay) = (session, isBatch, delay)
    }

    func run(_ count: Int) -> Int32 {
        let terminal = isBatch ? nil : RawTerminal(0)
        defer { terminal?.restore() }
        var last: TopTable?
        for round in 0..<count {
            let table = TopTable(session, since: last)
            last = table
            session.print(isBatch ? table.text : screen(table))
            if round + 1 == count { break }
            if isBatch {
                Thread.sleep(forTimeInterval: delay)
            } else if !waitForKey() {
                return 0
            }
        }
        return 0
    }

    /// The table over what was on the terminal, with a head like xentop's.
    private func screen(_ table: TopTable) -> String {
        let host = HostFigures.read()
        let time = Date().formatted(.dateTime.hour(.twoDigits(amPM: .omitted)).minute().second())
        let head =
            "xl top - \(time)\n\(table.rows.count) domains: q quits\nMem: \(host.totalMemory) MiB total, "
            + "\(host.freeMemory) MiB free    CPUs: \(host.processors) @ \(Int(host.megahertz)) MHz\n"
        return "\u{1B}[H\u{1B}[J" + (head + table.text).replacing("\n", with: "\r\n")
    }

    /// false if the user has had enough.
    private func waitForKey() -> Bool {
        guard !HostFile.waitReadable([0], milliseconds: Int32(min(delay, 1e6) * 1000)).isEmpty else { return true }
        guard let keys = try? HostFile.readAvailable(0, limit: 64), !keys.isEmpty else { return false }
        return !keys.contains { [UInt8(ascii: "q"), UInt8(ascii: "Q"), 3, 27].contains($0) }
    }
}

/// All domains at one moment.
struct TopTable {
    struct Row {
        var row: DomainRow
        var percent: Double
        var maximum: Int
        var devices: DeviceFigures
        var exits: Int?
    }
    var rows: [Row] = []
    private var hostMemory = 1
    private let moment = monotonicNanoseconds()

    init(_ session: Session, since last: TopTable?) {
        hostMemory = max(1, HostFigures.read().totalMemory)
        for row in session.rows() {
            let config = try? session.run.directory(of: row.domid).readConfig()
            let before = last?.rows.first { $0.row.domid == row.domid }
            let seconds = last.map { Double(moment - $0.moment) / 1e9 } ?? 0
            let used = before.map { max(0, row.seconds - $0.row.seconds) } ?? 0
            rows.append(
                Row(
                    row: row, percent: seconds > 0 ? used / seconds * 100 : 0, maximum: config?.maxmem ?? row.memory,
                    devices: session.devices(of: row.domid), exits: row.exits))
        }
    }

    static let header =
        "      NAME  STATE   CPU(sec) CPU(%)     MEM(k) MEM(%)  MAXMEM(k) MAXMEM(%) VCPUS NETS NETTX(k) NETRX(k) VBDS"
        + "   VBD_OO   VBD_RD   VBD_WR  VBD_RSECT  VBD_WSECT SSID      EXITS  RING_EVTS\n"

    var text: String { rows.reduce(Self.header) { $0 + line($1) } }

    private func share(_ memory: Int) -> Double { Double(memory) / Double(hostMemory) * 100 }

    private func line(_ entry: Row) -> String {
        let (row, devices) = (entry.row, entry.devices)
        // xentop's order: dying, shut down, blocked, crashed, paused, running.
        let state = String("dsbcpr".map { row.state.contains($0) ? $0 : "-" })
        var text = "\(String(row.name.prefix(10)).padded(-10)) \(state) \(Int(row.seconds).padded(10)) "
        text += "\(tenths(entry.percent, 6)) \((row.memory * 1024).padded(10)) \(tenths(share(row.memory), 6)) "
        text += "\((entry.maximum * 1024).padded(10)) \(tenths(share(entry.maximum), 9)) "
        text += "\(row.processors.count.padded(5)) \(devices.interfaces.padded(4)) \(devices.sentKiB.padded(8)) "
        text += "\(devices.receivedKiB.padded(8)) \(devices.disks.padded(4)) \(devices.waits.padded(8)) "
        text += "\(devices.reads.padded(8)) \(devices.writes.padded(8)) \(devices.readSectors.padded(10)) "
        text += "\(devices.writtenSectors.padded(10)) \(0.padded(4)) "
        text += (entry.exits.map(String.init) ?? "-").padded(-10) + " "
        return text + devices.events.padded(10) + "\n"
    }

    var json: [PrettyJSON] {
        rows.map { entry in
            let devices = entry.devices
            return .object([
                ("name", .string(entry.row.name)), ("domid", .number(entry.row.domid)),
                ("state", .string(entry.row.state)), ("cpuSeconds", .decimal(entry.row.seconds)),
                ("memoryKiB", .number(entry.row.memory * 1024)), ("maxmemKiB", .number(entry.maximum * 1024)),
                ("vcpus", .number(entry.row.processors.count)), ("interfaces", .number(devices.interfaces)),
                ("sentKiB", .number(devices.sentKiB)), ("receivedKiB", .number(devices.receivedKiB)),
                ("disks", .number(devices.disks)), ("reads", .number(devices.reads)),
                ("writes", .number(devices.writes)), ("readSectors", .number(devices.readSectors)),
                ("writtenSectors", .number(devices.writtenSectors)),
                ("exits", entry.exits.map { .number($0) } ?? .null), ("ringEvents", .number(devices.events)),
            ])
        }
    }
}

extension Session {
    /// What the domain's back ends have counted; the store says which devices there are.
    func devices(of domid: Int) -> DeviceFigures {
        var figures = DeviceFigures()
        guard domid != 0 else { return figures }
        let store = openStore()
        figures.disks = (try? store?.directory("/libxl/\(domid)/device/vbd")?.count) ?? 0
        figures.interfaces = (try? store?.directory("/libxl/\(domid)/device/vif")?.count) ?? 0
        let socket = run.directory(of: domid).backend
        guard let reply = try? Control.ask(socket, ControlRequest("status"), seconds: 1) else { return figures }
        figures.events = (reply.eventsReceived ?? 0) + (reply.eventsSent ?? 0)
        for device in reply.devices ?? [] {
            figures.waits += device.waits ?? 0
            figures.reads += device.reads ?? 0
            figures.writes += device.writes ?? 0
            figures.readSectors += device.readSectors ?? 0
            figures.writtenSectors += device.writtenSectors ?? 0
        }
        for interface in reply.interfaces ?? [] {
            figures.sentKiB += (interface.sentBytes ?? 0) / 1024
            figures.receivedKiB += (interface.receivedBytes ?? 0) / 1024
        }
        return figures
    }
}
