// The VNC server of a domain's screen, on libvncserver.
// Source: RFC 6143 (RFB); the rfbproto community document for the extended key event.
// Modelled: one IPv4 address, VNC password, resize, dirty rectangles, keysyms and scan codes, relative and absolute pointer,
// web sockets on the same port.
// Quirks: runs in its owner's event loop; looks at the screen 30 times a second while a client is there, else never.

internal import CVNC
internal import Glibc
public import Host

/// A client, as libvncserver knows it.
@safe private struct Connection {
    let record: rfbClientPtr
    let socket: Int32
}

/// A string that libvncserver points to.
@safe private struct CString {
    let bytes: UnsafeMutablePointer<CChar>
}

/// Shows a picture to VNC clients and takes their keys and pointer.
@safe public final class VNCServer {
    // Invariant: `rfb` and everything that hangs on it belong to this object and are only touched on its
    // reactor's thread; a client's record is not used after `reap` let it go.
    public struct Settings: Sendable {
        /// Shown by clients as the window's title.
        public var name: String
        /// IPv4 address; empty is 127.0.0.1.
        public var address = "127.0.0.1"
        /// Empty: none. VNC looks at eight characters.
        public var password = ""
        /// Port less 5900.
        public var display = 0
        /// Take the first free port from `display` on.
        public var findsFreePort = true
        public init(name: String) { self.name = name }
    }

    /// What a client's pointer did.
    public struct Motion: Equatable, Sendable {
        /// Since the last event, down positive.
        public var dx = 0
        public var dy = 0
        /// Wheel clicks, down positive.
        public var wheel = 0
        /// Bit 0 left, bit 1 right, bit 2 middle.
        public var buttons: UInt8 = 0
        /// Where it is, 0...32767 over the screen's width and height (for a tablet).
        public var x = 0
        public var y = 0
    }

    /// A key of the guest's keyboard: set 1 scan code, bit 7 for the 0xE0 prefix.
    public var onKey: (_ key: UInt8, _ isDown: Bool) -> Void = { _, _ in }
    public var onPointer: (Motion) -> Void = { _ in }
    public var address: String { socket.address }
    public var port: Int { socket.port }
    public var clientCount: Int { clients.count }
    /// The guest's Caps Lock light.
    public var isCapsLocked: Bool {
        get { keys.isCapsLocked }
        set { keys.isCapsLocked = newValue }
    }

    private let screen: any Picture
    private let reactor: Reactor
    private let socket: ListenSocket
    private var timer: RepeatingTimer?
    private var door: VNCDoor?
    private let rfb: rfbScreenInfoPtr
    /// The picture that libvncserver reads from now.
    private var frame: HostBytes
    private var strings: [CString] = []
    private var passwords: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>?
    private var clients: [Connection] = []
    private var keys = KeyTranslator()
    /// Keys that are down by scan code.
    private var scanKeys: Set<UInt8> = []
    private var pointer: (x: Int, y: Int)?

    /// Listens and serves from `reactor`.
    public init(_ settings: Settings, screen: any Picture, reactor: Reactor) throws(HostFailure) {
        (self.screen, self.reactor) = (screen, reactor)
        socket = try ListenSocket(
            address: settings.address, display: settings.display, findsFree: settings.findsFreePort)
        rfbLogEnable(0)
        let (width, height) = (Int32(screen.width), Int32(screen.height))
        guard let made = unsafe rfbGetScreen(nil, nil, width, height, 8, 3, 4) else {
            throw HostFailure("make", "a VNC server", code: 12)
        }
        unsafe rfb = made
        frame = screen.frame
        configure(settings)
        timer = try RepeatingTimer(every: 33_333_333, on: reactor) { [weak self] in self?.tick() }
        door = try VNCDoor(reactor: reactor) { [weak self] connection, visitor in
            if visitor == .browser { self?.admit(connection) } else { self?.greet(connection) }
        }
        reactor.watch(socket.descriptor.number) { [weak self] _ in self?.takeClients() }
    }

    deinit {
        reactor.unwatch(socket.descriptor.number)
        for client in clients { reactor.unwatch(client.socket) }
        unsafe rfb.pointee.frameBuffer = nil
        unsafe rfbShutdownServer(rfb, 1)
        unsafe rfbScreenCleanup(rfb)
        for string in strings { unsafe free(string.bytes) }
        unsafe passwords?.deallocate()
    }

    private func configure(_ settings: Settings) {
        ExtendedKeys.register()
        unsafe rfb.pointee.screenData = Unmanaged.passUnretained(self).toOpaque()
        unsafe rfb.pointee.desktopName = UnsafePointer(copy(settings.name))
        unsafe (rfb.pointee.port, rfb.pointee.ipv6port, rfb.pointee.autoPort) = (0, 0, 0)
        unsafe (rfb.pointee.httpPort, rfb.pointee.http6Port, rfb.pointee.udpPort) = (0, 0, 0)
        unsafe (rfb.pointee.alwaysShared, rfb.pointee.deferUpdateTime, rfb.pointee.deferPtrUpdateTime) = (1, 0, 0)
        unsafe rfb.pointee.maxClientWait = 2_000
        unsafe rfb.pointee.cursor = nil
        unsafe rfb.pointee.ignoreSIGPIPE = 1
        if !settings.password.isEmpty {
            let list = UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>.allocate(capacity: 2)
            unsafe list[0] = copy(settings.password)
            unsafe list[1] = nil
            unsafe passwords = list
            unsafe rfb.pointee.authPasswdData = UnsafeMutableRawPointer(list)
            unsafe rfb.pointee.passwordCheck = rfbCheckPasswordByList
        }
        unsafe rfb.pointee.kbdAddEvent = { isDown, keysym, client in
            unsafe VNCServer.of(client)?.takeKeysym(keysym, isDown: isDown != 0)
        }
        unsafe rfb.pointee.ptrAddEvent = { buttons, x, y, client in
            unsafe VNCServer.of(client)?.takePointer(UInt8(truncatingIfNeeded: buttons), Int(x), Int(y))
        }
        unsafe rfb.pointee.setXCutText = { _, _, _ in }
        unsafe rfb.pointee.newClientHook = { client in
            unsafe VNCServer.of(client)?.welcome(client)
            return RFB_CLIENT_ACCEPT
        }
        unsafe rfb.pointee.frameBuffer = frame.base.assumingMemoryBound(to: CChar.self)
        setFormat()
        unsafe vnc_start(rfb)
    }

    private func copy(_ text: String) -> UnsafeMutablePointer<CChar>? {
        guard let string = unsafe strdup(text) else { return nil }
        unsafe strings.append(CString(bytes: string))
        return unsafe string
    }

    /// Pixels are 0x00RRGGBB.
    private func setFormat() {
        unsafe rfb.pointee.serverFormat.redShift = 16
        unsafe rfb.pointee.serverFormat.greenShift = 8
        unsafe rfb.pointee.serverFormat.blueShift = 0
    }

    /// The server that a client belongs to.
    @unsafe static func of(_ client: rfbClientPtr?) -> VNCServer? {
        guard let client = unsafe client, let data = unsafe client.pointee.screen?.pointee.screenData else {
            return nil
        }
        return unsafe Unmanaged<VNCServer>.fromOpaque(data).takeUnretainedValue()
    }
}

// MARK: - Clients

extension VNCServer {
    private func takeClients() {
        while let number = socket.accept() {
            // libvncserver waits with select(2), which knows no higher descriptors.
            if number < 1_000 { door?.enter(Descriptor(owning: number)) } else { close(number) }
        }
        reap()
    }

    /// Makes a client of a browser's connection, whose request has come.
    private func admit(_ connection: Descriptor) {
        let number = dup(connection.number)
        guard number >= 0, number < 1_000 else { return }
        prepareClient(number)
        _ = fcntl(number, F_SETFD, FD_CLOEXEC)
        // On a failure libvncserver closes the socket itself.
        unsafe _ = rfbNewClient(rfb, number)
    }

    /// Makes a client of a viewer's connection.
    ///
    /// libvncserver looks whether a new client speaks first, as web sockets do, and the whole machine would wait those
    /// 100 ms. So it meets one that has spoken: a socket of our own, whose number then becomes the client's.
    private func greet(_ connection: Descriptor) {
        guard let (near, far) = try? StreamSocket.pair() else { return }
        try? HostFile.write(Array("RFB ".utf8), to: far.number)
        let number = dup(near.number)
        guard number >= 0, number < 1_000, let record = unsafe rfbNewClient(rfb, number) else { return }
        prepareClient(connection.number)
        guard let version = try? HostFile.readAvailable(far.number), unsafe record.pointee.sock == number,
            dup2(connection.number, number) == number, fcntl(number, F_SETFD, FD_CLOEXEC) == 0,
            (try? HostFile.write(version, to: number)) != nil
        else { return unsafe rfbCloseClient(record) }
        reactor.unwatch(number)
        reactor.watch(number) { [weak self] _ in self?.serve() }
    }

    @unsafe private func welcome(_ client: rfbClientPtr?) {
        guard let client = unsafe client else { return }
        let number = unsafe client.pointee.sock
        if clients.isEmpty { refresh() }
        clients.append(unsafe Connection(record: client, socket: number))
        reactor.watch(number) { [weak self] _ in self?.serve() }
        timer?.start()
    }

    /// Reads what clients sent, and answers what they asked for.
    private func serve() {
        unsafe _ = rfbCheckFds(rfb, 0)
        send()
    }

    private func tick() {
        guard !clients.isEmpty else { return }
        refresh()
        send()
    }

    /// Sends changes to clients that have taken what they were sent before.
    private func send() {
        for client in clients where unsafe client.record.pointee.sock >= 0 {
            guard unsentBytes(client.socket) < 65_536 else { continue }
            // The guest draws the pointer; the client keeps its own as well.
            unsafe client.record.pointee.cursorWasChanged = 0
            unsafe client.record.pointee.cursorWasMoved = 0
            unsafe _ = rfbUpdateClient(client.record)
        }
        reap()
    }

    /// Lets clients go whose connection has ended.
    private func reap() {
        for client in clients where unsafe client.record.pointee.sock < 0 {
            reactor.unwatch(client.socket)
            clients.removeAll { unsafe $0.record == client.record }
            unsafe rfbClientConnectionGone(client.record)
        }
        guard clients.isEmpty, timer?.isRunning == true else { return }
        timer?.stop()
        pointer = nil
        play(keys.releaseAll())
        for key in scanKeys.sorted() { takeKey(key, isDown: false) }
    }

    /// Looks at the screen and tells libvncserver what changed.
    private func refresh() {
        let update = screen.refresh()
        if update.isResized || frame !== screen.frame { resize() }
        for area in update.changed {
            let (right, bottom) = (area.x + area.width, area.y + area.height)
            unsafe rfbMarkRectAsModified(rfb, Int32(area.x), Int32(area.y), Int32(right), Int32(bottom))
        }
    }

    private func resize() {
        frame = screen.frame
        pointer = nil
        let pixels = unsafe frame.base.assumingMemoryBound(to: CChar.self)
        unsafe rfbNewFramebuffer(rfb, pixels, Int32(screen.width), Int32(screen.height), 8, 3, 4)
        setFormat()
        for client in clients { unsafe _ = rfbSetTranslateFunction(client.record) }
    }
}

// MARK: - Keys and pointer

extension VNCServer {
    private func takeKeysym(_ keysym: UInt32, isDown: Bool) { play(keys.key(keysym, isDown: isDown)) }

    /// A key by scan code, from the extended key event.
    func takeKey(_ key: UInt8, isDown: Bool) {
        if isDown { scanKeys.insert(key) } else { scanKeys.remove(key) }
        onKey(key, isDown)
    }

    private func play(_ strokes: [KeyTranslator.Stroke]) {
        for stroke in strokes { onKey(stroke.key, stroke.isDown) }
    }

    /// RFB buttons: left, middle, right, wheel up, wheel down (RFC 6143 §7.5.5).
    private func takePointer(_ mask: UInt8, _ x: Int, _ y: Int) {
        let last = pointer ?? (x, y)
        pointer = (x, y)
        var motion = Motion()
        motion.dx = x - last.x + Self.push(x, last.x, size: screen.width)
        motion.dy = y - last.y + Self.push(y, last.y, size: screen.height)
        motion.buttons = mask & 1 | (mask & 2) << 1 | (mask & 4) >> 1
        motion.wheel = (mask & 16 != 0 ? 1 : 0) - (mask & 8 != 0 ? 1 : 0)
        motion.x = min(max(x, 0), screen.width - 1) * 32_767 / max(screen.width - 1, 1)
        motion.y = min(max(y, 0), screen.height - 1) * 32_767 / max(screen.height - 1, 1)
        onPointer(motion)
    }

    /// A pointer that reaches the edge takes the guest's along, however far the two had drifted apart.
    private static func push(_ now: Int, _ last: Int, size: Int) -> Int {
        guard now != last else { return 0 }
        return now <= 0 ? -size : now >= size - 1 ? size : 0
    }
}
