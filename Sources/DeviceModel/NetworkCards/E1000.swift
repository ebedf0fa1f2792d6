// Intel 82540EM gigabit Ethernet controller.
// Source: Intel 8254x Family of Gigabit Ethernet Controllers Software Developer's Manual (317453-006).
// Modelled: both rings with legacy and extended descriptors, checksums, TCP segmentation, VLAN tags, filters, EEPROM,
// PHY, link state, interrupt throttling, INTx. Not modelled: flash, wake-up, loopback, delays of single interrupts.
// Quirks: large packets leave in one piece, to be cut by whoever needs that; the check sequence reads as zeros.

internal import Ethernet
public import Machine

public final class E1000: NetworkCard {
    public enum RegionIndex {
        public static let memory = 0
        public static let ports = 1
    }
    public static let memoryBytes: UInt64 = 0x2_0000
    public static let portBytes: UInt64 = 64

    private let line: any Line
    let dma: any DMA
    let send: FrameSink
    public let regions = [
        Region("registers", .memory, 0...(memoryBytes - 1), widths: [.long]),
        Region("ports", .port, 0...(portBytes - 1), widths: [.long]),
    ]
    var now = Instant.zero
    /// The packet that descriptors have made so far.
    var gathered = E1000Gathering()
    /// A packet that the port had no room for.
    var held: Frame?
    /// Told when the guest has given buffers again.
    public var onRoom: () -> Void = {}
    /// IOADDR.
    private var window: UInt32 = 0
    public var state: State

    public init(mac: [UInt8], line: any Line, dma: any DMA, send: @escaping FrameSink) {
        precondition(mac.count == 6, "a station's address has six bytes")
        (self.line, self.dma, self.send) = (line, dma, send)
        state = State(mac: mac)
    }

    public var deadline: Instant? { state.interruptDeadline }

    public func advance(to now: Instant) {
        if now > self.now { self.now = now }
        state.arbitrate(at: self.now)
    }

    public func settle() { line.drive(state.isAsserted) }

    public func read(_ access: Access) throws(BusFault) -> UInt64 {
        guard access.offset & 3 == 0 else { throw .misaligned }
        if access.region == RegionIndex.ports {
            switch access.offset {
            case 0: return UInt64(window)
            case 4: return UInt64(readRegister(Int(window)))
            default: throw .noRegister
            }
        }
        return UInt64(readRegister(Int(truncatingIfNeeded: access.offset)))
    }

    public func write(_ value: UInt64, _ access: Access) throws(BusFault) {
        guard access.offset & 3 == 0 else { throw .misaligned }
        let value = UInt32(truncatingIfNeeded: value)
        if access.region == RegionIndex.ports {
            switch access.offset {
            case 0: window = value & 0x1_FFFC
            case 4: writeRegister(Int(window), value)
            default: throw .noRegister
            }
        } else {
            writeRegister(Int(truncatingIfNeeded: access.offset), value)
        }
        state.arbitrate(at: now)
    }

    private func readRegister(_ offset: Int) -> UInt32 {
        switch offset {
        case 0x0004: return state[E1000Register.control]
        case E1000Register.eeprom: return state.rom.value
        case E1000Register.cause:
            defer {
                state.causes = []
                state.arbitrate(at: now)
            }
            return state.causes.rawValue
        case E1000Register.mask: return state.mask.rawValue
        case E1000Register.causeSet, E1000Register.maskClear: return 0
        case E1000Register.statistics:
            defer { state[offset] = 0 }
            return state[offset]
        case 0..<0x6000: return state[offset]
        default: return 0
        }
    }

    private func writeRegister(_ offset: Int, _ value: UInt32) {
        switch offset {
        case E1000Register.control, 0x0004: writeControl(value)
        case E1000Register.eeprom: state.rom.write(value)
        case E1000Register.eepromRead where value & 1 != 0:
            let word = state.rom.words[Int(value >> 8 & 63)]
            state[offset] = (value & 0xFF00) | 0x10 | UInt32(word) << 16
        case E1000Register.phy: accessPHY(value)
        case E1000Register.cause: state.causes.subtract(E1000Causes(rawValue: value))
        case E1000Register.causeSet: state.raise(E1000Causes(rawValue: value).intersection(.all))
        case E1000Register.mask: state.mask.formUnion(E1000Causes(rawValue: value).intersection(.all))
        case E1000Register.maskClear: state.mask.subtract(E1000Causes(rawValue: value))
        default:
            guard let mask = E1000Register.writable(offset) else { return }
            state[offset] = (state[offset] & ~mask) | (value & mask)
        }
        follow(offset)
    }

    /// What a new value sets going.
    private func follow(_ offset: Int) {
        switch offset {
        case E1000Register.transmitTail, E1000Register.transmitControl: transmit()
        case E1000Register.receiveTail, E1000Register.receiveControl: onRoom()
        default: break
        }
    }

    private func writeControl(_ value: UInt32) {
        if value & 1 << 26 != 0 {
            (gathered, held) = (E1000Gathering(), nil)
            state.resetRegisters()
        } else {
            state[E1000Register.control] = value & ~(1 << 26 | 1 << 31)
        }
        if value & 1 << 31 != 0 { state.resetPHY() }
    }

    /// MDIC (§13.4.8): the PHY is at address 1.
    private func accessPHY(_ value: UInt32) {
        let register = Int(value >> 16 & 31)
        var result = value & 0x23FF_FFFF & ~(1 << 30)
        switch (value >> 21 & 31, value >> 26 & 3) {
        case (1, 1): writePHY(register, UInt16(truncatingIfNeeded: value))
        case (1, 2): result = (result & ~0xFFFF) | UInt32(state.phy[register])
        default: result |= 1 << 30
        }
        state[E1000Register.phy] = result | (value & 0x0C00_0000) | 1 << 28
        if value & 1 << 29 != 0 { state.raise(.phyDone) }
    }

    private func writePHY(_ register: Int, _ value: UInt16) {
        switch register {
        case 0:
            if value & 0x8000 != 0 { state.resetPHY() }
            // Reset and restart clear themselves.
            state.phy[0] = value & ~0x8200 & 0xFFC0
            if value & 0x0200 != 0 { state.raise(.linkChange) }
        case 4, 7, 9, 16, 18, 20, 24, 29, 30: state.phy[register] = value
        default: break
        }
        state.showLink()
    }

    public func setLink(_ isUp: Bool) {
        guard isUp != state.hasLink else { return }
        state.hasLink = isUp
        state.showLink()
        state.raise(.linkChange)
        state.arbitrate(at: now)
    }

    public func resume() {
        guard let frame = held else { return }
        guard send(frame) else { return }
        held = nil
        transmit()
        state.arbitrate(at: now)
    }
}
