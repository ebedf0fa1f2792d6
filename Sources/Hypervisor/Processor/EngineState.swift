// What a software vCPU keeps beside its registers: memory map, TLB book-keeping, decoded code, mailbox.
// Source: our own design; the map's regions come from the domain.
// One thread uses an engine's state; other threads reach it only through its mailbox.
// `PhysicalMap` lists the engines of a domain, so that code written by one is forgotten by all.

internal import CProcessor
internal import Glibc

/// News from other vCPUs of the domain.
enum CodeNews: Equatable {
    /// This page was written: forget what was decoded from it.
    case written(UInt64)
    /// This page holds code now: stores to it must be watched. With the receiver's `storeStamp` at that moment.
    case guarded(UInt64, stamp: UInt32)
    /// Forget everything.
    case everything
    /// More happened than was noted: the others' code may be stale as well.
    case overflow
}

/// The engines that share a memory map.
final class EngineList: @unchecked Sendable {
    // Invariant: `engines` and every engine's `news` are only touched with `lock` held.
    private var lock = pthread_mutex_t()
    private var bus = pthread_mutex_t()
    private var engines: [Engine] = []
    /// Counts announcements of guarded pages.
    private var sequence: UInt64 = 0
    /// A sleeping vCPU's mailbox does not grow any further.
    private static let longestNews = 256
    init() {
        pthread_mutex_init(&lock, nil)
        pthread_mutex_init(&bus, nil)
    }
    deinit {
        pthread_mutex_destroy(&lock)
        pthread_mutex_destroy(&bus)
    }

    /// Held around a locked access that the host cannot make in one: over two pages, or no RAM. Outermost.
    func lockBus() { pthread_mutex_lock(&bus) }
    func unlockBus() { pthread_mutex_unlock(&bus) }

    func add(_ engine: Engine) {
        pthread_mutex_lock(&lock)
        let used = engines.map(\.pointee.slot)
        engine.pointee.slot = (0...engines.count).first { !used.contains($0) } ?? engines.count
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

    /// Engines are added and removed before guests run and after, so the flags need no lock to be read.
    private func noteSharing() {
        let isCrowded = engines.contains { $0.pointee.slot >= 8 }
        for engine in engines {
            engine.pointee.isShared = engines.count > 1
            engine.pointee.ownsCodeBit = !isCrowded
        }
    }

    /// With `lock` held: leaves a message and calls the engine out of its loop.
    private func post(_ news: CodeNews, to engine: Engine) {
        if engine.pointee.news.count >= Self.longestNews {
            engine.pointee.news = [.overflow]
        } else if engine.pointee.news.last != news {
            engine.pointee.news.append(news)
        }
        apus_set_flag(engine.pointee.newsFlag, true)
        apus_attend(engine.pointee.attention)
        engine.pointee.direct?.interrupt()
    }

    /// Notes that `sender` has code of a page; the others are told if they do not watch it yet.
    func guarded(_ page: UInt64, isFirst: Bool, by sender: Engine) {
        pthread_mutex_lock(&lock)
        if isFirst {
            sequence += 1
            for engine in engines where engine != sender {
                post(.guarded(page, stamp: engine.pointee.spaces.storeStamp), to: engine)
                // Who is outside stores nothing before reading the news, and left none unread.
                if !apus_flag(engine.pointee.inside), engine.pointee.known == sequence - 1 {
                    engine.pointee.known = sequence
                }
            }
            if sender.pointee.known == sequence - 1 { sender.pointee.known = sequence }
        }
        sender.pointee.unwatched.append((page, sequence))
        pthread_mutex_unlock(&lock)
    }

    /// The pages of `engine` that some vCPU may still store to unseen, in the middle of what it was doing when it
    /// was told; the list starts anew.
    func takeUnwatched(_ engine: Engine) -> [UInt64] {
        pthread_mutex_lock(&lock)
        defer { pthread_mutex_unlock(&lock) }
        var known = UInt64.max
        for other in engines where other != engine { known = min(known, other.pointee.known) }
        let pages = engine.pointee.unwatched.filter { $0.sequence > known }.map(\.page)
        engine.pointee.unwatched.removeAll(keepingCapacity: true)
        return pages
    }

    /// Tells the engines that have code of a page that it was written. They will forget it before they run on, so
    /// their bits are cleared at once: whoever stores there next need not tell them again.
    func written(_ page: UInt64, _ holders: UnsafeMutablePointer<UInt8>, by sender: Engine) {
        pthread_mutex_lock(&lock)
        for engine in engines where engine != sender && holders.pointee & engine.pointee.codeBit != 0 {
            post(.written(page), to: engine)
            if engine.pointee.ownsCodeBit { _ = apus_atomic_and8(holders, ~engine.pointee.codeBit) }
        }
        pthread_mutex_unlock(&lock)
    }

    /// Makes every other engine forget all code.
    func everything(by sender: Engine) {
        pthread_mutex_lock(&lock)
        for engine in engines where engine != sender { post(.everything, to: engine) }
        pthread_mutex_unlock(&lock)
    }

    /// What an engine has to take in, and how far that goes; to be acknowledged once it is done.
    func take(_ engine: Engine) -> (news: [CodeNews], sequence: UInt64) {
        pthread_mutex_lock(&lock)
        defer { pthread_mutex_unlock(&lock) }
        let news = engine.pointee.news
        engine.pointee.news.removeAll()
        apus_set_flag(engine.pointee.newsFlag, false)
        return (news, sequence)
    }

    func acknowledge(_ sequence: UInt64, by engine: Engine) {
        pthread_mutex_lock(&lock)
        engine.pointee.known = max(engine.pointee.known, sequence)
        pthread_mutex_unlock(&lock)
    }
}

/// Reached by pointer: a class would be retained and released at each access.
typealias Engine = UnsafeMutablePointer<EngineState>

struct EngineState {
    let bus: any GuestBus
    let map: PhysicalMap
    let attention: UnsafeMutablePointer<UInt32>
    var blocks: BlockCache
    var translator: Translator?
    /// Where programs of the guest run by themselves, if the host allows that.
    var direct: DirectExecution?
    var spaces = AddressSpaces()
    /// Of a PV guest's vCPU.
    private(set) var paravirtual: UnsafeMutablePointer<ParavirtualState>?
    private let regions: UnsafeMutablePointer<PhysicalRegion>
    private var regionCount = 0
    private var lastRegion = 0
    static let maximumRegions = 256
    private(set) var addressMask = UInt64.max
    var news: [CodeNews] = []
    /// Set by others; its own thread reads it anew each time.
    let newsFlag: UnsafeMutablePointer<UInt8>
    @inline(__always) var hasNews: Bool { apus_flag(newsFlag) }
    /// More than one engine uses the map.
    var isShared = false
    /// This engine's number among those of the map, and its bit in the code map's bytes: up to eight engines have one
    /// each, more share them.
    var slot = 0
    var codeBit: UInt8 { 1 &<< UInt8(truncatingIfNeeded: slot & 7) }
    var ownsCodeBit = true
    /// Set while the vCPU may store to guest memory: only its own thread writes it.
    let inside: UnsafeMutablePointer<UInt8>
    /// The last announcement of a guarded page that was taken in.
    var known: UInt64 = 0
    /// Pages with code of this engine that others may not watch yet, until the next serializing instruction.
    var unwatched: [(page: UInt64, sequence: UInt64)] = []
    /// PAUSE instructions run.
    var pauses: UInt32 = 0

    init(map: PhysicalMap, bus: any GuestBus, attention: UnsafeMutablePointer<UInt32>) {
        (self.map, self.bus, self.attention) = (map, bus, attention)
        blocks = BlockCache()
        translator = Translator(&blocks)
        // Made now: a process that is confined maps nothing executable any more.
        _ = ThunkStore.shared
        regions = .allocate(capacity: Self.maximumRegions)
        inside = .allocate(capacity: 1)
        inside.initialize(to: 0)
        newsFlag = .allocate(capacity: 1)
        newsFlag.initialize(to: 0)
        if let memory = map.paravirtual {
            let state = UnsafeMutablePointer<ParavirtualState>.allocate(capacity: 1)
            state.initialize(to: ParavirtualState(memory))
            paravirtual = state
        }
        takeRegions()
    }

    func deallocate() {
        if let paravirtual {
            paravirtual.pointee.deallocate()
            paravirtual.deinitialize(count: 1)
            paravirtual.deallocate()
        }
        translator?.deallocate()
        blocks.deallocate()
        spaces.deallocate()
        regions.deallocate()
        inside.deallocate()
        newsFlag.deallocate()
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
