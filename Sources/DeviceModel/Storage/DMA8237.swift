// The PC/AT's two 8237A DMA controllers with their page registers.
// Source: Intel 8237A datasheet 231466; IBM PC/AT technical reference (ports); PIIX3 datasheet §2.6 (page registers).
// Modelled: all registers; demand, single and block transfers of seven channels. Not modelled: memory to memory.
// Quirk: transfers take no time; a device that asks before its channel is set up is called when it is.
public import Machine

public final class DMA8237: Device {
    static let low = 0
    static let high = 1
    static let page = 2
    public let regions = [
        Region("dma 0-3", .port, 0x00...0x0F), Region("dma 4-7", .port, 0xC0...0xDF),
        Region("dma pages", .port, 0x80...0x8F),
    ]
    private let memory: any DMA
    /// Called when a channel whose request line is up becomes able to transfer.
    private var ready: [Int: () -> Void] = [:]
    public var state = State()

    public init(memory: any DMA) { self.memory = memory }

    /// Lets the device on `channel` (0...7) know when it may go on.
    public func connect(_ channel: Int, ready: @escaping () -> Void) { self.ready[channel] = ready }

    public func read(_ access: Access) throws(BusFault) -> UInt64 {
        switch access.region {
        case Self.low: return UInt64(state.controllers[0].read(Int(access.offset)))
        case Self.high: return UInt64(state.controllers[1].read(Int(access.offset >> 1)))
        default: return UInt64(state.pages[Int(access.offset & 15)])
        }
    }

    public func write(_ value: UInt64, _ access: Access) throws(BusFault) {
        let byte = UInt8(truncatingIfNeeded: value)
        switch access.region {
        case Self.low: state.controllers[0].write(byte, Int(access.offset))
        case Self.high: state.controllers[1].write(byte, Int(access.offset >> 1))
        default: state.pages[Int(access.offset & 15)] = byte
        }
        for channel in 0..<8 where state.mayTransfer(channel) { ready[channel]?() }
    }

    public func settle() {}

    // MARK: The device's side (DREQ, DACK, TC)

    /// Raises or drops a channel's request line.
    public func request(_ channel: Int, _ level: Bool) {
        guard (0..<8).contains(channel) else { return }
        state.controllers[channel >> 2].setRequest(channel & 3, level)
    }

    /// Moves bytes from the device to memory. Answers how many the channel took, and whether its count ran out.
    public func send(_ bytes: ArraySlice<UInt8>, on channel: Int) -> (moved: Int, terminalCount: Bool) {
        move(channel, limit: bytes.count, direction: 1) { [memory] address, offset, count in
            let start = bytes.startIndex + offset
            unsafe bytes[start..<(start + count)].withUnsafeBytes { source in
                // What lies outside memory is lost, as on the ISA bus.
                do { try unsafe memory.write(source, at: address) } catch {}
            }
        }
    }

    /// Moves at most `limit` bytes from memory to the device.
    public func receive(_ limit: Int, on channel: Int) -> (bytes: [UInt8], terminalCount: Bool) {
        var bytes = [UInt8](repeating: 0xFF, count: max(limit, 0))
        let (moved, ended) = move(channel, limit: bytes.count, direction: 2) { [memory] address, offset, count in
            unsafe bytes.withUnsafeMutableBytes { target in
                let part = unsafe UnsafeMutableRawBufferPointer(rebasing: target[offset..<(offset + count)])
                do { try unsafe memory.read(at: address, into: part) } catch {}
            }
        }
        return (Array(bytes.prefix(moved)), ended)
    }

    /// Runs a channel for up to `limit` bytes; `transfer` gets each run of ascending addresses.
    private func move(
        _ channel: Int, limit: Int, direction: UInt8, _ transfer: (GuestAddress, Int, Int) -> Void
    ) -> (moved: Int, terminalCount: Bool) {
        guard (0..<8).contains(channel), state.canRun(channel) else { return (0, false) }
        let unit = channel < 4 ? 1 : 2
        var moved = 0
        while moved + unit <= limit {
            let run = state.run(channel, most: (limit - moved) / unit)
            // Mode "verify" counts without moving (8237A, table 3).
            if run.direction == direction { transfer(run.address, moved, run.units * unit) }
            moved += run.units * unit
            if run.terminalCount { return (moved, true) }
        }
        return (moved, false)
    }
}
