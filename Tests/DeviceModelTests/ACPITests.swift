import Foundation
import Testing

@testable import Firmware

/// The tables after SeaBIOS has carried out the linker script, at a made-up address.
private struct Loaded {
    var memory: [String: (base: UInt64, bytes: [UInt8])] = [:]

    init(_ tables: ACPITables) {
        let files = [ACPITables.tablesFile: tables.tables, ACPITables.rsdpFile: tables.rsdp]
        var next: UInt64 = 0x1000_0000
        for entry in stride(from: 0, to: tables.loader.count, by: 128).map({ tables.loader[$0..<($0 + 128)] }) {
            let bytes = Array(entry)
            let file = Self.name(bytes, 4)
            switch bytes[0] {
            case 1:
                memory[file] = (next, files[file] ?? [])
                next += 0x10_0000
            case 2:
                let target = memory[Self.name(bytes, 60)]?.base ?? 0
                let offset = Int(Self.number(bytes, 116, 4))
                let size = Int(bytes[120])
                let value = Self.number(memory[file]?.bytes ?? [], offset, size) + target
                for index in 0..<size {
                    memory[file]?.bytes[offset + index] = UInt8(truncatingIfNeeded: value >> UInt64(index * 8))
                }
            case 3:
                let (place, start, count) = (
                    Int(Self.number(bytes, 60, 4)), Int(Self.number(bytes, 64, 4)), Int(Self.number(bytes, 68, 4))
                )
                let sum = memory[file]?.bytes[start..<(start + count)].reduce(0, &+) ?? 0
                memory[file]?.bytes[place] &-= sum
            default: Issue.record("unknown command \(bytes[0])")
            }
        }
    }

    static func name(_ bytes: [UInt8], _ offset: Int) -> String {
        String(decoding: bytes[offset..<(offset + 56)].prefix { $0 != 0 }, as: UTF8.self)
    }
    static func number(_ bytes: [UInt8], _ offset: Int, _ size: Int) -> UInt64 {
        (0..<size).reduce(0) { $0 | UInt64(bytes[offset + $1]) << UInt64($1 * 8) }
    }
    /// The table at an address, by its own length.
    func table(at address: UInt64) -> [UInt8] {
        guard let (base, bytes) = memory[ACPITables.tablesFile], address >= base else { return [] }
        let start = Int(address - base)
        guard start + 8 <= bytes.count else { return [] }
        return Array(bytes[start..<min(bytes.count, start + Int(Self.number(bytes, start + 4, 4)))])
    }
}

@Suite("ACPI tables") struct ACPITests {
    let tables = ACPITables(ACPIMachine(vcpus: 3, lowRAM: 0x4000_0000))

    @Test("From RSDP every table is found by both roots, with right checksums")
    func checksums() throws {
        let loaded = Loaded(tables)
        let rsdp = try #require(loaded.memory[ACPITables.rsdpFile]?.bytes)
        #expect(rsdp.prefix(20).reduce(0, &+) == 0 && rsdp.reduce(0, &+) == 0)
        for (field, size, width) in [(16, 4, 4), (24, 8, 8)] {
            let root = loaded.table(at: Loaded.number(rsdp, field, size))
            #expect(root.reduce(0, &+) == 0)
            let entries = stride(from: 36, to: root.count, by: width).map { Loaded.number(root, $0, width) }
            let listed = entries.map { loaded.table(at: $0) }
            #expect(listed.map { String(decoding: $0.prefix(4), as: UTF8.self) } == ["FACP", "SSDT", "APIC", "HPET"])
            for table in listed { #expect(table.reduce(0, &+) == 0) }
            let fadt = listed[0]
            #expect(fadt.count == 244)
            let dsdt = loaded.table(at: Loaded.number(fadt, 40, 4))
            #expect(dsdt.prefix(4).elementsEqual(Array("DSDT".utf8)) && dsdt.reduce(0, &+) == 0)
            #expect(Loaded.number(fadt, 140, 8) == Loaded.number(fadt, 40, 4))
            let facs = Loaded.number(fadt, 36, 4)
            #expect(facs % 64 == 0 && loaded.table(at: facs).prefix(4).elementsEqual(Array("FACS".utf8)))
        }
    }

    @Test("Memory for PCI starts above RAM")
    func window() {
        #expect(ACPITables.windowStart(0x4000_0000) == 0x8000_0000)
        #expect(ACPITables.windowStart(0x8000_0001) == 0xC000_0000)
        #expect(ACPITables.windowStart(0xE000_0000) == 0xE000_0000)
        let patched = DSDT.table(memoryWindow: 0xC000_0000)
        #expect(patched.count == DSDT.compiled.count && patched != DSDT.compiled)
        #expect(zip(patched, DSDT.compiled).count { $0 != $1 } <= 5, "four bytes and the checksum")
    }

    @Test("One processor object and one local APIC for each vCPU")
    func processors() {
        let ssdt = ProcessorTable.ssdt(vcpus: 32)
        #expect(ssdt.reduce(0, &+) == 0)
        #expect(ProcessorTable.packageLength(62) == [63])
        #expect(ProcessorTable.packageLength(62 + 1) == [0x41, 0x04])
        #expect(ProcessorTable.packageLength(0x1000) == [0x83, 0x00, 0x01])
    }

    @Test("The DSDT in the sources is what iasl makes of firmware/dsdt.asl")
    func recompiled() throws {
        let compiler = "/usr/bin/iasl"
        guard FileManager.default.isExecutableFile(atPath: compiler) else { return }
        let root = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
            .deletingLastPathComponent()
        let output = FileManager.default.temporaryDirectory.appending(path: "apus-dsdt-\(UUID().uuidString)")
        let process = Process()
        process.executableURL = URL(filePath: compiler)
        process.arguments = ["-vs", "-p", output.path(), root.appending(path: "firmware/dsdt.asl").path()]
        process.standardOutput = FileHandle.nullDevice
        process.standardError = FileHandle.nullDevice
        try process.run()
        process.waitUntilExit()
        let file = output.appendingPathExtension("aml")
        defer { try? FileManager.default.removeItem(at: file) }
        let made = [UInt8](try Data(contentsOf: file))
        // Checksum and compiler revision may differ.
        #expect(made.count == DSDT.compiled.count && made.dropFirst(36) == DSDT.compiled.dropFirst(36))
    }
}
