import Testing

@testable import Kernel

@Suite("Event channels") struct EventChannelTests {
    /// EVTCHNOP_bind_ipi to a vCPU; the port.
    private func bindIPI(_ guest: Caller, vcpu: UInt64) -> UInt32 {
        #expect(guest.structured(32, 7, (vcpu, 4), (0, 4)) == 0)
        return guest.u32(0x1004)
    }

    @Test("Ports come from 1 on, and a closed port comes again")
    func allocation() {
        let guest = Caller()
        #expect(guest.structured(32, 6, (0x7FF0, 2), (0, 2), (0, 4)) == 0)
        #expect(guest.u32(0x1004) == 1)
        #expect(bindIPI(guest, vcpu: 1) == 2)
        #expect(guest.structured(32, 3, (1, 4)) == 0)
        #expect(guest.structured(32, 3, (1, 4)) == -22, "it is closed")
        #expect(bindIPI(guest, vcpu: 0) == 1)
        #expect(guest.structured(32, 7, (2, 4), (0, 4)) == -2, "there is no vCPU 2")
    }

    @Test("Sending sets pending bit, selector and upcall flag of the port's vCPU, and calls it once")
    func send() {
        let guest = Caller()
        let port = bindIPI(guest, vcpu: 1)
        guest.xen.parameters.setUpcallVector(0xF3, vcpu: 1)
        #expect(guest.structured(32, 4, (UInt64(port), 4)) == 0)
        #expect(guest.page.load(2048, as: UInt8.self) == 1 << UInt8(port))
        #expect(guest.page.load(64, as: UInt8.self) == 1, "evtchn_upcall_pending of vCPU 1")
        #expect(guest.page.load(64 + 8, as: UInt64.self) == 1)
        #expect(guest.machine.take() == ["vector 243 to 1", "kick 1"])
        #expect(guest.structured(32, 4, (UInt64(port), 4)) == 0)
        #expect(guest.machine.take() == [], "it is pending already")
    }

    @Test("A vector that INIT took from the local APIC comes again while events are pending")
    func lostVector() {
        let guest = Caller()
        let port = bindIPI(guest, vcpu: 1)
        guest.xen.parameters.setUpcallVector(0xF3, vcpu: 1)
        guest.structured(32, 4, (UInt64(port), 4))
        _ = guest.machine.take()
        guest.machine.held = [0xF3]
        guest.xen.attend(1, hasInterrupt: false)
        #expect(guest.machine.take() == [])
        guest.machine.held = []
        guest.xen.attend(1, hasInterrupt: false)
        #expect(guest.machine.take() == ["vector 243 to 1"])
    }

    @Test("A masked port waits for its unmask")
    func masked() {
        let guest = Caller()
        let port = bindIPI(guest, vcpu: 0)
        _ = guest.page.setBit(2560 * 8 + Int(port))
        guest.structured(32, 4, (UInt64(port), 4))
        #expect(guest.machine.take() == [])
        #expect(guest.page.load(0, as: UInt8.self) == 0)
        #expect(guest.structured(32, 9, (UInt64(port), 4)) == 0)
        #expect(guest.machine.take() == ["kick 0"])
        #expect(guest.page.load(0, as: UInt8.self) == 1)
    }

    @Test("32-bit guests have 1024 ports, their masks at 2176 and a selector of 32 bits")
    func narrow() {
        let guest = Caller()
        guest.isLong = false
        guest.xen.shared.latch(isLong: false)
        for _ in 0..<39 { _ = bindIPI(guest, vcpu: 0) }
        let port = bindIPI(guest, vcpu: 0)
        #expect(port == 40)
        guest.structured(32, 4, (40, 4))
        #expect(guest.page.load(2048 + 5, as: UInt8.self) == 1)
        #expect(guest.page.load(4, as: UInt32.self) == 1 << 1, "word 1")
        #expect(guest.structured(32, 5, (0x7FF0, 2), (0, 2), (1024, 4)) == -22)
    }

    @Test("A back end at the other end hears of sends, and can signal")
    func backEnd() {
        let guest = Caller()
        guest.structured(32, 6, (0x7FF0, 2), (0, 2), (0, 4))
        guest.structured(32, 6, (0x7FF0, 2), (0, 2), (0, 4))
        guest.structured(32, 6, (0x7FF0, 2), (0, 2), (0, 4))
        nonisolated(unsafe) var rings: [Int] = []
        #expect(guest.xen.events.attach(9) { _ in } == nil)
        #expect(guest.xen.events.attach(1) { _ in } == 1)
        #expect(guest.xen.events.attach(2) { rings.append($0) } == 2)
        #expect(guest.structured(32, 4, (2, 4)) == 0)
        #expect(rings == [2])
        #expect(guest.structured(32, 5, (0x7FF0, 2), (0, 2), (2, 4), (0, 16)) == 0)
        #expect(guest.u32(0x1008) == 2 && guest.u32(0x1014) == 2, "interdomain, port 2 of domain 0")
        guest.xen.notify(2)
        #expect(guest.xen.events.isPending(2))
        guest.xen.events.detach(2)
        #expect(guest.xen.events.status(2)?.binding == .unbound(remote: 0))
    }

    @Test("After a reset the back end's port waits, and the guest can bind to it anew from another port")
    func rebinding() {
        let guest = Caller()
        guest.structured(32, 6, (0x7FF0, 2), (0, 2), (0, 4))
        nonisolated(unsafe) var rings: [Int] = []
        let remote = guest.xen.events.attach(1) { rings.append($0) }
        #expect(remote == 1)
        #expect(guest.structured(32, 0, (0, 2), (0, 2), (1, 4)) == -22, "it has its other end still")
        #expect(guest.structured(32, 10, (0x7FF0, 2)) == 0)
        #expect(guest.structured(32, 5, (0x7FF0, 2), (0, 2), (1, 4), (0, 16)) == 0)
        #expect(guest.u32(0x1008) == 0, "closed")
        guest.xen.notify(1)
        #expect(!guest.xen.events.isPending(1), "an event for a port that is gone is lost")
        _ = bindIPI(guest, vcpu: 0)
        #expect(guest.structured(32, 0, (0, 2), (0, 2), (1, 4), (0, 4)) == 0)
        #expect(guest.u32(0x1008) == 2, "port 2")
        #expect(guest.xen.events.isPending(2), "binding makes it pending")
        #expect(guest.structured(32, 4, (2, 4)) == 0)
        #expect(rings == [1])
        guest.page.clearBit(2048 * 8 + 2)
        guest.xen.notify(1)
        #expect(guest.xen.events.isPending(2))
        #expect(guest.structured(32, 0, (0, 2), (0, 2), (9, 4), (0, 4)) == -22, "domain 0 has no port 9")
    }

    @Test("Virtual interrupts: the timer once for each vCPU, global ones at vCPU 0")
    func virq() {
        let guest = Caller()
        #expect(guest.structured(32, 1, (0, 4), (1, 4), (0, 4)) == 0)
        #expect(guest.structured(32, 1, (0, 4), (1, 4), (0, 4)) == -17, "bound already")
        #expect(guest.structured(32, 1, (0, 4), (0, 4), (0, 4)) == 0)
        #expect(guest.structured(32, 1, (2, 4), (1, 4), (0, 4)) == -22, "the console's is global")
        #expect(guest.structured(32, 1, (24, 4), (0, 4), (0, 4)) == -22)
        guest.xen.deliver(virq: 0, vcpu: 1)
        #expect(guest.xen.events.isPending(1) && !guest.xen.events.isPending(2))
        #expect(guest.structured(32, 8, (1, 4), (0, 4)) == -22, "a vCPU's own stays there")
    }

    @Test("Reset closes all; other domains are refused")
    func reset() {
        let guest = Caller()
        let port = bindIPI(guest, vcpu: 0)
        guest.structured(32, 4, (UInt64(port), 4))
        #expect(guest.structured(32, 10, (0, 2)) == -1)
        #expect(guest.structured(32, 10, (0x7FF0, 2)) == 0)
        #expect(guest.xen.events.status(Int(port)) == nil && !guest.xen.events.isPending(Int(port)))
        #expect(guest.structured(32, 0, (3, 4), (1, 4), (0, 4)) == -3)
        #expect(guest.structured(32, 0, (7, 4), (1, 4), (0, 4)) == -22, "no port of ours waits")
    }

    @Test("Random calls neither trap nor leave a port beyond the limit")
    func random() {
        let guest = Caller()
        for _ in 0..<2000 {
            let fields = (0..<6).map { _ in (UInt64.random(in: 0 ... .max) >> UInt64.random(in: 0..<64), 4) }
            guest.put(fields, at: 0x1000)
            _ = guest.plain([20, 24, 29, 32, 33, 34, 12, 17].randomElement() ?? 32, .random(in: 0..<30), 0x1000, 2)
        }
    }
}

@Suite("Shared info") struct SharedInfoTests {
    @Test("A registered vcpu_info takes over and starts with everything pending")
    func register() {
        let guest = Caller()
        guest.put([(5, 8), (64, 4), (0, 4)], at: 0x1000)
        #expect(guest.plain(24, 10, 1, 0x1000) == 0)
        #expect(guest.xen.shared.isUpcallPending(1))
        #expect(guest.u64(0x5000 + 64 + 8) == .max)
        #expect(guest.plain(24, 10, 1, 0x1000) == -22, "once only")
        guest.put([(5, 8), (4040, 4), (0, 4)], at: 0x1000)
        #expect(guest.plain(24, 10, 0, 0x1000) == -22, "it would cross its page")
        guest.put([(500, 8), (0, 4), (0, 4)], at: 0x1000)
        #expect(guest.plain(24, 10, 0, 0x1000) == -22, "not RAM")
    }

    @Test("The clock record: even version, ticks, nanoseconds, scale; written anew when it is old")
    func clock() {
        let guest = Caller()
        guest.xen.refreshClock(0) { 123 }
        #expect(guest.page.load(32, as: UInt32.self) == 2)
        #expect(guest.page.load(40, as: UInt64.self) == 123)
        #expect(guest.page.load(48, as: UInt64.self) == 5000)
        #expect(guest.page.load(56, as: UInt32.self) == 1 << 31, "half a nanosecond a tick at 2 GHz")
        #expect(guest.page.load(60, as: Int8.self) == 0)
        guest.machine.nanoseconds += 1000
        guest.xen.refreshClock(0) { 456 }
        #expect(guest.page.load(40, as: UInt64.self) == 123)
        guest.machine.nanoseconds += 1_000_000_000
        guest.xen.refreshClock(0) { 789 }
        #expect(guest.page.load(40, as: UInt64.self) == 789 && guest.page.load(32, as: UInt32.self) == 4)
    }

    @Test("The wall clock is that of guest time 0", arguments: [true, false])
    func wallClock(isLong: Bool) {
        let guest = Caller()
        guest.xen.shared.latch(isLong: isLong)
        guest.xen.clockChanged()
        let place = isLong ? 3072 : 2304
        #expect(guest.page.load(place, as: UInt32.self) & 1 == 0)
        #expect(guest.page.load(place + 4, as: UInt32.self) == 1_700_000_000)
        #expect(guest.page.load(place + 8, as: UInt32.self) == 0)
    }

    @Test("Run states: time asleep counts as blocked; the guest's copy follows, across a page too")
    func runstate() {
        let guest = Caller()
        guest.put([(0x2FF0, 8)], at: 0x1000)
        #expect(guest.plain(24, 5, 0, 0x1000) == 0)
        guest.xen.note(0, isBlocked: true)
        #expect(guest.u32(0x2FF0) == 2)
        guest.machine.nanoseconds += 300
        guest.xen.note(0, isBlocked: false)
        #expect(guest.u32(0x2FF0) == 0)
        #expect(guest.u64(0x2FF0 + 16 + 16) == 300, "time[blocked]")
        #expect(guest.plain(24, 4, 1, 0x1000) == 0)
        #expect(guest.u32(0x1000) == 3, "vCPU 1 is offline")
    }
}

@Suite("Grants, memory and scheduling") struct HypercallGroupTests {
    @Test("Grant table: size, versions, frames on demand")
    func grants() {
        let guest = Caller()
        guest.put([(0x7FF0, 2), (0, 14)], at: 0x1000)
        #expect(guest.plain(20, 6, 0x1000, 1) == 0)
        #expect(guest.u32(0x1004) == 1 && guest.u32(0x1008) == 64 && guest.u16(0x100C) == 0)
        guest.put([(2, 4)], at: 0x1000)
        #expect(guest.plain(20, 8, 0x1000, 1) == -38, "no version 2")
        guest.put([(0x7FF0, 2), (0, 2), (1, 4), (3, 8), (0x20, 8)], at: 0x1000)
        #expect(guest.plain(12, 7, 0x1000) == 0)
        #expect(guest.machine.take() == ["place 4 at 32"])
        #expect(guest.xen.grants.frameCount == 4)
        guest.put([(0x7FF0, 2), (0, 2), (1, 4), (64, 8), (0x20, 8)], at: 0x1000)
        #expect(guest.plain(12, 7, 0x1000) == -22)
    }

    @Test("Copies: page to page, by reference, and every refusal has its status")
    func copies() {
        let guest = Caller()
        guest.put([(0x1122_3344, 4)], at: 0x3010)
        func copy(_ source: (UInt64, UInt64), _ target: (UInt64, UInt64), length: UInt64, flags: UInt64) -> Int16 {
            guest.put(
                [
                    (source.0, 8), (0x7FF0, 2), (source.1, 2), (0, 4), (target.0, 8), (0x7FF0, 2), (target.1, 2),
                    (0, 4), (length, 2), (flags, 2), (0, 4),
                ], at: 0x1000)
            #expect(guest.plain(20, 5, 0x1000, 1) == 0)
            return Int16(bitPattern: guest.u16(0x1000 + 36))
        }
        #expect(copy((3, 0x10), (4, 0x20), length: 4, flags: 0) == 0)
        #expect(guest.u32(0x4020) == 0x1122_3344)
        #expect(copy((3, 4090), (4, 0), length: 8, flags: 0) == -10)
        #expect(copy((3, 0), (400, 0), length: 8, flags: 0) == -9)
        #expect(copy((9, 0x10), (5, 0), length: 4, flags: 1) == -3, "nothing is granted")
        guest.xen.grants.set(9, frame: 3, domid: 7)
        #expect(copy((9, 0x10), (5, 0), length: 4, flags: 1) == 0)
        #expect(guest.u32(0x5000) == 0x1122_3344)
        #expect(guest.page.load(4096 + 72, as: UInt16.self) == 1, "no longer in use")
    }

    @Test("Placing: shared info; foreign frames are refused; a batch answers for each entry")
    func placing() {
        let guest = Caller()
        #expect(guest.structured(12, 7, (0x7FF0, 2), (0, 2), (0, 4), (0, 8), (9, 8)) == 0)
        #expect(guest.machine.take() == ["place 0 at 9"])
        #expect(guest.structured(12, 7, (0x7FF0, 2), (0, 2), (4, 4), (0, 8), (9, 8)) == -1)
        guest.put([(0, 8), (70, 8)], at: 0x2000)
        guest.put([(10, 8), (11, 8)], at: 0x2100)
        #expect(
            guest.structured(
                12, 23, (0x7FF0, 2), (1, 2), (2, 2), (0, 2), (0x2000, 8), (0x2100, 8), (0x2200, 8)) == 0)
        #expect(guest.u32(0x2200) == 0 && Int32(bitPattern: guest.u32(0x2204)) == -22)
        guest.isLong = false
        #expect(guest.structured(12, 7, (7, 2), (0, 2), (0, 4), (0, 4), (12, 4)) == 0, "32-bit structure")
        #expect(guest.machine.take().last == "place 0 at 12")
    }

    @Test("Ballooning: pages go and come back, and the reservation follows")
    func balloon() {
        let guest = Caller()
        guest.put([(20, 8), (21, 8), (99, 8)], at: 0x2000)
        #expect(guest.structured(12, 1, (0x2000, 8), (3, 8), (0, 4), (0, 4), (0x7FF0, 2)) == 2, "99 is not RAM")
        #expect(guest.machine.take() == ["discard 20", "discard 21"])
        #expect(guest.structured(12, 3, (0x7FF0, 2)) == 62)
        #expect(guest.structured(12, 6, (0x2000, 8), (2, 8), (0, 4), (0, 4), (0x7FF0, 2)) == 2)
        #expect(guest.structured(12, 3, (0x7FF0, 2)) == 64)
        #expect(guest.structured(12, 6, (0x2000, 8), (1, 8), (0, 4), (0, 4), (0x7FF0, 2)) == 0, "it is there")
    }

    @Test("A PV guest begins with its first frames, another one with all and a duty to give back")
    func reservation() {
        let paravirtual = Reservation(frames: 100, initial: 70, isOnDemand: false)
        #expect(paravirtual.missing == 30)
        #expect(!paravirtual.add(69) && paravirtual.add(70) && !paravirtual.add(70))
        #expect(paravirtual.missing == 29)
        #expect(paravirtual.remove(0) && !paravirtual.remove(99) && !paravirtual.remove(100))
        #expect(paravirtual.missing == 30)
        let onDemand = Reservation(frames: 100, initial: 70, isOnDemand: true)
        for frame in UInt64(40)..<70 {
            #expect(onDemand.missing == 30 && !onDemand.add(frame) && onDemand.remove(frame))
        }
        #expect(onDemand.missing == 30 && onDemand.add(40) && onDemand.missing == 29)
        #expect(onDemand.add(41) && onDemand.missing == 28 && !onDemand.add(100))
    }

    @Test("The memory map goes as far as there is room")
    func memoryMap() {
        let guest = Caller()
        #expect(guest.structured(12, 9, (1, 8), (0x2000, 8)) == 0)
        #expect(guest.u32(0x1000) == 1)
        #expect(guest.u64(0x2008) == 64 << 12 && guest.u32(0x2010) == 1)
        #expect(guest.structured(12, 9, (5, 8), (0x2000, 8)) == 0)
        #expect(guest.u32(0x1000) == 2)
    }

    @Test("Timers: single shots, periods without catching up, absurd deadlines come soon")
    func timers() {
        let guest = Caller()
        guest.put([(9000, 8), (0, 4)], at: 0x1000)
        #expect(guest.plain(24, 8, 0, 0x1000) == 0)
        #expect(guest.plain(24, 8, 1, 0x1000) == -22, "another vCPU's")
        #expect(guest.xen.timers.deadline == 9000)
        #expect(guest.xen.timers.take(8999) == [])
        #expect(guest.xen.timers.take(9000) == [.init(vcpu: 0, isPoll: false)])
        #expect(guest.xen.timers.deadline == nil)
        guest.put([(1_000_000, 8)], at: 0x1000)
        #expect(guest.plain(24, 6, 1, 0x1000) == 0)
        #expect(guest.xen.timers.take(3_500_000) == [.init(vcpu: 1, isPoll: false)])
        #expect(guest.xen.timers.deadline == 4_005_000)
        #expect(guest.plain(24, 7, 1, 0) == 0)
        #expect(guest.plain(15, UInt64(bitPattern: -1)) == 0)
        #expect(guest.xen.timers.deadline == 100_005_000)
        #expect(guest.plain(15, 0) == 0 && guest.xen.timers.deadline == nil)
    }

    @Test("vCPUs: is_up, a flat start, down")
    func processors() {
        let guest = Caller()
        #expect(guest.plain(24, 3, 0) == 1 && guest.plain(24, 3, 1) == 0 && guest.plain(24, 3, 2) == -2)
        #expect(guest.plain(24, 1, 1) == -22, "not initialised")
        guest.put([(0, 8)] + (0..<8).map { (UInt64($0), 4) } + [(0x10_0000, 4)], at: 0x1000)
        #expect(guest.plain(24, 0, 1, 0x1000) == 0)
        #expect(guest.plain(24, 1, 1) == 0)
        #expect(guest.plain(24, 2, 1) == 0)
        #expect(guest.machine.take() == ["up 1 at 1048576", "down 1"])
    }

    @Test("A poll ends by its port, its deadline or an interrupt")
    func poll() {
        let guest = Caller()
        guest.structured(32, 7, (1, 4), (0, 4))
        guest.put([(1, 4)], at: 0x2000)
        func poll(_ timeout: UInt64) { #expect(guest.structured(29, 3, (0x2000, 8), (1, 8), (timeout, 8)) == 0) }
        poll(0)
        #expect(guest.xen.isWaiting(0))
        guest.xen.attend(0, hasInterrupt: false)
        #expect(guest.xen.isWaiting(0))
        guest.structured(32, 4, (1, 4))
        #expect(guest.machine.take().contains("kick 0"), "the poller is called")
        guest.xen.attend(0, hasInterrupt: false)
        #expect(!guest.xen.isWaiting(0))
        guest.page.clearBit(2048 * 8 + 1)
        poll(7000)
        #expect(guest.xen.timers.deadline == 7000)
        guest.machine.nanoseconds = 7000
        guest.xen.attend(0, hasInterrupt: false)
        #expect(!guest.xen.isWaiting(0))
        poll(0)
        guest.xen.attend(0, hasInterrupt: true)
        #expect(!guest.xen.isWaiting(0))
        #expect(guest.structured(29, 3, (0x2000, 8), (200, 8), (0, 8)) == -22)
    }

    @Test("Shutdown reasons", arguments: [(0, "poweroff"), (1, "reboot"), (3, "crash"), (4, "watchdog")])
    func shutdown(reason: UInt64, name: String) {
        let guest = Caller()
        #expect(guest.structured(29, 2, (reason, 4)) == 0)
        #expect(guest.machine.take().last == "finish \(name)")
        #expect(guest.structured(29, 2, (9, 4)) == -22)
    }

    @Test("Two watchdogs: taken, set again, freed; one that runs out is told")
    func watchdogs() {
        let guest = Caller()
        #expect(guest.structured(29, 6, (0, 4), (0, 4)) == -22, "none without a time")
        #expect(guest.structured(29, 6, (0, 4), (3, 4)) == 1)
        #expect(guest.structured(29, 6, (0, 4), (9, 4)) == 2)
        #expect(guest.structured(29, 6, (0, 4), (9, 4)) == -17)
        #expect(guest.xen.timers.deadline == 3_000_005_000)
        #expect(!guest.xen.timers.hasExpired(3_000_004_999) && guest.xen.timers.hasExpired(3_000_005_000))
        #expect(guest.structured(29, 6, (1, 4), (0, 4)) == 0)
        #expect(guest.xen.timers.deadline == 9_000_005_000)
        #expect(guest.structured(29, 6, (1, 4), (4, 4)) == -22, "it is free")
        #expect(guest.structured(29, 6, (2, 4), (20, 4)) == 0 && guest.structured(29, 6, (3, 4), (1, 4)) == -22)
        #expect(guest.xen.timers.deadline == 20_000_005_000)
    }

    @Test("vm_assist: the mark of run states, and nothing else, for HVM guests")
    func assist() {
        let guest = Caller()
        #expect(guest.plain(21, 0, 5) == 0 && guest.plain(21, 1, 5) == 0)
        #expect(guest.plain(21, 0, 1) == -22)
    }

    @Test("Callback forms: vector, line, INTx; 0 is none; a vCPU's own vector goes first")
    func callbacks() {
        #expect(HVMParameters.callback(0) == .none)
        #expect(HVMParameters.callback(9) == .line(9))
        #expect(HVMParameters.callback(1 << 56 | 3 << 11 | 1) == .pin(device: 3, pin: 1))
        #expect(HVMParameters.callback(2 << 56 | 0xF3) == .vector(0xF3))
        let guest = Caller()
        guest.structured(34, 0, (0x7FF0, 4), (0, 4), (2 << 56 | 0xF3, 8))
        guest.structured(32, 7, (0, 4), (0, 4))
        guest.structured(32, 4, (1, 4))
        #expect(guest.xen.callbackVector(0) == 0xF3)
        guest.structured(34, 23, (0, 4), (0x40, 4))
        #expect(guest.xen.callbackVector(0) == nil && guest.machine.take().contains("vector 64 to 0"))
        #expect(guest.structured(34, 0, (0x7FF0, 4), (17, 4), (5, 8)) == -1, "the console's page is not the guest's")
    }

    @Test("A callback's level follows what is pending at vCPU 0, until a vector of its own takes over")
    func level() {
        let guest = Caller()
        let callback = { (value: UInt64) in _ = guest.structured(34, 0, (0x7FF0, 4), (0, 4), (value, 8)) }
        let clear = {
            guest.page.clearBit(2048 * 8 + 1)
            guest.page.write([UInt8](repeating: 0, count: 16), at: 0)
        }
        let high = { guest.machine.take().contains { $0.hasSuffix("high") } }
        callback(1 << 56 | 2 << 11)
        guest.structured(32, 7, (0, 4), (0, 4))
        guest.structured(32, 4, (1, 4))
        #expect(guest.machine.take().first == "pin(device: 2, pin: 0) high")
        guest.xen.attend(0, hasInterrupt: false)
        #expect(guest.machine.take() == [], "still pending")
        clear()
        guest.xen.attend(0, hasInterrupt: false)
        #expect(guest.machine.take() == ["low"])
        callback(5)
        guest.structured(32, 4, (1, 4))
        #expect(guest.machine.take().first == "line(5) high")
        guest.structured(34, 23, (0, 4), (0x40, 4))
        #expect(guest.machine.take().first == "low")
        clear()
        guest.structured(32, 4, (1, 4))
        #expect(!high(), "the vector goes first")
        callback(0)
        guest.page.write([1], at: 0)
        callback(5)
        #expect(!high())
    }

    @Test("What the hypervisor shows in guest memory can be taken away again")
    func unplacing() {
        let guest = Caller()
        #expect(guest.structured(12, 15, (0x7FF0, 8), (99, 8)) == 0)
        #expect(guest.machine.take() == ["unplace 99"])
        #expect(guest.structured(12, 15, (0x7FF0, 8), (100, 8)) == -22)
        #expect(guest.structured(12, 15, (0x7FF0, 8), (5, 8)) == 0)
        #expect(guest.machine.take() == ["unplace 100", "unplace 5", "discard 5"])
    }

    @Test("Multicalls: results in place, none within another")
    func multicall() {
        let guest = Caller()
        guest.put([(17, 8), (9, 8), (0, 48), (13, 8), (9, 8), (0, 48), (99, 8), (9, 8), (0, 48)], at: 0x1000)
        #expect(guest.plain(13, 0x1000, 3) == 0)
        #expect(guest.u64(0x1008) == 0x40011)
        #expect(Int64(bitPattern: guest.u64(0x1048)) == -1 && Int64(bitPattern: guest.u64(0x1088)) == -38)
        #expect(guest.machine.take() == ["log hypercall 99 is not implemented"])
    }

    @Test("Features follow the guest's kind", arguments: [(XenDomain.Flavour.plain, UInt32(0)), (.hvm, 0x307)])
    func features(flavour: XenDomain.Flavour, bits: UInt32) {
        let guest = Caller(flavour: flavour)
        #expect(guest.structured(17, 6, (0, 4), (0, 4)) == 0)
        #expect(guest.u32(0x1004) == bits)
        #expect(guest.structured(17, 6, (1, 4), (0, 4)) == 0 && guest.u32(0x1004) == 0)
    }

    @Test("PV kernels find the features without which Linux gives up; callbacks are kept")
    func paravirtual() {
        let guest = Caller(flavour: .pv)
        guest.structured(17, 6, (0, 4), (0, 4))
        #expect(guest.u32(0x1004) & 0xA0 == 0xA0)
        #expect(guest.structured(30, 0, (0, 2), (1, 2), (0, 4), (0xFFFF_FFFF_8100_0000, 8)) == 0)
        #expect(guest.xen.callbacks[0, 0] == .init(address: 0xFFFF_FFFF_8100_0000, masksEvents: true))
        #expect(guest.plain(34, 0, 0x1000) == -38, "hvm_op is not for PV")
    }

    @Test("Console output becomes lines of the log")
    func output() {
        let guest = Caller()
        _ = guest.memory.write(Array("one\ntwo".utf8), 0x1000)
        #expect(guest.plain(18, 0, 7, 0x1000) == 7)
        #expect(guest.machine.take() == ["log (d7) one"])
    }
}

@Suite("ACPI tables of a PVH domain") struct ACPITablesTests {
    @Test("Every table's bytes add up to 0, and the MADT names each vCPU")
    func sums() {
        let address: UInt64 = 0x1000_0000
        let bytes = ACPITables(vcpus: 3, address: address).bytes
        #expect(bytes.prefix(20).reduce(0) { $0 &+ $1 } == 0 && bytes.prefix(36).reduce(0) { $0 &+ $1 } == 0)
        let record = Record(bytes, isLong: true)
        let xsdt = Int(record.u64(24) - address)
        for entry in 0..<2 {
            let table = Int(record.u64(xsdt + 36 + entry * 8) - address)
            #expect(bytes[table..<(table + Int(record.u32(table + 4)))].reduce(0) { $0 &+ $1 } == 0)
            if entry == 1 { #expect(record.u32(table + 4) == 44 + 3 * 8 && bytes[table + 44 + 8 + 3] == 2) }
        }
    }
}
