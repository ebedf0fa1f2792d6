// What xl does to a running PV domain: devices that come and go.
// Source: xl(1).
// Covered: block-attach and -detach, network-attach and -detach, again and again under the same number.
// Quirks: nothing waits between two commands: when xl is done with a device, so is the guest.

import Foundation
import Testing

extension Guests {
    @Suite("Commands on PV domains", .serialized) struct PVCommandTests {
        @Test("Disks and interfaces come back under their numbers as soon as they are gone") func devices() throws {
            let (domain, console, _) = try PVTests.boot("pv-devices", vcpus: 2)
            try console.wait(for: "guest#", within: 300)
            let extra = try Site.makeDisk("pv-devices-extra.img", bytes: 8 << 20)
            let mac = "00:16:3e:12:34:56"
            for round in 1...5 {
                let disk = try Site.xl("block-attach", domain.name, "file:\(extra.path),xvdb,w")
                #expect(disk.status == 0 && disk.error.isEmpty, "\(disk.error)")
                let card = try Site.xl("network-attach", domain.name, "mac=\(mac)")
                #expect(card.status == 0 && card.error.isEmpty, "\(card.error)")
                let seen = try console.run(
                    "head -c 7 /dev/xvdb; printf 'round %d' \(round) >/note; dd if=/note of=/dev/xvdb conv=fsync;"
                        + " cat /sys/block/xvdb/size /sys/class/net/eth*/address")
                #expect(seen.contains("16384\r\n\(mac)"), "\(seen)")
                #expect(round == 1 || seen.contains("round \(round - 1)"), "\(seen)")
                let (gone, unplugged) = (
                    try Site.xl("block-detach", domain.name, "xvdb"), try Site.xl("network-detach", domain.name, mac)
                )
                #expect(gone.status == 0 && unplugged.status == 0, "\(gone.error)\(unplugged.error)")
                let left = try console.run("ls /sys/block /sys/class/net")
                #expect(!left.contains("xvdb") && !left.contains("eth"), "\(left)")
            }
            #expect(try console.complaints() == "")
            #expect(try Data(contentsOf: extra).prefix(7) == Data("round 5".utf8))
        }
    }
}
