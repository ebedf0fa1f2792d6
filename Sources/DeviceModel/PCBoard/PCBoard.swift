// The PC: which chip sits where.
// Source: Intel 440FX/PIIX3 design guide for the topology; PCI listing as an HVM domain under Xen 4.17 shows it.
// Modelled: everything outside the hypervisor (which has LAPIC, IOAPIC, 8259s, 8254, HPET, PM timer, CF8 latch).
// Quirks: PIIX4's power management stands beside PIIX3, as it has on every such board in software.

public import Display
public import DomainConfig
internal import Firmware
internal import Host
internal import Images
public import Input
public import Ioreq
public import Machine
public import PCI
public import Storage

/// What the board needs from the process around it.
public struct BoardOutputs {
    /// A byte for bios.log.
    public var log: (UInt8) -> Void = { _ in }
    /// A byte that COM1 sends.
    public var serial: (UInt8) -> Void = { _ in }
    public init() {}
}

/// Contents of the ROMs that cards carry.
public struct BoardROMs: Sendable {
    /// Empty for none.
    public var video: [UInt8]
    public init(video: [UInt8] = []) { self.video = video }
}

/// A domain's PC hardware, on the thread that made it.
public final class PCBoard {
    public let board = Board()
    public let pci = PCIBus()
    public let memory: GuestMemory
    public let uart: UART16550
    public let power: PIIX4Power
    public let keyboard: I8042
    /// nil with `vga = "none"`.
    public let vga: VGA?
    public let floppies: FDC82077
    private let dma: DMA8237
    /// Primary and secondary.
    public private(set) var channels: [IDEChannel] = []
    /// Removes each emulated network card for good, when PV drivers ask for that.
    var networkCards: [() -> Void] = []
    /// Network cards on ISA.
    var isaCards = 0
    /// Told after emulated disks were taken away: their images are free.
    public var onUnpluggedDisks: () -> Void = {}
    /// Cards get the PCI devices from 2 on, in the order in which they are plugged in.
    private var nextDevice = 2
    let lines: InterruptLines
    let config: DomainConfig
    let pages: IoreqPages
    private let a20: A20Gate
    private let initialise: Wire
    private let ram: GuestRAM
    private let dispatch: Dispatch
    private let rtc: RTC146818
    private let router: InterruptRouter
    /// How long a drive counts as in use: the host's disk takes less, and so does a guest from one command to the next.
    private static let hotNanoseconds: UInt64 = 200_000
    private var (lastActivity, hotSince, isHot): (UInt64, UInt64, Bool) = (0, 0, false)

    /// - Parameters:
    ///   - video: video memory, shared with the hypervisor; a power of two.
    ///   - drives: what is in or on the cables.
    ///   - time: seconds since 1970 at guest time zero.
    @unsafe public init(
        _ config: DomainConfig, ram: GuestRAM, pages: IoreqPages, video: UnsafeMutableRawBufferPointer,
        roms: BoardROMs, drives: Drives, time: Int64, outputs: BoardOutputs
    ) {
        (self.config, self.pages, self.ram) = (config, pages, ram)
        memory = GuestMemory(ram, pages)
        lines = InterruptLines(pages, memory)
        dispatch = Dispatch(board, pci, memory)
        router = InterruptRouter(isa: lines.isa)
        dma = DMA8237(memory: memory)
        let floppies = FDC82077(drives: (drives.floppies[0], drives.floppies[1]), dma: dma, line: lines.input(6))
        self.floppies = floppies
        let cmos = CMOSContents(
            ram: ram.size, lowRAM: ram.lowSize, vcpus: config.vcpus, boot: config.boot,
            floppies: (0...1).map { floppies.driveType($0).rawValue }, disks: drives.largeDisks)
        rtc = RTC146818(irq: lines.input(8), time: time + Int64(config.rtcOffset), contents: cmos.bytes)
        uart = UART16550(irq: lines.input(4), transmit: outputs.serial)
        power = PIIX4Power(sci: lines.input(9)) { pages.send(.powerOff) }
        a20 = A20Gate(Wire { pages.send(.a20($0)) })
        initialise = Wire { if $0 { pages.send(.initialise) } }
        keyboard = I8042(
            keyboardIRQ: lines.input(1), mouseIRQ: lines.input(12), a20: a20.keyboardController,
            resetCPU: initialise)
        vga = config.display.adapter == .none ? nil : unsafe VGA(memory: video)
        board.attach("dma", dma)
        board.attach("fdc", floppies)
        board.attach("rtc", rtc)
        uart.show = { pages.show($0) }
        board.attach("com1", uart)
        board.attach("debug", DebugPorts(log: outputs.log))
        board.attach("fw-cfg", FirmwareConfig(FirmwareItems(Self.firmware(config, ram)), memory: memory))
        board.attach("reset", ResetControl { pages.send($0 == .powerOn ? .reset : .initialise) })
        plugBridges()
        attachInput()
        channels = plugIDE(drives.ide)
        if config.xenPlatformPCI {
            plugPlatform { line in for byte in Array("xen platform: \(line)\n".utf8) { outputs.log(byte) } }
        }
        if let vga { plug(vga, roms) }
        board.reset(.powerOn)
    }

    /// 00:00.0, 00:01.0, 00:01.3, and where interrupt pins go.
    private func plugBridges() {
        pci.interrupt = { [lines, router] device, pin, high in
            router.drive(device: device, pin: pin, high)
            lines.pci(device: device, pin: pin).drive(high)
        }
        let host = I440FX.function(on: board, memory: memory) { [pages] segment, shadow in
            pages.send(.shadow(segment: segment, read: shadow.read, write: shadow.write))
        }
        pci.attach("host-bridge", host, device: 0, on: board)
        pci.attach(
            "isa-bridge", PIIX3.isaBridge(on: board, memory: memory, router: router), device: 1, on: board)
        let slot = board.attachUnmapped("power", power)
        for region in [PIIX4Power.RegionIndex.generalEvents, PIIX4Power.RegionIndex.apm] {
            board.ports.map(slot, region: region, at: power.regions[region].range)
        }
        let function = PIIX4Power.function(slot, on: board, memory: memory)
        pci.attach("power-function", function, device: 1, function: 3, on: board)
    }

    func takeDevice() -> Int {
        defer { nextDevice += 1 }
        return nextDevice
    }

    /// Keyboard, mouse, and the ways to A20 and to the CPU's reset that PCs have two of each.
    private func attachInput() {
        board.attach("8042", keyboard)
        board.attach("port92", Port92(a20: a20.fast, resetCPU: initialise))
    }

    /// Guest time, as the hypervisor counts it; zero before it has started counting.
    public var now: Instant {
        pages.clockOffset == 0 ? .zero : Instant(nanoseconds: pages.guestNanoseconds)
    }

    /// Carries out one request of a vCPU.
    public func handle(_ request: Request) -> UInt64 { dispatch.handle(request, at: now) }

    /// Has the drives take what their media have done. Whether one was in use so short a time ago that its medium, or
    /// its guest, will want more before a sleeping process were awake.
    public func lookAtDrives() -> Bool {
        for channel in channels { channel.look() }
        let activity = channels.reduce(0) { $0 &+ $1.activity }
        guard activity != lastActivity || isHot else { return false }
        let now = monotonicNanoseconds()
        if activity != lastActivity { (lastActivity, hotSince) = (activity, now) }
        isHot = now &- hotSince < Self.hotNanoseconds
        return isHot
    }

    /// Lets guest time pass for the chips that wait for it.
    public func advance() {
        board.advance(to: now)
        memory.flush()
    }

    /// When `advance` is wanted, in guest time.
    public var deadline: Instant? { board.deadline }
}

/// What firmware is told, from the domain's configuration.
extension PCBoard {
    private static func firmware(_ config: DomainConfig, _ ram: GuestRAM) -> FirmwareMachine {
        var machine = FirmwareMachine(
            ram: ram.size, lowRAM: ram.lowSize, vcpus: config.vcpus, uuid: uuidBytes(config.uuid),
            boot: bootOrder(config))
        (machine.hasACPI, machine.hasAPIC, machine.hasHPET) = (config.acpi, config.apic, config.hpet)
        return machine
    }

    /// The devices that `boot`'s letters mean, in its order: a floppies, c disks, d CDs, n network cards.
    static func bootOrder(_ config: DomainConfig) -> [BootDevice] {
        config.boot.flatMap { letter -> [BootDevice] in
            // Behind Xen's platform device and VGA.
            let first = 2 + (config.xenPlatformPCI ? 1 : 0) + (config.display.adapter == .none ? 0 : 1)
            if letter == "n" {
                let cards = config.emulatedInterfaces.filter { $0.card != .ne2000ISA }
                return cards.indices.map { .network(device: first + $0) }
            }
            return config.disks.compactMap { disk in
                switch (letter, DrivePlace(disk.vdev)) {
                case ("a", .floppy(let drive)): .floppy(drive: drive)
                case ("c", .ide(let channel, let unit)) where !disk.cdrom: .ide(channel: channel, unit: unit)
                case ("d", .ide(let channel, let unit)) where disk.cdrom: .ide(channel: channel, unit: unit)
                default: nil
                }
            }
        }
    }

    /// The 16 bytes of a UUID as they are printed; zeros for what is none.
    static func uuidBytes(_ text: String) -> [UInt8] {
        let digits = text.compactMap(\.hexDigitValue)
        guard digits.count == 32 else { return Array(repeating: 0, count: 16) }
        return stride(from: 0, to: 32, by: 2).map { UInt8(digits[$0] << 4 | digits[$0 + 1]) }
    }
}

/// Where a virtual device name puts a drive on this board.
public enum DrivePlace: Equatable, Sendable {
    case ide(channel: Int, unit: Int)
    case floppy(drive: Int)

    /// "hda" to "hdd", "xvda" to "xvdd" and "sda" to "sdd" (an HVM domain sees all of them as IDE), "fda", "fdb".
    public init?(_ vdev: String) {
        guard let letter = vdev.last?.asciiValue else { return nil }
        let index = Int(letter) - 0x61
        switch vdev.dropLast() {
        case "hd" where 0..<4 ~= index, "xvd" where 0..<4 ~= index, "sd" where 0..<4 ~= index:
            self = .ide(channel: index / 2, unit: index % 2)
        case "fd" where 0..<2 ~= index: self = .floppy(drive: index)
        default: return nil
        }
    }

    var isFloppy: Bool {
        if case .floppy = self { return true }
        return false
    }
    /// Channel * 2 + unit.
    var idePosition: Int? {
        if case .ide(let channel, let unit) = self { return channel * 2 + unit }
        return nil
    }
}
