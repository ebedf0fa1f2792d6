// The second level of the soft TLB: what page walks found, for each address space, told apart by numbers.
// Source: Intel SDM vol. 3 §4.10 (PCIDs, global pages).
// Modelled: 4096 PCIDs. What the jump cache knows about an address space lives and dies with its number.
// Quirks: which pages code was looked up in is known of eight PCIDs only; the others have no number meanwhile.

internal import CProcessor

struct AddressSpaces {
    static let places = 6 * Int(APUS_TLB_ENTRIES)
    private static let codeSlots = 65536

    /// What translated code reaches, too; see spaces.h.
    let shared: UnsafeMutablePointer<apus_spaces>
    /// Number of each PCID's translations; 0: it has none.
    let numbers: UnsafeMutablePointer<UInt32>
    /// The present PCID.
    var pcid = 0
    private var last: UInt32 = 0
    /// How large a page the last walk found.
    var foundShift: UInt64 = 12
    /// 4 MiB, and 1 GiB, parts of the linear address space with a translation from a large page; hashed.
    private let large: UnsafeMutablePointer<Bool>
    private let huge: UnsafeMutablePointer<Bool>
    private static let largeSlots = 4096
    private static let hugeSlots = 512
    /// Pages that the jump cache and the fetch cache know something about as a supervisor's.
    private let code: UnsafeMutablePointer<Bool>
    private var codeCount = 0
    /// The same as a user's, for the PCIDs that have a number now: hashed, a bit each; and whose they are.
    private let userCode: UnsafeMutablePointer<UInt64>
    private let owners: UnsafeMutablePointer<Int>
    private static let filters = 8
    private static let filterWords = 128
    /// Huge pages of the host that walks led into, hashed: number, and from bit 0 how many walks more make it wanted.
    private let touched: UnsafeMutablePointer<UInt64>
    private static let touchedSlots = 4096
    private static let wanted: UInt64 = 256
    /// A page that empty slots in front of the TLB lead to.
    let nowhere: UnsafeMutableRawPointer
    /// A supervisor has run code from a page that is not global.
    var isKernelLocal = false

    init() {
        shared = .allocate(capacity: 1)
        shared.initialize(to: Self.shared())
        numbers = .allocate(capacity: 4096)
        numbers.initialize(repeating: 0, count: 4096)
        large = .allocate(capacity: Self.largeSlots)
        large.initialize(repeating: false, count: Self.largeSlots)
        huge = .allocate(capacity: Self.hugeSlots)
        huge.initialize(repeating: false, count: Self.hugeSlots)
        code = .allocate(capacity: Self.codeSlots)
        code.initialize(repeating: false, count: Self.codeSlots)
        userCode = .allocate(capacity: Self.filters * Self.filterWords)
        userCode.initialize(repeating: 0, count: Self.filters * Self.filterWords)
        owners = .allocate(capacity: Self.filters)
        for filter in 0..<Self.filters { (owners + filter).initialize(to: filter) }
        touched = .allocate(capacity: Self.touchedSlots)
        touched.initialize(repeating: 0, count: Self.touchedSlots)
        nowhere = .allocate(byteCount: 4096, alignment: 4096)
        nowhere.initializeMemory(as: UInt8.self, repeating: 0, count: 4096)
        renewAll()
    }

    func deallocate() {
        nowhere.deallocate()
        touched.deallocate()
        far.deallocate()
        filled.deallocate()
        globals.deallocate()
        listed.deallocate()
        shared.deallocate()
        numbers.deallocate()
        large.deallocate()
        huge.deallocate()
        code.deallocate()
        userCode.deallocate()
        owners.deallocate()
    }

    // MARK: Numbers

    /// A number that nothing is known under.
    mutating func fresh() -> UInt32 {
        if last == .max {
            // Once in four thousand million: what is still noted under old numbers goes, and they start anew.
            far.update(repeating: .empty, count: Int(APUS_FAR_SLOTS))
            last = 1 << 31
        }
        last &+= 1
        return last
    }

    /// Forgets the second level of all address spaces, global pages included.
    mutating func renewAll() {
        numbers.update(repeating: 0, count: 4096)
        global = fresh()
        begin()
        large.update(repeating: false, count: Self.largeSlots)
        huge.update(repeating: false, count: Self.hugeSlots)
    }

    /// Forgets the second level of all address spaces but for global pages.
    mutating func renewLocal() {
        numbers.update(repeating: 0, count: 4096)
        begin()
    }

    mutating func enter(_ number: Int) {
        pcid = number
        if numbers[number] == 0 { begin() } else { current = numbers[number] }
    }

    /// Gives the present PCID a new number. Another one that has its filter is forgotten.
    private mutating func begin() {
        let filter = pcid % Self.filters
        if owners[filter] != pcid { numbers[owners[filter]] = 0 }
        owners[filter] = pcid
        (userCode + filter * Self.filterWords).update(repeating: 0, count: Self.filterWords)
        current = fresh()
        numbers[pcid] = current
    }

    // MARK: The host's pages

    /// A walk led to the page at `host`, in a region of the guest's memory. Where many do, the host is to give a huge page, once:
    /// then few entries of its TLB do. A busy host takes milliseconds for one, so not for memory that is hardly used.
    @inline(__always) func touch(_ host: UnsafeMutableRawPointer, _ region: UnsafeMutablePointer<PhysicalRegion>) {
        let number = UInt64(UInt(bitPattern: host)) &>> 21
        let slot = touched + Int(truncatingIfNeeded: number) & (Self.touchedSlots - 1)
        guard slot.pointee &>> 16 == number else {
            slot.pointee = number &<< 16 | Self.wanted
            return
        }
        if slot.pointee & 0xFFFF == 0 { return }
        slot.pointee &-= 1
        if slot.pointee & 0xFFFF != 0 { return }
        apus_huge_touch(host, region.pointee.host, Int(truncatingIfNeeded: region.pointee.bytes))
    }

    // MARK: Second level

    /// Notes what a walk found.
    func note(_ linear: UInt64, _ entry: apus_far_entry) {
        let page = linear & ~0xFFF
        let space = foundGlobal ? global : current
        let place = apus_far_slot(shared, page, space)
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
        let place = apus_far_slot(shared, page, space)
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

    private func filterBit(_ linear: UInt64) -> (word: Int, bit: UInt64) {
        let hash = Int(truncatingIfNeeded: (linear &>> 12 &* 0x9E37_79B9_7F4A_7C15) &>> 51)
        return (pcid % Self.filters * Self.filterWords + hash >> 6, 1 &<< UInt64(hash & 63))
    }

    /// Notes that code was looked up in a page. false: there are so many that all must be forgotten first.
    mutating func noteCode(_ linear: UInt64, isUser: Bool) -> Bool {
        if isUser {
            let (word, bit) = filterBit(linear)
            userCode[word] |= bit
            return true
        }
        let slot = codeSlot(linear)
        if code[slot] { return true }
        if codeCount >= Self.codeSlots / 4 {
            code.update(repeating: false, count: Self.codeSlots)
            codeCount = 0
            return false
        }
        code[slot] = true
        codeCount += 1
        return true
    }

    /// Whether a user's code was looked up in a page, perhaps.
    func hasUserCode(_ linear: UInt64) -> Bool {
        let (word, bit) = filterBit(linear)
        return userCode[word] & bit != 0
    }
    /// Whether a supervisor's was.
    func hasSupervisorCode(_ linear: UInt64) -> Bool { code[codeSlot(linear)] }
}

// MARK: - What translated code reaches, too

extension AddressSpaces {
    private static func shared() -> apus_spaces {
        let spaces = apus_spaces(
            far: .allocate(capacity: Int(APUS_FAR_SLOTS)), current: 0, global: 0, filled: .allocate(capacity: places),
            globals: .allocate(capacity: places), listed: .allocate(capacity: places), filled_count: 0, global_count: 0,
            store_stamp: 0, found_global: false)
        spaces.far.initialize(repeating: .empty, count: Int(APUS_FAR_SLOTS))
        spaces.filled.initialize(repeating: 0, count: places)
        spaces.globals.initialize(repeating: 0, count: places)
        spaces.listed.initialize(repeating: 0, count: places)
        return spaces
    }

    private var far: UnsafeMutablePointer<apus_far_entry> { shared.pointee.far }
    /// Places of the first level in use: of pages of this address space, of global pages; what is listed as which.
    var filled: UnsafeMutablePointer<UInt16> { shared.pointee.filled }
    var globals: UnsafeMutablePointer<UInt16> { shared.pointee.globals }
    var listed: UnsafeMutablePointer<UInt8> { shared.pointee.listed }
    var filledCount: Int {
        get { Int(shared.pointee.filled_count) }
        nonmutating set { shared.pointee.filled_count = UInt32(truncatingIfNeeded: newValue) }
    }
    var globalCount: Int {
        get { Int(shared.pointee.global_count) }
        nonmutating set { shared.pointee.global_count = UInt32(truncatingIfNeeded: newValue) }
    }
    /// Number of the present PCID's translations, and of global pages'.
    var current: UInt32 {
        get { shared.pointee.current }
        nonmutating set { shared.pointee.current = newValue }
    }
    var global: UInt32 {
        get { shared.pointee.global }
        nonmutating set { shared.pointee.global = newValue }
    }
    /// What the last walk or search found is a global page.
    var foundGlobal: Bool {
        get { shared.pointee.found_global }
        nonmutating set { shared.pointee.found_global = newValue }
    }
    /// Changes when a store translation is made or dropped.
    var storeStamp: UInt32 {
        get { shared.pointee.store_stamp }
        nonmutating set { shared.pointee.store_stamp = newValue }
    }
}

extension apus_far_entry {
    /// An entry of no page.
    static var empty: apus_far_entry {
        apus_far_entry(page: .max, physical: 0, space: 0, rights: 0, is_writable: false, host: nil, code: nil)
    }
}
