import DeviceContract
import Machine
import PCI
import Testing

/// Memory of 64 KiB that starts at 0.
final class TestMemory: DMA {
    var bytes = [UInt8](repeating: 0, count: 65_536)
    var written: [ClosedRange<UInt64>] = []

    func read(at address: GuestAddress, into target: UnsafeMutableRawBufferPointer) throws(DMAFault) {
        let range = try check(address, target.count)
        target.copyBytes(from: bytes[range])
    }
    func write(_ source: UnsafeRawBufferPointer, at address: GuestAddress) throws(DMAFault) {
        let range = try check(address, source.count)
        bytes.replaceSubrange(range, with: source)
    }
    func window(at address: GuestAddress, bytes: Int) throws(DMAFault) -> UnsafeMutableRawBufferPointer {
        throw DMAFault(address)
    }
    func wrote(at address: GuestAddress, bytes: Int) {}
    private func check(_ address: GuestAddress, _ count: Int) throws(DMAFault) -> Range<Int> {
        guard address.raw < 65_536, count <= 65_536 - Int(address.raw) else { throw DMAFault(address) }
        return Int(address.raw)..<(Int(address.raw) + count)
    }
}

/// A card with eight I/O registers and 4 KiB of memory, all latches.
private final class LatchCard: Device {
    struct State: DeviceState {
        static let schema = Schema("card", 1)
        var last: UInt64 = 0
        mutating func reset(_ cause: ResetCause) { self = State() }
    }
    var state = State()
    let regions = [Region("io", .port, 0...7), Region("memory", .memory, 0...0xFFF, widths: [.long])]
    func read(_ access: Access) throws(BusFault) -> UInt64 { 0x50 + UInt64(access.region) }
    func write(_ value: UInt64, _ access: Access) throws(BusFault) { state.last = value }
    func settle() {}
}

@Suite("PCI") struct PCITests {
    let board = Board()
    let bus = PCIBus()
    let memory = TestMemory()

    private func makeCard(pin: UInt8 = 1) -> PCIFunction {
        var identity = PCIIdentity(vendor: 0x1111, device: 0x2222, classCode: 0x020000, revision: 7)
        identity.interruptPin = pin
        let function = PCIFunction(identity, on: board, memory: memory)
        let slot = board.attachUnmapped("card", LatchCard())
        function.connect([
            BaseAddress(0, .io, size: 8, target: (slot, 0)), BaseAddress(1, .memory, size: 4096, target: (slot, 1)),
        ])
        return function
    }
    private func write(_ value: UInt64, _ register: UInt64, _ width: Width = .long, devfn: UInt8 = 0x20) {
        bus.write(value, bus: 0, devfn: devfn, register: register, width, at: .zero)
    }
    private func read(_ register: UInt64, _ width: Width = .long, devfn: UInt8 = 0x20) -> UInt64 {
        bus.read(bus: 0, devfn: devfn, register: register, width, at: .zero)
    }

    @Test func functionContract() throws {
        try expectContract {
            let board = Board()
            let function = PCIFunction(
                PCIIdentity(vendor: 1, device: 2, classCode: 3), on: board, memory: TestMemory())
            let slot = board.attachUnmapped("card", LatchCard())
            function.connect([BaseAddress(0, .io, size: 8, target: (slot, 0))])
            return function
        }
    }

    @Test func hostBridgeContract() throws {
        try expectContract { I440FX.function(on: Board(), memory: TestMemory()) { _, _ in } }
    }

    @Test func isaBridgeContract() throws {
        try expectContract {
            let router = InterruptRouter(isa: (0..<16).map { _ in Wire() })
            return PIIX3.isaBridge(on: Board(), memory: TestMemory(), router: router)
        }
    }

    @Test func romContract() throws { try expectContract { ROMImage([1, 2, 3]) } }

    @Test("A base address register tells its size and kind")
    func sizing() {
        bus.attach("card", makeCard(), device: 4, on: board)
        write(0xFFFF_FFFF, 0x10)
        #expect(read(0x10) == 0xFFFF_FFF9)
        write(0xFFFF_FFFF, 0x14)
        #expect(read(0x14) == 0xFFFF_F000)
        write(0xFFFF_FFFF, 0x18)
        #expect(read(0x18) == 0, "there is no third one")
        #expect(read(0x00) == 0x2222_1111)
        #expect(read(0x08) == 0x0200_0007)
    }

    @Test("Base addresses decode where they are set, while the command register lets them")
    func relocation() {
        bus.attach("card", makeCard(), device: 4, on: board)
        write(0xC000, 0x10)
        write(0xF000_0000, 0x14)
        #expect(board.ports.read(0xC000, .byte, at: .zero) == 0xFF)
        write(0x3, 0x04, .word)
        #expect(board.ports.read(0xC000, .byte, at: .zero) == 0x50)
        #expect(board.memory.read(0xF000_0010, .long, at: .zero) == 0x51)
        write(0xC100, 0x10)
        #expect(board.ports.read(0xC000, .byte, at: .zero) == 0xFF)
        #expect(board.ports.read(0xC107, .byte, at: .zero) == 0x50)
        write(0x2, 0x04, .word)
        #expect(board.ports.read(0xC100, .byte, at: .zero) == 0xFF)
    }

    @Test("A card reaches memory only while it may be bus master")
    func busMastering() throws {
        let function = makeCard()
        bus.attach("card", function, device: 4, on: board)
        var byte: UInt8 = 0
        #expect(throws: DMAFault(GuestAddress(5))) {
            try withUnsafeMutableBytes(of: &byte) { try function.dma.read(at: GuestAddress(5), into: $0) }
        }
        memory.bytes[5] = 0x99
        write(0x4, 0x04, .word)
        try withUnsafeMutableBytes(of: &byte) { try function.dma.read(at: GuestAddress(5), into: $0) }
        #expect(byte == 0x99)
    }

    @Test("INTA of device 4 is link 3, and reaches the interrupt its route register names")
    func interruptRouting() throws {
        let isa = (0..<16).map { _ in Wire() }
        let router = InterruptRouter(isa: isa)
        bus.interrupt = { router.drive(device: $0, pin: $1, $2) }
        bus.attach("isa", PIIX3.isaBridge(on: board, memory: memory, router: router), device: 1, on: board)
        let function = makeCard()
        bus.attach("card", function, device: 4, on: board)
        function.interrupt.drive(true)
        #expect(!isa.contains { $0.isHigh }, "not routed after power-on")
        write(11, 0x63, .byte, devfn: 0x08)
        #expect(isa[11].isHigh)
        write(0x85, 0x63, .byte, devfn: 0x08)
        #expect(!isa[11].isHigh)
        write(13, 0x63, .byte, devfn: 0x08)
        #expect(!isa[13].isHigh, "13 is reserved")
        write(5, 0x63, .byte, devfn: 0x08)
        function.interrupt.drive(false)
        #expect(!isa[5].isHigh && isa[5].edges == 2)
    }

    @Test("PAM registers shadow the BIOS area in 13 segments")
    func attributeMap() {
        var seen: [Int: I440FX.Shadow] = [:]
        let host = I440FX.function(on: board, memory: memory) { seen[$0] = $1 }
        bus.attach("host", host, device: 0, on: board)
        #expect(seen.isEmpty, "after power-on all is ROM")
        write(0x30, 0x59, .byte, devfn: 0)
        #expect(seen[12]?.read == true && seen[12]?.write == true && seen.count == 1)
        write(0x21, 0x5A, .byte, devfn: 0)
        #expect(seen[0]?.read == true && seen[0]?.write == false)
        #expect(seen[1]?.read == false && seen[1]?.write == true)
    }

    @Test("Nobody there reads as ones")
    func absent() {
        #expect(read(0, .word, devfn: 0x40) == 0xFFFF)
        #expect(bus.read(bus: 1, devfn: 0, register: 0, .long, at: .zero) == 0xFFFF_FFFF)
    }
}
