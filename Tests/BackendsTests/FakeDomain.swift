import Glibc
import Host
import Images
import Rings
import Synchronization
import XenStore
import XenStoreClient

@testable import BlockBackend

/// A guest's RAM and grant table.
final class FakeDomain {
    static let pages = 512
    let ram: SharedMemory
    let table: SharedMemory
    let memory: DomainMemory
    let grants: GrantMap

    init() throws {
        ram = try SharedMemory(named: "test-ram", size: Self.pages * 4096)
        table = try SharedMemory(named: "test-grants", size: 4 * 4096)
        memory = DomainMemory(flat: ram, bytes: Self.pages * 4096)
        guard let grants = GrantMap(table: table, offset: 0, frames: 4, memory: memory) else { throw Failure.noTable }
        self.grants = grants
    }
    enum Failure: Error { case noTable, noNode }

    /// GTF_permit_access is 1, GTF_readonly 4.
    func grant(_ reference: Int, frame: UInt32, readOnly: Bool = false, to domain: UInt16 = 0) {
        let base = reference * 8
        table.bytes.storeBytes(of: frame, toByteOffset: base + 4, as: UInt32.self)
        table.bytes.storeBytes(of: domain, toByteOffset: base + 2, as: UInt16.self)
        table.bytes.storeBytes(of: readOnly ? 5 : 1, toByteOffset: base, as: UInt16.self)
    }
    func flags(_ reference: Int) -> UInt16 { table.bytes.load(fromByteOffset: reference * 8, as: UInt16.self) }
    /// Whether some back end uses the grant.
    func isMarked(_ reference: Int) -> Bool { flags(reference) & 0x18 != 0 }

    func page(_ frame: Int) -> UnsafeMutableRawBufferPointer {
        UnsafeMutableRawBufferPointer(rebasing: ram.bytes[(frame * 4096)..<((frame + 1) * 4096)])
    }
    func fill(_ frame: Int, _ byte: UInt8) {
        if let base = page(frame).baseAddress { memset(base, Int32(byte), 4096) }
    }
}

/// An event channel's two ends in one process.
final class FakePort: EventPort {
    var onEvent: () -> Void = {}
    private(set) var notifications = 0
    private(set) var isClosed = false
    func notify() { notifications += 1 }
    func close() { isClosed = true }
}

final class FakePorts: EventPorts {
    private(set) var bound: [UInt32: FakePort] = [:]
    func bind(_ guestPort: UInt32) throws(EventError) -> any EventPort {
        guard guestPort > 0, guestPort < 4096 else { throw .badPort }
        let port = FakePort()
        bound[guestPort] = port
        return port
    }
}

/// A medium in memory. What it is told to do is done at `settle`, in the order it came, or against it.
final class MemoryMedium: BlockStore {
    var bytes: [UInt8]
    let isReadOnly: Bool
    let canDiscard: Bool
    var newSize: UInt64?
    var isQuick = false
    var backwards = false
    /// errno for everything.
    var failure: Int32 = 0
    private(set) var log: [String] = []
    private var work: [() -> Void] = []

    init(sectors: Int, readOnly: Bool = false, canDiscard: Bool = true) {
        bytes = [UInt8](repeating: 0, count: sectors * 512)
        bytes.withUnsafeMutableBytes { all in
            guard let base = all.baseAddress else { return }
            for sector in 0..<sectors { memset(base + sector * 512, Int32(sector & 0xFF) &* 7, 512) }
        }
        (isReadOnly, self.canDiscard) = (readOnly, canDiscard)
    }
    var size: UInt64 { UInt64(bytes.count) }
    func measure() -> UInt64 { newSize ?? size }

    private func move(_ offset: UInt64, _ ranges: [HostRange], reads: Bool) {
        var place = Int(offset)
        for range in ranges {
            let end = place + range.count
            bytes.withUnsafeMutableBytes { all in
                let part = UnsafeMutableRawBufferPointer(rebasing: all[place..<end])
                if reads {
                    range.bytes.copyMemory(from: UnsafeRawBufferPointer(part))
                } else {
                    part.copyMemory(from: UnsafeRawBufferPointer(range.bytes))
                }
            }
            place = end
        }
    }
    func readNow(at offset: UInt64, into ranges: [HostRange]) -> Bool {
        guard isQuick else { return false }
        move(offset, ranges, reads: true)
        return true
    }
    func read(at offset: UInt64, into ranges: [HostRange], done: @escaping (Int32) -> Void) {
        work.append { [self] in
            log.append("read \(offset / 512)")
            if failure == 0 { move(offset, ranges, reads: true) }
            done(failure)
        }
    }
    func write(at offset: UInt64, from ranges: [HostRange], done: @escaping (Int32) -> Void) {
        work.append { [self] in
            log.append("write \(offset / 512)")
            if failure == 0 { move(offset, ranges, reads: false) }
            done(failure)
        }
    }
    func flush(done: @escaping (Int32) -> Void) {
        work.append { [self] in
            log.append("flush")
            done(failure)
        }
    }
    func discard(at offset: UInt64, bytes count: UInt64, done: @escaping (Int32) -> Void) {
        work.append { [self] in
            log.append("discard \(offset / 512) \(count / 512)")
            bytes.withUnsafeMutableBytes { all in
                guard let base = all.baseAddress, Int(offset) + Int(count) <= all.count else { return }
                memset(base + Int(offset), 0, Int(count))
            }
            done(failure)
        }
    }
    var isBusy: Bool { !work.isEmpty }
    /// Does what waits now.
    func settle() {
        let now = backwards ? work.reversed() : work
        work = []
        for step in now { step() }
    }
    func drain() { while isBusy { settle() } }
}

/// The guest's half of a ring.
final class FakeFrontRing {
    let domain: FakeDomain
    let frames: [Int]
    let slotBytes: Int
    let slots: UInt32
    var produced: UInt32 = 0
    var consumed: UInt32 = 0

    init(_ domain: FakeDomain, frames: [Int], slotBytes: Int) {
        (self.domain, self.frames, self.slotBytes) = (domain, frames, slotBytes)
        let fitting = UInt32((frames.count * 4096 - 64) / slotBytes)
        slots = 1 << (31 - UInt32(fitting.leadingZeroBitCount))
        setWord(1, 1)
        setWord(3, 1)
    }
    func word(_ index: Int) -> UInt32 { domain.page(frames[0]).load(fromByteOffset: index * 4, as: UInt32.self) }
    func setWord(_ index: Int, _ value: UInt32) {
        domain.page(frames[0]).storeBytes(of: value, toByteOffset: index * 4, as: UInt32.self)
    }
    private func place(_ index: UInt32, _ byte: Int) -> (Int, Int) {
        let offset = 64 + Int(index & (slots - 1)) * slotBytes + byte
        return (frames[offset / 4096], offset % 4096)
    }
    func put(_ request: [UInt8]) {
        for (index, byte) in request.enumerated() {
            let (frame, offset) = place(produced, index)
            domain.page(frame)[offset] = byte
        }
        produced &+= 1
    }
    func push() { setWord(0, produced) }
    /// The responses that have come, `bytes` long each; of an index that makes no sense, a ring's worth.
    func take(_ bytes: Int) -> [[UInt8]] {
        var responses: [[UInt8]] = []
        for _ in 0..<min(word(2) &- consumed, slots) {
            responses.append(
                (0..<bytes).map { index in
                    let (frame, offset) = place(consumed, index)
                    return domain.page(frame)[offset]
                })
            consumed &+= 1
        }
        setWord(3, consumed &+ 1)
        return responses
    }
}

/// The store, without a socket in between.
final class LocalTransport: StoreTransport {
    final class Shared {
        var store = Store()
        var boxes: [ClientID: [Message]] = [:]
    }
    let shared: Shared
    let client: ClientID
    var descriptor: Int32? { nil }

    init(_ shared: Shared, domain: UInt32 = 0) {
        self.shared = shared
        client = shared.store.connect(domain: domain)
    }
    func send(_ message: Message) throws(StoreFailure) {
        for delivery in shared.store.handle(message, from: client) {
            shared.boxes[delivery.client, default: []].append(delivery.message)
        }
    }
    func receive(wait: Bool) throws(StoreFailure) -> Message? {
        guard shared.boxes[client]?.isEmpty == false else {
            if wait { throw .disconnected }
            return nil
        }
        return shared.boxes[client]?.removeFirst()
    }
}

func littleEndian(_ value: some FixedWidthInteger) -> [UInt8] {
    (0..<(value.bitWidth / 8)).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) }
}

/// The bytes of requests as guests write them.
struct RequestBytes {
    var abi = BlockABI.x86_64
    private var padding: [UInt8] { abi == .x86_64 ? [0, 0, 0, 0] : [] }

    static func segments(_ list: [(Int, UInt8, UInt8)]) -> [UInt8] {
        list.flatMap { littleEndian(UInt32($0.0)) + [$0.1, $0.2, 0, 0] }
    }
    func transfer(_ operation: UInt8, id: UInt64, sector: UInt64, _ list: [(Int, UInt8, UInt8)] = []) -> [UInt8] {
        [operation, UInt8(list.count), 0, 0] + padding + littleEndian(id) + littleEndian(sector)
            + Self.segments(list)
    }
    func discard(id: UInt64, sector: UInt64, count: UInt64) -> [UInt8] {
        [5, 0, 0, 0] + padding + littleEndian(id) + littleEndian(sector) + littleEndian(count)
    }
    func indirect(_ operation: UInt8, id: UInt64, sector: UInt64, count: UInt16, pages: [Int]) -> [UInt8] {
        [6, operation] + littleEndian(count) + padding + littleEndian(id) + littleEndian(sector) + [0, 0, 0, 0]
            + pages.flatMap { littleEndian(UInt32($0)) }
    }
}

/// A store with one device between a guest, number 5, and a back end.
struct FakeStore {
    let shared = LocalTransport.Shared()
    let tools: StoreClient
    /// The back end's.
    let client: StoreClient
    let guest: StoreClient

    /// Writes what the toolstack writes, into the directories of either end.
    init(back: String, front: String) throws {
        tools = StoreClient(LocalTransport(shared))
        client = StoreClient(LocalTransport(shared))
        guest = StoreClient(LocalTransport(shared, domain: 5))
        for (path, owner) in [(back, "n0"), (front, "n5")] {
            try tools.makeDirectory(path)
            try tools.setPermissions(path, [owner, owner == "n0" ? "r5" : "r0"])
        }
        try tools.write(back + "/frontend", front)
        try tools.write(back + "/online", "1")
        try tools.write(back + "/state", "1")
        try guest.write(front + "/state", "1")
    }
}
