import Testing

@testable import Kernel

/// Xen's FIFO form of event channels: words at frame 10, control blocks in frame 9.
@Suite("FIFO event channels") struct FIFOTests {
    private static let (pending, masked, linked) = (UInt32(1) << 31, UInt32(1) << 30, UInt32(1) << 29)

    private func begin(vcpus: Int = 2) -> Caller {
        let guest = Caller(vcpus: vcpus)
        for vcpu in 0..<UInt64(vcpus) {
            #expect(guest.structured(32, 11, (9, 8), (vcpu * 128, 4), (vcpu, 4), (0, 8)) == 0)
            #expect(guest.u32(0x1010) == 17, "link bits")
        }
        #expect(guest.structured(32, 12, (10, 8)) == 0)
        return guest
    }

    private func bindIPI(_ guest: Caller, vcpu: UInt64 = 0) -> UInt64 {
        #expect(guest.structured(32, 7, (vcpu, 4), (0, 4)) == 0)
        return UInt64(guest.u32(0x1004))
    }
    private func send(_ guest: Caller, _ port: UInt64) { #expect(guest.structured(32, 4, (port, 4)) == 0) }
    private func word(_ guest: Caller, _ port: UInt64) -> UInt32 { guest.u32(0xA000 + port * 4) }
    private func head(_ guest: Caller, vcpu: UInt64 = 0, priority: UInt64 = 7) -> UInt32 {
        guest.u32(0x9000 + vcpu * 128 + 8 + priority * 4)
    }
    private func ready(_ guest: Caller, vcpu: UInt64 = 0) -> UInt32 { guest.u32(0x9000 + vcpu * 128) }

    @Test("The first event becomes the head, the next are linked behind it, and the vCPU is told once")
    func queue() {
        let guest = begin()
        let ports = (0..<3).map { _ in bindIPI(guest) }
        _ = guest.machine.take()
        for port in ports { send(guest, port) }
        #expect(head(guest) == UInt32(ports[0]) && ready(guest) == 1 << 7)
        #expect(word(guest, ports[0]) == Self.pending | Self.linked | UInt32(ports[1]))
        #expect(word(guest, ports[1]) == Self.pending | Self.linked | UInt32(ports[2]))
        #expect(word(guest, ports[2]) == Self.pending | Self.linked)
        #expect(guest.page.load(0, as: UInt8.self) == 1)
        #expect(guest.machine.take() == ["kick 0"])
        send(guest, ports[1])
        #expect(guest.machine.take() == [], "it is pending")
    }

    @Test("A queue that the guest has emptied begins anew")
    func emptied() {
        let guest = begin()
        let (first, second) = (bindIPI(guest), bindIPI(guest))
        send(guest, first)
        // As a guest takes it: the head is read, its word unlinked, the ready bit cleared.
        guest.put([(0, 4)], at: 0xA000 + first * 4)
        guest.put([(0, 4)], at: 0x9000)
        guest.page.store(UInt8(0), at: 0)
        _ = guest.machine.take()
        send(guest, second)
        #expect(head(guest) == UInt32(second) && ready(guest) == 1 << 7)
        #expect(word(guest, first) == 0, "what left the queue links to nothing")
        #expect(guest.machine.take() == ["kick 0"])
    }

    @Test("A masked port is pending but not linked until it is unmasked")
    func masked() {
        let guest = begin()
        let port = bindIPI(guest)
        guest.put([(UInt64(Self.masked), 4)], at: 0xA000 + port * 4)
        _ = guest.machine.take()
        send(guest, port)
        #expect(word(guest, port) == Self.masked | Self.pending && guest.machine.take() == [])
        #expect(guest.structured(32, 9, (port, 4)) == 0)
        #expect(word(guest, port) == Self.pending | Self.linked && head(guest) == UInt32(port))
        #expect(guest.machine.take() == ["kick 0"])
    }

    @Test("Priorities and vCPUs have queues of their own")
    func places() {
        let guest = begin()
        let (urgent, other) = (bindIPI(guest), bindIPI(guest, vcpu: 1))
        #expect(guest.structured(32, 13, (urgent, 4), (0, 4)) == 0)
        #expect(guest.structured(32, 13, (urgent, 4), (16, 4)) == -22)
        #expect(guest.structured(32, 13, (99, 4), (0, 4)) == -22)
        send(guest, urgent)
        send(guest, other)
        #expect(head(guest, priority: 0) == UInt32(urgent) && ready(guest) == 1)
        #expect(head(guest, vcpu: 1) == UInt32(other) && ready(guest, vcpu: 1) == 1 << 7)
        #expect(guest.page.load(64, as: UInt8.self) == 1)
    }

    @Test("Events from before are not lost, a linked port is not given out again, reset goes back to two levels")
    func life() {
        let guest = Caller()
        let port = bindIPI(guest)
        send(guest, port)
        #expect(guest.structured(32, 12, (10, 8)) == -95, "no control block yet")
        #expect(guest.structured(32, 11, (9, 8), (4, 4), (0, 4), (0, 8)) == -22, "misaligned")
        #expect(guest.structured(32, 11, (9, 8), (4032, 4), (0, 4), (0, 8)) == -22, "it leaves its page")
        #expect(guest.structured(32, 11, (64, 8), (0, 4), (0, 4), (0, 8)) == -22, "no RAM")
        #expect(guest.structured(32, 11, (9, 8), (0, 4), (0, 4), (0, 8)) == 0)
        #expect(guest.structured(32, 11, (9, 8), (0, 4), (0, 4), (0, 8)) == -22, "it has one")
        #expect(guest.structured(32, 12, (10, 8)) == 0)
        #expect(word(guest, port) == Self.pending | Self.linked && head(guest) == UInt32(port))
        #expect(guest.structured(32, 3, (port, 4)) == 0)
        #expect(bindIPI(guest) != port)
        #expect(guest.structured(32, 10, (0x7FF0, 2)) == 0)
        let next = bindIPI(guest)
        send(guest, next)
        #expect(guest.page.load(2048, as: UInt8.self) == 1 << UInt8(next))
    }

    @Test("The array grows to 128 pages and no further")
    func growth() {
        let guest = begin()
        for _ in 1..<128 { #expect(guest.structured(32, 12, (11, 8)) == 0) }
        #expect(guest.structured(32, 12, (11, 8)) == -28)
    }
}
