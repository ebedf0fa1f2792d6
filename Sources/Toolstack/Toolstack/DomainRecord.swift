// What is known of a domain beside its config, and where its files are.
// Source: design.md §1 and §2; the domain directory's layout is shared with hypervisor and device-model.
// Modelled: identity, state, processes.
// Quirks: the record is replaced as a whole, so readers never see half of it.

public import DomainConfig
internal import Foundation
internal import Host

/// `record.json` in a domain's directory.
public struct DomainRecord: Codable, Equatable, Sendable {
    public enum State: String, Codable, Sendable { case building, running, shutdown }
    public var domid: Int
    public var name: String
    public var uuid: String
    /// Seconds since 1970.
    public var created: Double
    public var state = State.building
    /// How it ended, while it is preserved: "poweroff", "reboot", "crash".
    public var reason: String?
    public var monitor: Int32 = 0
    public var hypervisor: Int32 = 0
    public var deviceModel: Int32 = 0
    public var backend: Int32? = nil

    public init(domid: Int, name: String, uuid: String, created: Double) {
        (self.domid, self.name, self.uuid, self.created) = (domid, name, uuid, created)
    }
}

/// A domain's files.
public struct DomainDirectory: Equatable, Sendable {
    public let path: String
    public init(_ path: String) { self.path = path }

    public var control: String { path + "/control.sock" }
    public var deviceModel: String { path + "/device-model.sock" }
    public var monitor: String { path + "/monitor.sock" }
    public var backend: String { path + "/backend.sock" }
    /// The first console: COM1 of a domain with a board, else Xen's.
    public var console: String { path + "/console" }
    /// Xen's console.
    public func pvConsole(of kind: DomainConfig.Kind) -> String { kind == .hvm ? path + "/pv-console" : console }
    public var vnc: String { path + "/vnc" }
    public var lock: String { path + "/lock" }
    public func log(of program: String) -> String { "\(path)/\(program).log" }

    public func readRecord() throws -> DomainRecord {
        try JSONDecoder().decode(DomainRecord.self, from: Data(try HostFile.read(path + "/record.json")))
    }

    public func write(_ record: DomainRecord) throws {
        try HostFile.replace(path + "/record.json", with: [UInt8](try JSONEncoder().encode(record)))
    }

    public func readConfig() throws -> DomainConfig {
        try JSONDecoder().decode(DomainConfig.self, from: Data(try HostFile.read(path + "/config.json")))
    }

    public func write(_ config: DomainConfig) throws {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
        try HostFile.replace(path + "/config.json", with: [UInt8](try encoder.encode(config)))
    }

    /// The settings the domain was made from.
    public func readSettings() throws -> ConfigFile {
        ConfigFile(try HostFile.read(path + "/settings.cfg"), source: path + "/settings.cfg")
    }

    public func write(_ settings: ConfigFile) throws {
        try HostFile.replace(path + "/settings.cfg", with: Array(settings.text.utf8))
    }

    /// Address and port of the VNC server; nil while there is none.
    public var vncAddress: (host: String, port: Int)? {
        guard let bytes = try? HostFile.read(vnc, limit: 1024) else { return nil }
        let words = String(decoding: bytes, as: UTF8.self).split(whereSeparator: \.isWhitespace)
        guard words.count == 2, let port = Int(words[1]) else { return nil }
        return (String(words[0]), port)
    }
}
