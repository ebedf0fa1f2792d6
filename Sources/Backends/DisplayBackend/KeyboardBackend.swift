// The back end of a PV keyboard and pointer.
// Source: Xen's public/io/kbdif.h; key codes of Linux's input-event-codes.h.
// Modelled: keys, buttons, relative and absolute motion, wheel. Not modelled: touch screens, raw pointers.
// Quirks: the page is found by grant (page-gref) or, for old front ends, by frame number (page-ref).
internal import CXen
public import Rings
public import XenStoreClient

/// One vkbd. Everything happens on one thread.
@safe public final class KeyboardBackend {
    // Invariant: the page that `ring` lies in is `granted`, or part of `memory`.
    public let device: BackendDevice
    private let memory: DomainMemory
    private let grants: GrantMap
    private let ports: any EventPorts
    private var ring: EventRing?
    private var granted: GrantedPage?
    private var port: (any EventPort)?
    private var isAbsolute = false
    private var buttons: UInt8 = 0
    /// Size of the screen, for absolute positions.
    public var screen: () -> (width: Int, height: Int) = { (800, 600) }

    public init(
        _ path: String, store: StoreClient, memory: DomainMemory, grants: GrantMap, ports: any EventPorts
    ) {
        (self.memory, self.grants, self.ports) = (memory, grants, ports)
        device = BackendDevice(path, store: store)
        device.onConnect = { [unowned self] in try connect() }
        device.onDisconnect = { [unowned self] in disconnect() }
    }

    public func start() throws(StoreFailure) {
        let size = screen()
        try device.start([
            ("feature-abs-pointer", "1"), ("feature-raw-pointer", "0"), ("feature-multi-touch", "0"),
            ("width", "\(size.width)"), ("height", "\(size.height)"),
        ])
    }

    private func connect() throws(ParameterFault) {
        guard let number = UInt32(exactly: try device.number("event-channel")) else {
            throw ParameterFault("event-channel is out of range")
        }
        let page = try unsafe findPage()
        do { port = try ports.bind(number) } catch {
            granted?.release()
            granted = nil
            throw ParameterFault("cannot bind event channel \(number)")
        }
        unsafe ring = EventRing(
            page: page, data: Int(XENKBD_IN_RING_OFFS), size: Int(XENKBD_IN_RING_SIZE), consumer: 0, producer: 4)
        isAbsolute = device.read("request-abs-pointer") == "1"
        buttons = 0
    }

    @unsafe private func findPage() throws(ParameterFault) -> UnsafeMutableRawPointer {
        if device.read("page-gref") != nil, let reference = UInt32(exactly: try device.number("page-gref")) {
            do {
                let page = try grants.map(reference, .readWrite)
                granted = page
                return unsafe page.base
            } catch { throw ParameterFault("page-gref \(reference): \(error)") }
        }
        let frame = try device.number("page-ref")
        guard let page = unsafe memory.page(frame) else { throw ParameterFault("page-ref \(frame) is no memory") }
        return unsafe page
    }

    private func disconnect() {
        port?.close()
        granted?.release()
        (port, ring, granted) = (nil, nil, nil)
    }

    // MARK: - Events

    /// A key by its set 1 scan code, bit 7 for the 0xE0 prefix.
    public func key(_ scanCode: UInt8, isDown: Bool) {
        if let code = LinuxKeys.code(scanCode) { send([key(code, isDown)]) }
    }

    /// Movement, wheel clicks (down positive), buttons (bit 0 left, 1 right, 2 middle), and 0...32767 over the screen.
    public func pointer(dx: Int, dy: Int, wheel: Int, buttons new: UInt8, x: Int, y: Int) {
        var events: [[UInt8]] = []
        if isAbsolute {
            let size = screen()
            let place = (x * max(0, size.width - 1) / 32_767, y * max(0, size.height - 1) / 32_767)
            events.append(motion(UInt8(XENKBD_TYPE_POS), place.0, place.1, -wheel))
        } else if dx != 0 || dy != 0 || wheel != 0 {
            events.append(motion(UInt8(XENKBD_TYPE_MOTION), dx, dy, -wheel))
        }
        for bit in UInt8(0)..<3 where (new ^ buttons) >> bit & 1 != 0 {
            // BTN_LEFT, BTN_RIGHT, BTN_MIDDLE.
            events.append(key(0x110 + UInt32(bit), new >> bit & 1 != 0))
        }
        buttons = new
        send(events)
    }

    private func key(_ code: UInt32, _ isDown: Bool) -> [UInt8] {
        [UInt8(XENKBD_TYPE_KEY), isDown ? 1 : 0, 0, 0] + Self.bytes(code)
    }

    private func motion(_ type: UInt8, _ x: Int, _ y: Int, _ z: Int) -> [UInt8] {
        [type, 0, 0, 0] + [x, y, z].flatMap { Self.bytes(UInt32(bitPattern: Int32(clamping: $0))) }
    }

    private static func bytes(_ word: UInt32) -> [UInt8] {
        (0..<4).map { UInt8(truncatingIfNeeded: word >> UInt32(8 * $0)) }
    }

    /// What a guest leaves no room for is lost, as with a keyboard that nobody reads.
    private func send(_ events: [[UInt8]]) {
        guard let ring, !events.isEmpty else { return }
        do {
            var isAny = false
            for event in events where try ring.put(event) { isAny = true }
            if isAny { port?.notify() }
        } catch {
            self.ring = nil
            device.onReport("\(device.path): the front end's ring makes no sense (\(error)); it is served no more")
        }
    }
}

/// Set 1 scan codes to Linux's key codes.
enum LinuxKeys {
    private static let extended: [UInt8: UInt32] = [
        0x1C: 96, 0x1D: 97, 0x20: 113, 0x2E: 114, 0x30: 115, 0x35: 98, 0x37: 99, 0x38: 100, 0x47: 102, 0x48: 103,
        0x49: 104, 0x4B: 105, 0x4D: 106, 0x4F: 107, 0x50: 108, 0x51: 109, 0x52: 110, 0x53: 111, 0x5B: 125, 0x5C: 126,
        0x5D: 127, 0x5E: 116, 0x5F: 142, 0x46: 119,
    ]

    static func code(_ key: UInt8) -> UInt32? {
        if key & 0x80 != 0 { return extended[key & 0x7F] }
        // Up to F12 Linux took its numbers from this very set.
        return (1...88).contains(key) ? UInt32(key) : nil
    }
}
