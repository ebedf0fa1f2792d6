/// All that a domain is made from, as the toolstack hands it to the domain's processes.
///
/// Wire form: JSON in `<domain directory>/config.json`. Field names are xl.cfg(5)'s where it has one.
public struct DomainConfig: Codable, Equatable, Sendable {
    public enum Kind: String, Codable, Sendable { case pv, pvh, hvm }
    /// What the domain's monitor does when the domain ends by itself (xl.cfg(5), "EVENT ACTIONS").
    public enum EventAction: String, Codable, Sendable, CaseIterable {
        case destroy
        case restart
        case renameRestart = "rename-restart"
        case preserve
        case coredumpDestroy = "coredump-destroy"
        case coredumpRestart = "coredump-restart"
        case softReset = "soft-reset"
    }
    public enum Engine: String, Codable, Sendable { case automatic, software, kvm }

    public var name: String
    public var uuid: String
    public var domid: Int
    public var kind: Kind
    /// MiB.
    public var memory: Int
    /// MiB.
    public var maxmem: Int
    /// vCPUs the domain has, `maxvcpus` in a config.
    public var vcpus: Int
    /// How many of them the guest starts with (`vcpus` in a config); nil: all.
    public var onlineVCPUs: Int?
    public var onPoweroff: EventAction = .destroy
    public var onReboot: EventAction = .restart
    public var onCrash: EventAction = .destroy
    public var onWatchdog: EventAction = .destroy
    /// Boot order: letters of a (floppy), c (disk), d (CD), n (network).
    public var boot = "cda"
    public var acpi = true
    public var apic = true
    public var hpet = true
    public var pae = true
    public var nx = true
    public var xenPlatformPCI = true
    /// Seconds added to UTC for the guest's RTC (`rtc_timeoffset`, `localtime`).
    public var rtcOffset = 0
    public var engine = Engine.automatic
    public var disks: [Disk] = []
    public var interfaces: [NetworkInterface] = []
    public var display = Display()
    /// Each entry is the target of one serial port: "pty", "file:PATH", "none".
    public var serial: [String] = []
    /// A PV display was asked for (`vfb`).
    public var frameBuffer: Bool?
    public var usbdevice: [String] = []
    /// Direct boot: paths and command line.
    public var kernel: String?
    public var ramdisk: String?
    public var commandLine: String?
    /// A program of the host that finds the kernel on the first disk, and what it is told.
    public var bootloader: String?
    public var bootloaderArguments: [String]?
    /// Directory of bios-256k.bin, vgabios-stdvga.bin (Debian: /usr/share/seabios).
    public var firmwareDirectory = "/usr/share/seabios"

    public struct Disk: Codable, Equatable, Sendable {
        public enum Format: String, Codable, Sendable { case raw, qcow2, empty }
        /// Absolute path of an image file or a block device; empty for an empty drive.
        public var target: String
        public var format: Format = .raw
        /// Virtual device, e.g. "hda", "hdc", "fda", "xvda", "sda".
        public var vdev: String
        public var readWrite: Bool
        public var cdrom: Bool
        public init(target: String, format: Format = .raw, vdev: String, readWrite: Bool, cdrom: Bool) {
            (self.target, self.format, self.vdev) = (target, format, vdev)
            (self.readWrite, self.cdrom) = (readWrite, cdrom)
        }
    }

    public struct Display: Codable, Equatable, Sendable {
        public enum Adapter: String, Codable, Sendable { case stdvga, cirrus, none }
        public var adapter = Adapter.stdvga
        /// MiB of video memory.
        public var videoMemory = 16
        public var vnc = true
        public var vncListen = "127.0.0.1"
        public var vncPassword = ""
        /// Port less 5900.
        public var vncDisplay = 0
        /// Take the first free port from `vncDisplay` on.
        public var vncUnused = true
        public init() {}
    }

    public init(name: String, uuid: String, domid: Int, kind: Kind, memory: Int, vcpus: Int) {
        (self.name, self.uuid, self.domid, self.kind) = (name, uuid, domid, kind)
        (self.memory, self.maxmem, self.vcpus) = (memory, memory, vcpus)
    }
}
