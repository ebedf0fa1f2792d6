import Testing

@testable import Kernel

@Suite("Counters") struct CounterTests {
    @Test("Exits are counted by kind; interrupts are none")
    func kinds() {
        let counters = VCPUCounters()
        for _ in 0..<3 { counters.count(.portRead) }
        counters.count(.interrupt)
        counters.countHypercall(32)
        counters.countHypercall(.max)
        #expect(counters[.portRead] == 3 && counters[.interrupt] == 1 && counters[.hypercall] == 2)
        #expect(counters.exits == 5)
        #expect(counters.numbers[32] == 1 && counters.numbers[63] == 1)
    }

    @Test(
        "Answers fall into buckets by powers of two",
        arguments: [(0, 0), (1, 1), (1023, 10), (1024, 11), (UInt64.max, 31)])
    func buckets(nanoseconds: UInt64, bucket: Int) {
        let counters = VCPUCounters()
        counters.countAnswer(nanoseconds: nanoseconds)
        #expect(counters.latencies[bucket] == 1)
        #expect(counters.waitedNanoseconds == nanoseconds)
    }

    @Test("What lies outside of a block is not counted")
    func bounds() {
        let block = CounterBlock(2)
        block.add(2)
        block.add(-1)
        block.add(1, .max)
        block.add(1, 2)
        #expect(block[0] == 0 && block[1] == 1 && block[2] == 0)
    }
}
