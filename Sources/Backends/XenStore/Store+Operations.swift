// The operations of docs/misc/xenstore.txt, one method each where they need more than a line.

extension Store {
    private static let acknowledged = Array("OK\0".utf8)

    mutating func perform(
        _ operation: Operation, _ payload: [UInt8], _ context: inout Context
    ) throws(StoreError) -> [UInt8] {
        switch operation {
        case .directory: return try children(path(payload, context), context)
        case .directoryPart: return try childrenPart(payload, context)
        case .read: return try require(path(payload, context), .read, context).value
        case .write: return try writeRequest(payload, &context)
        case .makeDirectory: return try makeDirectory(path(payload, context), &context)
        case .remove:
            let path = try path(payload, context)
            guard mayRearrange(context) else { throw .denied }
            try remove(path, &context)
            return Self.acknowledged
        case .getPermissions:
            let node = try require(path(payload, context), .read, context)
            return node.permissions.flatMap { (permission) -> [UInt8] in Array(permission.text.utf8) + [0] }
        case .setPermissions: return try setPermissions(payload, &context)
        case .watch: return try addWatch(payload, &context)
        case .unwatch: return try removeWatch(payload, context)
        case .resetWatches:
            watches.removeAll { $0.client == context.client }
            clients[context.client]?.transactions = [:]
            return Self.acknowledged
        case .transactionStart: return try startTransaction(context)
        case .transactionEnd: return try endTransaction(payload, &context)
        case .getDomainPath:
            guard let domain = UInt32(string(payload)) else { throw .invalid }
            return Array("/local/domain/\(domain)\0".utf8)
        case .isDomainIntroduced:
            guard let domain = UInt32(string(payload)) else { throw .invalid }
            return Array((domain == 0 || introduced[domain] != nil ? "T\0" : "F\0").utf8)
        case .introduce, .release, .resume, .setTarget, .control:
            return try administer(operation, payload, &context)
        case .watchEvent, .error: throw .invalid
        }
    }

    // MARK: - Arguments

    /// The payload up to its first NUL, as text.
    private func string(_ payload: [UInt8]) -> String {
        String(decoding: payload.prefix { $0 != 0 }, as: UTF8.self)
    }

    private func path(_ payload: [UInt8], _ context: Context) throws(StoreError) -> String {
        guard payload.last == 0 else { throw .invalid }
        return try absolute(string(payload), context)
    }

    /// NUL-terminated strings; what follows the last NUL is no argument.
    private func strings(_ payload: [UInt8]) -> [String] {
        payload.split(separator: 0, omittingEmptySubsequences: false).dropLast()
            .map { String(decoding: $0, as: UTF8.self) }
    }

    // MARK: - Nodes

    private mutating func children(_ path: String, _ context: Context) throws(StoreError) -> [UInt8] {
        try require(path, .read, context).children.flatMap { (name) -> [UInt8] in Array(name.utf8) + [0] }
    }

    /// <generation>|<part of the list from an offset>; a NUL more ends the last part.
    private mutating func childrenPart(_ payload: [UInt8], _ context: Context) throws(StoreError) -> [UInt8] {
        let arguments = strings(payload)
        guard arguments.count == 2, let offset = Int(arguments[1]), offset >= 0 else { throw .invalid }
        let node = try require(try absolute(arguments[0], context), .read, context)
        let list = node.children.flatMap { (name) -> [UInt8] in Array(name.utf8) + [0] }
        let head = Array("\(node.generation)\0".utf8)
        guard offset < list.count else { return head + [0] }
        let room = Message.maximumPayload - head.count - 1
        guard list.count - offset > room else { return head + list[offset...] + [0] }
        // A part ends behind a name.
        let part = list[offset..<(offset + room)]
        guard let end = part.lastIndex(of: 0) else { throw .tooBig }
        return head + part[...end]
    }

    private mutating func writeRequest(_ payload: [UInt8], _ context: inout Context) throws(StoreError) -> [UInt8] {
        guard let end = payload.firstIndex(of: 0) else { throw .invalid }
        let path = try absolute(string(payload), context)
        try checkWriting(path, context)
        try write(path, Array(payload[(end + 1)...]), &context)
        return Self.acknowledged
    }

    private mutating func makeDirectory(_ path: String, _ context: inout Context) throws(StoreError) -> [UInt8] {
        guard mayRearrange(context) else { throw .denied }
        if let node = try look(path, context) {
            guard access(node, context).contains(.write) else { throw .denied }
        } else {
            try create(path, value: [], &context)
            try noteChange(path, &context)
        }
        return Self.acknowledged
    }

    private mutating func setPermissions(_ payload: [UInt8], _ context: inout Context) throws(StoreError) -> [UInt8] {
        let arguments = strings(payload)
        guard let first = arguments.first else { throw .invalid }
        let permissions = arguments.dropFirst().compactMap { Permission($0) }
        guard !permissions.isEmpty, permissions.count == arguments.count - 1 else { throw .invalid }
        let path = try absolute(first, context)
        guard mayRearrange(context) else { throw .denied }
        var node = try require(path, .write, context)
        let domain = domain(context)
        if domain != 0 {
            guard permissions.count <= quota.permissions else { throw .noSpace }
            // Only the owner changes permissions, and he cannot give the node away.
            let target = clients[context.client]?.target
            guard node.owner == domain || node.owner == target else { throw .denied }
            guard permissions[0].domain == node.owner else { throw .notPermitted }
        }
        node.permissions = permissions
        try put(path, node, context)
        try noteChange(path, &context)
        return Self.acknowledged
    }

    // MARK: - Watches

    private mutating func addWatch(_ payload: [UInt8], _ context: inout Context) throws(StoreError) -> [UInt8] {
        let arguments = strings(payload)
        guard arguments.count == 2 || arguments.count == 3 else { throw .invalid }
        let depth = arguments.count == 3 ? Int(arguments[2]) : nil
        guard arguments.count == 2 || depth.map({ $0 >= 0 }) == true else { throw .invalid }
        let isSpecial = arguments[0].hasPrefix("@")
        guard !isSpecial || mayRearrange(context) else { throw .denied }
        if isSpecial, !["@introduceDomain", "@releaseDomain"].contains(arguments[0]) { throw .invalid }
        let watch = Watch(
            client: context.client, path: arguments[0],
            absolute: isSpecial ? arguments[0] : try absolute(arguments[0], context),
            token: Array(arguments[1].utf8), depth: depth)
        let own = watches.filter { $0.client == context.client }
        guard !own.contains(where: { $0.path == watch.path && $0.token == watch.token }) else { throw .exists }
        guard isPrivileged(context) || own.count < watchLimit(context) else { throw .tooBig }
        watches.append(watch)
        context.events.append(Delivery(client: context.client, message: event(watch, watch.absolute)))
        if clients[context.client]?.hasComeBack == true {
            context.events += lastChanges.compactMap { tell(watch, of: $0) }
        }
        return Self.acknowledged
    }

    private mutating func removeWatch(_ payload: [UInt8], _ context: Context) throws(StoreError) -> [UInt8] {
        let arguments = strings(payload)
        guard arguments.count == 2 else { throw .invalid }
        let index = watches.firstIndex {
            $0.client == context.client && $0.path == arguments[0] && $0.token == Array(arguments[1].utf8)
        }
        guard let index else { throw .noEntry }
        watches.remove(at: index)
        return Self.acknowledged
    }

    // MARK: - Transactions

    private mutating func startTransaction(_ context: Context) throws(StoreError) -> [UInt8] {
        guard context.transaction == 0 else { throw .busy }
        guard var client = clients[context.client] else { throw .invalid }
        guard isPrivileged(context) || client.transactions.count < quota.transactions else { throw .noSpace }
        while client.nextTransaction == 0 || client.transactions[client.nextTransaction] != nil {
            client.nextTransaction &+= 1
        }
        let id = client.nextTransaction
        client.transactions[id] = Transaction()
        client.nextTransaction &+= 1
        clients[context.client] = client
        return Array("\(id)\0".utf8)
    }

    private mutating func endTransaction(_ payload: [UInt8], _ context: inout Context) throws(StoreError) -> [UInt8] {
        guard ["T", "F"].contains(string(payload)) else { throw .invalid }
        guard let transaction = clients[context.client]?.transactions.removeValue(forKey: context.transaction) else {
            throw .noEntry
        }
        guard string(payload) == "T" else { return Self.acknowledged }
        guard transaction.holds(in: tree) else { throw .again }
        for (owner, more) in transaction.growth(over: tree) where owner != 0 && more > 0 {
            guard tree.owned[owner, default: 0] + more <= quota.nodes else { throw .noSpace }
        }
        for path in transaction.order { tree.put(path, transaction.written[path] ?? nil) }
        context.changes = transaction.changes
        return Self.acknowledged
    }

    // MARK: - The toolstack's

    private mutating func administer(
        _ operation: Operation, _ payload: [UInt8], _ context: inout Context
    ) throws(StoreError) -> [UInt8] {
        guard isPrivileged(context) else { throw .denied }
        let arguments = strings(payload)
        if operation == .control { return try control(arguments) }
        guard let domain = arguments.first.flatMap({ UInt32($0) }) else { throw .invalid }
        switch operation {
        case .introduce:
            guard arguments.count == 3, let frame = UInt64(arguments[1]), let port = UInt32(arguments[2]) else {
                throw .invalid
            }
            introduced[domain] = (frame, port)
            context.events += notifySpecial("@introduceDomain")
        case .release:
            guard introduced.removeValue(forKey: domain) != nil else { throw .noEntry }
            context.events += notifySpecial("@releaseDomain")
        case .setTarget:
            guard arguments.count == 2, let target = UInt32(arguments[1]) else { throw .invalid }
            for id in clients.keys where clients[id]?.domain == domain { clients[id]?.target = target }
        default:
            guard introduced[domain] != nil else { throw .noEntry }
        }
        return Self.acknowledged
    }

    /// "check" proves the tree's links, "print" is accepted, "help" lists them.
    private func control(_ arguments: [String]) throws(StoreError) -> [UInt8] {
        switch arguments.first {
        case "check":
            let broken = tree.nodes.filter { path, node in
                node.children.contains { tree.node(StorePath.child(path, $0)) == nil }
            }
            guard broken.isEmpty else { throw .io }
            return Self.acknowledged
        case "print": return Self.acknowledged
        case "help": return Array("check\nhelp\nprint\n\0".utf8)
        default: throw .invalid
        }
    }
}
