// xl config-update, rename's sibling: what a domain is started from next time.
// Source: xl(1), "config-update".
// Modelled: the saved config is replaced and takes effect at the next reboot.
// Quirks: name, UUID and number stay those of the running domain.

internal import DomainConfig
internal import Foundation
internal import Host

extension Command {
    static let configUpdate = Command(
        name: "config-update",
        summary: "Update a running domain's saved configuration, used when rebuilding the domain after reboot",
        usage: "DOMAIN [CONFIGFILE] [options] [KEY=VALUE ...]",
        options: [
            ("-f, --defconfig=FILE", "the config file, instead of the second argument"), ("-d", "say more"),
        ], specifications: [.init("f", "defconfig", value: true), .init("d")], leastOperands: 1,
        run: { session, options throws(ToolstackError) in
            session.complain(
                "WARNING: xl now has better capability to manage domain configuration, "
                    + "avoid using this command when possible")
            let record = try session.guest(options.operands[0])
            let directory = session.run.directory(of: record.domid)
            var file: ConfigFile
            var rest = options.operands.dropFirst()
            do {
                if let path = options.value("defconfig")
                    ?? rest.first(where: { !$0.contains("=") || $0.hasPrefix("/") })
                {
                    rest.removeAll { $0 == path }
                    file = ConfigFile(try HostFile.read(path, limit: ConfigFile.largest + 1), source: path)
                    session.complain("Parsing config from \(path)")
                } else {
                    file = try directory.readSettings()
                }
            } catch {
                throw ToolstackError("Failed to read config file: \(error)", isVerbatim: true)
            }
            for setting in rest { file.override(setting) }
            let reading = DomainConfig.read(file)
            for warning in reading.warnings { session.complain("\(warning)") }
            guard var config = reading.config, reading.errors.isEmpty else {
                throw ToolstackError(reading.errors.map(\.description).joined(separator: "\n"))
            }
            (config.name, config.uuid, config.domid) = (record.name, record.uuid, record.domid)
            session.complain("setting dom\(record.domid) configuration")
            do {
                try directory.write(config)
                try directory.write(file)
            } catch {
                throw ToolstackError("\(error)")
            }
            return 0
        })
}
