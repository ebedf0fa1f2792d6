// xl metrics: the figures of all domains for a monitoring system, printed once or served on request.
// Source: Prometheus' text exposition format 0.0.4; names follow its conventions (base units, _total).
// Modelled: CPU, memory, exits, hypercalls, answers of the device model, events, chips, disks.
// Quirks: nothing listens unless it is asked to, and then on 127.0.0.1 or a Unix socket only; every visit asks anew.

internal import Foundation
internal import Host

extension Command {
    static let metrics = Command(
        name: "metrics", summary: "Print or serve figures of all domains for Prometheus", usage: "[--listen PLACE]",
        options: [("--listen=PLACE", "serve them at http://PLACE/metrics: 127.0.0.1:PORT, or unix:PATH")],
        specifications: [.init(nil, "listen", value: true)], mostOperands: 0,
        run: { session, options throws(ToolstackError) in
            guard let text = options.value("listen") else {
                session.print(Metrics(of: session).text)
                return 0
            }
            guard let place = PageServer.Place(text) else {
                throw ToolstackError("--listen needs 127.0.0.1:PORT or unix:PATH, not \(text)", exitCode: 2)
            }
            do throws(HostFailure) {
                let server = try PageServer(place)
                if let port = server.port { session.complain("metrics are at http://127.0.0.1:\(port)/metrics") }
                while true { server.serveOne { $0 == "/metrics" ? Metrics(of: session).text : nil } }
            } catch {
                throw ToolstackError("\(error)")
            }
        })
}

/// Samples, by family.
struct Metrics {
    typealias Labels = [(name: String, value: String)]

    private struct Family {
        var name: String
        var help: String
        var type: String
        var lines: [String] = []
    }
    private var families: [Family] = []

    init() {}

    init(of session: Session) {
        for record in session.run.domains() where record.state == .running {
            let directory = session.run.directory(of: record.domid)
            let labels: Labels = [("domain", record.name), ("domid", "\(record.domid)")]
            if let reply: HypervisorFigures = Self.ask(directory.control) { add(reply, labels) }
            if let reply: ModelFigures = Self.ask(directory.deviceModel) {
                addChips(reply.chips ?? [], labels, process: "device-model")
            }
            if let reply: BackendFigures = Self.ask(directory.backend) { add(reply, labels) }
        }
    }

    private static func ask<Reply: Decodable>(_ socket: String) -> Reply? {
        guard let line = try? LineClient.request("{\"command\":\"statistics\"}", at: socket, seconds: 2) else {
            return nil
        }
        return try? JSONDecoder().decode(Reply.self, from: Data(line.utf8))
    }

    /// Adds a sample to the family `name`, with the suffix that histograms have.
    mutating func add(
        _ name: String, _ help: String, as type: String = "counter", _ labels: Labels, _ value: Double,
        suffix: String = ""
    ) {
        let list = labels.map { "\($0.name)=\"\(Self.escaped($0.value))\"" }.joined(separator: ",")
        let line = "\(name)\(suffix){\(list)} \(Self.number(value))"
        if let index = families.firstIndex(where: { $0.name == name }) {
            families[index].lines.append(line)
        } else {
            families.append(Family(name: name, help: help, type: type, lines: [line]))
        }
    }

    var text: String {
        families.reduce("") { text, family in
            text + "# HELP \(family.name) \(family.help)\n# TYPE \(family.name) \(family.type)\n"
                + family.lines.map { $0 + "\n" }.joined()
        }
    }

    static func escaped(_ text: String) -> String {
        text.replacing("\\", with: "\\\\").replacing("\"", with: "\\\"").replacing("\n", with: "\\n")
    }

    private static func number(_ value: Double) -> String {
        value == value.rounded() && value.magnitude < 1e15 ? "\(Int(value))" : "\(value)"
    }
}

// MARK: - What the processes answer

private struct ChipFigures: Decodable {
    var name: String
    var reads: Double
    var writes: Double
}

private struct HypervisorFigures: Decodable {
    struct Processor: Decodable { var cpuSeconds: Double }
    struct Answers: Decodable {
        var count: Double
        var nanoseconds: Double
        var histogram: [Double]
    }
    struct Programs: Decodable {
        var runs: Double
        var nanoseconds: Double
    }
    struct Statistics: Decodable {
        var exits: [[String: Double]]
        var hypercalls: [String: Double]
        var answers: Answers
        var programs: Programs
        var events: [String: Double]
        var chips: [ChipFigures]
    }
    var vcpus: [Processor]?
    var memoryKiB: Double?
    var statistics: Statistics?
}

private struct ModelFigures: Decodable { var chips: [ChipFigures]? }

private struct BackendFigures: Decodable {
    struct Device: Decodable {
        var number: Int
        var reads: Double
        var writes: Double
        var flushes: Double
        var failures: Double
        var readSectors: Double
        var writtenSectors: Double
    }
    struct Interface: Decodable {
        var number: Int
        var sentFrames: Double
        var sentBytes: Double
        var receivedFrames: Double
        var receivedBytes: Double
        var sendErrors: Double
        var dropped: Double
    }
    var devices: [Device]
    var interfaces: [Interface]?
    var eventsReceived: Double
    var eventsSent: Double
}

extension Metrics {
    private mutating func add(_ figures: HypervisorFigures, _ labels: Labels) {
        for (index, vcpu) in (figures.vcpus ?? []).enumerated() {
            add(
                "apus_vcpu_cpu_seconds_total", "CPU time of vCPU threads.", labels + [("vcpu", "\(index)")],
                vcpu.cpuSeconds)
        }
        if let kibibytes = figures.memoryKiB {
            add("apus_domain_memory_bytes", "Memory that the guest has.", as: "gauge", labels, kibibytes * 1024)
        }
        guard let statistics = figures.statistics else { return }
        for (index, kinds) in statistics.exits.enumerated() {
            for (kind, count) in kinds.sorted(by: { $0.key < $1.key }) {
                add(
                    "apus_vcpu_exits_total", "What took vCPUs out of guest code, and what was delivered to them.",
                    labels + [("vcpu", "\(index)"), ("kind", kind)], count)
            }
        }
        for (name, count) in statistics.hypercalls.sorted(by: { $0.key < $1.key }) {
            add("apus_hypercalls_total", "Hypercalls by name.", labels + [("call", name)], count)
        }
        for (kind, count) in statistics.events.sorted(by: { $0.key < $1.key }) {
            add("apus_events_total", "Event channel activity.", labels + [("kind", kind)], count)
        }
        let programs = statistics.programs
        add(
            "apus_direct_seconds_total", "CPU time of guest programs that ran by themselves.", labels,
            programs.nanoseconds / 1e9)
        add("apus_direct_runs_total", "How often one did, until something stopped it.", labels, programs.runs)
        add(statistics.answers, labels)
        addChips(statistics.chips, labels, process: "hypervisor")
    }

    /// Buckets are cumulative, bounds in seconds.
    private mutating func add(_ answers: HypervisorFigures.Answers, _ labels: Labels) {
        let (name, help) = ("apus_ioreq_seconds", "How long vCPUs waited for the device model.")
        var sum = 0.0
        for (power, count) in answers.histogram.enumerated() where power < 31 && (power >= 8 || count > 0) {
            sum += count
            let bound = "\(Double(UInt64(1) << UInt64(power)) / 1e9)"
            add(name, help, as: "histogram", labels + [("le", bound)], sum, suffix: "_bucket")
        }
        add(name, help, as: "histogram", labels + [("le", "+Inf")], answers.count, suffix: "_bucket")
        add(name, help, as: "histogram", labels, answers.nanoseconds / 1e9, suffix: "_sum")
        add(name, help, as: "histogram", labels, answers.count, suffix: "_count")
    }

    private mutating func addChips(_ chips: [ChipFigures], _ labels: Labels, process: String) {
        for chip in chips {
            for (direction, count) in [("read", chip.reads), ("write", chip.writes)] {
                add(
                    "apus_device_accesses_total", "Guest accesses to emulated devices.",
                    labels + [("process", process), ("device", chip.name), ("direction", direction)], count)
            }
        }
    }

    private mutating func addInterfaces(_ figures: BackendFigures, _ labels: Labels) {
        for interface in figures.interfaces ?? [] {
            let labels = labels + [("interface", "\(interface.number)")]
            for (direction, frames, bytes) in [
                ("sent", interface.sentFrames, interface.sentBytes),
                ("received", interface.receivedFrames, interface.receivedBytes),
            ] {
                let labels = labels + [("direction", direction)]
                add("apus_vif_frames_total", "Frames of PV interfaces, as the guest sees them.", labels, frames)
                add("apus_vif_bytes_total", "Bytes of PV interfaces, as the guest sees them.", labels, bytes)
            }
            for (kind, count) in [("send", interface.sendErrors), ("receive", interface.dropped)] {
                let labels = labels + [("direction", kind)]
                add("apus_vif_dropped_total", "Frames of PV interfaces that were lost.", labels, count)
            }
        }
    }

    private mutating func add(_ figures: BackendFigures, _ labels: Labels) {
        addInterfaces(figures, labels)
        for device in figures.devices {
            let labels = labels + [("device", "\(device.number)")]
            let requests = [
                ("read", device.reads), ("write", device.writes), ("flush", device.flushes),
                ("failed", device.failures),
            ]
            for (kind, count) in requests {
                add("apus_vbd_requests_total", "Requests of PV disks.", labels + [("kind", kind)], count)
            }
            for (direction, sectors) in [("read", device.readSectors), ("write", device.writtenSectors)] {
                add(
                    "apus_vbd_bytes_total", "Bytes moved by PV disks.", labels + [("direction", direction)],
                    sectors * 512)
            }
        }
        for (direction, count) in [("received", figures.eventsReceived), ("sent", figures.eventsSent)] {
            add(
                "apus_backend_events_total", "Events between the guest and its back ends.",
                labels + [("direction", direction)], count)
        }
    }
}
