// Tests of what a config's keys mean.
// Source: xl.cfg(5), xl-disk-configuration(5); exit codes captured on Xen 4.17.7 (Tests/Fixtures/create-errors).
// Covered: the beginner's guide's config, disks, display, warnings, each captured wrong config.
// Quirks: xl of Xen lets wrong vcpus and MAC addresses pass; we refuse them.

import DomainConfig
import Foundation
import Testing

func read(_ text: String) -> ConfigReading {
    DomainConfig.read(ConfigFile(text, source: "t.cfg"), utcOffset: 7200)
}

let fixtures = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
    .appendingPathComponent("Fixtures")

@Suite("keys of a config") struct DomainConfigTests {
    @Test("the beginner's guide's config is taken as it is")
    func guide() throws {
        let reading = read(
            """
            kernel = "/usr/lib/xen-4.0/boot/hvmloader"
            builder='hvm'
            memory = 4096
            vcpus=4
            name = "ubuntu-hvm"
            vif = ['bridge=xenbr0']
            disk = ['phy:/dev/vg0/ubuntu-hvm,hda,w','file:/root/ubuntu.iso,hdc:cdrom,r']
            acpi = 1
            device_model_version = 'qemu-xen'
            boot="d"
            sdl=0
            serial='pty'
            vnc=1
            vnclisten=""
            vncpasswd=""
            """)
        let config = try #require(reading.config)
        #expect(reading.errors.isEmpty)
        #expect(reading.warnings.isEmpty)
        #expect(config.kind == .hvm)
        #expect(config.kernel == nil)
        #expect((config.memory, config.vcpus, config.name) == (4096, 4, "ubuntu-hvm"))
        #expect(config.boot == "d")
        #expect(config.serial == ["pty"])
        #expect(config.display.vnc)
        #expect(config.display.vncListen == "127.0.0.1")
        #expect(
            config.disks == [
                .init(target: "/dev/vg0/ubuntu-hvm", vdev: "hda", readWrite: true, cdrom: false),
                .init(target: "/root/ubuntu.iso", vdev: "hdc", readWrite: false, cdrom: true),
            ])
    }

    @Test(
        "disk entries in every form",
        arguments: [
            ("/dev/vg/guest,raw,xvda,rw", "/dev/vg/guest", "xvda", true, false),
            ("/dev/vg/guest,,xvda", "/dev/vg/guest", "xvda", true, false),
            ("tap:aio:/x.img,hda,r", "/x.img", "hda", false, false),
            ("tap2:qcow2:/x.img,hda,w", "/x.img", "hda", true, false),
            ("format=raw, vdev=hda, access=ro, target=/a,b=c.img", "/a,b=c.img", "hda", false, false),
            ("vdev=hdc,cdrom,target=/x.iso", "/x.iso", "hdc", false, true),
            ("vdev=hdc,devtype=cdrom", "", "hdc", false, true),
            (",,hdc:cdrom,r", "", "hdc", false, true),
            ("file:/x.iso,hdc:cdrom", "/x.iso", "hdc", false, true),
            ("/x.iso,raw,hdc,ro,cdrom", "/x.iso", "hdc", false, true),
            ("phy:vg0/lv,xvdb1,w", "vg0/lv", "xvdb1", true, false),
            ("file:/f.img,fda,w", "/f.img", "fda", true, false),
            ("vdev=sda,backendtype=qdisk,target=http://host/x", "http://host/x", "sda", true, false),
        ])
    func disks(text: String, target: String, vdev: String, writable: Bool, cdrom: Bool) throws {
        let disk = try DiskSpecification(text)
        #expect(disk.target == target)
        #expect(disk.vdev == vdev)
        #expect(disk.writable == writable)
        #expect(disk.cdrom == cdrom)
        #expect(VirtualDevice(vdev) != nil)
    }

    @Test(
        "wrong disk entries are refused",
        arguments: [
            "file:/x", "nosuch:/x,hda,w", "format=foo,vdev=hda,target=/x", "/x,raw,hda,q", "/x,raw,hda,w,more",
            "file:/x,hda:tape,w", "vdev=hda", "foo=bar,vdev=hda,target=/x", "/x,hda", "",
        ])
    func wrongDisks(text: String) { #expect(throws: DiskError.self) { try DiskSpecification(text) } }

    @Test("names of virtual devices")
    func devices() {
        #expect(VirtualDevice("hdc") == VirtualDevice("hdc"))
        #expect(VirtualDevice("hdc")?.disk == 2)
        #expect(VirtualDevice("xvdaa3")?.disk == 26)
        #expect(VirtualDevice("xvdaa3")?.partition == 3)
        for name in ["notadev", "hd", "hdz", "hda64", "hda0", "HDA", "fdc", "hda-1", "", "xvda1x"] {
            #expect(VirtualDevice(name) == nil)
        }
    }

    @Test("each captured wrong config ends as on Xen")
    func captured() throws {
        let folder = fixtures.appendingPathComponent("create-errors")
        let table = try String(contentsOf: folder.appendingPathComponent("exit-codes.tsv"), encoding: .utf8)
        let stricter: Set = ["vcpus-zero.cfg", "vcpus-999.cfg", "vif-bad-mac.cfg"]
        let readable: Set = [
            "disk-missing-file.cfg", "disk-missing-phy.cfg", "disk-not-list.cfg", "duplicate-name-Domain-0.cfg",
            "kernel-missing.cfg", "ramdisk-missing.cfg", "too-much-memory.cfg", "vif-missing-bridge.cfg",
            "vif-unknown-key.cfg",
        ]
        for line in table.split(separator: "\n") where !line.hasPrefix("#") {
            let fields = line.split(separator: "\t")
            let (code, name) = (Int(fields[0]), String(fields[1]))
            let url = folder.appendingPathComponent(name)
            guard let data = try? Data(contentsOf: url) else {
                #expect(name == "nosuch.cfg")
                continue
            }
            let reading = DomainConfig.read(ConfigFile(data, source: name))
            let ours = reading.errors.isEmpty ? 0 : reading.errors.contains { $0.phase == .reading } ? 1 : 3
            if readable.contains(name) {
                #expect(ours == 0, "\(name): \(reading.errors)")
            } else {
                #expect(ours == (stricter.contains(name) ? 1 : code), "\(name): \(reading.errors)")
            }
        }
    }

    @Test("errors of all kinds come at once and in order")
    func together() {
        let reading = read(
            "type='hvm'\nmemory = 'abc'\nvcpus = 0\nuuid='x'\ndisk = ['file:/x']\nboot='x'\nacpi='maybe'\n)")
        #expect(reading.config == nil)
        #expect(reading.errors.map(\.position.line) == [2, 3, 4, 5, 6, 7, 8])
    }

    @Test("unknown keys and keys without effect give one warning each")
    func warnings() {
        let reading = read("type='hvm'\nname='a'\nmemroy=3\nmemory=64\nviridian=1\nusb=0\nfrobnicate=[1]\nsdl=0\n")
        #expect(reading.errors.isEmpty)
        #expect(
            reading.warnings.map(\.message) == [
                "unknown key `memroy' (is `memory' meant?)", "`viridian' has no effect yet", "unknown key `frobnicate'",
            ])
    }

    @Test("the old frame buffer list and the addresses of VNC")
    func display() throws {
        let reading = read(
            "type='hvm'\nname='a'\nmemory=64\nvfb=['type=vnc,vncdisplay=3,vnclisten=0.0.0.0']\nvncunused=0\nvideoram=20\n"
        )
        let display = try #require(reading.config?.display)
        #expect((display.vncListen, display.vncDisplay, display.vncUnused) == ("0.0.0.0", 3, false))
        #expect(display.videoMemory == 32)
        #expect(read("type='hvm'\nname='a'\nvnclisten='::1'").config?.display.vncListen == "::1")
        #expect(read("type='hvm'\nname='a'\nvnclisten='127.0.0.1:7'").config?.display.vncDisplay == 7)
    }

    @Test("the guest's clock: local time and offset add up")
    func clock() {
        #expect(read("type='hvm'\nname='a'\nlocaltime=1\nrtc_timeoffset=-60").config?.rtcOffset == 7140)
    }
}

@Suite("examples") struct ExampleTests {
    @Test("every example is a config without errors and without unknown keys")
    func examples() throws {
        let folder = fixtures.deletingLastPathComponent().deletingLastPathComponent().appendingPathComponent("examples")
        let names = try FileManager.default.contentsOfDirectory(atPath: folder.path).filter { $0.hasSuffix(".cfg") }
        #expect(names.count >= 4)
        for name in names {
            let data = try Data(contentsOf: folder.appendingPathComponent(name))
            let reading = DomainConfig.read(ConfigFile(data, source: name))
            #expect(reading.errors.isEmpty)
            #expect(reading.warnings.isEmpty, "\(reading.warnings)")
        }
    }
}
