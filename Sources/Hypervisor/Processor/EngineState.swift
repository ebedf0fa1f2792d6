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
    private var engines: [Unmanaged<EngineState>] = []
    /// More than one engine; read without the lock because it changes before guests run.
    private(set) var isShared = false

    init() { pthread_mutex_init(&lock, nil) }
    deinit { pthread_mutex_destroy(&lock) }

    func add(_ engine: EngineState) {
        pthread_mutex_lock(&lock)
        engines.append(Unmanaged.passUnretained(engine))
        isShared = engines.count > 1
        pthread_mutex_unlock(&lock)
    }

    func remove(_ engine: EngineState) {
        pthread_mutex_lock(&lock)
        engines.removeAll { $0.toOpaque() == Unmanaged.passUnretained(engine).toOpaque() }
        isShared = engines.count > 1
        pthread_mutex_unlock(&lock)
    }

    /// Tells every engine but `sender`, and calls it out of its loop.
    func tell(_ news: CodeNews, from sender: EngineState) {
        pthread_mutex_lock(&lock)
        for reference in engines {
            let engine = reference.takeUnretainedValue()
            guard engine !== sender else { continue }
            engine.news.append(news)
            engine.hasNews = true
            apus_attend(engine.attention)
        }
        pthread_mutex_unlock(&lock)
    }

    func take(_ engine: EngineState) -> [CodeNews] {
        pthread_mutex_lock(&lock)
        defer { pthread_mutex_unlock(&lock) }
        let news = engine.news
        engine.news.removeAll()
        engine.hasNews = false
        return news
    }
}

final class EngineState {
    static let filledSlots = 512

    let bus: any GuestBus
    let map: PhysicalMap
    let attention: UnsafeMutablePointer<UInt32>
    let blocks: BlockCache
    /// TLB entries in use since the last flush, unless there are too many to note.
    let filled: UnsafeMutablePointer<UInt16>
    @exclusivity(unchecked) var filledCount = 0
    /// Linear range within which translations come from large pages.
    @exclusivity(unchecked) var largeFirst = UInt64.max
    @exclusivity(unchecked) var largeLast: UInt64 = 0
    private let regions: UnsafeMutablePointer<PhysicalRegion>
    @exclusivity(unchecked) private var regionCount = 0
    @exclusivity(unchecked) private var lastRegion = 0
    static let maximumRegions = 256
    @exclusivity(unchecked) var news: [CodeNews] = []
    @exclusivity(unchecked) var hasNews = false

    init(map: PhysicalMap, bus: any GuestBus, attention: UnsafeMutablePointer<UInt32>) {
        (self.map, self.bus, self.attention) = (map, bus, attention)
        blocks = BlockCache()
        filled = .allocate(capacity: Self.filledSlots)
        filled.initialize(repeating: 0, count: Self.filledSlots)
        regions = .allocate(capacity: Self.maximumRegions)
        takeRegions()
        map.engines.add(self)
    }

    deinit {
        map.engines.remove(self)
        filled.deallocate()
        regions.deallocate()
    }

    /// Copies the map's regions, so that lookups need no class or array.
    func takeRegions() {
        regionCount = min(map.regions.count, Self.maximumRegions)
        for index in 0..<regionCount { (regions + index).initialize(to: map.regions[index]) }
        lastRegion = 0
    }

    /// The region that holds a physical address, if memory does.
    @inline(__always) func region(_ physical: UInt64) -> UnsafeMutablePointer<PhysicalRegion>? {
        let last = regions + lastRegion
        if lastRegion < regionCount, physical &- last.pointee.start < last.pointee.bytes { return last }
        return search(physical)
    }

    @inline(never) private func search(_ physical: UInt64) -> UnsafeMutablePointer<PhysicalRegion>? {
        for index in 0..<regionCount {
            let region = regions + index
            guard physical &- region.pointee.start < region.pointee.bytes else { continue }
            lastRegion = index
            return region
        }
        return nil
    }

    func noteLarge(_ linear: UInt64) {
        largeFirst = min(largeFirst, linear & ~0x3F_FFFF)
        largeLast = max(largeLast, linear | 0x3F_FFFF)
    }
}

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// The engine behind the vCPU. Set once by `SoftwareCPU`, for the vCPU's whole life.
    @inline(__always) var engine: EngineState {
        guard let context = self.pointee.context else { preconditionFailure("a vCPU without engine") }
        return Unmanaged<EngineState>.fromOpaque(context).takeUnretainedValue()
    }
    /// The machine around the vCPU.
    @inline(__always) var bus: any GuestBus { engine.bus }
}
