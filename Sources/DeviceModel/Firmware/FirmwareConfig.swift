// fw_cfg: how SeaBIOS asks what machine it runs on, and fetches its tables.
// Source: QEMU's docs/specs/fw_cfg.rst (the interface, ports 0x510/0x511 and DMA at 0x514).
// Modelled: selector, data, DMA read/skip/select. Not modelled: writable items (a DMA write is an error).
// Quirks: an unknown key reads as zeros; the data port reads zeros behind an item's end.

public import Machine

/// The keys and files that firmware can ask for; made once, never changed by a guest.
public struct FirmwareItems: Sendable {
    /// Keys with a fixed number; those from 0x8000 on are the PC's own.
    public enum Key: UInt16, Sendable {
        case signature = 0x00
        case version = 0x01
        case uuid = 0x02
        case ramSize = 0x03
        case noGraphics = 0x04
        case cpus = 0x05
        case numa = 0x0D
        case bootMenu = 0x0E
        case maximumCPUs = 0x0F
        case fileDirectory = 0x19
        case acpiTables = 0x8000
        case smbiosEntries = 0x8001
        case irq0Override = 0x8002
        case e820 = 0x8003
    }
    static let firstFile: UInt16 = 0x20
    /// "QEMU" answers; interface version 1 (bit 0) with DMA (bit 1).
    private static let interface: UInt32 = 0b11

    private(set) var items: [UInt16: [UInt8]] = [:]
    private var files: [(name: String, bytes: [UInt8])] = []

    public init() {
        self[.signature] = Array("QEMU".utf8)
        self[.version] = Self.interface.littleEndianBytes
    }

    public subscript(key: Key) -> [UInt8] {
        get { items[key.rawValue] ?? [] }
        set { items[key.rawValue] = newValue }
    }

    /// Adds a named file; at most 55 bytes of name. Files are numbered in the order of their names.
    public mutating func add(file name: String, _ bytes: [UInt8]) {
        precondition(name.utf8.count < 56, "a firmware file's name has at most 55 bytes")
        files.removeAll { $0.name == name }
        files.append((name, bytes))
        files.sort { $0.name < $1.name }
        var directory = UInt32(files.count).bigEndianBytes
        for (index, file) in files.enumerated() {
            let key = Self.firstFile + UInt16(index)
            items[key] = file.bytes
            directory += UInt32(file.bytes.count).bigEndianBytes + key.bigEndianBytes + [0, 0]
            directory += Array(file.name.utf8) + Array(repeating: 0, count: 56 - file.name.utf8.count)
        }
        self[.fileDirectory] = directory
    }

    /// A file's contents.
    public func file(_ name: String) -> [UInt8]? { files.first { $0.name == name }?.bytes }
}

/// The fw_cfg device.
public final class FirmwareConfig: StringDevice {
    /// Where the guest is reading, and the half of a DMA address it has written.
    public struct State: DeviceState {
        public static let schema = Schema("fw-cfg", 1)
        public var selected: UInt16 = 0
        public var position = 0
        public var addressHigh: UInt32 = 0
        public init() {}
        public mutating func reset(_ cause: ResetCause) { self = State() }
    }

    private let items: [UInt16: [UInt8]]
    private let memory: any DMA
    public let regions = [
        Region("fw_cfg", .port, 0x510...0x511, widths: [.byte, .word]),
        Region("fw_cfg-dma", .port, 0x514...0x51B, widths: [.long]),
    ]
    public var state = State()

    public init(_ items: FirmwareItems, memory: any DMA) { (self.items, self.memory) = (items.items, memory) }

    public func read(_ access: Access) throws(BusFault) -> UInt64 {
        switch (access.region, access.offset, access.width) {
        case (0, 1, .byte): return UInt64(next())
        case (0, 0, .word): return UInt64(state.selected)
        case (1, 0, .long): return 0x554D_4551  // "QEMU", big-endian
        case (1, 4, .long): return 0x4746_4320  // " CFG"
        default: throw .noRegister
        }
    }

    public func write(_ value: UInt64, _ access: Access) throws(BusFault) {
        switch (access.region, access.offset, access.width) {
        case (0, 0, .word): select(UInt16(truncatingIfNeeded: value))
        case (0, 1, .byte): return  // the data port has not been writable since version 2.4 of the interface
        case (1, 0, .long): state.addressHigh = UInt32(truncatingIfNeeded: value).byteSwapped
        case (1, 4, .long):
            let low = UInt32(truncatingIfNeeded: value).byteSwapped
            let address = UInt64(state.addressHigh) << 32 | UInt64(low)
            state.addressHigh = 0
            transfer(GuestAddress(address))
        default: throw .noRegister
        }
    }

    public func read(_ access: Access, into bytes: UnsafeMutableRawBufferPointer) {
        for index in bytes.indices {
            let value = access.region == 0 && access.offset == 1 ? next() : 0xFF
            unsafe bytes[index] = value
        }
    }
    public func write(_ bytes: UnsafeRawBufferPointer, _ access: Access) {}
    public func settle() {}

    private func select(_ key: UInt16) { (state.selected, state.position) = (key, 0) }

    private func next() -> UInt8 {
        guard let item = items[state.selected], item.indices.contains(state.position) else { return 0 }
        defer { state.position &+= 1 }
        return item[state.position]
    }

    /// Carries out the request that lies at `address`: control, length, address, all big-endian.
    private func transfer(_ address: GuestAddress) {
        var request = [UInt8](repeating: 0, count: 16)
        let read = unsafe request.withUnsafeMutableBytes { bytes in
            (try? unsafe memory.read(at: address, into: bytes)) != nil
        }
        guard read else { return }
        let control = UInt32(bigEndianBytes: request[0..<4])
        let length = Int(UInt32(bigEndianBytes: request[4..<8]))
        let high = UInt64(UInt32(bigEndianBytes: request[8..<12]))
        let place = GuestAddress(high << 32 | UInt64(UInt32(bigEndianBytes: request[12..<16])))
        if control & 8 != 0 { select(UInt16(truncatingIfNeeded: control >> 16)) }
        var failed = false
        if control & 2 != 0 {
            failed = !copy(length, to: place)
        } else if control & 4 != 0 {
            skip(length)
        } else if control & 16 != 0 {
            failed = true
        }
        store(UInt32(failed ? 1 : 0).bigEndianBytes, at: address)
    }

    /// Copies `length` bytes of the item, zeros behind its end, in pieces of bounded size.
    private func copy(_ length: Int, to place: GuestAddress) -> Bool {
        var left = length
        var place = place
        while left > 0 {
            let count = min(left, 65_536)
            let item = items[state.selected] ?? []
            let start = min(max(state.position, 0), item.count)
            let available = min(count, item.count - start)
            let bytes = Array(item[start..<(start + available)]) + Array(repeating: 0, count: count - available)
            guard store(bytes, at: place) else { return false }
            skip(count)
            left -= count
            place = place + UInt64(count)
        }
        return true
    }

    private func skip(_ count: Int) {
        state.position = min(state.position &+ count, items[state.selected]?.count ?? 0)
    }

    @discardableResult private func store(_ bytes: [UInt8], at place: GuestAddress) -> Bool {
        unsafe bytes.withUnsafeBytes { raw in (try? unsafe memory.write(raw, at: place)) != nil }
    }
}
