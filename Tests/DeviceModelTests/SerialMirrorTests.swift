// What the hypervisor answers for the first serial port against what the port itself answers.
// Source: Sources/Hypervisor/Ioreq/SerialMirror.swift.
// Covered: bytes and other writes under way in the posted ring, received bytes, loop-back, divisor latches.

import DeviceContract
import Host
import Ioreq
import Machine
import TestSupport
import Testing

@testable import PCBoard

/// A port behind the ring of posted writes, and its mirror.
private final class SerialBench {
    let uart: UART16550
    private let slot: Slot
    private let client: IoreqClient
    private let server: IoreqServer
    let mirror: SerialMirror
    private(set) var sent: [UInt8] = []

    init() throws {
        let pages = try IoreqPages.make()
        client = IoreqClient(pages, doorbell: Descriptor(owning: 0x7FFF))
        server = IoreqServer(pages, vcpus: 1, doorbell: Descriptor(owning: 0x7FFF))
        mirror = SerialMirror(pages)
        var transmit: (UInt8) -> Void = { _ in }
        uart = UART16550(irq: Wire(), transmit: { transmit($0) })
        slot = Slot("com1", uart)
        uart.show = { pages.show($0) }
        transmit = { [unowned self] in sent.append($0) }
        server.handler = { [unowned self] request in
            slot.write(
                request.data,
                Access(offset: request.address - 0x3F8, width: Width(rawValue: request.size) ?? .byte))
            return 0
        }
        uart.settle()
    }

    func post(_ register: UInt16, _ value: UInt8) {
        let isPosted = client.post(
            Request(.port, address: UInt64(0x3F8 + register), size: 1, isRead: false, data: UInt64(value)))
        #expect(isPosted)
        mirror.note(0x3F8 + register, size: 1)
    }

    /// What the hypervisor knows by itself.
    func look(_ register: UInt16) -> UInt8? { mirror.read(0x3F8 + register) }

    func serve() { _ = server.serve() }

    /// The port's own answer, behind all that was posted.
    func ask(_ register: UInt16) -> UInt8 {
        serve()
        return UInt8(truncatingIfNeeded: slot.read(Access(offset: UInt64(register))))
    }
}

@Suite("Mirror of the serial port") struct SerialMirrorTests {
    @Test("A line is sent without a question to the port") func line() throws {
        let bench = try SerialBench()
        for byte in "Linux\n".utf8 {
            #expect(bench.look(5) == 0x60)
            bench.post(0, byte)
        }
        #expect(bench.look(6) == 0xB0 && bench.look(1) == 0)
        #expect(bench.look(2) == nil, "the transmitter may interrupt")
        bench.serve()
        #expect(bench.sent == Array("Linux\n".utf8))
        #expect(bench.look(2) == 1)
    }

    @Test("What a read or a write under way would change is asked for") func effects() throws {
        let bench = try SerialBench()
        bench.post(1, 2)
        #expect(bench.look(5) == nil, "under way")
        bench.serve()
        #expect(bench.look(1) == 2 && bench.look(5) == 0x60)
        #expect(bench.look(2) == nil, "reading takes the transmitter's interrupt back")
        #expect(bench.ask(2) == 2)
        #expect(bench.look(2) == 1)
        bench.uart.receive([7])
        #expect(bench.look(5) == 0x61 && bench.look(0) == nil)
        bench.post(4, 0x10)
        #expect(bench.ask(5) == 0x61)
        #expect(bench.look(6) == nil, "the lines' changes are read once")
        #expect(bench.ask(6) == 0x0B && bench.look(6) == 0)
        bench.post(0, 8)
        #expect(bench.look(5) == nil, "in loop-back the byte comes back")
        #expect(bench.ask(5) == 0x63)
        #expect(bench.look(5) == 0x61)
    }

    @Test("Whatever a guest does, the mirror never says what the port would not") func random() throws {
        var random = Seeded(5)
        let bench = try SerialBench()
        var answers = 0
        for _ in 0..<60_000 {
            let value = UInt8(random.number(0...255))
            switch random.number(0...9) {
            case 0...2: bench.post(0, value)
            case 3: bench.post(UInt16(random.number(1...7)), random.once(in: 2) ? value : value & 0x0F)
            case 4: bench.uart.receive([value])
            case 5: bench.serve()
            case 6: _ = bench.ask(UInt16(random.number(0...7)))
            default:
                let register = UInt16(random.number(0...7))
                guard let answer = bench.look(register) else { continue }
                answers += 1
                #expect(bench.ask(register) == answer, "register \(register)")
            }
        }
        #expect(answers > 1000)
    }
}
