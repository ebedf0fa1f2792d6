// A program that serves one domain, as its monitor starts it: NAME --directory DIR [OPTIONS].
// Source: ours; docs/ARCHITECTURE.md.
// Modelled: command line, status lines on descriptor 3, failures. Quirks: descriptors from 4 on are each program's own.

internal import Foundation
internal import Host

/// The process itself.
public struct DomainProcess: Sendable {
    private let name: String
    /// The domain's directory.
    public let directory: String
    /// The options that were given.
    public let options: Set<String>

    /// Reads the command line; what makes no sense there ends the process with 2.
    public init(_ name: String, options known: [String] = []) {
        self.name = name
        let arguments = CommandLine.arguments
        options = Set(arguments.dropFirst(3))
        guard arguments.count >= 3, arguments[1] == "--directory", options.isSubset(of: known) else {
            let usage = "usage: \(name) --directory DIR" + known.map { " [\($0)]" }.joined()
            FileHandle.standardError.write(Data("\(usage)\n".utf8))
            exit(2)
        }
        directory = arguments[2]
        signal(SIGPIPE, SIG_IGN)
    }

    /// Tells the monitor; that it has gone is not our concern.
    public func say(_ line: StatusLine) {
        guard let json = try? JSONEncoder().encode(line) else { return }
        try? HostFile.write(Array(json) + [0x0A], to: 3)
    }

    /// Writes a line to the process's log.
    public func complain(_ text: String) { FileHandle.standardError.write(Data("\(name): \(text)\n".utf8)) }

    /// Does `body`; what it throws is told to the monitor and the log, and ends the process with 1.
    public func run(_ body: () throws -> Void) {
        do { try body() } catch {
            say(StatusLine(error: "\(error)"))
            complain("\(error)")
            exit(1)
        }
    }
}
