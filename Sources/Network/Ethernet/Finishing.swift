// Does what a sender left to its card: sums, and the splitting of large TCP packets.
// Source: RFC 1071, RFC 793; Linux's Documentation/networking/segmentation-offloads.rst.
// Modelled: checksums of TCP and UDP, segmentation of TCP over IPv4 and IPv6.
// Quirks: a header that does not fit its frame is dropped, and the frame passed on as it is: it harms its sender only.

extension Frame {
    /// The frames that a card with `offloads` can take in place of this one.
    public func finished(for offloads: Offloads) -> [Frame] {
        var frame = self
        switch header.segmentation {
        case .tcp4 where !offloads.segmentation4, .tcp6 where !offloads.segmentation6: return segments()
        case .tcp4, .tcp6: return [frame]
        case .none: break
        }
        if header.needsChecksum {
            let isSix = Packet(Array(bytes.prefix(64)), length: bytes.count)?.version == 6
            if isSix ? !offloads.checksum6 : !offloads.checksum4 { frame.completeChecksum() }
        }
        return [frame]
    }

    /// Sums from where the header says, over what the sender has put there.
    public mutating func completeChecksum() {
        guard header.needsChecksum else { return }
        header.needsChecksum = false
        let start = Int(header.checksumStart)
        let place = start + Int(header.checksumOffset)
        guard start < bytes.count, place + 2 <= bytes.count else { return }
        // What lies behind the IP packet is padding.
        let end = Packet(Array(bytes.prefix(128)), length: bytes.count).map { max($0.end, place + 2) } ?? bytes.count
        let sum = ~Checksum.fold(Checksum.sum(bytes, start..<end))
        // UDP: zero means that there is none.
        Checksum.store(sum == 0 && header.checksumOffset == 6 ? 0xFFFF : sum, in: &bytes, at: place)
        header.isValid = true
    }

    /// Has the transport's checksum completed by whoever comes next: the pseudo header's sum, and where to go on.
    /// False if it is neither TCP nor UDP. `isSummed`: the sender has put that sum there already.
    /// `length`: the whole frame's, if these are its first bytes only.
    @discardableResult
    public mutating func leaveChecksum(isSummed: Bool, length: Int? = nil) -> Bool {
        let first = bytes.count <= 128 ? bytes : Array(bytes.prefix(128))
        guard let packet = Packet(first, length: length ?? bytes.count), packet.carried != nil,
            packet.transportStart + packet.checksumOffset + 2 <= bytes.count
        else { return false }
        header.needsChecksum = true
        (header.checksumStart, header.checksumOffset) = (
            UInt16(packet.transportStart), UInt16(packet.checksumOffset)
        )
        guard !isSummed else { return true }
        let sum = Checksum.fold(packet.pseudoSum(bytes, transportBytes: packet.end - packet.transportStart))
        Checksum.store(sum, in: &bytes, at: packet.transportStart + packet.checksumOffset)
        return true
    }

    /// The large packet as one that is finished, for a receiver that takes any size.
    public func completed() -> Frame {
        var frame = self
        frame.header.segmentation = .none
        frame.completeChecksum()
        return frame
    }

    /// One frame for each `segmentBytes` of TCP's payload, all sums complete.
    func segments() -> [Frame] {
        guard let packet = Packet(Array(bytes.prefix(128)), length: bytes.count), packet.carried == .tcp else {
            return [completed()]
        }
        let start = packet.transportStart
        let size = Int(header.segmentBytes)
        let payload = start + Int(bytes[start + 12] >> 4) * 4
        guard size > 0, payload >= start + 20, payload <= packet.end else { return [completed()] }
        var frames: [Frame] = []
        var place = payload
        repeat {
            let end = min(place + size, packet.end)
            frames.append(segment(packet, payload: payload, from: place, to: end, index: frames.count))
            place = end
        } while place < packet.end
        return frames
    }

    private func segment(_ packet: Packet, payload: Int, from place: Int, to end: Int, index: Int) -> Frame {
        let (network, transport) = (packet.networkStart, packet.transportStart)
        var segment = Array(bytes[..<payload])
        segment.reserveCapacity(payload + end - place)
        segment += bytes[place..<end]
        let length = segment.count - network
        if packet.version == 4 {
            Checksum.store(UInt16(truncatingIfNeeded: length), in: &segment, at: network + 2)
            let number = UInt16(bytes[network + 4]) << 8 | UInt16(bytes[network + 5])
            Checksum.store(number &+ UInt16(truncatingIfNeeded: index), in: &segment, at: network + 4)
            Checksum.store(0, in: &segment, at: network + 10)
            Checksum.store(~Checksum.fold(Checksum.sum(segment, network..<transport)), in: &segment, at: network + 10)
        } else {
            Checksum.store(UInt16(truncatingIfNeeded: length - 40), in: &segment, at: network + 4)
        }
        let old = (0..<4).reduce(UInt32(0)) { $0 << 8 | UInt32(bytes[transport + 4 + $1]) }
        let sequence = old &+ UInt32(truncatingIfNeeded: place - payload)
        for byte in 0..<4 {
            segment[transport + 4 + byte] = UInt8(truncatingIfNeeded: sequence >> UInt32(24 - byte * 8))
        }
        // FIN and PSH belong to the last segment, CWR to the first.
        if end < packet.end { segment[transport + 13] &= ~0x09 }
        if index > 0 { segment[transport + 13] &= ~0x80 }
        Checksum.store(0, in: &segment, at: transport + 16)
        let sum = Checksum.sum(
            segment, transport..<segment.count,
            packet.pseudoSum(segment, transportBytes: segment.count - transport))
        Checksum.store(~Checksum.fold(sum), in: &segment, at: transport + 16)
        var header = FrameHeader()
        header.isValid = true
        return Frame(segment, header: header)
    }
}
