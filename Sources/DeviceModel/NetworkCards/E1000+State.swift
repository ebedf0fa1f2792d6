// What the 82540EM is at one moment: registers, PHY, EEPROM, interrupt.
// Source: Intel 8254x Software Developer's Manual (317453-006), §13, §14.3 (initial values); M88E1011's registers from §8.
// Modelled: reset by CTRL.RST, interrupt throttling, link state.
// Quirks: negotiation is done when it is asked for.

internal import Ethernet
public import Machine
internal import Registers

extension E1000 {
    public struct State: DeviceState {
        public static let schema = Schema("e1000", 1)
        static let registerCount = 0x6000 / 4
        var registers: [UInt32]
        var phy: [UInt16]
        var rom: MicrowireROM
        var causes: E1000Causes = []
        var mask: E1000Causes = []
        /// The line's level.
        var isAsserted = false
        /// ITR: no interrupt before.
        var quietUntil = Instant.zero
        var hasLink = true
        /// The context that transmit descriptors refer to.
        var context = E1000Context()

        init(mac: [UInt8]) {
            rom = MicrowireROM(mac)
            registers = [UInt32](repeating: 0, count: Self.registerCount)
            phy = [UInt16](repeating: 0, count: 32)
            resetRegisters()
            resetPHY()
        }

        private enum CodingKeys: CodingKey {
            case registers, phy, rom, causes, mask, isAsserted, quietUntil, hasLink, context
        }
        public init(from decoder: any Decoder) throws {
            let values = try decoder.container(keyedBy: CodingKeys.self)
            registers = try values.decode([UInt32].self, forKey: .registers)
            phy = try values.decode([UInt16].self, forKey: .phy)
            rom = try values.decode(MicrowireROM.self, forKey: .rom)
            causes = try values.decode(E1000Causes.self, forKey: .causes)
            mask = try values.decode(E1000Causes.self, forKey: .mask)
            isAsserted = try values.decode(Bool.self, forKey: .isAsserted)
            quietUntil = try values.decode(Instant.self, forKey: .quietUntil)
            hasLink = try values.decode(Bool.self, forKey: .hasLink)
            context = try values.decode(E1000Context.self, forKey: .context)
            guard registers.count == Self.registerCount, phy.count == 32, rom.words.count == 64 else {
                throw DecodingError.dataCorruptedError(forKey: .registers, in: values, debugDescription: "no e1000")
            }
        }

        /// The cable stays as it is.
        public mutating func reset(_ cause: ResetCause) {
            guard cause == .powerOn else { return }
            let link = hasLink
            rom = MicrowireROM(stationAddress)
            registers = [UInt32](repeating: 0, count: Self.registerCount)
            (causes, mask, isAsserted, quietUntil, context) = ([], [], false, .zero, E1000Context())
            hasLink = link
            resetRegisters()
            resetPHY()
        }

        /// The address that the EEPROM has.
        private var stationAddress: [UInt8] {
            rom.words[..<3].flatMap { [UInt8(truncatingIfNeeded: $0), UInt8(truncatingIfNeeded: $0 >> 8)] }
        }

        subscript(offset: Int) -> UInt32 {
            get { registers[offset >> 2] }
            set { registers[offset >> 2] = newValue }
        }

        /// CTRL.RST: all but the PHY.
        mutating func resetRegisters() {
            for offset in stride(from: 0, to: 0x5200, by: 4) { self[offset] = 0 }
            self[E1000Register.control] = 0x0000_0A49
            self[E1000Register.packetBuffer] = 0x0010_0030
            self[E1000Register.receiveChecksum] = 0x300
            let mac = stationAddress
            self[0x5400] = (0..<4).reduce(0) { $0 | UInt32(mac[$1]) << UInt32($1 * 8) }
            self[0x5404] = UInt32(mac[4]) | UInt32(mac[5]) << 8 | 0x8000_0000
            for offset in stride(from: 0x5408, through: 0x547C, by: 4) { self[offset] = 0 }
            (causes, mask, context) = ([], [], E1000Context())
            showLink()
        }

        /// Gigabit, full duplex, negotiated.
        mutating func resetPHY() {
            phy = [UInt16](repeating: 0, count: 32)
            for (register, value) in [
                (0, 0x1140), (1, 0x7949), (2, 0x0141), (3, 0x0C20), (4, 0x0DE1), (5, 0x0DE1), (6, 0x000F), (7, 0x2001),
                (9, 0x0E00), (10, 0x3C00), (15, 0x3000), (16, 0x0360), (17, 0xA800), (20, 0x0D60),
            ] as [(Int, UInt16)] { phy[register] = value }
            showLink()
        }

        mutating func showLink() {
            // FD, 1000 Mb/s, ASDV, MTXCKOK; LU.
            self[E1000Register.status] = 0x0000_0781 | (hasLink ? 2 : 0)
            phy[1] = (phy[1] & ~0x0024) | (hasLink ? 0x0024 : 0)
            phy[17] = (phy[17] & ~0x0400) | (hasLink ? 0x0400 : 0)
        }

        // MARK: interrupts

        mutating func raise(_ new: E1000Causes) { causes.formUnion(new) }

        /// Decides on the line: an interrupt comes at once, or when the throttle lets it.
        mutating func arbitrate(at now: Instant) {
            let wanted = !causes.isDisjoint(with: mask)
            if !wanted {
                isAsserted = false
            } else if !isAsserted, now >= quietUntil {
                isAsserted = true
                // Units of 256 ns.
                quietUntil = now + UInt64(self[E1000Register.throttle]) * 256
            }
        }

        /// When a throttled interrupt is due.
        var interruptDeadline: Instant? {
            causes.isDisjoint(with: mask) || isAsserted ? nil : quietUntil
        }

        // MARK: filters

        /// Whether a frame is for this station (§3.2.1).
        func accepts(_ frame: [UInt8]) -> Bool {
            let control = E1000ReceiveControl(rawValue: self[E1000Register.receiveControl])
            guard control.contains(.enable), hasLink, frame.count >= 14 else { return false }
            if control.contains(.tagFilter), frame[12] == 0x81, frame[13] == 0, frame.count >= 16 {
                let tag = Int(frame[14] & 0xF) << 8 | Int(frame[15])
                guard self[E1000Register.tags.lowerBound + (tag >> 5) * 4] >> UInt32(tag & 31) & 1 != 0 else {
                    return false
                }
            }
            if frame[..<6].allSatisfy({ $0 == 0xFF }) { return control.contains(.broadcasts) || matches(frame) }
            if control.contains(frame[0] & 1 != 0 ? .allGroups : .allStations) || matches(frame) { return true }
            guard frame[0] & 1 != 0 else { return false }
            let pair = Int(frame[5]) << 8 | Int(frame[4])
            let place = pair >> control.groupShift & 0xFFF
            return self[E1000Register.groups.lowerBound + (place >> 5) * 4] >> UInt32(place & 31) & 1 != 0
        }

        private func matches(_ frame: [UInt8]) -> Bool {
            let low = (0..<4).reduce(UInt32(0)) { $0 | UInt32(frame[$1]) << UInt32($1 * 8) }
            let high = UInt32(frame[4]) | UInt32(frame[5]) << 8 | 0x8000_0000
            for entry in 0..<16 where self[0x5404 + entry * 8] & 0x8000_FFFF == high && self[0x5400 + entry * 8] == low
            {
                return true
            }
            return false
        }

        // MARK: statistics

        mutating func count(_ offset: Int, _ more: Int = 1) {
            let sum = self[offset].addingReportingOverflow(UInt32(truncatingIfNeeded: more))
            self[offset] = sum.overflow ? .max : sum.partialValue
        }

        /// `bytes`: with what the guest does not see of it.
        mutating func count(_ frame: Frame, bytes: Int, as traffic: E1000Register.Traffic) {
            count(traffic.good)
            count(traffic.all)
            if frame.isBroadcast { count(traffic.broadcasts) } else if frame.isGroup { count(traffic.groups) }
            countBytes(traffic.goodBytes, bytes)
            countBytes(traffic.allBytes, bytes)
        }

        /// A count of 64 bits in two registers.
        private mutating func countBytes(_ offset: Int, _ more: Int) {
            let sum = (UInt64(self[offset + 4]) << 32 | UInt64(self[offset])) &+ UInt64(more)
            self[offset] = UInt32(truncatingIfNeeded: sum)
            self[offset + 4] = UInt32(truncatingIfNeeded: sum >> 32)
        }
    }
}
