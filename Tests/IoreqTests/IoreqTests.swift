import Foundation
import Host
import Ioreq
import Testing

@Suite("ioreq port") struct IoreqTests {
    @Test("A read crosses to the server and its answer comes back") func roundTrip() throws {
        let pages = try IoreqPages.make()
        let doorbell = Descriptor(owning: 0x7FFF)  // nobody sleeps in this test
        let done = DispatchSemaphore(value: 0)
        Thread.detachNewThread {
            let server = IoreqServer(pages, vcpus: 1, doorbell: doorbell)
            server.handler = { request in request.address &+ UInt64(request.size) }
            while !server.serve() {}
            done.signal()
        }
        let client = IoreqClient(pages, doorbell: doorbell)
        #expect(client.submit(Request(.port, address: 0x1F7, size: 1, isRead: true), vcpu: 0) == 0x1F8)
        done.wait()
    }

    @Test("Posted writes arrive in order, before the request behind them") func posted() throws {
        let pages = try IoreqPages.make()
        let doorbell = Descriptor(owning: 0x7FFF)
        let client = IoreqClient(pages, doorbell: doorbell)
        for value in 0..<511 {
            #expect(
                client.post(Request(.memory, address: 0xB8000, size: 2, isRead: false, data: UInt64(value))))
        }
        #expect(!client.post(Request(.memory, address: 0xB8000, size: 2, isRead: false)), "the ring is full")
        let server = IoreqServer(pages, vcpus: 1, doorbell: doorbell)
        var seen: [UInt64] = []
        server.handler = { request in
            seen.append(request.data)
            return 0
        }
        #expect(server.serve())
        #expect(seen == Array(0..<511))
    }

    @Test("While a device is in use, the loop looks on instead of sleeping", .enabled(if: Affinity.read(0).count > 1))
    func inUse() throws {
        let doorbell = try HostEvent()
        let server = IoreqServer(try IoreqPages.make(), vcpus: 1, doorbell: doorbell.descriptor)
        let reactor = try Reactor()
        var (looks, hasSlept) = (0, false)
        server.look = {
            looks += 1
            return looks <= 10
        }
        server.attach(to: reactor)
        reactor.turn()
        #expect(looks > 10, "found idle, it was looked at until then")
        let deadline = monotonicNanoseconds() + 1_000_000
        reactor.nextDeadline = { hasSlept ? nil : deadline }
        reactor.onDeadline = { hasSlept = true }
        reactor.turn()
        #expect(hasSlept, "nothing is in use any more")
    }

    @Test("A line that went up and down again is still seen as risen") func rises() throws {
        let pages = try IoreqPages.make()
        #expect(pages.driveLine(14, true))
        #expect(!pages.driveLine(14, true), "the level it has makes no edge")
        #expect(pages.driveLine(14, false))
        #expect(pages.takeLines() == (0, 1 << 14))
        #expect(pages.takeLines() == (0, 0))
    }

    @Test(
        "Commands come out as they went in",
        arguments: [
            Command.mapVideo(at: 0xF000_0000), .mapVideo(at: nil), .shadow(segment: 12, read: true, write: false),
            .modified(at: 0x1000, bytes: 512), .a20(false), .initialise, .reset, .powerOff,
        ])
    func commands(command: Command) throws {
        let pages = try IoreqPages.make()
        pages.send(command)
        var (found, stays): (Command?, Bool) = (nil, false)
        let isTaken = pages.withCommand { (found, stays) = ($0, pages.hasCommands) }
        #expect(isTaken && found == command)
        #expect(stays, "a command stays in the ring until it has been carried out")
        #expect(!pages.hasCommands)
    }

    @Test("A full ring waits for nobody once the hypervisor has been killed") func peerGone() throws {
        var pages = try IoreqPages.make()
        let other: Descriptor
        do {
            let (near, far) = try MessageSocket.pair()
            pages.peer = near.descriptor
            other = far.descriptor
        }
        for _ in 0..<128 { pages.send(.a20(true)) }
        #expect(pages.peer?.hasHungUp == false)
        closeDescriptor(other.number)
        #expect(pages.peer?.hasHungUp == true)
        pages.send(.reset)
        var count = 0
        while pages.withCommand({ #expect($0 == .a20(true)) }) { count += 1 }
        #expect(count == 128, "what found no room is lost with the domain")
    }

    @Test("RAM above the PCI hole begins at 4 GiB") func layout() {
        // The layout is arithmetic; a sparse file of 5 GiB costs nothing.
        guard let ram = try? GuestRAM.make(size: 5 << 30) else { return }
        #expect(ram.offset(of: 0, bytes: 1) == 0)
        #expect(ram.offset(of: 0xDFFF_FFFF, bytes: 1) == 0xDFFF_FFFF)
        #expect(ram.offset(of: 0xDFFF_FFFF, bytes: 2) == nil)
        #expect(ram.offset(of: 0xE000_0000, bytes: 1) == nil)
        #expect(ram.offset(of: 0x1_0000_0000, bytes: 1) == 0xE000_0000)
        #expect(ram.offset(of: 0x1_5FFF_FFFF, bytes: 1) == (5 << 30) - 1)
        #expect(ram.offset(of: 0x1_6000_0000, bytes: 1) == nil)
    }
}
