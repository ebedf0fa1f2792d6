// The 82540EM's transmit ring.
// Source: Intel 8254x Software Developer's Manual (317453-006), §3.3 (descriptors), §3.4 (ring), §3.5 (segmentation).
// Modelled: legacy, context and data descriptors, both checksums, large packets, tags, write-back.
// Quirks: after a tail is written at most one ring of descriptors is taken, whatever head and tail say.

internal import Ethernet
internal import Machine
internal import Registers

/// A context descriptor (§3.3.6): where the checksums of the packets behind it go.
struct E1000Context: Codable, Equatable, Sendable {
    var networkStart: UInt8 = 0, networkPlace: UInt8 = 0, networkEnd: UInt16 = 0
    var transportStart: UInt8 = 0, transportPlace: UInt8 = 0, transportEnd: UInt16 = 0
    var headerBytes: UInt8 = 0, segmentBytes: UInt16 = 0
    /// IPv4 (not IPv6), TCP (not UDP).
    var isFour = false, isTCP = false

    init() {}
    init(_ low: UInt64, _ high: UInt64) {
        networkStart = UInt8(truncatingIfNeeded: low)
        networkPlace = UInt8(truncatingIfNeeded: low >> 8)
        networkEnd = UInt16(truncatingIfNeeded: low >> 16)
        transportStart = UInt8(truncatingIfNeeded: low >> 32)
        transportPlace = UInt8(truncatingIfNeeded: low >> 40)
        transportEnd = UInt16(truncatingIfNeeded: low >> 48)
        (isTCP, isFour) = (high >> 24 & 1 != 0, high >> 24 & 2 != 0)
        headerBytes = UInt8(truncatingIfNeeded: high >> 40)
        segmentBytes = UInt16(truncatingIfNeeded: high >> 48)
    }
}

/// A packet on its way from descriptors to the port.
struct E1000Gathering {
    var bytes: [UInt8] = []
    /// POPTS of the first data descriptor; checksum offset and start of a legacy one.
    var options: UInt8 = 0
    var legacy: (place: Int, start: Int)?
    var isLarge = false
    var isExtended = false
    var hasStarted = false
    /// The guest's memory was not there, or the packet is longer than any.
    var isBad = false
}

/// DCMD and its like, bits 31:24 of a descriptor's second half.
private struct Command: OptionSet {
    let rawValue: UInt8
    static let end = Command(rawValue: 1)
    /// Legacy: insert a checksum. Extended: segment.
    static let insert = Command(rawValue: 4)
    static let report = Command(rawValue: 8)
    static let isExtended = Command(rawValue: 0x20)
    static let tag = Command(rawValue: 0x40)
}

extension E1000 {
    static let descriptorBytes: UInt64 = 16
    /// A large packet's most, with its headers.
    private static let mostBytes = 65_535 + 18

    /// Takes descriptors until head meets tail, or the port is full.
    func transmit() {
        let control = state[E1000Register.transmitControl]
        let count = state[E1000Register.transmitLength] / 16
        guard control & 2 != 0, held == nil, count > 0 else { return }
        var causes: E1000Causes = []
        var hasTaken = false
        var head = state[E1000Register.transmitHead]
        if head >= count { head = 0 }
        for _ in 0..<count where head != state[E1000Register.transmitTail] && held == nil {
            let base = UInt64(state[E1000Register.transmitBaseHigh]) << 32 | UInt64(state[E1000Register.transmitBase])
            let place = GuestAddress(base &+ UInt64(head) * Self.descriptorBytes)
            guard let (low, high) = load(place) else { break }
            take(low, high)
            hasTaken = true
            if Command(rawValue: UInt8(truncatingIfNeeded: high >> 24)).contains(.report) {
                // DD, in the status byte alone.
                store([UInt8(truncatingIfNeeded: high >> 32) & 0xF0 | 1], at: place + 12)
                causes.insert(.transmitWritten)
            }
            head = head + 1 < count ? head + 1 : 0
            state[E1000Register.transmitHead] = head
        }
        if hasTaken, head == state[E1000Register.transmitTail] { causes.insert(.transmitEmpty) }
        state.raise(causes)
    }

    private func take(_ low: UInt64, _ high: UInt64) {
        let command = Command(rawValue: UInt8(truncatingIfNeeded: high >> 24))
        if command.contains(.isExtended), high >> 20 & 0xF == 0 {
            state.context = E1000Context(low, high)
            return
        }
        let isExtended = command.contains(.isExtended)
        if !gathered.hasStarted {
            gathered.hasStarted = true
            gathered.isExtended = isExtended
            gathered.isLarge = isExtended && command.contains(.insert)
            gathered.options = isExtended ? UInt8(truncatingIfNeeded: high >> 40) : 0
        }
        gather(GuestAddress(low), Int(isExtended ? high & 0xF_FFFF : high & 0xFFFF))
        guard command.contains(.end) else { return }
        if !isExtended, command.contains(.insert) {
            gathered.legacy = (Int(high >> 16 & 0xFF), Int(high >> 40 & 0xFF))
        }
        let tag = command.contains(.tag) && state[E1000Register.control] >> 30 & 1 != 0
        finish(tag: tag ? UInt16(truncatingIfNeeded: high >> 48) : nil)
    }

    private func gather(_ address: GuestAddress, _ count: Int) {
        guard count > 0, !gathered.isBad else { return }
        let start = gathered.bytes.count
        guard start + count <= Self.mostBytes, let window = unsafe try? dma.window(at: address, bytes: count) else {
            gathered.isBad = true
            return
        }
        unsafe gathered.bytes.append(contentsOf: UnsafeRawBufferPointer(window))
    }

    /// The packet is whole: does what the guest has left to the card, and sends it.
    private func finish(tag: UInt16?) {
        let packet = gathered
        gathered = E1000Gathering()
        guard !packet.isBad, packet.bytes.count >= 14, state.hasLink else { return }
        var frame = Frame(packet.bytes)
        if let (place, start) = packet.legacy { insert(start, 0, place, in: &frame.bytes) }
        if packet.isExtended { offload(&frame, packet) }
        // PSP: short packets are padded.
        if frame.bytes.count < 60 { frame.bytes += [UInt8](repeating: 0, count: 60 - frame.bytes.count) }
        if let tag { addTag(tag, to: &frame) }
        // The check sequence counts.
        state.count(frame, bytes: frame.bytes.count + 4, as: .sent)
        if !send(frame) { held = frame }
    }

    private func offload(_ frame: inout Frame, _ packet: E1000Gathering) {
        let context = state.context
        let network = Int(context.networkStart)
        if packet.isLarge, context.isTCP, frame.bytes.count > Int(context.headerBytes), context.segmentBytes > 0 {
            fixLength(&frame.bytes, network, isFour: context.isFour)
        }
        if packet.options & 1 != 0 {
            insert(network, Int(context.networkEnd), Int(context.networkPlace), in: &frame.bytes)
        }
        if packet.isLarge, context.isTCP, frame.bytes.count > Int(context.headerBytes), context.segmentBytes > 0,
            frame.leaveChecksum(isSummed: false)
        {
            frame.header.segmentation = context.isFour ? .tcp4 : .tcp6
            (frame.header.segmentBytes, frame.header.headerBytes) = (context.segmentBytes, UInt16(context.headerBytes))
        } else if packet.options & 2 != 0 {
            let (start, place) = (Int(context.transportStart), Int(context.transportPlace))
            if context.transportEnd == 0, place >= start, place + 2 <= frame.bytes.count {
                frame.header.needsChecksum = true
                (frame.header.checksumStart, frame.header.checksumOffset) = (UInt16(start), UInt16(place - start))
            } else {
                insert(start, Int(context.transportEnd), place, in: &frame.bytes)
            }
        }
    }

    /// Drivers leave the lengths of large packets empty; the card writes those of each segment.
    private func fixLength(_ bytes: inout [UInt8], _ network: Int, isFour: Bool) {
        let length = UInt16(clamping: bytes.count - network - (isFour ? 0 : 40))
        let place = network + (isFour ? 2 : 4)
        guard bytes.count >= network + 40 else { return }
        (bytes[place], bytes[place + 1]) = (UInt8(length >> 8), UInt8(truncatingIfNeeded: length))
        if isFour { (bytes[network + 10], bytes[network + 11]) = (0, 0) }
    }

    /// Sums from `start` to `end` (the last byte; 0: all) and stores the complement at `place`.
    private func insert(_ start: Int, _ end: Int, _ place: Int, in bytes: inout [UInt8]) {
        let limit = end == 0 || end >= bytes.count ? bytes.count : end + 1
        guard start < limit, place + 2 <= bytes.count else { return }
        let sum = ~Checksum.fold(Checksum.sum(bytes, start..<limit))
        (bytes[place], bytes[place + 1]) = (UInt8(sum >> 8), UInt8(truncatingIfNeeded: sum))
    }

    private func addTag(_ tag: UInt16, to frame: inout Frame) {
        let type = state[0x0038]
        let bytes = [type >> 8, type, UInt32(tag >> 8), UInt32(tag)].map { UInt8(truncatingIfNeeded: $0) }
        frame.bytes.insert(contentsOf: bytes, at: 12)
        if frame.header.needsChecksum { frame.header.checksumStart += 4 }
        if frame.header.segmentation != .none { frame.header.headerBytes += 4 }
    }

    // MARK: memory

    /// A descriptor's two halves, in a copy.
    func load(_ place: GuestAddress) -> (UInt64, UInt64)? {
        var copy: (UInt64, UInt64) = (0, 0)
        let isThere = unsafe withUnsafeMutableBytes(of: &copy) { bytes in
            (try? unsafe dma.read(at: place, into: bytes)) != nil
        }
        return isThere ? copy : nil
    }

    @discardableResult func store(_ bytes: [UInt8], at place: GuestAddress) -> Bool {
        unsafe bytes.withUnsafeBytes { (try? unsafe dma.write($0, at: place)) != nil }
    }
}
