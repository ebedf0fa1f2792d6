// How xl shows a running PV domain, against what Xen's own printed of a domain with the same config file.
// Source: output captured on Xen 4.17.7 (Tests/Fixtures/lists), config file Tests/Fixtures/xenstore/pv1.cfg.
// Covered: list, list -v, list -l, block-list, network-list, uptime: headers, columns, every field of the long form.
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
