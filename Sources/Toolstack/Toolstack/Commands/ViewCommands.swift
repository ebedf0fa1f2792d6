// xl console and xl vncviewer: looking at a domain.
// Source: xl(1).
// Modelled: serial and PV consoles, any viewer that takes HOST:DISPLAY. Not modelled: more than one console a domain.
// Quirks: viewers are looked for by name: vncviewer, then gvncviewer.

internal import DomainConfig
internal import Foundation
internal import Host

extension Command {
    static let console = Command(
        name: "console", summary: "Attach to a domain's console (ctrl-] leaves)", usage: "[options] DOMAIN",
        options: [("-t TYPE", "console type: pv, serial or vuart"), ("-n NUMBER", "console number: 0")],
        specifications: [.init("t", value: true), .init("n", value: true)], leastOperands: 1, mostOperands: 1,
        run: { session, options throws(ToolstackError) in
            let record = try session.guest(options.operands[0])
            let kind = (try? session.run.directory(of: record.domid).readConfig())?.kind ?? .hvm
            // Serial ports come with a board, and are then the first console; Xen's is there always.
            let type = options.value("t") ?? (kind == .hvm ? "serial" : "pv")
            guard ["serial", "pv", "vuart"].contains(type) else {
                throw ToolstackError("console type supported are: pv, serial, vuart", exitCode: 2, isVerbatim: true)
            }
            guard type == "pv" || type == "serial" && kind == .hvm else {
                throw ToolstackError("domain \(record.name) has no \(type) console")
            }
            guard let number = Int(options.value("n") ?? "0") else {
                throw ToolstackError("`-n' needs a number", exitCode: 2)
            }
            guard number == 0 else { throw ToolstackError("domain \(record.name) has no console \(number)") }
            let directory = session.run.directory(of: record.domid)
            return try ConsoleClient(
                directory, terminal: type == "pv" ? directory.pvConsole(of: kind) : directory.console
            ).run()
        })

    static let vncviewer = Command(
        name: "vncviewer", summary: "Show a domain's screen in a VNC viewer", usage: "[options] DOMAIN",
        options: [("--autopass", "hand the password to the viewer"), ("--vncviewer-autopass", "the same")],
        specifications: [.init(nil, "autopass"), .init(nil, "vncviewer-autopass")], leastOperands: 1, mostOperands: 1,
        run: { session, options throws(ToolstackError) in
            let record = try session.guest(options.operands[0])
            let passes = options.has("autopass") || options.has("vncviewer-autopass")
            let viewer = try Viewer(session, record, passesPassword: passes).start()
            return viewer.reap(wait: true) == .exit(0) ? 0 : 1
        })
}

/// A VNC viewer on a domain's screen.
struct Viewer {
    private let session: Session
    private let record: DomainRecord
    private let passesPassword: Bool

    init(_ session: Session, _ record: DomainRecord, passesPassword: Bool) {
        (self.session, self.record, self.passesPassword) = (session, record, passesPassword)
    }

    func start() throws(ToolstackError) -> ChildProcess {
        let directory = session.run.directory(of: record.domid)
        guard let (host, port) = directory.vncAddress else {
            throw ToolstackError("domain \(record.name) has no VNC server")
        }
        let address = ["0.0.0.0", "::", "*", ""].contains(host) ? "127.0.0.1" : host
        let display = port >= 5900 ? "\(address):\(port - 5900)" : "\(address)::\(port)"
        guard let program = find("vncviewer") ?? find("gvncviewer") else {
            throw ToolstackError(
                "no VNC viewer is installed (vncviewer, gvncviewer); the screen is at \(address):\(port)")
        }
        do {
            guard passesPassword, let config = try? directory.readConfig(), !config.display.vncPassword.isEmpty else {
                return try ChildProcess(path: program, arguments: [display], descriptors: [0, 1, 2])
            }
            let pipe = try makePipe()
            try HostFile.write(Array((config.display.vncPassword + "\n").utf8), to: pipe.writing.number)
            return try ChildProcess(
                path: program, arguments: [display, "-autopass"], descriptors: [pipe.reading.number, 1, 2])
        } catch {
            throw ToolstackError("\(error)")
        }
    }

    private func find(_ name: String) -> String? {
        let folders = (session.environment["PATH"] ?? "/usr/bin:/bin").split(separator: ":")
        return folders.map { "\($0)/\(name)" }.first { FileManager.default.isExecutableFile(atPath: $0) }
    }
}
