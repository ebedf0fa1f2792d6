import Foundation
import Testing

/// One guest at a time: the machine has two cores, and a guest takes both.
@Suite("Guests", .serialized) enum Guests {}

extension Guests {
    /// Real guests, from `xl create` to what the VNC client and the console show.
    @Suite("HVM guests", .serialized) struct HVMTests {
        static let floppy = "/usr/lib/grub-rescue/grub-rescue-floppy.img"

        static func cdrom(_ iso: String, memory: Int = 256, vcpus: Int = 1) -> String {
            """
            type = 'hvm'
            memory = \(memory)
            vcpus = \(vcpus)
            boot = 'd'
            disk = ['file:\(iso),hdc:cdrom,r']
            vnc = 1
            serial = 'pty'
            """
        }

        @Test("memtest86+ runs its tests on screen", arguments: ["x64", "ia32"])
        func memtest(flavour: String) throws {
            let domain = try Domain(
                "memtest-\(flavour)", Self.cdrom("/usr/lib/memtest86+/memtest86+\(flavour).iso", memory: 64))
            try domain.waitForScreen("Memtest86+", "Pass", "Test")
        }

        @Test("GRUB's rescue CD gives a prompt whose ls shows the CD and the disk")
        func grubCD() throws {
            let disk = try Site.makeDisk("grub-disk.img", bytes: 64 << 20)
            let domain = try Domain(
                "grub-cd",
                Self.cdrom("/usr/lib/grub-rescue/grub-rescue-cdrom.iso")
                    + "\ndisk += ['file:\(disk.path),hda,w']")
            try domain.press(0x63, until: "grub>")  // c
            try domain.viewer().type("\nls\n")
            try domain.waitForScreen("(hd0)", "(cd)")
        }

        @Test("GRUB's rescue floppy boots")
        func grubFloppy() throws {
            let domain = try Domain(
                "grub-floppy",
                "type = 'hvm'\nmemory = 64\nboot = 'a'\nvnc = 1\ndisk = ['file:\(Self.floppy),fda,r']")
            try domain.press(0x63, until: "grub>", within: 180)  // c
        }

        @Test("iPXE reaches its prompt")
        func ipxe() throws {
            let domain = try Domain("ipxe", Self.cdrom("/usr/lib/ipxe/ipxe.iso", memory: 64))
            // Ctrl-B; where it came so early that ISOLINUX waits for a command, Return lets that go on.
            try domain.press(0x62, control: true, then: 0xFF0D, until: "iPXE>")
        }

        @Test("A Debian kernel boots to a shell on the console, sees its machine, and powers off")
        func linux() throws {
            let disk = try Site.makeDisk("linux-disk.img", bytes: 64 << 20)
            let domain = try Domain(
                "linux",
                Self.cdrom(Site.guests.appendingPathComponent("linux.iso").path, memory: 512)
                    + "\nxen_platform_pci = 0\ndisk += ['file:\(disk.path),hda,w']")
            let console = try domain.console()
            try console.wait(for: "APUS-GUEST-READY", within: 900)
            try console.wait(for: "guest#")
            let pci = try console.run("cat /sys/bus/pci/devices/*/uevent | grep PCI_ID | sort | tr '\\n' ' '")
            for id in ["8086:1237", "8086:7000", "8086:7010", "8086:7113", "1234:1111"] {
                #expect(pci.contains("PCI_ID=\(id)"), "no PCI device \(id) in \(pci)")
            }
            let block = try console.run("ls /sys/block")
            #expect(block.contains("sda") && block.contains("sr0"))
            let copied = try console.run(
                "mount -t iso9660 /dev/sr0 /mnt && dd if=/mnt/vmlinuz of=/dev/sda bs=64k 2>/dev/null && sync"
                    + " && md5sum < /mnt/vmlinuz", within: 300)
            #expect(copied.contains("DONE-0"))
            let complaints = try console.complaints()
            #expect(complaints.isEmpty, "the kernel complained: \(complaints)")
            console.send("poweroff -f\n")
            #expect(domain.isGone(), "powered off through ACPI")
        }

        @Test("Four processors boot, agree about memory under stress, and power off")
        func processors() throws {
            let domain = try Domain(
                "smp",
                Self.cdrom(
                    Site.guests.appendingPathComponent("linux.iso").path, memory: 512, vcpus: 4))
            let console = try domain.console()
            try console.wait(for: "APUS-GUEST-READY", within: 900)
            try console.wait(for: "guest#")
            #expect(try console.run("nproc").contains("\n4\r\n"))
            #expect(try console.run("dmesg").contains("Hypervisor detected: Xen HVM"))
            #expect(try console.run("smp-stress 5", within: 120).contains("SMP-STRESS OK processors=4"))
            // Code of the kernel changes under the feet of the others.
            let patched = try console.run(
                "for i in 1 2 3; do (echo $i | md5sum; modprobe ext4; modprobe -r ext4) & done; for i in 1 2 3 4 5; do"
                    + " echo 1 >/proc/sys/kernel/sched_schedstats; echo 0 >/proc/sys/kernel/sched_schedstats; done; wait",
                within: 120)
            #expect(patched.contains("DONE-0"))
            let complaints = try console.complaints()
            #expect(complaints.isEmpty, "the kernel complained: \(complaints)")
            console.send("poweroff -f\n")
            #expect(domain.isGone(), "powered off through ACPI")
        }

        @Test(
            "Kernels for 32-bit PCs boot to a shell, with page tables of two and of three levels",
            arguments: ["linux32-classic", "linux32"])
        func linux32(guest: String) throws {
            let domain = try Domain(
                guest, Self.cdrom(Site.guests.appendingPathComponent("\(guest).iso").path, memory: 256, vcpus: 2))
            let console = try domain.console()
            try console.wait(for: "guest#", within: 300)
            let kernel = try console.run(
                "uname -m; grep -c ^processor /proc/cpuinfo; grep -o -m 1 -w pae /proc/cpuinfo")
            #expect(kernel.contains("i686\r\n2\r\npae"))
            let sums = try console.run(
                "for i in 1 2 3 4; do dd if=/bin/busybox bs=64k 2>/dev/null | sha256sum & done; wait")
            #expect(sums.components(separatedBy: "  -").count == 5)
            let complaints = try console.complaints()
            #expect(complaints.isEmpty, "the kernel complained: \(complaints)")
            console.send("poweroff -f\n")
            #expect(domain.isGone(), "powered off through ACPI")
        }

        @Test("A PVH domain of two processors boots to a shell on its Xen console")
        func pvhProcessors() throws {
            let domain = try Domain(
                "smp-pvh",
                """
                type = 'pvh'
                memory = 256
                vcpus = 2
                kernel = '\(Site.guests.appendingPathComponent("vmlinuz").path)'
                ramdisk = '\(Site.guests.appendingPathComponent("initrd.gz").path)'
                extra = 'console=hvc0'
                """)
            let console = try domain.console()
            try console.wait(for: "guest#", within: 300)
            #expect(try console.run("nproc").contains("\n2\r\n"))
            #expect(try console.run("smp-stress 3", within: 120).contains("SMP-STRESS OK processors=2"))
        }

        @Test("The installer reaches its language screen and answers keys")
        func installer() throws {
            let domain = try Domain(
                "installer", Self.cdrom(Site.guests.appendingPathComponent("installer.iso").path, memory: 1024))
            try domain.waitForScreen("installer menu", "Advanced options", within: 120)
            try domain.viewer().key(Keysym.enter)
            try domain.waitForScreen("Select a language", within: 1800)
            try domain.keepPicture(as: "installer")
            try domain.viewer().key(Keysym.enter)
            try domain.waitForScreen("Select your location", within: 120)
        }
    }
}
