// Hardware task switches: far jumps and calls to a TSS or task gate, task gates in the IDT, IRET with NT.
// Source: Intel SDM vol. 3 §7.2-7.3 and table 7-2.
// Modelled: 16- and 32-bit TSS, nesting, busy bits, error codes, the debug trap bit; not in long mode (as specified).
// Faults that occur after the switch are raised in the new task's context, as the SDM says.

internal import CProcessor

/// Offsets in a TSS that the two formats place differently.
private struct TSSLayout {
    let isWide: Bool
    var minimumLimit: UInt32 { isWide ? 0x67 : 0x2B }
    var ip: UInt64 { isWide ? 0x20 : 0x0E }
    var flags: UInt64 { isWide ? 0x24 : 0x10 }
    func register(_ index: Int) -> UInt64 { isWide ? 0x28 + UInt64(index) * 4 : 0x12 + UInt64(index) * 2 }
    /// ES, CS, SS, DS, FS, GS; the 16-bit form has no FS and GS.
    func segment(_ index: Int) -> UInt64 { isWide ? 0x48 + UInt64(index) * 4 : 0x22 + UInt64(index) * 2 }
    var ldt: UInt64 { isWide ? 0x60 : 0x2A }
    var segments: Int { isWide ? 6 : 4 }
}

/// What a task switch reads out of the new TSS.
private struct TaskImage {
    var cr3: UInt32 = 0
    var ip: UInt32 = 0
    var flags: UInt32 = 0
    var registers: [8 of UInt32] = [0, 0, 0, 0, 0, 0, 0, 0]
    var selectors: [6 of UInt16] = [0, 0, 0, 0, 0, 0]
    var ldt: UInt16 = 0
    var debugTrap = false
}

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// Switches to the task of `selector`; the old task will go on at `returnTo`.
    func switchTask(
        _ selector: UInt16, cause: TaskSwitchCause, returnTo next: UInt64, error: UInt32? = nil,
        external: UInt32 = 0, resume: Bool = false
    ) throws(Fault) {
        let vector = cause == .interruptReturn ? Vector.invalidTSS : Vector.generalProtection
        let code = UInt32(selector & 0xFFFC) | external
        guard selector & 0xFFFC != 0, selector & 4 == 0, let address = descriptorAddress(selector) else {
            throw raise(vector, error: code)
        }
        var descriptor = Descriptor(raw: try loadSystem(address, as: UInt64.self))
        let isBusy = descriptor.type & 2 != 0
        guard descriptor.isSystem, descriptor.type & 5 == 1, isBusy == (cause == .interruptReturn) else {
            throw raise(vector, error: code)
        }
        guard descriptor.isPresent else { throw raise(Vector.notPresent, error: code) }
        let layout = TSSLayout(isWide: descriptor.type & 8 != 0)
        guard descriptor.limit >= layout.minimumLimit else { throw raise(Vector.invalidTSS, error: code) }
        let image = try readTask(descriptor.base, layout)
        try saveTask(cause: cause, next: next, resume: resume)
        let old = segment(Seg.tr).pointee.selector
        if cause == .call || cause == .gate { try storeSystem(old, linear(descriptor.base)) }
        if cause == .jump || cause == .interruptReturn { try setBusy(old, false) }
        if cause != .interruptReturn {
            descriptor.raw |= 2 << 40
            try storeSystem(UInt8(truncatingIfNeeded: descriptor.raw >> 40), address &+ 5)
        }
        segment(Seg.tr).pointee = descriptor.segment(selector: selector)
        pointee.cr0 |= CR0.taskSwitched
        do throws(Fault) {
            try loadTask(image, layout, isNested: cause == .call || cause == .gate)
            try enterTask(error: error, errorSize: layout.isWide ? 4 : 2)
            guard image.debugTrap else { return }
            _ = raise(Vector.debug)
            pointee.pending_dr6 = 1 << 15
            throw Fault()
        } catch {
            // RIP is the new task's already: nobody is to set it back to the instruction that switched.
            pointee.pending_kind = 1
            throw error
        }
    }

    /// The last steps, in the new task's context.
    private func enterTask(error: UInt32?, errorSize: UInt8) throws(Fault) {
        if let error {
            var stack = Stack(current: self)
            try stack.push(UInt64(error), size: errorSize)
            stack.commitPointer()
        }
        guard pointee.rip <= UInt64(segment(Seg.cs).pointee.limit) else {
            throw raise(Vector.generalProtection, error: 0)
        }
    }

    /// IRET with NT set: back to the task that the TSS links to.
    func returnToTask(next: UInt64) throws(Fault) {
        let link = try loadSystem(linear(segment(Seg.tr).pointee.base), as: UInt16.self)
        try switchTask(link, cause: .interruptReturn, returnTo: next)
        pointee.nmi_blocked = false
    }

    private func setBusy(_ selector: UInt16, _ busy: Bool) throws(Fault) {
        guard let address = descriptorAddress(selector) else { return }
        let type = try loadSystem(address &+ 5, as: UInt8.self)
        try storeSystem(busy ? type | 2 : type & ~2, address &+ 5)
    }

    private func readTask(_ base: UInt64, _ layout: TSSLayout) throws(Fault) -> TaskImage {
        var image = TaskImage()
        func field(_ offset: UInt64) throws(Fault) -> UInt32 {
            layout.isWide
                ? try loadSystem(linear(base &+ offset), as: UInt32.self)
                : UInt32(try loadSystem(linear(base &+ offset), as: UInt16.self))
        }
        if layout.isWide {
            image.cr3 = try field(0x1C)
            image.debugTrap = try loadSystem(linear(base &+ 0x64), as: UInt16.self) & 1 != 0
        }
        image.ip = try field(layout.ip)
        image.flags = try field(layout.flags)
        for index in 0..<8 { image.registers[index] = try field(layout.register(index)) }
        for index in 0..<layout.segments {
            image.selectors[index] = UInt16(truncatingIfNeeded: try field(layout.segment(index)))
        }
        image.ldt = UInt16(truncatingIfNeeded: try field(layout.ldt))
        return image
    }

    /// Writes the dynamic fields of the current TSS.
    private func saveTask(cause: TaskSwitchCause, next: UInt64, resume: Bool) throws(Fault) {
        let tss = segment(Seg.tr).pointee
        let layout = TSSLayout(isWide: tss.access & 8 != 0)
        func put(_ value: UInt64, _ offset: UInt64) throws(Fault) {
            let address = linear(tss.base &+ offset)
            if layout.isWide {
                try storeSystem(UInt32(truncatingIfNeeded: value), address)
            } else {
                try storeSystem(UInt16(truncatingIfNeeded: value), address)
            }
        }
        var flags = resume ? rflags | RFLAGS.resume : rflags
        if cause == .interruptReturn { flags &= ~RFLAGS.nestedTask }
        try put(next, layout.ip)
        try put(flags, layout.flags)
        for index in 0..<8 { try put(apus_gpr_at(self, UInt32(index)).pointee, layout.register(index)) }
        for index in 0..<layout.segments {
            try storeSystem(segment(index).pointee.selector, linear(tss.base &+ layout.segment(index)))
        }
    }

    /// Loads the new task's registers, then its segments with their checks.
    private func loadTask(_ image: TaskImage, _ layout: TSSLayout, isNested: Bool) throws(Fault) {
        if layout.isWide, pointee.paging {
            try setCR3(UInt64(image.cr3))
        }
        pointee.rip = UInt64(image.ip)
        var flags = UInt64(image.flags) & RFLAGS.implemented | 2
        if isNested { flags |= RFLAGS.nestedTask }
        pointee.arith_flags = UInt32(truncatingIfNeeded: flags & RFLAGS.arithmetic)
        pointee.system_flags = UInt32(truncatingIfNeeded: flags & ~RFLAGS.arithmetic)
        for index in 0..<8 {
            apus_gpr_at(self, UInt32(index)).pointee = UInt64(image.registers[index])
        }
        pointee.dr.7 &= ~0x155
        for index in 0..<6 {
            segment(index).pointee = apus_segment(base: 0, limit: 0, selector: image.selectors[index], access: 0)
        }
        segment(Seg.ldtr).pointee = apus_segment(base: 0, limit: 0, selector: image.ldt, access: 0)
        if flags & RFLAGS.virtual8086 != 0 {
            pointee.cpl = 3
            for index in 0..<6 { loadRealSegment(index, selector: image.selectors[index]) }
            updateMode()
            try loadTaskLDT(image.ldt)
            return
        }
        pointee.cpl = UInt8(image.selectors[Seg.cs] & 3)
        updateMode()
        try loadTaskLDT(image.ldt)
        try loadTaskCode(image.selectors[Seg.cs])
        updateMode()
        segment(Seg.ss).pointee = try stackSegment(
            image.selectors[Seg.ss], cpl: pointee.cpl, fault: Vector.invalidTSS, to64Bit: false)
        for index in [Seg.es, Seg.ds, Seg.fs, Seg.gs] {
            segment(index).pointee = try dataSegment(image.selectors[index], fault: Vector.invalidTSS)
        }
        updateMode()
    }

    private func loadTaskLDT(_ selector: UInt16) throws(Fault) {
        guard selector & 0xFFFC != 0 else { return }
        guard selector & 4 == 0, let address = descriptorAddress(selector) else {
            throw raise(Vector.invalidTSS, error: UInt32(selector & 0xFFFC))
        }
        let descriptor = Descriptor(raw: try loadSystem(address, as: UInt64.self))
        guard descriptor.isSystem, descriptor.type == 2, descriptor.isPresent else {
            throw raise(Vector.invalidTSS, error: UInt32(selector & 0xFFFC))
        }
        segment(Seg.ldtr).pointee = descriptor.segment(selector: selector)
    }

    private func loadTaskCode(_ selector: UInt16) throws(Fault) {
        let error = UInt32(selector & 0xFFFC)
        guard error != 0 else { throw raise(Vector.invalidTSS, error: 0) }
        var code = try readDescriptor(selector, fault: Vector.invalidTSS)
        let cpl = UInt8(selector & 3)
        guard code.isCode, code.isConforming ? code.dpl <= cpl : code.dpl == cpl else {
            throw raise(Vector.invalidTSS, error: error)
        }
        guard code.isPresent else { throw raise(Vector.notPresent, error: error) }
        try markAccessed(selector, &code)
        setCode(selector, code, cpl: cpl)
    }
}
