// A PV domain's screen, keyboard and pointer: the back ends, and the VNC server that shows them.
// Source: xl.cfg(5), "vfb"; the nodes libxl writes for vfb and vkbd.
// Modelled: one screen. Not modelled: SDL and OpenGL windows.
// Quirks: the port is open before the guest runs, so that a viewer sees it from the start, and a port that is taken is
// an error of `xl create`.

internal import DisplayBackend
internal import DomainConfig
internal import Host
internal import Rings
internal import VNC
internal import XenStoreClient

/// Everything happens on the reactor's thread.
final class DisplayDevices {
    private let picture: GuestPicture
    private let server: VNCServer?
    private let store: StoreClient
    private let link: HypervisorLink
    private let domid: Int
    private var screen: FrameBufferBackend?
    private var keyboard: KeyboardBackend?
    private var isBusy = false
    var onReport: (String) -> Void = { _ in }

    /// Listens as the config says.
    init(_ config: DomainConfig, directory: String, link: HypervisorLink, store: StoreClient, reactor: Reactor) throws {
        (self.link, self.store, domid) = (link, store, config.domid)
        picture = GuestPicture(memory: link.memory)
        guard config.display.vnc else {
            server = nil
            return
        }
        var settings = VNCServer.Settings(name: config.name)
        settings.address = config.display.vncListen
        settings.password = config.display.vncPassword
        settings.display = config.display.vncDisplay
        settings.findsFreePort = config.display.vncUnused
        let server = try VNCServer(settings, screen: picture, reactor: reactor)
        self.server = server
        server.onKey = { [unowned self] key, isDown in keyboard?.key(key, isDown: isDown) }
        server.onPointer = { [unowned self] motion in
            keyboard?.pointer(
                dx: motion.dx, dy: motion.dy, wheel: motion.wheel, buttons: motion.buttons, x: motion.x, y: motion.y)
        }
        try HostFile.replace(directory + "/vnc", with: Array("\(server.address) \(server.port)\n".utf8))
    }

    /// Looks for the devices in the store.
    func start() throws(StoreFailure) {
        for kind in ["vfb", "vkbd"] {
            let base = "/local/domain/0/backend/\(kind)/\(domid)"
            _ = try store.watch(base) { [weak self] _ in self?.look(kind, "\(base)/0") }
        }
    }

    /// Serves what waits; whether there is more.
    func turn() -> Bool {
        if isBusy { isBusy = screen?.turn() ?? false }
        return isBusy
    }

    func stop() {
        screen?.device.stop()
        keyboard?.device.stop()
    }

    private func look(_ kind: String, _ path: String) {
        do {
            guard kind == "vfb" ? screen == nil : keyboard == nil, let text = try store.read("\(path)/state"),
                XenbusState(text: text) == .initialising
            else { return }
            if kind == "vfb" { try startScreen(path) } else { try startKeyboard(path) }
        } catch { onReport("\(path): \(error)") }
    }

    private func startScreen(_ path: String) throws(StoreFailure) {
        let screen = FrameBufferBackend(path, store: store, memory: link.memory, ports: link, picture: picture)
        screen.onWork = { [weak self] in self?.isBusy = true }
        screen.device.onReport = { [weak self] in self?.onReport($0) }
        screen.device.onEnd = { [weak self] in self?.screen = nil }
        self.screen = screen
        try screen.start()
    }

    private func startKeyboard(_ path: String) throws(StoreFailure) {
        let keyboard = KeyboardBackend(
            path, store: store, memory: link.memory, grants: link.grants, ports: link)
        keyboard.screen = { [picture] in (picture.width, picture.height) }
        keyboard.device.onReport = { [weak self] in self?.onReport($0) }
        keyboard.device.onEnd = { [weak self] in self?.keyboard = nil }
        self.keyboard = keyboard
        try keyboard.start()
    }
}
