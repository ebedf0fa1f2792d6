// Stores to code: what is decoded from written bytes is forgotten, by this vCPU and by the others.
// Source: Intel SDM vol. 3 §8.1.3, §11.6 (self-modifying and cross-modifying code).
// Modelled: each page of code knows which engines decoded something from it; they are told, and acknowledge.
// Quirks: a serializing instruction forgets what was written to pages that nobody watched yet.

internal import CProcessor

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// A store reached a page that holds code.
    @inline(never) func codeWritten(_ physical: UInt64, _ bytes: UInt64) {
        let engine = engine
        if !forgetCode(physical, bytes), engine.pointee.blocks.isStale(physical) {
            forgetCode(physical & ~0xFFF, 4096)
        }
        guard engine.pointee.isShared, let holders = codeHolders(physical), holders.pointee != 0 else { return }
        engine.pointee.map.engines.written(physical & ~0xFFF, holders, by: engine)
    }

    /// The code map's byte of a page: a bit for each engine that decoded something from it.
    private func codeHolders(_ physical: UInt64) -> UnsafeMutablePointer<UInt8>? {
        guard let region = engine.pointee.region(physical), let map = region.pointee.codeMap else { return nil }
        return map + Int(truncatingIfNeeded: (physical &- region.pointee.start) &>> 12)
    }

    /// Forgets code of this vCPU decoded from a physical range; whether there was any.
    @discardableResult func forgetCode(_ physical: UInt64, _ bytes: UInt64) -> Bool {
        guard bytes > 0 else { return false }
        let engine = engine
        if bytes > 1 << 20 {
            forgetAllCode()
            return true
        }
        var start = physical
        let end = physical &+ bytes
        var anyHit = false
        while start < end {
            let part = min(end &- start, 4096 &- start & 0xFFF)
            let (hit, isEmpty) = engine.pointee.blocks.forget(start, part, running: self.pointee.current)
            anyHit = anyHit || hit
            if isEmpty, engine.pointee.ownsCodeBit, let holders = codeHolders(start) {
                _ = apus_atomic_and8(holders, ~engine.pointee.codeBit)
            }
            start &+= part
        }
        if anyHit { self.pointee.code_generation &+= 1 }
        return anyHit
    }

    func forgetAllCode() {
        engine.pointee.blocks.removeAll(running: self.pointee.current)
        self.pointee.code_generation &+= 1
        dropJumps()
    }

    /// Notes that a page holds code: from now on, stores to it take the slow way.
    func guardPage(_ physical: UInt64) {
        let engine = engine
        guard let holders = codeHolders(physical), holders.pointee & engine.pointee.codeBit == 0 else { return }
        let isFirst = apus_atomic_or8(holders, engine.pointee.codeBit) == 0
        // Nobody has watched stores until now.
        if isFirst, let host = hostPage(physical) { _ = flushStores(to: host) }
        guard engine.pointee.isShared else { return }
        engine.pointee.map.engines.guarded(physical & ~0xFFF, isFirst: isFirst, by: engine)
    }

    /// Enters what stores to guest memory.
    @inline(__always) func enterGuest() {
        guard engine.pointee.isShared else { return }
        apus_set_flag(engine.pointee.inside, true)
        if engine.pointee.hasNews { readNews() }
    }
    /// Leaves it, with no news unread.
    @inline(__always) func leaveGuest() {
        guard engine.pointee.isShared else { return }
        while true {
            if engine.pointee.hasNews { readNews() }
            apus_set_flag(engine.pointee.inside, false)
            if !engine.pointee.hasNews { return }
            apus_set_flag(engine.pointee.inside, true)
        }
    }

    /// A serializing instruction: what others have written to code until now is to be seen behind it, whether they
    /// watch that page already or not (SDM vol. 3 §8.1.3).
    @inline(__always) func serialize() {
        if !engine.pointee.unwatched.isEmpty { forgetUnwatched() }
    }
    @inline(never) private func forgetUnwatched() {
        for page in engine.pointee.map.engines.takeUnwatched(engine) { forgetCode(page, 4096) }
    }

    private func hostPage(_ physical: UInt64) -> UnsafeMutableRawPointer? {
        guard let region = engine.pointee.region(physical) else { return nil }
        return region.pointee.host + Int(truncatingIfNeeded: (physical & ~0xFFF) &- region.pointee.start)
    }

    /// Takes in what other vCPUs did to code.
    func readNews() {
        let engine = engine
        let stamp = engine.pointee.spaces.storeStamp
        let (list, sequence) = engine.pointee.map.engines.take(engine)
        defer { engine.pointee.map.engines.acknowledge(sequence, by: engine) }
        for news in list {
            switch news {
            case .written(let page): forgetCode(page, 4096)
            case .guarded(let page, let then):
                guard let host = hostPage(page) else { continue }
                // Stores may have gone by unseen until now, if there was a translation for them.
                if flushStores(to: host) || stamp != then { codeWritten(page, 4096) }
            case .everything: forgetAllCode()
            case .overflow:
                flushStores()
                forgetAllCode()
                engine.pointee.map.engines.everything(by: engine)
            }
        }
    }
}
