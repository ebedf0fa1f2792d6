// xl mem-set, mem-max, vcpu-set, vcpu-pin: how much of the host a domain has.
// Source: xl(1); xenstore-paths.pandoc, "memory/target" and "cpu/N/availability"; messages captured on Xen 4.17.7.
// Modelled: the balloon's target, vCPUs on and off by the guest, pinning of vCPU threads.
// Quirks: soft affinity is accepted and has no effect: Linux's scheduler knows hard affinity only.

internal import DomainConfig
internal import Foundation
internal import Host
internal import XenStoreClient

/// An amount of memory as xl reads it: a number and b, k, m, g or t; MiB without a letter.
func memoryKiB(_ text: String) -> Int? {
    let units: [Character: (multiplier: Int, divisor: Int)] = [
        "b": (1, 1024), "k": (1, 1), "m": (1024, 1), "g": (1 << 20, 1), "t": (1 << 30, 1),
    ]
    var digits = Substring(text.lowercased())
    var unit = (multiplier: 1024, divisor: 1)
    if let last = digits.last, let known = units[last] {
        unit = known
        digits = digits.dropLast()
    }
    guard !digits.isEmpty, digits.allSatisfy({ $0.isASCII && $0.isNumber }), let number = Int(digits), number < 1 << 32
    else { return nil }
    return number * unit.multiplier / unit.divisor
}

extension Command {
    private static let sizeUsage = "DOMAIN MEM[b|k|m|g|t]"

    static let memSet = Command(
        name: "mem-set", summary: "Set the current memory usage for a domain", usage: sizeUsage, leastOperands: 2,
        mostOperands: 2,
        run: { session, options throws(ToolstackError) in
            let record = try session.guest(options.operands[0])
            let directory = session.run.directory(of: record.domid)
            guard let kibibytes = memoryKiB(options.operands[1]) else {
                throw ToolstackError("invalid memory size: \(options.operands[1])", exitCode: 3, isVerbatim: true)
            }
            guard let config = try? directory.readConfig() else { throw ToolstackError("the domain's config is gone") }
            guard kibibytes <= config.maxmem * 1024 else {
                throw ToolstackError(
                    "Domain \(record.domid): memory_dynamic_max must be less than or equal to memory_static_max "
                        + "(\(config.maxmem) MiB)")
            }
            let video = DomainTree.videoMemory(config)
            guard kibibytes > video else { throw ToolstackError("less than the domain's video memory") }
            try session.withStore { (store) throws(StoreFailure) in
                try store.write("/local/domain/\(record.domid)/memory/target", "\(kibibytes - video)")
            }
            return 0
        })

    static let memMax = Command(
        name: "mem-max", summary: "Set the maximum amount reservation for a domain", usage: sizeUsage,
        leastOperands: 2, mostOperands: 2,
        run: { session, options throws(ToolstackError) in
            let record = try session.guest(options.operands[0])
            let directory = session.run.directory(of: record.domid)
            guard let kibibytes = memoryKiB(options.operands[1]) else {
                throw ToolstackError("invalid memory size: \(options.operands[1])", exitCode: 3, isVerbatim: true)
            }
            guard var config = try? directory.readConfig() else { throw ToolstackError("the domain's config is gone") }
            guard kibibytes >= session.targetKiB(record, config) else {
                throw ToolstackError(
                    "Domain \(record.domid): memory_static_max must be greater than or equal to memory_dynamic_max")
            }
            config.maxmem = kibibytes / 1024
            do { try directory.write(config) } catch { throw ToolstackError("\(error)") }
            return 0
        })

    static let vcpuSet = Command(
        name: "vcpu-set", summary: "Set the number of active VCPUs allowed for the domain",
        usage: "[option] DOMAIN NUMBER",
        options: [("-i, --ignore-host", "don't limit the vCPUs by the host's number of CPUs")],
        specifications: [.init("i", "ignore-host")], leastOperands: 2, mostOperands: 2,
        run: { session, options throws(ToolstackError) in
            let record = try session.guest(options.operands[0])
            let directory = session.run.directory(of: record.domid)
            guard let wanted = Int(options.operands[1]), wanted > 0 else {
                throw ToolstackError("Error: Invalid argument.", isVerbatim: true)
            }
            let host = HostFigures.read().processors
            if wanted > host, !options.has("ignore-host") {
                throw ToolstackError(
                    "You are overcommmitting! You have \(host) physical CPUs and want \(wanted) vCPUs! "
                        + "Aborting, use --ignore-host to continue", isVerbatim: true)
            }
            guard var config = try? directory.readConfig() else { throw ToolstackError("the domain's config is gone") }
            guard wanted <= config.vcpus else {
                throw ToolstackError("Requested \(wanted) VCPUs, however maxcpus is \(config.vcpus)!")
            }
            let count = config.vcpus
            try session.withStore { (store) throws(StoreFailure) in
                for number in 0..<count {
                    let path = "/local/domain/\(record.domid)/cpu/\(number)/availability"
                    let state = number < wanted ? "online" : "offline"
                    if try store.read(path) != state { try store.write(path, state) }
                }
            }
            config.onlineVCPUs = wanted
            do { try directory.write(config) } catch { throw ToolstackError("\(error)") }
            return 0
        })

    static let vcpuPin = Command(
        name: "vcpu-pin", summary: "Set which CPUs a VCPU can use",
        usage: "[option] DOMAIN VCPU|all HARD|-|all [SOFT|-|all]",
        options: [("-f, --force", "accepted for xl's sake"), ("--ignore-global-affinity-masks", "the same")],
        specifications: [.init("f", "force"), .init(nil, "ignore-global-affinity-masks")], leastOperands: 3,
        mostOperands: 4,
        run: { session, options throws(ToolstackError) in
            let record = try session.running(options.operands[0])
            let host = HostFigures.read().processors
            let hard = options.operands[2]
            if options.operands.count == 4, !["-", "all"].contains(options.operands[3]) {
                session.complain("xl vcpu-pin: soft affinity has no effect: the host's scheduler has none")
            }
            guard hard != "-" else { return 0 }
            guard let set = processorSet(hard, count: host), !set.isEmpty else {
                throw ToolstackError("Error: Invalid argument.", isVerbatim: true)
            }
            let threads = vcpuThreads(record.hypervisor)
            let chosen: [Int]
            if options.operands[1] == "all" {
                chosen = threads.keys.sorted()
            } else {
                guard let number = Int(options.operands[1]), threads[number] != nil else {
                    throw ToolstackError("Error: Invalid argument \(options.operands[1]) as VCPU.", isVerbatim: true)
                }
                chosen = [number]
            }
            for number in chosen {
                guard let thread = threads[number] else { continue }
                do { try Affinity.write(thread, set) } catch { throw ToolstackError("\(error)") }
            }
            return 0
        })
}

extension Session {
    /// The balloon's target with video memory, as far as the store says.
    func targetKiB(_ record: DomainRecord, _ config: DomainConfig) -> Int {
        let text = openStore().flatMap { try? $0.read("/local/domain/\(record.domid)/memory/target") } ?? nil
        guard let target = text.flatMap({ Int($0) }) else { return config.memory * 1024 }
        return target + DomainTree.videoMemory(config)
    }
}

/// The threads of a hypervisor that run vCPUs, by the vCPU's number.
func vcpuThreads(_ hypervisor: Int32) -> [Int: Int32] {
    guard hypervisor > 0 else { return [:] }
    var threads: [Int: Int32] = [:]
    for thread in HostFile.list("/proc/\(hypervisor)/task").compactMap({ Int32($0) }) {
        guard let bytes = try? HostFile.read("/proc/\(hypervisor)/task/\(thread)/comm") else { continue }
        let name = String(decoding: bytes.prefix { $0 != 10 }, as: UTF8.self)
        if name.hasPrefix("vcpu"), let number = Int(name.dropFirst(4)) { threads[number] = thread }
    }
    return threads
}

/// A list of processors as xl writes it: "all", "0-3,5,^2"; nil if it is none.
func processorSet(_ text: String, count: Int) -> [Int]? {
    var set: Set<Int> = []
    for part in text.split(separator: ",", omittingEmptySubsequences: false) {
        let excludes = part.hasPrefix("^")
        let body = excludes ? part.dropFirst() : part
        let ends = body.split(separator: "-", omittingEmptySubsequences: false).map { Int($0) }
        let range: Set<Int>
        if body == "all" {
            range = Set(0..<count)
        } else if ends.count == 1, let only = ends[0] {
            range = [only]
        } else if ends.count == 2, let first = ends[0], let last = ends[1], first <= last, last < 4096 {
            range = Set(first...last)
        } else {
            return nil
        }
        if excludes { set.subtract(range) } else { set.formUnion(range) }
    }
    return set.filter { (0..<count).contains($0) }.sorted()
}

/// The shortest way to write a set of processors.
func processorList(_ set: [Int], count: Int) -> String {
    if set.isEmpty || set.filter({ $0 < count }).count == count { return "all" }
    var ranges: [(Int, Int)] = []
    for number in set.sorted() {
        if let last = ranges.last, last.1 + 1 == number {
            ranges[ranges.count - 1].1 = number
        } else {
            ranges.append((number, number))
        }
    }
    return ranges.map { $0.0 == $0.1 ? "\($0.0)" : "\($0.0)-\($0.1)" }.joined(separator: ",")
}
