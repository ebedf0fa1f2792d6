// The states that both ends of a PV device go through.
// Source: Xen's public/io/xenbus.h (enum xenbus_state).
// Modelled: all of them. Not modelled: –
// Quirks: a missing or unreadable state node reads as `unknown`.

/// The value of a device's "state" node.
public enum XenbusState: UInt32, Sendable {
    case unknown = 0
    case initialising, initWait, initialised, connected, closing, closed, reconfiguring, reconfigured

    /// From a node's text; nil if it is no state.
    public init?(text: String) {
        guard let number = UInt32(text), let state = XenbusState(rawValue: number) else { return nil }
        self = state
    }
    public var text: String { "\(rawValue)" }
}
