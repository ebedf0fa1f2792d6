import Foundation
import Host
import TestSupport
import Testing

@testable import Images

@Suite("qcow2 images as media") struct Qcow2ImageTests {
    private final class Bench {
        let reactor: Reactor
        var image: (any BlockStore)?
        init(_ path: String, readOnly: Bool = false) throws {
            reactor = try Reactor()
            image = try openMedium(path, .qcow2, for: .disk, readOnly: readOnly, on: reactor)
        }
        init(_ files: ImageFiles) throws {
            reactor = try Reactor()
            image = try openMedium(files, for: .disk, on: reactor)
        }
        /// Runs the loop until everything that `start` starts is done; the worst code.
        func wait(_ count: Int = 1, _ start: (any BlockStore, @escaping (Int32) -> Void) -> Void) -> Int32 {
            guard let image else { return -1 }
            var (left, worst) = (count, Int32(0))
            image.batch {
                start(image) { code in
                    worst = max(worst, code)
                    left -= 1
                }
            }
            while left > 0 { reactor.turn() }
            return worst
        }
    }

    @Test("Transfers at any time, in any order, find what was written") func transfers() throws {
        let shop = try Workshop()
        try shop.write([UInt8](repeating: 0x77, count: 1 << 20), "below.raw")
        try shop.qemu("create", "-f", "qcow2", "-b", "below.raw", "-F", "raw", "image.qcow2", "4M")
        var model = [UInt8](repeating: 0x77, count: 1 << 20) + [UInt8](repeating: 0, count: 3 << 20)
        let bench = try Bench(shop.path("image.qcow2"))
        #expect(bench.image?.size == 4 << 20 && bench.image?.canDiscard == true)
        var random = Seeded(5)
        let buffers = (0..<16).map { _ in TransferBuffer(bytes: 256 << 10) }
        for round in 0..<40 {
            // Sixteen at once on parts of their own.
            var parts: [(offset: Int, count: Int, writes: Bool)] = []
            for slot in 0..<16 {
                let count = 4096 * Int.random(in: 1...32, using: &random)
                let offset =
                    slot * (256 << 10) + 4096 * Int.random(in: 0...((256 << 10) - count) / 4096, using: &random)
                let writes = Bool.random(using: &random)
                parts.append((offset, count, writes))
                if writes { memset(buffers[slot].range.base, Int32(round &* 16 &+ slot) & 0xFF, count) }
            }
            let code = bench.wait(16) { image, done in
                for (slot, part) in parts.enumerated() {
                    let ranges = [buffers[slot].part(0, 4096), buffers[slot].part(4096, part.count - 4096)]
                        .filter { $0.count > 0 }
                    if part.writes {
                        image.write(at: UInt64(part.offset), from: ranges, done: done)
                    } else {
                        image.read(at: UInt64(part.offset), into: ranges, done: done)
                    }
                }
            }
            #expect(code == 0)
            for (slot, part) in parts.enumerated() {
                let range = part.offset..<(part.offset + part.count)
                let bytes = Array(buffers[slot].part(0, part.count).bytes)
                if part.writes {
                    model.replaceSubrange(range, with: bytes)
                } else {
                    #expect(bytes == Array(model[range]))
                }
            }
            guard round % 8 == 7 else { continue }
            let code2 = bench.wait(2) { image, done in
                image.discard(at: 1 << 20, bytes: 1 << 19, done: done)
                image.read(at: 1 << 20, into: [buffers[0].part(0, 1 << 17)], done: done)
            }
            #expect(code2 == 0)
            #expect(buffers[0].part(0, 1 << 17).bytes.allSatisfy { $0 == 0 })
            model.replaceSubrange((1 << 20)..<(1 << 20 + 1 << 19), with: [UInt8](repeating: 0, count: 1 << 19))
        }
        bench.image?.drain()
        bench.image = nil
        try shop.check("image.qcow2")
        #expect(try shop.contents("image.qcow2") == model)
    }

    @Test("What cannot be opened is told in one sentence") func failures() throws {
        let shop = try Workshop()
        func sentence(_ name: String, readOnly: Bool = false) -> String {
            do {
                _ = try Bench(shop.path(name), readOnly: readOnly)
                return ""
            } catch { return "\(error)" }
        }
        try shop.write([UInt8](repeating: 0, count: 4096), "plain.raw")
        #expect(sentence("plain.raw").contains("is damaged: its header is cut off"))
        try shop.qemu("create", "-f", "qcow2", "-u", "-b", "gone.raw", "-F", "raw", "orphan.qcow2", "1M")
        #expect(sentence("orphan.qcow2").contains("gone.raw does not exist"))
        try shop.qemu("create", "-f", "qcow2", "-u", "-b", "pool.qcow2", "-F", "qcow2", "loop.qcow2", "1M")
        try shop.qemu("create", "-f", "qcow2", "-u", "-b", "loop.qcow2", "-F", "qcow2", "pool.qcow2", "1M")
        #expect(sentence("loop.qcow2", readOnly: true).contains("a chain of more than 64"))
        try shop.qemu("create", "-f", "qcow2", "base.qcow2", "1M")
        var bytes = try shop.bytes("base.qcow2")
        bytes[79] = 1
        try shop.write(bytes, "dirty.qcow2")
        #expect(sentence("dirty.qcow2").contains("was not closed properly"))
        #expect(sentence("dirty.qcow2", readOnly: true) == "")
        bytes[79] = 4
        try shop.write(bytes, "external.qcow2")
        #expect(sentence("external.qcow2").contains("an external data file"))
        bytes[79] = 0
        bytes[35] = 2
        try shop.write(bytes, "secret.qcow2")
        #expect(sentence("secret.qcow2").contains("encryption"))
    }

    @Test("An image and what lies below it work in a process that was handed its files") func handedOver() throws {
        let shop = try Workshop()
        try shop.write([UInt8](repeating: 0x55, count: 1 << 20), "far.raw")
        try shop.qemu("create", "-f", "qcow2", "-b", "far.raw", "-F", "raw", "near.qcow2")
        try shop.qemu("create", "-f", "qcow2", "-b", "near.qcow2", "-F", "qcow2", "top.qcow2")
        let (ours, theirs) = try MessageSocket.pair()
        do {
            let files = try ImageFiles(shop.path("top.qcow2"), .qcow2, readOnly: false)
            let note = try JSONEncoder().encode(files.note)
            try ours.send(Array(note), descriptors: files.descriptors.map(\.number))
        }
        // Nobody finds them by name any more.
        for name in ["far.raw", "near.qcow2"] {
            try FileManager.default.moveItem(atPath: shop.path(name), toPath: shop.path("moved-" + name))
        }
        let (message, descriptors) = try #require(try theirs.receive())
        let note = try JSONDecoder().decode(ImageFiles.Note.self, from: Data(message))
        #expect(try ImageFiles(note, descriptors.dropLast()) == nil)
        let files = try #require(try ImageFiles(note, descriptors))
        let bench = try Bench(files)
        for name in ["moved-far.raw", "moved-near.qcow2", "top.qcow2"] {
            let format: MediumFormat = name.hasSuffix("raw") ? .raw : .qcow2
            #expect(throws: ImageFailure(shop.path(name), .inUse)) {
                _ = try ImageFiles(shop.path(name), format, readOnly: false)
            }
        }
        let buffer = TransferBuffer(bytes: 4096)
        let code = bench.wait { image, done in
            image.write(at: 8192, from: [buffer.range]) { _ in
                image.read(at: 4096, into: [buffer.range], done: done)
            }
        }
        #expect(code == 0 && buffer.range.bytes.allSatisfy { $0 == 0x55 })
    }

    @Test("A disk below others cannot be written by somebody else") func locks() throws {
        let shop = try Workshop()
        try shop.qemu("create", "-f", "qcow2", "base.qcow2", "1M")
        for name in ["one.qcow2", "two.qcow2"] {
            try shop.qemu("create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", name)
        }
        let one = try Bench(shop.path("one.qcow2"))
        let two = try Bench(shop.path("two.qcow2"))
        #expect(one.image != nil && two.image != nil)
        for name in ["base.qcow2", "one.qcow2"] {
            #expect(throws: ImageFailure(shop.path(name), .inUse)) { try Bench(shop.path(name)) }
        }
        // Nobody takes a format for another.
        #expect(throws: ImageFailure(shop.path("base.qcow2"), .unsupported(format: "qcow2"))) {
            _ = try openMedium(shop.path("base.qcow2"), .raw, for: .disk, readOnly: true, on: try Reactor())
        }
    }
}
