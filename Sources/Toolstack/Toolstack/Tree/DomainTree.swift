// What the store says about a domain: nodes with values and permissions.
// Source: `xenstore-ls -fp` captured on Xen 4.17.7; Xen's docs/misc/xenstore-paths.pandoc.
// Modelled: /local/domain/N, /vm/UUID, /libxl/N, front and back ends, as they are before any driver has looked.
// Quirks: a pure value; writing and removing it is StoreClient+DomainTree.swift's work.

public import DomainConfig

/// The nodes of one domain, parents before children.
public struct DomainTree: Equatable, Sendable {
    public struct Node: Equatable, Sendable {
        public var path: String
        public var value: String
        /// "n0", "r5": the first names the owner and what is allowed to those not named.
        public var permissions: [String]
    }

    /// What is known once the domain's processes have started. What is not known is left out.
    public struct Places: Equatable, Sendable {
        public var storePort: UInt32?
        public var storeFrame: UInt64?
        public var consolePort: UInt32?
        public var consoleFrame: UInt64?
        /// Seconds since 1970.
        public var startTime = 0.0
        public var consoleTerminal: String?
        public var serialTerminal: String?
        public var deviceModel: Int32?
        public var vnc: (address: String, port: Int)?
        public init() {}

        public static func == (left: Places, right: Places) -> Bool {
            left.storePort == right.storePort && left.storeFrame == right.storeFrame
                && left.consolePort == right.consolePort && left.consoleFrame == right.consoleFrame
                && left.startTime == right.startTime && left.consoleTerminal == right.consoleTerminal
                && left.serialTerminal == right.serialTerminal && left.deviceModel == right.deviceModel
                && left.vnc?.address == right.vnc?.address && left.vnc?.port == right.vnc?.port
        }
    }

    /// Back ends that serve this domain. A front end without one would keep a guest waiting for minutes.
    public struct Services: OptionSet, Sendable {
        public var rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue }
        public static let console = Services(rawValue: 1)
        public static let disks = Services(rawValue: 2)
        public static let interfaces = Services(rawValue: 4)
        public static let frameBuffer = Services(rawValue: 8)
        public static let keyboard = Services(rawValue: 16)
        public static let all: Services = [.console, .disks, .interfaces, .frameBuffer, .keyboard]
    }

    public private(set) var nodes: [Node] = []
    private var index: [String: Int] = [:]

    public init() {}

    /// The tree of the domain that `config` describes.
    public init(
        _ config: DomainConfig, services: Services = .all, places: Places
    ) {
        addDomain(config, places)
        addVirtualMachine(config, places)
        addLibrary(config)
        if services.contains(.console) { addConsole(config, places) }
        for device in DeviceNodes.all(of: config, services: services) { add(device) }
    }

    /// The value at `path`; nil if there is no such node.
    public subscript(path: String) -> String? { index[path].map { nodes[$0].value } }

    public func node(_ path: String) -> Node? { index[path].map { nodes[$0] } }

    /// Puts a node, and the parents that are missing with the same permissions.
    public mutating func put(_ path: String, _ value: String = "", _ permissions: [String]) {
        if let place = index[path] {
            nodes[place] = Node(path: path, value: value, permissions: permissions)
            return
        }
        let parent = Self.parent(of: path)
        if parent != "/", index[parent] == nil { put(parent, Self.ownerOfSpine(parent, permissions)) }
        index[path] = nodes.count
        nodes.append(Node(path: path, value: value, permissions: permissions))
    }

    private mutating func put(_ path: String, _ permissions: [String]) { put(path, "", permissions) }

    /// What lies above all domains is Domain-0's alone.
    private static func ownerOfSpine(_ path: String, _ permissions: [String]) -> [String] {
        let parts = path.split(separator: "/")
        let isSpine =
            ["local", "local/domain", "libxl", "vm", "local/domain/0"].contains(parts.joined(separator: "/"))
            || (path.hasPrefix("/local/domain/0/backend") && parts.count <= 6)
        return isSpine ? ["n0"] : permissions
    }

    static func parent(of path: String) -> String {
        let parts = path.split(separator: "/").dropLast()
        return "/" + parts.joined(separator: "/")
    }

    /// As `xenstore-ls -fp` prints it, sorted.
    public var listing: [String] {
        nodes.map { "\($0.path) = \"\($0.value)\"   (\($0.permissions.joined(separator: ",")))" }.sorted()
    }
}
