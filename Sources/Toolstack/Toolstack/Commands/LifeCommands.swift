// xl destroy, pause, unpause, rename, cd-insert, cd-eject.
// Source: xl(1); exit codes captured on Xen 4.17.7.
// Modelled: all options.
// Quirks: the monitor destroys; if it is gone, the domain is too.

internal import DomainConfig
internal import Foundation
internal import Host
internal import XenStoreClient

extension Session {
    func control(_ record: DomainRecord) -> String { run.directory(of: record.domid).control }
    func deviceModel(_ record: DomainRecord) -> String { run.directory(of: record.domid).deviceModel }

    /// Restarts the guest: through its PV drivers if it has some, else by the board's reset line.
    func reset(_ record: DomainRecord) throws(ToolstackError) {
        if (try? Control.ask(control(record), ControlRequest("reboot"))) != nil { return }
        do throws(ToolstackError) {
            _ = try Control.ask(deviceModel(record), ControlRequest("reset"))
        } catch {
            // The domain may be gone before a process has answered.
            if isAlive(record) { throw error }
        }
    }

    /// Whether the domain is still there, a moment from now.
    func isAlive(_ record: DomainRecord) -> Bool {
        for _ in 0..<20 {
            guard run.domains().contains(where: { $0.domid == record.domid }) else { return false }
            Thread.sleep(forTimeInterval: 0.05)
        }
        return true
    }

    /// Those that -a or the operands mean.
    func targets(_ options: Options) throws(ToolstackError) -> [DomainRecord] {
        if options.has("all") { return run.domains().filter { $0.state == .running } }
        guard let name = options.operands.first else {
            throw ToolstackError("You must specify -a or a domain id.\n", isVerbatim: true)
        }
        return [try guest(name)]
    }

    func running(_ text: String) throws(ToolstackError) -> DomainRecord {
        let record = try guest(text)
        guard record.state == .running else {
            throw ToolstackError(
                "domain \(record.name) is \(record.state == .building ? "not set up yet" : "shut down")")
        }
        return record
    }
}

extension Command {
    static let destroy = Command(
        name: "destroy", summary: "End a domain at once", usage: "[options] DOMAIN ...",
        options: [("-f", "accepted for xl's sake; Domain-0 is never destroyed")], specifications: [.init("f")],
        leastOperands: 1,
        run: { session, options throws(ToolstackError) in
            for name in options.operands {
                let record = try session.guest(name)
                let monitor = session.run.directory(of: record.domid).monitor
                do throws(ToolstackError) {
                    _ = try Control.ask(monitor, ControlRequest("destroy"), seconds: 20)
                } catch {
                    // It may have ended by itself meanwhile.
                    if session.isAlive(record) { throw error }
                }
            }
            return 0
        })

    static let pause = simple("pause", "Stop a domain's virtual CPUs")
    static let unpause = simple("unpause", "Let a paused domain go on")

    private static func simple(_ name: String, _ summary: String) -> Command {
        Command(
            name: name, summary: summary, usage: "DOMAIN", leastOperands: 1, mostOperands: 1,
            run: { session, options throws(ToolstackError) in
                let record = try session.running(options.operands[0])
                _ = try Control.ask(session.control(record), ControlRequest(name))
                return 0
            })
    }

    static let rename = Command(
        name: "rename", summary: "Give a domain another name", usage: "DOMAIN NEWNAME", leastOperands: 2,
        mostOperands: 2,
        run: { session, options throws(ToolstackError) in
            var record = try session.guest(options.operands[0])
            let name = options.operands[1]
            let reading = DomainConfig.read(ConfigFile("", source: "").naming(name))
            if let error = reading.errors.first(where: { $0.position.line > 0 }) { throw ToolstackError(error.message) }
            do {
                try session.run.locked {
                    guard name != "Domain-0", !session.run.domains().contains(where: { $0.name == name }) else {
                        throw ToolstackError("there is a domain with the name \"\(name)\" already")
                    }
                    record.name = name
                    try session.run.directory(of: record.domid).write(record)
                }
                if let store = session.openStore() {
                    for path in ["/local/domain/\(record.domid)/name", "/vm/\(record.uuid)/name"]
                    where try store.read(path) != nil { try store.write(path, name) }
                }
            } catch let error as ToolstackError {
                throw error
            } catch {
                throw ToolstackError("\(error)")
            }
            return 0
        })

    static let cdInsert = Command(
        name: "cd-insert", summary: "Put a CD image into a domain's drive", usage: "DOMAIN VDEV FILE",
        leastOperands: 3, mostOperands: 3,
        run: { session, options throws(ToolstackError) in
            try changeDisc(session, options.operands[0], options.operands[1], to: options.operands[2])
        })

    static let cdEject = Command(
        name: "cd-eject", summary: "Take the CD out of a domain's drive", usage: "DOMAIN VDEV", leastOperands: 2,
        mostOperands: 2,
        run: { session, options throws(ToolstackError) in
            try changeDisc(session, options.operands[0], options.operands[1], to: nil)
        })

    private static func changeDisc(
        _ session: Session, _ name: String, _ vdev: String, to text: String?
    ) throws(ToolstackError) -> Int32 {
        let record = try session.running(name)
        let directory = session.run.directory(of: record.domid)
        guard var config = try? directory.readConfig() else { throw ToolstackError("the domain's config is gone") }
        guard config.kind == .hvm else {
            throw ToolstackError("Domain \(record.domid): cdrom-insert requires an HVM domain")
        }
        guard let place = config.disks.firstIndex(where: { $0.vdev == vdev && $0.cdrom }) else {
            throw ToolstackError("domain \(record.name) has no CD drive \(vdev)")
        }
        var target = ""
        if let text {
            do throws(DiskError) {
                target = try DiskSpecification(text.contains(",") ? text : "\(text),raw,\(vdev):cdrom,r".fixedPrefix)
                    .target
            } catch {
                throw ToolstackError(error.message)
            }
            if !target.hasPrefix("/") { target = FileManager.default.currentDirectoryPath + "/" + target }
        }
        let request = ControlRequest(
            text == nil ? "cd-eject" : "cd-insert", vdev: vdev, target: text == nil ? nil : target)
        let file: Descriptor?
        do throws(HostFailure) {
            file = try text == nil ? nil : HostFile.open(target, .read)
        } catch { throw ToolstackError("\(error)") }
        _ = try Control.ask(directory.deviceModel, request, descriptors: file.map { [$0.number] } ?? [])
        config.disks[place].target = target
        config.disks[place].format = target.isEmpty ? .empty : .raw
        do { try directory.write(config) } catch { throw ToolstackError("\(error)") }
        return 0
    }
}

extension ConfigFile {
    /// With a name of the command line.
    fileprivate func naming(_ name: String) -> ConfigFile {
        var file = self
        let quoted = name.replacing("\\", with: "\\\\").replacing("\"", with: "\\\"").replacing("\n", with: "\\n")
        file.override("name=\"\(quoted)\"")
        return file
    }
}

extension String {
    /// Behind a prefix ("file:") a disk entry has no format field.
    fileprivate var fixedPrefix: String {
        let prefixes = ["file:", "phy:", "raw:", "tap:", "tap2:", "aio:"]
        return prefixes.contains { hasPrefix($0) } ? replacing(",raw,", with: ",") : self
    }
}
