// Reads statements from a config file's tokens.
// Source: xl.cfg(5), "SYNTAX": `key = value` and `key += value`, ended by a new line or `;`.
// Modelled: lists in lists, new lines anywhere in a list, a comma after the last element.
// Quirks: after an error it goes on at the next line that looks like a statement, so that one run reports all.

struct ConfigParser {
    struct Statement {
        var setting: ConfigFile.Setting
        var appends: Bool
    }
    /// Deeper lists than this are refused: no key has them, and each level costs stack.
    private static let deepest = 16
    /// More errors than this help nobody.
    private static let mostErrors = 50

    private(set) var errors: [ConfigError] = []
    private let source: String
    private var lexer: ConfigLexer
    private var token: ConfigToken
    private var following: ConfigToken

    init(_ text: [UInt8], source: String) {
        self.source = source
        lexer = ConfigLexer(text)
        token = lexer.next()
        following = lexer.next()
    }

    /// The next statement without errors; nil at the end of the file.
    mutating func next() -> Statement? {
        while errors.count < Self.mostErrors {
            while token.kind == .newline || token.kind == .semicolon { step() }
            if token.kind == .endOfFile { return nil }
            do throws(ConfigError) {
                return try statement()
            } catch {
                errors.append(error)
                recover()
            }
        }
        return nil
    }

    private mutating func step() {
        token = following
        following = lexer.next()
    }

    private var position: ConfigPosition { ConfigPosition(source: source, line: token.line, column: token.column) }

    private func unexpected(_ expected: String) -> ConfigError {
        ConfigError(position, "found \(token.name) where \(expected) should be")
    }

    private mutating func statement() throws(ConfigError) -> Statement {
        guard case .identifier(let key) = token.kind else { throw unexpected("a key") }
        let start = position
        step()
        guard token.kind == .assign || token.kind == .append else { throw unexpected("`=' or `+='") }
        let appends = token.kind == .append
        step()
        let item = try value(depth: 0)
        switch token.kind {
        case .newline, .semicolon, .endOfFile: break
        default: throw unexpected("the end of the statement")
        }
        return Statement(setting: .init(key: key, position: start, item: item), appends: appends)
    }

    private mutating func value(depth: Int) throws(ConfigError) -> ConfigFile.Item {
        let start = position
        switch token.kind {
        case .string(let text), .number(let text):
            step()
            return .init(value: .atom(text), position: start)
        case .open:
            guard depth < Self.deepest else { throw ConfigError(start, "lists are nested too deeply") }
            step()
            return .init(value: .list(try elements(depth: depth + 1)), position: start)
        case .identifier(let text):
            throw ConfigError(start, "found `\(text)' where a value should be: a string needs quotes")
        default: throw unexpected("a string, a number or `['")
        }
    }

    private mutating func elements(depth: Int) throws(ConfigError) -> [ConfigFile.Item] {
        var items: [ConfigFile.Item] = []
        skipNewlines()
        while token.kind != .close {
            items.append(try value(depth: depth))
            skipNewlines()
            if token.kind == .close { break }
            guard token.kind == .comma else { throw unexpected("`,' or `]'") }
            step()
            skipNewlines()
        }
        step()
        return items
    }

    private mutating func skipNewlines() {
        while token.kind == .newline { step() }
    }

    /// Skips to the next statement: behind a new line or `;` that is followed by a key and `=`.
    private mutating func recover() {
        while token.kind != .endOfFile {
            let ends = token.kind == .newline || token.kind == .semicolon
            step()
            guard ends, case .identifier = token.kind else { continue }
            if following.kind == .assign || following.kind == .append { return }
            if case .identifier = following.kind { return }
        }
    }
}
