// Instructions on descriptor tables, the task register and selectors: LGDT to SLDT, LTR, LAR, LSL, VERR, VERW, ARPL.
// Source: Intel SDM vol. 2, one entry an instruction; vol. 3 §3.5, §5.10.
// Modelled: all of them with their privilege checks, UMIP.
// LAR and its like look at descriptors without raising anything: what is not visible clears ZF.

internal import CProcessor

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// SGDT and SIDT: always a 32-bit base, or 64 bits in 64-bit mode.
    fileprivate func storeTable(_ insn: Insn, _ table: apus_table) throws(Fault) {
        try checkUserInstructionPrevention()
        let (segment, address) = (Int(insn.pointee.segment), effectiveAddress(insn))
        let base = (address &+ 2) & addressMask(insn)
        try probeWrite(segment, address, is64Bit ? 10 : 6)
        try store(UInt16(truncatingIfNeeded: table.limit), segment, address)
        if is64Bit {
            try store(table.base, segment, base)
        } else {
            try store(UInt32(truncatingIfNeeded: table.base), segment, base)
        }
    }

    /// The operand of LGDT and LIDT; a 16-bit operand size keeps 24 bits of the base.
    fileprivate func loadTable(_ insn: Insn) throws(Fault) -> apus_table {
        try requireSupervisor()
        let (segment, address) = (Int(insn.pointee.segment), effectiveAddress(insn))
        let baseAddress = (address &+ 2) & addressMask(insn)
        let limit = UInt32(try load(segment, address, as: UInt16.self))
        if is64Bit {
            let base = try load(segment, baseAddress, as: UInt64.self)
            guard isCanonical(base) else { throw raise(Vector.generalProtection, error: 0) }
            return apus_table(base: base, limit: limit)
        }
        let base = UInt64(try load(segment, baseAddress, as: UInt32.self))
        return apus_table(base: insn.pointee.op_size == 2 ? base & 0xFF_FFFF : base, limit: limit)
    }

    fileprivate func loadLDT(_ selector: UInt16) throws(Fault) {
        try requireSupervisor()
        let error = UInt32(selector & 0xFFFC)
        guard error != 0 else {
            segment(Seg.ldtr).pointee = apus_segment(base: 0, limit: 0, selector: selector, access: 0)
            return
        }
        guard selector & 4 == 0 else { throw raise(Vector.generalProtection, error: error) }
        var descriptor = try readDescriptor(selector)
        guard descriptor.isSystem, descriptor.type == 2 else { throw raise(Vector.generalProtection, error: error) }
        guard descriptor.isPresent else { throw raise(Vector.notPresent, error: error) }
        if pointee.long_mode { try readHigh(selector, &descriptor) }
        segment(Seg.ldtr).pointee = descriptor.segment(selector: selector)
    }

    fileprivate func loadTaskRegister(_ selector: UInt16) throws(Fault) {
        try requireSupervisor()
        let error = UInt32(selector & 0xFFFC)
        guard error != 0 else { throw raise(Vector.generalProtection, error: 0) }
        guard selector & 4 == 0, let address = descriptorAddress(selector) else {
            throw raise(Vector.generalProtection, error: error)
        }
        var descriptor = try readDescriptor(selector)
        guard descriptor.isSystem, descriptor.type == 9 || (descriptor.type == 1 && !pointee.long_mode) else {
            throw raise(Vector.generalProtection, error: error)
        }
        guard descriptor.isPresent else { throw raise(Vector.notPresent, error: error) }
        if pointee.long_mode { try readHigh(selector, &descriptor) }
        descriptor.raw |= 2 << 40
        try storeSystem(UInt8(truncatingIfNeeded: descriptor.raw >> 40), address &+ 5)
        segment(Seg.tr).pointee = descriptor.segment(selector: selector)
    }

    /// The descriptor that LAR, LSL, VERR and VERW may look at; nil clears ZF.
    fileprivate func visibleDescriptor(_ selector: UInt16, systemTypes: UInt16) throws(Fault) -> Descriptor? {
        guard selector & 0xFFFC != 0, let descriptor = try peekDescriptor(selector) else { return nil }
        if descriptor.isSystem, systemTypes & (1 << UInt16(descriptor.type)) == 0 { return nil }
        let privilege = max(privilege, UInt8(selector & 3))
        guard descriptor.isConforming || privilege <= descriptor.dpl else { return nil }
        return descriptor
    }

    private func peekDescriptor(_ selector: UInt16) throws(Fault) -> Descriptor? {
        if isParavirtual { return paravirtualDescriptor(selector) }
        guard let address = descriptorAddress(selector) else { return nil }
        return Descriptor(raw: try loadSystem(address, as: UInt64.self))
    }

    @inline(__always) fileprivate func setZero(_ value: Bool) {
        pointee.arith_flags = pointee.arith_flags & ~0x40 | (value ? 0x40 : 0)
    }

    fileprivate func requireProtected() throws(Fault) {
        if !pointee.protected_mode { throw raise(Vector.invalidOpcode) }
    }

    fileprivate func verify(_ insn: Insn, write: Bool) throws(Fault) {
        try requireProtected()
        let descriptor = try visibleDescriptor(try loadSelector(insn), systemTypes: 0)
        setZero(descriptor.map { write ? $0.isWritableData : $0.isReadable } ?? false)
    }
}

func tableHandler(_ insn: UnsafeMutablePointer<apus_insn>) -> apus_handler? {
    let group = (insn.pointee.modrm >> 3) & 7
    switch insn.pointee.opcode {
    case 0x100: return selectorHandler(group)
    case 0x101 where insn.pointee.mem != 0: return pseudoDescriptorHandler(group)
    case 0x102:
        return { cpu, insn in
            attempt { () throws(Fault) in
                try cpu.requireProtected()
                // Gates and TSS count; in long mode only LDT, TSS and call gates of 64 bits.
                let types: UInt16 = cpu.pointee.long_mode ? 0x1A04 : 0x1A3E
                let descriptor = try cpu.visibleDescriptor(try cpu.loadSelector(insn), systemTypes: types)
                cpu.setZero(descriptor != nil)
                if let descriptor {
                    let rights = (descriptor.raw >> 32) & 0x00F0_FF00
                    cpu.writeGPR(insn.pointee.reg, size: insn.pointee.op_size, rights)
                }
                return Status.next
            }
        }
    case 0x103:
        return { cpu, insn in
            attempt { () throws(Fault) in
                try cpu.requireProtected()
                let types: UInt16 = cpu.pointee.long_mode ? 0x0A04 : 0x0A0E
                let descriptor = try cpu.visibleDescriptor(try cpu.loadSelector(insn), systemTypes: types)
                cpu.setZero(descriptor != nil)
                if let descriptor {
                    cpu.writeGPR(insn.pointee.reg, size: insn.pointee.op_size, UInt64(descriptor.limit))
                }
                return Status.next
            }
        }
    case 0x63:
        return { cpu, insn in
            attempt { () throws(Fault) in
                try cpu.requireProtected()
                let target = try cpu.loadSelector(insn)
                let privilege = UInt16(truncatingIfNeeded: apus_gpr_at(cpu, UInt32(insn.pointee.reg)).pointee) & 3
                if target & 3 < privilege {
                    let raised = target & 0xFFFC | privilege
                    if insn.pointee.mem != 0 {
                        try cpu.store(raised, Int(insn.pointee.segment), cpu.effectiveAddress(insn))
                    } else {
                        cpu.writeGPR(insn.pointee.rm, size: 2, UInt64(raised))
                    }
                }
                cpu.setZero(target & 3 < privilege)
                return Status.next
            }
        }
    default: return nil
    }
}

/// Group 6: SLDT, STR, LLDT, LTR, VERR, VERW.
private func selectorHandler(_ group: UInt8) -> apus_handler? {
    switch group {
    case 0, 1:
        return { cpu, insn in
            attempt { () throws(Fault) in
                try cpu.requireProtected()
                try cpu.checkUserInstructionPrevention()
                let index = (insn.pointee.modrm >> 3) & 7 == 0 ? Seg.ldtr : Seg.tr
                try cpu.storeSelector(insn, cpu.segment(index).pointee.selector)
                return Status.next
            }
        }
    case 2:
        return { cpu, insn in
            attempt { () throws(Fault) in
                try cpu.requireProtected()
                try cpu.requireSupervisor()
                try cpu.loadLDT(try cpu.loadSelector(insn))
                return Status.next
            }
        }
    case 3:
        return { cpu, insn in
            attempt { () throws(Fault) in
                try cpu.requireProtected()
                try cpu.requireSupervisor()
                try cpu.loadTaskRegister(try cpu.loadSelector(insn))
                return Status.next
            }
        }
    case 4:
        return { cpu, insn in
            attempt { () throws(Fault) in
                try cpu.verify(insn, write: false)
                return Status.next
            }
        }
    case 5:
        return { cpu, insn in
            attempt { () throws(Fault) in
                try cpu.verify(insn, write: true)
                return Status.next
            }
        }
    default: return nil
    }
}

/// Group 7 with memory operand: SGDT, SIDT, LGDT, LIDT, INVLPG.
private func pseudoDescriptorHandler(_ group: UInt8) -> apus_handler? {
    switch group {
    case 0:
        return { cpu, insn in
            attempt { () throws(Fault) in
                try cpu.storeTable(insn, cpu.pointee.gdtr)
                return Status.next
            }
        }
    case 1:
        return { cpu, insn in
            attempt { () throws(Fault) in
                try cpu.storeTable(insn, cpu.pointee.idtr)
                return Status.next
            }
        }
    case 2:
        return { cpu, insn in
            attempt { () throws(Fault) in
                cpu.pointee.gdtr = try cpu.loadTable(insn)
                return Status.next
            }
        }
    case 3:
        return { cpu, insn in
            attempt { () throws(Fault) in
                cpu.pointee.idtr = try cpu.loadTable(insn)
                return Status.next
            }
        }
    case 7:
        return { cpu, insn in
            attempt { () throws(Fault) in
                try cpu.requireSupervisor()
                let offset = cpu.effectiveAddress(insn)
                let segment = Int(insn.pointee.segment)
                let base = cpu.is64Bit && segment < Seg.fs ? 0 : cpu.segment(segment).pointee.base
                let address = cpu.is64Bit ? base &+ offset : (base &+ offset) & 0xFFFF_FFFF
                if cpu.isCanonical(address) { cpu.flushPage(address) }
                return Status.end
            }
        }
    default: return nil
    }
}
