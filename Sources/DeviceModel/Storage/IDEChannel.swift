// An IDE channel: the ports of one cable, its interrupt, and the way between its drives' media and the guest.
// Source: ATA/ATAPI-6 §6, §9; Programming Interface for Bus Master IDE Controller, rev. 1.0.
// Modelled: command and control block, bus-master half (mapped by `PIIX3IDE`). Not modelled: timing.
// Quirk: data the host has in memory is there before the guest's access ends; its interrupt then comes at once.
internal import Host
public import Images
public import Machine

public final class IDEChannel: StringDevice {
    public static let commandBlock = 0
    public static let controlBlock = 1
    public let regions: [Region]

    private let line: any Line
    let dma: any DMA
    var stores: [(any BlockStore)?]

    // Book-keeping: the request the state wants and a store works on.
    let buffer = TransferBuffer(bytes: IDEDrive.bufferBytes)
    var active: Request?
    /// Counts abandoned requests, whose ends are not heard.
    var epoch: UInt64 = 0
    /// Changes whenever a request is handed to a store or comes back: whether anything happens here.
    public internal(set) var activity: UInt64 = 0
    /// Told, by `settle`, of every change and before the interrupt line: what reads give that change nothing, or nil
    /// while a medium works and the registers may change by themselves.
    public var show: (RestingRegisters?) -> Void = { _ in }

    public var state: State

    /// What is plugged into one position of the cable.
    public enum Fitting {
        case nothing
        case disk(any BlockStore)
        /// A drive, perhaps empty.
        case cdrom((any BlockStore)?)
    }

    /// A channel at `ports` (8 of them) and `control`: 0x1F0 and 0x3F6, or 0x170 and 0x376.
    public init(
        at ports: UInt64 = 0x1F0, control: UInt64 = 0x3F6, drives: (Fitting, Fitting), line: any Line, dma: any DMA
    ) {
        regions = [
            Region("ide command", .port, ports...(ports + 7), widths: [.byte, .word, .long]),
            Region("ide control", .port, control...control),
        ]
        (self.line, self.dma) = (line, dma)
        let fittings = [drives.0, drives.1]
        let base = ports == 0x1F0 ? 0 : 2
        stores = fittings.map { fitting in
            switch fitting {
            case .nothing: return nil
            case .disk(let store): return store
            case .cdrom(let store): return store
            }
        }
        state = State(
            drives: fittings.enumerated().map { index, fitting in
                IDEDrive(fitting, serial: "AP0000\(base + index + 1)")
            })
    }

    public func read(_ access: Access) throws(BusFault) -> UInt64 {
        if access.region == Self.controlBlock {
            return state.drive.kind == .none ? 0 : UInt64(state.drive.status)
        }
        if access.offset == 0 {
            let value = state.drive.readData(bytes: access.width.rawValue) & access.width.ones
            pump()
            return value
        }
        var value: UInt64 = 0
        for index in 0..<UInt64(access.width.rawValue) {
            value |= UInt64(readRegister(access.offset &+ index)) << (index * 8)
        }
        return value
    }

    private func readRegister(_ offset: UInt64) -> UInt8 {
        let value = state.readRegister(offset)
        if offset == 7 {
            state.drive.interrupt = false
            state.updateInterrupt()
        }
        return value
    }

    public func write(_ value: UInt64, _ access: Access) throws(BusFault) {
        if access.region == Self.controlBlock {
            if state.writeControl(UInt8(truncatingIfNeeded: value)) { abandon() }
        } else if access.offset == 0 {
            state.drive.writeData(value, bytes: access.width.rawValue)
        } else {
            for index in 0..<UInt64(access.width.rawValue) {
                writeRegister(UInt8(truncatingIfNeeded: value >> (index * 8)), access.offset &+ index)
            }
        }
        pump()
    }

    private func writeRegister(_ value: UInt8, _ offset: UInt64) {
        guard offset == 7 else { return state.writeRegister(value, offset) }
        guard state.accepts(value) else { return }
        if active?.drive == state.selected { abandon() }
        // An interrupt still pending is taken back first, so that the next one is an edge.
        state.drive.interrupt = false
        state.updateInterrupt()
        settle()
        state.execute(value)
    }

    // MARK: String I/O

    public func read(_ access: Access, into bytes: UnsafeMutableRawBufferPointer) {
        var done = 0
        if access.region == Self.commandBlock, access.offset == 0 {
            while done < bytes.count, state.drive.phase == .dataIn {
                let part = unsafe UnsafeMutableRawBufferPointer(rebasing: bytes[done...])
                done += unsafe state.drive.readData(into: part)
                if state.drive.phase != .dataIn { pump() }
            }
        }
        for index in done..<bytes.count { unsafe bytes[index] = 0xFF }
        if done > 0 { pump() }
        settle()
    }

    public func write(_ bytes: UnsafeRawBufferPointer, _ access: Access) {
        var done = 0
        guard access.region == Self.commandBlock, access.offset == 0 else { return }
        while done < bytes.count, state.drive.phase == .dataOut || state.drive.phase == .packet {
            done += unsafe state.drive.writeData(UnsafeRawBufferPointer(rebasing: bytes[done...]))
            if state.drive.phase != .dataOut { pump() }
        }
        pump()
        settle()
    }

    // MARK: Bus master and media

    /// Registers 0...7 of this channel's half of the bus-master block.
    func readBusMaster(_ offset: UInt64) -> UInt8 { state.busMaster.read(offset) }

    func writeBusMaster(_ value: UInt8, _ offset: UInt64) {
        let wasActive = state.busMaster.isActive
        state.busMaster.write(value, offset)
        if wasActive, !state.busMaster.isActive, active?.kind == .dma { abandon() }
        pump()
    }

    /// Puts another medium into the CD drive at `position`, or takes it out (nil). False if there is no such drive.
    public func changeMedium(_ position: Int, to store: (any BlockStore)?) -> Bool {
        guard state.drives.indices.contains(position), state.drives[position].kind == .cdrom else { return false }
        if active?.drive == position { abandon() }
        let wasBusy = state.drives[position].phase != .idle && state.drives[position].phase != .reset
        if wasBusy { state.drives[position].check(.mediumAbsent) }
        stores[position] = store
        state.drives[position].changeMedium(blocks: store.map { IDEDrive.discBlocks($0.size) } ?? 0)
        state.updateInterrupt()
        settle()
        return true
    }

    /// Takes the disk at `position` off the cable for good; what was under way on it has ended when this returns.
    /// CD drives stay.
    public func unplugDisk(_ position: Int) {
        guard state.drives.indices.contains(position), state.drives[position].kind == .disk else { return }
        if active?.drive == position { abandon() }
        stores[position]?.release()
        stores[position] = nil
        if state.drives[position].phase == .dma { state.busMaster.status &= ~1 }
        state.drives[position] = IDEDrive(.nothing, serial: "")
        state.updateInterrupt()
        settle()
    }

    /// Takes what a store has done meanwhile, without a system call.
    public func look() {
        guard let active, let store = stores[active.drive] else { return }
        _ = store.collect()
    }

    /// The medium the guest has in the CD drive at `position`; nil when it was ejected.
    public func medium(_ position: Int) -> (any BlockStore)? {
        guard state.drives.indices.contains(position), state.drives[position].hasMedium else { return nil }
        return stores[position]
    }

    public func settle() {
        if active != nil, active != state.request { abandon() }
        if active == nil, let request = state.request { start(request) }
        show(active == nil && state.request == nil ? RestingRegisters(state) : nil)
        line.drive(state.interrupt)
    }
}

extension IDEDrive {
    init(_ fitting: IDEChannel.Fitting, serial: String) {
        switch fitting {
        case .nothing: self.init(kind: .none, blocks: 0, readOnly: true, serial: serial)
        case .disk(let store):
            let sectors = min(store.size / 512, 1 << 47)
            self.init(kind: .disk, blocks: sectors, readOnly: store.isReadOnly, serial: serial)
        case .cdrom(let store):
            let blocks = store.map { Self.discBlocks($0.size) } ?? 0
            self.init(kind: .cdrom, blocks: blocks, readOnly: true, serial: serial)
        }
    }

    /// A disc's last block may be incomplete in the image; it is read with zeroes behind.
    static func discBlocks(_ bytes: UInt64) -> UInt64 { min(bytes / 2048 + (bytes % 2048 == 0 ? 0 : 1), 1 << 32) }

    /// Moves as much of the present block to `bytes` as there is; answers how much.
    mutating func readData(into bytes: UnsafeMutableRawBufferPointer) -> Int {
        let count = min(bytes.count, blockEnd - position)
        guard phase == .dataIn, count > 0 else { return 0 }
        unsafe buffer.withUnsafeBytes { source in
            unsafe bytes.copyMemory(from: UnsafeRawBufferPointer(rebasing: source[position..<(position + count)]))
        }
        position += count
        if position >= blockEnd { blockDone() }
        return count
    }

    /// Takes as much of `bytes` as the present block wants; answers how much.
    mutating func writeData(_ bytes: UnsafeRawBufferPointer) -> Int {
        let count = min(bytes.count, blockEnd - position)
        guard phase == .dataOut || phase == .packet, count > 0 else { return 0 }
        unsafe buffer.append(contentsOf: UnsafeRawBufferPointer(rebasing: bytes[..<count]))
        position += count
        if position >= blockEnd { blockDone() }
        return count
    }
}
