// What a domain's process says to the monitor, and a monitor to `xl create`: one JSON object a line, on descriptor 3.
// Source: ours; docs/ARCHITECTURE.md.
// Modelled: readiness, failure, how the domain ended. Quirks: fields that say nothing are left out.

/// Where a guest finds xenstore and its console: frames and event channels.
public struct SpecialPlaces: Codable, Equatable, Sendable {
    public var storeFrame: UInt64
    public var storePort: UInt32
    public var consoleFrame: UInt64
    public var consolePort: UInt32

    public init(storeFrame: UInt64, storePort: UInt32, consoleFrame: UInt64, consolePort: UInt32) {
        (self.storeFrame, self.storePort) = (storeFrame, storePort)
        (self.consoleFrame, self.consolePort) = (consoleFrame, consolePort)
    }
}

public struct StatusLine: Codable, Equatable, Sendable {
    /// It is set up.
    public var ready: Bool?
    /// Why it cannot go on, in one sentence.
    public var error: String?
    /// How the domain ended (hypervisor).
    public var exit: String?
    public var places: SpecialPlaces?
    /// A boot loader's menu is on the console (monitor to xl).
    public var console: Bool?
    /// Log lines that go with an error (monitor to xl).
    public var log: [String]?

    public init(
        ready: Bool? = nil, error: String? = nil, exit: String? = nil, places: SpecialPlaces? = nil,
        console: Bool? = nil, log: [String]? = nil
    ) {
        (self.ready, self.error, self.exit) = (ready, error, exit)
        (self.places, self.console, self.log) = (places, console, log)
    }
}
