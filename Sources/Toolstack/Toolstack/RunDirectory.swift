// The state directory: which domains there are.
// Source: design.md §1.
// Modelled: numbers of domains, one lock for changes, domains whose monitor is gone.
// Quirks: a domain lives as long as its `lock` is held; the kernel lets go of it however its holder ends.

public import DomainConfig
internal import Foundation
public import Host

public struct RunDirectory: Equatable, Sendable {
    public let path: String
    /// Highest number of a domain (Xen's DOMID_FIRST_RESERVED less one).
    private static let lastDomid = 0x7FEF

    public var logs: String { path + "/logs" }
    private var domainsPath: String { path + "/domains" }

    /// The directory that `environment` says, made if it is missing.
    public init(environment: [String: String]) throws(ToolstackError) {
        if let chosen = environment["APUS_RUN_DIR"], !chosen.isEmpty {
            try self.init(chosen.hasPrefix("/") ? chosen : FileManager.default.currentDirectoryPath + "/" + chosen)
        } else if isRoot() {
            try self.init("/run/apus")
        } else if let runtime = environment["XDG_RUNTIME_DIR"], runtime.hasPrefix("/") {
            try self.init(runtime + "/apus")
        } else {
            try self.init("/tmp/apus-\(userNumber())")
        }
    }

    public init(_ path: String) throws(ToolstackError) {
        self.path = path
        do {
            var made = ""
            for part in path.split(separator: "/") {
                made += "/" + part
                if access(made) { continue }
                try HostFile.makeDirectory(made)
            }
            let status = try HostFile.status(path)
            guard status.isDirectory, status.owner == userNumber() else {
                throw ToolstackError("the state directory \(path) belongs to another user")
            }
            try HostFile.makeDirectory(path + "/domains")
            try HostFile.makeDirectory(path + "/logs")
        } catch let error as ToolstackError {
            throw error
        } catch {
            throw ToolstackError("\(error)")
        }
    }

    public func directory(of domid: Int) -> DomainDirectory { DomainDirectory("\(domainsPath)/\(domid)") }

    public func logFile(_ name: String) -> String { "\(logs)/\(name.replacing("/", with: "_")).log" }

    /// Does something while no other process changes the set of domains.
    public func locked<Result>(_ body: () throws -> Result) throws -> Result {
        let file = try HostFile.open(path + "/lock", [.readWrite, .create])
        _ = try HostFile.lock(file, wait: true)
        defer { withExtendedLifetime(file) {} }
        return try body()
    }

    /// All living domains by number. What dead ones left behind is removed.
    public func domains() -> [DomainRecord] {
        let numbers = HostFile.list(domainsPath).compactMap { Int($0) }.sorted()
        return numbers.compactMap { number in
            let directory = directory(of: number)
            guard !removeIfDead(directory) else { return nil }
            return try? directory.readRecord()
        }
    }

    /// The domain that a user means by `text`: a name or a number. Domain-0 is not among them.
    public func find(_ text: String) -> DomainRecord? {
        let all = domains()
        return all.first { $0.name == text } ?? Int(text).flatMap { number in all.first { $0.domid == number } }
    }

    /// Takes the next number for a domain. Call it in `locked`.
    public func allocateDomid() throws -> Int {
        let file = path + "/next-domid"
        let saved = (try? HostFile.read(file, limit: 32)).map { String(decoding: $0, as: UTF8.self) }
        let taken = Set(HostFile.list(domainsPath).compactMap { Int($0) })
        var next = saved.flatMap { Int($0.trimmingCharacters(in: .whitespacesAndNewlines)) } ?? 1
        for _ in 0...Self.lastDomid {
            if !(1...Self.lastDomid).contains(next) { next = 1 }
            if !taken.contains(next) { break }
            next += 1
        }
        try HostFile.replace(file, with: Array("\(next + 1)\n".utf8))
        return next
    }

    /// Makes a domain's directory with its files, locked. Call it in `locked`. It appears complete and at once.
    public func makeDomain(
        _ config: DomainConfig, settings: ConfigFile
    ) throws -> (directory: DomainDirectory, lock: Descriptor) {
        for name in HostFile.list(domainsPath) where name.hasPrefix(".new") {
            HostFile.remove("\(domainsPath)/\(name)")
        }
        let draft = DomainDirectory("\(domainsPath)/.new-\(config.domid)")
        try HostFile.makeDirectory(draft.path)
        let lock = try HostFile.open(draft.lock, [.readWrite, .create])
        _ = try HostFile.lock(lock, wait: false)
        let record = DomainRecord(
            domid: config.domid, name: config.name, uuid: config.uuid, created: Date().timeIntervalSince1970)
        try draft.write(config)
        try draft.write(settings)
        try draft.write(record)
        let directory = directory(of: config.domid)
        try FileManager.default.moveItem(atPath: draft.path, toPath: directory.path)
        return (directory, lock)
    }

    /// Removes a domain's directory if nobody holds its lock; processes of it that are left are ended.
    @discardableResult private func removeIfDead(_ directory: DomainDirectory) -> Bool {
        guard let lock = try? HostFile.open(directory.lock, .readWrite) else {
            HostFile.remove(directory.path)
            return true
        }
        guard (try? HostFile.lock(lock, wait: false)) == true else { return false }
        if let record = try? directory.readRecord() {
            for pid in [record.hypervisor, record.deviceModel, record.backend ?? 0] where pid > 0 {
                endProcess(pid, ifCommandLineHas: directory.path)
            }
            keepLogs(of: directory, name: record.name)
            forgetInStore(domid: record.domid, uuid: record.uuid)
        }
        HostFile.remove(directory.path)
        return true
    }

    /// Keeps a domain's logs after its end: `logs/hypervisor-NAME.log` and so on.
    public func keepLogs(of directory: DomainDirectory, name: String) {
        for program in ["hypervisor", "device-model", "backend", "bootloader", "guest-console", "bios"] {
            let log = directory.log(of: program)
            guard let status = try? HostFile.status(log), status.size > 0 else { continue }
            let kept = logFile("\(program)-\(name)")
            HostFile.remove(kept)
            try? FileManager.default.moveItem(atPath: log, toPath: kept)
        }
    }

    private func access(_ path: String) -> Bool { FileManager.default.fileExists(atPath: path) }
}
