// What an NE2000 is at one moment: the DP8390's registers, the address ROM, buffer memory.
// Source: DP8390D datasheet, §8 (ring), §10 (registers).
// Modelled: all registers that can be read or written in pages 0, 1 and 2; RTL8029's configuration as zeros.
// Quirks: buffer memory is at 0x4000 to 0xBFFF; below it the ROM is repeated every 32 bytes.

internal import Ethernet
public import Machine

extension NE2000 {
    public struct State: DeviceState {
        public static let schema = Schema("ne2000", 1)
        static let memoryStart = 0x4000
        static let memoryBytes = 0x8000

        let rom: [UInt8]
        let isPCI: Bool
        var memory = [UInt8](repeating: 0, count: memoryBytes)
        /// CR, ISR, IMR, TCR, RCR, DCR, TSR, RSR.
        var command: UInt8 = 0x21
        var status: UInt8 = 0x80
        var mask: UInt8 = 0
        var transmitControl: UInt8 = 0
        var receiveControl: UInt8 = 0
        var dataControl: UInt8 = 0
        var transmitStatus: UInt8 = 0
        var receiveStatus: UInt8 = 0
        /// PSTART, PSTOP, BNRY, CURR, TPSR: pages of 256 bytes.
        var start: UInt8 = 0x4C
        var stop: UInt8 = 0x80
        var boundary: UInt8 = 0x4C
        var current: UInt8 = 0x4D
        var transmitPage: UInt8 = 0
        var transmitCount: UInt16 = 0
        /// Remote DMA.
        var remoteAddress: UInt16 = 0
        var remoteCount: UInt16 = 0
        var station: [UInt8]
        var groups = [UInt8](repeating: 0, count: 8)
        var missed: UInt8 = 0
        /// When the packet that is on the wire will have left.
        var transmitDone: Instant?

        init(mac: [UInt8], isPCI: Bool) {
            rom = mac + [UInt8](repeating: 0, count: 8) + [0x57, 0x57]
            (self.isPCI, station) = (isPCI, [UInt8](repeating: 0, count: 6))
        }

        private enum CodingKeys: CodingKey {
            case rom, isPCI, memory, command, status, mask, transmitControl, receiveControl, dataControl, transmitStatus
            case receiveStatus, start, stop, boundary, current, transmitPage, transmitCount, remoteAddress, remoteCount
            case station, groups, missed, transmitDone
        }

        public mutating func reset(_ cause: ResetCause) {
            guard cause == .powerOn else { return }
            self = State(mac: Array(rom[..<6]), isPCI: isPCI)
        }

        // MARK: registers

        private var page: Int { Int(command >> 6) }

        mutating func read(_ offset: Int) -> UInt8 {
            if offset == 0 { return command }
            switch (page, offset) {
            case (0, 1): return UInt8(truncatingIfNeeded: remoteAddress)
            case (0, 2): return UInt8(remoteAddress >> 8)
            case (0, 3): return boundary
            case (0, 4): return transmitStatus
            case (0, 7): return status
            case (0, 8): return UInt8(truncatingIfNeeded: remoteAddress)
            case (0, 9): return UInt8(remoteAddress >> 8)
            // RTL8029: 'P' and 'C'.
            case (0, 10): return isPCI ? 0x50 : 0xFF
            case (0, 11): return isPCI ? 0x43 : 0xFF
            case (0, 12): return receiveStatus
            case (0, 15):
                defer { missed = 0 }
                return missed
            case (1, 1...6): return station[offset - 1]
            case (1, 7): return current
            case (1, 8...15): return groups[offset - 8]
            case (2, 1): return start
            case (2, 2): return stop
            case (2, 4): return transmitPage
            case (2, 12): return receiveControl | 0xC0
            case (2, 13): return transmitControl | 0xE0
            case (2, 14): return dataControl | 0x80
            case (2, 15): return mask | 0x80
            default: return 0
            }
        }

        mutating func write(_ value: UInt8, _ offset: Int) {
            if offset == 0 { return writeCommand(value) }
            switch (page, offset) {
            case (0, 1): start = value
            case (0, 2): stop = value
            case (0, 3): boundary = value
            case (0, 4): transmitPage = value
            case (0, 5): transmitCount = transmitCount & 0xFF00 | UInt16(value)
            case (0, 6): transmitCount = transmitCount & 0xFF | UInt16(value) << 8
            // PRX stays while there are packets: drivers acknowledge it after so many, as the next comes soon on a wire.
            case (0, 7): status &= ~(value & (isReceiving && usedPages > 1 ? 0x7E : 0x7F))
            case (0, 8): remoteAddress = remoteAddress & 0xFF00 | UInt16(value)
            case (0, 9): remoteAddress = remoteAddress & 0xFF | UInt16(value) << 8
            case (0, 10): remoteCount = remoteCount & 0xFF00 | UInt16(value)
            case (0, 11): remoteCount = remoteCount & 0xFF | UInt16(value) << 8
            case (0, 12): receiveControl = value & 0x3F
            case (0, 13): transmitControl = value & 0x1F
            case (0, 14): dataControl = value & 0x7F
            case (0, 15): mask = value & 0x7F
            case (1, 1...6): station[offset - 1] = value
            case (1, 7): current = value
            case (1, 8...15): groups[offset - 8] = value
            default: break
            }
        }

        private mutating func writeCommand(_ value: UInt8) {
            // TXP stays until the packet is sent; STP and STA change what ISR's RST says.
            command = value | command & 4
            if value & 1 != 0 {
                status |= 0x80
                command &= ~4
                transmitDone = nil
            } else if value & 2 != 0 {
                status &= 0x7F
            }
            // A remote DMA of no bytes is done at once.
            if value & 0x18 != 0, value & 0x20 == 0, remoteCount == 0 { status |= 0x40 }
        }

        // MARK: remote DMA

        private func byte(_ address: Int) -> UInt8 {
            let place = address - Self.memoryStart
            if memory.indices.contains(place) { return memory[place] }
            return address < Self.memoryStart ? rom[address >> 1 & 15] : 0xFF
        }

        /// DCR's WTS: a whole word is moved also for a byte, of which the driver sees the lower half; a long is two words.
        private func unit(_ width: Int) -> Int { dataControl & 1 != 0 ? max(width, 2) : 1 }

        mutating func readData(_ width: Int) -> UInt64 {
            var value: UInt64 = 0
            let count = unit(width)
            for index in 0..<min(count, width) {
                value |= UInt64(byte(Int(remoteAddress) + index)) << UInt64(index * 8)
            }
            advance(count)
            return value
        }

        mutating func writeData(_ value: UInt64, _ width: Int) {
            let count = unit(width)
            for index in 0..<min(count, width) where remoteCount > 0 {
                let place = Int(remoteAddress) + index - Self.memoryStart
                if memory.indices.contains(place) {
                    memory[place] = UInt8(truncatingIfNeeded: value >> UInt64(index * 8))
                }
            }
            advance(count)
        }

        private mutating func advance(_ bytes: Int) {
            guard remoteCount > 0 else { return }
            remoteAddress &+= UInt16(bytes)
            if remoteAddress == UInt16(stop) << 8 { remoteAddress = UInt16(start) << 8 }
            remoteCount = remoteCount > UInt16(bytes) ? remoteCount - UInt16(bytes) : 0
            // RDC.
            if remoteCount == 0 { status |= 0x40 }
        }

        // MARK: packets

        /// The packet at TPSR; nil if it does not lie in buffer memory.
        var outgoing: [UInt8]? {
            let place = Int(transmitPage) << 8 - Self.memoryStart
            let count = Int(transmitCount)
            guard command & 1 == 0, place >= 0, count >= 14, count <= 1600, place + count <= memory.count else {
                return nil
            }
            return Array(memory[place..<(place + count)])
        }

        /// PTX.
        mutating func sent() {
            (transmitStatus, command, transmitDone) = (1, command & ~4, nil)
            status |= 2
        }

        /// Once started, the card runs until STP: drivers leave STA out when they change pages.
        var isReceiving: Bool {
            command & 1 == 0 && receiveControl & 0x20 == 0 && start < stop && Int(start) << 8 >= Self.memoryStart
                && Int(stop) << 8 <= Self.memoryStart + Self.memoryBytes && current >= start && current < stop
        }

        /// Pages from BNRY up to CURR. Drivers keep BNRY a page behind what they read next; in front of the ring's start
        /// that is its end.
        private var usedPages: Int {
            let behind = boundary < start || boundary >= stop ? stop - 1 : boundary
            let pages = Int(stop) - Int(start)
            return (Int(current) - Int(behind) + pages) % pages
        }

        /// Free bytes of the ring: one page stays empty.
        var roomBytes: Int { isReceiving ? (Int(stop) - Int(start) - usedPages - 1) * 256 : 0 }

        func accepts(_ frame: Frame) -> Bool {
            if receiveControl & 0x10 != 0 { return true }
            if frame.isBroadcast { return receiveControl & 4 != 0 }
            if frame.isGroup {
                guard receiveControl & 8 != 0 else { return false }
                let place = Self.hash(frame.bytes[..<6])
                return groups[place >> 3] >> UInt8(place & 7) & 1 != 0
            }
            return frame.bytes[..<6].elementsEqual(station)
        }

        /// The upper six bits of the check sequence of an address.
        private static func hash(_ address: ArraySlice<UInt8>) -> Int {
            var sum: UInt32 = .max
            for byte in address {
                for bit in 0..<8 {
                    let carry = sum >> 31 ^ UInt32(byte >> UInt8(bit) & 1)
                    sum <<= 1
                    if carry != 0 { sum = (sum ^ 0x04C1_1DB6) | 1 }
                }
            }
            return Int(sum >> 26)
        }

        /// Puts a frame and its header into the ring; false if there is no room.
        mutating func store(_ frame: Frame) -> Bool {
            var bytes = frame.bytes
            if bytes.count < 60 { bytes += [UInt8](repeating: 0, count: 60 - bytes.count) }
            // A header of four bytes, which the count in it includes; behind the packet its check sequence.
            let count = bytes.count + 4
            guard count + 4 <= roomBytes else { return false }
            let pages = Int(stop) - Int(start)
            let first = Int(current) - Int(start)
            let next = UInt8(Int(start) + (first + (count + 4 + 255) / 256) % pages)
            receiveStatus = frame.isGroup ? 0x21 : 0x01
            let content = [receiveStatus, next, UInt8(truncatingIfNeeded: count), UInt8(count >> 8)] + bytes
            let base = Int(start) << 8 - Self.memoryStart
            for (index, byte) in content.enumerated() { memory[base + (first * 256 + index) % (pages * 256)] = byte }
            current = next
            // PRX.
            status |= 1
            return true
        }
    }
}
