// Disks, network interfaces, display and serial ports of a config.
// Source: xl-disk-configuration(5), xl-network-configuration(5), xl.cfg(5) "Guest VGA" and "vfb".
// Modelled: disks, interfaces, VNC, serial ports. Not modelled: SDL, SPICE.
// Quirks: xl finds a wrong virtual device only while creating, hence exit code 3.

internal import Foundation

extension ConfigReader {
    mutating func readDisks(_ config: inout DomainConfig) {
        var taken: Set<String> = []
        for (text, position) in list("disk") where !Substring(text).trimmed.isEmpty {
            do throws(DiskError) {
                let disk = try DiskSpecification(text)
                guard let device = VirtualDevice(disk.vdev) else {
                    fail(position, "`\(disk.vdev)' is no virtual device: hda, sda and xvda are some", phase: .creating)
                    continue
                }
                if !taken.insert("\(device.bus)\(device.disk).\(device.partition)").inserted {
                    fail(position, "two disks are \(disk.vdev)", phase: .creating)
                }
                for name in disk.ignored { warn(position, "disk parameter `\(name)' has no effect yet") }
                config.disks.append(checked(disk, at: position))
            } catch {
                fail(position, error.message)
            }
        }
    }

    private mutating func checked(_ disk: DiskSpecification, at position: ConfigPosition) -> DomainConfig.Disk {
        var format = DomainConfig.Disk.Format.raw
        switch disk.format {
        case .empty: format = .empty
        case .qcow2: format = .qcow2
        case .raw, nil: break
        case .qcow, .vhd, .qed:
            fail(position, "disk format \(disk.format?.rawValue ?? "") is not supported yet", phase: .creating)
        }
        return DomainConfig.Disk(
            target: disk.target.isEmpty ? "" : Self.absolute(disk.target, under: disk.physical ? "/dev" : nil),
            format: format, vdev: disk.vdev, readWrite: disk.writable, cdrom: disk.cdrom)
    }

    /// `path` from the root; a relative one is taken from `directory`, else from where xl runs.
    private static func absolute(_ path: String, under directory: String?) -> String {
        if path.hasPrefix("/") { return path }
        return (directory ?? FileManager.default.currentDirectoryPath) + "/" + path
    }

    mutating func readInterfaces(_ config: inout DomainConfig) {
        for (text, position) in list("vif") {
            do throws(DiskError) {
                let specification = try NetworkSpecification(text)
                for name in specification.unknown { warn(position, "unknown parameter `\(name)' in `vif'") }
                for name in specification.ignored { warn(position, "interface parameter `\(name)' has no effect yet") }
                let interface = try NetworkInterface(specification, number: interfaces.count, uuid: config.uuid)
                if config.interfaces.contains(where: { $0.number == interface.number }) {
                    fail(position, "two interfaces have the number \(interface.number)")
                }
                if config.kind == .hvm, let model = interface.model, NetworkInterface.Model(rawValue: model) == nil {
                    warn(position, "there is no network card \(model) yet: the domain gets e1000")
                }
                config.interfaces.append(interface)
                interfaces.append(specification)
            } catch {
                fail(position, error.message)
            }
        }
        let emulated = config.interfaces.filter { config.kind == .hvm && !$0.isParavirtualOnly }
        if emulated.count > NetworkInterface.mostEmulated, let setting = file.setting("vif") {
            fail(setting.position, "a domain has \(NetworkInterface.mostEmulated) emulated network cards at most")
        }
    }

    mutating func readDisplay(_ config: inout DomainConfig) {
        if let (text, position) = text("vga") {
            switch text {
            case "stdvga": break
            case "none": config.display.adapter = .none
            case "cirrus", "qxl", "xenvga":
                warn(position, "vga=\"\(text)\" is not supported yet: the domain gets stdvga")
            default: fail(position, "there is no display adapter \"\(text)\": stdvga and none are known")
            }
        }
        _ = flag("stdvga")
        if let size = number("videoram", in: 1...256), let item = file["videoram"] {
            let rounded = max(16, size < 2 ? 2 : 1 << (Int.bitWidth - (size - 1).leadingZeroBitCount))
            if size < 16 { warn(item.position, "`videoram' of stdvga is 16 MiB at least") }
            config.display.videoMemory = rounded
        }
        if flag("nographic") == true {
            config.display.adapter = .none
            config.display.vnc = false
        }
        readFrameBuffer(&config)
        if let value = flag("vnc") { config.display.vnc = value }
        if let (text, position) = text("vnclisten") { setListen(text, &config.display, at: position) }
        if let (text, position) = text("vncpasswd") { setPassword(text, &config.display, at: position) }
        if let value = number("vncdisplay", in: 0...59_635) { config.display.vncDisplay = value }
        if let value = flag("vncunused") { config.display.vncUnused = value }
    }

    /// `vfb = ['vnc=1,vnclisten=...']`: how VNC was asked for in old configs of HVM domains too.
    private mutating func readFrameBuffer(_ config: inout DomainConfig) {
        let entries = list("vfb")
        if !entries.isEmpty { config.frameBuffer = true }
        for (text, position) in entries {
            for parameter in text.split(separator: ",").map(\.trimmed) where !parameter.isEmpty {
                let parts = parameter.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
                let value = parts.count == 2 ? String(parts[1].trimmed) : ""
                let number = Self.number(value)
                switch parts[0].trimmed {
                case "type" where value == "vnc": config.display.vnc = true
                case "vnc": config.display.vnc = number != 0
                case "vnclisten": setListen(value, &config.display, at: position)
                case "vncpasswd": setPassword(value, &config.display, at: position)
                case "vncdisplay" where number.map((0...59_635).contains) == true:
                    config.display.vncDisplay = number ?? 0
                case "vncunused": config.display.vncUnused = number != 0
                case "type", "sdl", "opengl", "display", "xauthority", "keymap", "vncviewer":
                    if !["0", ""].contains(value) {
                        warn(position, "`\(parts[0])' in `vfb' has no effect yet")
                    }
                case "vncdisplay": fail(position, "`vncdisplay' in `vfb' should be a number and is \"\(value)\"")
                default: warn(position, "unknown parameter `\(parts[0])' in `vfb'")
                }
            }
        }
    }

    /// ADDRESS or ADDRESS:DISPLAY; empty means the default.
    private mutating func setListen(_ text: String, _ display: inout DomainConfig.Display, at position: ConfigPosition)
    {
        guard !text.isEmpty else { return }
        let parts = text.split(separator: ":", omittingEmptySubsequences: false)
        guard parts.count == 2 else {
            display.vncListen = text
            return
        }
        guard let number = Self.number(String(parts[1])), (0...59_635).contains(number) else {
            return fail(position, "`vnclisten' is ADDRESS or ADDRESS:DISPLAY and not \"\(text)\"")
        }
        if !parts[0].isEmpty { display.vncListen = String(parts[0]) }
        display.vncDisplay = number
    }

    private mutating func setPassword(
        _ text: String, _ display: inout DomainConfig.Display, at position: ConfigPosition
    ) {
        if text.utf8.count > 8 { warn(position, "VNC uses the first 8 characters of a password only") }
        display.vncPassword = text
    }

    mutating func readSerial(_ config: inout DomainConfig) {
        for (text, position) in list("serial", strictly: false) where !text.isEmpty {
            if text == "pty" || text == "none" || (text.hasPrefix("file:") && text.count > 5) {
                config.serial.append(text)
            } else if text == "null" {
                config.serial.append("none")
            } else {
                warn(position, "serial=\"\(text)\" has no effect yet: pty, file:PATH and none have")
                config.serial.append("none")
            }
        }
        if config.serial.count > 4, let item = file["serial"] {
            fail(item.position, "a domain has four serial ports at most")
        }
        config.usbdevice = list("usbdevice", strictly: false).map(\.text).filter { !$0.isEmpty }
        if !config.usbdevice.isEmpty, let setting = file.setting("usbdevice") {
            warn(setting.position, "`usbdevice' has no effect yet: domains have no USB controller")
        }
    }
}
