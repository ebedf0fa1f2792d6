import Foundation
import Glibc
import Host
import TestSupport

@testable import Images

/// An image file in memory that remembers what a power failure could lose.
final class MemoryFile: ImageFile, ImageLayer {
    private(set) var bytes: [UInt8]
    /// What was written since the last `sync`, in order.
    private var unsynced: [(UInt64, [UInt8])] = []
    private var durable: [UInt8]
    /// Writes that may still be done before everything fails; nil: any number.
    var allowance: Int?

    init(_ bytes: [UInt8]) { (self.bytes, durable) = (bytes, bytes) }
    var size: UInt64 { UInt64(bytes.count) }

    func read(_ offset: UInt64, _ range: HostRange) throws(Qcow2Fault) {
        range.bytes.initializeMemory(as: UInt8.self, repeating: 0)
        guard offset < size else { return }
        range.bytes.copyBytes(from: bytes[Int(offset)..<min(bytes.count, Int(offset) + range.count)])
    }
    func read(_ offset: UInt64, into ranges: [HostRange]) throws(Qcow2Fault) {
        var at = offset
        for range in ranges {
            try read(at, range)
            at += UInt64(range.count)
        }
    }
    func write(_ offset: UInt64, _ range: HostRange) throws(Qcow2Fault) {
        if let left = allowance {
            guard left > 0 else { throw .host(ENOSPC) }
            allowance = left - 1
        }
        guard offset + UInt64(range.count) < 1 << 30 else { throw .host(EFBIG) }
        let data = Array(range.bytes)
        unsynced.append((offset, data))
        Self.put(&bytes, offset, data)
    }
    func sync() throws(Qcow2Fault) {
        (durable, unsynced) = (bytes, [])
    }
    func extend(to wanted: UInt64) throws(Qcow2Fault) {
        guard wanted < 1 << 30 else { throw .host(EFBIG) }
        if wanted > size { bytes += [UInt8](repeating: 0, count: Int(wanted - size)) }
    }
    func release(_ offset: UInt64, bytes count: UInt64) {
        let data = [UInt8](repeating: 0, count: Int(count))
        unsynced.append((offset, data))
        Self.put(&bytes, offset, data)
    }

    /// What a power failure now could leave: any part of the writes since the last `sync`, in any order.
    func afterPowerFailure(_ random: inout Seeded) -> [UInt8] {
        var image = durable
        for (offset, data) in unsynced.shuffled(using: &random) where Bool.random(using: &random) {
            Self.put(&image, offset, data)
        }
        return image
    }

    private static func put(_ bytes: inout [UInt8], _ offset: UInt64, _ data: [UInt8]) {
        let end = Int(offset) + data.count
        if end > bytes.count { bytes += [UInt8](repeating: 0, count: end - bytes.count) }
        bytes.replaceSubrange(Int(offset)..<end, with: data)
    }
}

/// A directory for one test, and qemu-img in it.
final class Workshop {
    let directory: String
    struct Failure: Error, CustomStringConvertible { var description: String }

    init() throws {
        directory = "/tmp/apus-images-\(getpid())-\(UInt32.random(in: 0 ... .max))"
        try HostFile.makeDirectory(directory)
    }
    deinit { HostFile.remove(directory) }

    func path(_ name: String) -> String { "\(directory)/\(name)" }

    @discardableResult
    func qemu(_ arguments: String..., accepting codes: Set<Int32> = [0]) throws -> String {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/qemu-img")
        process.arguments = arguments
        process.currentDirectoryURL = URL(fileURLWithPath: directory)
        let pipe = Pipe()
        (process.standardOutput, process.standardError) = (pipe, pipe)
        try process.run()
        let text = String(decoding: pipe.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        process.waitUntilExit()
        guard codes.contains(process.terminationStatus) else {
            throw Failure(description: "qemu-img \(arguments): \(process.terminationStatus)\n\(text)")
        }
        return text
    }

    /// Errors, or with `leaks: false` lost clusters too, are a failure.
    func check(_ name: String, leaks: Bool = false) throws {
        try qemu("check", "-f", "qcow2", name, accepting: leaks ? [0, 3] : [0])
    }

    func write(_ bytes: [UInt8], _ name: String) throws {
        try Data(bytes).write(to: URL(fileURLWithPath: path(name)))
    }
    func bytes(_ name: String) throws -> [UInt8] {
        [UInt8](try Data(contentsOf: URL(fileURLWithPath: path(name))))
    }
    /// What the guest would see, as QEMU reads it.
    func contents(_ name: String) throws -> [UInt8] {
        try qemu("convert", "-f", "qcow2", "-O", "raw", name, "\(name).raw")
        return try bytes("\(name).raw")
    }
}

extension Qcow2Map {
    /// Opens what is in `file`.
    convenience init(_ file: MemoryFile, backing: (any ImageLayer)? = nil, readOnly: Bool = false) throws(Qcow2Fault) {
        let header = try Qcow2Header(Array(file.bytes.prefix(1 << 16)), fileBytes: file.size)
        try self.init(header, file: file, backing: backing, readOnly: readOnly)
    }

    func bytes(_ offset: Int, _ count: Int) throws -> [UInt8] {
        let buffer = TransferBuffer(bytes: count)
        // In two pieces, as guests' memory is.
        let half = count / 1024 * 512
        try read(
            UInt64(offset), into: half > 0 ? [buffer.part(0, half), buffer.part(half, count - half)] : [buffer.range])
        return Array(buffer.range.bytes)
    }

    func write(_ offset: Int, _ bytes: [UInt8]) throws {
        let buffer = TransferBuffer(bytes: bytes.count)
        buffer.range.bytes.copyBytes(from: bytes)
        let half = bytes.count / 1024 * 512
        try write(
            UInt64(offset),
            from: half > 0 ? [buffer.part(0, half), buffer.part(half, bytes.count - half)] : [buffer.range])
    }
}
