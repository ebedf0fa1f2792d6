// Why a command fails, and with which exit code.
// Source: exit codes captured on Xen 4.17.7.
// Modelled: 1 wrong domain or config, 2 wrong arguments, 3 failed creation, 6 nothing to create.
// Quirks: what has been said already is an error without a message.

/// A failed operation: a sentence for the user, and xl's exit code.
public struct ToolstackError: Error, Equatable, Sendable {
    public var message: String
    public var exitCode: Int32
    /// The last lines of the log of what failed.
    public var log: [String]
    /// What programs look for word by word: printed without the command's name in front.
    public var isVerbatim: Bool
    public init(_ message: String, exitCode: Int32 = 1, log: [String] = [], isVerbatim: Bool = false) {
        (self.message, self.exitCode, self.log, self.isVerbatim) = (message, exitCode, log, isVerbatim)
    }
}
