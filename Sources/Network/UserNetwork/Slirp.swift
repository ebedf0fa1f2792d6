// libslirp as a thing of ours: TCP/IP of the guest on one side, sockets of an ordinary user on the other.
// Source: libslirp 4.7's libslirp.h; its own descriptors are polled by whoever runs it.
// Modelled: IPv4 with DHCP, DNS, forwards of ports; IPv6 by router advertisements. Not modelled: TFTP, SMB.
// Quirks: it wants finished frames, but takes large ones; it keeps time itself.

internal import CSlirp
internal import Foundation
internal import Glibc
internal import Host

// Invariant: `slirp` is libslirp's own from `init` to `deinit`; it calls back on this thread only, with `self` alive.
/// One user network: 10.0.2.0/24 with the host at 10.0.2.2, DNS at 10.0.2.3, the guest from 10.0.2.15 on.
@safe final class Slirp {
    /// A frame for the guest.
    var onFrame: ([UInt8]) -> Void = { _ in }
    var onComplaint: (String) -> Void = { _ in }
    private var slirp: OpaquePointer?
    private var timers: [Int: Timer] = [:]
    private var nextTimer = 1
    /// Descriptors that libslirp waits for now.
    private(set) var polled: [pollfd] = []

    @safe private struct Timer {
        let number: SlirpTimerId
        let context: UnsafeMutableRawPointer?
        /// Milliseconds; nil: not set.
        var expires: Int64?
    }

    init(hostName: String, bootFile: String?) {
        var config = unsafe SlirpConfig()
        unsafe config.version = 4
        unsafe config.in_enabled = true
        unsafe config.vnetwork = Self.address(0)
        unsafe config.vnetmask = in_addr(s_addr: UInt32(0xFFFF_FF00).bigEndian)
        unsafe config.vhost = Self.address(2)
        unsafe config.vnameserver = Self.address(3)
        unsafe config.vdhcp_start = Self.address(15)
        unsafe config.in6_enabled = true
        unsafe inet_pton(AF_INET6, "fec0::", &config.vprefix_addr6)
        unsafe config.vprefix_len = 64
        unsafe inet_pton(AF_INET6, "fec0::2", &config.vhost6)
        unsafe inet_pton(AF_INET6, "fec0::3", &config.vnameserver6)
        let me = unsafe Unmanaged.passUnretained(self).toOpaque()
        // libslirp keeps pointers to both.
        unsafe Self.callbacks.initialize(to: Self.makeCallbacks())
        unsafe hostName.withCString { name in
            unsafe config.vhostname = unsafe name
            unsafe (bootFile ?? "").withCString { file in
                if bootFile != nil { unsafe config.bootfile = unsafe file }
                unsafe slirp = slirp_new(&config, Self.callbacks, me)
            }
        }
    }

    /// One set for all, never freed.
    nonisolated(unsafe) private static let callbacks = UnsafeMutablePointer<SlirpCb>.allocate(capacity: 1)

    deinit { if let slirp = unsafe slirp { unsafe slirp_cleanup(slirp) } }

    static func address(_ host: UInt32) -> in_addr { in_addr(s_addr: (0x0A00_0200 | host).bigEndian) }

    /// A frame from the guest.
    func input(_ frame: [UInt8]) {
        guard let slirp = unsafe slirp else { return }
        unsafe slirp_input(slirp, frame, Int32(frame.count))
    }

    /// Connections to a port of the host's go to the guest, as the text says (`HostForward`). Fails with EINVAL if it says
    /// nothing, or as bind(2) does.
    func forward(_ text: String) throws(HostFailure) {
        guard let slirp = unsafe slirp, let rule = HostForward(text) else {
            throw HostFailure("forward", text, code: EINVAL)
        }
        let (host, guest) = (in_addr(s_addr: rule.hostAddress.bigEndian), in_addr(s_addr: rule.guestAddress.bigEndian))
        let status = unsafe slirp_add_hostfwd(
            slirp, rule.isUDP ? 1 : 0, host, Int32(rule.hostPort), guest, Int32(rule.guestPort))
        guard status == 0 else { throw HostFailure("forward", text, code: errno) }
    }

    // MARK: waiting

    /// What to wait for, and for how many milliseconds at most.
    func prepare() -> (descriptors: [pollfd], milliseconds: Int32) {
        guard let slirp = unsafe slirp else { return ([], -1) }
        polled.removeAll(keepingCapacity: true)
        var timeout = UInt32(1000)
        let me = unsafe Unmanaged.passUnretained(self).toOpaque()
        unsafe slirp_pollfds_fill(
            slirp, &timeout,
            { descriptor, events, opaque in
                guard let opaque = unsafe opaque else { return -1 }
                return unsafe Unmanaged<Slirp>.fromOpaque(opaque).takeUnretainedValue().add(descriptor, events)
            }, me)
        let now = Int64(monotonicNanoseconds() / 1_000_000)
        for timer in timers.values {
            guard let expires = timer.expires else { continue }
            timeout = min(timeout, UInt32(clamping: max(0, expires - now)))
        }
        return (polled, Int32(clamping: timeout))
    }

    /// Takes what has become of the descriptors of `prepare`.
    func serve(_ ready: ArraySlice<pollfd>, failed: Bool) {
        guard let slirp = unsafe slirp else { return }
        polled = Array(ready)
        let me = unsafe Unmanaged.passUnretained(self).toOpaque()
        unsafe slirp_pollfds_poll(
            slirp, failed ? 1 : 0,
            { index, opaque in
                guard let opaque = unsafe opaque else { return 0 }
                return unsafe Unmanaged<Slirp>.fromOpaque(opaque).takeUnretainedValue().events(Int(index))
            }, me)
        let now = Int64(monotonicNanoseconds() / 1_000_000)
        for (key, timer) in timers {
            guard let expires = timer.expires, expires <= now else { continue }
            timers[key]?.expires = nil
            unsafe slirp_handle_timer(slirp, timer.number, timer.context)
        }
    }

    private static let events: [(slirp: Int, poll: Int32)] = [
        (Int(SLIRP_POLL_IN), POLLIN), (Int(SLIRP_POLL_OUT), POLLOUT),
        (Int(SLIRP_POLL_PRI), POLLPRI), (Int(SLIRP_POLL_ERR), POLLERR),
        (Int(SLIRP_POLL_HUP), POLLHUP),
    ]

    private func add(_ descriptor: Int32, _ wanted: Int32) -> Int32 {
        let events = Self.events.reduce(Int32(0)) { $0 | (Int(wanted) & $1.slirp != 0 ? $1.poll : 0) }
        polled.append(pollfd(fd: descriptor, events: Int16(events & (POLLIN | POLLOUT | POLLPRI)), revents: 0))
        return Int32(polled.count - 1)
    }

    private func events(_ index: Int) -> Int32 {
        guard polled.indices.contains(index) else { return 0 }
        let found = Int32(polled[index].revents)
        return Int32(Self.events.reduce(0) { $0 | (found & $1.poll != 0 ? $1.slirp : 0) })
    }
}

/// What libslirp calls. `opaque` is the Slirp that it belongs to.
extension Slirp {
    private static func owner(_ opaque: UnsafeMutableRawPointer?) -> Slirp? {
        unsafe opaque.map { unsafe Unmanaged<Slirp>.fromOpaque($0).takeUnretainedValue() }
    }

    private static func makeCallbacks() -> SlirpCb {
        var callbacks = SlirpCb()
        unsafe callbacks.send_packet = { bytes, count, opaque in
            guard let bytes = unsafe bytes, let owner = unsafe Slirp.owner(opaque) else { return -1 }
            unsafe owner.onFrame([UInt8](UnsafeRawBufferPointer(start: bytes, count: count)))
            return count
        }
        unsafe callbacks.guest_error = { text, opaque in
            guard let text = unsafe text else { return }
            unsafe Slirp.owner(opaque)?.onComplaint(String(cString: text))
        }
        unsafe callbacks.clock_get_ns = { _ in Int64(monotonicNanoseconds()) }
        unsafe callbacks.timer_new_opaque = { number, context, opaque in
            unsafe Slirp.owner(opaque)?.makeTimer(number, context)
        }
        unsafe callbacks.timer_free = { timer, opaque in
            unsafe Slirp.owner(opaque)?.timers[Int(bitPattern: timer)] = nil
        }
        unsafe callbacks.timer_mod = { timer, expires, opaque in
            unsafe Slirp.owner(opaque)?.timers[Int(bitPattern: timer)]?.expires = expires
        }
        unsafe callbacks.register_poll_fd = { _, _ in }
        unsafe callbacks.unregister_poll_fd = { _, _ in }
        unsafe callbacks.notify = { _ in }
        unsafe callbacks.init_completed = { _, _ in }
        return callbacks
    }

    private func makeTimer(_ number: SlirpTimerId, _ context: UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? {
        defer { nextTimer += 1 }
        timers[nextTimer] = unsafe Timer(number: number, context: context, expires: nil)
        return unsafe UnsafeMutableRawPointer(bitPattern: nextTimer)
    }
}
