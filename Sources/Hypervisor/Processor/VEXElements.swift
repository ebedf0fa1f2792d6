// VEX instructions that reach memory element by element: masked moves and gathers.
// Source: Intel SDM volume 2 (VMASKMOV, VPMASKMOV, VPGATHER..., §2.3.12 for vector indices).
// Modelled: only elements with their mask's top bit set are touched, lowest first; a gather keeps what it has when an
// element faults. Not modelled: nothing known.
// Quirks: in the translator a masked move is native if the whole operand can be reached.

internal import CProcessor

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    private static var upperDistance: Int { FXSAVEOffset.upper - FXSAVEOffset.xmm }

    /// Reads an element of a YMM register, `size` being 4 or 8.
    @inline(__always) private func element(_ register: UInt8, _ index: Int, _ size: Int) -> UInt64 {
        let offset = index * size
        let place = vectorPlace(register) + (offset < 16 ? offset : offset - 16 + Self.upperDistance)
        return size == 8 ? place.load(as: UInt64.self) : UInt64(place.load(as: UInt32.self))
    }
    @inline(__always) private func setElement(_ register: UInt8, _ index: Int, _ size: Int, _ value: UInt64) {
        let offset = index * size
        let place = vectorPlace(register) + (offset < 16 ? offset : offset - 16 + Self.upperDistance)
        if size == 8 {
            place.storeBytes(of: value, as: UInt64.self)
        } else {
            place.storeBytes(of: UInt32(truncatingIfNeeded: value), as: UInt32.self)
        }
    }
    @inline(__always) private func clear(_ register: UInt8, from first: Int, _ size: Int) {
        for index in first..<(32 / size) { setElement(register, index, size, 0) }
    }
    @inline(__always) private func isSelected(_ mask: UInt64, _ size: Int) -> Bool {
        mask >> UInt64(size * 8 - 1) & 1 != 0
    }
    private func loadElement(_ segment: Int, _ address: UInt64, _ size: Int) throws(Fault) -> UInt64 {
        size == 8
            ? try load(segment, address, as: UInt64.self) : UInt64(try load(segment, address, as: UInt32.self))
    }

    // MARK: Masked moves

    func maskedHandler(_ insn: UnsafeMutablePointer<apus_insn>, _ form: VEXForm) -> apus_handler {
        let byte = insn.pointee.opcode & 0xFF
        let isWide = byte >= 0x8C ? insn.pointee.vex & 4 != 0 : byte & 1 != 0
        insn.pointee.imm = isWide ? 8 : 4
        if form.shape == .maskedStore {
            return { cpu, insn in Self.status { () throws(Fault) in try cpu.maskedStore(insn) } }
        }
        return { cpu, insn in Self.status { () throws(Fault) in try cpu.maskedLoad(insn) } }
    }

    private func maskedLoad(_ insn: Insn) throws(Fault) {
        settleUpper()
        let size = Int(truncatingIfNeeded: insn.pointee.imm)
        let count = (insn.pointee.vex & 2 != 0 ? 32 : 16) / size
        let (segment, address) = (Int(insn.pointee.segment), effectiveAddress(insn))
        var values = InlineArray<8, UInt64>(repeating: 0)
        for index in 0..<count where isSelected(element(insn.pointee.vvvv, index, size), size) {
            let place = (address &+ UInt64(index * size)) & insn.pointee.addr_mask
            values[index] = try loadElement(segment, place, size)
        }
        for index in 0..<count { setElement(insn.pointee.reg, index, size, values[index]) }
        clear(insn.pointee.reg, from: count, size)
    }

    private func maskedStore(_ insn: Insn) throws(Fault) {
        settleUpper()
        let size = Int(truncatingIfNeeded: insn.pointee.imm)
        let count = (insn.pointee.vex & 2 != 0 ? 32 : 16) / size
        let (segment, address) = (Int(insn.pointee.segment), effectiveAddress(insn))
        for index in 0..<count where isSelected(element(insn.pointee.vvvv, index, size), size) {
            try probeWrite(segment, (address &+ UInt64(index * size)) & insn.pointee.addr_mask, size)
        }
        for index in 0..<count where isSelected(element(insn.pointee.vvvv, index, size), size) {
            let place = (address &+ UInt64(index * size)) & insn.pointee.addr_mask
            let value = element(insn.pointee.reg, index, size)
            if size == 8 {
                try store(value, segment, place)
            } else {
                try store(UInt32(truncatingIfNeeded: value), segment, place)
            }
        }
    }

    // MARK: Gathers

    /// #UD if two of destination, index and mask are one register, or without an index at all.
    func gatherHandler(_ insn: UnsafeMutablePointer<apus_insn>) -> apus_handler? {
        // The decoder takes index 4 for "none", but here it is a register.
        let index = insn.pointee.index == UInt8(APUS_NO_REG) ? 4 : insn.pointee.index
        guard insn.pointee.modrm & 7 == 4, insn.pointee.addr_size != 2, insn.pointee.reg != insn.pointee.vvvv,
            insn.pointee.reg != index, insn.pointee.vvvv != index
        else { return nil }
        insn.pointee.imm = UInt64(index)
        return { cpu, insn in Self.status { () throws(Fault) in try cpu.gather(insn) } }
    }

    private func gather(_ insn: Insn) throws(Fault) {
        settleUpper()
        let size = insn.pointee.vex & 4 != 0 ? 8 : 4
        let indexSize = insn.pointee.opcode & 1 != 0 ? 8 : 4
        let count = (insn.pointee.vex & 2 != 0 ? 32 : 16) / max(size, indexSize)
        let (segment, mask, target) = (Int(insn.pointee.segment), insn.pointee.vvvv, insn.pointee.reg)
        let vector = UInt8(truncatingIfNeeded: insn.pointee.imm)
        let base = gpr[Int(insn.pointee.base)] &+ UInt64(bitPattern: Int64(insn.pointee.disp))
        for place in 0..<count where isSelected(element(mask, place, size), size) {
            var index = element(vector, place, indexSize)
            if indexSize == 4 { index = UInt64(bitPattern: Int64(Int32(truncatingIfNeeded: index))) }
            let address = (base &+ index &<< UInt64(insn.pointee.scale)) & insn.pointee.addr_mask
            setElement(target, place, size, try loadElement(segment, address, size))
            setElement(mask, place, size, 0)
        }
        clear(mask, from: 0, size)
        clear(target, from: count, size)
    }
}
