// xl shutdown, reboot, trigger, button-press, sysrq: what a guest is asked to do by itself.
// Source: xl(1); xenstore-paths.pandoc, "control/shutdown"; output captured on Xen 4.17.7.
// Modelled: PV drivers' control nodes, ACPI with -F. Not modelled: triggers init, sleep, s3resume.
// Quirks: a guest has PV drivers if it has said so in control/feature-poweroff; a PV domain always has.

internal import DomainConfig
internal import Foundation
internal import XenStoreClient

extension Session {
    /// A request through control/shutdown; false if the guest has nobody who would read it.
    func signal(_ record: DomainRecord, _ request: String) -> Bool {
        let feature = request == "poweroff" ? "feature-poweroff" : "feature-reboot"
        guard let store = openStore() else { return false }
        let base = "/local/domain/\(record.domid)/control"
        let kind = (try? run.directory(of: record.domid).readConfig())?.kind
        let offered = (try? store.read("\(base)/\(feature)")) ?? nil
        guard offered == "1" || (kind == .pv && offered != nil) else { return false }
        return (try? store.write("\(base)/shutdown", request)) != nil
    }

    /// Whether the store knows the domain: only then can its guest have PV drivers.
    private func isKnownToStore(_ record: DomainRecord) -> Bool {
        guard let store = openStore() else { return false }
        return ((try? store.read("/local/domain/\(record.domid)/domid")) ?? nil) != nil
    }

    /// Asks through PV drivers, or by ACPI if there are none and `-F` allows it.
    func ask(_ record: DomainRecord, _ request: String, forced: Bool) throws(ToolstackError) {
        if signal(record, request) { return }
        let kind = (try? run.directory(of: record.domid).readConfig())?.kind ?? .hvm
        let (what, event) = request == "poweroff" ? ("shutdown", "power") : ("reboot", "reset")
        if kind != .hvm || (!forced && isKnownToStore(record)) {
            let advice = kind == .hvm ? "\nUse \"-F\" to fallback to ACPI \(event) event." : ""
            throw ToolstackError(
                "PV control interface not available:\nexternal graceful \(what) not possible.\(advice)",
                isVerbatim: true)
        }
        if forced { complain("PV control interface not available: sending ACPI \(event) button event.") }
        if request == "poweroff" {
            _ = try Control.ask(deviceModel(record), ControlRequest("powerButton"))
        } else {
            try reset(record)
        }
    }

    /// Asks the domain's monitor how the domain ends. It must be asked before the guest is: the end can come at once.
    func watchEnd(_ record: DomainRecord) -> ControlQuestion? {
        try? ControlQuestion(run.directory(of: record.domid).monitor, ControlRequest("wait"))
    }

    /// Waits for a domain's end. The answer is its reason code; nil if it was destroyed.
    private func waitForEnd(_ record: DomainRecord, _ watch: ControlQuestion?) -> Int? {
        let reply = try? watch?.answer(seconds: 1e6)
        if let reason = reply?.reason { return ShutdownReason(rawValue: reason)?.code }
        // The monitor was gone before it could answer.
        while let now = run.domains().first(where: { $0.domid == record.domid }), now.state != .shutdown {
            Thread.sleep(forTimeInterval: 0.2)
        }
        return nil
    }

    func waitForEnds(_ watched: [(record: DomainRecord, watch: ControlQuestion?)]) {
        print("Waiting for \(watched.count) domains\n")
        for (record, watch) in watched {
            if let code = waitForEnd(record, watch) {
                print("Domain \(record.domid) has been shut down, reason code \(code)\n")
            } else {
                print("Domain \(record.domid) has been destroyed\n")
            }
        }
    }
}

/// How a domain ended, and Xen's number for it (sched.h, SHUTDOWN_*).
enum ShutdownReason: String {
    case poweroff, reboot, suspend, crash, watchdog
    case softReset = "soft-reset"

    var code: Int {
        switch self {
        case .poweroff: 0
        case .reboot: 1
        case .suspend: 2
        case .crash: 3
        case .watchdog: 4
        case .softReset: 5
        }
    }
}

extension Command {
    static let shutdown = asking(
        "shutdown", "Issue a shutdown signal to a domain", request: "poweroff", saying: "Shutting down", event: "power")
    static let reboot = asking(
        "reboot", "Issue a reboot signal to a domain", request: "reboot", saying: "Rebooting", event: "reset")

    private static func asking(
        _ name: String, _ summary: String, request: String, saying: String, event: String
    ) -> Command {
        Command(
            name: name, summary: summary, usage: "[options] -a|DOMAIN",
            options: [
                ("-a, --all", "all guest domains"), ("-w, --wait", "wait until they have done it"),
                ("-F", "fall back to the ACPI \(event) event for HVM guests without PV drivers"),
            ], specifications: [.init("a", "all"), .init("w", "wait"), .init("F")],
            run: { session, options throws(ToolstackError) in
                let watched = try session.targets(options).map { record in
                    (record, options.has("wait") ? session.watchEnd(record) : nil)
                }
                for (record, _) in watched {
                    session.complain("\(saying) domain \(record.domid)")
                    try session.ask(record, request, forced: options.has("F"))
                }
                if options.has("wait") { session.waitForEnds(watched) }
                return 0
            })
    }

    static let trigger = Command(
        name: "trigger", summary: "Send a trigger to a domain",
        usage: "DOMAIN nmi|reset|init|power|sleep|s3resume [VCPU]", leastOperands: 2, mostOperands: 3,
        run: { session, options throws(ToolstackError) in
            let record = try session.running(options.operands[0])
            switch options.operands[1] {
            case "power", "reset", "init", "sleep", "s3resume":
                guard (try? session.run.directory(of: record.domid).readConfig())?.kind == .hvm else {
                    throw ToolstackError(
                        "Send trigger '\(options.operands[1])' failed: only HVM domains have one; "
                            + "xl shutdown and xl reboot ask the kernel")
                }
                switch options.operands[1] {
                case "power": _ = try Control.ask(session.deviceModel(record), ControlRequest("powerButton"))
                case "reset": try session.reset(record)
                default:
                    throw ToolstackError(
                        "trigger \(options.operands[1]) is not supported yet: nmi, power and reset are")
                }
            case "nmi":
                guard let vcpu = Int(options.operands.count > 2 ? options.operands[2] : "0") else {
                    throw ToolstackError("nmi needs the number of a vCPU", exitCode: 2)
                }
                let socket = session.run.directory(of: record.domid).control
                _ = try Control.ask(socket, ControlRequest("nmi", vcpu: vcpu))
            default:
                session.complain("Invalid trigger \"\(options.operands[1])\"")
                throw ToolstackError("", exitCode: 1)
            }
            return 0
        })

    static let buttonPress = Command(
        name: "button-press", summary: "Indicate an ACPI button press to the domain", usage: "DOMAIN power|sleep",
        leastOperands: 2, mostOperands: 2,
        run: { session, options throws(ToolstackError) in
            let record = try session.running(options.operands[0])
            guard options.operands[1] == "power" else {
                throw ToolstackError("there is no button `\(options.operands[1])': power is known", exitCode: 2)
            }
            _ = try Control.ask(session.deviceModel(record), ControlRequest("powerButton"))
            return 0
        })

    static let sysrq = Command(
        name: "sysrq", summary: "Send a sysrq to a domain", usage: "DOMAIN LETTER", leastOperands: 2, mostOperands: 2,
        run: { session, options throws(ToolstackError) in
            let record = try session.running(options.operands[0])
            let key = options.operands[1]
            guard key.utf8.count == 1 else {
                throw ToolstackError("Invalid sysrq.\n", isVerbatim: true)
            }
            try session.withStore { (store) throws(StoreFailure) in
                try store.write("/local/domain/\(record.domid)/control/sysrq", key)
            }
            return 0
        })
}
