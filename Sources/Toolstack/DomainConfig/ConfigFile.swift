// A domain's config file as its author wrote it: keys, values, and where each of them stands.
// Source: xl.cfg(5), "SYNTAX".
// Modelled: all of the grammar; nothing of what keys mean (see ConfigReader.swift).
// Quirks: a value given on the command line may be a bare word; in a file it needs quotes.

/// A place in a config file; lines and columns count from 1, columns in characters.
public struct ConfigPosition: Hashable, Sendable {
    public var source: String
    public var line: Int
    public var column: Int
    public init(source: String, line: Int, column: Int) {
        (self.source, self.line, self.column) = (source, line, column)
    }
}

/// What is wrong with a config, and where.
public struct ConfigError: Error, Hashable, Sendable, CustomStringConvertible {
    /// When xl notices; it decides on the exit code (1 or 3).
    public enum Phase: Sendable { case reading, creating }
    public var position: ConfigPosition
    public var message: String
    public var phase: Phase
    public init(_ position: ConfigPosition, _ message: String, phase: Phase = .reading) {
        (self.position, self.message, self.phase) = (position, message, phase)
    }
    public var description: String { "\(position): error: \(message)" }
}

/// What a config asks for in vain, and where.
public struct ConfigWarning: Hashable, Sendable, CustomStringConvertible {
    public var position: ConfigPosition
    public var message: String
    public init(_ position: ConfigPosition, _ message: String) { (self.position, self.message) = (position, message) }
    public var description: String { "\(position): warning: \(message)" }
}

extension ConfigPosition: CustomStringConvertible {
    public var description: String { line > 0 ? "\(source):\(line):\(column)" : source }
}

/// The settings of a config file in their final form, and every syntax error in it.
public struct ConfigFile: Sendable {
    public struct Item: Hashable, Sendable {
        public var value: Value
        public var position: ConfigPosition
    }
    public indirect enum Value: Hashable, Sendable {
        /// A string or a number: xl treats them alike, `memory = "512"` is a number too.
        case atom(String)
        case list([Item])
    }
    public struct Setting: Sendable {
        public var key: String
        public var position: ConfigPosition
        public var item: Item
    }

    /// One entry per key, in order of first appearance.
    public private(set) var settings: [Setting] = []
    public private(set) var errors: [ConfigError] = []
    public let source: String
    private var index: [String: Int] = [:]

    /// Larger files are no configs.
    public static let largest = 1 << 20

    public init(_ text: some Sequence<UInt8>, source: String) {
        self.source = source
        add(Array(text.prefix(Self.largest + 1)), from: source)
    }

    public init(_ text: String, source: String) { self.init(text.utf8, source: source) }

    public subscript(key: String) -> Item? { index[key].map { settings[$0].item } }

    public func setting(_ key: String) -> Setting? { index[key].map { settings[$0] } }

    /// Takes a `key=value` of the command line, which wins over the file. The value may be a bare word.
    public mutating func override(_ argument: String) {
        let place = "command line `\(argument)'"
        let trial = ConfigFile(argument, source: place)
        guard !trial.errors.isEmpty else { return adopt(trial.settings) }
        let parts = argument.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
        let key = parts.first.map(String.init) ?? ""
        guard parts.count == 2, ConfigLexer.isIdentifier(key), !parts[1].contains(where: { "'\"[]\n".contains($0) })
        else {
            errors.append(contentsOf: trial.errors)
            return
        }
        let position = ConfigPosition(source: place, line: 1, column: key.count + 2)
        assign(key, at: position, Item(value: .atom(String(parts[1])), position: position))
    }

    /// The settings as a config file again, each on its line.
    public var text: String {
        settings.map { "\($0.key) = \(Self.written($0.item.value))\n" }.joined()
    }

    private static func written(_ value: Value) -> String {
        switch value {
        case .list(let items): return "[" + items.map { written($0.value) }.joined(separator: ", ") + "]"
        case .atom(let text):
            let escapes: [Unicode.Scalar: String] = ["\\": "\\\\", "\"": "\\\"", "\n": "\\n"]
            let quoted = text.unicodeScalars.map { escapes[$0] ?? String($0) }.joined()
            return "\"\(quoted)\""
        }
    }

    private mutating func add(_ text: [UInt8], from source: String) {
        guard text.count <= Self.largest else {
            let start = ConfigPosition(source: source, line: 1, column: 1)
            errors.append(ConfigError(start, "the file is longer than a config can be (1 MiB)"))
            return
        }
        var parser = ConfigParser(text, source: source)
        while let statement = parser.next() {
            if statement.appends {
                append(statement.setting)
            } else {
                assign(statement.setting.key, at: statement.setting.position, statement.setting.item)
            }
        }
        errors.append(contentsOf: parser.errors)
    }

    private mutating func adopt(_ settings: [Setting]) {
        for setting in settings { assign(setting.key, at: setting.position, setting.item) }
    }

    private mutating func assign(_ key: String, at position: ConfigPosition, _ item: Item) {
        let setting = Setting(key: key, position: position, item: item)
        guard let place = index[key] else {
            index[key] = settings.count
            settings.append(setting)
            return
        }
        settings[place] = setting
    }

    /// `key += value`: strings are joined, lists are put one after the other.
    private mutating func append(_ setting: Setting) {
        guard let place = index[setting.key] else { return assign(setting.key, at: setting.position, setting.item) }
        switch (settings[place].item.value, setting.item.value) {
        case (.atom(let old), .atom(let new)): settings[place].item.value = .atom(old + new)
        case (.list(let old), .list(let new)): settings[place].item.value = .list(old + new)
        case (.atom, .list):
            errors.append(
                ConfigError(setting.item.position, "a list cannot be added to `\(setting.key)', a single value"))
        case (.list, .atom):
            errors.append(
                ConfigError(setting.item.position, "a single value cannot be added to `\(setting.key)', a list"))
        }
    }
}
