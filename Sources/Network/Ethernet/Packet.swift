// What lies in a frame: where IP, TCP and UDP begin.
// Source: RFC 791, RFC 8200 (extension headers), RFC 9293, RFC 768; IEEE 802.1Q.
// Modelled: IPv4 and IPv6 behind up to two VLAN tags. Not modelled: tunnels.
// Quirks: only what lies within the given bytes is believed.

/// A frame's IP packet and what it carries; nil fields are not there.
public struct Packet: Equatable, Sendable {
    public enum Carried: UInt8, Sendable { case tcp = 6, udp = 17 }
    /// 4 or 6.
    public var version: UInt8
    public var networkStart: Int
    /// TCP's or UDP's header; nil for others, and for fragments.
    public var carried: Carried?
    public var transportStart: Int
    /// The IP packet's end by its own length, or the frame's.
    public var end: Int

    /// Looks into a frame, or its first bytes; `length` is the whole frame's.
    public init?(_ bytes: [UInt8], length: Int? = nil) {
        let length = length ?? bytes.count
        func word(_ place: Int) -> Int { Int(bytes[place]) << 8 | Int(bytes[place + 1]) }
        var place = 12
        while place + 4 <= bytes.count, place < 20, [0x8100, 0x88A8].contains(word(place)) { place += 4 }
        guard place + 2 <= bytes.count else { return nil }
        let kind = word(place)
        networkStart = place + 2
        (version, transportStart, end) = (4, networkStart, length)
        switch kind {
        case 0x0800:
            guard networkStart + 20 <= bytes.count, bytes[networkStart] >> 4 == 4 else { return nil }
            let header = Int(bytes[networkStart] & 0xF) * 4
            guard header >= 20, networkStart + header <= length else { return nil }
            transportStart = networkStart + header
            let total = word(networkStart + 2)
            if total >= header, networkStart + total <= length { end = networkStart + total }
            // MF, or a fragment that is not the first.
            if word(networkStart + 6) & 0x3FFF == 0 { carried = Carried(rawValue: bytes[networkStart + 9]) }
        case 0x86DD:
            guard networkStart + 40 <= bytes.count, bytes[networkStart] >> 4 == 6 else { return nil }
            version = 6
            let total = word(networkStart + 4) + 40
            if total > 40, networkStart + total <= length { end = networkStart + total }
            followExtensions(bytes)
        default: return nil
        }
        if let carried, transportStart + (carried == .tcp ? 20 : 8) > length { self.carried = nil }
    }

    private mutating func followExtensions(_ bytes: [UInt8]) {
        var next = bytes[networkStart + 6]
        transportStart = networkStart + 40
        for _ in 0..<8 {
            switch next {
            // Hop by hop, routing, destination options.
            case 0, 43, 60:
                guard transportStart + 2 <= bytes.count else { return }
                next = bytes[transportStart]
                transportStart += (Int(bytes[transportStart + 1]) + 1) * 8
            default:
                carried = Carried(rawValue: next)
                return
            }
        }
    }

    /// Where the checksum lies within the transport's header.
    public var checksumOffset: Int { carried == .udp ? 6 : 16 }

    /// The sum of the pseudo header.
    public func pseudoSum(_ bytes: [UInt8], transportBytes: Int) -> UInt32 {
        let addresses = version == 4 ? networkStart + 12..<networkStart + 20 : networkStart + 8..<networkStart + 40
        return Checksum.sum(bytes, addresses) &+ UInt32(carried?.rawValue ?? 0)
            &+ UInt32(truncatingIfNeeded: transportBytes)
    }
}

/// The Internet checksum (RFC 1071).
public enum Checksum {
    /// The sum of 16-bit words, not folded; an odd byte counts as a word's upper half.
    public static func sum(_ bytes: [UInt8], _ range: Range<Int>, _ start: UInt32 = 0) -> UInt32 {
        var sum = UInt64(start)
        unsafe bytes.withUnsafeBytes { all in
            var place = range.lowerBound
            // Eight bytes at a time, in the host's order: sums of swapped words are the swapped sum.
            var wide: UInt64 = 0
            while place + 8 <= range.upperBound {
                let (result, carry) = unsafe wide.addingReportingOverflow(
                    all.loadUnaligned(fromByteOffset: place, as: UInt64.self))
                wide = result &+ (carry ? 1 : 0)
                place += 8
            }
            var folded = (wide & 0xFFFF_FFFF) + (wide >> 32)
            folded = (folded & 0xFFFF) + (folded >> 16)
            folded = (folded & 0xFFFF) + (folded >> 16)
            folded = (folded & 0xFFFF) + (folded >> 16)
            sum += UInt64(UInt16(truncatingIfNeeded: folded).byteSwapped)
            while place + 1 < range.upperBound {
                unsafe sum += UInt64(all[place]) << 8 | UInt64(all[place + 1])
                place += 2
            }
            if place < range.upperBound { unsafe sum += UInt64(all[place]) << 8 }
        }
        while sum >> 32 != 0 { sum = (sum & 0xFFFF_FFFF) + (sum >> 32) }
        return UInt32(truncatingIfNeeded: sum)
    }

    public static func fold(_ sum: UInt32) -> UInt16 {
        var sum = (sum & 0xFFFF) + (sum >> 16)
        sum = (sum & 0xFFFF) + (sum >> 16)
        return UInt16(truncatingIfNeeded: sum)
    }

    static func store(_ value: UInt16, in bytes: inout [UInt8], at place: Int) {
        (bytes[place], bytes[place + 1]) = (UInt8(value >> 8), UInt8(truncatingIfNeeded: value))
    }
}
