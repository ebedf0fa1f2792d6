// The part of a back end that is the same for every kind of device: its nodes, its state, its front end's coming and going.
// Source: Xen's public/io/xenbus.h, the transitions of Linux's back ends.
// Modelled: connecting, reconnecting, closing, removal, errors in the store. Not modelled: –
// Quirks: features are written before InitWait, where the protocol wants them.

internal import XenStore

/// Why a front end's parameters cannot be used, in words for the store's error node.
public struct ParameterFault: Error, Equatable, Sendable {
    public var text: String
    public init(_ text: String) { self.text = text }
}

/// One device. Everything happens on one thread.
public final class BackendDevice {
    /// /local/domain/0/backend/KIND/DOMAIN/DEVICE.
    public let path: String
    private let store: StoreClient
    private var handshake = BackendHandshake()
    private var watches: [StoreClient.Watch] = []
    private var isConnected = false
    public private(set) var frontend = ""

    /// Takes up what the front end offers; nothing may stay of it when it throws. Anything but a failure of the store is
    /// the front end's fault.
    public var onConnect: () throws -> Void = {}
    /// Lets go of the guest.
    public var onDisconnect: () -> Void = {}
    /// One sentence for the log.
    public var onReport: (String) -> Void = { _ in }
    /// Called once the device has been removed.
    public var onEnd: () -> Void = {}

    public init(_ path: String, store: StoreClient) { (self.path, self.store) = (path, store) }

    public var state: XenbusState { handshake.state }

    /// A node below the front end's directory.
    public func read(_ key: String) -> String? { try? store.read("\(frontend)/\(key)") }

    public func number(_ key: String) throws(ParameterFault) -> UInt64 {
        guard let text = read(key) else { throw ParameterFault("\(key) is missing") }
        guard let number = UInt64(text) else { throw ParameterFault("\(key) is no number") }
        return number
    }

    /// Says what is offered and waits for the front end.
    public func start(_ features: [(String, String)]) throws(StoreFailure) {
        guard let path = try store.read("\(path)/frontend"), !path.isEmpty else { throw .refused(.noEntry) }
        frontend = path
        for (key, value) in features { try store.write("\(self.path)/\(key)", value) }
        try perform(handshake.begin())
        watches.append(try store.watch("\(frontend)/state") { [weak self] _ in self?.look() })
        watches.append(try store.watch("\(self.path)/online") { [weak self] _ in self?.look() })
    }

    /// Writes the state again, of which a store that died may not have heard.
    public func restate() throws(StoreFailure) {
        // What was removed meanwhile must not come back.
        if try store.read("\(path)/state") != nil { try store.write("\(path)/state", state.text) }
    }

    /// Lets go of the guest. The nodes stay as they are.
    public func stop() {
        disconnect()
        unwatch()
    }

    private func unwatch() {
        for watch in watches { try? store.unwatch(watch) }
        watches = []
    }

    private func look() {
        do {
            let text = try store.read("\(frontend)/state")
            let isOnline = try store.read("\(path)/online") != "0"
            try perform(handshake.frontend(text.map { XenbusState(text: $0) ?? .unknown }, isOnline: isOnline))
        } catch { onReport("\(path): \(error)") }
    }

    private func perform(_ actions: [BackendHandshake.Action]) throws(StoreFailure) {
        for action in actions {
            switch action {
            case .announce(let state): try store.write("\(path)/state", state.text)
            case .disconnect: disconnect()
            case .connect: try connect()
            case .end:
                unwatch()
                onEnd()
            }
        }
    }

    private func connect() throws(StoreFailure) {
        do { try onConnect() } catch let failure as StoreFailure { throw failure } catch let fault as ParameterFault {
            return try refuse(fault)
        } catch { return try refuse(ParameterFault("\(error)")) }
        isConnected = true
        try perform(handshake.connected())
    }

    /// As Linux's xenbus does: an error node, and an end to the attempt.
    private func refuse(_ fault: ParameterFault) throws(StoreFailure) {
        onReport("\(path): \(fault.text)")
        if let range = path.firstRange(of: "/backend/") {
            let root = path[..<range.lowerBound]
            try store.write("\(root)/error\(path[range.lowerBound...])/error", fault.text)
        }
        try perform(handshake.failed())
    }

    private func disconnect() {
        guard isConnected else { return }
        isConnected = false
        onDisconnect()
    }
}
