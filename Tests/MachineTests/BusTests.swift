import DeviceContract
import Machine
import Testing

/// Eight bytes of memory behind byte-wide registers.
private final class Latch: Device {
    struct State: DeviceState {
        static let schema = Schema("latch", 1)
        var bytes = [UInt8](repeating: 0, count: 8)
        mutating func reset(_ cause: ResetCause) { self = State() }
    }
    var state = State()
    let regions = [Region("latch", .port, 0x100...0x107)]
    func read(_ access: Access) throws(BusFault) -> UInt64 { UInt64(state.bytes[Int(access.offset)]) }
    func write(_ value: UInt64, _ access: Access) throws(BusFault) {
        state.bytes[Int(access.offset)] = UInt8(truncatingIfNeeded: value)
    }
    func settle() {}
}

@Suite("Bus") struct BusTests {
    @Test func contract() throws { try expectContract { Latch() } }

    @Test("A wide access to byte registers becomes several narrow ones")
    func splitting() {
        let board = Board()
        board.attach("latch", Latch())
        board.ports.write(0x4433_2211, 0x102, .long, at: .zero)
        #expect(board.ports.read(0x103, .word, at: .zero) == 0x3322)
    }

    @Test("A later mapping hides an earlier one until it is removed")
    func overlay() {
        let board = Board()
        let below = board.attach("below", Latch())
        let above = board.attachUnmapped("above", Latch())
        below.write(0xAA, Access(offset: 4), at: .zero)
        board.ports.map(above, region: 0, at: 0x104...0x105)
        #expect(board.ports.read(0x104, .byte, at: .zero) == 0)
        board.ports.write(0x77, 0x106, .byte, at: .zero)
        board.ports.unmap(above, region: 0)
        #expect(board.ports.read(0x104, .byte, at: .zero) == 0xAA)
        #expect(board.ports.read(0x106, .byte, at: .zero) == 0x77, "the part behind the overlay kept its offset")
    }

    @Test("Nobody at home reads as ones") func absent() {
        #expect(Board().ports.read(0x80, .word, at: .zero) == 0xFFFF)
    }
}
