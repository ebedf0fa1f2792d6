import Ethernet
import Host
import TestSupport
import Testing

@testable import UserNetwork

/// Frames as guests and taps send them.
enum SampleFrame {
    /// TCP over IPv4 or IPv6 with `payload` bytes, its checksum left at the pseudo header's sum.
    static func tcp(payload: Int, six: Bool = false, vlan: Bool = false, flags: UInt8 = 0x18) -> Frame {
        var bytes: [UInt8] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2] + (vlan ? [0x81, 0, 0, 5] : [])
        let length = 20 + payload
        if six {
            bytes += [0x86, 0xDD, 0x60, 0, 0, 0, UInt8(length >> 8), UInt8(length & 0xFF), 6, 64]
            bytes += (0..<32).map { UInt8($0) }
        } else {
            bytes += [
                8, 0, 0x45, 0, UInt8((length + 20) >> 8), UInt8((length + 20) & 0xFF), 0x12, 0x34, 0x40, 0, 64, 6,
            ]
            bytes += [0, 0, 10, 0, 2, 15, 10, 0, 2, 2]
        }
        bytes += [0x30, 0x39, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0x20, 0, 0, 0, 0, 0]
        bytes += (0..<payload).map { UInt8(truncatingIfNeeded: $0 &* 7) }
        var frame = Frame(bytes)
        frame.leaveChecksum(isSummed: false)
        return frame
    }

    /// Whether IP's and TCP's sums are those of the bytes.
    static func isSound(_ frame: Frame) -> Bool {
        guard let packet = Packet(frame.bytes), packet.carried != nil else { return false }
        let transport = packet.transportStart..<packet.end
        let sum = Checksum.sum(
            frame.bytes, transport, packet.pseudoSum(frame.bytes, transportBytes: transport.count))
        let header = Checksum.sum(frame.bytes, packet.networkStart..<packet.transportStart)
        return Checksum.fold(sum) == 0xFFFF && (packet.version == 6 || Checksum.fold(header) == 0xFFFF)
    }
}

@Suite struct EthernetTests {
    @Test func `a header is ten bytes and comes back as it was`() {
        var header = FrameHeader()
        (header.needsChecksum, header.segmentation, header.hasECN) = (true, .tcp6, true)
        (header.headerBytes, header.segmentBytes, header.checksumStart, header.checksumOffset) = (74, 1440, 54, 16)
        #expect(header.raw == [1, 0x84, 74, 0, 0xA0, 5, 54, 0, 16, 0])
        #expect(FrameHeader(header.raw) == header)
    }

    @Test func `sums are those of RFC 1071, at any place and length`() {
        #expect(Checksum.fold(Checksum.sum([0, 1, 0xF2, 3, 0xF4, 0xF5, 0xF6, 0xF7], 0..<8)) == 0xDDF2)
        var random = Seeded(7)
        for _ in 0..<200 {
            let bytes = (0..<Int.random(in: 1...70, using: &random)).map { _ in
                UInt8.random(in: 0...255, using: &random)
            }
            let start = Int.random(in: 0..<bytes.count, using: &random)
            var slow = 0
            for (index, byte) in bytes[start...].enumerated() { slow += index % 2 == 0 ? Int(byte) << 8 : Int(byte) }
            while slow > 0xFFFF { slow = slow & 0xFFFF + slow >> 16 }
            #expect(Int(Checksum.fold(Checksum.sum(bytes, start..<bytes.count))) == slow)
        }
    }

    @Test(arguments: [false, true], [false, true])
    func `a checksum that was left is completed`(six: Bool, vlan: Bool) {
        let frame = SampleFrame.tcp(payload: 101, six: six, vlan: vlan)
        let finished = frame.finished(for: Offloads())
        #expect(finished.count == 1 && !finished[0].header.needsChecksum && finished[0].header.isValid)
        var whole = finished[0]
        // The IP header's own sum is its sender's matter.
        if !six, let packet = Packet(whole.bytes) {
            let sum = ~Checksum.fold(Checksum.sum(whole.bytes, packet.networkStart..<packet.transportStart))
            whole.bytes[packet.networkStart + 10] = UInt8(sum >> 8)
            whole.bytes[packet.networkStart + 11] = UInt8(sum & 0xFF)
        }
        #expect(SampleFrame.isSound(whole))
        #expect(frame.finished(for: .all) == [frame])
    }

    @Test(arguments: [false, true])
    func `a large packet becomes segments whose payload is the same`(six: Bool) {
        var frame = SampleFrame.tcp(payload: 5000, six: six, flags: 0x99)
        frame.header.segmentation = six ? .tcp6 : .tcp4
        frame.header.segmentBytes = 1448
        let segments = frame.finished(for: Offloads())
        #expect(segments.count == 4)
        let start = six ? 74 : 54
        #expect(segments.flatMap { Array($0.bytes[start...]) } == Array(frame.bytes[start...]))
        #expect(!segments.contains { !SampleFrame.isSound($0) })
        // CWR is the first's, PSH and FIN the last's.
        #expect(segments.map { $0.bytes[start - 7] } == [0x90, 0x10, 0x10, 0x19])
    }

    @Test func `nonsense in a header harms nobody`() {
        var random = Seeded(11)
        for _ in 0..<3000 {
            var frame = SampleFrame.tcp(payload: .random(in: 0...300, using: &random), six: .random(using: &random))
            for _ in 0..<4 {
                frame.bytes[.random(in: 0..<min(90, frame.bytes.count), using: &random)] = .random(
                    in: 0...255, using: &random)
            }
            if Bool.random(using: &random) {
                frame.bytes.removeLast(.random(in: 0..<frame.bytes.count, using: &random))
            }
            frame.header = FrameHeader((0..<10).map { _ in .random(in: 0...255, using: &random) })
            frame.header.segmentation = [.none, .tcp4, .tcp6].randomElement(using: &random) ?? .none
            #expect(!frame.finished(for: Offloads()).isEmpty)
            frame.leaveChecksum(isSummed: false)
        }
    }

    @Test func `a port holds back what there is no room for, and tells when there is`() throws {
        let (left, right) = try FrameSocket.pair()
        let reactor = try Reactor()
        let (sender, receiver) = (FramePort(left), FramePort(right))
        sender.attach(to: reactor)
        var rooms = 0
        sender.onRoom = { rooms += 1 }
        let frame = SampleFrame.tcp(payload: 1000)
        var sent = 0
        while sender.send(frame) == .done { sent += 1 }
        #expect(sender.isFull && sent > 10)
        receiver.offloads = .all
        var received = 0
        while let next = receiver.receive() {
            #expect(next == frame)
            received += 1
        }
        #expect(received == sent)
        reactor.turn()
        #expect(!sender.isFull && rooms == 1)
    }

    @Test func `a port tells once that its host's end is gone`() throws {
        var left: Descriptor?
        let right: Descriptor
        (left, right) = try FrameSocket.pair()
        let port = FramePort(right)
        let reactor = try Reactor()
        port.attach(to: reactor)
        var ends = 0
        port.onEnd = { ends += 1 }
        port.onFrame = { _ = port.receive() }
        _ = port.receive()
        #expect(ends == 0 && left != nil)
        left = nil
        reactor.turn()
        _ = port.receive()
        #expect(ends == 1)
    }

    @Test func `forwards are QEMU's, but for the default address`() {
        let rule = HostForward("tcp::2222-:22")
        #expect(rule?.hostAddress == 0x7F00_0001 && rule?.hostPort == 2222 && rule?.guestPort == 22)
        #expect(rule?.guestAddress == 0x0A00_020F && rule?.isUDP == false)
        #expect(HostForward("udp:0.0.0.0:53-10.0.2.16:53")?.guestAddress == 0x0A00_0210)
        for text in ["", "tcp", "tcp::-:", "tcp::99999-:22", "tcp::22-:0", "icmp::1-:1", "tcp:1.2.3:1-:1", "a-b-c"] {
            #expect(HostForward(text) == nil)
        }
    }
}
