internal import Glibc
public import Host
internal import Synchronization

/// The device model's side: serves requests on the thread that owns the devices.
public final class IoreqServer {
    public let pages: IoreqPages
    let vcpus: Int
    let doorbell: Descriptor
    /// Carries out one request; a read's value.
    public var handler: (Request) -> UInt64 = { _ in .max }
    /// Looks whether what devices wait for in the host is done, without a system call, and carries on with it. Whether
    /// a device is in such use that looking again soon beats being woken.
    public var look: () -> Bool = { false }
    /// How long to keep looking after a request before sleeping, and after `look` has last found a device in use.
    static let hotNanoseconds: UInt64 = 30_000
    /// Between two looks at descriptors and deadlines at most.
    static let turnNanoseconds: UInt64 = 250_000
    /// On a host with one CPU, looking only keeps the guest from running.
    private static let looksOn = Affinity.read(0).count > 1

    public init(_ pages: IoreqPages, vcpus: Int, doorbell: Descriptor) {
        (self.pages, self.vcpus, self.doorbell) = (pages, min(vcpus, IoreqLayout.maximumVCPUs), doorbell)
    }

    /// Ties the server to `reactor`: requests are served before it sleeps and when it is woken.
    public func attach(to reactor: Reactor) {
        let asleep = pages.word(IoreqLayout.asleep)
        reactor.watch(doorbell.number) { [doorbell] _ in
            var count: UInt64 = 0
            _ = Glibc.read(doorbell.number, &count, 8)
        }
        reactor.onWake = { asleep.pointee.store(0, ordering: .sequentiallyConsistent) }
        reactor.maySleep = { [unowned self] in
            if serveWhileHot() { return false }
            asleep.pointee.store(1, ordering: .sequentiallyConsistent)
            if serve() {
                asleep.pointee.store(0, ordering: .sequentiallyConsistent)
                return false
            }
            return true
        }
    }

    /// Serves until none came for `hotNanoseconds` and no device is in use; true if there was anything and the loop
    /// should look at its descriptors before it comes back.
    private func serveWhileHot() -> Bool {
        let served = serve()
        let inUse = look()
        guard served || inUse && Self.looksOn else { return false }
        var quietSince = monotonicNanoseconds()
        let end = quietSince + Self.turnNanoseconds
        while true {
            let served = serve()
            let inUse = look()
            let now = monotonicNanoseconds()
            if served || inUse && Self.looksOn { quietSince = now }
            if now - quietSince > Self.hotNanoseconds || now > end { return true }
        }
    }

    /// Serves what is waiting now; true if there was anything.
    public func serve() -> Bool {
        var served = drainPosted()
        for index in 0..<vcpus {
            let offset = index * IoreqLayout.slotSize + SlotField.control
            let control = pages.word(offset)
            let word = control.pointee.load(ordering: .acquiring)
            guard SlotField.state(word) == SlotState.ready.rawValue else { continue }
            _ = drainPosted()
            let slot = pages.base + index * IoreqLayout.slotSize
            let value = request(at: slot, control: word).map(handler) ?? .max
            slot.storeBytes(of: value, toByteOffset: SlotField.data, as: UInt64.self)
            control.pointee.store(SlotField.with(.responseReady, word), ordering: .sequentiallyConsistent)
            pages.futex(offset).wake()
            served = true
        }
        return served
    }

    /// A private copy of a slot, checked; nil if no field makes sense.
    private func request(at slot: UnsafeMutableRawPointer, control: UInt32) -> Request? {
        let size = Int(slot.load(fromByteOffset: SlotField.size, as: UInt32.self))
        let count = Int(slot.load(fromByteOffset: SlotField.count, as: UInt32.self))
        let flags = control >> 16
        guard let kind = Request.Kind(rawValue: UInt8(control >> 24)), [1, 2, 4, 8].contains(size) else { return nil }
        let memoryOperand = flags & 1 << 4 != 0
        guard count >= 1, count <= (memoryOperand ? 1 << 20 : 1) else { return nil }
        return Request(
            kind, address: slot.load(fromByteOffset: SlotField.address, as: UInt64.self), size: size, count: count,
            isRead: flags & 1 << 5 != 0, data: slot.load(fromByteOffset: SlotField.data, as: UInt64.self),
            memoryOperand: memoryOperand, descending: flags & 1 << 6 != 0)
    }

    /// Carries out posted writes in order; true if there were any.
    private func drainPosted() -> Bool {
        let read = pages.word(IoreqLayout.buffered)
        var consumed = read.pointee.load(ordering: .relaxed)
        let produced = pages.word(IoreqLayout.buffered + 4).pointee.load(ordering: .acquiring)
        guard produced != consumed, produced &- consumed <= IoreqLayout.bufferedSlots else { return false }
        while consumed != produced {
            let entry = pages.base + IoreqLayout.buffered + 8 + Int(consumed % IoreqLayout.bufferedSlots) * 8
            let header = entry.load(as: UInt32.self)
            let data = entry.load(fromByteOffset: 4, as: UInt32.self)
            if let kind = Request.Kind(rawValue: UInt8(truncatingIfNeeded: header)) {
                let size = min(1 << Int(header >> 10 & 3), 4)
                _ = handler(Request(kind, address: UInt64(header >> 12), size: size, isRead: false, data: UInt64(data)))
            }
            consumed &+= 1
            read.pointee.store(consumed, ordering: .releasing)
        }
        return true
    }
}
