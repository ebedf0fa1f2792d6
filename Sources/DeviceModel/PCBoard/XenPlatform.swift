// Xen's platform device: tells drivers that they run under Xen, and takes emulated devices away for PV ones.
// Source: Xen docs/misc/hvm-emulated-unplug.pandoc; public/hvm/pvdrivers.h; QEMU's platform device (identity, BARs).
// Modelled: ports 0x10-0x13, both base addresses, the log, the unplug masks, the ROM lock flag as a bit that is kept.
// Not modelled: memory behind BAR1 (guests put grant frames there, which the hypervisor paints over it).
// Quirks: a driver that the host does not want finds 0xD249 instead of the magic number and must leave all as it is.

internal import Machine
internal import PCI
internal import Registers

/// What a guest asks to be taken away (port 0x10, 16 bits).
struct UnplugMask: Register {
    var rawValue: UInt16
    init(rawValue: UInt16) { self.rawValue = rawValue }
    /// All emulated disks; CD drives stay.
    static let disks = bit(0)
    static let networkCards = bit(1)
    /// The emulated disks but the primary master.
    static let auxiliaryDisks = bit(2)
    /// NVMe disks, of which this board has none.
    static let nvmeDisks = bit(3)
}

/// 5853:0001 and the fixed ports that go with it.
final class XenPlatform: Device {
    enum RegionIndex {
        static let fixed = 0
        static let ports = 1
        static let memory = 2
    }
    static let portBytes: UInt64 = 0x100
    static let memoryBytes: UInt64 = 16 << 20

    struct State: DeviceState {
        static let schema = Schema("xen-platform", 1)
        /// Bit 0: the guest wants its ROMs write-protected.
        var flags: UInt8 = 0
        /// What the driver says it is (Xen's registered product numbers), and its build.
        var product: UInt16 = 0
        var build: UInt32 = 0
        /// All that was taken away so far.
        var unplugged: UnplugMask = []
        /// The line under way.
        var line: [UInt8] = []

        mutating func reset(_ cause: ResetCause) { self = State() }

        private enum CodingKeys: CodingKey { case flags, product, build, unplugged, line }
        init() {}
        init(from decoder: any Decoder) throws {
            let values = try decoder.container(keyedBy: CodingKeys.self)
            flags = try values.decode(UInt8.self, forKey: .flags)
            product = try values.decode(UInt16.self, forKey: .product)
            build = try values.decode(UInt32.self, forKey: .build)
            unplugged = try values.decode(UnplugMask.self, forKey: .unplugged)
            line = try values.decode([UInt8].self, forKey: .line)
            guard flags <= 1, line.count < XenPlatform.longestLine else {
                throw DecodingError.dataCorruptedError(forKey: .line, in: values, debugDescription: "not a platform")
            }
        }

        /// Takes a byte of the log; a line that is complete by it.
        mutating func log(_ byte: UInt8) -> [UInt8]? {
            if byte == 0x0A || line.count + 1 >= XenPlatform.longestLine {
                defer { line = [] }
                return byte == 0x0A ? line : line + [byte]
            }
            if byte >= 0x20, byte < 0x7F || byte == 0x09 { line.append(byte) }
            return nil
        }
    }

    /// Read at port 0x10: drivers may unplug.
    private static let magic: UInt64 = 0x49D2
    private static let protocolVersion: UInt64 = 1
    static let longestLine = 180

    private let unplug: (UnplugMask) -> Void
    private let log: (String) -> Void
    let regions = [
        Region("xen-unplug", .port, 0x10...0x13, widths: [.byte, .word, .long]),
        Region("xen-platform", .port, 0...(portBytes - 1)),
        Region("xen-platform memory", .memory, 0...(memoryBytes - 1), widths: [.byte, .word, .long, .quad]),
    ]
    var state = State()

    /// - Parameters:
    ///   - unplug: takes devices away before it returns.
    ///   - log: takes a line that a driver says, or what it did.
    init(unplug: @escaping (UnplugMask) -> Void, log: @escaping (String) -> Void) {
        (self.unplug, self.log) = (unplug, log)
    }

    /// As QEMU shows it under Xen.
    static func function(_ slot: Slot, on board: Board, memory: any DMA) -> PCIFunction {
        var identity = PCIIdentity(vendor: 0x5853, device: 0x0001, classCode: 0xFF_8000, revision: 1)
        (identity.subsystemVendor, identity.subsystem) = (0x5853, 0x0001)
        identity.interruptPin = 1
        identity.command = [.io, .memory]
        identity.writableCommand = [.io, .memory, .busMaster]
        identity.status = 0
        return PCIFunction(identity, on: board, memory: memory)
    }

    static func bars(_ slot: Slot) -> [BaseAddress] {
        [
            BaseAddress(0, .io, size: portBytes, target: (slot, RegionIndex.ports)),
            BaseAddress(1, .prefetchable, size: memoryBytes, target: (slot, RegionIndex.memory)),
        ]
    }

    func read(_ access: Access) throws(BusFault) -> UInt64 {
        switch (access.region, access.offset, access.width) {
        case (RegionIndex.fixed, 0, .word): return Self.magic
        case (RegionIndex.fixed, 0, .byte), (RegionIndex.ports, 0, _): return UInt64(state.flags)
        case (RegionIndex.fixed, 2, .byte): return Self.protocolVersion
        case (RegionIndex.memory, _, _): return 0
        default: throw .noRegister
        }
    }

    func write(_ value: UInt64, _ access: Access) throws(BusFault) {
        switch (access.region, access.offset, access.width) {
        case (RegionIndex.fixed, 0, .word): takeAway(UnplugMask(rawValue: UInt16(truncatingIfNeeded: value)))
        case (RegionIndex.fixed, 0, .long): introduce(build: UInt32(truncatingIfNeeded: value))
        case (RegionIndex.fixed, 0, .byte), (RegionIndex.ports, 0, _): state.flags = UInt8(value & 1)
        case (RegionIndex.fixed, 2, .word): state.product = UInt16(truncatingIfNeeded: value)
        case (RegionIndex.fixed, 2, .byte), (RegionIndex.ports, 8, _):
            if let line = state.log(UInt8(truncatingIfNeeded: value)) { log(String(decoding: line, as: UTF8.self)) }
        case (RegionIndex.memory, _, _): return
        default: throw .noRegister
        }
    }

    func settle() {}

    private func introduce(build: UInt32) {
        state.build = build
        log("PV drivers: product \(state.product), build \(build)")
    }

    private func takeAway(_ mask: UnplugMask) {
        let known = mask.intersection([.disks, .networkCards, .auxiliaryDisks, .nvmeDisks])
        state.unplugged.formUnion(known)
        if !known.isEmpty { unplug(known) }
    }
}
