// A domain's network interface, with what the config leaves open filled in.
// Source: xl-network-configuration(5); xl.conf(5) for the defaults of bridge and script.
// Modelled: all that shows in the store. Not modelled: back ends in other domains.
// Quirks: a MAC that is not given is made from the domain's UUID, so it stays over reboots (Xen draws lots).

public import DomainConfig

public struct NetworkInterface: Equatable, Sendable {
    public var number: Int
    public var mac: String
    public var bridge = "xenbr0"
    public var script = "/etc/xen/scripts/vif-bridge"
    public var mtu = 1500
    public var model: String?
    public var address: String?
    public var rate: String?
    /// Only for PV drivers, without an emulated card (type=vif).
    public var isParavirtualOnly = false

    public init(number: Int, mac: String) { (self.number, self.mac) = (number, mac) }

    public init(_ specification: NetworkSpecification, number: Int, uuid: String) {
        func value(_ name: String) -> String? { specification.parameters.last { $0.name == name }?.value }
        let number = value("devid").flatMap { Int($0) } ?? number
        self.init(number: number, mac: value("mac")?.lowercased() ?? Self.address(number, uuid))
        bridge = value("bridge") ?? bridge
        if let script = value("script") { self.script = script.hasPrefix("/") ? script : "/etc/xen/scripts/\(script)" }
        mtu = value("mtu").flatMap { Int($0) } ?? mtu
        (model, address, rate) = (value("model"), value("ip"), value("rate"))
        isParavirtualOnly = value("type") == "vif"
    }

    /// Xen's range 00:16:3e, then three bytes from the UUID (FNV-1a).
    private static func address(_ number: Int, _ uuid: String) -> String {
        let hash = "\(uuid)/\(number)".utf8.reduce(UInt32(2_166_136_261)) { ($0 ^ UInt32($1)) &* 16_777_619 }
        let bytes = [hash >> 16 & 0x7F, hash >> 8 & 0xFF, hash & 0xFF]
        return (["00", "16", "3e"] + bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }).joined(separator: ":")
    }
}
