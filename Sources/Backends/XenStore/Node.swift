// One node of the store, who may touch it, and what a path may look like.
// Source: docs/misc/xenstore.txt "Permissions", tools' xenstore path rules.

/// What one domain may do to a node.
public struct Permission: Equatable, Sendable {
    public struct Access: OptionSet, Sendable, Hashable {
        public var rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue }
        public static let read = Access(rawValue: 1)
        public static let write = Access(rawValue: 2)
    }
    public var domain: UInt32
    public var access: Access

    public init(_ domain: UInt32, _ access: Access) { (self.domain, self.access) = (domain, access) }

    /// The wire form: n, r, w or b, and the domain's number.
    public var text: String {
        let letter = access == [] ? "n" : access == .read ? "r" : access == .write ? "w" : "b"
        return letter + String(domain)
    }

    public init?(_ text: String) {
        guard let letter = text.first, let domain = UInt32(text.dropFirst()) else { return nil }
        let letters: [Character: Access] = ["n": [], "r": .read, "w": .write, "b": [.read, .write]]
        guard let access = letters[letter] else { return nil }
        self.init(domain, access)
    }
}

/// A node: its value, its children's names and its permissions. The first permission names the owner and
/// what domains that are not listed may do.
public struct Node: Equatable, Sendable {
    public var value: [UInt8] = []
    public var permissions: [Permission]
    public internal(set) var children: [String] = []
    /// Raised with every change of value, permissions or children; never reused.
    public internal(set) var generation: UInt64 = 0

    public var owner: UInt32 { permissions.first?.domain ?? 0 }

    /// What `domain`, acting also for `target`, may do here.
    func access(for domain: UInt32, target: UInt32?) -> Permission.Access {
        if domain == 0 || domain == owner || target == owner { return [.read, .write] }
        let own = permissions.dropFirst().first { $0.domain == domain || $0.domain == target }
        return (own ?? permissions.first)?.access ?? []
    }
}

/// Rules for names in the store.
enum StorePath {
    /// XENSTORE_ABS_PATH_MAX and XENSTORE_REL_PATH_MAX.
    static let maximumAbsolute = 3072
    static let maximumRelative = 2048

    /// The absolute form of what `domain` sent; throws for what is no path.
    static func canonical(_ path: String, domain: UInt32) throws(StoreError) -> String {
        guard isValid(path) else { throw .invalid }
        if path.hasPrefix("/") {
            guard path.utf8.count <= maximumAbsolute else { throw .invalid }
            return path
        }
        guard path.utf8.count <= maximumRelative else { throw .invalid }
        return "/local/domain/\(domain)/\(path)"
    }

    static func isValid(_ path: String) -> Bool {
        guard !path.isEmpty else { return false }
        if path == "/" { return true }
        guard path.utf8.last != UInt8(ascii: "/"), !path.contains("//") else { return false }
        return path.utf8.allSatisfy { byte in
            switch byte {
            case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"): true
            case UInt8(ascii: "0")...UInt8(ascii: "9"): true
            default: byte == 0x2D || byte == 0x2F || byte == 0x5F || byte == 0x40  // - / _ @
            }
        }
    }

    /// Path of the parent, nil for the root.
    static func parent(_ path: String) -> String? {
        guard path != "/", let slash = path.lastIndex(of: "/") else { return nil }
        return slash == path.startIndex ? "/" : String(path[..<slash])
    }

    static func name(_ path: String) -> String {
        path.lastIndex(of: "/").map { String(path[path.index(after: $0)...]) } ?? path
    }

    static func child(_ path: String, _ name: String) -> String { path == "/" ? "/" + name : path + "/" + name }

    /// How many levels `path` lies below `ancestor`; nil if it does not.
    static func depth(of path: String, below ancestor: String) -> Int? {
        if path == ancestor { return 0 }
        let prefix = ancestor == "/" ? "/" : ancestor + "/"
        guard path.hasPrefix(prefix) else { return nil }
        return 1 + path.utf8.dropFirst(prefix.utf8.count).count { $0 == UInt8(ascii: "/") }
    }
}
