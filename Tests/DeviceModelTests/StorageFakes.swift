import Foundation
import Glibc
import Host
import Images
import Machine
import Storage

/// A medium in memory. Answers at once, or when the test says so.
final class MemoryStore: BlockStore {
    var bytes: [UInt8]
    var isReadOnly: Bool
    /// Whether `readNow` finds data; otherwise requests wait for `drain` or `serve`.
    var isCached = true
    /// Whether `collect` finds the oldest request done.
    var isDone = false
    var failure: Int32 = 0
    private(set) var flushes = 0
    private(set) var isReleased = false
    private var waiting: [() -> Void] = []
    var requests: Int { waiting.count }
    var size: UInt64 { UInt64(bytes.count) }

    init(_ bytes: [UInt8], isReadOnly: Bool = false) { (self.bytes, self.isReadOnly) = (bytes, isReadOnly) }

    /// Each 512-byte sector starts with its number and is filled with the number's low byte.
    convenience init(numberedSectors count: Int, isReadOnly: Bool = false) {
        var bytes = [UInt8]()
        bytes.reserveCapacity(count * 512)
        for sector in 0..<count {
            bytes += [UInt8(truncatingIfNeeded: sector >> 8)]
            bytes += [UInt8](repeating: UInt8(truncatingIfNeeded: sector), count: 511)
        }
        self.init(bytes, isReadOnly: isReadOnly)
    }

    func readNow(at offset: UInt64, into ranges: [HostRange]) -> Bool {
        guard isCached, failure == 0 else { return false }
        copyOut(offset, ranges)
        return true
    }
    func read(at offset: UInt64, into ranges: [HostRange], done: @escaping (Int32) -> Void) {
        waiting.append { [self] in
            if failure == 0 { copyOut(offset, ranges) }
            done(failure)
        }
    }
    func write(at offset: UInt64, from ranges: [HostRange], done: @escaping (Int32) -> Void) {
        waiting.append { [self] in
            var position = Int(offset)
            if failure == 0 {
                for range in ranges {
                    bytes.replaceSubrange(position..<(position + range.count), with: range.bytes)
                    position += range.count
                }
            }
            done(failure)
        }
    }
    func flush(done: @escaping (Int32) -> Void) {
        waiting.append { [self] in
            flushes += 1
            done(failure)
        }
    }
    func collect() -> Bool {
        if isDone { serve() }
        return !waiting.isEmpty
    }
    func drain() { while serve() {} }
    func release() {
        drain()
        isReleased = true
    }

    /// Ends the oldest request.
    @discardableResult func serve() -> Bool {
        guard !waiting.isEmpty else { return false }
        waiting.removeFirst()()
        return true
    }

    private func copyOut(_ offset: UInt64, _ ranges: [HostRange]) {
        var position = Int(offset)
        for range in ranges {
            for index in 0..<range.count {
                range.bytes[index] = position + index < bytes.count ? bytes[position + index] : 0
            }
            position += range.count
        }
    }
}

/// Guest memory for transfers; nothing lies behind its end.
final class FakeMemory: DMA {
    let memory: UnsafeMutableRawBufferPointer
    /// Ranges that were written through windows.
    private(set) var written: [(GuestAddress, Int)] = []
    var hasWindows = true
    init(bytes: Int) {
        memory = .allocate(byteCount: bytes, alignment: 4096)
        memory.initializeMemory(as: UInt8.self, repeating: 0)
    }
    deinit { memory.deallocate() }

    private func range(_ address: GuestAddress, _ count: Int) throws(DMAFault) -> Range<Int> {
        guard address.raw <= UInt64(memory.count), UInt64(count) <= UInt64(memory.count) - address.raw else {
            throw DMAFault(address)
        }
        return Int(address.raw)..<(Int(address.raw) + count)
    }
    func read(at address: GuestAddress, into bytes: UnsafeMutableRawBufferPointer) throws(DMAFault) {
        bytes.copyMemory(from: UnsafeRawBufferPointer(rebasing: memory[try range(address, bytes.count)]))
    }
    func write(_ bytes: UnsafeRawBufferPointer, at address: GuestAddress) throws(DMAFault) {
        UnsafeMutableRawBufferPointer(rebasing: memory[try range(address, bytes.count)]).copyMemory(from: bytes)
    }
    func window(at address: GuestAddress, bytes: Int) throws(DMAFault) -> UnsafeMutableRawBufferPointer {
        guard hasWindows else { throw DMAFault(address) }
        return UnsafeMutableRawBufferPointer(rebasing: memory[try range(address, bytes)])
    }
    func wrote(at address: GuestAddress, bytes: Int) { written.append((address, bytes)) }

    subscript(address: Int, count: Int) -> [UInt8] {
        get { Array(memory[address..<(address + count)]) }
        set { for (index, byte) in newValue.enumerated() { memory[address + index] = byte } }
    }
    /// Puts a table of regions (address, bytes) at `address`.
    func putTable(_ regions: [(UInt32, UInt32)], at address: Int) {
        for (index, region) in regions.enumerated() {
            let last: UInt32 = index == regions.count - 1 ? 0x8000_0000 : 0
            memory.storeBytes(of: region.0, toByteOffset: address + index * 8, as: UInt32.self)
            memory.storeBytes(of: region.1 & 0xFFFF | last, toByteOffset: address + index * 8 + 4, as: UInt32.self)
        }
    }
}

/// A file that goes away with the test.
final class ScratchFile {
    let path: String
    init(_ bytes: [UInt8], name: String = "image") throws {
        path = NSTemporaryDirectory() + "apus-test-\(name)-\(UUID().uuidString)"
        try Data(bytes).write(to: URL(fileURLWithPath: path))
    }
    deinit { unlink(path) }
    var bytes: [UInt8] { (try? Data(contentsOf: URL(fileURLWithPath: path))).map { Array($0) } ?? [] }
}

/// A channel on a board, driven as a BIOS would.
final class IDERig {
    let memory: FakeMemory
    let channel: IDEChannel
    let function: PIIX3IDE
    let wire = Wire()
    let slot: Slot
    let busMaster: Slot

    init(_ first: IDEChannel.Fitting, _ second: IDEChannel.Fitting = .nothing, memory bytes: Int = 1 << 20) {
        memory = FakeMemory(bytes: bytes)
        channel = IDEChannel(drives: (first, second), line: wire, dma: memory)
        let other = IDEChannel(
            at: 0x170, control: 0x376, drives: (.nothing, .nothing), line: Wire(), dma: memory)
        function = PIIX3IDE(primary: channel, secondary: other)
        slot = Slot("ide", channel)
        busMaster = Slot("bm", function)
    }

    func inByte(_ offset: UInt64) -> UInt8 { UInt8(truncatingIfNeeded: slot.read(Access(offset: offset))) }
    func out(_ value: UInt8, _ offset: UInt64) { slot.write(UInt64(value), Access(offset: offset)) }
    func control(_ value: UInt8) { slot.write(UInt64(value), Access(region: 1, offset: 0)) }
    var alternateStatus: UInt8 { UInt8(truncatingIfNeeded: slot.read(Access(region: 1, offset: 0))) }
    var status: UInt8 { inByte(7) }
    var error: UInt8 { inByte(1) }

    /// Words by `rep insw`.
    func read(_ count: Int) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        bytes.withUnsafeMutableBytes { channel.read(Access(offset: 0, width: .word), into: $0) }
        return bytes
    }
    func write(_ bytes: [UInt8]) { bytes.withUnsafeBytes { channel.write($0, Access(offset: 0, width: .word)) } }

    /// A 28-bit command to drive 0.
    func command(_ code: UInt8, lba: UInt32 = 0, count: UInt8 = 0, feature: UInt8 = 0) {
        out(feature, 1)
        out(count, 2)
        out(UInt8(lba & 0xFF), 3)
        out(UInt8(lba >> 8 & 0xFF), 4)
        out(UInt8(lba >> 16 & 0xFF), 5)
        out(0xE0 | UInt8(lba >> 24 & 0x0F), 6)
        out(code, 7)
    }
    /// A 48-bit command to drive 0.
    func command48(_ code: UInt8, lba: UInt64, count: UInt16) {
        for (value, register) in [(UInt64(count), 2 as UInt64), (lba, 3), (lba >> 8, 4), (lba >> 16, 5)] {
            out(UInt8(truncatingIfNeeded: register == 2 ? value >> 8 : value >> 24), register)
            out(UInt8(truncatingIfNeeded: value), register)
        }
        out(0xE0, 6)
        out(code, 7)
    }
    /// A packet; the byte count limit is 2048 unless told.
    func packet(_ bytes: [UInt8], limit: UInt16 = 2048, dma: Bool = false) {
        out(dma ? 1 : 0, 1)
        out(UInt8(limit & 0xFF), 4)
        out(UInt8(limit >> 8), 5)
        out(0xA0, 7)
        write(bytes + [UInt8](repeating: 0, count: 12 - bytes.count))
    }
    func startBusMaster(table: UInt32, toMemory: Bool) {
        busMaster.write(0, Access(offset: 0))
        for index in 0..<4 as Range<UInt64> {
            busMaster.write(UInt64(table >> UInt32(index * 8) & 0xFF), Access(offset: 4 + index))
        }
        busMaster.write(0x06, Access(offset: 2))
        busMaster.write(toMemory ? 9 : 1, Access(offset: 0))
    }
    var busMasterStatus: UInt8 { UInt8(truncatingIfNeeded: busMaster.read(Access(offset: 2))) }
}
