// How a channel's requests are carried out: through its buffer for PIO, straight to guest memory for DMA.
// Source: Programming Interface for Bus Master IDE Controller, rev. 1.0 §1, §2.2 (meaning of active and interrupt).
// Modelled: everything a state can ask for. Not modelled: –
// Quirk: a region that is no RAM (a guest may name video memory) is served through the buffer.
internal import Host
internal import Images
internal import Machine

extension IDEChannel {
    /// Does at once what needs no waiting, and starts the next request that does.
    func pump() {
        while active == nil, let request = state.request {
            guard finishNow(request) else {
                start(request)
                break
            }
        }
        state.updateInterrupt()
    }

    /// Lets go of what is under way: its end changes nothing here, and guest memory is no longer touched.
    func abandon() {
        guard let request = active else { return }
        epoch &+= 1
        active = nil
        stores[request.drive]?.drain()
    }

    /// Starts `request`; its end comes as a call on the reactor's thread.
    func start(_ request: Request) {
        guard let store = stores[request.drive] else {
            active = nil
            return state.drives[request.drive].mediumFailed()
        }
        active = request
        activity &+= 1
        let drive = state.drives[request.drive]
        let epoch = self.epoch
        let ended: (Int32) -> Void = { [weak self] code in
            guard let self, self.epoch == epoch, self.active == request else { return }
            self.ended(request, code)
        }
        switch request.kind {
        case .fill: store.read(at: drive.transfer.offset, into: [buffer.part(0, drive.requestBytes)], done: ended)
        case .drain:
            unsafe buffer.range.bytes.copyBytes(from: drive.buffer)
            store.write(at: drive.transfer.offset, from: [buffer.part(0, drive.buffer.count)], done: ended)
        case .flush: store.flush(done: ended)
        case .dma: startDMA(request, store)
        }
    }

    private func ended(_ request: Request, _ code: Int32) {
        active = nil
        activity &+= 1
        complete(request, code)
        pump()
        settle()
    }

    private func complete(_ request: Request, _ code: Int32) {
        guard code == 0 else { return state.drives[request.drive].mediumFailed() }
        switch request.kind {
        case .fill:
            let bytes = state.drives[request.drive].requestBytes
            state.drives[request.drive].filled(unsafe Array(buffer.part(0, bytes).bytes))
        case .drain: state.drives[request.drive].drained()
        case .flush: state.drives[request.drive].finish()
        case .dma: break
        }
    }

    /// Tries to carry `request` out without waiting.
    private func finishNow(_ request: Request) -> Bool {
        let drive = state.drives[request.drive]
        switch request.kind {
        case .fill:
            guard let store = stores[request.drive] else { return false }
            guard store.readNow(at: drive.transfer.offset, into: [buffer.part(0, drive.requestBytes)]) else {
                return false
            }
            complete(request, 0)
            return true
        case .dma where !drive.buffer.isEmpty:
            moveBuffer(request.drive)
            return true
        case .dma: return moveCachedData(request.drive)
        default: return false
        }
    }

    // MARK: DMA

    /// A run of guest memory that one disk request fills or drains.
    private struct Run {
        var cursor: IDEBusMaster.Cursor
        var pieces: [(address: GuestAddress, bytes: Int)] = []
        var ranges: [HostRange] = []
        var bytes = 0
        /// The one piece is no RAM: the data goes through the buffer.
        var isIndirect = false
    }
    private static let mostPieces = 256
    private static let mostBytes = 1 << 20

    /// The next regions of the table. Empty: the table is at its end.
    private func nextRun(limit: UInt64) throws(DMAFault) -> Run {
        var run = Run(cursor: state.busMaster.cursor)
        let most = Int(min(limit, UInt64(Self.mostBytes)))
        while run.bytes < most, run.pieces.count < Self.mostPieces {
            var cursor = run.cursor
            guard let piece = try cursor.next(most - run.bytes, by: dma) else { break }
            do {
                let window = try unsafe dma.window(at: piece.address, bytes: piece.bytes)
                guard let base = window.baseAddress else { throw DMAFault(piece.address) }
                unsafe run.ranges.append(HostRange(base, piece.bytes))
            } catch {
                if run.bytes > 0 { break }
                run.isIndirect = true
                run.ranges = [buffer.part(0, piece.bytes)]
            }
            run.cursor = cursor
            run.pieces.append(piece)
            run.bytes += piece.bytes
            if run.isIndirect { break }
        }
        return run
    }

    /// The transfer cannot go on: a region outside memory, or bus mastering is off.
    private func faulted(_ index: Int) {
        state.busMaster.status = state.busMaster.status & ~1 | 2
        state.drives[index].mediumOrBusFailed()
    }

    /// Moves on behind what a run has moved.
    private func advance(_ index: Int, _ run: Run) {
        state.busMaster.cursor = run.cursor
        if run.cursor.isExhausted { state.busMaster.status &= ~1 }
        state.drives[index].moved(UInt64(run.bytes))
    }

    /// A reply that lies in the drive's buffer goes to the guest.
    private func moveBuffer(_ index: Int) {
        do {
            let left = state.drives[index].buffer.count - state.drives[index].position
            guard let piece = try state.busMaster.cursor.next(left, by: dma) else {
                state.busMaster.status &= ~1
                return
            }
            let position = state.drives[index].position
            try send(state.drives[index].buffer, position, piece)
            if state.busMaster.cursor.isExhausted { state.busMaster.status &= ~1 }
            state.drives[index].movedFromBuffer(piece.bytes)
        } catch { faulted(index) }
    }

    private func send(
        _ bytes: [UInt8], _ position: Int, _ piece: (address: GuestAddress, bytes: Int)
    ) throws(DMAFault) {
        do {
            try unsafe bytes.withUnsafeBytes { source in
                let part = unsafe UnsafeRawBufferPointer(rebasing: source[position..<(position + piece.bytes)])
                try unsafe dma.write(part, at: piece.address)
            }
        } catch let fault as DMAFault { throw fault } catch { throw DMAFault(piece.address) }
    }

    /// Reads from the host's cache into guest memory. False if the host would have to wait.
    private func moveCachedData(_ index: Int) -> Bool {
        let transfer = state.drives[index].transfer
        guard transfer.toGuest, let store = stores[index] else { return false }
        do {
            let run = try nextRun(limit: transfer.remaining)
            guard run.bytes > 0 else {
                state.busMaster.status &= ~1
                return true
            }
            guard store.readNow(at: transfer.offset, into: run.ranges) else { return false }
            try deliver(run)
            advance(index, run)
        } catch { faulted(index) }
        return true
    }

    /// Guest memory has been filled by the host; what came through the buffer is copied.
    private func deliver(_ run: Run) throws(DMAFault) {
        if run.isIndirect {
            guard let piece = run.pieces.first else { return }
            try unsafe dma.write(UnsafeRawBufferPointer(buffer.part(0, piece.bytes).bytes), at: piece.address)
        } else {
            for piece in run.pieces { dma.wrote(at: piece.address, bytes: piece.bytes) }
        }
    }

    private func startDMA(_ request: Request, _ store: any BlockStore) {
        let index = request.drive
        let transfer = state.drives[index].transfer
        do {
            let run = try nextRun(limit: transfer.remaining)
            guard run.bytes > 0 else {
                active = nil
                state.busMaster.status &= ~1
                return
            }
            if run.isIndirect, !transfer.toGuest, let piece = run.pieces.first {
                try unsafe dma.read(at: piece.address, into: buffer.part(0, piece.bytes).bytes)
            }
            let epoch = self.epoch
            let ended: (Int32) -> Void = { [weak self] code in
                guard let self, self.epoch == epoch, self.active == request else { return }
                self.endedDMA(index, run, code)
            }
            if transfer.toGuest {
                store.read(at: transfer.offset, into: run.ranges, done: ended)
            } else {
                store.write(at: transfer.offset, from: run.ranges, done: ended)
            }
        } catch {
            active = nil
            faulted(index)
        }
    }

    private func endedDMA(_ index: Int, _ run: Run, _ code: Int32) {
        active = nil
        activity &+= 1
        do {
            if code != 0 {
                state.drives[index].mediumFailed()
            } else {
                if state.drives[index].transfer.toGuest { try deliver(run) }
                advance(index, run)
            }
        } catch { faulted(index) }
        pump()
        settle()
    }
}

extension IDEDrive {
    /// The host bus refused a transfer: the drive ends the command with an error.
    mutating func mediumOrBusFailed() {
        if kind == .cdrom { check(Sense(0x0B, 0)) } else { fail() }
    }
}
