// Hardware breakpoints and alignment checks: accesses that are looked at one by one.
// Source: Intel SDM vol. 3 §17.2 (debug registers), §17.3 (exceptions), §6.15 "Interrupt 17" (alignment).
// Modelled: instruction, data and I/O breakpoints, RF, #AC for operands of 2, 4 and 8 bytes. Not modelled: breakpoints on
// what the processor reads by itself (descriptors, stacks of gates); a repeated string instruction may trap some steps late.
// Quirks: with any of this on, data accesses use a TLB set that stays empty, and breakpoints run instruction by instruction.

internal import CProcessor

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// Some breakpoint is enabled (DR7 L0...G3).
    var hasBreakpoints: Bool { self.pointee.dr.7 & 0xFF != 0 }

    /// Data accesses must be looked at.
    var isWatched: Bool { self.pointee.tlb_read == apus_watched_entries(self) }

    /// Address, kind (R/W field) and length of breakpoint `index` if it is enabled. SDM vol. 3 §17.2.4.
    private func breakpoint(_ index: Int) -> (address: UInt64, kind: UInt64, bytes: UInt64)? {
        let control = self.pointee.dr.7
        guard control &>> UInt64(index * 2) & 3 != 0 else { return nil }
        let kind = control &>> UInt64(16 + index * 4) & 3
        let length: UInt64
        switch control &>> UInt64(18 + index * 4) & 3 {
        case 0: length = 1
        case 1: length = 2
        case 2: length = 8
        default: length = 4
        }
        let address = [self.pointee.dr.0, self.pointee.dr.1, self.pointee.dr.2, self.pointee.dr.3][index]
        return (address & ~(length - 1), kind, length)
    }

    /// Bits B0-B3 of those breakpoints of the wanted kinds that touch the range.
    private func matches(_ address: UInt64, _ bytes: UInt64, _ isWanted: (UInt64) -> Bool) -> UInt8 {
        var hits: UInt8 = 0
        for index in 0..<4 {
            guard let point = breakpoint(index), isWanted(point.kind) else { continue }
            if address &- point.address < point.bytes || point.address &- address < bytes { hits |= 1 << UInt8(index) }
        }
        return hits
    }

    /// Breakpoints on the instruction at `linear`, whose length field must be 0.
    func instructionBreakpoints(_ linear: UInt64) -> UInt8 {
        guard UInt64(self.pointee.system_flags) & RFLAGS.resume == 0 else { return 0 }
        return matches(linear, 1) { $0 == 0 }
    }

    /// Breakpoints on data that the next access may touch; for `selectTLB`.
    var hasDataBreakpoints: Bool {
        hasBreakpoints && (0..<4).contains { breakpoint($0).map { $0.kind & 1 != 0 } ?? false }
    }

    /// Looks at a data access of a program: throws #AC, and notes breakpoints for the trap behind the instruction.
    @inline(never) func watch(_ linear: UInt64, _ bytes: Int, write: Bool) throws(Fault) {
        if self.pointee.mode_key & ModeKey.alignmentCheck.rawValue != 0, bytes == 2 || bytes == 4 || bytes == 8,
            linear & UInt64(bytes - 1) != 0
        {
            throw raise(Vector.alignment, error: 0)
        }
        guard hasBreakpoints else { return }
        self.pointee.debug_hits |= matches(linear, UInt64(bytes)) { write ? $0 & 1 != 0 : $0 == 3 }
    }

    /// Notes I/O breakpoints, which CR4.DE makes possible.
    @inline(never) func watchPort(_ port: UInt16, _ bytes: UInt8) {
        guard hasBreakpoints, self.pointee.cr4 & CR4.debugExtensions != 0 else { return }
        self.pointee.debug_hits |= matches(UInt64(port), UInt64(bytes)) { $0 == 2 }
    }
}
