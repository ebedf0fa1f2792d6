// Tests of the boot loader that finds a kernel on a disk.
// Source: libxl's boot loader interface; configs written by xen-create-image of xen-tools 4.9.2.
// Covered: arguments, output, errors; pygrub itself where it is installed.
// Quirks: the disk is an ext4 file system without a partition table, as xen-create-image makes them.

import DomainConfig
import Foundation
import Host
import Testing

@testable import Toolstack

@Suite("boot loader") struct BootloaderTests {
    private func config(_ text: String) throws -> DomainConfig {
        let reading = read(text)
        #expect(reading.errors.isEmpty)
        return try #require(reading.config)
    }

    @Test("a config of xen-create-image is understood", arguments: ["xtguest", "xtstatic"])
    func tools(name: String) throws {
        let path = fixtures.appendingPathComponent("xen-tools/\(name).cfg")
        let reading = DomainConfig.read(ConfigFile([UInt8](try Data(contentsOf: path)), source: name))
        #expect(reading.errors.isEmpty)
        let config = try #require(reading.config)
        #expect((config.name, config.kind, config.bootloader) == (name, .pv, "pygrub"))
        #expect(config.disks.map(\.vdev) == ["xvda2", "xvda1"])
        #expect(config.disks.map(\.target.isEmpty) == [false, false])
        #expect(config.commandLine == "root=/dev/xvda2 ro")
        #expect(reading.interfaces.count == 1)
        #expect(config.onCrash == .restart)
    }

    @Test("it gets libxl's arguments")
    func arguments() throws {
        let text = """
            name='a'
            bootloader='/bin/true'
            bootloader_args=['--quiet','-n']
            kernel='/boot/k'
            root='/dev/xvda1'
            extra='quiet'
            disk=['file:/d.img,xvda,w']
            """
        let loader = try #require(try Bootloader(config(text), in: DomainDirectory("/r/1"), path: ""))
        #expect(loader.program == "/bin/true")
        #expect(
            loader.arguments == [
                "--kernel=/boot/k", "--args=root=/dev/xvda1 quiet", "--output=/r/1/bootloader.out",
                "--output-format=simple0", "--output-directory=/r/1/bootloader.d/", "--quiet", "-n", "/d.img",
            ])
    }

    @Test("what cannot work is said")
    func errors() throws {
        let base = "name='a'\nbootloader='true'\n"
        for (rest, word) in [
            ("", "no boot disk"), ("disk=['qcow2:/d,xvda,w']", "qcow2"),
            ("bootloader='/nosuch/nosuchloader'\ndisk=['file:/d,xvda,w']", "not found"),
        ] {
            let text = rest.hasPrefix("bootloader") ? "name='a'\n" + rest : base + rest
            let made = try config(text)
            let error = #expect(throws: ToolstackError.self) {
                _ = try Bootloader(made, in: DomainDirectory("/r/1"), path: "/bin")
            }
            #expect(error?.message.contains(word) == true)
        }
        #expect(try Bootloader(config("name='a'\nkernel='/k'"), in: DomainDirectory("/r/1"), path: "") == nil)
        #expect(Bootloader.find("/usr/lib/xen-0.0/bin/true", path: "/nosuch:/bin") == "/bin/true")
    }

    @Test("its output is read, and nonsense is not")
    func output() {
        let text = "kernel /d/boot_kernel.x\u{0}ramdisk /d/boot_ramdisk.y\u{0}args root=/dev/xvda2 ro\u{0}\n"
        #expect(
            Bootloader.parse(Array(text.utf8))
                == Bootloader.Found(
                    kernel: "/d/boot_kernel.x", ramdisk: "/d/boot_ramdisk.y", commandLine: "root=/dev/xvda2 ro"))
        for wrong in ["", "\u{0}\u{0}", "kernel", "ramdisk /x\u{0}", "kernel \u{0}"] {
            #expect(Bootloader.parse(Array(wrong.utf8)) == nil)
        }
    }

    @Test(
        "pygrub finds kernel, ramdisk and command line",
        .enabled(
            if: Bootloader.find("pygrub", path: "") != nil && FileManager.default.fileExists(atPath: "/usr/sbin/mke2fs")
        ))
    func pygrub() throws {
        let files = FileManager.default
        let path = "/tmp/apus-test-\(UUID().uuidString.prefix(8))"
        defer { try? files.removeItem(atPath: path) }
        try files.createDirectory(atPath: path + "/tree/boot/grub", withIntermediateDirectories: true)
        let kernel = Data((0..<100_000).map { UInt8(truncatingIfNeeded: $0 &* 7) })
        try kernel.write(to: URL(fileURLWithPath: path + "/tree/boot/vmlinuz"))
        try Data("initrd".utf8).write(to: URL(fileURLWithPath: path + "/tree/boot/initrd.img"))
        let menu =
            "set timeout=1\nmenuentry 'D' {\n linux /boot/vmlinuz root=/dev/xvda2 ro\n initrd /boot/initrd.img\n}\n"
        try Data(menu.utf8).write(to: URL(fileURLWithPath: path + "/tree/boot/grub/grub.cfg"))
        let maker = Process()
        maker.executableURL = URL(fileURLWithPath: "/usr/sbin/mke2fs")
        maker.arguments = ["-q", "-t", "ext4", "-d", path + "/tree", path + "/disk.img", "8M"]
        maker.standardError = FileHandle.nullDevice
        try maker.run()
        maker.waitUntilExit()
        try files.createDirectory(atPath: path + "/1", withIntermediateDirectories: true)
        let text = "name='a'\nbootloader='pygrub'\nbootloader_args='-q'\ndisk=['file:\(path)/disk.img,xvda2,w']"
        let loader = try #require(try Bootloader(config(text), in: DomainDirectory(path + "/1"), path: ""))
        let terminal = try PseudoTerminal()
        #expect(try loader.start(on: terminal.path).reap(wait: true) == .exit(0))
        let found = try loader.result()
        #expect(try Data(contentsOf: URL(fileURLWithPath: found.kernel)) == kernel)
        #expect(try Data(contentsOf: URL(fileURLWithPath: found.ramdisk ?? "")) == Data("initrd".utf8))
        #expect(found.commandLine?.hasPrefix("root=/dev/xvda2 ro") == true)
    }
}
