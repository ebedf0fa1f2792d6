// Makes a domain from a config: checks against the host, then the monitor.
// Source: design.md §2; the order of checks and the used-up number are those of libxl's domain creation.
// Modelled: names, files, memory, shared images. Not modelled: PV and PVH.
// Quirks: a failed creation uses up a number, as on Xen.

public import DomainConfig
internal import DomainProcess
internal import Foundation
public import Host

public struct DomainStarter: Sendable {
    public let run: RunDirectory
    /// Where `xl`, `hypervisor` and `device-model` are.
    public let programs: String

    public init(run: RunDirectory, programs: String) { (self.run, self.programs) = (run, programs) }

    /// Makes and starts the domain that `reading` describes. The monitor's process is the child of this one.
    public func create(
        _ reading: ConfigReading, settings: ConfigFile, paused: Bool,
        showConsole: (DomainDirectory) -> Void = { _ in }
    ) throws(ToolstackError) -> (record: DomainRecord, monitor: ChildProcess) {
        do {
            let (config, directory, lock, store) = try run.locked {
                let living = run.domains()
                let domid = try run.allocateDomid()
                guard var config = reading.config, reading.errors.isEmpty else {
                    throw ToolstackError(reading.errors.map(\.description).joined(separator: "\n"), exitCode: 3)
                }
                config.domid = domid
                try check(config, against: living)
                let made = try run.makeDomain(config, settings: settings)
                let store = try run.openStore(programs: programs)
                return (config, made.directory, made.lock, store)
            }
            // Until the monitor has its own connection, this one keeps the store running.
            defer { withExtendedLifetime(store) {} }
            let pipe = try makePipe()
            let monitor: ChildProcess
            do {
                monitor = try startMonitor(
                    directory, name: config.name, lock: lock, report: pipe.writing, paused: paused)
            } catch {
                HostFile.remove(directory.path)
                throw error
            }
            // From here on the lock and the pipe's end are the monitor's alone.
            closeDescriptor(lock.number)
            closeDescriptor(pipe.writing.number)
            try waitUntilReady(pipe.reading, name: config.name) { showConsole(directory) }
            return (try directory.readRecord(), monitor)
        } catch let error as ToolstackError {
            throw error
        } catch {
            throw ToolstackError("\(error)", exitCode: 3)
        }
    }

    func startMonitor(
        _ directory: DomainDirectory, name: String, lock: Descriptor, report: Descriptor, paused: Bool
    ) throws -> ChildProcess {
        let log = try HostFile.open(run.logFile("xl-\(name)"), [.write, .create, .append])
        let arguments = [".monitor", directory.path] + (paused ? ["--paused"] : [])
        return try ChildProcess(
            path: programs + "/xl", arguments: arguments,
            descriptors: [nil, log.number, log.number, report.number, lock.number], newSession: true)
    }

    /// Waits for the monitor's word; a boot loader's menu may come before it.
    private func waitUntilReady(_ status: Descriptor, name: String, showConsole: () -> Void) throws {
        var bytes: [UInt8] = []
        while true {
            guard let end = bytes.firstIndex(of: 10) else {
                let more = try HostFile.readAvailable(status.number)
                guard !more.isEmpty else {
                    throw ToolstackError(
                        "the domain's monitor ended; see \(run.logFile("xl-\(name)"))", exitCode: 3)
                }
                bytes += more
                continue
            }
            let message = try? JSONDecoder().decode(StatusLine.self, from: Data(bytes[..<end]))
            bytes.removeSubrange(...end)
            if message?.console == true {
                showConsole()
                continue
            }
            if let error = message?.error { throw ToolstackError(error, exitCode: 3, log: message?.log ?? []) }
            if message?.ready == true { return }
        }
    }

    private func check(_ config: DomainConfig, against living: [DomainRecord]) throws {
        func refuse(_ message: String) -> ToolstackError { ToolstackError(message, exitCode: 3) }
        if config.name == "Domain-0" || living.contains(where: { $0.name == config.name }) {
            throw refuse("there is a domain with the name \"\(config.name)\" already")
        }
        if living.contains(where: { $0.uuid == config.uuid }) {
            throw refuse("there is a domain with the UUID \(config.uuid) already")
        }
        var problems = missingFiles(config)
        problems += sharedDisks(config.disks, living)
        let total = HostFigures.read().totalMemory
        if config.maxmem > total {
            problems.append("memory: the domain wants \(config.maxmem) MiB and the host has \(total) MiB")
        }
        if config.kind != .hvm, config.kernel == nil, config.bootloader == nil {
            problems.append("kernel: type='\(config.kind.rawValue)' needs one")
        }
        let longest = run.directory(of: config.domid).deviceModel.utf8.count
        if longest > 107 { problems.append("the state directory's path is too long for Unix sockets: \(run.path)") }
        if !problems.isEmpty { throw refuse(problems.joined(separator: "\n")) }
    }

    private func missingFiles(_ config: DomainConfig) -> [String] {
        var problems: [String] = []
        for (what, path) in [("kernel", config.kernel), ("ramdisk", config.ramdisk)] {
            guard let path else { continue }
            do { _ = try HostFile.status(path) } catch { problems.append("\(what): \(error)") }
        }
        for disk in config.disks where disk.format != .empty {
            do {
                let status = try HostFile.status(disk.target)
                if !status.isRegular && !status.isBlockDevice {
                    problems.append("disk \(disk.vdev): \(disk.target) is neither a file nor a block device")
                }
            } catch {
                problems.append("disk \(disk.vdev): \(error)")
            }
        }
        return problems
    }

    /// Images that another domain uses, if either of the two may write.
    func sharedDisks(_ disks: [DomainConfig.Disk], _ living: [DomainRecord]) -> [String] {
        func identity(_ disk: DomainConfig.Disk) -> [UInt64]? {
            guard disk.format != .empty, let status = try? HostFile.status(disk.target) else { return nil }
            return [status.device, status.inode]
        }
        var problems: [String] = []
        for record in living where record.state != .shutdown {
            guard let other = try? run.directory(of: record.domid).readConfig() else { continue }
            for theirs in other.disks {
                guard let taken = identity(theirs) else { continue }
                for ours in disks where (ours.readWrite || theirs.readWrite) && identity(ours) == taken {
                    problems.append("disk \(ours.vdev): \(ours.target) is in use by domain \(record.name)")
                }
            }
        }
        return problems
    }
}
