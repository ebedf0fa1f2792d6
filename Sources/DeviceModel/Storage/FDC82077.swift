// The floppy disk controller of a PC with up to two drives.
// Source: Intel 82077AA datasheet 290166-007, §2 (registers), §5 (commands), §6 (status).
// Modelled: AT mode, DMA and non-DMA transfers. Not modelled: SCAN commands, deleted marks, mechanical delays.
// Quirk: a data rate that is not the medium's finds no address mark; BIOSes tell formats by that.
internal import Host
public import Images
public import Machine

public final class FDC82077: Device {
    static let dmaChannel = 2
    public let regions = [
        Region("fdc", .port, 0x3F0...0x3F5), Region("fdc direction", .port, 0x3F7...0x3F7),
    ]
    private let line: any Line
    private let dma: DMA8237
    private var stores: [(any BlockStore)?]

    // Book-keeping.
    private let buffer = TransferBuffer(bytes: FDC82077.State.bufferBytes)
    private var active = false
    private var epoch: UInt64 = 0

    public var state: State

    /// Drives A and B; each is there, perhaps with a disk, or not.
    public enum Fitting {
        case nothing
        case drive((any BlockStore)?)
    }

    public init(drives: (Fitting, Fitting), dma: DMA8237, line: any Line) {
        (self.dma, self.line) = (dma, line)
        let fittings = [drives.0, drives.1]
        stores = fittings.map { if case .drive(let store) = $0 { store } else { nil } }
        state = State(
            drives: fittings.map { fitting in
                guard case .drive(let store) = fitting else { return State.Drive(isThere: false) }
                return State.Drive(isThere: true, store: store)
            })
        dma.connect(Self.dmaChannel) { [weak self] in self?.dmaReady() }
    }

    /// What CMOS byte 10h says about a drive.
    public func driveType(_ index: Int) -> FloppyFormat.DriveType {
        guard state.drives.indices.contains(index), state.drives[index].isThere else { return .none }
        return state.drives[index].type
    }

    /// Puts another disk into a drive, or takes it out.
    public func changeMedium(_ index: Int, to store: (any BlockStore)?) -> Bool {
        guard state.drives.indices.contains(index), state.drives[index].isThere else { return false }
        abandon()
        if state.phase.isTransfer { state.endTransfer(st0: 0x40, st1: 0x01) }
        stores[index] = store
        state.drives[index].insert(store)
        settle()
        return true
    }

    public func read(_ access: Access) throws(BusFault) -> UInt64 {
        if access.region == 1 { return UInt64(state.direction) }
        let value = try state.read(access.offset)
        pump()
        return UInt64(value)
    }

    public func write(_ value: UInt64, _ access: Access) throws(BusFault) {
        let byte = UInt8(truncatingIfNeeded: value)
        if access.region == 1 {
            state.rate = byte & 3
            return
        }
        let interrupt = state.interrupt
        state.write(byte, access.offset)
        // A reset of a controller that already interrupts must make an edge.
        if interrupt, state.interrupt, state.hasReset { line.drive(false) }
        pump()
    }

    public func settle() {
        dma.request(Self.dmaChannel, state.wantsDMA)
        if active, !state.phase.isOnMedium { abandon() }
        if !active, state.phase.isOnMedium { start() }
        line.drive(state.interruptLevel)
    }

    // MARK: Media and DMA

    private func dmaReady() {
        guard state.wantsDMA else { return }
        pump()
        settle()
    }

    private func abandon() {
        guard active else { return }
        active = false
        epoch &+= 1
        for store in stores { store?.drain() }
    }

    /// Does what needs no waiting.
    private func pump() {
        if active, !state.phase.isOnMedium { abandon() }
        // Each turn moves a part of a track; 2 x 36 sectors end any command.
        for _ in 0..<256 where !active {
            switch state.phase {
            case .give where state.wantsDMA:
                let result = dma.send(state.pending, on: Self.dmaChannel)
                guard result.moved > 0 else { return }
                state.given(result.moved, terminalCount: result.terminalCount)
            case .take where state.wantsDMA:
                let result = dma.receive(state.missing, on: Self.dmaChannel)
                guard !result.bytes.isEmpty else { return }
                state.taken(result.bytes, terminalCount: result.terminalCount)
            case .fill:
                guard let store = stores[state.unit] else { return state.mediumFailed() }
                let range = buffer.part(0, state.runBytes)
                guard store.readNow(at: state.runOffset, into: [range]) else { return start() }
                state.filled(unsafe Array(range.bytes))
            case .store, .flush: return start()
            default: return
            }
        }
    }

    private func start() {
        guard let store = stores[state.unit] else { return state.mediumFailed() }
        active = true
        let epoch = self.epoch
        let ended: (Int32) -> Void = { [weak self] code in
            guard let self, self.epoch == epoch else { return }
            self.ended(code)
        }
        switch state.phase {
        case .fill: store.read(at: state.runOffset, into: [buffer.part(0, state.runBytes)], done: ended)
        case .store:
            unsafe buffer.range.bytes.copyBytes(from: state.data)
            store.write(at: state.runOffset, from: [buffer.part(0, state.data.count)], done: ended)
        default: store.flush(done: ended)
        }
    }

    private func ended(_ code: Int32) {
        active = false
        if code != 0 {
            state.mediumFailed()
        } else {
            switch state.phase {
            case .fill: state.filled(unsafe Array(buffer.part(0, state.runBytes).bytes))
            case .store: state.stored()
            case .flush: state.flushed()
            default: break
            }
        }
        pump()
        settle()
    }
}
