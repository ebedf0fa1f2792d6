// What hypervisor and back ends of a domain say to each other, as JSON in messages of their socket.
// Source: ours; docs/ARCHITECTURE.md, "Back ends".
// Modelled: the hand-over of memory, then requests. Quirks: a request's answer is a number of two bytes, 0 for failure.

/// The hypervisor's first message, with six descriptors: RAM, the code map, its own frames, ioreq pages, event pages, and
/// the back ends' doorbell.
public struct BackendHello: Codable, Equatable, Sendable {
    /// A frame that is no RAM, and where it lies in the hypervisor's own memory.
    public struct SpecialPage: Codable, Equatable, Sendable {
        public var frame: UInt64
        public var offset: Int
        public init(frame: UInt64, offset: Int) { (self.frame, self.offset) = (frame, offset) }
    }
    public var ramBytes: UInt64
    /// Pages of the grant table; they follow shared info in the hypervisor's frames.
    public var grantFrames: Int
    public var places: SpecialPlaces
    /// All of RAM lies from frame 0 on.
    public var isFlat: Bool
    public var special: [SpecialPage]

    public init(
        ramBytes: UInt64, grantFrames: Int, places: SpecialPlaces, isFlat: Bool, special: [SpecialPage]
    ) {
        (self.ramBytes, self.grantFrames, self.places) = (ramBytes, grantFrames, places)
        (self.isFlat, self.special) = (isFlat, special)
    }
}

/// What back ends ask for.
public enum BackendRequest: Codable, Equatable, Sendable {
    /// A port of the guest's; the answer is the back ends' own at its other end.
    case bind(UInt32)
    /// A port of the back ends' own.
    case unbind(UInt32)
    /// Guest-physical address of a page with decoded code that was written.
    case modified(UInt64)
}
