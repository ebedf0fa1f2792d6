// A terminal whose keys go through unchanged.
// Source: termios(3).
// Modelled: raw mode and its end. Not modelled: window sizes.
// Quirks: what is no terminal (a pipe) is left as it is.
internal import Glibc

/// Puts a terminal into raw mode until `restore` or its own end.
public final class RawTerminal {
    private let descriptor: Int32
    private var saved: termios?

    public init(_ descriptor: Int32) {
        self.descriptor = descriptor
        var mode = termios()
        guard tcgetattr(descriptor, &mode) == 0 else { return }
        saved = mode
        cfmakeraw(&mode)
        tcsetattr(descriptor, TCSANOW, &mode)
    }

    public func restore() {
        guard var mode = saved else { return }
        tcsetattr(descriptor, TCSADRAIN, &mode)
        saved = nil
    }

    deinit { restore() }
}
