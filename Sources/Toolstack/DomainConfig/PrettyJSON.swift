// JSON as xl prints it: keys in order, four blanks a level, an empty line in empty braces.
// Source: output captured from `xl list -l` and `xl -N create` on Xen 4.17.7.
// Modelled: writing only; reading is Codable's work.
// Quirks: switches of libxl are the strings "True" and "False".

internal import Foundation

/// A JSON value whose objects keep their order.
public indirect enum PrettyJSON: Sendable {
    case object([(key: String, value: PrettyJSON)])
    case array([PrettyJSON])
    case string(String)
    case number(Int)
    case decimal(Double)
    case bool(Bool)
    case null

    /// A switch of libxl.
    public static func flag(_ value: Bool) -> PrettyJSON { .string(value ? "True" : "False") }

    /// From text, objects sorted by name; nil if it is no JSON.
    public init?(_ text: String) {
        guard let value = try? JSONDecoder().decode(PrettyJSON.self, from: Data(text.utf8)) else { return nil }
        self = value
    }

    /// Every value that is no object or list, with its place: "vcpus[0].state".
    public var leaves: [(path: String, text: String)] {
        func all(_ prefix: String, _ value: PrettyJSON) -> [(path: String, text: String)] {
            switch value {
            case .object(let members):
                members.flatMap { all(prefix.isEmpty ? $0.key : "\(prefix).\($0.key)", $0.value) }
            case .array(let elements): elements.enumerated().flatMap { all("\(prefix)[\($0.offset)]", $0.element) }
            case .string(let string): [(prefix, string)]
            default: [(prefix, value.text)]
            }
        }
        return all("", self)
    }

    public var text: String {
        var text = ""
        write(to: &text, depth: 0)
        return text
    }

    private func write(to text: inout String, depth: Int) {
        let inner = String(repeating: "    ", count: depth + 1)
        let outer = String(repeating: "    ", count: depth)
        switch self {
        case .object(let members):
            text += "{\n"
            for (place, member) in members.enumerated() {
                text += "\(inner)\(Self.quoted(member.key)): "
                member.value.write(to: &text, depth: depth + 1)
                text += place + 1 < members.count ? ",\n" : ""
            }
            text += "\n\(outer)}"
        case .array(let elements):
            text += "[\n"
            for (place, element) in elements.enumerated() {
                text += inner
                element.write(to: &text, depth: depth + 1)
                text += place + 1 < elements.count ? ",\n" : ""
            }
            text += "\n\(outer)]"
        case .string(let string): text += Self.quoted(string)
        case .number(let number): text += String(number)
        case .decimal(let number): text += number.isFinite ? String((number * 1e6).rounded() / 1e6) : "null"
        case .bool(let value): text += value ? "true" : "false"
        case .null: text += "null"
        }
    }

    private static func quoted(_ string: String) -> String {
        var text = "\""
        for scalar in string.unicodeScalars {
            switch scalar {
            case "\"": text += "\\\""
            case "\\": text += "\\\\"
            case "\n": text += "\\n"
            case "\r": text += "\\r"
            case "\t": text += "\\t"
            case _ where scalar.value < 0x20:
                let digits = String(scalar.value, radix: 16, uppercase: true)
                text += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
            default: text.unicodeScalars.append(scalar)
            }
        }
        return text + "\""
    }
}

extension PrettyJSON: Decodable {
    public init(from decoder: any Decoder) throws {
        let container = try decoder.singleValueContainer()
        if container.decodeNil() {
            self = .null
        } else if let value = try? container.decode(Bool.self) {
            self = .bool(value)
        } else if let value = try? container.decode(Int.self) {
            self = .number(value)
        } else if let value = try? container.decode(Double.self) {
            self = .decimal(value)
        } else if let value = try? container.decode(String.self) {
            self = .string(value)
        } else if let value = try? container.decode([PrettyJSON].self) {
            self = .array(value)
        } else {
            let members = try container.decode([String: PrettyJSON].self)
            self = .object(members.sorted { $0.key < $1.key }.map { ($0.key, $0.value) })
        }
    }
}
