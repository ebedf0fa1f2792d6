// One PCI function: configuration space around an ordinary device (composition).
// Source: PCI Local Bus Specification 2.1, §6.2.
// Modelled: 32-bit base address registers with sizing, expansion ROM, command register gating, INTx.
// Not modelled: 64-bit base address registers, capabilities, power states.
// Quirks: a base address of zero, or a range that would end at 4 GiB (as while it is sized), decodes nothing.

public import Machine

/// A base address register (§6.2.5), or the expansion ROM's (§6.2.5.2).
public struct BaseAddress {
    public enum Kind: Sendable { case io, memory, prefetchable, rom }
    /// 0...5; ignored for a ROM.
    public var number: Int
    public var kind: Kind
    /// Bytes, a power of two; at least 4 for I/O, 16 for memory, 2048 for a ROM.
    public var size: UInt64
    /// What answers there: a region of a slot, or nothing on the buses (the hypervisor maps video memory itself).
    public var target: (slot: Slot, region: Int)?
    /// Told the new address when it changes; nil while nothing is decoded.
    public var moved: (UInt64?) -> Void

    public init(
        _ number: Int, _ kind: Kind, size: UInt64, target: (slot: Slot, region: Int)? = nil,
        moved: @escaping (UInt64?) -> Void = { _ in }
    ) {
        precondition(size.nonzeroBitCount == 1 && (0...5).contains(number), "a base address register is wired wrong")
        (self.number, self.kind, self.size, self.target, self.moved) = (number, kind, size, target, moved)
    }

    var offset: Int { kind == .rom ? ConfigOffset.rom : ConfigOffset.bar0 + number * 4 }

    var register: ConfigRegister {
        let mask = UInt32(truncatingIfNeeded: 0 &- size)
        switch kind {
        case .io: return ConfigRegister(offset, size: 4, value: 1, writable: mask & ~3)
        case .memory: return ConfigRegister(offset, size: 4, writable: mask & ~0xF)
        case .prefetchable: return ConfigRegister(offset, size: 4, value: 8, writable: mask & ~0xF)
        case .rom: return ConfigRegister(offset, size: 4, writable: mask & ~0x7FF | 1)
        }
    }

    /// Where it decodes now.
    func place(in config: ConfigSpace) -> UInt64? {
        let raw = config.long(offset)
        let enabled: Bool
        switch kind {
        case .io: enabled = config.command.contains(.io)
        case .memory, .prefetchable: enabled = config.command.contains(.memory)
        case .rom: enabled = config.command.contains(.memory) && raw & 1 != 0
        }
        let base = UInt64(raw) & (0 &- size) & ~(kind == .io ? 3 : 0xF)
        let end: UInt64 = kind == .io ? 0x1_0000 : 0xFFFF_FFFF
        return enabled && base != 0 && base + size <= end ? base : nil
    }
}

/// A card's place in configuration space. The card itself is a device of the board.
public final class PCIFunction: Device {
    private let board: Board
    private let identity: PCIIdentity
    private let own: [ConfigRegister]
    private var layout: ConfigLayout
    private var bars: [BaseAddress] = []
    private var fixed: [(slot: Slot, region: Int)] = []
    /// Where each of `bars` is mapped now, and whether the fixed regions are.
    private var places: [UInt64?] = []
    private var fixedMapped: [Bool] = []
    /// Told after each change; it must only drive outputs.
    private let changed: (ConfigSpace) -> Void
    /// INTx of the card; the bus it is plugged into gives it somewhere to go.
    public let interrupt: any Line
    var route: (Bool) -> Void {
        get { wire.changed }
        set { wire.changed = newValue }
    }
    private let wire: RoutedWire
    /// Guest memory as the card reaches it: faults while bus mastering is off.
    public let dma: any DMA
    private let gate: BusMasterGate
    public let regions = [Region("config", .memory, 0...0xFF, widths: [.byte, .word, .long])]
    public var state: ConfigSpace

    /// - Parameters:
    ///   - registers: the device's own registers, behind the header.
    ///   - board: where base addresses are mapped.
    ///   - memory: guest RAM.
    ///   - changed: called with the space after each access and reset.
    public init(
        _ identity: PCIIdentity, registers: [ConfigRegister] = [], on board: Board, memory: any DMA,
        changed: @escaping (ConfigSpace) -> Void = { _ in }
    ) {
        (self.board, self.identity, self.own, self.changed) = (board, identity, registers, changed)
        layout = ConfigLayout(identity.registers + registers)
        state = ConfigSpace(layout)
        wire = RoutedWire()
        interrupt = wire
        gate = BusMasterGate(memory)
        dma = gate
    }

    /// Wires the card's base addresses, and the regions it decodes where they say they are
    /// (`fixed`), which the command register switches as well. Once, before the machine runs.
    public func connect(_ bars: [BaseAddress], fixed: [(slot: Slot, region: Int)] = []) {
        (self.bars, self.fixed) = (bars, fixed)
        places = Array(repeating: nil, count: bars.count)
        fixedMapped = Array(repeating: false, count: fixed.count)
        layout = ConfigLayout(identity.registers + own + bars.map(\.register))
        state = ConfigSpace(layout)
        settle()
    }

    public func read(_ access: Access) throws(BusFault) -> UInt64 {
        let offset = Int(truncatingIfNeeded: access.offset)
        switch access.width {
        case .byte: return UInt64(state.byte(offset))
        case .word: return UInt64(state.word(offset))
        case .long: return UInt64(state.long(offset))
        case .quad: throw .badWidth
        }
    }

    public func write(_ value: UInt64, _ access: Access) throws(BusFault) {
        for index in 0..<access.width.rawValue {
            let byte = UInt8(truncatingIfNeeded: value >> UInt64(index * 8))
            state.write(byte, at: Int(truncatingIfNeeded: access.offset) &+ index, layout)
        }
    }

    public func settle() {
        gate.isOpen = state.command.contains(.busMaster)
        for (index, bar) in bars.enumerated() {
            let place = bar.place(in: state)
            guard place != places[index] else { continue }
            places[index] = place
            move(bar, to: place)
        }
        for (index, part) in fixed.enumerated() {
            let region = part.slot.device.regions[part.region]
            let decodes = state.command.contains(region.space == .port ? .io : .memory)
            guard decodes != fixedMapped[index] else { continue }
            fixedMapped[index] = decodes
            let bus = board.bus(region.space)
            if decodes {
                bus.map(part.slot, region: part.region, at: region.range)
            } else {
                bus.unmap(part.slot, region: part.region)
            }
        }
        changed(state)
    }

    /// Unmaps everything and lets go of the interrupt line, for a card that is pulled.
    func withdraw() {
        state = ConfigSpace(layout)
        settle()
        interrupt.drive(false)
        wire.changed = { _ in }
    }

    private func move(_ bar: BaseAddress, to place: UInt64?) {
        if let (slot, region) = bar.target {
            let bus = board.bus(bar.kind == .io ? .port : .memory)
            bus.unmap(slot, region: region)
            if let place { bus.map(slot, region: region, at: place...(place + bar.size - 1)) }
        }
        bar.moved(place)
    }
}

/// A wire whose end is plugged in later.
private final class RoutedWire: Line {
    private var isHigh = false
    var changed: (Bool) -> Void = { _ in } {
        didSet { if isHigh { changed(true) } }
    }
    func drive(_ high: Bool) {
        guard high != isHigh else { return }
        isHigh = high
        changed(high)
    }
}

/// Guest memory behind the bus master bit of a command register.
private final class BusMasterGate: DMA {
    private let memory: any DMA
    var isOpen = false
    init(_ memory: any DMA) { self.memory = memory }

    private func check(_ address: GuestAddress) throws(DMAFault) {
        if !isOpen { throw DMAFault(address) }
    }
    func read(at address: GuestAddress, into bytes: UnsafeMutableRawBufferPointer) throws(DMAFault) {
        try check(address)
        unsafe try memory.read(at: address, into: bytes)
    }
    func write(_ bytes: UnsafeRawBufferPointer, at address: GuestAddress) throws(DMAFault) {
        try check(address)
        unsafe try memory.write(bytes, at: address)
    }
    func window(at address: GuestAddress, bytes: Int) throws(DMAFault) -> UnsafeMutableRawBufferPointer {
        try check(address)
        return unsafe try memory.window(at: address, bytes: bytes)
    }
    func wrote(at address: GuestAddress, bytes: Int) { memory.wrote(at: address, bytes: bytes) }
}
