import DomainBuilder
import Foundation
import Testing

/// RAM as a dictionary of pages.
private struct Pages: DomainMemory {
    var size: UInt64
    var pages: [UInt64: [UInt8]] = [:]

    mutating func write(_ bytes: ArraySlice<UInt8>, at address: UInt64) {
        var at = address
        var left = bytes
        while !left.isEmpty {
            let offset = Int(at & 4095)
            let part = left.prefix(4096 - offset)
            pages[at >> 12, default: [UInt8](repeating: 0, count: 4096)]
                .replaceSubrange(offset..<(offset + part.count), with: part)
            left = left.dropFirst(part.count)
            at += UInt64(part.count)
        }
    }

    func number(_ address: UInt64) -> UInt64 {
        let page = pages[address >> 12] ?? [UInt8](repeating: 0, count: 4096)
        return (0..<8).reduce(0) { $0 | UInt64(page[Int(address & 4095) + $1]) << UInt64($1 * 8) }
    }

    /// What the page tables at `root` map `virtual` to.
    func translate(_ virtual: UInt64, root: UInt64) -> (address: UInt64, isWritable: Bool)? {
        var table = root
        var entry: UInt64 = 0
        for shift in [UInt64(39), 30, 21, 12] {
            entry = number(table + (virtual >> shift & 511) * 8)
            guard entry & 1 != 0 else { return nil }
            table = entry & 0xF_FFFF_FFFF_F000
        }
        return (table | virtual & 4095, entry & 2 != 0)
    }
}

@Suite("Domain builder") struct BuilderTests {
    static let kernel = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
        .deletingLastPathComponent().appendingPathComponent(".build/guests/vmlinuz")
    static var hasKernel: Bool { FileManager.default.fileExists(atPath: kernel.path) }

    @Test("A stock Debian kernel is laid out as Xen lays it out", .enabled(if: hasKernel))
    func debian() throws {
        let image = try KernelImage([UInt8](Data(contentsOf: Self.kernel)))
        #expect(image.text(6) == "linux")
        #expect(image.number(3) == 0xFFFF_FFFF_8000_0000)
        var memory = Pages(size: 256 << 20)
        let ramdisk = [UInt8](repeating: 0xA5, count: 100_000)
        let builder = try PVBuilder(
            kernel: image, ramdisk: ramdisk[...], commandLine: "console=hvc0", memory: memory.size)
        let start = try builder.build(into: &memory, storePort: 1, consolePort: 2, sharedInfoFrame: 70_000)

        #expect(memory.translate(start.entry, root: start.pageTableRoot)?.address == start.entry & 0x7FFF_FFFF)
        let info = try #require(memory.translate(start.startInfo, root: start.pageTableRoot)).address
        #expect(memory.number(info) == 0x2D30_2E33_2D6E_6578, "xen-3.0-")
        #expect(memory.number(info + 32) == 65_536, "nr_pages")
        #expect(memory.number(info + 40) == 70_000 << 12)
        #expect(memory.number(info + 48) == 8, "SIF_MOD_START_PFN")
        let tables = memory.number(info + 88)
        let root = try #require(memory.translate(tables, root: start.pageTableRoot))
        #expect(root.address == start.pageTableRoot && !root.isWritable, "page tables are mapped read-only")
        let list = memory.number(info + 104)
        #expect(list == 0x80_0000_0000, "the p2m list is where INIT_P2M says")
        let entry = try #require(memory.translate(list + 8 * 12_345, root: start.pageTableRoot)).address
        #expect(memory.number(entry) == 12_345)
        let module = memory.number(info + 112) << 12
        #expect(memory.number(module) == 0xA5A5_A5A5_A5A5_A5A5)
        #expect(memory.number(info + 120) == 100_000)
        #expect(memory.translate(start.stackTop - 8, root: start.pageTableRoot)?.isWritable == true)
    }

    @Test("The same kernel starts as PVH", .enabled(if: hasKernel))
    func pvh() throws {
        let image = try KernelImage([UInt8](Data(contentsOf: Self.kernel)))
        var memory = Pages(size: 256 << 20)
        let builder = try PVHBuilder(kernel: image, ramdisk: [1, 2, 3], commandLine: "quiet")
        let map = [MemoryMapEntry(address: 0, size: memory.size, type: 1)]
        let start = try builder.build(into: &memory, map: map, acpi: 0)
        #expect(memory.number(start.startInfo) & 0xFFFF_FFFF == 0x336E_C578)
        #expect(memory.number(memory.number(start.startInfo + 40) + 8) == memory.size)
    }

    @Test(
        "What is no kernel is refused with a reason",
        arguments: [
            [UInt8](repeating: 0, count: 4096), Array("#!/bin/sh\n".utf8), [],
            [0x7F, 0x45, 0x4C, 0x46, 2, 1, 1] + [UInt8](repeating: 0xFF, count: 2000),
        ])
    func garbage(bytes: [UInt8]) {
        #expect(throws: KernelError.self) { try KernelImage(bytes) }
    }

    @Test("A kernel for another machine is refused by its number", arguments: [(2, 183), (1, 40), (2, 3), (1, 62)])
    func foreign(kind: UInt8, machine: UInt16) {
        var bytes: [UInt8] = [0x7F, 0x45, 0x4C, 0x46, kind, 1, 1] + [UInt8](repeating: 0, count: 2000)
        (bytes[18], bytes[19]) = (UInt8(machine & 0xFF), UInt8(machine >> 8))
        #expect(throws: KernelError.wrongMachine(machine)) { try KernelImage(bytes) }
    }

    @Test("A damaged kernel never traps", .enabled(if: hasKernel))
    func damaged() throws {
        let file = [UInt8](try Data(contentsOf: Self.kernel))
        for cut in [0x210, 0x300, 5_000, file.count / 2] {
            #expect(throws: KernelError.self) { try KernelImage(Array(file.prefix(cut))) }
        }
    }

    @Test("A domain that is too small for its kernel is told how much it takes", .enabled(if: hasKernel))
    func tooSmall() throws {
        let image = try KernelImage([UInt8](Data(contentsOf: Self.kernel)))
        let builder = try PVBuilder(kernel: image, ramdisk: [], commandLine: "", memory: 32 << 20)
        var memory = Pages(size: 32 << 20)
        #expect(throws: KernelError.self) {
            try builder.build(into: &memory, storePort: 1, consolePort: 2, sharedInfoFrame: 9_000)
        }
    }
}
