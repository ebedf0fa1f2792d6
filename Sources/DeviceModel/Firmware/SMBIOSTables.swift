// SMBIOS structures: who made this machine.
// Source: SMBIOS reference specification 2.8, §5.2.1 (entry point) and §7; the strings are Xen's (xl dmesg, dmidecode).
// Modelled: types 0, 1, 3, 4, 16, 17, 19, 32, 127. Not modelled: caches, slots, boards.
// Quirks: SeaBIOS copies the structures and fixes address and checksums of the entry point itself.

/// What the structures tell.
public struct SMBIOSMachine: Sendable {
    public var uuid: [UInt8]
    /// Bytes of RAM, and how much of it lies below 4 GiB.
    public var ram: UInt64
    public var lowRAM: UInt64
    public var vcpus: Int
    /// - Parameter uuid: 16 bytes in the order they are printed.
    public init(uuid: [UInt8], ram: UInt64, lowRAM: UInt64, vcpus: Int) {
        (self.uuid, self.ram, self.lowRAM, self.vcpus) = (uuid, ram, lowRAM, vcpus)
    }
}

/// The structures as fw_cfg files: `etc/smbios/smbios-tables` and `-anchor`.
public struct SMBIOSTables: Sendable {
    public private(set) var tables: [UInt8] = []
    private var count: UInt16 = 0
    private var largest = 0
    private let machine: SMBIOSMachine
    private static let version = "4.17"

    public static let tablesFile = "etc/smbios/smbios-tables"
    public static let anchorFile = "etc/smbios/smbios-anchor"

    public init(_ machine: SMBIOSMachine) {
        self.machine = machine
        addFirmware()
        addSystem()
        addChassis()
        for index in 0..<machine.vcpus { addProcessor(index) }
        addMemory()
        add(32, handle: 0x2000, [0, 0, 0, 0, 0, 0, 0], [])
        add(127, handle: 0x7F00, [], [])
    }

    /// Entry point of 31 bytes (§5.2.1).
    public var anchor: [UInt8] {
        var entry = [UInt8]("_SM_", length: 4) + [0, 0x1F, 2, 8]
        entry += UInt16(truncatingIfNeeded: largest).littleEndianBytes + [0, 0, 0, 0, 0, 0]
        var intermediate = [UInt8]("_DMI_", length: 5) + [0]
        intermediate += UInt16(truncatingIfNeeded: tables.count).littleEndianBytes
        intermediate += UInt32(0).littleEndianBytes + count.littleEndianBytes + [0x28]
        intermediate[5] = intermediate.checksum
        entry += intermediate
        entry[4] = entry.checksum
        return entry
    }

    /// A structure: header, `fields`, and its strings (§6.1.2, §6.1.3).
    private mutating func add(_ type: UInt8, handle: UInt16, _ fields: [UInt8], _ strings: [String]) {
        var structure = [type, UInt8(4 + fields.count)] + handle.littleEndianBytes + fields
        for string in strings { structure += Array(string.utf8) + [0] }
        structure += strings.isEmpty ? [0, 0] : [0]
        tables += structure
        count += 1
        largest = max(largest, structure.count)
    }

    /// Type 0 (§7.1): SeaBIOS speaks of itself as "Xen" on Xen, and so do we.
    private mutating func addFirmware() {
        var fields: [UInt8] = [1, 2] + UInt16(0xE800).littleEndianBytes + [3, 1]
        // PCI, selectable boot, boot from CD, EDD.
        let characteristics: UInt64 = 1 << 7 | 1 << 15 | 1 << 16 | 1 << 19
        fields += characteristics.littleEndianBytes + [0x01, 0x04, 4, 17, 0xFF, 0xFF]
        add(0, handle: 0, fields, ["Xen", Self.version, "01/01/2024"])
    }

    /// Type 1 (§7.2). The first three fields of the UUID are little-endian since version 2.6.
    private mutating func addSystem() {
        let printed = machine.uuid + Array(repeating: 0, count: max(0, 16 - machine.uuid.count))
        let order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15]
        let fields: [UInt8] = [1, 2, 3, 4] + order.map { printed[$0] } + [6, 0, 0]
        add(1, handle: 0x0100, fields, ["Xen", "HVM domU", Self.version, Self.text(of: printed)])
    }

    /// Type 3 (§7.4): enclosure "other", all states safe.
    private mutating func addChassis() {
        let fields: [UInt8] = [1, 1, 0, 0, 0, 3, 3, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0]
        add(3, handle: 0x0300, fields, ["Xen"])
    }

    /// Type 4 (§7.5).
    private mutating func addProcessor(_ index: Int) {
        var fields: [UInt8] = [1, 3, 1, 2] + [UInt8](repeating: 0, count: 8)
        fields += [0, 0, 0, 0] + UInt16(2000).littleEndianBytes + UInt16(2000).littleEndianBytes
        fields += [0x41, 1] + [0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF] + [0, 0, 0, 1, 1, 1]
        fields += UInt16(0x04).littleEndianBytes + UInt16(1).littleEndianBytes
        add(4, handle: 0x0400 + UInt16(truncatingIfNeeded: index), fields, ["CPU \(index)", "Xen"])
    }

    /// Types 16, 17 and 19 (§7.17, §7.18, §7.20): one module, mapped below and above the hole.
    private mutating func addMemory() {
        let kibibytes = UInt32(truncatingIfNeeded: machine.ram >> 10)
        add(16, handle: 0x1000, [1, 3, 6] + kibibytes.littleEndianBytes + [0xFE, 0xFF, 1, 0], [])
        let mebibytes = machine.ram >> 20
        let size = mebibytes < 0x7FFF ? UInt16(mebibytes) : 0x7FFF
        let extended = mebibytes < 0x7FFF ? 0 : UInt32(truncatingIfNeeded: mebibytes)
        var module: [UInt8] = [0x00, 0x10, 0xFE, 0xFF, 64, 0, 64, 0] + size.littleEndianBytes
        module += [9, 0, 1, 0, 7, 2, 0, 0, 0, 0, 0, 0, 0, 0] + extended.littleEndianBytes + [0, 0]
        add(17, handle: 0x1100, module, ["DIMM 0"])
        addMapping(0x1300, from: 0, bytes: machine.lowRAM)
        if machine.ram > machine.lowRAM { addMapping(0x1301, from: 1 << 32, bytes: machine.ram - machine.lowRAM) }
    }

    private mutating func addMapping(_ handle: UInt16, from start: UInt64, bytes: UInt64) {
        let first = UInt32(truncatingIfNeeded: start >> 10)
        let last = UInt32(truncatingIfNeeded: (start &+ bytes) >> 10) &- 1
        add(19, handle: handle, first.littleEndianBytes + last.littleEndianBytes + [0x00, 0x10, 1], [])
    }

    /// The usual form of a UUID.
    static func text(of uuid: [UInt8]) -> String {
        let digits = Array("0123456789abcdef".utf8)
        var text: [UInt8] = []
        for (index, byte) in uuid.enumerated() {
            if [4, 6, 8, 10].contains(index) { text.append(0x2D) }
            text += [digits[Int(byte >> 4)], digits[Int(byte & 0xF)]]
        }
        return String(decoding: text, as: UTF8.self)
    }
}
