// Event channels, FIFO: a word for each port, linked into sixteen queues for each vCPU.
// Source: Xen public/event_channel.h ("FIFO ABI"); xen/common/event_fifo.c (order of bits, links, errors).
// Modelled: control blocks, the growing array, priorities, queues that a port leaves for another.
// Quirks: the guest may write any word at any time: links are made by compare and exchange, and given up after a few.

internal import CXen
internal import Synchronization

final class FIFOEvents: Sendable {
    static let ports = 1 << 17
    private static let portsInPage = 1024
    private static let pages = ports / portsInPage
    private static let defaultPriority = 7
    /// Tail of a link, and bits of a word.
    private static let linkMask: UInt32 = 0x1_FFFF
    private static let (pending, masked, linked, busy) = (31, 30, 29, 28)

    /// Where a port was linked last.
    private struct Place: Equatable {
        var vcpu = 0
        var priority = FIFOEvents.defaultPriority
    }

    private struct State {
        var array: [GuestArea] = []
        /// Of each vCPU: its control block, and the last port of each queue.
        var control: [GuestArea?]
        var tails: [[Int]]
        var priorities: [Int: Int] = [:]
        var last: [Int: Place] = [:]
        /// Ports that became pending while they had no word.
        var early: Set<Int> = []

        func word(_ port: Int) -> GuestArea? {
            let page = port / FIFOEvents.portsInPage
            guard array.indices.contains(page) else { return nil }
            return array[page].part(port % FIFOEvents.portsInPage * 4, 4)
        }
    }
    private let state: Mutex<State>

    /// `early`: ports that are pending now.
    init(vcpus: Int, early: Set<Int>) {
        state = Mutex(
            State(
                control: [GuestArea?](repeating: nil, count: vcpus),
                tails: [[Int]](repeating: [Int](repeating: 0, count: 16), count: vcpus), early: early))
    }

    // MARK: set-up

    /// Takes a vCPU's control block; false: it has one, or the block does not fit its page.
    func setControl(_ vcpu: Int, _ page: GuestArea, offset: Int) -> Bool {
        guard offset & 7 == 0, let block = page.part(offset, 72) else { return false }
        return state.withLock { state in
            guard state.control.indices.contains(vcpu), state.control[vcpu] == nil else { return false }
            state.control[vcpu] = block
            return true
        }
    }

    /// Adds a page of words; ports of it that are pending already, or nil if there are enough pages.
    func expand(_ page: GuestArea) -> [Int]? {
        state.withLock { state in
            guard state.array.count < Self.pages else { return nil }
            let first = state.array.count * Self.portsInPage
            state.array.append(page)
            let early = state.early.filter { $0 >= first && $0 < first + Self.portsInPage }
            state.early.subtract(early)
            return early.sorted()
        }
    }

    func setPriority(_ port: Int, _ priority: Int) { state.withLock { $0.priorities[port] = priority } }

    // MARK: words

    func isPending(_ port: Int) -> Bool { state.withLock { $0.word(port)?.hasBit(Self.pending) ?? false } }

    /// A port that is linked must not be given out anew.
    func isLinked(_ port: Int) -> Bool { state.withLock { $0.word(port)?.hasBit(Self.linked) ?? false } }

    func clearPending(_ port: Int) {
        state.withLock { state in
            state.early.remove(port)
            state.priorities[port] = nil
            _ = state.word(port)?.clearBit(Self.pending)
        }
    }

    /// Clears the mask; whether the port is pending and so has to be linked.
    func unmask(_ port: Int) -> Bool {
        state.withLock { state in
            guard let word = state.word(port) else { return false }
            word.clearBit(Self.masked)
            return word.hasBit(Self.pending)
        }
    }

    /// Sets a port's pending bit and links it to its vCPU's queue. `isNew`: it was not pending. `isReady`: the queue
    /// had been empty, so the vCPU must be told.
    func setPending(_ port: Int, vcpu: Int) -> (isNew: Bool, isReady: Bool) {
        state.withLock { state in
            guard let word = state.word(port) else { return (state.early.insert(port).inserted, false) }
            let isNew = !word.setBit(Self.pending)
            guard state.control.indices.contains(vcpu), let control = state.control[vcpu],
                !word.hasBit(Self.masked), !word.setBit(Self.linked)
            else { return (isNew, false) }
            return (isNew, Self.link(port, vcpu, control, &state))
        }
    }

    /// Puts a port at the end of its queue; whether the queue's ready bit was clear.
    private static func link(_ port: Int, _ vcpu: Int, _ control: GuestArea, _ state: inout State) -> Bool {
        let place = Place(vcpu: vcpu, priority: state.priorities[port] ?? defaultPriority)
        // A port that ends another queue leaves that one empty, lest what comes there be linked behind it here.
        let old = state.last[port] ?? place
        if state.tails[old.vcpu][old.priority] == port { state.tails[old.vcpu][old.priority] = 0 }
        state.last[port] = place
        let tail = state.tails[vcpu][place.priority]
        state.tails[vcpu][place.priority] = port
        if tail != 0, let word = state.word(tail), setLink(word, to: port) { return false }
        control.release(UInt32(port), at: 8 + place.priority * 4)
        return !control.setBit(place.priority)
    }

    /// Links a word to a port as long as the guest has not taken it off its queue.
    private static func setLink(_ word: GuestArea, to port: Int) -> Bool {
        for attempt in 0..<5 {
            // From the second attempt on, the guest waits.
            if attempt == 1 { _ = word.setBit(busy) }
            let old = word.acquire(0)
            guard old & 1 << UInt32(linked) != 0 else {
                if attempt > 0 { word.clearBit(busy) }
                return false
            }
            let new = old & ~(linkMask | 1 << UInt32(busy)) | UInt32(port)
            if word.compareExchange(old, new, at: 0) { return true }
        }
        word.clearBit(busy)
        return true
    }
}

extension Hypercall {
    /// struct evtchn_init_control: u64 frame, u32 offset, u32 vCPU, u8 link bits at 16.
    func initialiseControl(_ address: UInt64) throws(XenError) {
        var call = try read(address, 24)
        let vcpu = try target(call.u32(12))
        guard let page = machine.page(call.u64(0)) else { throw .invalid }
        try xen.events.beginFIFO(vcpu, page, offset: Int(call.u32(8)))
        call.bytes[16] = UInt8(EVTCHN_FIFO_LINK_BITS)
        try write(call.bytes, address)
    }

    /// struct evtchn_expand_array: u64 frame.
    func expandArray(_ address: UInt64) throws(XenError) {
        guard let fifo = xen.events.fifo else { throw .notSupported }
        guard let page = machine.page(try read(address, 8).u64(0)) else { throw .invalid }
        guard let early = fifo.expand(page) else { throw .noSpace }
        for port in early { xen.deliver(port) }
    }

    /// struct evtchn_set_priority: u32 port, u32 priority.
    func setPriority(_ address: UInt64) throws(XenError) {
        let call = try read(address, 8)
        guard let fifo = xen.events.fifo else { throw .notImplemented }
        guard xen.events.status(Int(call.u32(0))) != nil, call.u32(4) <= UInt32(EVTCHN_FIFO_PRIORITY_MIN) else {
            throw .invalid
        }
        fifo.setPriority(Int(call.u32(0)), Int(call.u32(4)))
    }
}
