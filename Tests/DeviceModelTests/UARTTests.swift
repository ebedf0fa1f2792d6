import DeviceContract
import Machine
import PCBoard
import Testing

@Suite("PC16550D UART") struct UARTTests {
    @Test func contract() throws {
        try expectContract { UART16550(irq: Wire(), transmit: { _ in }) }
    }

    @Test("Enabling the transmitter interrupt raises it; reading IIR acknowledges it")
    func transmitterInterrupt() throws {
        var uart = UART16550.State()
        _ = try uart.write(0b10, 1)
        #expect(uart.interrupt == .transmitterEmpty)
        #expect(try uart.read(2) == 0b0010)
        #expect(uart.interrupt == nil)
        #expect(try uart.read(2) == 0b0001)
        #expect(try uart.write(0x41, 0) == 0x41)
        #expect(uart.interrupt == .transmitterEmpty)
    }

    @Test("Received data comes before the transmitter, and below the trigger only after four characters' time")
    func receiver() throws {
        let irq = Wire()
        let uart = UART16550(irq: irq, transmit: { _ in })
        let slot = Slot("uart", uart)
        slot.write(0x81, Access(offset: 2))
        slot.write(0x01, Access(offset: 1))
        slot.write(0x08, Access(offset: 4))
        slot.write(0x03, Access(offset: 3))
        uart.receive([1, 2, 3])
        #expect(!irq.isHigh)
        let deadline = try #require(uart.deadline)
        #expect((4_000_000...4_300_000).contains(deadline.nanoseconds), "9600 baud: four times 1.04 ms")
        uart.advance(to: deadline)
        uart.settle()
        #expect(irq.isHigh)
        #expect(slot.read(Access(offset: 2), at: deadline) == 0xCC)
        uart.receive([4, 5, 6, 7, 8])
        #expect(slot.read(Access(offset: 2), at: deadline) == 0xC4)
        #expect((1...8).map { _ in slot.read(Access(offset: 0), at: deadline) } == [1, 2, 3, 4, 5, 6, 7, 8])
        #expect(!irq.isHigh)
        #expect(slot.read(Access(offset: 5), at: deadline) == 0x60)
    }

    @Test("The FIFO takes 16 bytes, the 16450 one")
    func room() {
        let uart = UART16550(irq: Wire(), transmit: { _ in })
        #expect(uart.room == 1)
        Slot("uart", uart).write(1, Access(offset: 2))
        uart.receive(Array(repeating: 7, count: 40))
        #expect(uart.room == 0)
        #expect(uart.state.received.count == 16)
    }

    @Test("In loop-back the outputs come back as inputs, and nothing is sent")
    func loopBack() throws {
        var uart = UART16550.State()
        _ = try uart.write(0x1A, 4)
        #expect(try uart.read(6) & 0xF0 == 0x90, "RTS is CTS and OUT2 is DCD: how drivers find the chip")
        #expect(try uart.write(0x55, 0) == nil)
        #expect(try uart.read(0) == 0x55)
    }

    @Test("The divisor latch covers the first two registers")
    func divisor() throws {
        var uart = UART16550.State()
        _ = try uart.write(0x80, 3)
        _ = try uart.write(0x01, 0)
        _ = try uart.write(0x00, 1)
        #expect(uart.divisor == 1)
        _ = try uart.write(0x03, 3)
        #expect(try uart.read(1) == 0)
    }

    @Test("OUT2 connects the interrupt")
    func out2() {
        let irq = Wire()
        let slot = Slot("uart", UART16550(irq: irq, transmit: { _ in }))
        slot.write(0x02, Access(offset: 1))
        #expect(!irq.isHigh)
        slot.write(0x08, Access(offset: 4))
        #expect(irq.isHigh)
    }
}
