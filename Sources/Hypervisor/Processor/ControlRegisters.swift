// Control and debug registers, XCR0, reset, and the switches between modes.
// Source: Intel SDM vol. 3 §2.5, §9.1 (reset), §9.8.5 (entering long mode), §17.2 (debug registers).
// Modelled: reserved bits, dependent bits, long-mode activation; not modelled: caching (CD, NW, PWT, PCD).

internal import CProcessor

/// Guest-physical address bits that CPUID offers, and with them what page tables may hold.
let physicalAddressBits: UInt64 = 40

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// Paging with PAE and without long mode, whose four top entries are registers.
    private func usesDirectoryPointers(cr0: UInt64, cr4: UInt64) -> Bool {
        cr0 & CR0.paging != 0 && cr4 & CR4.physicalAddressExtension != 0 && pointee.efer & EFER.longModeEnable == 0
    }

    /// Writes CR0 as MOV and LMSW do.
    func setCR0(_ value: UInt64) throws(Fault) {
        let old = pointee.cr0
        let defined: UInt64 = 0xE005_003F
        let paging = value & CR0.paging != 0
        guard value >> 32 == 0, !paging || value & CR0.protection != 0,
            value & CR0.notWriteThrough == 0 || value & CR0.cacheDisable != 0
        else { throw raise(Vector.generalProtection, error: 0) }
        let new = value & defined | CR0.extensionType
        if paging, old & CR0.paging == 0, pointee.efer & EFER.longModeEnable != 0 {
            guard pointee.cr4 & CR4.physicalAddressExtension != 0,
                segment(Seg.cs).pointee.access & Access.long == 0
            else { throw raise(Vector.generalProtection, error: 0) }
            pointee.efer |= EFER.longModeActive
        }
        if !paging, old & CR0.paging != 0 {
            guard !is64Bit, pointee.cr4 & CR4.processContext == 0 else {
                throw raise(Vector.generalProtection, error: 0)
            }
            pointee.efer &= ~EFER.longModeActive
        }
        let reloading = CR0.paging | CR0.cacheDisable | CR0.notWriteThrough
        if (old ^ new) & reloading != 0, usesDirectoryPointers(cr0: new, cr4: pointee.cr4) {
            try loadDirectoryPointers(pointee.cr3)
        }
        pointee.cr0 = new
        if (old ^ new) & (CR0.paging | CR0.writeProtect | CR0.protection) != 0 { flushTLB(keepGlobal: false) }
        updateMode()
    }

    func setCR3(_ value: UInt64) throws(Fault) {
        // With PCIDs, bit 63 tells to keep what is known of the address space.
        let hasPCIDs = pointee.cr4 & CR4.processContext != 0
        let keeps = hasPCIDs && value >> 63 != 0
        let value = hasPCIDs ? value & ~(1 << 63) : value
        if pointee.long_mode, value >> physicalAddressBits != 0 { throw raise(Vector.generalProtection, error: 0) }
        if usesDirectoryPointers(cr0: pointee.cr0, cr4: pointee.cr4) { try loadDirectoryPointers(value) }
        pointee.cr3 = pointee.long_mode ? value : value & 0xFFFF_FFFF
        enterSpace(hasPCIDs ? Int(value & 0xFFF) : 0, flush: !keeps)
    }

    /// Bits of CR4 that CPUID lets a guest set.
    private var writableCR4: UInt64 {
        var bits =
            CR4.timeStampDisable | CR4.debugExtensions | CR4.pageSizeExtension | CR4.physicalAddressExtension
            | CR4.machineCheck | CR4.pageGlobal | CR4.performanceCounter | CR4.osFXSR | CR4.osXMMException
            | CR4.userInstructionPrevention | CR4.fsgsBase | CR4.processContext | CR4.smep | CR4.smap
        if CPUIDProfile.host.offersXSAVE { bits |= CR4.osXSAVE }
        return bits
    }

    func setCR4(_ value: UInt64) throws(Fault) {
        let old = pointee.cr4
        guard value & ~writableCR4 == 0,
            !pointee.long_mode || value & CR4.physicalAddressExtension != 0,
            value & ~old & CR4.processContext == 0 || pointee.long_mode && pointee.cr3 & 0xFFF == 0
        else { throw raise(Vector.generalProtection, error: 0) }
        let reloading =
            CR4.pageGlobal | CR4.physicalAddressExtension | CR4.pageSizeExtension | CR4.smep
        if (old ^ value) & reloading != 0, usesDirectoryPointers(cr0: pointee.cr0, cr4: value) {
            try loadDirectoryPointers(pointee.cr3)
        }
        pointee.cr4 = value
        let translation =
            CR4.pageSizeExtension | CR4.physicalAddressExtension | CR4.pageGlobal | CR4.processContext | CR4.smep
            | CR4.smap
        if (old ^ value) & translation != 0 { flushTLB(keepGlobal: false) }
        // Without PCIDs there is only number 0.
        if old & ~value & CR4.processContext != 0 { enterSpace(0, flush: true) }
        updateMode()
    }

    /// Reads CR0, 2, 3, 4 or 8; anything else is #UD.
    func readControl(_ number: UInt8) throws(Fault) -> UInt64 {
        if isParavirtual { return try readParavirtualControl(number) }
        switch number {
        case 0: return pointee.cr0
        case 2: return pointee.cr2
        case 3: return pointee.cr3
        case 4: return pointee.cr4
        case 8: return UInt64(bus.taskPriority & 15)
        default: throw raise(Vector.invalidOpcode)
        }
    }

    func writeControl(_ number: UInt8, _ value: UInt64) throws(Fault) {
        if isParavirtual { return try writeParavirtualControl(number, value) }
        switch number {
        case 0: try setCR0(value)
        case 2: pointee.cr2 = value
        case 3: try setCR3(value)
        case 4: try setCR4(value)
        case 8:
            guard value <= 15 else { throw raise(Vector.generalProtection, error: 0) }
            pointee.cr8 = value
            bus.taskPriority = UInt8(value)
        default: throw raise(Vector.invalidOpcode)
        }
    }

    /// The number of a debug register after DR4/DR5 aliasing, once an access to it is allowed.
    private func debugRegister(_ number: UInt8) throws(Fault) -> UInt8 {
        guard number < 8 else { throw raise(Vector.invalidOpcode) }
        try requirePrivilege()
        if number == 4 || number == 5, pointee.cr4 & CR4.debugExtensions != 0 { throw raise(Vector.invalidOpcode) }
        if pointee.dr.7 & (1 << 13) != 0 {
            let fault = raise(Vector.debug)
            pointee.pending_dr6 = 1 << 13
            throw fault
        }
        return number == 4 || number == 5 ? number + 2 : number
    }

    func readDebug(_ number: UInt8) throws(Fault) -> UInt64 {
        switch try debugRegister(number) {
        case 0: return pointee.dr.0
        case 1: return pointee.dr.1
        case 2: return pointee.dr.2
        case 3: return pointee.dr.3
        case 6: return pointee.dr.6
        default: return pointee.dr.7
        }
    }

    func writeDebug(_ number: UInt8, _ value: UInt64) throws(Fault) {
        let number = try debugRegister(number)
        if number >= 6, value >> 32 != 0 { throw raise(Vector.generalProtection, error: 0) }
        switch number {
        case 0: pointee.dr.0 = value
        case 1: pointee.dr.1 = value
        case 2: pointee.dr.2 = value
        case 3: pointee.dr.3 = value
        case 6: pointee.dr.6 = value & 0xE00F | 0xFFFF_0FF0
        default: pointee.dr.7 = value & 0xFFFF_2BFF | 0x400
        }
        clearFlags(RFLAGS.resume)
        updateMode()
    }

    /// XSETBV: only XCR0; AVX needs SSE (SDM vol. 1 §13.3).
    func setXCR0(_ index: UInt32, _ value: UInt64) throws(Fault) {
        guard index == 0, value & 1 != 0, value & ~CPUIDProfile.host.extendedStates == 0, value & 6 != 4 else {
            throw raise(Vector.generalProtection, error: 0)
        }
        pointee.xcr0 = value
        updateMode()
    }

    /// Puts every register where reset (`powerOn`) or INIT leaves it. SDM vol. 3 table 9-1.
    func resetState(powerOn: Bool) {
        let profile = CPUIDProfile.host
        let oldCR0 = pointee.cr0
        for index in 0..<16 { apus_gpr_at(self, UInt32(index)).pointee = 0 }
        pointee.gpr.2 = UInt64(profile.signature)
        pointee.rip = 0xFFF0
        (pointee.arith_flags, pointee.system_flags) = (0, 2)
        pointee.direct = UInt32(APUS_DIRECT_OFF)
        for index in 0..<6 {
            segment(index).pointee = apus_segment(base: 0, limit: 0xFFFF, selector: 0, access: 0x93)
        }
        segment(Seg.cs).pointee = apus_segment(base: 0xFFFF_0000, limit: 0xFFFF, selector: 0xF000, access: 0x9B)
        segment(Seg.ldtr).pointee = apus_segment(base: 0, limit: 0xFFFF, selector: 0, access: 0x82)
        segment(Seg.tr).pointee = apus_segment(base: 0, limit: 0xFFFF, selector: 0, access: 0x8B)
        pointee.cpl = 0
        // INIT leaves CD and NW alone.
        let caching = CR0.cacheDisable | CR0.notWriteThrough
        pointee.cr0 = (powerOn ? caching : oldCR0 & caching) | CR0.extensionType
        (pointee.cr2, pointee.cr3, pointee.cr4, pointee.cr8, pointee.efer) = (0, 0, 0, 0, 0)
        pointee.xcr0 = powerOn ? 1 : pointee.xcr0
        pointee.dr = (0, 0, 0, 0, 0, 0, 0xFFFF_0FF0, 0x400)
        pointee.gdtr = apus_table(base: 0, limit: 0xFFFF)
        pointee.idtr = apus_table(base: 0, limit: 0xFFFF)
        pointee.interrupt_shadow = false
        pointee.nmi_blocked = false
        pointee.nmi_pending = false
        pointee.halted = false
        if powerOn {
            resetMSRs()
            resetFPU()
        }
        engine.pointee.spaces.enter(0)
        flushTLB(keepGlobal: false)
        updateMode()
    }
}

/// MOV to and from control and debug registers, LMSW, SMSW, CLTS.
func controlHandler(_ insn: UnsafeMutablePointer<apus_insn>) -> apus_handler? {
    switch insn.pointee.opcode {
    case 0x120:
        return { cpu, insn in
            attempt { () throws(Fault) in
                try cpu.requirePrivilege()
                let value = try cpu.readControl(insn.pointee.reg)
                cpu.writeGPR(insn.pointee.rm, size: cpu.is64Bit ? 8 : 4, value)
                return Status.next
            }
        }
    case 0x122:
        return { cpu, insn in
            attempt { () throws(Fault) in
                try cpu.requirePrivilege()
                try cpu.writeControl(insn.pointee.reg, cpu.readGPR(insn.pointee.rm, size: cpu.is64Bit ? 8 : 4))
                return Status.end
            }
        }
    case 0x121:
        return { cpu, insn in
            attempt { () throws(Fault) in
                let value = try cpu.readDebug(insn.pointee.reg)
                cpu.writeGPR(insn.pointee.rm, size: cpu.is64Bit ? 8 : 4, value)
                return Status.next
            }
        }
    case 0x123:
        return { cpu, insn in
            attempt { () throws(Fault) in
                try cpu.writeDebug(insn.pointee.reg, cpu.readGPR(insn.pointee.rm, size: cpu.is64Bit ? 8 : 4))
                return Status.end
            }
        }
    case 0x106:
        return { cpu, _ in
            attempt { () throws(Fault) in
                try cpu.requirePrivilege()
                cpu.pointee.cr0 &= ~CR0.taskSwitched
                cpu.updateMode()
                return Status.end
            }
        }
    case 0x101: return statusWordHandler(insn)
    default: return nil
    }
}

private func statusWordHandler(_ insn: UnsafeMutablePointer<apus_insn>) -> apus_handler? {
    switch (insn.pointee.modrm >> 3) & 7 {
    case 4:
        return { cpu, insn in
            attempt { () throws(Fault) in
                try cpu.checkUserInstructionPrevention()
                if insn.pointee.mem != 0 {
                    let value = UInt16(truncatingIfNeeded: cpu.pointee.cr0)
                    try cpu.store(value, Int(insn.pointee.segment), cpu.effectiveAddress(insn))
                } else {
                    cpu.writeGPR(insn.pointee.rm, size: insn.pointee.op_size, cpu.pointee.cr0)
                }
                return Status.next
            }
        }
    case 6:
        return { cpu, insn in
            attempt { () throws(Fault) in
                try cpu.requireSupervisor()
                let value = UInt64(try cpu.loadSelector(insn))
                // PE can be set but not cleared.
                try cpu.setCR0(cpu.pointee.cr0 & ~0xE | value & 0xF)
                return Status.end
            }
        }
    default: return nil
    }
}

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// Raises #GP(0) outside privilege level 0.
    @inline(__always) func requireSupervisor() throws(Fault) {
        if pointee.cpl != 0 { throw raise(Vector.generalProtection, error: 0) }
    }

    /// The same, but the hypervisor does for a PV guest's kernel what it could not do itself.
    @inline(__always) func requirePrivilege() throws(Fault) {
        if pointee.cpl != 0, !isGuestKernel { throw raise(Vector.generalProtection, error: 0) }
    }

    /// Raises #GP(0) where CR4.UMIP keeps user code from reading system registers.
    func checkUserInstructionPrevention() throws(Fault) {
        if pointee.cpl != 0, pointee.cr4 & CR4.userInstructionPrevention != 0 {
            throw raise(Vector.generalProtection, error: 0)
        }
    }

    /// The 16-bit register or memory operand that selectors come from.
    func loadSelector(_ insn: Insn) throws(Fault) -> UInt16 {
        if insn.pointee.mem != 0 {
            return try load(Int(insn.pointee.segment), effectiveAddress(insn), as: UInt16.self)
        }
        return UInt16(truncatingIfNeeded: apus_gpr_at(self, UInt32(insn.pointee.rm)).pointee)
    }

    /// Stores a selector to a register (zero-extended to the operand size) or to 16 bits of memory.
    func storeSelector(_ insn: Insn, _ value: UInt16) throws(Fault) {
        if insn.pointee.mem != 0 {
            try store(value, Int(insn.pointee.segment), effectiveAddress(insn))
        } else {
            writeGPR(insn.pointee.rm, size: insn.pointee.op_size, UInt64(value))
        }
    }
}
