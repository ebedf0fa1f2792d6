// The 82540EM's receive ring.
// Source: Intel 8254x Software Developer's Manual (317453-006), §3.2.
// Modelled: packets in several buffers, checksum results, stripped tags, warnings of few buffers.
// Quirks: without buffers a frame waits instead of being missed; the guest sees an overrun only if there is no ring.

public import Ethernet
internal import Machine
internal import Registers

/// Status bits of a receive descriptor (§3.2.3.1).
private enum ReceiveStatus {
    static let done: UInt8 = 1, endOfPacket: UInt8 = 2, noChecksums: UInt8 = 4, tagged: UInt8 = 8
    static let transportChecked: UInt8 = 0x20, networkChecked: UInt8 = 0x40
}

extension E1000 {
    private var control: E1000ReceiveControl {
        E1000ReceiveControl(rawValue: state[E1000Register.receiveControl])
    }

    /// Descriptors that the guest has given.
    private var free: UInt32 {
        let count = state[E1000Register.receiveLength] / 16
        let (head, tail) = (state[E1000Register.receiveHead], state[E1000Register.receiveTail])
        guard count > 0, head < count, tail < count else { return 0 }
        return tail >= head ? tail - head : tail + count - head
    }

    public var hasRoom: Bool { !control.contains(.enable) || free > 0 }

    public func receive(_ frame: Frame) -> Bool {
        defer { state.arbitrate(at: now) }
        guard state.accepts(frame.bytes) else { return true }
        var bytes = frame.bytes
        let tag = stripTag(&bytes)
        if bytes.count < 60 { bytes += [UInt8](repeating: 0, count: 60 - bytes.count) }
        // The check sequence belongs to the packet unless it is stripped.
        if !control.contains(.stripsCheck) { bytes += [0, 0, 0, 0] }
        guard bytes.count <= (control.contains(.longPackets) ? 16_384 : 1522) else {
            state.count(E1000Register.Count.tooLong)
            return true
        }
        let size = control.bufferBytes
        let needed = (bytes.count + size - 1) / size
        guard needed <= Int(free) else {
            // A ring that is too small for the packet would hold it for ever.
            guard needed >= Int(state[E1000Register.receiveLength] / 16) else { return false }
            state.count(E1000Register.Count.missed)
            state.raise(.receiveOverrun)
            return true
        }
        let status = checks(frame) | (tag == nil ? 0 : ReceiveStatus.tagged)
        for start in stride(from: 0, to: bytes.count, by: size) {
            let end = min(start + size, bytes.count)
            let last = end == bytes.count ? status | ReceiveStatus.endOfPacket : 0
            guard fill(bytes[start..<end], last | ReceiveStatus.done, tag ?? 0) else { return true }
        }
        noteReceived(frame, bytes.count)
        return true
    }

    /// Puts bytes into the next buffer and writes its descriptor back, status last.
    private func fill(_ bytes: ArraySlice<UInt8>, _ status: UInt8, _ tag: UInt16) -> Bool {
        let head = state[E1000Register.receiveHead]
        let base = UInt64(state[E1000Register.receiveBaseHigh]) << 32 | UInt64(state[E1000Register.receiveBase])
        let place = GuestAddress(base &+ UInt64(head) * Self.descriptorBytes)
        guard let (address, _) = load(place), address == 0 || store(Array(bytes), at: GuestAddress(address)) else {
            return false
        }
        let length = UInt16(bytes.count)
        // Length, checksum, status, errors, tag: the second half, in one store.
        store(
            [
                UInt8(truncatingIfNeeded: length), UInt8(length >> 8), 0, 0, status, 0,
                UInt8(truncatingIfNeeded: tag), UInt8(tag >> 8),
            ], at: place + 8)
        let count = state[E1000Register.receiveLength] / 16
        state[E1000Register.receiveHead] = head + 1 < count ? head + 1 : 0
        return true
    }

    /// What the card says about checksums: only what its port has checked, or made.
    private func checks(_ frame: Frame) -> UInt8 {
        let wanted = state[E1000Register.receiveChecksum]
        guard frame.header.isValid, wanted & 0x300 != 0,
            let packet = Packet(Array(frame.bytes.prefix(128)), length: frame.bytes.count)
        else { return ReceiveStatus.noChecksums }
        var status: UInt8 = packet.version == 4 && wanted & 0x100 != 0 ? ReceiveStatus.networkChecked : 0
        if packet.carried != nil, wanted & 0x200 != 0 { status |= ReceiveStatus.transportChecked }
        return status == 0 ? ReceiveStatus.noChecksums : status
    }

    /// CTRL.VME: the tag goes into the descriptor.
    private func stripTag(_ bytes: inout [UInt8]) -> UInt16? {
        guard state[E1000Register.control] >> 30 & 1 != 0, bytes.count >= 18,
            UInt32(bytes[12]) << 8 | UInt32(bytes[13]) == state[0x0038]
        else { return nil }
        defer { bytes.removeSubrange(12..<16) }
        return UInt16(bytes[14]) << 8 | UInt16(bytes[15])
    }

    private func noteReceived(_ frame: Frame, _ bytes: Int) {
        state.count(frame, bytes: bytes, as: .received)
        var causes: E1000Causes = .received
        if free <= state[E1000Register.receiveLength] / 16 >> UInt32(control.warningShift) {
            causes.insert(.receiveLow)
        }
        state.raise(causes)
    }
}
