// A port of the host that leads to the guest.
// Source: QEMU's `hostfwd` (qemu(1), -netdev user): PROTOCOL:[ADDRESS]:PORT-[ADDRESS]:PORT.
// Modelled: TCP and UDP over IPv4.
// Quirks: without an address the host listens on 127.0.0.1 only, not on all addresses as QEMU does.

/// Addresses are IPv4's, as numbers.
public struct HostForward: Equatable, Sendable {
    public var isUDP: Bool
    public var hostAddress: UInt32
    public var hostPort: UInt16
    public var guestAddress: UInt32
    public var guestPort: UInt16

    /// nil if `text` is none.
    public init?(_ text: String) {
        let halves = text.split(separator: "-", omittingEmptySubsequences: false)
        guard halves.count == 2 else { return nil }
        let host = halves[0].split(separator: ":", omittingEmptySubsequences: false)
        let guest = halves[1].split(separator: ":", omittingEmptySubsequences: false)
        guard host.count == 3, guest.count == 2, ["tcp", "udp", ""].contains(host[0]),
            let hostPort = UInt16(host[2]), let guestPort = UInt16(guest[1]), guestPort > 0, hostPort > 0,
            let hostAddress = Self.address(host[1], default: 0x7F00_0001),
            let guestAddress = Self.address(guest[0], default: 0x0A00_020F)
        else { return nil }
        isUDP = host[0] == "udp"
        (self.hostAddress, self.hostPort) = (hostAddress, hostPort)
        (self.guestAddress, self.guestPort) = (guestAddress, guestPort)
    }

    private static func address(_ text: Substring, default fallback: UInt32) -> UInt32? {
        if text.isEmpty { return fallback }
        let parts = text.split(separator: ".", omittingEmptySubsequences: false).map { UInt8($0) }
        guard parts.count == 4, !parts.contains(nil) else { return nil }
        return parts.reduce(0) { $0 << 8 | UInt32($1 ?? 0) }
    }
}
