// qcow2 images under real guests: copy on write, two kinds of drives, sudden ends.
// Source: xl-disk-configuration(5), "format"; QEMU's qemu-img as the judge of images.
// Covered: PV and IDE disks on one image, a backing file that stays as it is, back ends killed in the middle of writes.
// Quirks: what a guest was told is flushed must be there afterwards; all else may be.

import Foundation
import Testing

extension Guests {
    @Suite("qcow2 images", .serialized) struct ImageTests {
        private func qemu(_ arguments: String..., accepting codes: Set<Int32> = [0]) throws {
            let result = try Site.run(URL(fileURLWithPath: "/usr/bin/qemu-img"), arguments)
            guard codes.contains(result.status) else {
                throw Domain.Failure(description: "qemu-img \(arguments): \(result.output)\(result.error)")
            }
        }

        /// An ext4 file system as a raw image, and an empty qcow2 image above it.
        private func makeImages(_ name: String) throws -> (base: String, image: String) {
            let base = try Site.makeDisk("\(name).raw", bytes: 48 << 20).path
            let made = try Site.run(URL(fileURLWithPath: "/sbin/mke2fs"), ["-q", "-t", "ext4", base])
            #expect(made.status == 0, "\(made.error)")
            let image = Site.run.appendingPathComponent("\(name).qcow2").path
            try qemu("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", image)
            return (base, image)
        }

        private func boot(_ name: String, _ image: String) throws -> (domain: Domain, console: Console) {
            let domain = try Domain(
                name,
                """
                type='pvh'
                memory=128
                kernel='\(Site.guests.path)/vmlinuz'
                ramdisk='\(Site.guests.path)/initrd.gz'
                cmdline='console=hvc0'
                disk=['format=qcow2,vdev=xvda,access=rw,target=\(image)']
                """)
            let console = try domain.console()
            try console.wait(for: "guest#", within: 300)
            return (domain, console)
        }

        private func waitForEnd(_ domain: Domain) { #expect(domain.isGone()) }

        @Test("A clone takes what PV and IDE disks write, and the image below it stays") func clone() throws {
            let (base, image) = try makeImages("clone")
            let before = try Data(contentsOf: URL(fileURLWithPath: base))
            let sum: Substring
            do {
                let (domain, console) = try boot("clone-pv", image)
                _ = try console.run("mount -t ext4 /dev/xvda /mnt")
                _ = try console.run("dd if=/dev/urandom of=/mnt/noise bs=1M count=6 && rm -f /mnt/x && umount /mnt")
                _ = try console.run("mount -t ext4 /dev/xvda /mnt")
                let said = try console.run("md5sum /mnt/noise")
                sum = try #require(said.firstMatch(of: /([0-9a-f]{32})  \/mnt\/noise/)).output.1
                #expect(try Site.xl("shutdown", "-w", domain.name).status == 0)
            }
            try qemu("check", "-q", "-f", "qcow2", image)
            #expect(try Data(contentsOf: URL(fileURLWithPath: base)) == before)
            let domain = try Domain(
                "clone-ide",
                """
                type='hvm'
                memory=192
                boot='d'
                vnc=0
                serial='pty'
                xen_platform_pci=0
                disk=['format=qcow2,vdev=hda,access=rw,target=\(image)', 'file:\(Site.guests.path)/linux.iso,hdc:cdrom,r']
                """)
            let console = try domain.console()
            try console.wait(for: "guest#", within: 300)
            let said = try console.run(
                "mount -t ext4 /dev/sda /mnt && md5sum /mnt/noise && echo more > /mnt/more && umount /mnt")
            #expect(said.contains("\(sum)  /mnt/noise"))
            #expect(try Site.xl("destroy", domain.name).status == 0)
            try qemu("check", "-q", "-f", "qcow2", image, accepting: [0, 3])
        }

        @Test("A clone and all that it lies on come to back ends that open nothing") func attached() throws {
            let (base, image) = try makeImages("late")
            let disk = try makeImages("late-root").image
            let (domain, console) = try boot("attached", disk)
            let attached = try Site.xl("block-attach", domain.name, "format=qcow2,vdev=xvdb,access=rw,target=\(image)")
            #expect(attached.status == 0, "\(attached.error)")
            let wait = Console.awaiting("/dev/xvdb")
            let written = try console.run("\(wait); mount /dev/xvdb /mnt && echo late >/mnt/late && umount /mnt")
            #expect(written.contains("DONE-0"), "\(written)")
            // Its lock, and that of what lies below, have come along.
            for taken in ["format=qcow2,vdev=xvdc,access=rw,target=\(image)", "file:\(base),xvdc,w"] {
                #expect(try Site.xl("block-attach", domain.name, taken).error.contains("in use"), "\(taken)")
            }
            let plain = try Site.makeDisk("late-plain.img", bytes: 4096).path
            let refused = try Site.xl("block-attach", domain.name, "format=qcow2,vdev=xvdd,access=rw,target=\(plain)")
            #expect(refused.error.contains("is damaged"), "\(refused.error)")
            #expect(try Site.xl("block-list", domain.name).output.split(separator: "\n").count == 3)
            #expect(try Site.xl("block-detach", domain.name, "xvdb").status == 0)
            try qemu("check", "-q", "-f", "qcow2", image)
            // Linux takes a device that comes before it has seen the last one go for that one.
            _ = try console.run("while [ -e /sys/bus/xen/devices/vbd-51728 ]; do usleep 100000; done")
            #expect(try Site.xl("block-attach", domain.name, "file:\(base),xvdb,r").status == 0)
            #expect(try console.run("\(wait); mount -o ro /dev/xvdb /mnt && ls /mnt").contains("lost+found"))
        }

        @Test("A killed back end costs nothing that was flushed, and its domain alone") func killed() throws {
            let (_, image) = try makeImages("killed")
            let other = try makeImages("bystander").image
            let (bystander, witness) = try boot("killed-bystander", other)
            var sums: [(name: String, sum: String)] = []
            do {
                let (domain, console) = try boot("killed", image)
                _ = try console.run("mount -t ext4 /dev/xvda /mnt; cd /mnt")
                console.send(
                    "i=100; while dd if=/dev/urandom of=f$i bs=64k count=3 conv=fsync 2>/dev/null; do md5sum f$i; i=$((i+1)); done\n"
                )
                let text = try console.wait(for: "  f120", within: 120)
                for match in text.matches(of: /([0-9a-f]{32})  (f\d{3})/) {
                    sums.append((String(match.output.2), String(match.output.1)))
                }
                let record = try JSONSerialization.jsonObject(
                    with: try Data(contentsOf: domain.directory.appendingPathComponent("record.json")))
                let backend = try #require((record as? [String: Any])?["backend"] as? Int32)
                kill(backend, SIGKILL)
                waitForEnd(domain)
            }
            #expect(sums.count >= 19)
            try qemu("check", "-q", "-f", "qcow2", image, accepting: [0, 3])
            let (again, console) = try boot("killed-again", image)
            let checked = try console.run("fsck.ext4 -p /dev/xvda; fsck.ext4 -fn /dev/xvda")
            #expect(checked.contains("DONE-0"), "\(checked)")
            let said = try console.run("mount -t ext4 /dev/xvda /mnt && cd /mnt && md5sum f*")
            for (name, sum) in sums { #expect(said.contains("\(sum)  \(name)"), "\(name)") }
            #expect(again.isListed && bystander.isListed)
            #expect(try witness.run("dd if=/dev/xvda of=/dev/null bs=1M count=4 && echo alive").contains("alive"))
        }
    }
}
