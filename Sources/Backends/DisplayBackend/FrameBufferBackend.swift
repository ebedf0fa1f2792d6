// The back end of a PV frame buffer.
// Source: Xen's public/io/fbif.h, public/io/protocols.h; what QEMU's xenfb answers to Linux's xen-fbfront.
// Modelled: update and resize events, 32- and 64-bit directories. Not modelled: refresh periods (a guest may ignore them).
// Quirks: the page's node, page-ref, is a frame number and no grant.
internal import CXen
public import Rings
public import XenStoreClient

/// One vfb. Everything happens on one thread.
@safe public final class FrameBufferBackend {
    // Invariant: `page` lies in `memory`, which lives as long as this object.
    private static let tableOffset = 40
    /// Entries in front of the first ring.
    private static let tableBytes = Int(XENFB_IN_RING_OFFS) - tableOffset

    public let device: BackendDevice
    public let picture: GuestPicture
    private let memory: DomainMemory
    private let ports: any EventPorts
    private var ring: EventRing?
    private var port: (any EventPort)?
    /// Called when `turn` has something to do.
    public var onWork: () -> Void = {}

    public init(_ path: String, store: StoreClient, memory: DomainMemory, ports: any EventPorts, picture: GuestPicture)
    {
        (self.memory, self.ports, self.picture) = (memory, ports, picture)
        device = BackendDevice(path, store: store)
        device.onConnect = { [unowned self] in try connect() }
        device.onDisconnect = { [unowned self] in disconnect() }
    }

    public func start() throws(StoreFailure) {
        // Changes are seen without being told, so the guest need not wake up to tell.
        try device.start([("feature-resize", "1"), ("request-update", "0")])
    }

    private func connect() throws(ParameterFault) {
        let frame = try device.number("page-ref")
        guard let page = unsafe memory.page(frame) else { throw ParameterFault("page-ref \(frame) is no memory") }
        guard let number = UInt32(exactly: try device.number("event-channel")) else {
            throw ParameterFault("event-channel is out of range")
        }
        let is32 = device.read("protocol") == "x86_32-abi"
        try unsafe takePicture(page, wordBytes: is32 ? 4 : 8)
        do { port = try ports.bind(number) } catch { throw ParameterFault("cannot bind event channel \(number)") }
        unsafe ring = EventRing(
            page: page, data: Int(XENFB_OUT_RING_OFFS), size: Int(XENFB_OUT_RING_SIZE), consumer: 8, producer: 12)
        port?.onEvent = { [weak self] in self?.onWork() }
        onWork()
    }

    /// One copy of what the page says, checked by the picture.
    @unsafe private func takePicture(_ page: UnsafeMutableRawPointer, wordBytes: Int) throws(ParameterFault) {
        func word(_ offset: Int) -> Int { unsafe Int(page.load(fromByteOffset: offset, as: UInt32.self)) }
        let shape = PictureShape(
            width: word(16), height: word(20), lineBytes: word(24),
            depth: unsafe Int(page.load(fromByteOffset: 32, as: UInt8.self)), offset: 0)
        let bytes = word(28)
        let perTable = DomainMemory.pageSize / wordBytes * DomainMemory.pageSize
        let tables = (bytes + perTable - 1) / perTable
        let start = wordBytes == 8 ? Self.tableOffset : 36
        guard tables * wordBytes <= Self.tableBytes else { throw ParameterFault("a frame buffer of \(bytes) bytes") }
        let directory = (0..<tables).map { index in
            unsafe wordBytes == 8
                ? page.load(fromByteOffset: start + index * 8, as: UInt64.self)
                : UInt64(page.load(fromByteOffset: start + index * 4, as: UInt32.self))
        }
        guard picture.connect(shape, bytes: bytes, directory: directory, wordBytes: wordBytes) else {
            throw ParameterFault(
                "a frame buffer of \(shape.width) x \(shape.height) x \(shape.depth) in \(bytes) bytes makes no sense")
        }
    }

    private func disconnect() {
        port?.close()
        (port, ring) = (nil, nil)
        picture.disconnect()
    }

    /// Takes the guest's events; true if there may be more.
    public func turn() -> Bool {
        guard let ring else { return false }
        do {
            for _ in 0..<64 {
                guard let event = try ring.take() else { return false }
                if event[0] == UInt8(XENFB_TYPE_RESIZE) { resize(event) }
            }
            return true
        } catch {
            self.ring = nil
            device.onReport("\(device.path): the front end's ring makes no sense (\(error)); it is served no more")
            return false
        }
    }

    private func resize(_ event: [UInt8]) {
        func word(_ index: Int) -> Int {
            Int((0..<4).reduce(UInt32(0)) { $0 | UInt32(event[index * 4 + $1]) << UInt32(8 * $1) })
        }
        let shape = PictureShape(width: word(1), height: word(2), lineBytes: word(3), depth: word(4), offset: word(5))
        if !picture.resize(shape) {
            device.onReport("\(device.path): a resize to \(shape.width) x \(shape.height) does not fit and is ignored")
        }
    }
}
