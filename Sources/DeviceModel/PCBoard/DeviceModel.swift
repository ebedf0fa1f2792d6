// The process around the board: handshake, event loop, control socket.
// Source: docs/ARCHITECTURE.md, "Processes".
// Modelled: one domain, one thread, for the domain's life.
// Quirks: while the domain is paused no chip's time passes; the loop looks for its end ten times a second.

internal import Display
internal import DomainConfig
internal import Ethernet
internal import Foundation
public import Host
internal import Images
internal import Input
internal import Ioreq
internal import Machine
internal import Storage
internal import VNC

/// A failed set-up, in one sentence.
public struct SetupFailure: Error, CustomStringConvertible {
    public var description: String
    init(_ description: String) { self.description = description }
}

private struct WeakImage { weak var image: (any BlockStore)? }

/// The device-model process.
public final class DeviceModel {
    private let directory: String
    private let config: DomainConfig
    private let reactor: Reactor
    private let hypervisor: MessageSocket
    private let pages: IoreqPages
    private let video: SharedMemory
    private let server: IoreqServer
    private let serial: SerialPort
    /// Images to be drained before the process ends, as long as a drive has them.
    private let images: [WeakImage]
    private let machine: PCBoard
    private var vnc: VNCServer?
    private var control: LineServer?
    private static let pausedPoll: UInt64 = 100_000_000

    private struct Hello: Codable {
        var ramBytes: UInt64
        var vcpus: Int
    }

    /// Sets the domain's hardware up. Nothing of the guest runs yet.
    /// - Parameters:
    ///   - hypervisor: the socket to the domain's other process.
    ///   - ports: makes the descriptor of a network card's port, by the card's number among all.
    public init(directory: String, hypervisor: MessageSocket, ports: (Int) -> Descriptor) throws {
        self.directory = directory
        self.hypervisor = hypervisor
        let json = try HostFile.read(directory + "/config.json")
        config = try JSONDecoder().decode(DomainConfig.self, from: Data(json))
        guard let (message, descriptors) = try hypervisor.receive() else {
            throw SetupFailure("the hypervisor ended before it handed over the domain's memory")
        }
        guard descriptors.count >= 5, let hello = try? JSONDecoder().decode(Hello.self, from: Data(message)) else {
            throw SetupFailure("the hypervisor's first message makes no sense")
        }
        let ramBytes = Int(hello.ramBytes)
        let ram = GuestRAM(
            memory: try SharedMemory(mapping: descriptors[0], size: ramBytes, name: "guest RAM"),
            codeMap: try SharedMemory(mapping: descriptors[1], size: ramBytes >> 12, name: "the code map"))
        var pages = IoreqPages(
            try SharedMemory(mapping: descriptors[2], size: IoreqLayout.size, name: "the ioreq pages"))
        pages.peer = hypervisor.descriptor
        self.pages = pages
        video = try SharedMemory(
            mapping: descriptors[3], size: config.display.videoMemory << 20, name: "video memory")
        reactor = try Reactor()
        serial = try SerialPort(config.serial.first, reactor: reactor)
        let drives = try Drives(config, on: reactor)
        images = drives.images.map { WeakImage(image: $0) }
        let log = try BIOSLog(directory + "/bios.log")
        var outputs = BoardOutputs()
        outputs.log = log.write
        outputs.serial = serial.transmit
        let roms = BoardROMs(video: try HostFile.read(config.firmwareDirectory + "/vgabios-stdvga.bin"))
        machine = unsafe PCBoard(
            config, ram: ram, pages: pages, video: video.bytes, roms: roms, drives: drives, time: wallClockSeconds(),
            outputs: outputs)
        serial.uart = machine.uart
        server = IoreqServer(pages, vcpus: hello.vcpus, doorbell: descriptors[4])
        plugNetwork(config.emulatedInterfaces.indices.map(ports))
        try connect()
        try showScreen()
    }

    private func plugNetwork(_ descriptors: [Descriptor]) {
        var roms: [NetworkInterface.Model: [UInt8]] = [:]
        if config.boot.contains("n") {
            // Debian's package ipxe-qemu; without it there is no booting from the network.
            roms[.e1000] = try? HostFile.read("/usr/lib/ipxe/qemu/pxe-e1000.rom")
            roms[.ne2000PCI] = try? HostFile.read("/usr/lib/ipxe/qemu/pxe-ne2k_pci.rom")
        }
        let ports = descriptors.map { FramePort($0) }
        for port in ports { port.attach(to: reactor) }
        machine.plugNetwork(ports, roms: roms)
    }

    /// Ties everything to the event loop.
    private func connect() throws {
        server.handler = { [machine, serial] request in
            let value = machine.handle(request)
            serial.guestRead()
            return value
        }
        server.look = { [machine] in machine.lookAtDrives() }
        server.attach(to: reactor)
        reactor.nextDeadline = { [pages, machine] in
            if pages.isPaused { return monotonicNanoseconds() + Self.pausedPoll }
            return machine.deadline.map { $0.nanoseconds &+ pages.clockOffset }
        }
        reactor.onDeadline = { [pages, machine] in
            if !pages.isPaused { machine.advance() }
        }
        reactor.watch(hypervisor.descriptor.number) { [reactor] _ in reactor.stop() }
        if let path = serial.path { try HostFile.link(directory + "/console", to: path) }
        control = try LineServer(path: directory + "/device-model.sock", reactor: reactor) {
            [unowned self] line, answer in
            answer(self.answer(line))
        }
    }

    /// Puts the screen on a VNC port, and the port into the file `vnc`.
    private func showScreen() throws {
        guard config.display.vnc, let vga = machine.vga else { return }
        var settings = VNCServer.Settings(name: config.name)
        settings.address = config.display.vncListen
        settings.password = config.display.vncPassword
        settings.display = config.display.vncDisplay
        settings.findsFreePort = config.display.vncUnused
        let vnc = try VNCServer(settings, screen: Screen(vga) { [machine] in machine.now }, reactor: reactor)
        vnc.onKey = { [machine] key, isDown in machine.keyboard.key(key, isDown: isDown, at: machine.now) }
        vnc.onPointer = { [machine] motion in
            machine.keyboard.move(
                dx: motion.dx, dy: motion.dy, wheel: motion.wheel, buttons: motion.buttons, at: machine.now)
        }
        machine.keyboard.onLights = { [unowned vnc] lights in vnc.isCapsLocked = lights & 4 != 0 }
        self.vnc = vnc
        try HostFile.replace(directory + "/vnc", with: Array("\(vnc.address) \(vnc.port)\n".utf8))
    }

    /// Tells the hypervisor that it may start, and serves until it is gone.
    public func run(ready: () throws -> Void) throws {
        try Confinement.deviceModel.enter(as: "device-model")
        try hypervisor.send(Array("r".utf8))
        try ready()
        reactor.run()
        for image in images { image.image?.drain() }
    }
}

extension Confinement {
    /// All files and ports are open; the toolstack opens the discs that are put in later.
    static var deviceModel: Confinement { .living + .events + .conversation + .images }
}

/// The control protocol: one JSON object a line.
extension DeviceModel {
    private struct Request: Codable {
        var command: String
        var vdev: String?
        var target: String?
    }
    private struct Reply: Codable {
        struct VNC: Codable {
            var address: String
            var port: Int
        }
        var ok: Bool?
        var error: String?
        struct Access: Codable {
            var name: String
            var reads: UInt64
            var writes: UInt64
            /// Accesses that no register took.
            var faults: UInt64
        }
        var vnc: VNC?
        var console: String?
        /// What each chip and card was asked.
        var chips: [Access]?
    }

    private func answer(_ line: String) -> String {
        let reply = carryOut(line)
        guard let json = try? JSONEncoder().encode(reply) else { return "{\"error\":\"no answer\"}" }
        return String(decoding: json, as: UTF8.self)
    }

    private func carryOut(_ line: String) -> Reply {
        guard let request = try? JSONDecoder().decode(Request.self, from: Data(line.utf8)) else {
            return Reply(error: "not a command: \(line.prefix(80))")
        }
        switch request.command {
        case "status":
            return Reply(
                ok: true, vnc: vnc.map { Reply.VNC(address: $0.address, port: $0.port) }, console: serial.path)
        case "statistics":
            let slots = machine.board.slots.filter { $0.reads | $0.writes != 0 }
            return Reply(
                ok: true,
                chips: slots.map {
                    Reply.Access(name: $0.name, reads: $0.reads, writes: $0.writes, faults: $0.faults)
                })
        case "cd-insert": return changeMedium(request.vdev, request.target)
        case "cd-eject": return changeMedium(request.vdev, nil)
        case "powerButton":
            machine.power.pressPowerButton()
            return Reply(ok: true)
        case "reset":
            pages.send(.reset)
            return Reply(ok: true)
        default: return Reply(error: "unknown command \(request.command)")
        }
    }

    private func changeMedium(_ vdev: String?, _ target: String?) -> Reply {
        guard let vdev, case .ide(let channel, let unit) = DrivePlace(vdev) else {
            return Reply(error: "\(vdev ?? "nothing") is no CD drive of this domain")
        }
        do {
            var image: DiskImage?
            if let target {
                guard let file = control?.enclosed.first else {
                    return Reply(error: "no open file came with \(target)")
                }
                image = try DiskImage(try ImageFiles(disc: file, path: target), for: .cdrom, on: reactor)
            }
            guard machine.channels[channel].changeMedium(unit, to: image) else {
                return Reply(error: "\(vdev) is no CD drive of this domain")
            }
            return Reply(ok: true)
        } catch { return Reply(error: "\(error)") }
    }
}
