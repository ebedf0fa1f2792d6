// From the settings of a config file to a `DomainConfig`.
// Source: xl.cfg(5).
// Modelled: all checks; every error and warning carries the place of the value. Not modelled: PV and PVH details.
// Quirks: vcpus = 0, vcpus = 999 or a wrong MAC, which xl lets pass, are errors here.

internal import Foundation

/// A domain's config, read and checked.
public struct ConfigReading: Sendable {
    /// What the domain is made from; nil if there are errors found while reading.
    public var config: DomainConfig?
    public var errors: [ConfigError]
    public var warnings: [ConfigWarning]
    public var interfaces: [NetworkSpecification]
}

extension DomainConfig {
    /// Reads all settings of `file`. `utcOffset` stands for the host's time zone in seconds, for `localtime`.
    public static func read(_ file: ConfigFile, utcOffset: Int? = nil) -> ConfigReading {
        var reader = ConfigReader(file)
        let config = reader.read(utcOffset: utcOffset ?? TimeZone.current.secondsFromGMT())
        let errors = file.errors + reader.errors.filter { !file.errors.contains($0) }
        let fails = errors.contains { $0.phase == .reading }
        return ConfigReading(
            config: fails ? nil : config, errors: errors.inFileOrder, warnings: reader.warnings,
            interfaces: reader.interfaces)
    }
}

extension [ConfigError] {
    /// By line and column; errors without a place last.
    var inFileOrder: [ConfigError] {
        sorted {
            ($0.position.line == 0 ? Int.max : $0.position.line, $0.position.column)
                < ($1.position.line == 0 ? Int.max : $1.position.line, $1.position.column)
        }
    }
}

struct ConfigReader {
    let file: ConfigFile
    var errors: [ConfigError] = []
    var warnings: [ConfigWarning] = []
    var interfaces: [NetworkSpecification] = []

    init(_ file: ConfigFile) { self.file = file }

    /// The file as a whole, for what is missing in it.
    var whole: ConfigPosition { ConfigPosition(source: file.source, line: 0, column: 0) }

    mutating func read(utcOffset: Int) -> DomainConfig {
        let kind = readKind()
        let name = readName()
        let memory = readMemory()
        let processors = readProcessors(kind)
        var config = DomainConfig(
            name: name, uuid: readUUID(), domid: 0, kind: kind, memory: memory, vcpus: processors.most)
        config.onlineVCPUs = processors.online
        config.maxmem = readMaximumMemory(memory)
        readEvents(&config)
        readMachine(&config, utcOffset: utcOffset)
        readBoot(&config)
        readDisks(&config)
        readInterfaces(&config)
        readDisplay(&config)
        readSerial(&config)
        readDeviceModel(kind)
        warnAboutRest()
        return config
    }

    mutating func fail(_ position: ConfigPosition, _ message: String, phase: ConfigError.Phase = .reading) {
        errors.append(ConfigError(position, message, phase: phase))
    }

    mutating func warn(_ position: ConfigPosition, _ message: String) {
        warnings.append(ConfigWarning(position, message))
    }

    /// A single value; an error if it is a list.
    mutating func text(_ key: String) -> (text: String, position: ConfigPosition)? {
        guard let item = file[key] else { return nil }
        guard case .atom(let text) = item.value else {
            fail(item.position, "`\(key)' is a list and should be a single value")
            return nil
        }
        return (text, item.position)
    }

    /// A number in C's notation (12, 0x0c, 014); an error if it is none or out of `range`.
    mutating func number(_ key: String, in range: ClosedRange<Int>, phase: ConfigError.Phase = .reading) -> Int? {
        guard let (text, position) = text(key) else { return nil }
        guard let value = Self.number(text) else {
            fail(position, "`\(key)' should be a number and is \"\(text)\"", phase: phase)
            return nil
        }
        guard range.contains(value) else {
            fail(
                position, "`\(key)' is \(value) and should be from \(range.lowerBound) to \(range.upperBound)",
                phase: phase)
            return nil
        }
        return value
    }

    static func number(_ text: String) -> Int? {
        let trimmed = Substring(text).trimmed
        let negative = trimmed.hasPrefix("-")
        let digits = negative ? trimmed.dropFirst() : trimmed
        guard let first = digits.first, first.isASCII, first.isNumber else { return nil }
        var value: Int?
        if digits.hasPrefix("0x") || digits.hasPrefix("0X") {
            value = Int(digits.dropFirst(2), radix: 16)
        } else if digits.count > 1 && first == "0" {
            value = Int(digits, radix: 8)
        } else {
            value = Int(digits)
        }
        guard let value, value >= 0, value < 1 << 53 else { return nil }
        return negative ? -value : value
    }

    /// A switch: 0 or 1, or a word for it.
    mutating func flag(_ key: String) -> Bool? {
        guard let (text, position) = text(key) else { return nil }
        switch text.lowercased() {
        case "true", "yes", "on": return true
        case "false", "no", "off": return false
        default: break
        }
        guard let value = Self.number(text) else {
            fail(position, "`\(key)' should be 0 or 1 and is \"\(text)\"")
            return nil
        }
        return value != 0
    }

    /// A list of strings. A single value counts as a list of one, with a warning if `strictly`.
    mutating func list(_ key: String, strictly: Bool = true) -> [(text: String, position: ConfigPosition)] {
        guard let item = file[key] else { return [] }
        switch item.value {
        case .atom(let text):
            if strictly { warn(item.position, "`\(key)' is a single value and should be a list") }
            return [(text, item.position)]
        case .list(let items):
            var texts: [(String, ConfigPosition)] = []
            for item in items {
                if case .atom(let text) = item.value {
                    texts.append((text, item.position))
                } else {
                    fail(item.position, "`\(key)' has a list in it where a string should be")
                }
            }
            return texts
        }
    }

    /// One warning for each unknown key, and for each known one without effect.
    private mutating func warnAboutRest() {
        for setting in file.settings where !KnownKeys.effective.contains(setting.key) {
            if KnownKeys.ignored.contains(setting.key) {
                if case .atom(let text) = setting.item.value, text == "0" || text.isEmpty { continue }
                if case .list(let items) = setting.item.value, items.isEmpty { continue }
                warn(setting.position, "`\(setting.key)' has no effect yet")
            } else if let meant = KnownKeys.nearest(to: setting.key) {
                warn(setting.position, "unknown key `\(setting.key)' (is `\(meant)' meant?)")
            } else {
                warn(setting.position, "unknown key `\(setting.key)'")
            }
        }
    }
}
