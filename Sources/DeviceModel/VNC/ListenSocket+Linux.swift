// sockaddr_in comes with libvncserver's headers.
internal import CVNC
internal import Glibc
internal import Host

/// A TCP socket that listens on one IPv4 address.
struct ListenSocket {
    let descriptor: Descriptor
    let address: String
    let port: Int

    /// Listens on `5900 + display`, or with `findsFree` on the first free port from there on.
    /// An empty address is 127.0.0.1.
    init(address: String, display: Int, findsFree: Bool) throws(HostFailure) {
        let host = address.isEmpty || address == "localhost" ? "127.0.0.1" : address
        var last = HostFailure("listen on", "VNC display \(display)", code: EINVAL)
        for number in display..<(findsFree ? display + 100 : display + 1) {
            let port = 5900 + number
            guard port > 0, port < 65_536 else { break }
            do {
                descriptor = try Self.open(host, UInt16(port))
                (self.address, self.port) = (host, port)
                return
            } catch {
                last = error
                if last.code != EADDRINUSE { break }
            }
        }
        throw last
    }

    private static func open(_ host: String, _ port: UInt16) throws(HostFailure) -> Descriptor {
        let subject = "VNC port \(port) of \(host)"
        var place = sockaddr_in()
        place.sin_family = sa_family_t(AF_INET)
        place.sin_port = port.bigEndian
        guard unsafe inet_pton(AF_INET, host, &place.sin_addr) == 1 else {
            throw HostFailure("listen on", subject, code: EADDRNOTAVAIL)
        }
        let type = Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue) | Int32(SOCK_NONBLOCK.rawValue)
        let number = socket(AF_INET, type, 0)
        guard number >= 0 else { throw HostFailure("listen on", subject, code: errno) }
        let descriptor = Descriptor(owning: number)
        var one: Int32 = 1
        unsafe setsockopt(number, SOL_SOCKET, SO_REUSEADDR, &one, 4)
        let size = socklen_t(MemoryLayout<sockaddr_in>.size)
        let bound = unsafe withUnsafePointer(to: &place) { pointer in
            unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { unsafe bind(number, $0, size) }
        }
        guard bound == 0, listen(number, 8) == 0 else { throw HostFailure("listen on", subject, code: errno) }
        return descriptor
    }

    /// The next client's socket, if one waits.
    func accept() -> Int32? {
        let number = Glibc.accept(descriptor.number, nil, nil)
        guard number >= 0 else { return nil }
        _ = fcntl(number, F_SETFD, FD_CLOEXEC)
        return number
    }
}

/// What libvncserver does to a new client's socket.
func prepareClient(_ socket: Int32) {
    _ = fcntl(socket, F_SETFL, O_NONBLOCK)
    var one: Int32 = 1
    unsafe setsockopt(socket, Int32(IPPROTO_TCP), TCP_NODELAY, &one, 4)
}

/// Bytes that a socket has not handed to the other side yet.
func unsentBytes(_ socket: Int32) -> Int {
    var count: Int32 = 0
    return unsafe ioctl(socket, UInt(TIOCOUTQ), &count) == 0 ? Int(count) : 0
}
