// A domain's config as libxl shows it: `xl list -l`, `xl -N create`.
// Source: output captured on Xen 4.17.7; key names and their order are those of libxl's types.
// Modelled: what our configs hold. Not modelled: keys without effect here (they are left out).
// Quirks: like libxl, it shows what the config says, not the defaults.

/// What `xl list -l` knows beside the config itself.
public struct LongForm {
    private let config: DomainConfig
    private let file: ConfigFile
    /// A running domain: scheduling parameters and what the toolstack filled in are shown.
    private let running: Bool

    public init(_ config: DomainConfig, from file: ConfigFile, running: Bool) {
        (self.config, self.file, self.running) = (config, file, running)
    }

    public var json: PrettyJSON {
        var members: [(String, PrettyJSON)] = [("c_info", creation), ("b_info", build)]
        if !config.disks.isEmpty {
            members.append(("disks", .array(config.disks.map { Self.disk($0, running: running) })))
        }
        let interfaces = DomainConfig.read(file).interfaces
        if !interfaces.isEmpty {
            members.append(("nics", .array(interfaces.enumerated().map { interface($0.element, number: $0.offset) })))
        }
        if config.kind != .hvm, file["vfb"] != nil {
            members.append(("vfbs", .array([frameBuffer])))
            members.append(("vkbs", .array([.object([("devid", .number(0))])])))
        }
        let actions: [(String, DomainConfig.EventAction)] = [
            ("on_poweroff", config.onPoweroff), ("on_reboot", config.onReboot), ("on_watchdog", config.onWatchdog),
            ("on_crash", config.onCrash),
        ]
        for (key, action) in actions where action != .destroy {
            members.append((key, .string(action.rawValue.replacing("-", with: "_"))))
        }
        members.append(("on_soft_reset", .string("soft_reset")))
        return .object(members)
    }

    private var creation: PrettyJSON {
        var members: [(String, PrettyJSON)] = [("type", .string(config.kind.rawValue)), ("name", .string(config.name))]
        if running { members.append(("domid", .number(0xFFFF_FFFF))) }
        members.append(("uuid", .string(config.uuid)))
        members.append(("run_hotplug_scripts", .flag(true)))
        return .object(members)
    }

    private var build: PrettyJSON {
        var members: [(String, PrettyJSON)] = []
        if file["vcpus"] != nil || file["maxvcpus"] != nil || running {
            members.append(("max_vcpus", .number(config.vcpus)))
            members.append(("avail_vcpus", .array((0..<(config.onlineVCPUs ?? config.vcpus)).map { .number($0) })))
        }
        members.append(("max_memkb", .number(config.maxmem * 1024)))
        members.append(("target_memkb", .number(config.memory * 1024)))
        if running {
            let video = config.kind == .hvm ? config.display.videoMemory * 1024 : 0
            members.append(("video_memkb", .number(video)))
        }
        if config.rtcOffset != 0, file["rtc_timeoffset"] != nil {
            members.append(("rtc_timeoffset", .number(config.rtcOffset)))
        }
        if let value = flag("localtime") { members.append(("localtime", value)) }
        if file["device_model_version"] != nil { members.append(("device_model_version", .string("qemu_xen"))) }
        members.append(("sched_params", .object(running ? Self.scheduling : [])))
        members.append(("claim_mode", .flag(true)))
        if let loader = config.bootloader { members.append(("bootloader", .string(loader))) }
        if let arguments = config.bootloaderArguments {
            members.append(("bootloader_args", .array(arguments.map { .string($0) })))
        }
        if let kernel = config.kernel { members.append(("kernel", .string(kernel))) }
        if let line = config.commandLine { members.append(("cmdline", .string(line))) }
        if let ramdisk = config.ramdisk { members.append(("ramdisk", .string(ramdisk))) }
        if let value = flag("acpi") { members.append(("acpi", value)) }
        if let value = flag("apic") { members.append(("apic", value)) }
        members.append(("type.\(config.kind.rawValue)", config.kind == .hvm ? machine : .object([])))
        members.append(("arch_arm", .object([])))
        members.append(("arch_x86", .object(running ? [("msr_relaxed", .flag(false))] : [])))
        return .object(members)
    }

    /// What every running domain has.
    public static var scheduling: [(key: String, value: PrettyJSON)] {
        [("sched", .string("credit2")), ("weight", .number(256)), ("cap", .number(0))]
    }

    private var machine: PrettyJSON {
        var members: [(String, PrettyJSON)] = []
        for key in ["pae", "nx", "hpet"] {
            if let value = flag(key) { members.append((key, value)) }
        }
        members.append(("vga", .object(text("vga").map { [("kind", $0)] } ?? [])))
        members.append(("vnc", vnc))
        members.append(("sdl", .object([])))
        members.append(("spice", .object([])))
        if config.serial.count == 1 {
            members.append(("serial", .string(config.serial[0])))
        } else if config.serial.count > 1 {
            members.append(("serial_list", .array(config.serial.map { .string($0) })))
        }
        if let boot = text("boot") { members.append(("boot", boot)) }
        if let usb = flag("usb") { members.append(("usb", usb)) }
        if config.usbdevice.count == 1 {
            members.append(("usbdevice", .string(config.usbdevice[0])))
        } else if config.usbdevice.count > 1 {
            members.append(("usbdevice_list", .array(config.usbdevice.map { .string($0) })))
        }
        if let value = flag("xen_platform_pci") { members.append(("xen_platform_pci", value)) }
        members.append(("rdm", .object([])))
        return .object(members)
    }

    private var vnc: PrettyJSON {
        var members: [(String, PrettyJSON)] = []
        if let value = flag("vnc") { members.append(("enable", value)) }
        if let value = text("vnclisten") { members.append(("listen", value)) }
        if let value = text("vncpasswd") { members.append(("passwd", value)) }
        if file["vncdisplay"] != nil { members.append(("display", .number(config.display.vncDisplay))) }
        if let value = flag("vncunused") { members.append(("findunused", value)) }
        return .object(members)
    }

    private var frameBuffer: PrettyJSON {
        let vnc: [(String, PrettyJSON)] = [
            ("listen", .string(config.display.vncListen)), ("findunused", .flag(config.display.vncUnused)),
        ]
        return .object([("devid", .number(0)), ("vnc", .object(vnc)), ("sdl", .object([]))])
    }

    public static func disk(_ disk: DomainConfig.Disk, running: Bool) -> PrettyJSON {
        var members: [(String, PrettyJSON)] = []
        if !disk.target.isEmpty { members.append(("pdev_path", .string(disk.target))) }
        members.append(("vdev", .string(disk.vdev)))
        members.append(("format", .string(disk.format.rawValue)))
        if disk.cdrom { members.append(("removable", .number(1))) }
        if disk.readWrite { members.append(("readwrite", .number(1))) }
        if disk.cdrom { members.append(("is_cdrom", .number(1))) }
        if running { members.append(("colo_restore_enable", .flag(false))) }
        return .object(members)
    }

    private func interface(_ interface: NetworkSpecification, number: Int) -> PrettyJSON {
        let order = ["mtu", "model", "mac", "ip", "bridge", "vifname", "script", "gatewaydev"]
        var members: [(String, PrettyJSON)] = [("devid", .number(number))]
        for name in order {
            guard let value = interface.parameters.last(where: { $0.name == name })?.value else { continue }
            members.append((name == "vifname" ? "ifname" : name, .string(value)))
        }
        if running { members.append(("nictype", .string(config.kind == .hvm ? "vif_ioemu" : "vif"))) }
        return .object(members)
    }

    /// A string the config sets.
    private func text(_ key: String) -> PrettyJSON? {
        guard case .atom(let text)? = file[key]?.value, !text.isEmpty else { return nil }
        return .string(text)
    }

    private func flag(_ key: String) -> PrettyJSON? {
        guard case .atom(let text)? = file[key]?.value else { return nil }
        return .flag(ConfigReader.number(text) != 0 && !["false", "no", "off"].contains(text.lowercased()))
    }
}
