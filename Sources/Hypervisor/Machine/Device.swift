/// All that a guest can tell apart about a device, and nothing else: one value.
/// Saving copies it, reset and restore assign it.
public protocol DeviceState: Codable, Equatable, Sendable {
    /// Name and version of the saved form, e.g. ("uart16550", 1).
    static var schema: Schema { get }
    /// Leaves what survives `cause`; for most devices, the power-on value.
    mutating func reset(_ cause: ResetCause)
}

/// A chip: a state, and how guest accesses and guest time change it.
///
/// A device never sees a thread, a lock, a file, a clock or the address it was
/// mapped at. It gets its lines, memory and sinks from `init`.
public protocol Device<State>: AnyObject {
    associatedtype State: DeviceState
    /// The one thing that is saved, compared and printed.
    var state: State { get set }
    /// Port and memory ranges it decodes, with the widths each accepts.
    var regions: [Region] { get }
    /// When it next wants `advance`; a function of `state`.
    var deadline: Instant? { get }

    /// Answers one guest read. May change state (read-to-clear).
    func read(_ access: Access) throws(BusFault) -> UInt64
    /// Takes one guest write.
    func write(_ value: UInt64, _ access: Access) throws(BusFault)
    /// Lets guest time pass up to `now`: at `deadline`, and before each access.
    func advance(to now: Instant)
    /// Drives every output from `state` and changes nothing else.
    func settle()
}

extension Device {
    public var deadline: Instant? { nil }
    public func advance(to now: Instant) {}
    func assignReset(_ cause: ResetCause) { state.reset(cause) }
}

/// A device whose data register moves many elements in one access (IDE's data
/// port, fw_cfg): string I/O then costs one call, not one per element.
public protocol StringDevice: Device {
    /// Fills `bytes` as `bytes.count / width` reads of `access` would.
    func read(_ access: Access, into bytes: UnsafeMutableRawBufferPointer)
    /// Takes `bytes` as that many writes of `access` would bring them.
    func write(_ bytes: UnsafeRawBufferPointer, _ access: Access)
}

/// Why no register answered. The bus turns it into all-ones or a lost write;
/// nothing a guest does throws any further than that.
public enum BusFault: Error, Hashable, Sendable { case noRegister, badWidth, misaligned }

/// One guest access, split and checked by the bus against the region's widths.
public struct Access: Hashable, Sendable {
    /// Index into the device's `regions`.
    public var region = 0
    /// Bytes from the start of that region.
    public var offset: UInt64
    public var width = Width.byte
    public init(region: Int = 0, offset: UInt64, width: Width = .byte) {
        (self.region, self.offset, self.width) = (region, offset, width)
    }
}

/// A wire to one input of one chip. Driving the level it has makes no edge.
public protocol Line: AnyObject { func drive(_ high: Bool) }

/// A wire that calls back when its level changes.
public final class Wire: Line {
    public private(set) var isHigh = false
    /// Level changes so far.
    public private(set) var edges = 0
    private let changed: (Bool) -> Void
    public init(_ changed: @escaping (Bool) -> Void = { _ in }) { self.changed = changed }
    public func drive(_ high: Bool) {
        guard high != isHigh else { return }
        isHigh = high
        edges += 1
        changed(high)
    }
}

/// A way to guest memory; a PCI card's faults while bus mastering is off.
public protocol DMA: AnyObject {
    /// Copies guest memory from `address` into all of `bytes`.
    func read(at address: GuestAddress, into bytes: UnsafeMutableRawBufferPointer) throws(DMAFault)
    /// Copies all of `bytes` to guest memory at `address`.
    func write(_ bytes: UnsafeRawBufferPointer, at address: GuestAddress) throws(DMAFault)
    /// The host's view of a range of guest RAM, for transfers that the kernel makes
    /// itself; whoever lets it be written calls `wrote` afterwards.
    func window(at address: GuestAddress, bytes: Int) throws(DMAFault) -> UnsafeMutableRawBufferPointer
    /// Tells that a range was written through its `window`.
    func wrote(at address: GuestAddress, bytes: Int)
}
