// The PCI cards of the board: Xen's platform device, VGA and IDE.
// Source: see PCBoard.swift; PIIX3 datasheet 290550-002 §2.3.3 (IDETIM's decode enable).
// Modelled: where the cards' registers are decoded, and when.
// Quirks: the hypervisor maps video memory into the guest; it is on the bus for what it cannot map.

internal import Display
internal import Ioreq
internal import Machine
internal import PCI
internal import Storage

extension PCBoard {
    /// 00:02.0, with the ports at 0x10 by which drivers have emulated devices unplugged.
    func plugPlatform(log: @escaping (String) -> Void) {
        let chip = XenPlatform(unplug: { [unowned self] in unplug($0) }, log: log)
        let slot = board.attachUnmapped("xen-platform", chip)
        board.ports.map(
            slot, region: XenPlatform.RegionIndex.fixed, at: chip.regions[XenPlatform.RegionIndex.fixed].range)
        let function = XenPlatform.function(slot, on: board, memory: memory)
        pci.attach("xen-platform-function", function, device: takeDevice(), on: board)
        function.connect(XenPlatform.bars(slot))
    }

    /// Takes away what PV drivers are about to replace. Nothing of it is under way or open when this returns.
    func unplug(_ mask: UnplugMask) {
        if !mask.isDisjoint(with: [.disks, .auxiliaryDisks]) {
            for position in 0..<4 where position > 0 || mask.contains(.disks) {
                channels[position / 2].unplugDisk(position % 2)
            }
            onUnpluggedDisks()
        }
        if mask.contains(.networkCards) {
            for remove in networkCards { remove() }
            networkCards = []
        }
    }

    /// 00:02.0, or behind Xen's platform device.
    func plug(_ vga: VGA, _ roms: BoardROMs) {
        let slot = board.attachUnmapped("vga", vga)
        var identity = PCIIdentity(
            vendor: vga.identity.vendor, device: vga.identity.device, classCode: vga.identity.classCode,
            revision: vga.identity.revision)
        identity.writableCommand = [.io, .memory, .busMaster]
        identity.status = 0
        let function = PCIFunction(identity, on: board, memory: memory)
        var bars = vga.identity.bars.map { bar in
            BaseAddress(
                bar.index, bar.isPrefetchable ? .prefetchable : .memory, size: bar.bytes, target: (slot, bar.region),
                moved: bar.index == 0 ? { [pages] place in pages.send(.mapVideo(at: place)) } : { _ in })
        }
        if !roms.video.isEmpty {
            let rom = ROMImage(roms.video)
            bars.append(BaseAddress(0, .rom, size: rom.size, target: (board.attachUnmapped("vga-rom", rom), 0)))
        }
        let fixed = [VGA.RegionIndex.ports, VGA.RegionIndex.window, VGA.RegionIndex.dispi].map { (slot, $0) }
        pci.attach("vga-function", function, device: takeDevice(), on: board)
        function.connect(bars, fixed: fixed)
    }

    /// 00:01.1, with a channel on interrupt 14 and one on 15; returns the channels.
    func plugIDE(_ drives: [IDEChannel.Fitting]) -> [IDEChannel] {
        var follow: (ConfigSpace) -> Void = { _ in }
        let function = PIIX3.ide(on: board, memory: memory) { follow($0) }
        let primary = IDEChannel(drives: (drives[0], drives[1]), line: lines.input(14), dma: function.dma)
        let secondary = IDEChannel(
            at: 0x170, control: 0x376, drives: (drives[2], drives[3]), line: lines.input(15), dma: function.dma)
        let channels = [primary, secondary]
        let slots = zip(["ide0", "ide1"], channels).map { board.attachUnmapped($0, $1) }
        let card = PIIX3IDE(primary: primary, secondary: secondary)
        var decoded = [false, false]
        var ports: UInt16 = 0
        for (index, channel) in channels.enumerated() {
            channel.show = { [pages] registers in
                let resting = decoded[index] ? registers.map { RestingChannel($0, ports, index) } : nil
                pages.show(index, resting)
            }
        }
        follow = { [board] config in
            for register in PIIX3IDE.configuration { card.writeConfiguration(config.byte(register), register) }
            ports = config.command.contains(.io) ? config.word(0x20) & 0xFFF0 : 0
            for channel in 0...1 {
                defer { channels[channel].settle() }
                let decodes = config.command.contains(.io) && card.isDecoding(channel)
                guard decodes != decoded[channel] else { continue }
                decoded[channel] = decodes
                for (region, part) in channels[channel].regions.enumerated() {
                    if decodes {
                        board.ports.map(slots[channel], region: region, at: part.range)
                    } else {
                        board.ports.unmap(slots[channel], region: region)
                    }
                }
            }
        }
        pci.attach("ide-function", function, device: 1, function: 1, on: board)
        function.connect([PIIX3.busMasterBase(board.attachUnmapped("ide", card), region: 0)])
        return channels
    }
}

extension RestingChannel {
    /// `ports`: where the bus masters are, or 0.
    fileprivate init(_ registers: RestingRegisters, _ ports: UInt16, _ channel: Int) {
        self.init(
            status: registers.status, selected: UInt8(registers.selected), isInterrupting: registers.isInterrupting,
            busMasterCommand: registers.busMasterCommand, busMasterStatus: registers.busMasterStatus,
            busMaster: ports == 0 ? 0 : ports + UInt16(8 * channel))
    }
}
