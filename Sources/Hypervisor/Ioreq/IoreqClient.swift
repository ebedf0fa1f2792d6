internal import Glibc
public import Host
internal import Synchronization

/// The hypervisor's side: hands accesses to the device model and waits for answers.
public struct IoreqClient: Sendable {
    public let pages: IoreqPages
    /// eventfd that wakes the device model's loop.
    let doorbell: Descriptor
    /// How many polls of the slot before sleeping; about 20 microseconds.
    static let spins = 2_000

    public init(_ pages: IoreqPages, doorbell: Descriptor) { (self.pages, self.doorbell) = (pages, doorbell) }

    /// Has the device model carry out `request` for `vcpu`; a read's value, or all ones if it is gone.
    public func submit(_ request: Request, vcpu: Int) -> UInt64 {
        let slot = pages.base + vcpu * IoreqLayout.slotSize
        slot.storeBytes(of: request.address, toByteOffset: SlotField.address, as: UInt64.self)
        slot.storeBytes(of: request.data, toByteOffset: SlotField.data, as: UInt64.self)
        slot.storeBytes(of: UInt32(truncatingIfNeeded: request.count), toByteOffset: SlotField.count, as: UInt32.self)
        slot.storeBytes(of: UInt32(truncatingIfNeeded: request.size), toByteOffset: SlotField.size, as: UInt32.self)
        let offset = vcpu * IoreqLayout.slotSize + SlotField.control
        let control = pages.word(offset)
        control.pointee.store(SlotField.encode(request, .ready), ordering: .sequentiallyConsistent)
        wakeDeviceModel()
        var polls = 0
        while true {
            let word = control.pointee.load(ordering: .acquiring)
            if SlotField.state(word) == SlotState.responseReady.rawValue { break }
            if pages.isPeerGone { return .max }
            polls += 1
            if polls > Self.spins { pages.futex(offset).wait(while: word, nanoseconds: 100_000_000) }
        }
        let value = slot.load(fromByteOffset: SlotField.data, as: UInt64.self)
        control.pointee.store(0, ordering: .releasing)
        return value
    }

    /// Posts a write of 1, 2 or 4 bytes below 1 MiB without waiting; false if the ring is full.
    public func post(_ request: Request) -> Bool {
        let write = pages.word(IoreqLayout.buffered + 4)
        let produced = write.pointee.load(ordering: .relaxed)
        let consumed = pages.word(IoreqLayout.buffered).pointee.load(ordering: .acquiring)
        guard produced &- consumed < IoreqLayout.bufferedSlots else { return false }
        let sizeCode: UInt32 = request.size == 1 ? 0 : request.size == 2 ? 1 : 2
        let kind = UInt32(request.kind.rawValue)
        let header = kind | sizeCode << 10 | UInt32(truncatingIfNeeded: request.address & 0xF_FFFF) << 12
        let entry = pages.base + IoreqLayout.buffered + 8 + Int(produced % IoreqLayout.bufferedSlots) * 8
        entry.storeBytes(of: header, as: UInt32.self)
        entry.storeBytes(of: UInt32(truncatingIfNeeded: request.data), toByteOffset: 4, as: UInt32.self)
        write.pointee.store(produced &+ 1, ordering: .sequentiallyConsistent)
        wakeDeviceModel()
        return true
    }

    private func wakeDeviceModel() {
        // Ringing once is enough.
        let asleep = pages.word(IoreqLayout.asleep)
        guard asleep.pointee.load(ordering: .sequentiallyConsistent) != 0,
            asleep.pointee.exchange(0, ordering: .sequentiallyConsistent) != 0
        else { return }
        var one: UInt64 = 1
        _ = Glibc.write(doorbell.number, &one, 8)
    }
}
