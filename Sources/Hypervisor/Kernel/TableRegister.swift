// Which frames of a PV domain are page tables, noted when the guest pins, loads or links them.
// Source: Xen xen/arch/x86/mm.c (page types), simplified: the engine checks each frame that it maps anyway, so types
// need not be counted to be safe; they only tell which pages the kernel may write though it maps them read-only.
// Quirks: the upper half of top-level tables is shared by all address spaces, and stays noted.

internal import Processor

struct TableRegister {
    let memory: ParavirtualMemory
    /// A page of RAM by its frame.
    let page: (UInt64) -> GuestArea?

    static let present: UInt64 = 1
    static let large: UInt64 = 0x80
    static func frame(_ entry: UInt64) -> UInt64 { (entry & 0x000F_FFFF_FFFF_F000) >> 12 }
    /// Slots of a top-level table that are the hypervisor's, and the first of those above them.
    static let reserved = 256..<272

    /// Notes a table and those below it. false: not RAM.
    @discardableResult func note(_ frame: UInt64, level: UInt8) -> Bool {
        guard let area = page(frame) else { return false }
        memory[frame] = level
        guard level > 1 else { return true }
        each(area, level) { index, next in
            if level == 4, index >= 256, memory[next] == 3 { return }
            note(next, level: level - 1)
        }
        return true
    }

    /// Forgets a table and those below it that only its programs use.
    func forget(_ frame: UInt64) {
        let level = memory[frame]
        guard level != 0, let area = page(frame) else { return }
        memory[frame] = 0
        guard level > 1 else { return }
        each(area, level) { index, next in
            if level != 4 || index < 256, memory[next] == level - 1 { forget(next) }
        }
    }

    private func each(_ area: GuestArea, _ level: UInt8, _ body: (Int, UInt64) -> Void) {
        for index in 0..<512 where level != 4 || !Self.reserved.contains(index) {
            let entry: UInt64 = area.load(index * 8)
            if entry & Self.present != 0, level == 4 || entry & Self.large == 0 { body(index, Self.frame(entry)) }
        }
    }

    /// The physical address of the last level's entry for a linear address; nil: a level above is missing.
    func leafEntry(_ linear: UInt64, root: UInt64) -> UInt64? {
        var table = root
        for shift in [UInt64(39), 30, 21] {
            let slot = Int(linear >> shift & 511)
            guard let entry: UInt64 = page(table >> 12)?.load(slot * 8), entry & Self.present != 0,
                entry & Self.large == 0
            else { return nil }
            table = Self.frame(entry) << 12
        }
        return table + (linear >> 12 & 511) * 8
    }
}
