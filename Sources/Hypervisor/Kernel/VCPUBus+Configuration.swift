// What the hypervisor reads along when a guest writes the configuration of functions that the device model has.
// Source: 82371AB (PIIX4) §7.1.13, §7.2; 82371SB (PIIX3) §2.2.6, §2.3.5; Xen's IOREQ_TYPE_PCI_CONFIG.
// Modelled: PMBASE, BMIBA, PIRQRCA to PIRQRCD.
// Quirks: a guest that sizes a base by writing ones moves it for that moment.

internal import Machine
internal import Synchronization

extension VCPUBus {
    /// The PM timer lies at PMBASE + 8 (82371AB §7.2); the rest of that block is the device model's.
    func pmTimerOffset(_ port: UInt16) -> UInt16? {
        let base = domain.pmBase.load(ordering: .relaxed)
        guard base != 0 else { return nil }
        let offset = port &- UInt16(truncatingIfNeeded: base) &- 8
        return offset < 4 ? offset : nil
    }

    /// Follows writes to PMBASE (82371AB §7.1.13: bits 15:6).
    func notePMBase(_ address: UInt64, size: Int, value: UInt32) {
        note(address, size, value, in: domain.pmBase, at: (0x0B, 0x40), mask: 0xFFC0)
    }

    /// Follows writes to BMIBA, the base of the IDE channels' bus masters (82371SB §2.3.5: bits 15:4).
    func noteBusMasterBase(_ address: UInt64, size: Int, value: UInt32) {
        note(address, size, value, in: domain.busMasterBase, at: (0x09, 0x20), mask: 0xFFF0)
    }

    /// Follows writes to PIRQRCA-D, by which a callback through a PCI pin finds its ISA interrupt.
    func notePIRQRoute(_ address: UInt64, size: Int, value: UInt32) {
        note(address, size, value, in: domain.pirqRoutes, at: (0x08, 0x60), mask: .max)
    }

    /// Follows writes to four bytes of configuration, whose place is a function and a register.
    private func note(
        _ address: UInt64, _ size: Int, _ value: UInt32, in copy: borrowing Atomic<UInt32>,
        at place: (function: UInt64, register: UInt64), mask kept: UInt32
    ) {
        guard address >> 32 == place.function, address & 0xFC == place.register else { return }
        let shift = UInt32(address & 3) * 8
        let mask = UInt32(truncatingIfNeeded: width(size).ones << UInt64(shift)) & kept
        let old = copy.load(ordering: .relaxed)
        copy.store(old & ~mask | (value << shift) & mask, ordering: .relaxed)
    }

    /// SBDF << 32 | register, as Xen's IOREQ_TYPE_PCI_CONFIG has it; nil while the latch is not enabled.
    func configAddress(_ port: UInt16) -> UInt64? {
        let latch = domain.configAddress.load(ordering: .relaxed)
        guard latch >> 31 != 0 else { return nil }
        return (UInt64(latch & 0xFF_FF00) >> 8) << 32 | UInt64(latch & 0xFC) + UInt64(port & 3)
    }
}
