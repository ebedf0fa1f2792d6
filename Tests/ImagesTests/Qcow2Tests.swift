import Foundation
import Host
import TestSupport
import Testing

@testable import Images

/// A way to make an image, and what is in it at first.
struct Recipe: Sendable, CustomTestStringConvertible {
    var name: String
    var options: String
    var bytes = 3 << 20
    /// What lies below it: nothing, "raw", "qcow2", or "compressed" for an image of its own with packed clusters.
    var below = ""
    var testDescription: String { name }

    static let all: [Recipe] = [
        Recipe(name: "plain", options: ""),
        Recipe(name: "version 2", options: "compat=0.10"),
        Recipe(name: "clusters of 512 bytes", options: "cluster_size=512", bytes: 1 << 20),
        Recipe(name: "clusters of 2 MiB", options: "cluster_size=2M", bytes: 9 << 20),
        Recipe(name: "refcounts of 1 bit", options: "refcount_bits=1,cluster_size=4096"),
        Recipe(name: "refcounts of 64 bits", options: "refcount_bits=64,cluster_size=4096"),
        Recipe(name: "prepared", options: "preallocation=metadata"),
        Recipe(name: "odd size", options: "cluster_size=4096", bytes: (1 << 20) + 512 * 3),
        Recipe(name: "above raw", options: "cluster_size=8192", below: "raw"),
        Recipe(name: "above qcow2", options: "", below: "qcow2"),
        Recipe(name: "version 2 above raw", options: "compat=0.10,cluster_size=4096", below: "raw"),
        Recipe(name: "packed", options: "cluster_size=4096", below: "compressed"),
        Recipe(name: "packed by zstd", options: "cluster_size=65536,compression_type=zstd", below: "compressed"),
    ]

    /// Makes "image.qcow2"; what a guest finds in it.
    func make(_ shop: Workshop, _ random: inout Seeded) throws -> [UInt8] {
        var contents = [UInt8](repeating: 0, count: bytes)
        if !below.isEmpty {
            // Text packs, noise does not; some of it stays zero, and the disk below may be smaller.
            contents = Self.noise(bytes, &random)
            let end = below == "raw" ? bytes * 3 / 4 / 512 * 512 : bytes
            for index in end..<bytes { contents[index] = 0 }
            try shop.write(Array(contents[..<end]), "below.raw")
        }
        let option = options.isEmpty ? [] : ["-o", options]
        switch below {
        case "compressed":
            try shop.run(["convert", "-c", "-f", "raw", "-O", "qcow2"] + option + ["below.raw", "image.qcow2"])
        case "raw":
            try shop.run(
                ["create", "-f", "qcow2", "-b", "below.raw", "-F", "raw"] + option + ["image.qcow2", "\(bytes)"])
        case "qcow2":
            try shop.qemu("convert", "-f", "raw", "-O", "qcow2", "below.raw", "below.qcow2")
            try shop.run(["create", "-f", "qcow2", "-b", "below.qcow2", "-F", "qcow2"] + option + ["image.qcow2"])
        default: try shop.run(["create", "-f", "qcow2"] + option + ["image.qcow2", "\(bytes)"])
        }
        return contents
    }

    static func noise(_ count: Int, _ random: inout Seeded) -> [UInt8] {
        var bytes: [UInt8] = []
        while bytes.count < count {
            let kind = Int.random(in: 0..<3, using: &random)
            let word = random.next()
            for index in 0..<512 {
                bytes.append(
                    kind == 0
                        ? 0
                        : kind == 1
                            ? UInt8(truncatingIfNeeded: word)
                            : UInt8(truncatingIfNeeded: word >> UInt64(index % 57)) &+ UInt8(index & 0xFF))
            }
        }
        return Array(bytes.prefix(count))
    }

    /// The image's layers in memory.
    func open(_ shop: Workshop) throws -> (file: MemoryFile, map: Qcow2Map) {
        let file = MemoryFile(try shop.bytes("image.qcow2"))
        var layer: (any ImageLayer)?
        if below == "raw" { layer = MemoryFile(try shop.bytes("below.raw")) }
        if below == "qcow2" { layer = try Qcow2Map(MemoryFile(try shop.bytes("below.qcow2")), readOnly: true) }
        return (file, try Qcow2Map(file, backing: layer))
    }
}

extension Workshop {
    func run(_ arguments: [String]) throws {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/qemu-img")
        process.arguments = arguments
        process.currentDirectoryURL = URL(fileURLWithPath: directory)
        process.standardOutput = FileHandle.nullDevice
        try process.run()
        process.waitUntilExit()
        guard process.terminationStatus == 0 else { throw Failure(description: "qemu-img \(arguments)") }
    }
}

@Suite("qcow2") struct Qcow2Tests {
    /// One random change; `model` is what the guest should see.
    private func change(_ map: Qcow2Map, _ model: inout [UInt8], _ random: inout Seeded) throws {
        let sectors = model.count / 512
        let first = Int.random(in: 0..<sectors, using: &random)
        let most = [1, 8, 8, 64, 300][Int.random(in: 0..<5, using: &random)]
        let count = min(Int.random(in: 1...most, using: &random), sectors - first)
        let range = (first * 512)..<((first + count) * 512)
        switch Int.random(in: 0..<10, using: &random) {
        case 0:
            try map.discard(UInt64(range.lowerBound), bytes: UInt64(range.count))
            // What a discard gives up is up to the image.
            model.replaceSubrange(range, with: try map.bytes(range.lowerBound, range.count))
            let inner = (range.lowerBound + map.clusterBytes - 1) / map.clusterBytes * map.clusterBytes
            let end = range.upperBound / map.clusterBytes * map.clusterBytes
            if inner < end, map.header.version > 2 || map.backing == nil {
                #expect(model[inner..<end].allSatisfy { $0 == 0 })
            }
        case 1, 2: #expect(try map.bytes(range.lowerBound, range.count) == Array(model[range]))
        case 3: try map.commit()
        default:
            let bytes = Recipe.noise(range.count, &random)
            try map.write(range.lowerBound, bytes)
            model.replaceSubrange(range, with: bytes)
        }
    }

    @Test("QEMU accepts what was written, and reads it", arguments: Recipe.all) func agreement(recipe: Recipe) throws {
        let shop = try Workshop()
        var random = Seeded(1)
        var model = try recipe.make(shop, &random)
        let (file, map) = try recipe.open(shop)
        #expect(map.size == UInt64(recipe.bytes))
        #expect(try map.bytes(0, model.count) == model)
        for round in 0..<3 {
            for _ in 0..<60 { try change(map, &model, &random) }
            try map.flush()
            #expect(try map.bytes(0, model.count) == model)
            try shop.write(file.bytes, "image.qcow2")
            try shop.check("image.qcow2")
            #expect(try shop.contents("image.qcow2") == model, "round \(round)")
        }
        // And opened anew.
        let (_, again) = try recipe.open(shop)
        #expect(try again.bytes(0, model.count) == model)
    }

    @Test("A snapshot keeps what it holds") func snapshots() throws {
        let shop = try Workshop()
        var random = Seeded(7)
        let recipe = Recipe(name: "", options: "cluster_size=4096", bytes: 2 << 20, below: "compressed")
        let before = try recipe.make(shop, &random)
        var model = before
        var (file, map) = try recipe.open(shop)
        for _ in 0..<40 { try change(map, &model, &random) }
        try map.flush()
        let held = model
        try shop.write(file.bytes, "image.qcow2")
        try shop.qemu("snapshot", "-c", "one", "image.qcow2")
        (file, map) = try recipe.open(shop)
        for _ in 0..<120 { try change(map, &model, &random) }
        try map.flush()
        try shop.write(file.bytes, "image.qcow2")
        try shop.check("image.qcow2")
        #expect(try shop.contents("image.qcow2") == model)
        try shop.qemu("snapshot", "-a", "one", "image.qcow2")
        #expect(try shop.contents("image.qcow2") == held)
        try shop.qemu("snapshot", "-d", "one", "image.qcow2")
        try shop.check("image.qcow2")
    }

    @Test(
        "After a power failure the image is whole, and what was flushed is there",
        arguments: [Recipe.all[2], Recipe.all[4], Recipe.all[9], Recipe.all[11]])
    func powerFailure(recipe: Recipe) throws {
        let shop = try Workshop()
        var random = Seeded(3)
        var model = try recipe.make(shop, &random)
        let (file, map) = try recipe.open(shop)
        for round in 0..<8 {
            try map.flush()
            let flushed = model
            // Changes stay off the first half, which must keep what it had.
            let half = model.count / 2 / map.clusterBytes * map.clusterBytes
            for _ in 0..<30 {
                let bytes = Recipe.noise(512 * Int.random(in: 1...40, using: &random), &random)
                let at = half + 512 * Int.random(in: 0..<((model.count - half - bytes.count) / 512), using: &random)
                if Int.random(in: 0..<6, using: &random) == 0 {
                    try map.discard(UInt64(at), bytes: UInt64(bytes.count))
                }
                if Int.random(in: 0..<8, using: &random) == 0 { try map.commit() }
                try map.write(at, bytes)
                model.replaceSubrange(at..<(at + bytes.count), with: bytes)
            }
            if round % 2 == 0 { file.allowance = Int.random(in: 0..<6, using: &random) }
            try? map.commit()
            file.allowance = nil
            for _ in 0..<3 {
                try shop.write(file.afterPowerFailure(&random), "image.qcow2")
                try shop.check("image.qcow2", leaks: true)
                let found = try Qcow2Map(
                    MemoryFile(try shop.bytes("image.qcow2")), backing: map.backing, readOnly: true
                ).bytes(0, half)
                #expect(found == Array(flushed[..<half]), "round \(round)")
            }
            model = try map.bytes(0, model.count)
        }
    }

    @Test("Room that was given up is used again, and the refcount table grows") func room() throws {
        let shop = try Workshop()
        try shop.qemu("create", "-f", "qcow2", "-o", "cluster_size=512,refcount_bits=64", "image.qcow2", "8M")
        let file = MemoryFile(try shop.bytes("image.qcow2"))
        let map = try Qcow2Map(file)
        let line = [UInt8](repeating: 0xA5, count: 1 << 20)
        for megabyte in 0..<8 { try map.write(megabyte << 20, line) }
        try map.flush()
        let full = file.size
        #expect(full > 8 << 20)
        try map.discard(0, bytes: 4 << 20)
        try map.flush()
        for megabyte in 0..<4 { try map.write(megabyte << 20, line) }
        try map.flush()
        #expect(file.size == full)
        try shop.write(file.bytes, "image.qcow2")
        try shop.check("image.qcow2")
        #expect(try shop.contents("image.qcow2") == [UInt8](repeating: 0xA5, count: 8 << 20))
    }

    @Test("No damaged image harms", arguments: [0, 2, 5, 9, 11, 12]) func damage(index: Int) throws {
        let shop = try Workshop()
        var random = Seeded(UInt64(index) + 100)
        let recipe = Recipe.all[index]
        var model = try recipe.make(shop, &random)
        let (made, map) = try recipe.open(shop)
        for _ in 0..<20 { try change(map, &model, &random) }
        try map.flush()
        let whole = made.bytes
        var refused = 0
        for _ in 0..<150 {
            var bytes = whole
            for _ in 0..<Int.random(in: 1...6, using: &random) {
                // Mostly where headers and tables lie.
                let end = [112, 112, 4096, min(bytes.count, 1 << 18)][Int.random(in: 0..<4, using: &random)]
                let at = Int.random(in: 0..<min(end, bytes.count), using: &random)
                bytes[at] = [0, 0xFF, UInt8(truncatingIfNeeded: random.next())][Int.random(in: 0..<3, using: &random)]
            }
            if Int.random(in: 0..<10, using: &random) == 0 {
                bytes.removeLast(Int.random(in: 0..<bytes.count, using: &random))
            }
            let file = MemoryFile(bytes)
            do {
                let damaged = try Qcow2Map(file, backing: map.backing, readOnly: Bool.random(using: &random))
                for _ in 0..<8 {
                    let limit = max(1, min(damaged.size, 1 << 40) / 512)
                    let at = Int(UInt64.random(in: 0..<limit, using: &random)) * 512
                    _ = try? damaged.bytes(at, 4096)
                    _ = try? damaged.write(at, [UInt8](repeating: 1, count: 1024))
                    _ = try? damaged.discard(UInt64(at), bytes: min(damaged.size - UInt64(at), 1 << 17))
                }
                _ = try? damaged.flush()
            } catch { refused += 1 }
        }
        #expect(refused > 0)
    }
}
