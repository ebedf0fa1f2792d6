// One queue of a virtual interface: a pair of rings, and the packets between them and a port.
// Source: Xen's public/io/netif.h; Linux's netback for what it answers to wrong requests.
// Modelled: packets in up to 18 slots sent straight from the guest's pages, large packets, extras both ways.
// Quirks: a frame's later pages are filled from their start: Linux's front end looks for headroom in the first only.
// What Linux calls fatal (too many slots, a page crossed, slots that never come) ends the queue here too.
import CXen
import Ethernet
import Host
import Rings

/// Why a queue is served no more.
enum NetFault: Error, Equatable {
    case ring(RingFault)
    case tooManySlots, crossesPage, wrongSizes, cutOff, wrongExtra
}

/// What was moved, for those who watch. Sent is what the guest has sent.
public struct NetStatistics: Equatable, Sendable {
    public var sentFrames: UInt64 = 0
    public var sentBytes: UInt64 = 0
    public var receivedFrames: UInt64 = 0
    public var receivedBytes: UInt64 = 0
    public var sendErrors: UInt64 = 0
    /// Frames for the guest that it could not take, or did not want.
    public var dropped: UInt64 = 0
}

final class NetQueue {
    /// XEN_NETIF_NR_SLOTS_MIN.
    static let mostSlots = 18
    /// Bytes of a packet that are looked at, in a copy of ours.
    private static let startBytes = 128

    /// A packet of the guest's: its slots, and what they say.
    struct Outgoing {
        /// In ring order; nil for an extra.
        var slots: [UInt16?] = []
        var parts: [TransmitRequest] = []
        var segmentation: (size: UInt16, type: UInt8)?
        var groups: [NetExtra] = []
        var isBlank = false
        var total: Int { parts.reduce(0) { $0 + $1.size } }
    }

    var transmit: BackRing
    var receive: BackRing
    let transmitPort: any EventPort
    let receivePort: any EventPort
    private let grants: GrantMap
    private let gathers: Bool
    private var entry = [UInt8](repeating: 0, count: TransmitRequest.slotBytes)
    private var posted = [UInt8](repeating: 0, count: ReceiveRequest.slotBytes)
    /// Waits for the port, or for its time.
    private(set) var outgoing: Outgoing?
    private(set) var fault: NetFault?

    init(
        transmit: consuming BackRing, receive: consuming BackRing, ports: (any EventPort, any EventPort),
        grants: GrantMap, gathers: Bool
    ) {
        self.transmit = transmit
        self.receive = receive
        (transmitPort, receivePort, self.grants, self.gathers) = (ports.0, ports.1, grants, gathers)
    }

    func close() {
        transmitPort.close()
        if receivePort !== transmitPort { receivePort.close() }
        transmit.release()
        receive.release()
    }

    // MARK: from the guest

    /// The packet to be sent next. It stays until `finish`.
    func next() -> Outgoing? {
        if let outgoing { return outgoing }
        guard fault == nil else { return nil }
        do throws(NetFault) { outgoing = try takePacket() } catch { fault = error }
        return outgoing
    }

    private func takeEntry() throws(NetFault) -> Bool {
        do throws(RingFault) { return try transmit.take(into: &entry) } catch { throw .ring(error) }
    }

    private func takePacket() throws(NetFault) -> Outgoing? {
        guard try takeEntry() else { return nil }
        var packet = Outgoing()
        let first = TransmitRequest(entry)
        packet.slots.append(first.id)
        packet.isBlank = first.options.contains(.blankSent)
        if first.options.contains(.extra) { try takeExtras(into: &packet) }
        packet.parts.append(first)
        var last = first
        while last.options.contains(.moreData) {
            guard try takeEntry() else { throw .cutOff }
            last = TransmitRequest(entry)
            packet.slots.append(last.id)
            packet.parts.append(last)
            guard packet.parts.count <= Self.mostSlots else { throw .tooManySlots }
            // The first request tells the whole packet's size.
            guard last.size <= packet.parts[0].size else { throw .wrongSizes }
            packet.parts[0].size -= last.size
        }
        for part in packet.parts where part.offset + part.size > DomainMemory.pageSize { throw .crossesPage }
        return packet
    }

    private func takeExtras(into packet: inout Outgoing) throws(NetFault) {
        repeat {
            guard try takeEntry() else { throw .cutOff }
            packet.slots.append(nil)
            guard packet.slots.count <= 6 else { throw .wrongExtra }
            switch NetExtra(entry) {
            case .segmentation(let size, let type): packet.segmentation = (size, type)
            case .other(let type): guard (1..<5).contains(type) else { throw .wrongExtra }
            case let group: packet.groups.append(group)
            }
        } while entry[1] & 1 != 0
    }

    /// Answers all of the packet's slots.
    func finish(_ status: Int16) {
        guard let done = outgoing else { return }
        outgoing = nil
        for id in done.slots { transmit.put(TransmitRequest.response(id ?? 0, id == nil ? NetStatus.null : status)) }
    }

    /// Sends a packet to the port: its start from a copy, the rest from where it lies.
    func send(_ packet: Outgoing, to port: FramePort) -> FrameSocket.Outcome? {
        guard packet.total >= Frame.headerBytes, packet.parts.allSatisfy({ $0.size > 0 }) else { return nil }
        var pages: [GrantedPage] = []
        var pieces = unsafe [UnsafeRawBufferPointer]()
        defer { for page in pages { page.release() } }
        var frame = Frame([])
        frame.bytes.reserveCapacity(Self.startBytes)
        for part in packet.parts {
            guard let page = try? grants.map(part.reference, .readOnly) else { return nil }
            pages.append(page)
            let bytes = unsafe UnsafeRawBufferPointer(start: page.base + part.offset, count: part.size)
            let copied = min(part.size, Self.startBytes - frame.bytes.count)
            unsafe frame.bytes.append(contentsOf: bytes[..<copied])
            if copied < part.size { unsafe pieces.append(UnsafeRawBufferPointer(rebasing: bytes[copied...])) }
        }
        guard prepare(&frame, packet) else { return nil }
        return unsafe port.send(frame.header, frame.bytes, pieces)
    }

    /// Says in the header what is still to be done; false if the packet makes no sense.
    private func prepare(_ frame: inout Frame, _ packet: Outgoing) -> Bool {
        guard packet.isBlank || packet.segmentation != nil else { return true }
        let isKnown = frame.leaveChecksum(isSummed: packet.isBlank, length: packet.total)
        guard let segmentation = packet.segmentation else { return true }
        guard isKnown, segmentation.size > 0, let view = Packet(frame.bytes, length: packet.total),
            view.carried == .tcp, segmentation.type == (view.version == 4 ? 1 : 2),
            view.transportStart + 13 <= frame.bytes.count
        else { return false }
        let header = view.transportStart + Int(frame.bytes[view.transportStart + 12] >> 4) * 4
        guard header < packet.total, header >= view.transportStart + 20 else { return false }
        frame.header.segmentation = view.version == 4 ? .tcp4 : .tcp6
        (frame.header.segmentBytes, frame.header.headerBytes) = (segmentation.size, UInt16(header))
        return true
    }

    /// Shows the guest what was answered.
    func push() {
        if transmit.push() { transmitPort.notify() }
        if receive.push() { receivePort.notify() }
    }

    // MARK: to the guest

    /// A frame on its way to the guest, and what it is told besides its bytes.
    struct Incoming {
        var frame: Frame
        /// Bytes left free in the first page, for XDP programs.
        var headroom = 0
        var hash: NetHash.Value?

        /// Slots of data.
        var pages: Int { (headroom + frame.bytes.count + DomainMemory.pageSize - 1) / DomainMemory.pageSize }
        var slots: UInt32 { UInt32(pages + extras.count) }
        /// They follow the first slot; each but the last says that another follows.
        var extras: [[UInt8]] {
            var list: [[UInt8]] = []
            if frame.header.segmentation != .none {
                list.append(
                    NetExtra.segmentation(frame.header.segmentBytes, isSix: frame.header.segmentation == .tcp6))
            }
            if headroom > 0 { list.append(NetExtra.headroom(UInt16(headroom))) }
            if let hash { list.append(NetExtra.hash(hash)) }
            for index in list.indices.dropLast() { list[index][1] = UInt8(XEN_NETIF_EXTRA_FLAG_MORE) }
            return list
        }
    }

    /// Whether the guest can take it at all.
    func takes(_ incoming: Incoming) -> Bool {
        (incoming.pages == 1 || gathers) && incoming.pages < Self.mostSlots
    }

    /// Writes a frame into pages that the guest has posted, of which there are enough; false if some was refused.
    func give(_ incoming: Incoming) -> Bool {
        let (frame, extras) = (incoming.frame, incoming.extras)
        var place = 0
        var isGood = true
        while place < frame.bytes.count {
            guard let request = takePosted() else { return false }
            let start = place == 0 ? incoming.headroom : 0
            let end = min(place + DomainMemory.pageSize - start, frame.bytes.count)
            let status = copy(frame, place..<end, to: request, at: start)
            if status < 0 { isGood = false }
            var flags: NetFlags = end < frame.bytes.count ? .moreData : []
            if place == 0 { flags.formUnion(self.flags(of: frame)) }
            if place == 0, !extras.isEmpty { flags.insert(.extra) }
            receive.put(request.response(flags, status))
            if place == 0 {
                for extra in extras {
                    guard takePosted() != nil else { return false }
                    receive.put(extra)
                }
            }
            place = end
        }
        return isGood
    }

    private func flags(of frame: Frame) -> NetFlags {
        var flags: NetFlags = []
        if frame.header.needsChecksum { flags.formUnion([.blankReceived, .checkedReceived]) }
        if frame.header.isValid { flags.insert(.checkedReceived) }
        return flags
    }

    private func takePosted() -> ReceiveRequest? {
        do throws(RingFault) {
            if try receive.take(into: &posted) { return ReceiveRequest(posted) }
        } catch { fault = .ring(error) }
        return nil
    }

    private func copy(_ frame: Frame, _ range: Range<Int>, to request: ReceiveRequest, at start: Int) -> Int16 {
        guard let page = try? grants.map(request.reference, .readWrite) else { return NetStatus.error }
        unsafe frame.bytes.withUnsafeBytes { bytes in
            guard let source = unsafe UnsafeRawBufferPointer(rebasing: bytes[range]).baseAddress else { return }
            unsafe (page.base + start).copyMemory(from: source, byteCount: range.count)
        }
        page.noteWritten()
        page.release()
        return Int16(range.count)
    }
}
