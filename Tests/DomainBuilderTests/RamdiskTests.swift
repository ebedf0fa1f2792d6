import DomainBuilder
import Foundation
import Testing

@Suite("Ramdisks") struct RamdiskTests {
    /// A cpio archive of one file and its trailer.
    private static func archive(_ name: String, _ bytes: [UInt8]) -> [UInt8] {
        func entry(_ name: String, _ bytes: [UInt8]) -> [UInt8] {
            let numbers = [1, 0x81A4, 0, 0, 1, 0, bytes.count, 0, 0, 0, 0, name.utf8.count + 1, 0]
            let header = "070701" + numbers.map { String(format: "%08X", $0) }.joined()
            func padded(_ bytes: [UInt8]) -> [UInt8] { bytes + [UInt8](repeating: 0, count: (4 - bytes.count % 4) % 4) }
            return padded(Array(header.utf8) + Array(name.utf8) + [0]) + padded(bytes)
        }
        let all = entry(name, bytes) + entry("TRAILER!!!", [])
        return all + [UInt8](repeating: 0, count: (512 - all.count % 512) % 512)
    }

    private static let noise: [UInt8] = {
        var state: UInt32 = 7
        return (0..<200_000).map { _ in
            state = state &* 1_664_525 &+ 1_013_904_223
            return UInt8(state >> 28)
        }
    }()

    private func packed(_ tool: String, _ bytes: [UInt8]) throws -> [UInt8] {
        let file = FileManager.default.temporaryDirectory.appendingPathComponent("apus-ramdisk-\(UUID().uuidString)")
        defer { try? FileManager.default.removeItem(at: file) }
        try Data(bytes).write(to: file)
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
        process.arguments = [tool, "-q", "-c", file.path]
        let output = Pipe()
        process.standardOutput = output
        try process.run()
        let data = output.fileHandleForReading.readDataToEndOfFile()
        process.waitUntilExit()
        #expect(process.terminationStatus == 0)
        return Array(data)
    }

    private func fault(_ bytes: [UInt8]) -> KernelError? {
        do throws(KernelError) {
            try Ramdisk.check(bytes[...])
            return nil
        } catch { return error }
    }

    @Test("A whole one is taken, one that was cut short is told", arguments: ["gzip", "xz", "zstd"])
    func compressed(tool: String) throws {
        let main = try packed(tool, Self.archive("init", Self.noise))
        // As Debian's are where the processor has new microcode: a plain archive first.
        let early = Self.archive("kernel/x86/microcode/GenuineIntel.bin", Array(Self.noise.prefix(3000)))
        for whole in [main, early + main, main + [UInt8](repeating: 0, count: 700)] { #expect(fault(whole) == nil) }
        for cut in [8, 20, main.count / 3, main.count - 9, main.count - 1] {
            #expect(fault(Array(main.prefix(cut))) == .truncated("\(tool) data"), "\(cut) bytes")
            #expect(fault(early + main.prefix(cut)) != nil, "\(cut) bytes behind another archive")
        }
    }

    @Test("So is an archive that is not packed") func plain() {
        let whole = Self.archive("init", Self.noise)
        #expect(fault(whole) == nil && fault(whole + whole) == nil)
        for cut in [50, 112, 1000, 200_100] {
            #expect(fault(Array(whole.prefix(cut))) == .truncated("cpio archive"), "\(cut) bytes")
        }
        var damaged = whole
        damaged[6 + 6 * 8] = UInt8(ascii: "x")
        #expect(fault(damaged) == .damaged("cpio"))
    }

    @Test("What no Linux would take for a ramdisk is the kernel's own affair") func other() {
        for bytes in [[], [0, 0, 0], Array("multiboot module".utf8), [UInt8](repeating: 0, count: 4096)] {
            #expect(fault(bytes) == nil)
        }
    }
}
