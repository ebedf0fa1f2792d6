// One entry of `disk = [...]`.
// Source: xl-disk-configuration(5).
// Modelled: positional and key=value parameters in any mix, `target=` up to the end, the deprecated prefixes
//     and `:cdrom` suffix, empty drives. Not modelled: COLO parameters, scripts (named as ignored).
// Quirks: behind a prefix there is no positional format ("file:/x.img,hda,w"), as in xl.

/// What a disk entry says, before it is checked against the host.
public struct DiskSpecification: Equatable, Sendable {
    public enum Format: String, Sendable { case raw, qcow, qcow2, vhd, qed, empty }
    public var target = ""
    public var format: Format?
    public var vdev = ""
    public var readWrite: Bool?
    public var cdrom = false
    public var backendType: String?
    /// The prefix `phy:` was used.
    public var physical = false
    /// Parameters that are known and without effect.
    public var ignored: [String] = []

    /// Whether the entry describes a drive that can be written.
    public var writable: Bool { !cdrom && readWrite ?? true }

    private var hadPrefix = false
    private var hadTarget = false

    public init(_ text: String) throws(DiskError) {
        var rest = Substring(text)
        while !rest.isEmpty {
            while rest.first?.isWhitespace == true { rest = rest.dropFirst() }
            if rest.hasPrefix("target=") {
                try setTarget(rest.dropFirst(7))
                break
            }
            if !hadTarget, try stripPrefix(&rest) { continue }
            let comma = rest.firstIndex(of: ",") ?? rest.endIndex
            let parameter = rest[..<comma].trimmed
            rest = comma < rest.endIndex ? rest[rest.index(after: comma)...] : ""
            try take(parameter)
        }
        try finish(text)
    }

    private mutating func finish(_ text: String) throws(DiskError) {
        guard !vdev.isEmpty else { throw DiskError("no virtual device (such as hda) in `\(text)'") }
        if target.isEmpty {
            guard cdrom else { throw DiskError("no target in `\(text)': only a CD drive can be empty") }
            format = .empty
        }
        guard cdrom, readWrite == true, format != .empty else { return }
        // As in xl, a CD is never written, whatever the entry says.
        readWrite = false
    }

    /// Removes one deprecated prefix ("file:", "tap:aio:" ...); false if there is none.
    private mutating func stripPrefix(_ rest: inout Substring) throws(DiskError) -> Bool {
        let comma = rest.firstIndex(of: ",") ?? rest.endIndex
        guard let colon = rest[..<comma].firstIndex(of: ":") else { return false }
        let name = rest[..<colon]
        guard let first = name.first, first.isASCII, first.isLowercase,
            name.allSatisfy({ $0.isASCII && ($0.isLowercase || $0.isNumber) })
        else { return false }
        switch name {
        case "raw", "qcow", "qcow2", "vhd", "qed": format = Format(rawValue: String(name))
        case "file", "tap", "tap2", "tapdisk", "aio", "ioemu": break
        case "phy": physical = true
        default: throw DiskError("unknown prefix `\(name):' in the disk's target")
        }
        hadPrefix = true
        rest = rest[rest.index(after: colon)...]
        return true
    }

    private mutating func take(_ parameter: Substring) throws(DiskError) {
        if let equals = parameter.firstIndex(of: "=") {
            let value = parameter[parameter.index(after: equals)...]
            return try takeNamed(parameter[..<equals].trimmed, value.trimmed)
        }
        switch parameter {
        case "cdrom": cdrom = true
        case "disk" where hadTarget: cdrom = false
        case "direct-io-safe", "discard", "no-discard": ignored.append(String(parameter))
        default: try takePositional(parameter)
        }
    }

    private mutating func takeNamed(_ name: Substring, _ value: Substring) throws(DiskError) {
        switch name {
        case "format": try setFormat(value)
        case "vdev": try setVirtualDevice(value)
        case "access": try setAccess(value)
        case "devtype": try setType(value)
        case "backendtype":
            guard ["phy", "tap", "qdisk", "standalone"].contains(value) else {
                throw DiskError("unknown backendtype `\(value)'")
            }
            backendType = String(value)
        case "backend", "script", "specification", "transport": ignored.append(String(name))
        default: throw DiskError("unknown disk parameter `\(name)'")
        }
    }

    /// target, format, vdev, access: in this order.
    private mutating func takePositional(_ parameter: Substring) throws(DiskError) {
        if !hadTarget {
            try setTarget(parameter)
        } else if format == nil && !hadPrefix {
            try setFormat(parameter)
        } else if vdev.isEmpty {
            try setVirtualDevice(parameter)
        } else if readWrite == nil {
            try setAccess(parameter)
        } else {
            throw DiskError("`\(parameter)' is one parameter too many")
        }
    }

    private mutating func setTarget(_ value: Substring) throws(DiskError) {
        guard !hadTarget else { throw DiskError("the target is given twice") }
        hadTarget = true
        target = String(value)
    }

    private mutating func setFormat(_ value: Substring) throws(DiskError) {
        guard !value.isEmpty else {
            format = .raw
            return
        }
        guard let known = Format(rawValue: String(value)) else {
            throw DiskError("unknown format `\(value)': raw, qcow, qcow2, vhd, qed and empty are known")
        }
        format = known
    }

    private mutating func setVirtualDevice(_ value: Substring) throws(DiskError) {
        guard vdev.isEmpty else { throw DiskError("the virtual device is given twice") }
        let parts = value.split(separator: ":", maxSplits: 1, omittingEmptySubsequences: false)
        vdev = parts.first.map(String.init) ?? ""
        if parts.count == 2 { try setType(parts[1]) }
    }

    private mutating func setType(_ value: Substring) throws(DiskError) {
        switch value {
        case "cdrom": cdrom = true
        case "disk": cdrom = false
        default: throw DiskError("unknown device type `\(value)': disk and cdrom are known")
        }
    }

    private mutating func setAccess(_ value: Substring) throws(DiskError) {
        switch value {
        case "r", "ro": readWrite = false
        case "w", "rw", "w!", "": readWrite = true
        default: throw DiskError("unknown access `\(value)': r, ro, w and rw are known")
        }
    }
}

/// Why a disk entry is refused.
public struct DiskError: Error, Equatable, Sendable {
    public var message: String
    public init(_ message: String) { self.message = message }
}

/// What a virtual device name stands for (xen-vbd-interface(7)).
public struct VirtualDevice: Equatable, Sendable {
    public enum Bus: String, Sendable { case xvd, hd, sd, fd }
    public var bus: Bus
    /// Number of the disk on its bus: hda is 0.
    public var disk: Int
    public var partition: Int

    /// nil for a name that no guest could have.
    public init?(_ name: String) {
        let letters = name.prefix { $0.isASCII && $0.isLowercase }
        guard let bus = [Bus.xvd, .hd, .sd, .fd].first(where: { letters.hasPrefix($0.rawValue) }) else { return nil }
        let unit = letters.dropFirst(bus.rawValue.count)
        guard (1...3).contains(unit.count) else { return nil }
        let number = unit.utf8.reduce(0) { $0 * 26 + Int($1 - UInt8(ascii: "a")) + 1 } - 1
        let digits = name.dropFirst(letters.count)
        guard digits.isEmpty || (digits.allSatisfy(\.isASCII) && digits.first != "0" && digits.first != "-") else {
            return nil
        }
        guard let part = digits.isEmpty ? 0 : Int(digits) else { return nil }
        let disks = [Bus.xvd: 1 << 20, .hd: 20, .sd: 256, .fd: 2][bus] ?? 0
        let parts = [Bus.xvd: 255, .hd: 63, .sd: 15, .fd: 0][bus] ?? 0
        guard number < disks, part <= parts else { return nil }
        (self.bus, self.disk, self.partition) = (bus, number, part)
    }
}

extension VirtualDevice {
    /// The number a guest knows the device by (xen-vbd-interface(7)): xvda is 51712, hda 768, hdc 5632.
    public var number: Int {
        switch bus {
        case .xvd where disk < 16 && partition < 16: 202 << 8 | disk << 4 | partition
        case .xvd: 1 << 28 | disk << 8 | partition
        case .sd: disk < 16 && partition < 16 ? 8 << 8 | disk << 4 | partition : 1 << 28 | disk << 8 | partition
        case .hd: (disk < 2 ? 3 : 22) << 8 | (disk & 1) << 6 | partition
        case .fd: 2 << 8 | disk
        }
    }
}

extension Substring {
    /// Without blanks at either end.
    var trimmed: Substring {
        var text = self
        while text.first?.isWhitespace == true { text = text.dropFirst() }
        while text.last?.isWhitespace == true { text = text.dropLast() }
        return text
    }
}
