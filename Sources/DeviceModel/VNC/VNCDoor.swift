// Connections to a VNC port that have not shown yet what they speak.
// Source: RFC 6143 §7.1 (a viewer waits for the server's version); RFC 6455 §4.2 (a browser sends a GET first), §10.2.
// Modelled: both on one port, the origin of a browser's page. Not modelled: web sockets over TLS.
// Quirks: libvncserver would wait for a new client's first bytes itself, and the whole machine with it.

internal import Glibc
internal import Host

/// Holds new connections until it is clear whether a viewer or a browser has come.
final class VNCDoor {
    enum Visitor { case viewer, browser }

    private struct Waiting {
        let connection: Descriptor
        let since: UInt64
    }

    /// How long a browser may be silent before it is taken for a viewer, and how long its request may take. Nanoseconds.
    private static let patience: UInt64 = 50_000_000
    private static let requestTime: UInt64 = 5_000_000_000
    /// libvncserver takes requests up to this size. Bytes.
    private static let longestRequest = 4096
    private static let mostWaiting = 32

    private var waiting: [Waiting] = []
    private var timer: RepeatingTimer?
    private let onVisitor: (Descriptor, Visitor) -> Void

    init(reactor: Reactor, onVisitor: @escaping (Descriptor, Visitor) -> Void) throws(HostFailure) {
        self.onVisitor = onVisitor
        timer = try RepeatingTimer(every: 10_000_000, on: reactor) { [weak self] in self?.look() }
    }

    /// Takes a connection in. It comes out by `onVisitor`, or is closed.
    func enter(_ connection: Descriptor) {
        if waiting.count >= Self.mostWaiting { waiting.removeFirst() }
        waiting.append(Waiting(connection: connection, since: monotonicNanoseconds()))
        timer?.start()
    }

    private func look() {
        let now = monotonicNanoseconds()
        for visitor in waiting {
            let number = visitor.connection.number
            let verdict = Self.judge(Self.peek(number), waited: now - visitor.since)
            if verdict == .wait { continue }
            waiting.removeAll { $0.connection.number == number }
            switch verdict {
            case .enter(let kind): onVisitor(visitor.connection, kind)
            case .wait, .leave: break
            }
        }
        if waiting.isEmpty { timer?.stop() }
    }

    enum Verdict: Equatable { case wait, leave, enter(Visitor) }

    /// What to do with a visitor that has sent `bytes` so far; nil once it has hung up.
    static func judge(_ bytes: [UInt8]?, waited: UInt64) -> Verdict {
        guard let bytes else { return .leave }
        let get = Array("GET ".utf8)
        guard bytes.starts(with: get.prefix(bytes.count)) else { return .enter(.viewer) }
        if bytes.isEmpty { return waited < patience ? .wait : .enter(.viewer) }
        let text = String(decoding: bytes, as: UTF8.self)
        guard text.contains("\r\n\r\n") else {
            return waited < requestTime && bytes.count < longestRequest ? .wait : .leave
        }
        return isWelcome(text) ? .enter(.browser) : .leave
    }

    /// Any page in the user's browser can reach a port of this machine. Only those that come from this machine, from a
    /// file, or from the very address that the browser was sent to may use the guest. A name proves nothing (whoever
    /// owns it can have it mean this machine), nor does the origin "null".
    private static func isWelcome(_ request: String) -> Bool {
        func field(_ name: String) -> String? {
            for line in request.split(whereSeparator: \.isNewline).dropFirst() {
                guard let colon = line.firstIndex(of: ":"), line[..<colon].lowercased() == name else { continue }
                return line[line.index(after: colon)...].filter { !$0.isWhitespace }.lowercased()
            }
            return nil
        }
        guard let origin = field("origin") else { return true }
        if origin.hasPrefix("file:") { return true }
        guard let scheme = origin.firstRange(of: "://") else { return false }
        let host = host(origin[scheme.upperBound...])
        if ["localhost", "127.0.0.1", "[::1]"].contains(host) { return true }
        return host.allSatisfy { $0.isNumber || $0 == "." } && field("host").map { Self.host($0[...]) } == host
    }

    /// A host without its port.
    private static func host(_ authority: Substring) -> String {
        if authority.hasPrefix("["), let end = authority.firstIndex(of: "]") { return String(authority[...end]) }
        return String(authority.prefix { $0 != ":" && $0 != "/" })
    }

    /// What has come and stays unread.
    private static func peek(_ number: Int32) -> [UInt8]? {
        var bytes = [UInt8](repeating: 0, count: longestRequest)
        let count = unsafe recv(number, &bytes, bytes.count, Int32(MSG_PEEK) | Int32(MSG_DONTWAIT))
        if count < 0 { return errno == EAGAIN || errno == EINTR ? [] : nil }
        return count == 0 ? nil : Array(bytes.prefix(count))
    }
}
