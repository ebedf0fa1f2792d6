// The keys that every kind of domain has, and those of an HVM domain's machine.
// Source: xl.cfg(5), "GENERAL OPTIONS", "EVENT ACTIONS", "HVM OPTIONS".
// Modelled: types, names, memory, processors, events, firmware, clock, boot order.
// Quirks: a `kernel` named hvmloader is what guides of Xen 4.0 tell to write, and means our firmware.

internal import Foundation

extension ConfigReader {
    /// Whether something that is missing may be complained about: not after syntax errors, which may have eaten it.
    private var isWhole: Bool { file.errors.isEmpty }

    mutating func readKind() -> DomainConfig.Kind {
        if let (text, position) = text("type") {
            guard let kind = DomainConfig.Kind(rawValue: text) else {
                fail(position, "there is no domain type \"\(text)\": hvm, pv and pvh are known")
                return .hvm
            }
            return kind
        }
        if flag("pvh") == true { return .pvh }
        guard let (text, position) = text("builder") else { return .pv }
        switch text {
        case "hvm": return .hvm
        case "generic", "linux": return .pv
        default:
            fail(position, "there is no builder \"\(text)\": hvm and generic are known")
            return .hvm
        }
    }

    mutating func readName() -> String {
        guard let (text, position) = text("name") else {
            if isWhole && file["name"] == nil { fail(whole, "the domain has no name: set `name'") }
            return ""
        }
        if text.isEmpty { fail(position, "the domain's name is empty") }
        if text.contains("/") || text.unicodeScalars.contains(where: { $0.value < 0x20 || $0.value == 0x7F }) {
            fail(position, "the domain's name has a character that no name can have")
        }
        if !text.isEmpty && text.allSatisfy({ $0.isASCII && $0.isNumber }) {
            fail(position, "the domain's name is a number, and would be taken for a domain's id")
        }
        if text.utf8.count > 128 { fail(position, "the domain's name is longer than 128 bytes") }
        return text
    }

    mutating func readUUID() -> String {
        guard let (text, position) = text("uuid") else { return UUID().uuidString.lowercased() }
        let digits = text.filter { $0 != "-" }
        guard digits.count == 32, digits.allSatisfy({ $0.isASCII && $0.isHexDigit }) else {
            fail(position, "\"\(text)\" is no UUID (32 hexadecimal digits)")
            return text
        }
        let groups = [(0, 8), (8, 4), (12, 4), (16, 4), (20, 12)]
        return groups.map { digits.dropFirst($0.0).prefix($0.1).lowercased() }.joined(separator: "-")
    }

    mutating func readMemory() -> Int {
        if let megabytes = number("memory", in: 1...(1 << 24), phase: .creating) { return megabytes }
        guard file["memory"] == nil, isWhole else { return 128 }
        if let most = file["maxmem"], case .atom(let text) = most.value, let value = Self.number(text), value > 0 {
            return value
        }
        warn(whole, "`memory' is not set: the domain gets 128 MiB")
        return 128
    }

    mutating func readMaximumMemory(_ memory: Int) -> Int {
        guard let most = number("maxmem", in: 1...(1 << 24), phase: .creating) else { return memory }
        if most < memory, let item = file["maxmem"] {
            fail(item.position, "`maxmem' (\(most)) is less than `memory' (\(memory))", phase: .creating)
        }
        return most
    }

    /// The number of vCPUs, and how many of them are there at the start.
    mutating func readProcessors(_ kind: DomainConfig.Kind) -> (most: Int, online: Int?) {
        let limit = kind == .hvm ? 128 : 512
        let now = number("vcpus", in: 1...limit)
        guard let most = number("maxvcpus", in: 1...limit), let item = file["maxvcpus"] else { return (now ?? 1, nil) }
        if let now, most < now { fail(item.position, "`maxvcpus' (\(most)) is less than `vcpus' (\(now))") }
        return (most, now.map { min($0, most) })
    }

    mutating func readEvents(_ config: inout DomainConfig) {
        let keys: [(String, WritableKeyPath<DomainConfig, DomainConfig.EventAction>)] = [
            ("on_poweroff", \.onPoweroff), ("on_reboot", \.onReboot), ("on_crash", \.onCrash),
            ("on_watchdog", \.onWatchdog),
        ]
        for (key, path) in keys {
            if let action = action(key) { config[keyPath: path] = action }
        }
        _ = action("on_soft_reset")
    }

    private mutating func action(_ key: String) -> DomainConfig.EventAction? {
        guard let (text, position) = text(key) else { return nil }
        let known = DomainConfig.EventAction.allCases
        guard let action = known.first(where: { $0.rawValue == text.replacing("_", with: "-") }) else {
            let names = known.map(\.rawValue).joined(separator: ", ")
            fail(position, "`\(key)' cannot be \"\(text)\": \(names) are known")
            return nil
        }
        return action
    }

    mutating func readMachine(_ config: inout DomainConfig, utcOffset: Int) {
        let switches: [(String, WritableKeyPath<DomainConfig, Bool>)] = [
            ("acpi", \.acpi), ("apic", \.apic), ("hpet", \.hpet), ("pae", \.pae), ("nx", \.nx),
            ("xen_platform_pci", \.xenPlatformPCI),
        ]
        for (key, path) in switches {
            if let value = flag(key) { config[keyPath: path] = value }
        }
        if flag("localtime") == true { config.rtcOffset += utcOffset }
        if let offset = number("rtc_timeoffset", in: -(1 << 32)...(1 << 32)) { config.rtcOffset += offset }
        if let (text, position) = text("bios"), text != "seabios" {
            if ["rombios", "ovmf"].contains(text) {
                warn(position, "bios=\"\(text)\" is not supported yet: the domain starts with seabios")
            } else {
                fail(position, "there is no BIOS \"\(text)\": seabios is known")
            }
        }
        guard let (text, position) = text("engine") else { return }
        if let engine = DomainConfig.Engine(rawValue: text) {
            config.engine = engine
        } else {
            fail(position, "there is no engine \"\(text)\": automatic, software and kvm are known")
        }
    }

    mutating func readBoot(_ config: inout DomainConfig) {
        readKernel(&config)
        guard file["boot"] != nil else { return }
        let entries = list("boot", strictly: false)
        let order = entries.map(\.text).joined()
        for (text, position) in entries {
            if let wrong = text.first(where: { !"acdn".contains($0) }) {
                fail(position, "`\(wrong)' is no boot device: a (floppy), c (disk), d (CD) and n (network) are known")
                return
            }
        }
        if !order.isEmpty { config.boot = order }
    }

    /// `kernel`, `ramdisk`, and the command line in each of its spellings.
    private mutating func readKernel(_ config: inout DomainConfig) {
        var line = text("cmdline").map { [$0.text] } ?? []
        if line.isEmpty {
            if let (root, _) = text("root") { line.append("root=\(root)") }
            if let (extra, _) = text("extra") { line.append(extra) }
        } else if let other = file["root"] ?? file["extra"] {
            warn(other.position, "`root' and `extra' have no effect next to `cmdline'")
        }
        if let (kernel, _) = text("kernel"), !(config.kind == .hvm && Self.isLoader(kernel)) {
            config.kernel = kernel.isEmpty ? nil : kernel
        }
        if let (ramdisk, _) = text("ramdisk") { config.ramdisk = ramdisk.isEmpty ? nil : ramdisk }
        if !line.isEmpty { config.commandLine = line.joined(separator: " ") }
        if let (loader, _) = text("bootloader"), !loader.isEmpty { config.bootloader = loader }
        let arguments = list("bootloader_args", strictly: false).map(\.text)
        if !arguments.isEmpty { config.bootloaderArguments = arguments }
        guard config.kind != .hvm, isWhole else { return }
        if config.kernel == nil && file["bootloader"] == nil && file["kernel"] == nil {
            fail(whole, "a \(config.kind.rawValue) domain needs a `kernel' or a `bootloader' (is type='hvm' missing?)")
        }
    }

    private static func isLoader(_ path: String) -> Bool { path.split(separator: "/").last == "hvmloader" }

    mutating func readDeviceModel(_ kind: DomainConfig.Kind) {
        guard let (text, position) = text("device_model_version") else { return }
        switch text {
        case "qemu-xen": break
        case "qemu-xen-traditional":
            warn(position, "device_model_version='qemu-xen-traditional' is treated as 'qemu-xen'")
        default: fail(position, "there is no device_model_version \"\(text)\": qemu-xen is known")
        }
    }
}
