// The figures of a domain as `xl stats` and `xl metrics` show them.
// Source: our own; public/xen.h for the names of hypercalls.
// Modelled: exits, answers of the device model, events, accesses to the chips of this process.
// Quirks: each number is read for itself: sums may be off by what happens meanwhile.

internal import CXen
internal import Machine
internal import Processor
internal import Synchronization

struct DomainStatistics: Codable {
    struct Answers: Codable {
        var count: UInt64
        var nanoseconds: UInt64
        /// Entry n: how many took less than 2^n nanoseconds, and not less than half of that.
        var histogram: [UInt64]
    }
    /// Of the guest's programs that ran by themselves, on the host's processor.
    struct Programs: Codable {
        /// How often one ran until something stopped it.
        var runs: UInt64
        var nanoseconds: UInt64
    }
    struct Events: Codable {
        /// Sends by the guest, deliveries to it, and what of both went to back ends or came from them.
        var sent: UInt64
        var delivered: UInt64
        var toBackends: UInt64
        var fromBackends: UInt64
    }
    struct Chip: Codable {
        var name: String
        var reads: UInt64
        var writes: UInt64
    }
    /// By kind, for each vCPU.
    var exits: [[String: UInt64]]
    var hypercalls: [String: UInt64]
    var answers: Answers
    var programs: Programs
    var events: Events
    var chips: [Chip]

    init(of domain: Domain) {
        let counters = domain.vcpus.map(\.counters)
        exits = counters.map { counters in
            Dictionary(uniqueKeysWithValues: VCPUCounters.Kind.allCases.map { ("\($0)", counters[$0]) })
        }
        hypercalls = [:]
        for number in 0..<VCPUCounters.hypercalls {
            let count = counters.reduce(0) { $0 &+ $1.numbers[number] }
            if count > 0 { hypercalls[Self.name(ofHypercall: number)] = count }
        }
        let histogram = (0..<VCPUCounters.buckets).map { bucket in counters.reduce(0) { $0 &+ $1.latencies[bucket] } }
        answers = Answers(
            count: histogram.reduce(0, &+), nanoseconds: counters.reduce(0) { $0 &+ $1.waitedNanoseconds },
            histogram: histogram)
        let direct = domain.vcpus.compactMap(\.directExecution)
        programs = Programs(
            runs: direct.reduce(0) { $0 + UInt64($1.runs) }, nanoseconds: direct.reduce(0) { $0 + $1.cpuNanoseconds })
        let counted = domain.xen.counters
        events = Events(
            sent: counted.sent.load(ordering: .relaxed), delivered: counted.delivered.load(ordering: .relaxed),
            toBackends: counted.toBackends.load(ordering: .relaxed),
            fromBackends: counted.fromBackends.load(ordering: .relaxed))
        chips = domain.chipset.accesses.map { Chip(name: $0.name, reads: $0.reads, writes: $0.writes) }
    }

    private static func name(ofHypercall number: Int) -> String {
        switch Int32(number) {
        case __HYPERVISOR_memory_op: "memory_op"
        case __HYPERVISOR_multicall: "multicall"
        case __HYPERVISOR_set_timer_op: "set_timer_op"
        case __HYPERVISOR_xen_version: "xen_version"
        case __HYPERVISOR_console_io: "console_io"
        case __HYPERVISOR_grant_table_op: "grant_table_op"
        case __HYPERVISOR_vcpu_op: "vcpu_op"
        case 29: "sched_op"
        case 32: "event_channel_op"
        case __HYPERVISOR_physdev_op: "physdev_op"
        case __HYPERVISOR_hvm_op: "hvm_op"
        case __HYPERVISOR_mmu_update: "mmu_update"
        case __HYPERVISOR_mmuext_op: "mmuext_op"
        case __HYPERVISOR_update_va_mapping: "update_va_mapping"
        case __HYPERVISOR_iret: "iret"
        case __HYPERVISOR_stack_switch: "stack_switch"
        case __HYPERVISOR_set_segment_base: "set_segment_base"
        case __HYPERVISOR_fpu_taskswitch: "fpu_taskswitch"
        case __HYPERVISOR_update_descriptor: "update_descriptor"
        default: "call \(number)"
        }
    }
}
