// The shared info page, the vcpu_info of each vCPU, and the clocks and run states that the guest reads.
// Source: Xen public/xen.h (struct shared_info, vcpu_info, vcpu_time_info), arch-x86/xen.h, vcpu.h.
// Modelled: 64-bit and 32-bit layouts, registered areas. Not modelled: PVCLOCK_TSC_STABLE_BIT, guest-stopped flags.
// Quirks: a record's version is odd while it changes; it is written on its vCPU's own thread only.

internal import Synchronization

final class SharedInfo: Sendable {
    enum Runstate: Int, Sendable { case running = 0, runnable, blocked, offline }

    private struct Info {
        var area: GuestArea?
        var isRegistered = false
        /// Where the guest wants copies of its clock record and its run state.
        var timeCopy: GuestSpan?
        var runstateCopy: GuestSpan?
        var timeWritten: UInt64?
        var timeVersion: UInt32 = 0
        var runstate = Runstate.running
        var since: UInt64 = 0
        var times = [UInt64](repeating: 0, count: 4)
    }

    private struct State {
        var isLong = true
        var infos: [Info]
    }

    let page: GuestArea?
    private let state: Mutex<State>
    /// How old a clock record may get.
    private static let interval: UInt64 = 250_000_000

    /// `frames` begins with the page.
    init(_ frames: GuestArea, vcpus: Int) {
        let page = frames.part(0, 4096)
        self.page = page
        var infos = [Info](repeating: Info(), count: vcpus)
        for index in infos.indices where index < 32 {
            infos[index].area = page?.part(index * 64, 64)
            infos[index].area?.store(UInt8(1), at: 1)
        }
        for index in infos.indices where index != 0 { infos[index].runstate = .offline }
        state = Mutex(State(infos: infos))
    }

    /// Bits of a long in the guest's layout, ports there can be, and where pending and mask bits begin.
    struct Layout {
        var isLong: Bool
        var wordBits: Int { isLong ? 64 : 32 }
        var ports: Int { wordBits * wordBits }
        var pending: Int { 2048 }
        var mask: Int { 2048 + ports / 8 }
        var wallClock: Int { 2048 + ports / 4 }
        var wallClockHigh: Int { isLong ? wallClock + 12 : 2340 }
        var selector: Int { isLong ? 8 : 4 }
    }

    var layout: Layout { Layout(isLong: state.withLock { $0.isLong }) }

    /// The guest's longs have 8 bytes, or 4.
    func latch(isLong: Bool) { state.withLock { $0.isLong = isLong } }

    func info(_ vcpu: Int) -> GuestArea? {
        state.withLock { $0.infos.indices.contains(vcpu) ? $0.infos[vcpu].area : nil }
    }

    func isUpcallPending(_ vcpu: Int) -> Bool { info(vcpu)?.load(0, as: UInt8.self) ?? 0 != 0 }

    /// Moves a vCPU's info to a place of the guest's. Everything counts as pending there, so that nothing is lost.
    func register(_ vcpu: Int, at area: GuestArea) throws(XenError) {
        let failure: XenError? = state.withLock { state in
            guard state.infos.indices.contains(vcpu), area.bytes == 64 else { return .invalid }
            guard !state.infos[vcpu].isRegistered else { return .invalid }
            if let old = state.infos[vcpu].area {
                area.write(old.read(0, 64), at: 0)
            } else {
                area.write([0, 1] + [UInt8](repeating: 0, count: 62), at: 0)
            }
            state.infos[vcpu].area = area
            state.infos[vcpu].isRegistered = true
            state.infos[vcpu].timeWritten = nil
            if state.isLong { area.store(UInt64.max, at: 8) } else { area.store(UInt32.max, at: 4) }
            area.store(UInt8(1), at: 0)
            return nil
        }
        if let failure { throw failure }
    }

    // MARK: clocks

    /// `offset`: the wall clock at guest time 0, nanoseconds since 1970.
    func setWallClock(_ offset: UInt64) {
        let layout = layout
        guard let page else { return }
        let version = page.acquire(layout.wallClock)
        page.release(version | 1, at: layout.wallClock)
        page.store(UInt32(truncatingIfNeeded: offset / 1_000_000_000), at: layout.wallClock + 4)
        page.store(UInt32(offset % 1_000_000_000), at: layout.wallClock + 8)
        page.store(UInt32(truncatingIfNeeded: (offset / 1_000_000_000) >> 32), at: layout.wallClockHigh)
        page.release((version | 1) &+ 1, at: layout.wallClock)
    }

    /// Writes the clock record of a vCPU if it is old.
    func refreshTime(_ vcpu: Int, nanoseconds: UInt64, kilohertz: UInt32, tsc: () -> UInt64) {
        let work: (area: GuestArea?, copy: GuestSpan?, version: UInt32)? = state.withLock { state in
            guard state.infos.indices.contains(vcpu) else { return nil }
            if let written = state.infos[vcpu].timeWritten, nanoseconds >= written,
                nanoseconds - written < Self.interval
            {
                return nil
            }
            state.infos[vcpu].timeWritten = nanoseconds
            state.infos[vcpu].timeVersion &+= 2
            let info = state.infos[vcpu]
            return (info.area, info.timeCopy, info.timeVersion)
        }
        guard let work else { return }
        let (multiplier, shift) = XenLeaves.scale(kilohertz)
        var record = Record(count: 32, isLong: true)
        record.set(work.version &- 1, at: 0)
        record.set(tsc(), at: 8)
        record.set(nanoseconds, at: 16)
        record.set(multiplier, at: 24)
        record.bytes[28] = UInt8(truncatingIfNeeded: shift)
        if let area = work.area {
            area.release(work.version &- 1, at: 32)
            area.write(record.bytes[4...], at: 36)
            area.release(work.version, at: 32)
        }
        work.copy?.write(record.bytes)
        record.set(work.version, at: 0)
        work.copy?.write(Array(record.bytes[0..<4]))
    }

    func registerTime(_ vcpu: Int, _ span: GuestSpan) {
        state.withLock { state in
            guard state.infos.indices.contains(vcpu) else { return }
            state.infos[vcpu].timeCopy = span
            state.infos[vcpu].timeWritten = nil
        }
    }

    // MARK: run states

    func setRunstate(_ vcpu: Int, _ next: Runstate, nanoseconds: UInt64) {
        state.withLock { state in
            guard state.infos.indices.contains(vcpu), state.infos[vcpu].runstate != next else { return }
            let old = state.infos[vcpu].runstate
            state.infos[vcpu].times[old.rawValue] &+= nanoseconds &- state.infos[vcpu].since
            (state.infos[vcpu].runstate, state.infos[vcpu].since) = (next, nanoseconds)
            state.infos[vcpu].runstateCopy?.write(Self.record(state.infos[vcpu], isLong: state.isLong))
        }
    }

    /// Registers a copy of the run state, written now and at each change.
    func registerRunstate(_ vcpu: Int, _ span: GuestSpan) {
        state.withLock { state in
            guard state.infos.indices.contains(vcpu) else { return }
            state.infos[vcpu].runstateCopy = span
            span.write(Self.record(state.infos[vcpu], isLong: state.isLong))
        }
    }

    /// struct vcpu_runstate_info of a vCPU at a time.
    func runstate(_ vcpu: Int, isLong: Bool, nanoseconds: UInt64) -> [UInt8] {
        state.withLock { state in
            guard state.infos.indices.contains(vcpu) else { return [] }
            var info = state.infos[vcpu]
            info.times[info.runstate.rawValue] &+= nanoseconds &- info.since
            return Self.record(info, isLong: isLong)
        }
    }

    static func runstateBytes(isLong: Bool) -> Int { isLong ? 48 : 44 }

    private static func record(_ info: Info, isLong: Bool) -> [UInt8] {
        let gap = isLong ? 8 : 4
        var record = Record(count: runstateBytes(isLong: isLong), isLong: isLong)
        record.set(UInt32(info.runstate.rawValue), at: 0)
        record.set(info.since, at: gap)
        for (index, time) in info.times.enumerated() { record.set(time, at: gap + 8 + index * 8) }
        return record.bytes
    }
}
