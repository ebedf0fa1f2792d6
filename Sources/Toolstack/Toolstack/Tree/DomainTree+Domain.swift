// The nodes of a domain itself: /local/domain/N, /vm/UUID, /libxl/N.
// Source: `xenstore-ls -fp` captured on Xen 4.17.7 for PV and HVM domains.
// Modelled: all nodes libxl writes. Not modelled: what guests write there themselves.
// Quirks: videoram is part of `memory` and not of the balloon's target; a PV domain has 0 of it.

public import DomainConfig

extension DomainTree {
    /// Readable by the domain, written by Domain-0.
    static func readable(_ domid: Int) -> [String] { ["n0", "r\(domid)"] }
    /// The domain's own.
    static func owned(_ domid: Int) -> [String] { ["n\(domid)"] }

    mutating func addDomain(_ config: DomainConfig, _ places: Places) {
        let base = "/local/domain/\(config.domid)"
        let (readable, owned) = (Self.readable(config.domid), Self.owned(config.domid))
        put("/local", "", ["n0"])
        put(base, "", readable)
        put("\(base)/domid", "\(config.domid)", readable)
        put("\(base)/name", config.name, readable)
        put("\(base)/vm", "/vm/\(config.uuid)", readable)
        for name in ["attr", "data", "drivers", "error", "feature"] { put("\(base)/\(name)", "", owned) }
        put("\(base)/device", "", readable)
        put("\(base)/device/suspend", "", readable)
        put("\(base)/device/suspend/event-channel", "", owned)
        addControl(base, config)
        addMemory(base, config)
        for number in 0..<config.vcpus {
            let state = number < config.onlineVCPUs ?? config.vcpus ? "online" : "offline"
            put("\(base)/cpu/\(number)/availability", state, readable)
        }
        if let port = places.storePort { put("\(base)/store/port", "\(port)", readable) }
        if let frame = places.storeFrame { put("\(base)/store/ring-ref", "\(frame)", readable) }
        if let pid = places.deviceModel { put("\(base)/image/device-model-pid", "\(pid)", readable) }
        if let terminal = places.serialTerminal { put("\(base)/serial/0/tty", terminal, readable) }
        if config.kind == .hvm { addMachine(base, config) }
    }

    private mutating func addControl(_ base: String, _ config: DomainConfig) {
        let (readable, owned) = (Self.readable(config.domid), Self.owned(config.domid))
        put("\(base)/control", "", readable)
        var own = ["shutdown", "sysrq", "feature-poweroff", "feature-reboot", "feature-suspend"]
        if config.kind == .hvm { own += ["feature-s3", "feature-s4"] }
        for name in own { put("\(base)/control/\(name)", "", owned) }
        for name in ["multiprocessor-suspend", "xs_reset_watches"] {
            put("\(base)/control/platform-feature-\(name)", "1", readable)
        }
    }

    /// KiB that the guest's balloon aims at for `megabytes` of memory.
    public static func target(_ megabytes: Int, _ config: DomainConfig) -> Int {
        megabytes * 1024 - videoMemory(config)
    }

    /// KiB of `memory` that are no RAM of the guest.
    public static func videoMemory(_ config: DomainConfig) -> Int {
        config.kind == .hvm && config.display.adapter != .none ? config.display.videoMemory * 1024 : 0
    }

    private mutating func addMemory(_ base: String, _ config: DomainConfig) {
        let readable = Self.readable(config.domid)
        put("\(base)/memory/static-max", "\(config.maxmem * 1024)", readable)
        put("\(base)/memory/target", "\(Self.target(config.memory, config))", readable)
        put("\(base)/memory/videoram", "\(Self.videoMemory(config))", readable)
    }

    private mutating func addMachine(_ base: String, _ config: DomainConfig) {
        let readable = Self.readable(config.domid)
        put("\(base)/hvmloader/allow-memory-relocate", "0", readable)
        put("\(base)/hvmloader/bios", "seabios", readable)
        for (name, value) in [
            ("acpi", config.acpi ? "1" : "0"), ("acpi_s3", "1"), ("acpi_s4", "1"), ("acpi_laptop_slate", "0"),
            ("device-model", "qemu_xen"),
        ] { put("\(base)/platform/\(name)", value, readable) }
        put("/local/domain/0/device-model", "", ["n0"])
        put("/local/domain/0/device-model/\(config.domid)", "", ["n0"])
        put("/local/domain/0/device-model/\(config.domid)/state", "running", ["n0"])
    }

    mutating func addVirtualMachine(_ config: DomainConfig, _ places: Places) {
        let base = "/vm/\(config.uuid)"
        let readable = Self.readable(config.domid)
        put(base, "", readable)
        put("\(base)/name", config.name, readable)
        put("\(base)/uuid", config.uuid, readable)
        put("\(base)/start_time", Self.time(places.startTime), readable)
        switch config.kind {
        case .hvm:
            put("\(base)/image/ostype", "hvm", readable)
            put("\(base)/rtc/timeoffset", config.rtcOffset > 0 ? "\(config.rtcOffset)" : "", readable)
        case .pv:
            put("\(base)/image/ostype", "linux", readable)
            if let kernel = config.kernel { put("\(base)/image/kernel", kernel, readable) }
            if let ramdisk = config.ramdisk { put("\(base)/image/ramdisk", ramdisk, readable) }
            if let line = config.commandLine { put("\(base)/image/cmdline", line, readable) }
        case .pvh: break
        }
    }

    /// Seconds with two decimals.
    private static func time(_ seconds: Double) -> String {
        let hundredths = seconds.isFinite ? Int((seconds.magnitude * 100).rounded(.down)) : 0
        let rest = hundredths % 100
        return "\(hundredths / 100).\(rest < 10 ? "0" : "")\(rest)"
    }

    mutating func addLibrary(_ config: DomainConfig) {
        let base = "/libxl/\(config.domid)"
        put("\(base)/device", "", ["n0"])
        put("\(base)/dm-version", "qemu_xen", ["n0"])
        put("\(base)/type", config.kind.rawValue, ["n0"])
    }

    /// What the store says of the host.
    public static func host(memory kibibytes: Int, store: String) -> DomainTree {
        var tree = DomainTree()
        let nodes = [
            ("/local/domain/0/domid", "0"), ("/local/domain/0/name", "Domain-0"),
            ("/local/domain/0/memory/static-max", "\(kibibytes)"), ("/local/domain/0/memory/target", "\(kibibytes)"),
            ("/local/pool/0/name", "Pool-0"), ("/tool/xenstored", store), ("/libxl", ""), ("/vm", ""),
        ]
        for (path, value) in nodes { tree.put(path, value, ["n0"]) }
        return tree
    }
}
