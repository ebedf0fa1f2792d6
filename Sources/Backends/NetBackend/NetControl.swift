// The control ring of a virtual interface: what is asked for in it, and answered.
// Source: Xen's public/io/netif.h ("Control ring").
// Modelled: everything that concerns hashes. Not modelled: static grants.
// Quirks: a ring whose indices make no sense is served no more; the interface goes on.
import Rings

final class NetControl {
    private var ring: BackRing
    private let port: any EventPort
    private let grants: GrantMap
    private var entry = [UInt8](repeating: 0, count: NetHash.Request.slotBytes)
    private var fault: RingFault?
    private(set) var hash: NetHash

    init(ring: consuming BackRing, port: any EventPort, grants: GrantMap, queues: Int) {
        self.ring = ring
        (self.port, self.grants, hash) = (port, grants, NetHash(queues: queues))
    }

    func close() {
        port.close()
        ring.release()
    }

    /// Carries out what waits; a fault that has come by it.
    func serve() -> RingFault? {
        guard fault == nil else { return nil }
        do throws(RingFault) {
            while try ring.take(into: &entry) {
                let request = NetHash.Request(entry)
                let (status, data) = hash.carryOut(request) { [grants] reference, count in
                    guard let page = try? grants.map(reference, .readOnly) else { return nil }
                    defer { page.release() }
                    return unsafe Array(UnsafeRawBufferPointer(start: page.base, count: count))
                }
                ring.put(request.response(status, data))
            }
        } catch { fault = error }
        if ring.push() { port.notify() }
        return fault
    }

    /// Asks the guest for events; false if there is something to do already.
    func prepareToSleep() -> Bool { fault != nil || !ring.armForRequests() }
}
