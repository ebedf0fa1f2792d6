// xl block-attach, block-detach, block-list: virtual disks of a running domain.
// Source: xl(1); columns captured on Xen 4.17.7; libxl waits ten seconds for back ends, and as long for front ends.
// Modelled: attach and detach through the store, with the guest's consent or without (-f).
// Quirks: a guest without PV drivers leaves the disk waiting; that is said, and no failure, as on Xen. Both also wait until
// the guest has dealt with it: Linux takes nodes that come back before that for the old ones, and shows a disk later than it
// says that it has it.

internal import DomainConfig
internal import Foundation
internal import Host
internal import Images
internal import XenStoreClient

extension Session {
    /// LIBXL_INIT_TIMEOUT and LIBXL_DESTROY_TIMEOUT; tests of failures cannot wait that long.
    var deviceSeconds: Double { environment["APUS_DEVICE_TIMEOUT"].flatMap { Double($0) } ?? 10 }

    /// Puts a device into the store and waits for its back end, then for the guest. `serve` gives the back end what the
    /// store cannot.
    func attach(
        _ device: DeviceNodes, called name: String, to record: DomainRecord,
        serve: () throws(ToolstackError) -> Void = {}
    ) throws(ToolstackError) {
        let taken = try withStore { (store) throws(StoreFailure) -> Bool in
            if try store.read("\(device.note)/backend") != nil { return true }
            var tree = DomainTree()
            tree.add(device)
            try store.write(tree)
            return false
        }
        if taken { throw ToolstackError("device \(name) is there already") }
        do throws(ToolstackError) { try serve() } catch {
            try withStore { (store) throws(StoreFailure) in try store.remove(device) }
            throw error
        }
        let seconds = deviceSeconds
        let (back, front) = try withStore { (store) throws(StoreFailure) -> (Int, Int) in
            let back = try store.wait(for: [2, 3, 4, 5, 6], at: device.backend, seconds: seconds)
            guard [2, 3, 4].contains(back) else {
                try store.remove(device)
                return (back, 0)
            }
            return (back, try store.wait(for: [4], at: device.backend, seconds: seconds))
        }
        guard [2, 3, 4].contains(back) else {
            throw ToolstackError(
                "timed out waiting for the back end of \(name) (state \(back), wanted 2): "
                    + "see \(run.directory(of: record.domid).log(of: "backend"))")
        }
        if front == 4 {
            awaitGuest(record, device.backend, isGone: false)
        } else {
            complain("xl: the guest has not taken \(name) (state \(front)): has it PV drivers?")
        }
    }

    /// What the guest has to say about a device that is taken away: libxl's LIBXL__FORCE_OFF, _AUTO and _ON.
    enum Consent { case needed, awaited, notAsked }

    /// Takes a device away, and waits until both ends have let go of it: then it can come back at once.
    func detach(
        _ device: StoredDevice, kind: String, called name: String, from record: DomainRecord, consent: Consent
    ) throws(ToolstackError) {
        let seconds = deviceSeconds
        let backendKind = device.backend.split(separator: "/").dropFirst(4).first.map(String.init)
        let nodes = DeviceNodes(record.domid, kind, backendKind: backendKind, device.number)
        let state = try withStore { (store) throws(StoreFailure) -> Int in
            let before = try store.read("\(device.backend)/state").flatMap { Int($0) } ?? 0
            try store.write("\(device.backend)/online", "0")
            // Closing: what a connected front end answers, and what nobody answers while there is none.
            if ![0, 6].contains(before) { try store.write("\(device.backend)/state", "5") }
            var state = 6
            if consent != .notAsked { state = try store.wait(for: [6], at: device.backend, seconds: seconds) }
            if consent == .awaited { state = 6 }
            if [0, 6].contains(state) { try store.remove(nodes) }
            return state
        }
        guard [0, 6].contains(state) else {
            throw ToolstackError(
                "timed out waiting for the guest to release \(name) (state \(state), wanted 6); use -f to take it away")
        }
        awaitGuest(record, device.backend, isGone: true)
    }

    /// Waits at most two seconds until the guest has dealt with what has changed: it reads an empty control/sysrq, which
    /// changes after all else. If a device `isGone`, the back ends close what they had for it, too, and the guest takes its
    /// watches off it. None of this is a reason to fail.
    private func awaitGuest(_ record: DomainRecord, _ path: String, isGone: Bool) {
        let socket = run.directory(of: record.domid).backend
        let request = ControlRequest("serves", target: path)
        guard let first = try? Control.ask(socket, request), let store = openStore() else { return }
        let key = "/local/domain/\(record.domid)/control/sysrq"
        var seen = first.probeReads
        if (try? store.read(key)) == "" { try? store.write(key, "") } else { seen = nil }
        let deadline = Date(timeIntervalSinceNow: min(2, deviceSeconds))
        while Date() < deadline, let now = try? Control.ask(socket, request) {
            let isBehind = if let seen, let reads = now.probeReads { reads <= seen } else { false }
            guard isBehind || isGone && now.serves == true else { return }
            Thread.sleep(forTimeInterval: 0.01)
        }
    }

    /// Changes a domain's saved config, so that it starts like this again.
    func change(
        _ record: DomainRecord, _ body: (inout DomainConfig) -> Void
    ) throws(ToolstackError) {
        let directory = run.directory(of: record.domid)
        do {
            var config = try directory.readConfig()
            body(&config)
            try directory.write(config)
        } catch {
            throw ToolstackError("the domain's config: \(error)")
        }
    }
}

/// What the back ends are told of a disk whose image comes with the request.
private struct DiskRequest: Encodable {
    var command = "block-attach"
    var disk: ImageFiles.Delivery
}

extension Command {
    static let blockAttach = Command(
        name: "block-attach", summary: "Create a new virtual block device", usage: "DOMAIN DISK-SPEC-COMPONENT ...",
        leastOperands: 2,
        run: { session, options throws(ToolstackError) in
            let record = try session.running(options.operands[0])
            let text = options.operands.dropFirst().joined(separator: ",")
            var file = ConfigFile("", source: "disk")
            file.override("name='x'")
            file.override("type='hvm'")
            file.override("disk=['\(text.replacing("\\", with: "\\\\").replacing("'", with: "\\'"))']")
            let reading = DomainConfig.read(file)
            guard reading.errors.isEmpty, let disk = reading.config?.disks.first else {
                throw ToolstackError(reading.errors.map(\.message).joined(separator: "\n"))
            }
            if session.dryRun {
                session.print("disk: \(LongForm.disk(disk, running: false).text)\n")
                return 0
            }
            try checkImage(disk)
            let directory = session.run.directory(of: record.domid)
            guard let config = try? directory.readConfig() else { throw ToolstackError("the domain's config is gone") }
            try refuseSharing(disk, record, session)
            guard let device = DeviceNodes(disk: disk, of: config) else {
                throw ToolstackError("Invalid or unsupported virtual disk identifier \(disk.vdev)")
            }
            let files = try open(disk)
            try session.attach(device, called: disk.vdev, to: record) { () throws(ToolstackError) in
                guard let files else { return }
                let image = ImageFiles.Delivery(number: device.number, isDisc: disk.cdrom, files: files.note)
                _ = try Control.ask(
                    directory.backend, DiskRequest(disk: image), descriptors: files.descriptors.map(\.number))
            }
            try session.change(record) { $0.disks.append(disk) }
            return 0
        })

    private static func checkImage(_ disk: DomainConfig.Disk) throws(ToolstackError) {
        guard disk.format != .empty else { return }
        do {
            let status = try HostFile.status(disk.target)
            guard status.isRegular || status.isBlockDevice else {
                throw ToolstackError("Disk vdev=\(disk.vdev): \(disk.target) is neither a file nor a block device")
            }
        } catch let error as ToolstackError {
            throw error
        } catch {
            throw ToolstackError("Disk vdev=\(disk.vdev) failed to stat: \(disk.target): No such file or directory")
        }
    }

    /// The back ends open no files: they get them with the request. Nil for a drive without a medium.
    private static func open(_ disk: DomainConfig.Disk) throws(ToolstackError) -> ImageFiles? {
        guard disk.format != .empty else { return nil }
        do throws(ImageFailure) {
            return try ImageFiles(disk.target, disk.format == .qcow2 ? .qcow2 : .raw, readOnly: !disk.readWrite)
        } catch { throw ToolstackError("\(error)") }
    }

    /// An image that is written belongs to one drive.
    private static func refuseSharing(
        _ disk: DomainConfig.Disk, _ record: DomainRecord, _ session: Session
    ) throws(ToolstackError) {
        let all = DomainStarter(run: session.run, programs: session.programs)
        if let problem = all.sharedDisks([disk], session.run.domains()).first { throw ToolstackError(problem) }
    }

    static let blockDetach = Command(
        name: "block-detach", summary: "Destroy a domain's virtual block device", usage: "[option] DOMAIN DEVICE",
        options: [("-f, --force", "do not wait for the domain to release the device")],
        specifications: [.init("f", "force")], leastOperands: 2, mostOperands: 2,
        run: { session, options throws(ToolstackError) in
            let record = try session.running(options.operands[0])
            let name = options.operands[1]
            let number = VirtualDevice(name)?.number ?? Int(name)
            let devices = try session.withStore { (store) throws(StoreFailure) in
                try store.devices("vbd", of: record.domid)
            }
            guard let device = devices.first(where: { $0.number == number }) else {
                throw ToolstackError("Error: Device \(name) not connected.", isVerbatim: true)
            }
            try session.detach(
                device, kind: "vbd", called: name, from: record,
                consent: options.has("force") || session.force ? .notAsked : .needed)
            try session.change(record) { config in
                config.disks.removeAll { VirtualDevice($0.vdev)?.number == device.number }
            }
            return 0
        })

    static let blockList = Command(
        name: "block-list", summary: "List virtual block devices for a domain", usage: "[--json] DOMAIN ...",
        options: [("--json", "the rows as JSON")], specifications: [.init(nil, "json")], leastOperands: 1,
        run: { session, options throws(ToolstackError) in
            try listDevices(
                "vbd", session, options,
                header: "Vdev  BE  handle state evt-ch ring-ref BE-path                       \n",
                row: { record, device in
                    "\(String(device.number).padded(5)) 0   \(String(record).padded(6)) "
                        + "\(String(device.state ?? -1).padded(5)) "
                        + "\(String(device.frontNumber("event-channel")).padded(6)) "
                        + "\(String(device.frontNumber("ring-ref")).padded(8)) \(device.backend.padded(30))\n"
                },
                json: { record, device in
                    .object([
                        ("vdev", .number(device.number)), ("backendDomid", .number(0)), ("domid", .number(record)),
                        ("state", .number(device.state ?? -1)),
                        ("eventChannel", .number(device.frontNumber("event-channel"))),
                        ("ringReference", .number(device.frontNumber("ring-ref"))),
                        ("name", .string(device.back["dev"] ?? "")), ("mode", .string(device.back["mode"] ?? "")),
                        ("target", .string(device.back["params"] ?? "")), ("backend", .string(device.backend)),
                    ])
                })
        })

    /// One kind of devices of some domains, as a table or as JSON. A domain that is not there is said to be so.
    static func listDevices(
        _ kind: String, _ session: Session, _ options: Options, header: String,
        row: (Int, StoredDevice) -> String, json: (Int, StoredDevice) -> PrettyJSON
    ) throws(ToolstackError) -> Int32 {
        var entries: [PrettyJSON] = []
        if !options.has("json") { session.print(header) }
        for name in options.operands {
            let domid = ["0", "Domain-0"].contains(name) ? 0 : session.run.find(name)?.domid
            guard let domid else {
                session.complain("\(name) is an invalid domain identifier")
                continue
            }
            for device in (try? session.openStore()?.devices(kind, of: domid)) ?? [] {
                if options.has("json") {
                    entries.append(json(domid, device))
                } else {
                    session.print(row(domid, device))
                }
            }
        }
        if options.has("json") { session.print(PrettyJSON.array(entries).text + "\n") }
        return 0
    }
}
