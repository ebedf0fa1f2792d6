// A domain's network interface, with what the config leaves open filled in.
// Source: xl-network-configuration(5); xl.conf(5) for the defaults of bridge and script.
// Modelled: all that shows in the store. Not modelled: back ends in other domains.
// Quirks: a MAC that is not given is made from the domain's UUID, so it stays over reboots (Xen draws lots).

public struct NetworkInterface: Codable, Equatable, Sendable {
    /// Emulated cards of a domain.
    public static let mostEmulated = 8
    public enum Model: String, Codable, Sendable, CaseIterable {
        case e1000
        case ne2000PCI = "ne2k_pci"
        case ne2000ISA = "ne2k_isa"
    }

    public var number: Int
    public var mac: String
    public var bridge = "xenbr0"
    /// Whether the config names the bridge.
    public var namesBridge = false
    public var script = "/etc/xen/scripts/vif-bridge"
    public var mtu = 1500
    /// As the config has it.
    public var model: String?
    public var address: String?
    /// Bytes in an interval and the interval's microseconds, as the store has it.
    public var rate: String?
    /// Only for PV drivers, without an emulated card (type=vif).
    public var isParavirtualOnly = false
    /// The host's own device (vifname); nil: vifDOMAIN.NUMBER.
    public var hostDevice: String?
    /// Ports of the host that lead to the guest, in a user network.
    public var hostForwards: [String] = []
    /// What a user network's DHCP tells a boot ROM to load: for iPXE also the address of a script.
    public var bootFile: String?

    public init(number: Int, mac: String) { (self.number, self.mac) = (number, mac) }

    public init(_ specification: NetworkSpecification, number: Int, uuid: String) throws(DiskError) {
        func value(_ name: String) -> String? { specification.parameters.last { $0.name == name }?.value }
        func whole(_ name: String, _ range: ClosedRange<Int>, _ fallback: Int) throws(DiskError) -> Int {
            guard let text = value(name) else { return fallback }
            guard let number = Int(text), range.contains(number) else {
                throw DiskError("`\(name)' of an interface is from \(range.lowerBound) to \(range.upperBound)")
            }
            return number
        }
        let number = try whole("devid", 0...255, number)
        let mac = value("mac").map(Self.canonical) ?? Self.address(number, uuid)
        self.init(number: number, mac: mac)
        if let name = value("bridge") { (bridge, namesBridge) = (name, true) }
        if let script = value("script") { self.script = script.hasPrefix("/") ? script : "/etc/xen/scripts/\(script)" }
        mtu = try whole("mtu", 68...65_535, mtu)
        (model, address) = (value("model"), value("ip"))
        rate = value("rate").flatMap { InterfaceRate($0) }.map { "\($0.bytesPerInterval),\($0.microseconds)" }
        isParavirtualOnly = value("type") == "vif"
        (hostDevice, bootFile) = (value("vifname"), value("bootfile"))
        hostForwards = specification.parameters.filter { $0.name == "hostfwd" }.map(\.value)
        if let hostDevice, hostDevice.utf8.count > 15 || hostDevice.contains("/") || hostDevice.isEmpty {
            throw DiskError("\"\(hostDevice)\" cannot be the name of a network device")
        }
    }

    /// The card that the device model emulates: Xen's default is an rtl8139, which we have not.
    public var card: Model { model.flatMap { Model(rawValue: $0) } ?? .e1000 }

    /// Two digits for each byte, small letters.
    private static func canonical(_ text: String) -> String {
        text.lowercased().split(separator: ":").map { $0.count == 1 ? "0\($0)" : "\($0)" }.joined(separator: ":")
    }

    /// The six bytes of the address.
    public var macBytes: [UInt8] { mac.split(separator: ":").compactMap { UInt8($0, radix: 16) } }

    /// Xen's range 00:16:3e, then three bytes from the UUID (FNV-1a).
    private static func address(_ number: Int, _ uuid: String) -> String {
        let hash = "\(uuid)/\(number)".utf8.reduce(UInt32(2_166_136_261)) { ($0 ^ UInt32($1)) &* 16_777_619 }
        let bytes = [hash >> 16 & 0x7F, hash >> 8 & 0xFF, hash & 0xFF]
        return (["00", "16", "3e"] + bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }).joined(separator: ":")
    }
}
