// An entry of `vif`, as it is written.
// Source: xl-network-configuration(5).
// Modelled: all of its parameters; `hostfwd` and `bootfile` are ours (docs/decisions/0007.md).
// Quirks: a parameter that is not known is no error, as with xl.

/// One entry of `vif = [...]` (xl-network-configuration(5)).
public struct NetworkSpecification: Sendable {
    /// Parameter and value, in order; known ones only.
    public var parameters: [(name: String, value: String)] = []
    public var unknown: [String] = []

    static let known: Set<String> = [
        "mac", "bridge", "gatewaydev", "type", "model", "vifname", "script", "ip", "backend", "rate", "devid", "mtu",
        "netdev", "trusted", "forwarddev", "accel", "hostfwd", "bootfile",
    ]
    /// Known ones without effect.
    private static let idle: Set<String> = ["gatewaydev", "backend", "netdev", "forwarddev", "accel"]

    /// Those of the parameters that have no effect.
    public var ignored: [String] { parameters.map(\.name).filter { Self.idle.contains($0) } }

    public init(_ text: String) throws(DiskError) {
        for part in text.split(separator: ",").map(\.trimmed) where !part.isEmpty {
            let halves = part.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
            let name = String(halves[0].trimmed)
            guard halves.count == 2, Self.known.contains(name) else {
                unknown.append(String(part))
                continue
            }
            let value = String(halves[1].trimmed)
            if name == "mac" && !Self.isAddress(value) { throw DiskError("\"\(value)\" is no MAC address") }
            if name == "type" && !["ioemu", "vif"].contains(value) {
                throw DiskError("there is no interface type \"\(value)\": ioemu and vif are known")
            }
            if name == "rate" && InterfaceRate(value) == nil {
                throw DiskError("\"\(value)\" is no rate: 10Mb/s and 1GB/s@20ms are some")
            }
            parameters.append((name, value))
        }
    }

    private static func isAddress(_ text: String) -> Bool {
        let bytes = text.split(separator: ":", omittingEmptySubsequences: false)
        return bytes.count == 6
            && bytes.allSatisfy { (1...2).contains($0.count) && $0.allSatisfy { $0.isASCII && $0.isHexDigit } }
    }
}

/// A limit such as "10Mb/s@50ms" (xl-network-configuration(5), "rate").
public struct InterfaceRate: Equatable, Sendable {
    public var bytesPerInterval: UInt64
    public var microseconds: UInt64

    /// nil if `text` is none.
    public init?(_ text: String) {
        guard
            let match = text.wholeMatch(of: /([0-9]+)([GMK]?)([Bb])\/s(@([0-9]+)(ms|us|s)?)?/),
            let amount = UInt64(match.1), amount > 0, amount < 1 << 32
        else { return nil }
        let factors: [Substring: UInt64] = ["G": 1_000_000_000, "M": 1_000_000, "K": 1000, "": 1]
        let bytes = amount * (factors[match.2] ?? 1) / (match.3 == "b" ? 8 : 1)
        let units: [Substring: UInt64] = ["ms": 1000, "us": 1, "s": 1_000_000]
        let interval = match.5.map { UInt64($0) } ?? 50
        guard let interval, interval > 0, interval < 1 << 24 else { return nil }
        microseconds = interval * (match.5 == nil ? 1000 : units[match.6 ?? "us"] ?? 1)
        let product = bytes.multipliedReportingOverflow(by: microseconds)
        guard !product.overflow, product.partialValue >= 1_000_000 else { return nil }
        bytesPerInterval = product.partialValue / 1_000_000
    }
}
