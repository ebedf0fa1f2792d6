// Cuts a config file into tokens.
// Source: xl.cfg(5), "SYNTAX"; escapes in strings are those of xl's own lexer (C's without \u and \?).
// Modelled: comments, both kinds of quotes, `\` at the end of a line, CRLF.
// Quirks: any byte may come: what is no token becomes `.invalid` with a sentence, never a trap.

struct ConfigToken {
    enum Kind: Equatable {
        case identifier(String)
        case string(String)
        case number(String)
        case assign, append, comma, open, close, newline, semicolon, endOfFile
        case invalid(String)
    }
    var kind: Kind
    var line: Int
    var column: Int

    /// How an error message names the token.
    var name: String {
        switch kind {
        case .identifier(let text), .number(let text): "`\(text)'"
        case .string: "a string"
        case .assign: "`='"
        case .append: "`+='"
        case .comma: "`,'"
        case .open: "`['"
        case .close: "`]'"
        case .semicolon: "`;'"
        case .newline: "the end of the line"
        case .endOfFile: "the end of the file"
        case .invalid(let message): message
        }
    }
}

struct ConfigLexer {
    private let text: [UInt8]
    private var offset = 0
    private var line = 1
    private var column = 1

    init(_ text: [UInt8]) { self.text = text }

    static func isIdentifier(_ text: String) -> Bool {
        guard let first = text.utf8.first, isLetter(first) else { return false }
        return text.utf8.allSatisfy { isLetter($0) || isDigit($0) }
    }

    mutating func next() -> ConfigToken {
        skipBlanks()
        let start = (line, column)
        let kind = scan()
        return ConfigToken(kind: kind, line: start.0, column: start.1)
    }

    private func peek(_ ahead: Int = 0) -> UInt8? {
        let place = offset + ahead
        return place < text.count ? text[place] : nil
    }

    /// Steps over one byte; continuation bytes of UTF-8 do not count as columns.
    private mutating func advance() {
        guard let byte = peek() else { return }
        offset += 1
        if byte == UInt8(ascii: "\n") {
            line += 1
            column = 1
        } else if byte & 0xC0 != 0x80 {
            column += 1
        }
    }

    private mutating func skipBlanks() {
        while let byte = peek() {
            switch byte {
            case UInt8(ascii: " "), UInt8(ascii: "\t"), UInt8(ascii: "\r"), 0x0B, 0x0C: advance()
            case UInt8(ascii: "#"):
                while let byte = peek(), byte != UInt8(ascii: "\n") { advance() }
            case UInt8(ascii: "\\") where peek(1) == UInt8(ascii: "\n"):
                advance()
                advance()
            case UInt8(ascii: "\\") where peek(1) == UInt8(ascii: "\r") && peek(2) == UInt8(ascii: "\n"):
                advance()
                advance()
                advance()
            case 0xEF where offset == 0 && peek(1) == 0xBB && peek(2) == 0xBF: offset = 3
            default: return
            }
        }
    }

    private mutating func scan() -> ConfigToken.Kind {
        guard let byte = peek() else { return .endOfFile }
        if Self.isLetter(byte) { return .identifier(word()) }
        if Self.isDigit(byte) || (byte == UInt8(ascii: "-") && peek(1).map(Self.isDigit) == true) {
            return .number(word())
        }
        if byte == UInt8(ascii: "'") || byte == UInt8(ascii: "\"") { return string(quote: byte) }
        advance()
        switch byte {
        case UInt8(ascii: "="): return .assign
        case UInt8(ascii: ","): return .comma
        case UInt8(ascii: "["): return .open
        case UInt8(ascii: "]"): return .close
        case UInt8(ascii: ";"): return .semicolon
        case UInt8(ascii: "\n"): return .newline
        case UInt8(ascii: "+") where peek() == UInt8(ascii: "="):
            advance()
            return .append
        default: return .invalid(Self.complaint(about: byte))
        }
    }

    private static func complaint(about byte: UInt8) -> String {
        guard (0x21...0x7E).contains(byte) else {
            return "a byte that has no meaning here (0x\(String(byte, radix: 16, uppercase: true)))"
        }
        let character = Character(UnicodeScalar(byte))
        return "(){}:+.".contains(character)
            ? "`\(character)' (a config is not a Python program)" : "`\(character)' outside of quotes"
    }

    private mutating func word() -> String {
        let start = offset
        advance()
        while let byte = peek(), Self.isLetter(byte) || Self.isDigit(byte) { advance() }
        return String(decoding: text[start..<offset], as: UTF8.self)
    }

    private mutating func string(quote: UInt8) -> ConfigToken.Kind {
        advance()
        var bytes: [UInt8] = []
        var problem: String?
        while let byte = peek(), byte != UInt8(ascii: "\n") {
            advance()
            if byte == quote { return problem.map { .invalid($0) } ?? .string(String(decoding: bytes, as: UTF8.self)) }
            if byte == 0 { problem = problem ?? "a string with a zero byte" }
            if byte != UInt8(ascii: "\\") {
                bytes.append(byte)
            } else if let value = escape() {
                bytes.append(value)
            } else {
                problem = problem ?? "a string with an unknown `\\' escape"
            }
        }
        return .invalid("a string without its closing \(quote == UInt8(ascii: "'") ? "'" : "\"")")
    }

    /// What follows a backslash in a string; nil if it is no escape. Zero bytes are none.
    private mutating func escape() -> UInt8? {
        guard let letter = peek(), letter != UInt8(ascii: "\n") else { return nil }
        if (UInt8(ascii: "0")...UInt8(ascii: "7")).contains(letter) { return digits(radix: 8, atMost: 3) }
        advance()
        switch letter {
        case UInt8(ascii: "a"): return 7
        case UInt8(ascii: "b"): return 8
        case UInt8(ascii: "t"): return 9
        case UInt8(ascii: "n"): return 10
        case UInt8(ascii: "v"): return 11
        case UInt8(ascii: "f"): return 12
        case UInt8(ascii: "r"): return 13
        case UInt8(ascii: "\\"), UInt8(ascii: "'"), UInt8(ascii: "\""): return letter
        case UInt8(ascii: "x"): return digits(radix: 16, atMost: 2)
        default: return nil
        }
    }

    private mutating func digits(radix: Int, atMost limit: Int) -> UInt8? {
        var value = 0
        var count = 0
        while count < limit, let byte = peek(), let digit = Character(UnicodeScalar(byte)).hexDigitValue, digit < radix
        {
            value = value * radix + digit
            count += 1
            advance()
        }
        return count > 0 && value > 0 ? UInt8(exactly: value) : nil
    }

    private static func isLetter(_ byte: UInt8) -> Bool {
        (UInt8(ascii: "a")...UInt8(ascii: "z")).contains(byte | 0x20) || byte == UInt8(ascii: "_")
    }

    private static func isDigit(_ byte: UInt8) -> Bool { (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte) }
}
