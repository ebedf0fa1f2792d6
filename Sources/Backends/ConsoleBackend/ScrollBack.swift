// The last bytes of a console.
// Source: our own.
// Modelled: a bounded history that begins at a line. Not modelled: what escape sequences would show.
// Quirks: it holds up to twice its limit for a moment, so that not every byte moves all the others.

/// A history for readers that come later.
public struct ScrollBack: Sendable {
    public let limit: Int
    private var kept: [UInt8] = []

    public init(limit: Int) { self.limit = max(1, limit) }

    public mutating func append(_ bytes: some Collection<UInt8>) {
        kept += bytes.suffix(limit)
        if kept.count >= limit * 2 { kept.removeFirst(kept.count - limit) }
    }

    /// At most `limit` bytes; when older ones are gone, it begins behind the first newline.
    public var bytes: [UInt8] {
        guard kept.count > limit else { return kept }
        let rest = kept.suffix(limit)
        guard let newline = rest.firstIndex(of: 10) else { return Array(rest) }
        return Array(rest[(newline + 1)...])
    }
}
