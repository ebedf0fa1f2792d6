// The soft TLB: how what page walks found is forgotten and filled in; AddressSpaces.swift has its second level.
// Source: Intel SDM vol. 3 §4.10 (PCIDs, global pages, CR3 loads, INVLPG, INVPCID).
// Modelled: all of it, with 4096 PCIDs. What the jump cache knows about an address space lives and dies with it.
// Quirks: the first level, in the vCPU, holds the present address space only; the second all of them, told apart by number.

internal import CProcessor

// MARK: - Forgetting

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// The entries of one mode.
    @inline(__always) func tlbSet(_ mode: UInt8, write: Bool) -> UnsafeMutablePointer<apus_tlb_entry> {
        self.pointee.tlb_first + (Int(mode) &* 2 &+ (write ? 1 : 0)) &* Int(APUS_TLB_ENTRIES)
    }

    /// Forgets all translations of all address spaces, or all but those of global pages.
    func flushTLB(keepGlobal: Bool) {
        serialize()
        let engine = engine
        dropNear(global: !keepGlobal)
        if keepGlobal { engine.pointee.spaces.renewLocal() } else { engine.pointee.spaces.renewAll() }
        if !keepGlobal || engine.pointee.spaces.isKernelLocal { renewKernelJumps() }
        flushed()
    }

    /// CR3 was loaded: goes to the address space of a PCID, and forgets it first or takes what is known of it.
    func enterSpace(_ pcid: Int, flush: Bool) {
        serialize()
        let engine = engine
        dropNear(global: false)
        if flush { engine.pointee.spaces.numbers[pcid] = 0 }
        engine.pointee.spaces.enter(pcid)
        if engine.pointee.spaces.isKernelLocal { renewKernelJumps() }
        flushed()
    }

    /// Forgets a PCID's translations but for global pages.
    func flushSpace(_ pcid: Int) {
        let engine = engine
        if pcid == engine.pointee.spaces.pcid { return enterSpace(pcid, flush: true) }
        serialize()
        engine.pointee.spaces.numbers[pcid] = 0
    }

    private func flushed() {
        engine.pointee.spaces.storeStamp &+= 1
        self.pointee.tlb_generation &+= 1
        numbersChanged()
    }

    private func numbersChanged() {
        self.pointee.user_jumps = engine.pointee.spaces.current
        selectJumps()
    }

    /// The jump cache's key has the number of the address space for user code, one for all of the kernel's.
    @inline(__always) func selectJumps() {
        self.pointee.jump_generation = self.pointee.cpl == 3 ? self.pointee.user_jumps : self.pointee.kernel_jumps
    }

    private func renewKernelJumps() {
        self.pointee.kernel_jumps = engine.pointee.spaces.fresh()
        engine.pointee.spaces.isKernelLocal = false
    }

    /// Forgets where code is, everywhere.
    func dropJumps() {
        engine.pointee.spaces.renewLocal()
        renewKernelJumps()
        numbersChanged()
    }

    /// Code was found in the page at `linear`: notes what invalidates that.
    func noteCode(_ linear: UInt64, isUser: Bool) {
        if !isUser, !engine.pointee.spaces.foundGlobal { engine.pointee.spaces.isKernelLocal = true }
        if !engine.pointee.spaces.noteCode(linear, isUser: isUser) {
            let isLocal = engine.pointee.spaces.isKernelLocal
            dropJumps()
            engine.pointee.spaces.isKernelLocal = isLocal
            _ = engine.pointee.spaces.noteCode(linear, isUser: isUser)
        }
    }

    private func dropNear(global: Bool) {
        apus_clear_near(self)
        let spaces = engine
        let listed = spaces.pointee.spaces.listed
        let filled = spaces.pointee.spaces.filled
        for slot in 0..<spaces.pointee.spaces.filledCount {
            let place = Int(filled[slot])
            self.pointee.tlb_first[place].tag = emptyTag(place)
            listed[place] &= 2
        }
        spaces.pointee.spaces.filledCount = 0
        guard global else { return }
        let globals = spaces.pointee.spaces.globals
        for slot in 0..<spaces.pointee.spaces.globalCount {
            let place = Int(globals[slot])
            self.pointee.tlb_first[place].tag = emptyTag(place)
            listed[place] &= 1
        }
        spaces.pointee.spaces.globalCount = 0
    }

    /// Forgets the translations of the page at `linear`: this address space's and global ones.
    func flushPage(_ linear: UInt64) {
        serialize()
        let engine = engine
        if self.pointee.direct_pages != 0 { forgetDirectly(linear) }
        apus_clear_near(self)
        if let shift = engine.pointee.spaces.largeShift(linear) { return flushPart(linear, shift) }
        let index = Int(truncatingIfNeeded: linear &>> 12 & UInt64(APUS_TLB_ENTRIES - 1))
        for set in 0..<Int(APUS_TLB_MODES) * 2 {
            let place = set * Int(APUS_TLB_ENTRIES) + index
            self.pointee.tlb_first[place].tag = emptyTag(place)
        }
        engine.pointee.spaces.drop(linear, engine.pointee.spaces.current)
        engine.pointee.spaces.drop(linear, engine.pointee.spaces.global)
        engine.pointee.spaces.storeStamp &+= 1
        let isUsers = engine.pointee.spaces.hasUserCode(linear)
        let isKernels = engine.pointee.spaces.hasSupervisorCode(linear)
        guard isUsers || isKernels else { return }
        self.pointee.tlb_generation &+= 1
        if isUsers { renewCurrent() }
        if isKernels {
            let isLocal = engine.pointee.spaces.isKernelLocal
            renewKernelJumps()
            engine.pointee.spaces.isKernelLocal = isLocal
        }
        numbersChanged()
    }

    /// Forgets what this address space's number stands for, and the first level as it is.
    private func renewCurrent() {
        let (pcid, old) = (engine.pointee.spaces.pcid, engine.pointee.spaces.current)
        engine.pointee.spaces.numbers[pcid] = 0
        engine.pointee.spaces.enter(pcid)
        if self.pointee.direct_pages != 0 { renameDirectSpace(old) }
    }

    /// Forgets one translation of another address space, for INVPCID.
    func flushPage(_ linear: UInt64, pcid: Int) {
        if pcid == engine.pointee.spaces.pcid { return flushPage(linear) }
        // What a large page or code needs is all forgotten.
        flushSpace(pcid)
    }

    /// INVLPG where large pages are.
    private func flushPart(_ linear: UInt64, _ shift: UInt64) {
        let engine = engine
        if self.pointee.direct_pages != 0 { forgetDirectPart(linear, shift) }
        for slot in 0..<engine.pointee.spaces.filledCount {
            dropPart(Int(engine.pointee.spaces.filled[slot]), linear, shift)
        }
        for slot in 0..<engine.pointee.spaces.globalCount {
            dropPart(Int(engine.pointee.spaces.globals[slot]), linear, shift)
        }
        let isLocal = engine.pointee.spaces.isKernelLocal
        engine.pointee.spaces.global = engine.pointee.spaces.fresh()
        renewCurrent()
        renewKernelJumps()
        engine.pointee.spaces.isKernelLocal = isLocal
        flushed()
    }

    private func dropPart(_ place: Int, _ linear: UInt64, _ shift: UInt64) {
        if (self.pointee.tlb_first[place].tag ^ linear) &>> shift == 0 {
            self.pointee.tlb_first[place].tag = emptyTag(place)
        }
    }

    /// Fills sets with entries that match nothing: at first, with the one that stays empty as well.
    func clearTLB(sets: Int = Int(APUS_TLB_MODES) * 2) {
        for place in 0..<sets * Int(APUS_TLB_ENTRIES) {
            self.pointee.tlb_first[place] = apus_tlb_entry(tag: emptyTag(place), host: 0, distance: 0, unused: 0)
        }
    }

    /// Drops store translations, because a page they may name holds code now.
    func flushStores() {
        if self.pointee.direct_pages != 0 { forgetDirectly(nil) }
        apus_clear_near(self)
        for mode in 0..<Int(APUS_TLB_MODES) {
            for index in 0..<Int(APUS_TLB_ENTRIES) {
                let place = (mode * 2 + 1) * Int(APUS_TLB_ENTRIES) + index
                self.pointee.tlb_first[place].tag = emptyTag(place)
            }
        }
    }

    /// Drops store translations that lead to the host page at `host`; whether there were any. The second level looks
    /// at the code map each time.
    func flushStores(to host: UnsafeMutableRawPointer) -> Bool {
        let page = UInt64(UInt(bitPattern: host)) & ~0xFFF
        let engine = engine
        var found = apus_near_stores(self, page)
        if self.pointee.direct_pages != 0, forgetDirectStores(to: host) { found = true }
        apus_clear_near(self)
        for slot in 0..<engine.pointee.spaces.filledCount {
            if dropStore(Int(engine.pointee.spaces.filled[slot]), page) { found = true }
        }
        for slot in 0..<engine.pointee.spaces.globalCount {
            if dropStore(Int(engine.pointee.spaces.globals[slot]), page) { found = true }
        }
        return found
    }
    private func dropStore(_ place: Int, _ page: UInt64) -> Bool {
        guard place & Int(APUS_TLB_ENTRIES) != 0, self.pointee.tlb_first[place].host == page,
            self.pointee.tlb_first[place].tag != emptyTag(place)
        else { return false }
        self.pointee.tlb_first[place].tag = emptyTag(place)
        return true
    }

    /// The address of a page that never has entry `place`.
    @inline(__always) private func emptyTag(_ place: Int) -> UInt64 {
        UInt64(truncatingIfNeeded: ~place & Int(APUS_TLB_ENTRIES - 1)) &<< 12
    }
}

// MARK: - Filling

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// Translates `linear` for a data access and remembers the translation if it leads to RAM.
    func place(_ linear: UInt64, write: Bool, mode: UInt8) throws(Fault) -> Place {
        let engine = engine
        let right: UInt8 = (write ? 8 : 1) &<< mode
        if let known = apus_find_far(self.pointee.spaces, linear, right) {
            return fill(linear, known.pointee, mode: mode)
        }
        let (physical, mayWrite, _) = try walk(linear, Intent(write: write, mode: mode))
        guard let region = engine.pointee.region(physical) else {
            return Place(physical: physical, host: nil, isWritable: false, code: nil)
        }
        var found = farEntry(physical, region)
        // Who may store may load.
        found.rights = (mayWrite ? 9 : 1) &<< mode
        engine.pointee.spaces.note(linear, found)
        return fill(linear, found, mode: mode)
    }

    /// The page around `physical` as the second level holds it; rights are the caller's.
    @inline(__always) func farEntry(_ physical: UInt64, _ region: UnsafeMutablePointer<PhysicalRegion>)
        -> apus_far_entry
    {
        let page = physical & ~0xFFF
        let offset = Int(truncatingIfNeeded: page &- region.pointee.start)
        engine.pointee.spaces.touch(region.pointee.host + offset, region)
        return apus_far_entry(
            page: .max, physical: page, space: 0, rights: 0, is_writable: region.pointee.isWritable,
            host: region.pointee.host + offset,
            code: region.pointee.codeMap.map { $0 + offset &>> 12 })
    }

    @inline(__always) private func fill(_ linear: UInt64, _ known: apus_far_entry, mode: UInt8) -> Place {
        let within = linear & 0xFFF
        guard let host = known.host else {
            return Place(physical: known.physical | within, host: nil, isWritable: false, code: nil)
        }
        withUnsafePointer(to: known) { _ = apus_fill_known(self, linear, $0, mode) }
        return Place(
            physical: known.physical | within, host: host + Int(truncatingIfNeeded: within),
            isWritable: known.is_writable, code: known.code)
    }
}

// MARK: - INVPCID

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// INVPCID. SDM vol. 2.
    func invalidatePCID(_ insn: Insn) throws(Fault) {
        try requireSupervisor()
        let kind = readGPR(insn.pointee.reg, size: is64Bit ? 8 : 4)
        let (segment, address) = (Int(insn.pointee.segment), effectiveAddress(insn))
        let low = try load(segment, address, as: UInt64.self)
        let linear = try load(segment, (address &+ 8) & addressMask(insn), as: UInt64.self)
        let pcid = Int(truncatingIfNeeded: low & 0xFFF)
        let hasPCIDs = pointee.cr4 & CR4.processContext != 0
        guard kind <= 3, low &>> 12 == 0 || kind > 1, hasPCIDs || pcid == 0 || kind > 1 else {
            throw raise(Vector.generalProtection, error: 0)
        }
        switch kind {
        case 0:
            guard isCanonical(linear) else { throw raise(Vector.generalProtection, error: 0) }
            flushPage(linear, pcid: pcid)
        case 1: flushSpace(pcid)
        case 2: flushTLB(keepGlobal: false)
        default: flushTLB(keepGlobal: true)
        }
    }
}
