// NE2000: a DP8390 with 32 KiB of buffer memory and a data port, on ISA, or as an RTL8029 on PCI.
// Source: National Semiconductor DP8390D/NS32490D datasheet (July 1995), §8 to §11; Realtek RTL8029AS datasheet, §5.
// Modelled: three pages of registers, remote DMA in bytes, words and longs, the receive ring, filters, overflow.
// Not modelled: send packet command (refused by drivers of our time), loopback modes (what is sent there is lost),
// collisions, the ISA card's jumpers.
// Quirks: a packet takes as long as on a wire of 100 Mb/s: drivers that find one sent at once think that an interrupt
// hangs, and acknowledge everything. The address ROM lies doubled below buffer memory, as drivers for 16 bits expect; the second 'W' at 0x1C marks
// a 16-bit card.

public import Ethernet
public import Machine

public final class NE2000: NetworkCard, StringDevice {
    public static let portBytes: UInt64 = 32
    private let line: any Line
    private let send: FrameSink
    public let regions: [Region]
    public var onRoom: () -> Void = {}
    private var held: Frame?
    private var now = Instant.zero
    public var state: State

    /// `base`: the ISA card's first port; a PCI card is mapped by its base address register.
    public init(mac: [UInt8], isPCI: Bool, base: UInt64 = 0, line: any Line, send: @escaping FrameSink) {
        precondition(mac.count == 6, "a station's address has six bytes")
        (self.line, self.send) = (line, send)
        regions = [Region("ports", .port, base...(base + 31), widths: [.byte, .word, .long])]
        state = State(mac: mac, isPCI: isPCI)
    }

    public func settle() { line.drive(state.status & state.mask & 0x7F != 0) }

    public func read(_ access: Access) throws(BusFault) -> UInt64 {
        switch access.offset {
        case 0x10..<0x18: return state.readData(access.width.rawValue)
        case 0x18...0x1F:
            state.reset(.powerOn)
            state.status = 0x80
            return 0
        default:
            guard access.width == .byte else { throw .badWidth }
            return UInt64(state.read(Int(access.offset)))
        }
    }

    public func write(_ value: UInt64, _ access: Access) throws(BusFault) {
        switch access.offset {
        case 0x10..<0x18: state.writeData(value, access.width.rawValue)
        case 0x18...0x1F: return
        default:
            guard access.width == .byte else { throw .badWidth }
            let wasReceiving = state.isReceiving
            state.write(UInt8(truncatingIfNeeded: value), Int(access.offset))
            if access.offset == 0 { transmit() }
            if access.offset == 3 || (state.isReceiving && !wasReceiving) { onRoom() }
        }
    }

    /// TXP in the command register: sends what lies at TPSR.
    private func transmit() {
        guard state.command & 4 != 0, held == nil, state.transmitDone == nil, let bytes = state.outgoing else { return }
        // A loopback mode: nothing leaves the card.
        guard state.transmitControl & 6 == 0 else { return state.sent() }
        let frame = Frame(bytes)
        if send(frame) { start(bytes.count) } else { held = frame }
    }

    /// 80 ns a byte.
    private func start(_ bytes: Int) { state.transmitDone = now + UInt64(bytes) * 80 }

    public func resume() {
        guard let frame = held, send(frame) else { return }
        held = nil
        start(frame.bytes.count)
    }

    public var deadline: Instant? { state.transmitDone }

    public func advance(to now: Instant) {
        if now > self.now { self.now = now }
        if let done = state.transmitDone, done <= now { state.sent() }
    }

    /// The DP8390 does not notice.
    public func setLink(_ isUp: Bool) {}

    public var hasRoom: Bool { !state.isReceiving || state.roomBytes >= 1536 }

    public func receive(_ frame: Frame) -> Bool {
        guard state.isReceiving, state.accepts(frame), frame.bytes.count <= 1514 + 4 else { return true }
        return state.store(frame)
    }

    public func read(_ access: Access, into bytes: UnsafeMutableRawBufferPointer) {
        let width = access.width.rawValue
        for place in stride(from: 0, to: bytes.count, by: width) {
            let value = (try? read(access)) ?? access.width.ones
            for index in 0..<width {
                unsafe bytes[place + index] = UInt8(truncatingIfNeeded: value >> UInt64(index * 8))
            }
        }
    }

    public func write(_ bytes: UnsafeRawBufferPointer, _ access: Access) {
        let width = access.width.rawValue
        for place in stride(from: 0, to: bytes.count, by: width) {
            var value: UInt64 = 0
            for index in 0..<width { unsafe value |= UInt64(bytes[place + index]) << UInt64(index * 8) }
            try? write(value, access)
        }
    }
}
