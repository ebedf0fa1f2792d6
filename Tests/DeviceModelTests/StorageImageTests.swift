import DeviceContract
import Foundation
import Glibc
import Host
import Images
import Machine
import Testing

@testable import Storage

@Suite("Disk images") struct StorageImageTests {
    private func reason(_ path: String, _ use: DiskImage.Use, readOnly: Bool = true) throws -> ImageFailure.Reason? {
        let reactor = try Reactor()
        do {
            _ = try DiskImage(path, for: use, readOnly: readOnly, on: reactor)
            return nil
        } catch { return error.reason }
    }

    @Test("What cannot be a medium is told in one sentence") func failures() throws {
        #expect(try reason("/nonexistent/x.iso", .cdrom) == .missing)
        #expect(try reason("/tmp", .cdrom) == .notAnImage)
        #expect(try reason("/dev/null", .cdrom) == .notAnImage)
        let empty = try ScratchFile([])
        #expect(try reason(empty.path, .cdrom) == .empty)
        let short = try ScratchFile([UInt8](repeating: 1, count: 100))
        #expect(try reason(short.path, .cdrom) == .truncated(holds: 100, needs: 34_816))
        let qcow = try ScratchFile(Array("QFI".utf8) + [0xFB] + [UInt8](repeating: 0, count: 1000))
        #expect(try reason(qcow.path, .disk) == .unsupported(format: "qcow2"))
        let large = try ScratchFile([UInt8](repeating: 0, count: 3_000_000))
        #expect(try reason(large.path, .floppy) == .notAFloppy(size: 3_000_000))
        #expect(
            ImageFailure("/x.iso", .truncated(holds: 5, needs: 9)).description
                == "disk image /x.iso is truncated: it holds 5 bytes of a volume of 9")
    }

    @Test("An ISO shorter than its volume says so, unless only padding is missing") func truncatedISO() throws {
        var image = [UInt8](repeating: 0, count: 40 * 2048)
        image.replaceSubrange(32_768..<32_774, with: [1] + Array("CD001".utf8))
        image[32_768 + 80] = 40
        image[32_768 + 81] = 1
        image[32_768 + 129] = 8
        let file = try ScratchFile(image)
        #expect(try reason(file.path, .cdrom) == .truncated(holds: 81_920, needs: 296 * 2048))
        image[32_768 + 81] = 0
        image[32_768 + 80] = 190
        let padded = try ScratchFile(image)
        #expect(try reason(padded.path, .cdrom) == nil)
    }

    @Test("A writable image is locked while in use; read-only users share") func locks() throws {
        let file = try ScratchFile([UInt8](repeating: 0, count: 4096))
        let reactor = try Reactor()
        var first: DiskImage? = try DiskImage(file.path, for: .disk, readOnly: false, on: reactor)
        #expect(try reason(file.path, .disk, readOnly: false) == .inUse)
        #expect(try reason(file.path, .disk) == .inUse)
        #expect(first?.isReadOnly == false)
        first = nil
        let shared = try DiskImage(file.path, for: .disk, readOnly: true, on: reactor)
        #expect(try reason(file.path, .disk) == nil)
        #expect(shared.isReadOnly)
    }

    @Test("Aligned and unaligned transfers, flushes and reads past the end all work", arguments: [512, 100, 4096])
    func transfers(length: Int) throws {
        let file = try ScratchFile((0..<65_536).map { UInt8(truncatingIfNeeded: $0 / 512) })
        let reactor = try Reactor()
        let image = try DiskImage(file.path, for: .disk, readOnly: false, on: reactor)
        let buffer = TransferBuffer(bytes: 8192)
        var codes: [Int32] = []
        func wait() {
            let before = codes.count
            while codes.count == before { reactor.turn() }
        }
        image.read(at: 4096, into: [buffer.part(0, length), buffer.part(4096, length)]) { codes.append($0) }
        wait()
        #expect(buffer.range.bytes[0] == 8)
        #expect(buffer.range.bytes[4096] == UInt8((4096 + length) / 512))
        buffer.range.bytes[0] = 0xEE
        image.write(at: 0, from: [buffer.part(0, length)]) { codes.append($0) }
        wait()
        image.flush { codes.append($0) }
        wait()
        #expect(file.bytes[0] == 0xEE)
        image.read(at: 65_536 - 512, into: [buffer.part(0, 1024)]) { codes.append($0) }
        image.drain()
        #expect(buffer.range.bytes[0] == 127)
        #expect(buffer.range.bytes[512] == 0)
        #expect(codes == [0, 0, 0, 0])
    }

    @Test("A read-only image is never written") func readOnly() throws {
        let file = try ScratchFile([UInt8](repeating: 7, count: 4096))
        let reactor = try Reactor()
        let image = try DiskImage(file.path, for: .disk, readOnly: true, on: reactor)
        let buffer = TransferBuffer(bytes: 4096)
        var code: Int32?
        image.write(at: 0, from: [buffer.range]) { code = $0 }
        image.drain()
        #expect(code == EROFS)
        #expect(file.bytes.allSatisfy { $0 == 7 })
        #expect(image.readNow(at: 0, into: [buffer.part(0, 512)]))
        #expect(buffer.range.bytes[511] == 7)
    }

    @Test("A disk reads and writes a real image through the chip, by DMA") func throughTheChip() throws {
        let file = try ScratchFile((0..<(1 << 20)).map { UInt8(truncatingIfNeeded: $0 / 512) })
        let reactor = try Reactor()
        let image = try DiskImage(file.path, for: .disk, readOnly: false, on: reactor)
        let rig = IDERig(.disk(image))
        rig.memory.putTable([(0x10000, 0), (0x20000, 0)], at: 0x1000)
        rig.command(0xC8, lba: 64, count: 0)
        rig.startBusMaster(table: 0x1000, toMemory: true)
        while !rig.wire.isHigh { reactor.turn() }
        #expect(rig.status == 0x50)
        #expect(rig.memory[0x10000, 1] == [64])
        #expect(rig.memory[0x2FFFF, 1] == [UInt8(truncatingIfNeeded: 64 + 255)])
        rig.memory.putTable([(0x40000, 512)], at: 0x1000)
        rig.memory[0x40000, 512] = [UInt8](repeating: 0x99, count: 512)
        rig.command(0xCA, lba: 1, count: 1)
        rig.startBusMaster(table: 0x1000, toMemory: false)
        while !rig.wire.isHigh { reactor.turn() }
        rig.command(0xE7)
        while !rig.wire.isHigh { reactor.turn() }
        #expect(file.bytes[512] == 0x99 && file.bytes[1024] == 2)
    }
}
