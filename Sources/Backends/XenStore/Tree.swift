// The tree itself, and transactions on it.
// A transaction notes the generation of every node it looked at, and keeps what it changes to itself; it
// is applied if none of those nodes has changed since, else the client is told to try again.

/// All nodes, by absolute path.
struct Tree {
    private(set) var nodes: [String: Node] = [:]
    private var generation: UInt64 = 0
    /// Nodes that each unprivileged domain owns, for its quota.
    private(set) var owned: [UInt32: Int] = [:]
    /// Called with every change, as bytes.
    var onRecord: (([UInt8]) -> Void)?

    init() {
        put("/", Node(permissions: [Permission(0, [])]))
    }

    func node(_ path: String) -> Node? { nodes[path] }

    mutating func put(_ path: String, _ node: Node?) {
        if let onRecord { onRecord(StoreRecord.bytes(path, node)) }
        if let old = nodes[path] { owned[old.owner, default: 0] -= 1 }
        guard var node else {
            nodes[path] = nil
            return
        }
        generation += 1
        node.generation = generation
        owned[node.owner, default: 0] += 1
        nodes[path] = node
    }

    func generation(_ path: String) -> UInt64 { nodes[path]?.generation ?? 0 }
}

/// A change that watches are told of.
struct Change: Equatable {
    var path: String
    /// Only watches of this very node: it went with a node above it.
    var isExact = false
    /// The node's last permissions, where it is gone.
    var permissions: [Permission]
}

/// What a client does between its start and end messages.
struct Transaction {
    /// Each node looked at, as it was then; later changes by others stay unseen until the end.
    private(set) var seen: [String: Node?] = [:]
    /// Nodes as the transaction leaves them.
    private(set) var written: [String: Node?] = [:]
    /// Paths of `written` in the order they were first written.
    private(set) var order: [String] = []
    var changes: [Change] = []

    /// Whether every node it looked at is still as it was.
    func holds(in tree: Tree) -> Bool { seen.allSatisfy { tree.generation($0.key) == $0.value?.generation ?? 0 } }

    mutating func node(_ path: String, in tree: Tree) -> Node? {
        if let own = written[path] { return own }
        if let known = seen[path] { return known }
        let node = tree.node(path)
        seen.updateValue(node, forKey: path)
        return node
    }

    mutating func put(_ path: String, _ node: Node?) {
        if written.updateValue(node, forKey: path) == nil { order.append(path) }
    }

    /// Nodes it would add to each owner's count.
    func growth(over tree: Tree) -> [UInt32: Int] {
        var growth: [UInt32: Int] = [:]
        for (path, node) in written {
            if let node { growth[node.owner, default: 0] += 1 }
            if let old = tree.node(path) { growth[old.owner, default: 0] -= 1 }
        }
        return growth
    }
}
