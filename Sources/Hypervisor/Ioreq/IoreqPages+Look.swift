// What a vCPU does before it sleeps: looks whether it is kicked.
// Source: decision 0003.
// Modelled: looking for a while. Quirks: –

internal import CHost
internal import Host
internal import Synchronization

extension IoreqPages {
    /// Between two looks at the clock.
    private static let looks = 32

    /// Looks until vCPU `index` is kicked, from `began` on, for as long as `patience` says at most. Whether there was a kick.
    public func look(_ index: Int, from began: UInt64, _ patience: inout Patience) -> Bool {
        let attention = word(IoreqLayout.attention + index * IoreqLayout.attentionStride)
        let limit = patience.nanoseconds(at: began)
        var last = began
        while last &- began < limit {
            for _ in 0..<Self.looks {
                if attention.pointee.load(ordering: .acquiring) != 0 { return true }
                chost_relax()
            }
            let now = monotonicNanoseconds()
            patience.note(gap: now &- last, at: now)
            last = now
        }
        return false
    }
}
