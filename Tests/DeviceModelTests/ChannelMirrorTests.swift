// What the hypervisor answers for an IDE channel against what the channel itself answers.
// Source: Sources/Hypervisor/Ioreq/ChannelMirror.swift.
// Covered: writes under way in the posted ring, media at work, both drives, both halves of the bus master.

import DeviceContract
import Host
import Images
import Ioreq
import Machine
import TestSupport
import Testing

@testable import Storage

/// A channel behind the ring of posted writes, and its mirror.
private final class MirrorBench {
    static let busMaster: UInt16 = 0xC000
    let rig: IDERig
    let pages: IoreqPages
    let client: IoreqClient
    let server: IoreqServer
    let mirror: ChannelMirror

    init(_ first: IDEChannel.Fitting, _ second: IDEChannel.Fitting = .nothing) throws {
        rig = IDERig(first, second, memory: 65_536)
        pages = try IoreqPages.make()
        client = IoreqClient(pages, doorbell: Descriptor(owning: 0x7FFF))
        server = IoreqServer(pages, vcpus: 1, doorbell: Descriptor(owning: 0x7FFF))
        mirror = ChannelMirror(pages)
        rig.channel.show = { [pages] registers in
            pages.show(
                0,
                registers.map {
                    RestingChannel(
                        status: $0.status, selected: UInt8($0.selected), isInterrupting: $0.isInterrupting,
                        busMasterCommand: $0.busMasterCommand, busMasterStatus: $0.busMasterStatus,
                        busMaster: Self.busMaster)
                })
        }
        server.handler = { [unowned self] request in
            let (slot, access) = place(UInt16(request.address), Width(rawValue: request.size) ?? .byte)
            slot.write(request.data, access)
            return 0
        }
        rig.channel.settle()
    }

    private func place(_ port: UInt16, _ width: Width) -> (Slot, Access) {
        switch port {
        case 0x1F0...0x1F7: (rig.slot, Access(offset: UInt64(port - 0x1F0), width: width))
        case 0x3F6: (rig.slot, Access(region: 1, offset: 0, width: width))
        default: (rig.busMaster, Access(offset: UInt64(port - Self.busMaster), width: width))
        }
    }

    func post(_ port: UInt16, _ value: UInt32, size: Int = 1) {
        let isPosted = client.post(
            Request(.port, address: UInt64(port), size: size, isRead: false, data: UInt64(value)))
        #expect(isPosted)
        mirror.note(port, size: size, value: value)
    }

    /// The channel's own answer, behind all that was posted.
    func ask(_ port: UInt16) -> UInt8 {
        _ = server.serve()
        let (slot, access) = place(port, .byte)
        return UInt8(truncatingIfNeeded: slot.read(access))
    }
}

@Suite("Mirrors of IDE channels") struct ChannelMirrorTests {
    @Test("A command's reads but two are answered from the mirror") func command() throws {
        let store = MemoryStore(numberedSectors: 64)
        store.isCached = false
        let bench = try MirrorBench(.disk(store))
        let base = MirrorBench.busMaster
        bench.rig.memory.putTable([(0x1000, 512)], at: 0)
        #expect(bench.mirror.read(0x1F7) == 0x50)
        bench.post(0x1F6, 0xE0)
        #expect(bench.mirror.read(0x3F6) == 0x50, "the same drive is selected again")
        for port in UInt16(0x1F2)...0x1F5 { bench.post(port, port == 0x1F2 ? 1 : 0) }
        bench.post(base + 4, 0, size: 4)
        #expect(bench.mirror.read(base) == 0)
        bench.post(base, 8)
        #expect(bench.mirror.read(base) == nil && bench.mirror.read(0x3F6) == 0x50)
        bench.post(0x1F7, 0xC8)
        #expect(bench.mirror.read(0x3F6) == nil, "the command is under way")
        #expect(bench.ask(0x3F6) == 0x58)
        #expect(bench.mirror.read(base) == 8 && bench.mirror.read(0x1F7) == 0x58)
        bench.post(base, 9)
        _ = bench.server.serve()
        for port in [0x1F7, 0x3F6, base, base + 2] { #expect(bench.mirror.read(port) == nil, "the medium works") }
        #expect(store.serve())
        #expect(bench.mirror.read(base + 2) == 4 && bench.mirror.read(base) == 9)
        bench.post(base, 8)
        #expect(bench.mirror.read(0x3F6) == 0x50)
        #expect(bench.mirror.read(0x1F7) == nil, "reading it takes the interrupt back")
        #expect(bench.ask(0x1F7) == 0x50)
        #expect(bench.mirror.read(0x1F7) == 0x50)
        bench.post(base + 2, 4)
        #expect(bench.mirror.read(base + 2) == nil && bench.mirror.read(0x3F6) == 0x50)
        #expect(bench.ask(base + 2) == 0 && bench.mirror.read(base + 2) == 0)
    }

    @Test("Whatever a guest does, the mirror never says what the channel would not") func random() throws {
        var random = Seeded(11)
        let store = MemoryStore(numberedSectors: 200)
        let bench = try MirrorBench(.disk(store), .cdrom(MemoryStore(numberedSectors: 400)))
        let base = MirrorBench.busMaster
        let commands: [UInt8] = [0x20, 0x30, 0xC8, 0xCA, 0x25, 0x35, 0xA0, 0xEC, 0xEF, 0x08, 0x90, 0xE7]
        var answers = 0
        for round in 0..<60_000 {
            store.isCached = round % 3 == 0
            let value = UInt32(random.number(0...255))
            switch random.number(0...11) {
            case 0: bench.post(0x1F7, UInt32(commands[random.number(0...commands.count - 1)]))
            case 1: bench.post(UInt16(random.number(0x1F1...0x1F5)), value & 3)
            case 2: bench.post(0x1F6, value)
            case 3: bench.post(0x3F6, random.once(in: 8) ? value & 0x86 : 0)
            case 4: bench.post(base + UInt16(random.number(0...7)), value, size: random.once(in: 4) ? 4 : 1)
            case 5: bench.post(base, value & 9)
            case 6: bench.post(UInt16(random.number(0x1F1...0x1F4)), value, size: random.once(in: 2) ? 2 : 4)
            case 7: _ = bench.rig.read(random.number(0...1000))
            case 8: _ = store.serve()
            case 9: _ = bench.server.serve()
            default:
                let port = [0x1F7, 0x3F6, base, base + 2][random.number(0...3)]
                guard let answer = bench.mirror.read(port) else { continue }
                answers += 1
                #expect(bench.ask(port) == answer, "port \(port)")
            }
        }
        #expect(answers > 1000)
    }
}
