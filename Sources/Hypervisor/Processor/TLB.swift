// The soft TLB: what page walks found, for each address space, and how it is forgotten.
// Source: Intel SDM vol. 3 §4.10 (PCIDs, global pages, CR3 loads, INVLPG, INVPCID).
// Modelled: all of it, with 4096 PCIDs. What the jump cache knows about an address space lives and dies with it.
// Quirks: the first level, in the vCPU, holds the present address space only; the second all of them, told apart by number.

internal import CProcessor

/// An entry of the second level: what walks to one page found.
struct FarEntry {
    /// Linear address of the page.
    var page = UInt64.max
    var physical: UInt64 = 0
    /// Number of the address space; that of all, for a global page.
    var space: UInt32 = 0
    /// 1 << mode for loads, 8 << mode for stores, 64 for a supervisor's fetches, 128 for a user's.
    var rights: UInt8 = 0
    var isWritable = false
    var host: UnsafeMutableRawPointer?
    var code: UnsafeMutablePointer<UInt8>?
}

struct AddressSpaces {
    static let farSlots = 8192
    static let places = 6 * Int(APUS_TLB_ENTRIES)
    private static let codeSlots = 65536

    let far: UnsafeMutablePointer<FarEntry>
    /// Number of each PCID's translations; 0: it has none.
    let numbers: UnsafeMutablePointer<UInt32>
    /// The present PCID, and the number of its translations.
    var pcid = 0
    var current: UInt32 = 0
    /// Number of global pages' translations.
    var global: UInt32 = 0
    private var last: UInt32 = 0
    /// Places of the first level in use: of pages of this address space, of global pages; what is listed as which.
    let filled: UnsafeMutablePointer<UInt16>
    let globals: UnsafeMutablePointer<UInt16>
    let listed: UnsafeMutablePointer<UInt8>
    var filledCount = 0
    var globalCount = 0
    /// What the last walk found: a global page, and how large it is.
    var foundGlobal = false
    var foundShift: UInt64 = 12
    /// 4 MiB, and 1 GiB, parts of the linear address space with a translation from a large page; hashed.
    private let large: UnsafeMutablePointer<Bool>
    private let huge: UnsafeMutablePointer<Bool>
    private static let largeSlots = 4096
    private static let hugeSlots = 512
    /// Pages that the jump cache and the fetch cache know something about: 1, as a supervisor's; 2, as a user's.
    private let code: UnsafeMutablePointer<UInt8>
    private var codeCount = 0
    /// A page that empty slots in front of the TLB lead to.
    let nowhere: UnsafeMutableRawPointer
    /// A supervisor has run code from a page that is not global.
    var isKernelLocal = false

    init() {
        far = .allocate(capacity: Self.farSlots)
        far.initialize(repeating: FarEntry(), count: Self.farSlots)
        numbers = .allocate(capacity: 4096)
        numbers.initialize(repeating: 0, count: 4096)
        filled = .allocate(capacity: Self.places)
        filled.initialize(repeating: 0, count: Self.places)
        globals = .allocate(capacity: Self.places)
        globals.initialize(repeating: 0, count: Self.places)
        listed = .allocate(capacity: Self.places)
        listed.initialize(repeating: 0, count: Self.places)
        large = .allocate(capacity: Self.largeSlots)
        large.initialize(repeating: false, count: Self.largeSlots)
        huge = .allocate(capacity: Self.hugeSlots)
        huge.initialize(repeating: false, count: Self.hugeSlots)
        code = .allocate(capacity: Self.codeSlots)
        code.initialize(repeating: 0, count: Self.codeSlots)
        nowhere = .allocate(byteCount: 4096, alignment: 4096)
        nowhere.initializeMemory(as: UInt8.self, repeating: 0, count: 4096)
        renewAll()
    }

    func deallocate() {
        nowhere.deallocate()
        far.deallocate()
        numbers.deallocate()
        filled.deallocate()
        globals.deallocate()
        listed.deallocate()
        large.deallocate()
        huge.deallocate()
        code.deallocate()
    }

    // MARK: Numbers

    /// A number that nothing is known under.
    mutating func fresh() -> UInt32 {
        if last == .max {
            // Once in four thousand million: what is still noted under old numbers goes, and they start anew.
            far.update(repeating: FarEntry(), count: Self.farSlots)
            last = 1 << 31
        }
        last &+= 1
        return last
    }

    /// Forgets the second level of all address spaces, global pages included.
    mutating func renewAll() {
        numbers.update(repeating: 0, count: 4096)
        global = fresh()
        current = fresh()
        numbers[pcid] = current
        large.update(repeating: false, count: Self.largeSlots)
        huge.update(repeating: false, count: Self.hugeSlots)
    }

    /// Forgets the second level of all address spaces but for global pages.
    mutating func renewLocal() {
        numbers.update(repeating: 0, count: 4096)
        current = fresh()
        numbers[pcid] = current
    }

    mutating func enter(_ number: Int) {
        pcid = number
        if numbers[number] == 0 { numbers[number] = fresh() }
        current = numbers[number]
    }

    // MARK: Second level

    @inline(__always) private func slot(_ page: UInt64, _ space: UInt32) -> UnsafeMutablePointer<FarEntry> {
        let mixed = page &>> 12 ^ page &>> 25 ^ UInt64(space) &* 0x9E5
        return far + Int(truncatingIfNeeded: mixed) & (Self.farSlots - 1)
    }

    /// What is known of the page at `linear` and allows one of `rights`.
    @inline(__always) mutating func find(_ linear: UInt64, _ rights: UInt8) -> UnsafeMutablePointer<FarEntry>? {
        let page = linear & ~0xFFF
        let own = slot(page, current)
        if own.pointee.page == page, own.pointee.space == current, own.pointee.rights & rights != 0 {
            foundGlobal = false
            return own
        }
        let shared = slot(page, global)
        if shared.pointee.page == page, shared.pointee.space == global, shared.pointee.rights & rights != 0 {
            foundGlobal = true
            return shared
        }
        return nil
    }

    /// Notes what a walk found.
    mutating func note(_ linear: UInt64, _ entry: FarEntry) {
        let page = linear & ~0xFFF
        let space = foundGlobal ? global : current
        let place = slot(page, space)
        var entry = entry
        (entry.page, entry.space) = (page, space)
        if place.pointee.page == page, place.pointee.space == space, place.pointee.physical == entry.physical {
            entry.rights |= place.pointee.rights
        }
        place.pointee = entry
        if foundShift > 12 {
            large[Self.largeSlot(linear)] = true
            if foundShift > 22 { huge[Self.hugeSlot(linear)] = true }
        }
    }

    private static func largeSlot(_ linear: UInt64) -> Int {
        Int(truncatingIfNeeded: (linear &>> 22 &* 0x9E37_79B9_7F4A_7C15) &>> 52)
    }
    private static func hugeSlot(_ linear: UInt64) -> Int {
        Int(truncatingIfNeeded: (linear &>> 30 &* 0x9E37_79B9_7F4A_7C15) &>> 55)
    }

    func drop(_ linear: UInt64, _ space: UInt32) {
        let page = linear & ~0xFFF
        let place = slot(page, space)
        if place.pointee.page == page, place.pointee.space == space { place.pointee.page = .max }
    }

    /// Log2 of the size of the part around `linear` that may have come from one large page; nil: none did.
    func largeShift(_ linear: UInt64) -> UInt64? {
        if huge[Self.hugeSlot(linear)] { return 30 }
        return large[Self.largeSlot(linear)] ? 22 : nil
    }

    // MARK: Code

    private func codeSlot(_ linear: UInt64) -> Int {
        // A kernel's addresses apart from its programs'.
        let half = (linear &>> 63) &<< 15
        return Int(truncatingIfNeeded: (linear &>> 12 &* 0x9E37_79B9_7F4A_7C15) &>> 49 | half)
    }

    /// Notes that code was looked up in a page. false: there are so many that all must be forgotten first.
    mutating func noteCode(_ linear: UInt64, isUser: Bool) -> Bool {
        let slot = codeSlot(linear)
        let bit: UInt8 = isUser ? 2 : 1
        if code[slot] & bit != 0 { return true }
        if codeCount >= Self.codeSlots / 4 {
            code.update(repeating: 0, count: Self.codeSlots)
            codeCount = 0
            return false
        }
        code[slot] |= bit
        codeCount += 1
        return true
    }

    /// Whose code was looked up in a page, perhaps: 1 a supervisor's, 2 a user's.
    func codeUse(_ linear: UInt64) -> UInt8 { code[codeSlot(linear)] }

    // MARK: First level

    @inline(__always) mutating func list(_ place: Int) {
        let bit: UInt8 = foundGlobal ? 2 : 1
        guard listed[place] & bit == 0 else { return }
        listed[place] |= bit
        if foundGlobal {
            globals[globalCount] = UInt16(truncatingIfNeeded: place)
            globalCount += 1
        } else {
            filled[filledCount] = UInt16(truncatingIfNeeded: place)
            filledCount += 1
        }
    }
}

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
        engine.pointee.storeStamp &+= 1
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
        apus_clear_near(self)
        if let shift = engine.pointee.spaces.largeShift(linear) { return flushPart(linear, shift) }
        let index = Int(truncatingIfNeeded: linear &>> 12 & UInt64(APUS_TLB_ENTRIES - 1))
        for set in 0..<Int(APUS_TLB_MODES) * 2 {
            let place = set * Int(APUS_TLB_ENTRIES) + index
            self.pointee.tlb_first[place].tag = emptyTag(place)
        }
        engine.pointee.spaces.drop(linear, engine.pointee.spaces.current)
        engine.pointee.spaces.drop(linear, engine.pointee.spaces.global)
        engine.pointee.storeStamp &+= 1
        let use = engine.pointee.spaces.codeUse(linear)
        guard use != 0 else { return }
        self.pointee.tlb_generation &+= 1
        if use & 2 != 0 { renewCurrent() }
        if use & 1 != 0 {
            let isLocal = engine.pointee.spaces.isKernelLocal
            renewKernelJumps()
            engine.pointee.spaces.isKernelLocal = isLocal
        }
        numbersChanged()
    }

    /// Forgets what this address space's number stands for, and the first level as it is.
    private func renewCurrent() {
        let pcid = engine.pointee.spaces.pcid
        engine.pointee.spaces.numbers[pcid] = 0
        engine.pointee.spaces.enter(pcid)
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
            self.pointee.tlb_first[place] = apus_tlb_entry(tag: emptyTag(place), host: 0)
        }
    }

    /// Drops store translations, because a page they may name holds code now.
    func flushStores() {
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
    @inline(__always) private func fill(
        _ linear: UInt64, _ host: UnsafeMutableRawPointer, mode: UInt8, write: Bool
    ) {
        let index = Int(truncatingIfNeeded: linear &>> 12 & UInt64(APUS_TLB_ENTRIES - 1))
        let place = (Int(mode) * 2 + (write ? 1 : 0)) * Int(APUS_TLB_ENTRIES) + index
        let hostPage = UInt64(UInt(bitPattern: host)) & ~0xFFF
        self.pointee.tlb_first[place] = apus_tlb_entry(tag: linear & ~0xFFF, host: hostPage)
        if write { engine.pointee.storeStamp &+= 1 }
        engine.pointee.spaces.list(place)
    }

    /// Translates `linear` for a data access and remembers the translation if it leads to RAM.
    func place(_ linear: UInt64, write: Bool, mode: UInt8) throws(Fault) -> Place {
        let engine = engine
        let right: UInt8 = (write ? 8 : 1) &<< mode
        if let known = engine.pointee.spaces.find(linear, right) { return fill(linear, known.pointee, mode: mode) }
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
    @inline(__always) func farEntry(_ physical: UInt64, _ region: UnsafeMutablePointer<PhysicalRegion>) -> FarEntry {
        let page = physical & ~0xFFF
        let offset = Int(truncatingIfNeeded: page &- region.pointee.start)
        return FarEntry(
            physical: page, isWritable: region.pointee.isWritable, host: region.pointee.host + offset,
            code: region.pointee.codeMap.map { $0 + offset &>> 12 })
    }

    @inline(__always) private func fill(_ linear: UInt64, _ known: FarEntry, mode: UInt8) -> Place {
        let within = linear & 0xFFF
        guard let host = known.host else {
            return Place(physical: known.physical | within, host: nil, isWritable: false, code: nil)
        }
        fill(linear, host, mode: mode, write: false)
        if known.rights & 8 &<< mode != 0, known.isWritable, known.code.map({ $0.pointee == 0 }) ?? true {
            fill(linear, host, mode: mode, write: true)
        }
        return Place(
            physical: known.physical | within, host: host + Int(truncatingIfNeeded: within),
            isWritable: known.isWritable, code: known.code)
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
