// Single-register ports: reset control, debug consoles, POST code.
// Source: PIIX3 datasheet 290550-002 §2.5.5 (RC, 0xCF9); SeaBIOS docs/Debugging.md (0x402); Bochs' port 0xE9.
// Modelled: what is listed. Not modelled: nothing known.
// Quirks: 0x402 and 0xE9 read as 0xE9, which is how software finds them.

public import Machine

/// Port 0xCF9: bit 2 resets when it rises; bit 1 chooses the whole machine over the CPU.
public final class ResetControl: Device {
    /// The register.
    public struct State: DeviceState {
        public static let schema = Schema("reset-control", 1)
        public var value: UInt8 = 0
        public init() {}
        public mutating func reset(_ cause: ResetCause) {
            if cause == .powerOn { self = State() }
        }
    }
    private let reset: (ResetCause) -> Void
    public let regions = [Region("reset", .port, 0xCF9...0xCF9)]
    public var state = State()
    public init(reset: @escaping (ResetCause) -> Void) { self.reset = reset }

    public func read(_ access: Access) throws(BusFault) -> UInt64 { UInt64(state.value) }
    public func write(_ value: UInt64, _ access: Access) throws(BusFault) {
        let rises = value & 4 != 0 && state.value & 4 == 0
        state.value = UInt8(truncatingIfNeeded: value) & 0x06
        if rises { reset(value & 2 != 0 ? .powerOn : .cpu) }
    }
    public func settle() {}
}

/// Ports 0x402 and 0xE9, whose bytes go to the log, and port 0x80, which shows how far a BIOS has come.
public final class DebugPorts: StringDevice {
    /// The POST code.
    public struct State: DeviceState {
        public static let schema = Schema("debug-ports", 1)
        public var post: UInt8 = 0
        public init() {}
        public mutating func reset(_ cause: ResetCause) { self = State() }
    }
    private let log: (UInt8) -> Void
    public let regions = [
        Region("bios-debug", .port, 0x402...0x402),
        Region("bochs-debug", .port, 0xE9...0xE9),
        Region("post", .port, 0x80...0x80),
    ]
    public var state = State()
    public init(log: @escaping (UInt8) -> Void) { self.log = log }

    public func read(_ access: Access) throws(BusFault) -> UInt64 {
        access.region == 2 ? UInt64(state.post) : 0xE9
    }
    public func write(_ value: UInt64, _ access: Access) throws(BusFault) {
        let byte = UInt8(truncatingIfNeeded: value)
        if access.region == 2 { state.post = byte } else { log(byte) }
    }
    public func read(_ access: Access, into bytes: UnsafeMutableRawBufferPointer) {
        for index in bytes.indices { unsafe bytes[index] = access.region == 2 ? state.post : 0xE9 }
    }
    public func write(_ bytes: UnsafeRawBufferPointer, _ access: Access) {
        for index in bytes.indices {
            let byte = unsafe bytes[index]
            if access.region == 2 { state.post = byte } else { log(byte) }
        }
    }
    public func settle() {}
}
