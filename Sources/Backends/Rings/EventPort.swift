// A back end's end of an event channel.
// Source: Xen's public/event_channel.h (EVTCHNOP_bind_interdomain, send, close).
// Modelled: what a back end needs; how events travel is its process's matter.
// Quirks: events are not counted: one call may stand for many sends.

/// One bound interdomain event channel. All calls are on the back end's thread.
public protocol EventPort: AnyObject {
    /// Called after the guest has sent.
    var onEvent: () -> Void { get set }
    /// Sets the guest's port pending.
    func notify()
    /// Unbinds; no event is delivered afterwards.
    func close()
}

/// Why a port could not be bound.
public enum EventError: Error, Hashable, Sendable {
    /// The guest has no such port, or it waits for another domain.
    case badPort
    case noResource
}

/// Where a back end binds the ports that a guest has allocated for it.
public protocol EventPorts: AnyObject {
    func bind(_ guestPort: UInt32) throws(EventError) -> any EventPort
}
