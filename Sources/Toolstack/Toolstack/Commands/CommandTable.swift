// The commands of xl, and how a command line becomes one of them.
// Source: xl(1); exit codes captured on Xen 4.17.7.
// Modelled: global options, help, commands by name. What is not in the table does not exist.
// Quirks: `xl help NOSUCH` is no failure, as on Xen.

/// A command of xl.
struct Command: Sendable {
    let name: String
    let summary: String
    /// What follows the name on a command line.
    let usage: String
    var options: [(option: String, meaning: String)] = []
    /// The options as the parser knows them.
    var specifications: [Options.Specification] = []
    /// Fewer operands are an error with exit code 2.
    var leastOperands = 0
    var mostOperands = Int.max
    let run: @Sendable (Session, Options) throws(ToolstackError) -> Int32

    var help: String {
        var text = "Usage: xl [-vftTN] \(name) \(usage)\n\n\(summary).\n"
        guard !options.isEmpty else { return text }
        text += "\nOptions:\n\n"
        for entry in options { text += "\(entry.option.padded(24))\(entry.meaning)\n" }
        return text
    }
}

public enum XL {
    static let commands: [Command] = [
        .create, .configUpdate, .list, .destroy, .shutdown, .reboot, .pause, .unpause, .console, .vncviewer, .dumpCore,
        .cdInsert, .cdEject, .memMax, .memSet, .buttonPress, .vcpuList, .vcpuPin, .vcpuSet, .vmList, .info, .sharing,
        .schedCredit2, .domid, .domname, .rename, .trigger, .sysrq, .debugKeys, .dmesg, .top, .stats, .metrics,
        .networkAttach,
        .networkList, .networkDetach, .blockAttach, .blockList, .blockDetach, .uptime, .claims, .cpupoolList,
    ]

    /// Runs `xl ARGUMENTS`; the exit code.
    public static func main(_ arguments: [String], _ session: Session) -> Int32 {
        var session = session
        var rest = arguments[...]
        while let first = rest.first, first.hasPrefix("-"), first.count > 1 {
            rest.removeFirst()
            for letter in first.dropFirst() {
                switch letter {
                case "v": session.verbosity += 1
                case "f": session.force = true
                case "N": session.dryRun = true
                case "t", "T": break
                default:
                    session.complain("xl: unknown global option \(first) (try `xl help')")
                    return 1
                }
            }
        }
        guard let name = rest.popFirst() else {
            session.print(overview)
            return 1
        }
        if name == "help" { return help(rest.first, session) }
        guard let command = find(name) else {
            session.complain("command not implemented")
            return 1
        }
        return run(command, Array(rest), session)
    }

    /// A command by its name or an abbreviation that fits only one.
    private static func find(_ name: String) -> Command? {
        if let command = commands.first(where: { $0.name == name }) { return command }
        let matches = commands.filter { $0.name.hasPrefix(name) }
        return matches.count == 1 ? matches.first : nil
    }

    private static func run(_ command: Command, _ arguments: [String], _ session: Session) -> Int32 {
        do throws(ToolstackError) {
            let options = try Options(arguments, command.specifications)
            if options.has("help") {
                session.print(command.help)
                return 0
            }
            let count = options.operands.count
            if count < command.leastOperands || count > command.mostOperands {
                let wanted = command.leastOperands
                let words = "\(wanted) argument\(wanted == 1 ? "" : "s")"
                session.complain(
                    count < wanted ? "'xl \(command.name)' requires at least \(words).\n" : "too many arguments")
                session.print(command.help)
                return 2
            }
            return try command.run(session, options)
        } catch {
            if !error.message.isEmpty {
                let prefix = error.isVerbatim ? "" : "xl \(command.name): "
                for line in error.message.split(separator: "\n", omittingEmptySubsequences: !error.isVerbatim) {
                    session.complain("\(prefix)\(line)")
                }
            }
            for line in error.log { session.complain("    | \(line)") }
            return error.exitCode
        }
    }

    private static func help(_ name: String?, _ session: Session) -> Int32 {
        guard let name else {
            session.print(overview)
            return 0
        }
        session.print(find(name)?.help ?? "there is no command `\(name)'\n")
        return 0
    }

    private static var overview: String {
        var text = "Usage: xl [-vftTN] COMMAND [arguments]\n\n"
        for command in commands { text += " \(command.name.padded(20))\(command.summary)\n" }
        return text + " \("help".padded(20))Say how to use a command\n"
    }
}

extension Session {
    /// The domain that the user means, or the error xl gives.
    func domain(_ text: String) throws(ToolstackError) -> DomainRecord {
        guard let record = run.find(text) else {
            throw ToolstackError("\(text) is an invalid domain identifier (rc=-6)", isVerbatim: true)
        }
        return record
    }

    /// Domain-0 is the host: nothing that ends or stops it is allowed.
    func guest(_ text: String) throws(ToolstackError) -> DomainRecord {
        if text == "0" || text == "Domain-0" { throw ToolstackError("this cannot be done to Domain-0, the host") }
        return try domain(text)
    }
}
