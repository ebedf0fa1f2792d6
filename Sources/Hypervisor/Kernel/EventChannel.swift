// Event channels: ports, what each is bound to, and the bits of the two-level form that the guest sees.
// Source: Xen public/event_channel.h; xen/common/event_channel.c and event_2l.c (rules and errors).
// Modelled: unbound, interdomain with domain 0, IPIs, virtual interrupts. Not modelled: physical interrupts.
// Quirks: port 0 is never given out; global virtual interrupts bind to vCPU 0. A back end's end of a channel has a
// number of its own and outlives the guest's end: Windows' drivers reset all ports and bind to it anew.

internal import CXen
internal import Ioreq
internal import Synchronization

final class EventChannels: Sendable {
    /// What a port is bound to.
    enum Binding: Equatable, Sendable {
        case unbound(remote: UInt16)
        case interdomain(remote: UInt16, port: UInt32)
        case virq(Int)
        case ipi
    }

    private struct Port {
        var binding: Binding
        var vcpu = 0
    }

    /// A back end's end of a channel.
    private struct Remote {
        /// The guest's port; nil while it waits for one.
        var local: Int?
        let signal: @Sendable (Int) -> Void
    }

    /// Both sides' ports.
    private struct Table {
        var ports: [Int: Port] = [:]
        var remotes: [Int: Remote] = [:]
        subscript(port: Int) -> Port? {
            get { ports[port] }
            set { ports[port] = newValue }
        }
    }

    private let shared: SharedInfo
    private let domid: UInt16
    private let ports = Mutex(Table())
    private let vcpus: Int
    /// The guest's events come in FIFO form; see FIFOEvents.swift.
    private let queues = Mutex<FIFOEvents?>(nil)
    var fifo: FIFOEvents? { queues.withLock { $0 } }
    /// One past the highest port there can be.
    var limit: Int { fifo == nil ? shared.layout.ports : FIFOEvents.ports }

    init(_ shared: SharedInfo, domid: UInt16, vcpus: Int) {
        (self.shared, self.domid, self.vcpus) = (shared, domid, vcpus)
    }

    /// Goes over to the FIFO form, with a vCPU's control block.
    func beginFIFO(_ vcpu: Int, _ page: GuestArea, offset: Int) throws(XenError) {
        let early = Set(ports.withLock { Array($0.ports.keys) }.filter { isPending($0) })
        let isTaken = queues.withLock { queues in
            let fifo = queues ?? FIFOEvents(vcpus: vcpus, early: early)
            guard fifo.setControl(vcpu, page, offset: offset) else { return false }
            queues = fifo
            return true
        }
        guard isTaken else { throw .invalid }
    }

    // MARK: binding

    /// Takes the lowest free port.
    private func allocate(_ binding: Binding, vcpu: Int = 0) throws(XenError) -> Int {
        let (limit, fifo) = (limit, fifo)
        let found: Int? = ports.withLock { ports in
            guard let free = (1..<limit).first(where: { ports[$0] == nil && !(fifo?.isLinked($0) ?? false) }) else {
                return nil
            }
            ports[free] = Port(binding: binding, vcpu: vcpu)
            return free
        }
        guard let found else { throw .noSpace }
        clearPending(found)
        return found
    }

    func allocateUnbound(remote: UInt16) throws(XenError) -> Int {
        try allocate(.unbound(remote: remote == 0x7FF0 ? domid : remote))
    }

    /// Binds to a back end's port that lost its other end, or to a port of this very domain that waits for it (a loop).
    func bindInterdomain(remote: UInt16, port remotePort: Int) throws(XenError) -> Int {
        if remote == 0 {
            let waits = ports.withLock { $0.remotes[remotePort].map { $0.local == nil } ?? false }
            guard waits else { throw .invalid }
            let local = try allocate(.interdomain(remote: 0, port: UInt32(truncatingIfNeeded: remotePort)))
            ports.withLock { $0.remotes[remotePort]?.local = local }
            return local
        }
        guard remote == domid || remote == 0x7FF0 else { throw .noSuchProcess }
        let waits = ports.withLock { $0[remotePort]?.binding == .unbound(remote: domid) }
        guard waits else { throw .invalid }
        let local = try allocate(.interdomain(remote: domid, port: UInt32(truncatingIfNeeded: remotePort)))
        ports.withLock {
            $0[remotePort]?.binding = .interdomain(remote: domid, port: UInt32(truncatingIfNeeded: local))
        }
        return local
    }

    private static let perVCPU: Set<Int> = [
        Int(VIRQ_TIMER), Int(VIRQ_DEBUG), Int(VIRQ_XENOPROF), Int(VIRQ_XENPMU),
    ]

    func bind(virq: Int, vcpu: Int) throws(XenError) -> Int {
        guard (0..<Int(NR_VIRQS)).contains(virq) else { throw .invalid }
        guard vcpu == 0 || Self.perVCPU.contains(virq) else { throw .invalid }
        guard port(virq: virq, vcpu: vcpu) == nil else { throw .exists }
        return try allocate(.virq(virq), vcpu: vcpu)
    }

    func bindIPI(vcpu: Int) throws(XenError) -> Int { try allocate(.ipi, vcpu: vcpu) }

    /// Moves a port's events to another vCPU; those that belong to one stay.
    func bind(_ port: Int, vcpu: Int) throws(XenError) {
        let isMoved = ports.withLock { ports in
            switch ports[port]?.binding {
            case nil, .ipi: return false
            case .virq(let virq) where Self.perVCPU.contains(virq): return false
            default:
                ports[port]?.vcpu = vcpu
                return true
            }
        }
        guard isMoved else { throw .invalid }
    }

    func close(_ port: Int) throws(XenError) {
        guard let closed = ports.withLock({ $0.ports.removeValue(forKey: port) }) else { throw .invalid }
        clearPending(port)
        guard case .interdomain(let remote, let other) = closed.binding else { return }
        // The other end waits again.
        ports.withLock {
            if remote == domid { $0[Int(other)]?.binding = .unbound(remote: domid) }
            if remote == 0, $0.remotes[Int(other)]?.local == port { $0.remotes[Int(other)]?.local = nil }
        }
    }

    func closeAll() {
        for port in ports.withLock({ Array($0.ports.keys) }) { try? close(port) }
        queues.withLock { $0 = nil }
    }

    /// A back end takes the other end of a port that waits for it, or of one it had before. Its own port's number,
    /// which `signal` gets with each event.
    func attach(_ port: Int, signal: @escaping @Sendable (Int) -> Void) -> Int? {
        ports.withLock { ports in
            switch ports[port]?.binding {
            case .unbound(0): break
            case .interdomain(0, let old): ports.remotes[Int(old)] = nil
            default: return nil
            }
            guard let free = (1..<EventPages.ports).first(where: { ports.remotes[$0] == nil }) else { return nil }
            ports.remotes[free] = Remote(local: port, signal: signal)
            ports[port]?.binding = .interdomain(remote: 0, port: UInt32(free))
            return free
        }
    }

    /// The back end gives its port up.
    func detach(_ remotePort: Int) {
        ports.withLock { ports in
            guard let remote = ports.remotes.removeValue(forKey: remotePort), let local = remote.local else { return }
            ports[local]?.binding = .unbound(remote: 0)
        }
    }

    /// The guest's port at the other end of a back end's.
    func local(of remotePort: Int) -> Int? { ports.withLock { $0.remotes[remotePort]?.local } }

    /// The back end's port at the other end of the guest's.
    func remote(of port: Int) -> Int? {
        guard case .interdomain(0, let remote) = status(port)?.binding else { return nil }
        return Int(remote)
    }

    // MARK: looking

    func status(_ port: Int) -> (binding: Binding, vcpu: Int)? {
        ports.withLock { $0[port].map { ($0.binding, $0.vcpu) } }
    }

    func port(virq: Int, vcpu: Int) -> Int? {
        ports.withLock { $0.ports.first { $0.value.binding == .virq(virq) && $0.value.vcpu == vcpu }?.key }
    }

    /// What EVTCHNOP_send does: another local port becomes pending (its number), or the back end is told.
    func send(_ port: Int) throws(XenError) -> Int? {
        let (local, signal, isBound): (Int?, (@Sendable () -> Void)?, Bool) = ports.withLock { ports in
            guard let entry = ports[port] else { return (nil, nil, false) }
            switch entry.binding {
            case .ipi: return (port, nil, true)
            case .interdomain(domid, let other): return (Int(other), nil, true)
            case .interdomain(_, let other):
                let signal = ports.remotes[Int(other)]?.signal
                return (nil, { signal?(Int(other)) }, true)
            case .unbound: return (nil, nil, true)
            case .virq: return (nil, nil, false)
            }
        }
        guard isBound else { throw .invalid }
        signal?()
        return local
    }

    // MARK: bits

    /// Sets a port's pending bit. nil: there is no such port, or it was pending. `isNew`: its vCPU must be told.
    func setPending(_ port: Int) -> (vcpu: Int, isNew: Bool)? {
        guard let vcpu = ports.withLock({ $0[port]?.vcpu }), let page = shared.page else { return nil }
        if let fifo {
            let (isNew, isReady) = fifo.setPending(port, vcpu: vcpu)
            return isNew || isReady ? (vcpu, isReady && mark(vcpu)) : nil
        }
        let layout = shared.layout
        guard port < layout.ports, !page.setBit(layout.pending * 8 + port) else { return nil }
        return (vcpu, !page.hasBit(layout.mask * 8 + port) && select(port, vcpu, layout))
    }

    /// Sets the selector bit and evtchn_upcall_pending; whether the latter was clear.
    private func select(_ port: Int, _ vcpu: Int, _ layout: SharedInfo.Layout) -> Bool {
        guard let info = shared.info(vcpu), !info.setBit(layout.selector * 8 + port / layout.wordBits) else {
            return false
        }
        return info.exchange(1, at: 0) == 0
    }

    /// Sets evtchn_upcall_pending; whether it was clear.
    private func mark(_ vcpu: Int) -> Bool { shared.info(vcpu)?.exchange(1, at: 0) == 0 }

    /// Clears the mask bit; the vCPU to tell if that made the port deliverable.
    func unmask(_ port: Int) throws(XenError) -> Int? {
        if let fifo, let vcpu = ports.withLock({ $0[port]?.vcpu }) {
            return fifo.unmask(port) && fifo.setPending(port, vcpu: vcpu).isReady && mark(vcpu) ? vcpu : nil
        }
        let layout = shared.layout
        guard let vcpu = ports.withLock({ $0[port]?.vcpu }), let page = shared.page, port < layout.ports else {
            throw .invalid
        }
        guard page.clearBit(layout.mask * 8 + port), page.hasBit(layout.pending * 8 + port) else { return nil }
        return select(port, vcpu, layout) ? vcpu : nil
    }

    func isPending(_ port: Int) -> Bool {
        if let fifo { return fifo.isPending(port) }
        let layout = shared.layout
        return port < layout.ports && shared.page?.hasBit(layout.pending * 8 + port) ?? false
    }

    private func clearPending(_ port: Int) {
        if let fifo { return fifo.clearPending(port) }
        shared.page?.clearBit(shared.layout.pending * 8 + port)
    }
}
