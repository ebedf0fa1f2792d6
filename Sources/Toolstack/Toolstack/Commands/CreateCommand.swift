// xl create, and the configs it prints.
// Source: xl(1); xl.cfg(5); exit codes captured on Xen 4.17.7.
// Modelled: all options but -e's "nobody waits": a domain always has a monitor.
// Quirks: 3 for a missing file and everything that fails while creating, 1 for what is wrong in the config, 6 for nothing.

internal import DomainConfig
internal import Foundation
internal import Host

extension Command {
    static let create = Command(
        name: "create", summary: "Create a domain from a config file", usage: "CONFIGFILE [options] [KEY=VALUE ...]",
        options: [
            ("-c", "attach the console once the domain is created (ctrl-] leaves)"),
            ("-d", "say more while creating"),
            ("-e", "do not act on the domain's end: keep it until it is destroyed"),
            ("-f, --defconfig=FILE", "the config file, instead of the first argument"),
            ("-F", "stay in the foreground until the domain ends"),
            ("-n, --dryrun", "print the resulting config and create nothing"),
            ("-p", "leave the domain paused"),
            ("-q, --quiet", "say less"),
            ("-V, --vncviewer", "start a VNC viewer once the domain is created"),
            ("-A, --vncviewer-autopass", "the same, and hand the password to the viewer"),
            ("--json", "print the domain's name and number as JSON"),
        ],
        specifications: [
            .init("c"), .init("d"), .init("e"), .init("F"), .init("f", "defconfig", value: true), .init("n", "dryrun"),
            .init("p"), .init("q", "quiet"), .init("V", "vncviewer"), .init("A", "vncviewer-autopass"),
            .init(nil, "ignore-global-affinity-masks"), .init(nil, "json"),
        ],
        run: { session, options throws(ToolstackError) in try CreateRun(session, options).run() })
}

private struct CreateRun {
    let session: Session
    let options: Options

    init(_ session: Session, _ options: Options) { (self.session, self.options) = (session, options) }

    func run() throws(ToolstackError) -> Int32 {
        let file = try readFile()
        let reading = DomainConfig.read(file)
        for warning in reading.warnings { session.complain("\(warning)") }
        if reading.config == nil {
            for error in reading.errors { session.complain("\(error)") }
            throw ToolstackError("", exitCode: 1)
        }
        if session.dryRun || options.has("dryrun") { return printConfig(reading, file) }
        return try create(reading, file)
    }

    /// The config file with the settings of the command line.
    private func readFile() throws(ToolstackError) -> ConfigFile {
        var path = options.value("defconfig")
        var settings: [String] = []
        for operand in options.operands {
            if path == nil && (operand.first == "/" || !operand.contains("=")) {
                path = operand
            } else if operand.contains("=") {
                settings.append(operand)
            } else {
                session.print(Command.create.help)
                throw ToolstackError("`\(operand)' is neither the config file nor KEY=VALUE", exitCode: 2)
            }
        }
        guard let path else { throw ToolstackError("no config file is given", exitCode: 6) }
        let bytes: [UInt8]
        do {
            bytes = try HostFile.read(path, limit: ConfigFile.largest + 1)
        } catch {
            throw ToolstackError("the config file cannot be read: \(error)", exitCode: 3)
        }
        if !options.has("quiet") { session.complain("Parsing config from \(path)") }
        var file = ConfigFile(bytes, source: path)
        for setting in settings { file.override(setting) }
        if options.has("e") { for key in ["poweroff", "reboot", "crash"] { file.override("on_\(key)='preserve'") } }
        return file
    }

    private func printConfig(_ reading: ConfigReading, _ file: ConfigFile) -> Int32 {
        for error in reading.errors { session.complain("\(error)") }
        guard let config = reading.config, reading.errors.isEmpty else { return 1 }
        session.print(LongForm(config, from: file, running: false).json.text + "\n")
        return 0
    }

    private func create(_ reading: ConfigReading, _ file: ConfigFile) throws(ToolstackError) -> Int32 {
        let starter = DomainStarter(run: session.run, programs: session.programs)
        let (record, monitor) = try starter.create(reading, settings: file, paused: options.has("p")) {
            // The user may want to choose from a boot loader's menu.
            if options.has("c") { _ = try? ConsoleClient($0).run() }
        }
        let directory = session.run.directory(of: record.domid)
        if let interfaces = try? directory.readConfig().interfaces {
            for note in interfaces.compactMap(HostNetwork.note) { session.complain(note) }
        }
        if options.has("json") {
            let members: [(String, PrettyJSON)] = [("domid", .number(record.domid)), ("name", .string(record.name))]
            session.print(PrettyJSON.object(members).text + "\n")
        }
        if options.has("vncviewer") || options.has("vncviewer-autopass") {
            let viewer = Viewer(session, record, passesPassword: options.has("vncviewer-autopass"))
            do { _ = try viewer.start() } catch { session.complain("xl create: \(error.message)") }
        }
        if options.has("c") { _ = try ConsoleClient(directory).run() }
        if options.has("F") { monitor.reap(wait: true) }
        return 0
    }
}
