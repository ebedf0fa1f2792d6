/// A failed set-up, in one sentence.
public struct SetupFailure: Error, CustomStringConvertible, Sendable {
    public var description: String
    public init(_ description: String) { self.description = description }
}
