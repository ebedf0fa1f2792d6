// The host in figures: the row of Domain-0, and `xl info`.
// Source: proc(5); CPUID.
// Modelled: memory, processors, times, names.
// Quirks: what another kernel may not show counts as 0.

internal import Foundation
internal import Host

/// What guests and tools are told of Xen (public/version.h).
enum XenVersion {
    static let extra = ".0-apus"
    static let capabilities = "xen-3.0-x86_64 hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64 "
}

/// Figures of the host, read once.
public struct HostFigures: Sendable {
    /// MiB.
    public var totalMemory = 0
    public var freeMemory = 0
    public var processors = 1
    public var coresPerSocket = 1
    public var threadsPerCore = 1
    public var megahertz = 0.0
    public var upSeconds = 0.0
    /// Seconds that each processor was busy.
    public var busySeconds: [Double] = []
    public var name = ""
    public var release = ""
    public var version = ""
    /// Core and socket of each processor.
    public var topology: [(core: Int, socket: Int)] = []

    public static func read() -> HostFigures {
        var figures = HostFigures()
        figures.readMemory()
        figures.readTimes()
        figures.readProcessors()
        figures.name = text("/proc/sys/kernel/hostname")
        figures.release = text("/proc/sys/kernel/osrelease")
        figures.version = text("/proc/sys/kernel/version")
        figures.upSeconds = Double(text("/proc/uptime").split(separator: " ").first ?? "") ?? 0
        return figures
    }

    private static func text(_ path: String) -> String {
        let bytes = (try? HostFile.read(path)) ?? []
        return String(decoding: bytes, as: UTF8.self).trimmingCharacters(in: .whitespacesAndNewlines)
    }

    private mutating func readMemory() {
        for line in Self.text("/proc/meminfo").split(separator: "\n") {
            let words = line.split(separator: " ")
            guard words.count >= 2, let kibibytes = Int(words[1]) else { continue }
            if words[0] == "MemTotal:" { totalMemory = kibibytes / 1024 }
            if words[0] == "MemAvailable:" { freeMemory = kibibytes / 1024 }
        }
    }

    /// /proc/stat counts in hundredths of a second: user, nice, system, idle, iowait, irq, softirq, steal.
    private mutating func readTimes() {
        for line in Self.text("/proc/stat").split(separator: "\n") where line.hasPrefix("cpu") {
            let words = line.split(separator: " ")
            guard words[0] != "cpu" else { continue }
            let ticks = words.dropFirst().map { Double($0) ?? 0 }
            let busy = ticks.enumerated().filter { ![3, 4].contains($0.offset) && $0.offset < 8 }.map(\.element)
            busySeconds.append(busy.reduce(0, +) / 100)
        }
        processors = max(1, busySeconds.count)
    }

    private mutating func readProcessors() {
        var siblings = 1
        for line in Self.text("/proc/cpuinfo").split(separator: "\n") {
            let halves = line.split(separator: ":", maxSplits: 1).map { $0.trimmingCharacters(in: .whitespaces) }
            guard halves.count == 2 else { continue }
            switch halves[0] {
            case "processor": topology.append((core: 0, socket: 0))
            case "cpu MHz": megahertz = Double(halves[1]) ?? megahertz
            case "cpu cores": coresPerSocket = Int(halves[1]) ?? coresPerSocket
            case "siblings": siblings = Int(halves[1]) ?? siblings
            case "core id" where !topology.isEmpty: topology[topology.count - 1].core = Int(halves[1]) ?? 0
            case "physical id" where !topology.isEmpty: topology[topology.count - 1].socket = Int(halves[1]) ?? 0
            default: break
            }
        }
        threadsPerCore = max(1, siblings / max(1, coresPerSocket))
    }
}
