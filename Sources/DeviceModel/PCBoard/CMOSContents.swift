// The CMOS bytes that firmware reads.
// Source: SeaBIOS src/hw/rtc.h (addresses) and the places that read them; Ralf Brown's CMOS.LST.
// Modelled: memory sizes, floppy types, equipment, boot order, number of CPUs, disk translation.
// Quirks: sizes are also in fw_cfg; SeaBIOS wants RAM below 4 GiB from here all the same.

/// What goes into the RTC's RAM at power-on.
struct CMOSContents {
    var ram: UInt64
    var lowRAM: UInt64
    var vcpus: Int
    /// Letters of xl.cfg's `boot`.
    var boot: String
    /// Types of drives A and B: 0 for none, 4 for 1.44 MB.
    var floppies: [UInt8]
    /// IDE positions (channel * 2 + unit) of disks that BIOS reaches by translation only.
    var disks: Set<Int> = []

    var bytes: [UInt8: UInt8] {
        var bytes: [UInt8: UInt8] = [:]
        func put(_ address: UInt8, _ value: UInt64, count: UInt8 = 1) {
            for index in 0..<count { bytes[address + index] = UInt8(truncatingIfNeeded: value >> UInt64(index * 8)) }
        }
        // The first drive's type is in the high half.
        put(0x10, floppies.prefix(2).reduce(0) { $0 << 4 | UInt64($1 & 0xF) })
        // Coprocessor, mouse, and how many floppy drives; the video adapter tells for itself.
        let drives = UInt64(floppies.count { $0 != 0 })
        put(0x14, 0x06 | (drives > 0 ? 0x01 | (drives - 1) << 6 : 0))
        put(0x15, 640, count: 2)
        let extended = min((lowRAM >> 10) &- 1024, 0xFFFF)
        put(0x17, extended, count: 2)
        put(0x30, extended, count: 2)
        put(0x34, lowRAM > 16 << 20 ? (lowRAM - 16 << 20) >> 16 : 0, count: 2)
        put(0x5B, (ram - lowRAM) >> 16, count: 3)
        put(0x5F, UInt64(max(vcpus, 1) - 1))
        let order = boot.compactMap { Self.code[$0] }
        put(0x3D, UInt64((order.first ?? 0) | (order.dropFirst().first ?? 0) << 4))
        // Bit 0: a floppy's boot sector need not end in 55 AA.
        put(0x38, UInt64(1 | (order.dropFirst(2).first ?? 0) << 4))
        // Two bits a drive: 1 is LBA translation.
        put(0x39, disks.reduce(0) { $0 | 1 << UInt64($1 * 2) })
        return bytes
    }

    private static let code: [Character: UInt8] = ["a": 1, "c": 2, "d": 3, "n": 4]
}
