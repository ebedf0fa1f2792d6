// What the back ends of one domain may do with the store, on a connection that is Domain-0's otherwise.
// Source: ours; the nodes are those of Xen's docs/misc/xenstore-paths.pandoc and of Linux's xenbus.
// Modelled: reading and watching the domain's tree and its back ends', writing nodes of devices that are there.
// Quirks: what it can make is bounded by the devices that the toolstack has made, so it needs no quota of nodes.

/// The paths that the back ends of a domain need.
struct ServedPaths {
    let domain: UInt32

    func mayRead(_ path: String) -> Bool {
        let names = names(path)
        return names.starts(with: ["local", "domain", "\(domain)"]) || isBackend(withoutError(names))
    }

    /// The device whose node `path` is, /local/domain/0/backend/KIND/DOMAIN/DEVICE; nil if it may not be written. Errors
    /// have a tree of their own, /local/domain/0/error/backend/KIND/DOMAIN/DEVICE/error.
    func device(writing path: String) -> String? {
        let all = names(path)
        let names = withoutError(all)
        guard names.count == 8, isBackend(names), names == all || names[7] == "error" else { return nil }
        return "/" + names.dropLast().joined(separator: "/")
    }

    private func isBackend(_ names: [Substring]) -> Bool {
        names.count >= 6 && names.starts(with: ["local", "domain", "0", "backend"]) && names[5] == "\(domain)"
    }

    /// What an error is one of: /local/domain/0/error/X tells of /local/domain/0/X.
    private func withoutError(_ names: [Substring]) -> [Substring] {
        names.count > 3 && names[3] == "error" ? Array(names[..<3] + names[4...]) : names
    }

    private func names(_ path: String) -> [Substring] { path.split(separator: "/") }
}

extension Store {
    /// Nodes that one device may come to have.
    private static let nodesPerDevice = 64

    /// Throws if the client may not read `path`, or watch it, whatever the node's permissions are.
    func checkReading(_ path: String, _ context: Context) throws(StoreError) {
        guard let served = clients[context.client]?.serves else { return }
        guard ServedPaths(domain: served).mayRead(path) else { throw .denied }
    }

    /// Throws if the client may not give `path` a value, whatever the node's permissions are.
    mutating func checkWriting(_ path: String, _ context: Context) throws(StoreError) {
        guard let served = clients[context.client]?.serves else { return }
        guard let place = ServedPaths(domain: served).device(writing: path), let device = try look(place, context)
        else { throw .denied }
        guard try look(path, context) != nil || device.children.count < Self.nodesPerDevice else { throw .noSpace }
    }

    /// Whether it may make and remove nodes, give them away, and learn of other domains.
    func mayRearrange(_ context: Context) -> Bool { clients[context.client]?.serves == nil }

    /// A back end has two watches or three for each device.
    func watchLimit(_ context: Context) -> Int {
        clients[context.client]?.serves == nil ? quota.watches : 8 * quota.watches
    }

    /// The toolstack may do everything; its parts that serve guests may not.
    func isPrivileged(_ context: Context) -> Bool {
        clients[context.client].map { $0.domain == 0 && $0.serves == nil } ?? false
    }
}
