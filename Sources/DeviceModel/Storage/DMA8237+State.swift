// The registers of the two DMA controllers.
// Source: Intel 8237A datasheet 231466, "Register description", tables 2-6, figures 5-7.
// Modelled: base and current registers, mode, mask, request, status, first/last flip-flop. Not modelled: priority.
// Quirk: channel 4 is the cascade of the lower controller; masking it stops channels 0-3.
public import Machine

extension DMA8237 {
    public struct State: DeviceState {
        public static let schema = Schema("dma8237", 1)
        var controllers = [Controller(), Controller()]
        var pages = [UInt8](repeating: 0, count: 16)
        public init() {}

        private enum CodingKeys: CodingKey { case controllers, pages }
        public init(from decoder: any Decoder) throws {
            let values = try decoder.container(keyedBy: CodingKeys.self)
            controllers = try values.decode([Controller].self, forKey: .controllers)
            pages = try values.decode([UInt8].self, forKey: .pages)
            guard controllers.count == 2, controllers.allSatisfy({ $0.channels.count == 4 }), pages.count == 16 else {
                throw DecodingError.dataCorruptedError(forKey: .pages, in: values, debugDescription: "not two 8237A")
            }
        }
        public mutating func reset(_ cause: ResetCause) { if cause == .powerOn { self = State() } }

        /// Unmasked and enabled.
        func canRun(_ channel: Int) -> Bool {
            let controller = controllers[channel >> 2]
            guard controller.mask >> UInt8(channel & 3) & 1 == 0, controller.command & 4 == 0 else { return false }
            // A cascaded channel moves nothing itself.
            return controller.channels[channel & 3].mode >> 6 != 3
        }

        func mayTransfer(_ channel: Int) -> Bool {
            controllers[channel >> 2].requests >> UInt8(channel & 3) & 1 != 0 && canRun(channel)
        }

        /// Page register of each channel, as an offset from port 80h.
        private static let pageOffsets = [7, 3, 1, 2, 15, 11, 9, 10]

        /// Counts up to `most` units on `channel` and tells where they lie. `most` is at least 1.
        mutating func run(_ channel: Int, most: Int) -> Run {
            let page = UInt64(pages[Self.pageOffsets[channel]])
            let wide = channel >= 4
            return controllers[channel >> 2].run(channel & 3, most: most) { address in
                wide ? (page & 0xFE) << 16 | UInt64(address) << 1 : page << 16 | UInt64(address)
            }
        }
    }

    /// Units moved at once, at ascending addresses.
    struct Run {
        var address: GuestAddress
        var units: Int
        /// 1 to memory, 2 from memory, 0 verify.
        var direction: UInt8
        var terminalCount: Bool
    }

    struct Channel: Codable, Equatable, Sendable {
        var baseAddress: UInt16 = 0
        var baseCount: UInt16 = 0
        var address: UInt16 = 0
        var count: UInt16 = 0
        var mode: UInt8 = 0
    }

    struct Controller: Codable, Equatable, Sendable {
        var channels = [Channel](repeating: Channel(), count: 4)
        var command: UInt8 = 0
        /// Bits 0-3: terminal count reached.
        var status: UInt8 = 0
        var mask: UInt8 = 0x0F
        /// Lines DREQ.
        var requests: UInt8 = 0
        var flipFlop = false

        mutating func setRequest(_ channel: Int, _ level: Bool) {
            requests = level ? requests | 1 << UInt8(channel) : requests & ~(1 << UInt8(channel))
        }

        mutating func read(_ register: Int) -> UInt8 {
            switch register {
            case 0...7:
                let channel = channels[register >> 1]
                let value = register & 1 == 0 ? channel.address : channel.count
                flipFlop.toggle()
                return UInt8(truncatingIfNeeded: flipFlop ? value : value >> 8)
            case 8:
                defer { status = 0 }
                return status | requests << 4
            case 15: return mask | 0xF0
            default: return 0
            }
        }

        mutating func write(_ value: UInt8, _ register: Int) {
            let bit: UInt8 = 1 << (value & 3)
            switch register {
            case 0...7: writeChannel(value, register)
            case 8: command = value
            case 9: break  // software requests are for block transfers of memory, which nothing here answers
            case 10: mask = value & 4 != 0 ? mask | bit : mask & ~bit
            case 11: channels[Int(value & 3)].mode = value
            case 12: flipFlop = false
            case 13: (command, status, mask, flipFlop) = (0, 0, 0x0F, false)
            case 14: mask = 0
            default: mask = value & 0x0F
            }
        }

        private mutating func writeChannel(_ value: UInt8, _ register: Int) {
            let index = register >> 1
            func put(_ old: UInt16) -> UInt16 {
                flipFlop ? old & 0x00FF | UInt16(value) << 8 : old & 0xFF00 | UInt16(value)
            }
            if register & 1 == 0 {
                channels[index].baseAddress = put(channels[index].baseAddress)
                channels[index].address = channels[index].baseAddress
            } else {
                channels[index].baseCount = put(channels[index].baseCount)
                channels[index].count = channels[index].baseCount
            }
            flipFlop.toggle()
        }

        mutating func run(_ index: Int, most: Int, _ place: (UInt16) -> UInt64) -> Run {
            let channel = channels[index]
            let isDown = channel.mode & 0x20 != 0
            // The address wraps in its page; the count runs from n to -1.
            let untilWrap = isDown ? 1 : 0x10000 - Int(channel.address)
            let units = max(min(most, untilWrap, Int(channel.count) + 1), 1)
            let step = UInt16(truncatingIfNeeded: units)
            channels[index].address = isDown ? channel.address &- step : channel.address &+ step
            channels[index].count = channel.count &- step
            let ended = units == Int(channel.count) + 1
            if ended { reachedTerminalCount(index) }
            return Run(
                address: GuestAddress(place(channel.address)), units: units, direction: channel.mode >> 2 & 3,
                terminalCount: ended)
        }

        private mutating func reachedTerminalCount(_ index: Int) {
            status |= 1 << UInt8(index)
            if channels[index].mode & 0x10 != 0 {
                channels[index].address = channels[index].baseAddress
                channels[index].count = channels[index].baseCount
            } else {
                mask |= 1 << UInt8(index)
            }
        }
    }
}
