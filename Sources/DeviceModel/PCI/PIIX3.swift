// 82371SB (PIIX3): PCI-to-ISA bridge, and the identity of its IDE function.
// Source: Intel 82371FB/82371SB datasheet 290550-002, §2.2 and §2.3; the IDE registers' work is the IDE card's.
// Modelled: PIRQ routing, register storage. Not modelled: SMI, chip select generation.
// Quirks: INTx of device d reaches PIRQ (d - 1 + pin) mod 4, the board wiring that SeaBIOS assumes.

public import Machine

/// PIIX3's functions at device 1.
public enum PIIX3 {
    /// Function 0; `router` follows its PIRQ registers.
    public static func isaBridge(on board: Board, memory: any DMA, router: InterruptRouter) -> PCIFunction {
        var identity = PCIIdentity(vendor: 0x8086, device: 0x7000, classCode: 0x060100)
        identity.command = [.io, .memory, .busMaster]
        identity.writableCommand = [.specialCycles, .systemError]
        identity.status = 0x0200
        identity.isMultifunction = true
        return PCIFunction(identity, registers: isaRegisters, on: board, memory: memory) { [router] config in
            router.route((0..<4).map { config.byte(0x60 + $0) })
        }
    }

    /// Function 1. Its card decodes the two channels at their ISA ports, as `changed` finds IDETIM to say, and bus
    /// master IDE at base address 4.
    public static func ide(
        on board: Board, memory: any DMA, changed: @escaping (ConfigSpace) -> Void
    ) -> PCIFunction {
        var identity = PCIIdentity(vendor: 0x8086, device: 0x7010, classCode: 0x010180)
        identity.writableCommand = [.io, .busMaster]
        return PCIFunction(identity, registers: ideRegisters, on: board, memory: memory, changed: changed)
    }

    /// Bus master IDE's base address register (BMIBA, §2.3.7).
    public static func busMasterBase(_ slot: Slot, region: Int) -> BaseAddress {
        BaseAddress(4, .io, size: 16, target: (slot, region))
    }

    static let isaRegisters = [
        ConfigRegister(0x4C, size: 1, value: 0x4D, writable: 0xFF),  // IORT
        ConfigRegister(0x4E, size: 2, value: 0x0003, writable: 0x07FF),  // XBCS
        ConfigRegister(0x60, size: 1, value: 0x80, writable: 0x8F),  // PIRQRCA
        ConfigRegister(0x61, size: 1, value: 0x80, writable: 0x8F),  // PIRQRCB
        ConfigRegister(0x62, size: 1, value: 0x80, writable: 0x8F),  // PIRQRCC
        ConfigRegister(0x63, size: 1, value: 0x80, writable: 0x8F),  // PIRQRCD
        ConfigRegister(0x69, size: 1, value: 0x02, writable: 0xFE),  // TOM
        ConfigRegister(0x6A, size: 2, writable: 0x805F),  // MSTAT
        ConfigRegister(0x70, size: 1, value: 0x80, writable: 0xEF),  // MBIRQ0
        ConfigRegister(0x71, size: 1, value: 0x80, writable: 0xEF),  // MBIRQ1
        ConfigRegister(0x76, size: 1, value: 0x0C, writable: 0x87),  // MBDMA0
        ConfigRegister(0x77, size: 1, value: 0x0C, writable: 0x87),  // MBDMA1
        ConfigRegister(0x78, size: 2, value: 0x0002, writable: 0xFFFF),  // PCSC
        ConfigRegister(0x80, size: 1, writable: 0x7F),  // APICBASE
        ConfigRegister(0x82, size: 1, writable: 0x0F),  // DLC
        ConfigRegister(0xA0, size: 1, value: 0x08, writable: 0x1F),  // SMICNTL
        ConfigRegister(0xA2, size: 2, writable: 0x00FF),  // SMIEN
        ConfigRegister(0xA4, size: 4, writable: 0xFFFF_FFFF),  // SEE
        ConfigRegister(0xA8, size: 1, value: 0x0F, writable: 0xFF),  // FTMR
        ConfigRegister(0xAA, size: 2, writable: 0x00FF),  // SMIREQ
        ConfigRegister(0xAC, size: 1, writable: 0xFF),  // CTLTMR
        ConfigRegister(0xAE, size: 1, writable: 0xFF),  // CTHTMR
    ]

    static let ideRegisters = [
        ConfigRegister(0x40, size: 2, writable: 0xFFFF),  // IDETIM, primary
        ConfigRegister(0x42, size: 2, writable: 0xFFFF),  // IDETIM, secondary
        ConfigRegister(0x44, size: 1, writable: 0xFF),  // SIDETIM
    ]
}

/// Wires INTx lines to ISA interrupts as the PIRQ route control registers say (§2.2.9).
public final class InterruptRouter {
    private let isa: [any Line]
    private var links = [Int](repeating: 0, count: 4)
    private var routes = [UInt8](repeating: 0x80, count: 4)

    /// - Parameter isa: an input of each of the 16 ISA interrupt lines.
    public init(isa: [any Line]) {
        precondition(isa.count == 16, "there are 16 ISA interrupts")
        self.isa = isa
    }

    /// Pin `pin` (0...3) of device `device` changed.
    public func drive(device: Int, pin: Int, _ high: Bool) {
        links[(device &+ 3 &+ pin) & 3] += high ? 1 : -1
        settle()
    }

    /// Takes over PIRQRCA-D: bit 7 set means not routed, bits 3:0 the interrupt.
    func route(_ registers: [UInt8]) {
        guard registers != routes, registers.count == 4 else { return }
        routes = registers
        settle()
    }

    private func settle() {
        var levels: UInt16 = 0
        for (link, route) in zip(links, routes) where route & 0x80 == 0 && link > 0 {
            levels |= 1 << UInt16(route & 0xF)
        }
        // IRQ 0, 1, 2, 8 and 13 are reserved (§2.2.9).
        levels &= ~0x2107
        for irq in 0..<16 { isa[irq].drive(levels >> UInt16(irq) & 1 != 0) }
    }
}
