// A VGA with the Bochs VBE extension: the PCI card 1234:1111 that vgabios-stdvga drives.
// Source: IBM VGA technical reference; Bochs VBE documentation; QEMU docs/specs/standard-vga.rst for the windows.
// Modelled: VGA ports and memory, VBE ports, linear frame buffer, memory-mapped window with EDID. Not modelled: interrupts.
// Quirks: retrace bits follow guest time and the programmed timings, so loops that wait for an edge come to an end.

public import Machine

/// The display adapter. Its picture is made by `Screen`.
public final class VGA: Device {
    /// Index of each region in `regions`; the last two are BARs and have no place of their own.
    public enum RegionIndex {
        public static let ports = 0
        public static let window = 1
        public static let dispi = 2
        public static let registers = 3
        public static let frameBuffer = 4
    }
    public let regions: [Region]
    /// What the card says about itself on PCI.
    public let identity: Identity
    let memory: VideoMemory
    private let edid: [UInt8]
    /// Guest time of the present access.
    private var now = Instant.zero
    public var state = State()

    /// `memory` (256 KiB at least, a power of two) stays mapped as long as the VGA lives.
    @unsafe public init(memory: UnsafeMutableRawBufferPointer, edid: [UInt8] = EDID.standard) {
        unsafe self.memory = VideoMemory(memory)
        self.edid = edid
        let last = UInt64(max(self.memory.count, 1) - 1)
        identity = Identity(memoryBytes: self.memory.count)
        regions = [
            Region("vga", .port, 0x3B0...0x3DF),
            Region("vga window", .memory, 0xA0000...0xBFFFF, widths: [.byte, .word, .long, .quad]),
            Region("vbe", .port, 0x1CE...0x1D1, widths: [.byte, .word]),
            Region("vga registers", .memory, 0...0xFFF, widths: [.byte, .word, .long]),
            Region("vga frame buffer", .memory, 0...last, widths: [.byte, .word, .long, .quad]),
        ]
    }

    public func advance(to now: Instant) { self.now = now }
    public func settle() {}

    public func read(_ access: Access) throws(BusFault) -> UInt64 {
        switch access.region {
        case RegionIndex.ports: return UInt64(try readPort(0x3B0 &+ access.offset))
        case RegionIndex.window: return readWindow(access)
        case RegionIndex.dispi: return try readDispi(access)
        case RegionIndex.registers: return try readRegisters(access)
        default: return memory.read(Int(truncatingIfNeeded: access.offset), bytes: access.width.rawValue)
        }
    }

    public func write(_ value: UInt64, _ access: Access) throws(BusFault) {
        switch access.region {
        case RegionIndex.ports: try state.writePort(UInt8(truncatingIfNeeded: value), 0x3B0 &+ access.offset)
        case RegionIndex.window: writeWindow(value, access)
        case RegionIndex.dispi: try writeDispi(value, access)
        case RegionIndex.registers: try writeRegisters(value, access)
        default: memory.write(value, Int(truncatingIfNeeded: access.offset), bytes: access.width.rawValue)
        }
    }

    private func readPort(_ port: UInt64) throws(BusFault) -> UInt8 {
        let isStatus = port == 0x3BA || port == 0x3DA
        return try state.readPort(port, retrace: isStatus ? Timing(state).status(at: now) : 0)
    }

    private func readWindow(_ access: Access) -> UInt64 {
        let offset = Int(truncatingIfNeeded: access.offset)
        if state.dispi.isLinear {
            guard let offset = state.bankOffset(offset) else { return access.width.ones }
            return memory.read(offset, bytes: access.width.rawValue)
        }
        var value: UInt64 = 0
        for index in 0..<access.width.rawValue {
            value |= UInt64(state.readWindow(offset &+ index, memory)) << UInt64(index * 8)
        }
        return value
    }

    private func writeWindow(_ value: UInt64, _ access: Access) {
        let offset = Int(truncatingIfNeeded: access.offset)
        if state.dispi.isLinear {
            if let offset = state.bankOffset(offset) { memory.write(value, offset, bytes: access.width.rawValue) }
            return
        }
        for index in 0..<access.width.rawValue {
            state.writeWindow(UInt8(truncatingIfNeeded: value >> UInt64(index * 8)), offset &+ index, memory)
        }
    }
}

extension VGA {
    /// Index at 0x1CE, data at 0x1CF and, aligned, at 0x1D0.
    private func readDispi(_ access: Access) throws(BusFault) -> UInt64 {
        switch access.offset {
        case 0: return UInt64(state.dispi.index)
        case 1, 2: return UInt64(state.dispi.read(state.dispi.index, memory: memory.count))
        default: throw .noRegister
        }
    }

    private func writeDispi(_ value: UInt64, _ access: Access) throws(BusFault) {
        switch access.offset {
        case 0: state.dispi.index = UInt16(truncatingIfNeeded: value)
        case 1, 2: setDispi(UInt16(truncatingIfNeeded: value), state.dispi.index)
        default: throw .noRegister
        }
    }

    private func setDispi(_ value: UInt16, _ register: UInt16) {
        guard state.dispi.write(value, register, memory: memory.count) else { return }
        let rows = Int(state.dispi.height) * state.dispi.stride
        memory.clear(0, bytes: state.dispi.bitsPerPixel == 4 ? rows * 4 : rows)
    }

    /// BAR2: EDID at 0, VGA ports 0x3C0-0x3DF at 0x400, VBE registers at 0x500, byte order at 0x600.
    private func readRegisters(_ access: Access) throws(BusFault) -> UInt64 {
        let offset = access.offset
        switch offset {
        case 0..<0x400: return bytes(access) { Int($0) < edid.count ? edid[Int($0)] : 0 }
        case 0x400..<0x420:
            var value: UInt64 = 0
            for index in 0..<UInt64(access.width.rawValue) where offset &+ index < 0x420 {
                value |= UInt64(try readPort(offset &+ index &- 0x400 &+ 0x3C0)) << (index * 8)
            }
            return value
        case 0x500..<0x516:
            return UInt64(state.dispi.read(UInt16((offset &- 0x500) / 2), memory: memory.count))
        case 0x600: return 8
        case 0x604: return state.isBigEndian ? 0xBEBE_BEBE : 0x1E1E_1E1E
        default: throw .noRegister
        }
    }

    private func writeRegisters(_ value: UInt64, _ access: Access) throws(BusFault) {
        let offset = access.offset
        switch offset {
        case 0x400..<0x420:
            for index in 0..<UInt64(access.width.rawValue) where offset &+ index < 0x420 {
                let byte = UInt8(truncatingIfNeeded: value >> (index * 8))
                try state.writePort(byte, offset &+ index &- 0x400 &+ 0x3C0)
            }
        case 0x500..<0x516: setDispi(UInt16(truncatingIfNeeded: value), UInt16((offset &- 0x500) / 2))
        case 0x604:
            if value == 0xBEBE_BEBE { state.isBigEndian = true }
            if value == 0x1E1E_1E1E { state.isBigEndian = false }
        default: throw .noRegister
        }
    }

    private func bytes(_ access: Access, _ byte: (UInt64) -> UInt8) -> UInt64 {
        (0..<UInt64(access.width.rawValue)).reduce(0) { $0 | UInt64(byte(access.offset &+ $1)) << ($1 * 8) }
    }
}

extension VGA {
    /// PCI identity of the card, as data for whoever builds its configuration space.
    public struct Identity: Equatable, Sendable {
        public struct BAR: Equatable, Sendable {
            public var index: Int
            public var bytes: UInt64
            public var isPrefetchable: Bool
            /// Index into the VGA's `regions`.
            public var region: Int
        }
        public var vendor: UInt16 = 0x1234
        public var device: UInt16 = 0x1111
        public var revision: UInt8 = 2
        /// VGA-compatible display controller.
        public var classCode: UInt32 = 0x03_00_00
        public var subsystemVendor: UInt16 = 0x1AF4
        public var subsystem: UInt16 = 0x1100
        public var bars: [BAR]

        init(memoryBytes: Int) {
            bars = [
                BAR(
                    index: 0, bytes: UInt64(max(memoryBytes, 0)), isPrefetchable: true,
                    region: RegionIndex.frameBuffer),
                BAR(index: 2, bytes: 4096, isPrefetchable: false, region: RegionIndex.registers),
            ]
        }
    }
}
