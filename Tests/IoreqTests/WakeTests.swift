// Whoever sleeps is woken: vCPUs by kicks, back ends by the doorbell, both while they look and while they fall asleep.
// Source: Sources/Hypervisor/Ioreq/IoreqPages.swift, IoreqPages+Look.swift, EventPages.swift; decision 0003.
// Covered: a vCPU and a back end that answer each other by turns, at every distance between looking and sleeping.

import Foundation
import Host
import Synchronization
import Testing

@testable import Ioreq

@Suite("Waking") struct WakeTests {
    /// A vCPU that waits for a back end's event, and the back end that waits for its own, as their loops do it.
    private final class Pair: Sendable {
        static let port = 70
        /// Nobody is kept from running for so long: who slept this through was not woken.
        static let lost: UInt64 = 20_000_000_000
        let pages: IoreqPages
        let events: EventPages
        let doorbell: HostEvent
        let lateWakes = Atomic<Int>(0)

        init() throws {
            pages = try IoreqPages.make()
            events = try EventPages.make()
            doorbell = try HostEvent()
        }

        /// The vCPU's half: sends, and waits for the answer.
        func ask(_ patience: inout Patience) {
            events.signalBackend(Self.port, doorbell: doorbell)
            while true {
                var isAnswered = false
                repeat {
                    _ = pages.takeAttention(0)
                    guard events.hasNotifications else { break }
                    events.takeNotifications { if $0 == Self.port { isAnswered = true } }
                } while true
                if isAnswered { return }
                let began = monotonicNanoseconds()
                if !pages.look(0, from: began, &patience) { pages.sleep(0, nanoseconds: Self.lost) }
                note(began)
                if lateWakes.load(ordering: .relaxed) > 0 { return }
            }
        }

        /// The back end's half: answers so many events.
        func answer(_ rounds: Int) {
            var answered = 0
            while answered < rounds {
                for _ in 0...(answered % 50) where answered < rounds { answered += take() }
                guard answered < rounds, events.prepareToSleep() else { continue }
                let began = monotonicNanoseconds()
                var wait = pollfd(fd: doorbell.descriptor.number, events: Int16(POLLIN), revents: 0)
                _ = poll(&wait, 1, Int32(Self.lost / 1_000_000))
                note(began)
                doorbell.clear()
                events.wake()
                answered += take()
            }
        }

        private func take() -> Int {
            var isAsked = false
            _ = events.takeSignals { if $0 == Self.port { isAsked = true } }
            if isAsked { pages.kick(events.notifyGuest(Self.port)) }
            return isAsked ? 1 : 0
        }

        private func note(_ began: UInt64) {
            if monotonicNanoseconds() &- began >= Self.lost { lateWakes.add(1, ordering: .relaxed) }
        }
    }

    @Test("A vCPU and a back end that answer each other by turns never sleep an event through") func turns() throws {
        let rounds = 10_000
        let pair = try Pair()
        let done = DispatchSemaphore(value: 0)
        Thread.detachNewThread {
            pair.answer(rounds)
            done.signal()
        }
        for round in 0..<rounds where pair.lateWakes.load(ordering: .relaxed) == 0 {
            var patience = Patience(least: UInt64(round % 64) * 500)
            pair.ask(&patience)
        }
        #expect(pair.lateWakes.load(ordering: .relaxed) == 0)
        if pair.lateWakes.load(ordering: .relaxed) == 0 { done.wait() }
    }

    @Test("A kick ends looking, and what is not looked for is slept for") func look() throws {
        let pages = try IoreqPages.make()
        var patience = Patience(least: 0, isUseful: true)
        #expect(!pages.look(0, from: monotonicNanoseconds(), &patience))
        patience = Patience(least: 1_000, isUseful: true)
        #expect(!pages.look(0, from: monotonicNanoseconds(), &patience))
        pages.kick(0)
        patience = Patience(least: .max, isUseful: true)
        #expect(pages.look(0, from: monotonicNanoseconds(), &patience))
        #expect(pages.takeAttention(0) && !pages.takeAttention(0))
    }
}
