// A domain's tree, written to the store and taken out of it.
// Source: docs/misc/xenstore.txt; `xenstore-ls -f` captured on Xen 4.17.7 after `xl destroy`.
// Modelled: writing in one transaction, removal of everything with the parents that are empty then.
// Quirks: a new node has its parent's permissions, so only those that differ are set.

internal import DomainConfig
public import XenStoreClient

extension StoreClient {
    /// Writes all nodes of `tree` at once.
    public func write(_ tree: DomainTree) throws(StoreFailure) {
        try transaction { (id) throws(StoreFailure) in
            for node in tree.nodes {
                if node.value.isEmpty {
                    if try read(node.path, in: id) == nil { try makeDirectory(node.path, in: id) }
                } else {
                    try write(node.path, node.value, in: id)
                }
                let parent = tree.node(DomainTree.parent(of: node.path))
                if parent?.permissions != node.permissions {
                    try setPermissions(node.path, node.permissions, in: id)
                }
            }
        }
    }

    /// Takes a domain's tree out of the store. That it is not there is no failure.
    public func removeTree(domid: Int, uuid: String) throws(StoreFailure) {
        try transaction { (id) throws(StoreFailure) in
            try remove("/local/domain/\(domid)", in: id)
            try remove("/libxl/\(domid)", in: id)
            // A domain that was started again has the same /vm/UUID; it belongs to the new one.
            let machine = "/vm/\(uuid)"
            let others = try directory("/local/domain", in: id) ?? []
            var isShared = false
            for other in others where try read("/local/domain/\(other)/vm", in: id) == machine { isShared = true }
            if !isShared { try remove(machine, in: id) }
            let base = "/local/domain/0"
            for kind in try directory("\(base)/backend", in: id) ?? [] {
                try remove("\(base)/backend/\(kind)/\(domid)", in: id)
                try removeIfEmpty("\(base)/backend/\(kind)", in: id)
            }
            try removeIfEmpty("\(base)/backend", in: id)
            try remove("\(base)/device-model/\(domid)", in: id)
            try removeIfEmpty("\(base)/device-model", in: id)
        }
    }

    /// Takes one device out of the store, with the parents that are empty then.
    public func remove(_ device: DeviceNodes) throws(StoreFailure) {
        try transaction { (id) throws(StoreFailure) in
            for path in [device.frontend, device.backend, device.note] {
                try remove(path, in: id)
                var parent = DomainTree.parent(of: path)
                while parent.split(separator: "/").count > 3 {
                    try removeIfEmpty(parent, in: id)
                    parent = DomainTree.parent(of: parent)
                }
            }
        }
    }

    private func removeIfEmpty(_ path: String, in transaction: TransactionID) throws(StoreFailure) {
        if try directory(path, in: transaction)?.isEmpty == true { try remove(path, in: transaction) }
    }
}
