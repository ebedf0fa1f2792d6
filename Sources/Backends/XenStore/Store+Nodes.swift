// Reading and changing nodes, within a transaction or without.

extension Store {
    func domain(_ context: Context) -> UInt32 { clients[context.client]?.domain ?? .max }

    func absolute(_ path: String, _ context: Context) throws(StoreError) -> String {
        let path = try StorePath.canonical(path, domain: domain(context))
        try checkReading(path, context)
        return path
    }

    /// The node as the request's view has it.
    mutating func look(_ path: String, _ context: Context) throws(StoreError) -> Node? {
        guard context.transaction != 0 else { return tree.node(path) }
        guard var transaction = clients[context.client]?.transactions[context.transaction] else { throw .noEntry }
        let node = transaction.node(path, in: tree)
        clients[context.client]?.transactions[context.transaction] = transaction
        return node
    }

    mutating func put(_ path: String, _ node: Node?, _ context: Context) throws(StoreError) {
        guard context.transaction != 0 else {
            tree.put(path, node)
            return
        }
        guard var transaction = clients[context.client]?.transactions[context.transaction] else { throw .noEntry }
        transaction.put(path, node)
        guard isPrivileged(context) || transaction.order.count <= quota.nodesPerTransaction else { throw .noSpace }
        clients[context.client]?.transactions[context.transaction] = transaction
    }

    mutating func note(_ change: Change, _ context: inout Context) {
        if context.transaction == 0 {
            context.changes.append(change)
        } else {
            clients[context.client]?.transactions[context.transaction]?.changes.append(change)
        }
    }

    func access(_ node: Node, _ context: Context) -> Permission.Access {
        node.access(for: domain(context), target: clients[context.client]?.target)
    }

    /// The node, if it is there and the client has `needed`. A missing node is only admitted to be missing
    /// where the nearest node above may be read.
    mutating func require(
        _ path: String, _ needed: Permission.Access, _ context: Context
    ) throws(StoreError) -> Node {
        if let node = try look(path, context) {
            guard access(node, context).isSuperset(of: needed) else { throw .denied }
            return node
        }
        var above = StorePath.parent(path)
        while let candidate = above {
            if let node = try look(candidate, context) {
                throw access(node, context).contains(.read) ? .noEntry : .denied
            }
            above = StorePath.parent(candidate)
        }
        throw .noEntry
    }

    /// Makes a node and those missing above it, with the permissions of the nearest one above.
    mutating func create(_ path: String, value: [UInt8], _ context: inout Context) throws(StoreError) {
        var missing: [String] = []
        var at = path
        var above = try look(at, context)
        while above == nil {
            missing.append(at)
            guard let parent = StorePath.parent(at) else { throw .noEntry }
            at = parent
            above = try look(at, context)
        }
        guard var parent = above else { throw .noEntry }
        guard access(parent, context).contains(.write) else { throw .denied }
        let domain = domain(context)
        try checkQuota(missing.count, domain)
        var permissions = parent.permissions
        if domain != 0, !permissions.isEmpty { permissions[0].domain = domain }
        for next in missing.reversed() {
            parent.children.append(StorePath.name(next))
            try put(at, parent, context)
            parent = Node(value: next == path ? value : [], permissions: permissions)
            try put(next, parent, context)
            at = next
        }
    }

    private func checkQuota(_ more: Int, _ domain: UInt32) throws(StoreError) {
        guard domain == 0 || tree.owned[domain, default: 0] + more <= quota.nodes else { throw .noSpace }
    }

    mutating func write(_ path: String, _ value: [UInt8], _ context: inout Context) throws(StoreError) {
        guard isPrivileged(context) || value.count <= quota.valueBytes else { throw .noSpace }
        if var node = try look(path, context) {
            guard access(node, context).contains(.write) else { throw .denied }
            node.value = value
            try put(path, node, context)
        } else {
            try create(path, value: value, &context)
        }
        try noteChange(path, &context)
    }

    mutating func noteChange(_ path: String, _ context: inout Context) throws(StoreError) {
        note(Change(path: path, permissions: try look(path, context)?.permissions ?? []), &context)
    }

    /// Removes a node with all below it. A missing node below an existing one is no error.
    mutating func remove(_ path: String, _ context: inout Context) throws(StoreError) {
        guard let parentPath = StorePath.parent(path) else { throw .invalid }
        guard let node = try look(path, context) else {
            guard try look(parentPath, context) != nil else { throw .noEntry }
            return
        }
        guard access(node, context).contains(.write) else { throw .denied }
        if var parent = try look(parentPath, context) {
            parent.children.removeAll { $0 == StorePath.name(path) }
            try put(parentPath, parent, context)
        }
        note(Change(path: path, permissions: node.permissions), &context)
        try removeTree(path, node, &context)
    }

    private mutating func removeTree(_ top: String, _ node: Node, _ context: inout Context) throws(StoreError) {
        var pending = [(top, node)]
        while let (path, node) = pending.popLast() {
            for name in node.children {
                let child = StorePath.child(path, name)
                guard let below = try look(child, context) else { continue }
                note(Change(path: child, isExact: true, permissions: below.permissions), &context)
                pending.append((child, below))
            }
            try put(path, nil, context)
        }
    }
}
