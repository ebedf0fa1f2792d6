// How a device's two ends find together, by their states in the store.
// Source: Xen's public/io/xenbus.h, the state diagrams of public/io/blkif.h, the transitions of Linux's back ends.
// Modelled: connecting, reconfiguring, reconnecting (kexec, restarts), closing, removal. Not modelled: suspended front ends' refusals.
// Quirks: a front end may go to Initialised or straight to Connected.

/// The states of this end, as a machine that says what to do.
public struct BackendHandshake {
    public enum Action: Equatable {
        case announce(XenbusState)
        /// Read the front end's parameters and map its rings; then `connected` or `failed`.
        case connect
        case disconnect
        /// The device is gone for good.
        case end
    }
    public private(set) var state = XenbusState.initialising
    public init() {}

    public mutating func begin() -> [Action] { change(to: .initWait) }
    public mutating func connected() -> [Action] { change(to: .connected) }
    public mutating func failed() -> [Action] { change(to: .closing) }

    /// What the front end's state asks for; nil when its node is gone. `isOnline`: the toolstack wants the device.
    public mutating func frontend(_ peer: XenbusState?, isOnline: Bool) -> [Action] {
        switch peer {
        case .initialising:
            return state == .closed ? change(to: .initWait) : []
        case .connected where state == .reconfigured:
            return change(to: .connected)
        case .initialised, .connected:
            return state == .connected || state == .closing ? [] : [.disconnect, .connect]
        case .closing:
            return change(to: .closing)
        case .closed:
            return [.disconnect] + change(to: .closed) + (isOnline ? [] : [.end])
        case nil:
            return [.disconnect] + change(to: .closed) + [.end]
        case .reconfiguring:
            // What the front end wants otherwise is in nodes that whoever can do it watches.
            return state == .connected ? change(to: .reconfigured) : []
        case .unknown, .initWait, .reconfigured:
            return []
        }
    }

    private mutating func change(to new: XenbusState) -> [Action] {
        guard new != state else { return [] }
        state = new
        return [.announce(new)]
    }
}
