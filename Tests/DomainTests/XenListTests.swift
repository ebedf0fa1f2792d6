// How xl shows a running PV domain, against what Xen's own printed of a domain with the same config file.
// Source: output captured on Xen 4.17.7 (Tests/Fixtures/lists), config file Tests/Fixtures/xenstore/pv1.cfg.
// Covered: list, list -v, list -l, vcpu-list, info, block-list, network-list, uptime: headers, columns, every field of the long
// form; what the guest's kernel says of its machine, line by line.
// Quirks: numbers differ from start to start, so a column's place is compared and not its value.

import Foundation
import Testing

extension Guests {
    @Suite("Lists beside Xen's", .serialized) struct XenListTests {
        private static let fixtures = Site.root.appendingPathComponent("Tests/Fixtures")

        private func captured(_ name: String) throws -> String {
            try String(contentsOf: Self.fixtures.appendingPathComponent("lists/\(name)"), encoding: .utf8)
        }

        /// The same config on this host: other files, another name.
        private func boot() throws -> (domain: Domain, console: Console) {
            var config = try String(
                contentsOf: Self.fixtures.appendingPathComponent("xenstore/pv1.cfg"), encoding: .utf8)
            config.replace(/name +=.*\n/, with: "")
            config.replace("/root/guest/vmlinuz", with: Site.guests.path + "/vmlinuz")
            config.replace("/root/guest/initrd.gz", with: Site.guests.path + "/initrd.gz")
            for name in ["pvdisk.img", "pvdisk2.img"] {
                config.replace("/root/guest/\(name)", with: try Site.makeDisk(name, bytes: 16 << 20).path)
            }
            let domain = try Domain("lists-pv", config, in: try HostNamespace())
            return (domain, try domain.console())
        }

        /// Where each word of a line begins and ends. Two references with a slash between them are two words.
        private func columns(_ line: Substring) -> [Range<Int>] {
            let line = line.replacing(/([0-9])\/(-?[0-9]+ +\/)/) { "\($0.output.1) \($0.output.2)" }
            return line.split(separator: /[ \t]+/).map { word in
                let start = line.utf8.distance(from: line.startIndex, to: word.startIndex)
                return start..<(start + word.utf8.count)
            }
        }

        /// A column is where Xen's is if it begins or ends there: numbers are longer or shorter.
        private func compare(_ ours: String, with capture: String, row: String) throws {
            let theirs = try captured(capture).split(separator: "\n")
            let lines = ours.split(separator: "\n")
            #expect(lines.first == theirs.first, "\(capture)")
            let line = try #require(lines.first { $0.hasPrefix(row) }, "\(capture): \(ours)")
            let (found, wanted) = (columns(line), columns(try #require(theirs.last)))
            #expect(found.count == wanted.count, "\(capture): \(line)")
            for (found, wanted) in zip(found, wanted) {
                #expect(
                    found.lowerBound == wanted.lowerBound || found.upperBound == wanted.upperBound,
                    "\(capture): \(line)")
            }
        }

        /// The host's own figures and names, and what Xen is built of; all else is the same.
        private func compareInfo() throws {
            func entries(_ text: String) -> [(key: String, value: String)] {
                text.split(separator: "\n").map { line in
                    let halves = line.split(separator: ":", maxSplits: 1).map {
                        $0.trimmingCharacters(in: .whitespaces)
                    }
                    return (halves[0], halves.count > 1 ? halves[1] : "")
                }
            }
            let own = [
                "host", "release", "version", "nr_cpus", "max_cpu_id", "cores_per_socket", "threads_per_core",
                "cpu_mhz",
                "hw_caps", "virt_caps", "total_memory", "free_memory", "xen_extra", "xen_version", "xen_scheduler",
                "xen_commandline", "cc_compiler", "cc_compile_by", "cc_compile_domain", "cc_compile_date", "build_id",
            ]
            let (ours, theirs) = (entries(try Site.xl("info").output), entries(try captured("info.txt")))
            #expect(ours.map(\.key) == theirs.map(\.key))
            for (our, their) in zip(ours, theirs) where !own.contains(our.key) {
                #expect(our.value == their.value, "\(our.key)")
            }
        }

        /// Lines about the processor's model and about Xen's version, and one for what netback does not offer.
        private static let ofTheirOwn = [
            "^Xen version: ", "AMD Zen", "^Spectre ", "return thunk", "^RETBleed", "^Speculative ", "^MDS: ", "^TAA: ",
            "^MMIO Stale Data", "^ITS: ", "^GDS: ", "^SRBDS", "^L1TF", "^Register File Data", "^Last level", "^TSA: ",
            "^Transient Scheduler", "^VMSCAPE", "Enabled xstate features", "Supporting XSAVE feature",
            "xstate_offset", "backend supports XDP headroom", "^tsc: ", "mitigations", "^smpboot: CPU0",
            "^clocksource: tsc", "^Performance Events: .* software events only", "^intel_pstate: ",
        ]

        /// What the same kernel says on both, but for numbers, addresses and times.
        private func compareLog(_ domain: Domain) throws {
            func lines(_ text: String) -> Set<String> {
                Set(
                    text.split(whereSeparator: \.isNewline).compactMap { line -> String? in
                        guard let said = line.firstMatch(of: /^\[ *[0-9]+\.[0-9]+\] (.*)$/)?.output.1 else {
                            return nil
                        }
                        // Persistent grants, for which blkfront copies through buffers, are not offered here.
                        return said.replacing(/(persistent grants|bounce buffer): [a-z]+;?/, with: "")
                            .replacing(/0x[0-9a-f]+|\b[0-9a-f]{8,}\b|[0-9]+(\.[0-9]+)?/, with: "N")
                            .trimmingCharacters(in: .whitespaces)
                    }.filter { line in
                        !Self.ofTheirOwn.contains { line.range(of: $0, options: .regularExpression) != nil }
                    })
            }
            let log = domain.directory.appendingPathComponent("guest-console.log")
            let ours = lines(String(decoding: try Data(contentsOf: log), as: UTF8.self))
            let theirs = lines(try captured("console.txt"))
            #expect(theirs.count > 200)
            for line in theirs.subtracting(ours) { Issue.record("on Xen it said: \(line)") }
            for line in ours.subtracting(theirs) { Issue.record("on Xen it did not say: \(line)") }
        }

        /// Each value of a JSON document by the way to it.
        private func flatten(_ value: Any, at path: String = "") -> [String: String] {
            if let object = value as? [String: Any] {
                return object.reduce(into: object.isEmpty ? [path: "{}"] : [:]) { all, entry in
                    all.merge(flatten(entry.value, at: "\(path)/\(entry.key)")) { $1 }
                }
            }
            if let list = value as? [Any] {
                return list.enumerated().reduce(into: [:]) { all, entry in
                    all.merge(flatten(entry.element, at: "\(path)/\(entry.offset)")) { $1 }
                }
            }
            return [path: "\(value)"]
        }

        private func entry(_ json: String, domid: Int) throws -> [String: String] {
            let all = try JSONSerialization.jsonObject(with: Data(json.utf8)) as? [[String: Any]] ?? []
            return flatten(try #require(all.first { $0["domid"] as? Int == domid }))
        }

        @Test("A running PV domain is listed as Xen lists it: every column, every field") func lists() throws {
            let (domain, console) = try boot()
            try console.wait(for: "guest#", within: 300)
            let name = domain.name
            try compare(try Site.xl("list").output, with: "list.txt", row: name)
            try compare(try Site.xl("list", "-v").output, with: "list-v.txt", row: name)
            let processors = try Site.xl("vcpu-list").output
            try compare(processors, with: "vcpu-list.txt", row: name)
            let rows = processors.split(separator: "\n").filter { $0.hasPrefix(name) }
            #expect(
                rows.count == 2 && rows.allSatisfy { $0.contains(/[01]   (r--|-b-) +[0-9.]+  all \/ all$/) }, "\(rows)")
            try compareInfo()
            try compareLog(domain)
            try compare(try Site.xl("uptime").output, with: "uptime.txt", row: name)
            try compare(try Site.xl("block-list", name).output, with: "block-list.txt", row: "51728 ")
            try compare(try Site.xl("network-list", name).output, with: "network-list.txt", row: "0 ")
            let theirs = try entry(try captured("list-l.json"), domid: 1)
            let ours = try entry(try Site.xl("list", "-l").output, domid: domain.id)
            let varying = /\/(domid|name|uuid|kernel|ramdisk|pdev_path)$/
            #expect(theirs.count > 30)
            for (path, value) in theirs {
                #expect(ours[path] != nil, "\(path) is missing")
                if path.firstMatch(of: varying) == nil { #expect(ours[path] == value, "\(path)") }
            }
            for path in ours.keys { #expect(theirs[path] != nil, "\(path) is not in Xen's") }
        }
    }
}
