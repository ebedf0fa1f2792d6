// Changes of the tree as bytes, so that a store can be put together again from what a dead one has written.
// Source: ours.
// Modelled: nodes with values, permissions and children. Not modelled: clients, watches, transactions (they come anew).
// Quirks: what changed last is told again to domains that come back. A file that ends within a record ends before it: whoever writes records writes each with one call.

extension Store {
    /// Called with the bytes of every change of the tree. `replay` takes them in the same order.
    public var onRecord: (([UInt8]) -> Void)? {
        get { tree.onRecord }
        set { tree.onRecord = newValue }
    }

    /// The whole tree as records.
    public var records: [UInt8] {
        tree.nodes.sorted { $0.key < $1.key }.flatMap { StoreRecord.bytes($0.key, $0.value) }
    }

    /// Carries out records; those that make no sense end it. How many bytes made sense.
    @discardableResult
    public mutating func replay(_ bytes: [UInt8]) -> Int {
        var reader = StoreRecord.Reader(bytes)
        var sound = 0
        while let (path, node) = reader.next() {
            // A store that is killed between an answer and its events leaves watchers who never hear of a change.
            // Nobody minds to hear of one twice.
            if lastChanges.count == StoreRecord.changesToldAgain { lastChanges.removeFirst() }
            lastChanges.append(Change(path: path, permissions: (node ?? tree.node(path))?.permissions ?? []))
            tree.put(path, node)
            sound = reader.position
        }
        return sound
    }
}

enum StoreRecord {
    /// More than one transaction of the toolstack makes.
    static let changesToldAgain = 64

    static func bytes(_ path: String, _ node: Node?) -> [UInt8] {
        var body: [UInt8] = text(Array(path.utf8))
        body.append(node == nil ? 0 : 1)
        if let node {
            body += text(node.value) + word(node.permissions.count)
            for permission in node.permissions { body += word(Int(permission.domain)) + [permission.access.rawValue] }
            body += word(node.children.count)
            for name in node.children { body += text(Array(name.utf8)) }
        }
        return word(body.count) + body
    }

    private static func word(_ number: Int) -> [UInt8] {
        (0..<4).map { UInt8(truncatingIfNeeded: number >> (8 * $0)) }
    }
    private static func text(_ bytes: [UInt8]) -> [UInt8] { word(bytes.count) + bytes }

    /// Reads what `bytes` has put together.
    struct Reader {
        private let bytes: [UInt8]
        private(set) var position = 0
        init(_ bytes: [UInt8]) { self.bytes = bytes }

        mutating func next() -> (String, Node?)? {
            let start = position
            guard let length = word(), length <= bytes.count - position, let path = text() else { return nil }
            let end = start + 4 + length
            let name = String(decoding: path, as: UTF8.self)
            guard StorePath.isValid(name), name.hasPrefix("/"), let flag = byte() else { return nil }
            guard flag == 1 else { return position == end ? (name, nil) : nil }
            guard let value = text(), let count = word(), count <= length else { return nil }
            var node = Node(value: value, permissions: [])
            for _ in 0..<count {
                guard let domain = word(), let access = byte() else { return nil }
                node.permissions.append(Permission(UInt32(domain), Permission.Access(rawValue: access & 3)))
            }
            guard let children = word(), children <= length else { return nil }
            for _ in 0..<children {
                guard let child = text() else { return nil }
                node.children.append(String(decoding: child, as: UTF8.self))
            }
            return position == end ? (name, node) : nil
        }

        private mutating func byte() -> UInt8? {
            guard position < bytes.count else { return nil }
            defer { position += 1 }
            return bytes[position]
        }
        private mutating func word() -> Int? {
            guard bytes.count - position >= 4 else { return nil }
            defer { position += 4 }
            return (0..<4).reduce(0) { $0 | Int(bytes[position + $1]) << (8 * $1) }
        }
        private mutating func text() -> [UInt8]? {
            guard let count = word(), count <= bytes.count - position else { return nil }
            defer { position += count }
            return Array(bytes[position..<(position + count)])
        }
    }
}
