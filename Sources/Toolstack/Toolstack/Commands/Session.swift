// What a command of xl works with, and how it reads its options.
// Source: getopt_long(3).
// Modelled: grouped short options, abbreviated long ones, options behind operands, `--`.
// Quirks: output goes through closures, so that tests can read it.

internal import Foundation

/// One run of xl.
public struct Session {
    public var run: RunDirectory
    /// Where `xl`, `hypervisor` and `device-model` are.
    public var programs: String
    public var environment: [String: String]
    public var print: (String) -> Void
    public var complain: (String) -> Void
    /// The global options: -v (count), -f, -N, -t, -T.
    public var verbosity = 0
    public var force = false
    public var dryRun = false

    public init(
        run: RunDirectory, programs: String, environment: [String: String], print: @escaping (String) -> Void,
        complain: @escaping (String) -> Void
    ) {
        (self.run, self.programs, self.environment) = (run, programs, environment)
        (self.print, self.complain) = (print, complain)
    }
}

/// A command's options in the order they came, and what is left.
struct Options {
    struct Specification: Sendable {
        let short: Character?
        let long: String?
        let takesValue: Bool
        init(_ short: Character?, _ long: String? = nil, value: Bool = false) {
            (self.short, self.long, self.takesValue) = (short, long, value)
        }
        var name: String { long ?? short.map(String.init) ?? "" }
    }

    private(set) var given: [(name: String, value: String)] = []
    private(set) var operands: [String] = []

    /// Every command has -h and --help too.
    init(_ arguments: [String], _ known: [Specification]) throws(ToolstackError) {
        let known = known + [Specification("h", "help")]
        var rest = arguments[...]
        while let argument = rest.popFirst() {
            if argument == "--" {
                operands += rest
                return
            }
            if argument.hasPrefix("--") {
                try takeLong(argument.dropFirst(2), &rest, known)
            } else if argument.hasPrefix("-") && argument != "-" {
                try takeShort(argument.dropFirst(), &rest, known)
            } else {
                operands.append(argument)
            }
        }
    }

    func has(_ name: String) -> Bool { given.contains { $0.name == name } }
    func value(_ name: String) -> String? { given.last { $0.name == name }?.value }

    private mutating func takeLong(
        _ text: Substring, _ rest: inout ArraySlice<String>, _ known: [Specification]
    ) throws(ToolstackError) {
        let halves = text.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
        let name = halves.first.map(String.init) ?? ""
        var matches = known.filter { $0.long == name }
        if matches.isEmpty { matches = known.filter { $0.long?.hasPrefix(name) == true } }
        guard matches.count == 1, let option = matches.first else {
            throw ToolstackError(
                matches.isEmpty ? "unknown option --\(name)" : "option --\(name) could be several", exitCode: 2)
        }
        if !option.takesValue {
            guard halves.count < 2 else { throw ToolstackError("option --\(option.name) takes no value", exitCode: 2) }
            given.append((option.name, ""))
        } else if halves.count == 2 {
            given.append((option.name, String(halves[1])))
        } else {
            given.append((option.name, try Self.nextValue(&rest, for: "--\(option.name)")))
        }
    }

    private mutating func takeShort(
        _ text: Substring, _ rest: inout ArraySlice<String>, _ known: [Specification]
    ) throws(ToolstackError) {
        var letters = text
        while let letter = letters.popFirst() {
            guard let option = known.first(where: { $0.short == letter }) else {
                throw ToolstackError("unknown option -\(letter)", exitCode: 2)
            }
            guard option.takesValue else {
                given.append((option.name, ""))
                continue
            }
            given.append(
                (option.name, letters.isEmpty ? try Self.nextValue(&rest, for: "-\(letter)") : String(letters)))
            return
        }
    }

    private static func nextValue(
        _ rest: inout ArraySlice<String>, for option: String
    ) throws(ToolstackError) -> String {
        guard let value = rest.popFirst() else { throw ToolstackError("option \(option) needs a value", exitCode: 2) }
        return value
    }
}

extension String {
    /// Filled with blanks up to `width` columns; negative: from the left.
    func padded(_ width: Int) -> String {
        let blanks = String(repeating: " ", count: max(0, abs(width) - count))
        return width < 0 ? blanks + self : self + blanks
    }
}

extension BinaryInteger {
    /// Right-aligned in `width` columns.
    func padded(_ width: Int) -> String { String(self).padded(-width) }
}

/// Seconds with one decimal, right-aligned.
func tenths(_ seconds: Double, _ width: Int) -> String {
    let tenths = seconds.isFinite ? Int((seconds.magnitude * 10).rounded()) : 0
    return "\(tenths / 10).\(tenths % 10)".padded(-width)
}
