// How much a guest may send: so many bytes in each interval.
// Source: xl-network-configuration(5) "rate"; Linux's netback (credit_bytes, credit_usec), whose node "rate" is
// BYTES,MICROSECONDS.
// Modelled: credit that is filled up at the end of each interval. Not modelled: saving credit for later.
// Quirks: a packet larger than the credit of an interval goes when the credit is whole.

struct RateLimit: Equatable {
    let bytes: UInt64
    let nanoseconds: UInt64
    private var credit: UInt64
    private var start: UInt64 = 0

    /// nil for no limit.
    init?(_ text: String?) {
        let parts = (text ?? "").split(separator: ",").map { UInt64($0) }
        guard parts.count == 2, let bytes = parts[0], let microseconds = parts[1], bytes > 0, microseconds > 0,
            bytes < 1 << 40, microseconds < 1 << 40
        else { return nil }
        (self.bytes, nanoseconds, credit) = (bytes, microseconds * 1000, bytes)
    }

    /// Whether a packet may go now; if not, when to ask again.
    mutating func takes(_ size: Int, at now: UInt64) -> (taken: Bool, next: UInt64) {
        if now &- start >= nanoseconds { (start, credit) = (now, bytes) }
        let wanted = UInt64(size)
        guard wanted <= credit || credit == bytes else { return (false, start + nanoseconds) }
        credit -= min(wanted, credit)
        return (true, 0)
    }
}
