// The words that devices, buses and boards share.

/// Size of one access in bytes.
public enum Width: Int, Sendable, Hashable, Codable {
    case byte = 1, word = 2, long = 4, quad = 8

    /// What an undriven bus reads as.
    @inlinable public var ones: UInt64 { self == .quad ? .max : (1 << UInt64(rawValue * 8)) &- 1 }
}

/// The two address spaces of a PC.
public enum Space: Sendable, Hashable, Codable { case port, memory }

/// Why a device goes back to its power-on state.
public enum ResetCause: Sendable {
    /// Power was applied, or the whole board was reset (port 0xCF9, triple fault).
    case powerOn
    /// Only the CPU's INIT line was pulled (8042, port 0x92).
    case cpu
}

/// Name and version of a saved form.
public struct Schema: Sendable, Hashable, Codable {
    public var name: String
    public var version: Int
    public init(_ name: String, _ version: Int) { (self.name, self.version) = (name, version) }
}

/// A guest-physical address.
public struct GuestAddress: Sendable, Hashable, Comparable, Codable {
    public var raw: UInt64
    public init(_ raw: UInt64) { self.raw = raw }
    public static func < (a: Self, b: Self) -> Bool { a.raw < b.raw }
    public static func + (a: Self, bytes: UInt64) -> Self { Self(a.raw &+ bytes) }
}

/// A transfer that left guest memory or was not permitted.
public struct DMAFault: Error, Hashable {
    public var address: GuestAddress
    public init(_ address: GuestAddress) { self.address = address }
}

/// Guest time: nanoseconds since the domain was started, stopped while it is paused.
public struct Instant: Sendable, Hashable, Comparable, Codable {
    public var nanoseconds: UInt64
    public static let zero = Instant(nanoseconds: 0)
    public init(nanoseconds: UInt64) { self.nanoseconds = nanoseconds }
    public static func < (a: Self, b: Self) -> Bool { a.nanoseconds < b.nanoseconds }
    public static func + (a: Self, nanoseconds: UInt64) -> Self { Self(nanoseconds: a.nanoseconds &+ nanoseconds) }
    /// Nanoseconds from `earlier` to this instant; zero if it lies ahead.
    public func since(_ earlier: Instant) -> UInt64 {
        nanoseconds > earlier.nanoseconds ? nanoseconds - earlier.nanoseconds : 0
    }
}

/// One range that a device decodes, with the access widths its registers take.
public struct Region: Sendable, Hashable {
    public var name: String
    public var space: Space
    public var range: ClosedRange<UInt64>
    public var widths: Set<Width>
    public init(_ name: String, _ space: Space, _ range: ClosedRange<UInt64>, widths: Set<Width> = [.byte]) {
        (self.name, self.space, self.range, self.widths) = (name, space, range, widths)
    }
}
