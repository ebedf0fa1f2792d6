// How commands reach the store and find a domain's devices in it.
// Source: `xenstore-ls -fp` captured on Xen 4.17.7; libxl's time limits for devices.
// Modelled: reading lists of devices, waiting for states. A domain without a store is told apart from an empty one.
// Quirks: the store's socket is where the state directory is; a file is no store until something listens.

internal import Foundation
internal import XenStoreClient

/// A device of a domain as its three places in the store say.
struct StoredDevice {
    var number: Int
    var backend: String
    var frontend: String
    var note: String
    var state: Int?
    /// The back end's and the front end's nodes by name.
    var back: [String: String]
    var front: [String: String]

    func frontNumber(_ key: String) -> Int { front[key].flatMap { Int($0) } ?? -1 }
}

extension Session {
    /// The store; nil if none runs.
    func openStore() -> StoreClient? {
        guard let socket = try? StoreSocket(path: run.storeSocket) else { return nil }
        return StoreClient(socket)
    }

    /// The store, where nothing works without it.
    func store() throws(ToolstackError) -> StoreClient {
        guard let store = openStore() else { throw ToolstackError("there is no xenstored at \(run.storeSocket)") }
        return store
    }

    /// Does something with the store and turns its failures into a command's.
    func withStore<Result>(
        _ body: (StoreClient) throws(StoreFailure) -> Result
    ) throws(ToolstackError) -> Result {
        let store = try store()
        do throws(StoreFailure) { return try body(store) } catch { throw ToolstackError("\(error)") }
    }
}

extension StoreClient {
    /// The devices of one kind ("vbd", "vif") that a domain has, by number.
    func devices(_ kind: String, of domid: Int) throws(StoreFailure) -> [StoredDevice] {
        let base = "/libxl/\(domid)/device/\(kind)"
        var found: [StoredDevice] = []
        for name in try directory(base) ?? [] {
            guard let number = Int(name), let backend = try read("\(base)/\(name)/backend"),
                let frontend = try read("\(base)/\(name)/frontend")
            else { continue }
            let (back, front) = (try values(below: backend), try values(below: frontend))
            found.append(
                StoredDevice(
                    number: number, backend: backend, frontend: frontend, note: "\(base)/\(name)",
                    state: front["state"].flatMap { Int($0) }, back: back, front: front))
        }
        return found.sorted { $0.number < $1.number }
    }

    /// The values of a node's children.
    func values(below path: String) throws(StoreFailure) -> [String: String] {
        var values: [String: String] = [:]
        for name in try directory(path) ?? [] { values[name] = try read("\(path)/\(name)") ?? "" }
        return values
    }

    /// Waits until the state at `path` is one of `states`, or the node is gone; the last state seen, 0 if there is none.
    func wait(for states: Set<Int>, at path: String, seconds: Double) throws(StoreFailure) -> Int {
        let deadline = Date(timeIntervalSinceNow: seconds)
        while true {
            let state = try read("\(path)/state").flatMap { Int($0) } ?? 0
            if states.contains(state) || state == 0 || Date() >= deadline { return state }
            Thread.sleep(forTimeInterval: 0.02)
        }
    }
}
