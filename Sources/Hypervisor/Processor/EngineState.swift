// What a software vCPU keeps beside its registers: memory map, TLB book-keeping, decoded code, mailbox.
// Source: our own design; the map's regions come from the domain.
// One thread uses an engine's state; other threads reach it only through its mailbox.
// `PhysicalMap` lists the engines of a domain, so that code written by one is forgotten by all.

internal import CProcessor
internal import Glibc

/// News from other vCPUs of the domain.
enum CodeNews {
    /// These bytes were written: forget what was decoded from them.
    case written(UInt64, UInt64)
    /// This page holds code now: stores to it must be watched.
    case guarded(UInt64)
}

/// The engines that share a memory map.
final class EngineList: @unchecked Sendable {
    // Invariant: `engines` and every engine's `news` are only touched with `lock` held.
    private var lock = pthread_mutex_t()
    private var engines: [Engine] = []
    init() { pthread_mutex_init(&lock, nil) }
    deinit { pthread_mutex_destroy(&lock) }

    func add(_ engine: Engine) {
        pthread_mutex_lock(&lock)
        engines.append(engine)
        noteSharing()
        pthread_mutex_unlock(&lock)
    }

    func remove(_ engine: Engine) {
        pthread_mutex_lock(&lock)
        engines.removeAll { $0 == engine }
        noteSharing()
        pthread_mutex_unlock(&lock)
    }

    /// Engines are added and removed before guests run and after, so the flag needs no lock to be read.
    private func noteSharing() {
        for engine in engines { engine.pointee.isShared = engines.count > 1 }
    }

    /// Tells every engine but `sender`, and calls it out of its loop.
    func tell(_ news: CodeNews, from sender: Engine) {
        pthread_mutex_lock(&lock)
        for engine in engines where engine != sender {
            engine.pointee.news.append(news)
            engine.pointee.hasNews = true
            apus_attend(engine.pointee.attention)
        }
        pthread_mutex_unlock(&lock)
    }

    func take(_ engine: Engine) -> [CodeNews] {
        pthread_mutex_lock(&lock)
        defer { pthread_mutex_unlock(&lock) }
        let news = engine.pointee.news
        engine.pointee.news.removeAll()
        engine.pointee.hasNews = false
        return news
    }
}

/// Reached by pointer: a class would be retained and released at each access.
typealias Engine = UnsafeMutablePointer<EngineState>

struct EngineState {
    static let filledSlots = 4096

    let bus: any GuestBus
    let map: PhysicalMap
    let attention: UnsafeMutablePointer<UInt32>
    var blocks: BlockCache
    var translator: Translator?
    /// TLB entries in use since the last flush, unless there are too many to note.
    let filled: UnsafeMutablePointer<UInt16>
    var filledCount = 0
    /// The same for entries of global pages, which outlive CR3.
    let globals: UnsafeMutablePointer<UInt16>
    var globalCount = 0
    /// The page that the last walk found is global.
    var foundGlobal = false
    /// Linear range within which translations come from large pages.
    var largeFirst = UInt64.max
    var largeLast: UInt64 = 0
    private let regions: UnsafeMutablePointer<PhysicalRegion>
    private var regionCount = 0
    private var lastRegion = 0
    static let maximumRegions = 256
    private(set) var addressMask = UInt64.max
    var news: [CodeNews] = []
    var hasNews = false
    /// More than one engine uses the map.
    var isShared = false

    init(map: PhysicalMap, bus: any GuestBus, attention: UnsafeMutablePointer<UInt32>) {
        (self.map, self.bus, self.attention) = (map, bus, attention)
        blocks = BlockCache()
        translator = Translator(&blocks)
        // Made now: a process that is confined maps nothing executable any more.
        _ = ThunkStore.shared
        filled = .allocate(capacity: Self.filledSlots)
        filled.initialize(repeating: 0, count: Self.filledSlots)
        globals = .allocate(capacity: Self.filledSlots)
        globals.initialize(repeating: 0, count: Self.filledSlots)
        regions = .allocate(capacity: Self.maximumRegions)
        takeRegions()
    }

    func deallocate() {
        translator?.deallocate()
        blocks.deallocate()
        filled.deallocate()
        globals.deallocate()
        regions.deallocate()
    }

    /// Copies the map's regions, so that lookups need no class or array.
    mutating func takeRegions() {
        addressMask = map.addressMask
        regionCount = min(map.regions.count, Self.maximumRegions)
        for index in 0..<regionCount { (regions + index).initialize(to: map.regions[index]) }
        lastRegion = 0
    }

    /// The region that holds a physical address, if memory does.
    @inline(__always) mutating func region(_ physical: UInt64) -> UnsafeMutablePointer<PhysicalRegion>? {
        let last = regions + lastRegion
        if lastRegion < regionCount, physical &- last.pointee.start < last.pointee.bytes { return last }
        return search(physical)
    }

    @inline(never) private mutating func search(_ physical: UInt64) -> UnsafeMutablePointer<PhysicalRegion>? {
        for index in 0..<regionCount {
            let region = regions + index
            guard physical &- region.pointee.start < region.pointee.bytes else { continue }
            lastRegion = index
            return region
        }
        return nil
    }

    mutating func noteLarge(_ linear: UInt64) {
        largeFirst = min(largeFirst, linear & ~0x3F_FFFF)
        largeLast = max(largeLast, linear | 0x3F_FFFF)
    }
}

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// The engine behind the vCPU. Set once by `SoftwareCPU`, for the vCPU's whole life.
    @inline(__always) var engine: Engine {
        guard let context = self.pointee.context else { preconditionFailure("a vCPU without engine") }
        return context.assumingMemoryBound(to: EngineState.self)
    }
    /// The machine around the vCPU.
    @inline(__always) var bus: any GuestBus { engine.pointee.bus }
}
