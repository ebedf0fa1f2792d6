import Testing

@testable import Firmware

@Suite("SMBIOS") struct SMBIOSTests {
    let tables = SMBIOSTables(
        SMBIOSMachine(uuid: Array(0...15), ram: 5 << 30, lowRAM: 0xE000_0000, vcpus: 2))

    /// Type, formatted part and strings of every structure.
    private var structures: [(type: UInt8, fields: [UInt8], strings: [String])] {
        var found: [(UInt8, [UInt8], [String])] = []
        var rest = tables.tables[...]
        while rest.count >= 4 {
            let length = Int(rest[rest.startIndex + 1])
            let fields = Array(rest.prefix(length))
            rest = rest.dropFirst(length)
            var strings: [String] = []
            while let end = rest.firstIndex(of: 0), end > rest.startIndex {
                strings.append(String(decoding: rest[rest.startIndex..<end], as: UTF8.self))
                rest = rest[(end + 1)...]
            }
            rest = rest.dropFirst(strings.isEmpty ? 2 : 1)
            found.append((fields[0], fields, strings))
        }
        return found
    }

    @Test("Both parts of the entry point sum to zero, and it counts the structures")
    func anchor() {
        let anchor = tables.anchor
        #expect(anchor.count == 31 && anchor.reduce(0, &+) == 0)
        #expect(anchor[16..<31].reduce(0, &+) == 0)
        #expect(Int(anchor[28]) | Int(anchor[29]) << 8 == structures.count)
        #expect(Int(anchor[22]) | Int(anchor[23]) << 8 == tables.tables.count)
    }

    @Test("The structures are those of a Xen HVM domain, and the last one ends the list")
    func contents() throws {
        #expect(structures.map(\.type) == [0, 1, 3, 4, 4, 16, 17, 19, 19, 32, 127])
        let lengths = Dictionary(structures.map { ($0.type, $0.fields.count) }) { first, _ in first }
        #expect(lengths == [0: 24, 1: 27, 3: 21, 4: 42, 16: 15, 17: 34, 19: 15, 32: 11, 127: 4])
        let system = try #require(structures.first { $0.type == 1 })
        #expect(system.strings.prefix(3) == ["Xen", "HVM domU", "4.17"])
        #expect(system.fields[8..<24].elementsEqual([3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15]))
        #expect(system.strings[3] == "00010203-0405-0607-0809-0a0b0c0d0e0f")
    }
}
