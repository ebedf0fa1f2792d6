// ioreq-bench: what one access to a device of the other process costs, hot, against the same access in this process.
// The other process is this program again, with the board that the device model has.
//   ioreq-bench [--json] [MILLISECONDS for each access]
// As the server: descriptor 3 is guest RAM, 4 the code map, 5 the shared pages, 6 video memory, 7 the doorbell,
// 8 a socket that ends with the client.

import DomainConfig
import Foundation
import Glibc
import Host
import Ioreq
import PCBoard

let ramBytes = 32 << 20
let videoBytes = 16 << 20
/// Round trips that are timed together.
let batch = 64

@MainActor func makeBoard(_ ram: GuestRAM, _ pages: IoreqPages, _ video: SharedMemory) -> PCBoard {
    let config = DomainConfig(name: "bench", uuid: "", domid: 1, kind: .hvm, memory: ramBytes >> 20, vcpus: 1)
    return PCBoard(
        config, ram: ram, pages: pages, video: video.bytes, roms: BoardROMs(), drives: Drives(), time: 0,
        outputs: BoardOutputs())
}

@MainActor func serve() throws {
    let ram = GuestRAM(
        memory: try SharedMemory(mapping: Descriptor(owning: 3), size: ramBytes, name: "guest RAM"),
        codeMap: try SharedMemory(mapping: Descriptor(owning: 4), size: ramBytes >> 12, name: "the code map"))
    let pages = IoreqPages(
        try SharedMemory(mapping: Descriptor(owning: 5), size: IoreqLayout.size, name: "the ioreq pages"))
    let video = try SharedMemory(mapping: Descriptor(owning: 6), size: videoBytes, name: "video memory")
    let board = makeBoard(ram, pages, video)
    let reactor = try Reactor()
    let server = IoreqServer(pages, vcpus: 1, doorbell: Descriptor(owning: 7))
    server.handler = { board.handle($0) }
    server.attach(to: reactor)
    reactor.watch(8) { _ in reactor.stop() }
    reactor.run()
}

/// The accesses that are measured: a latch, a chip with some state, configuration space, memory of a card.
let accesses: [(name: String, request: Request)] = [
    ("port 0x80, read", Request(.port, address: 0x80, size: 1, isRead: true)),
    ("port 0x80, write", Request(.port, address: 0x80, size: 1, isRead: false, data: 1)),
    ("COM1, line status", Request(.port, address: 0x3FD, size: 1, isRead: true)),
    ("PCI configuration", Request(.pciConfig, address: 0x10 << 32, size: 4, isRead: true)),
    ("memory nobody has", Request(.memory, address: 0xF000_0000, size: 4, isRead: true)),
]

/// Nanoseconds for one call of `body`, of batches in as long a time, sorted. A busy host makes some of them long.
func timed(milliseconds: UInt64, _ body: () -> Void) -> [Double] {
    var times: [Double] = []
    let end = monotonicNanoseconds() + milliseconds * 1_000_000
    var start = monotonicNanoseconds()
    while start < end || times.isEmpty {
        for _ in 0..<batch { body() }
        let now = monotonicNanoseconds()
        times.append(Double(now - start) / Double(batch))
        start = now
    }
    return times.sorted()
}

struct Result: Codable {
    var access: String
    /// Nanoseconds: median and fastest tenth of round trips to the other process, median of calls in this one.
    var roundTrip: Double
    var fastest: Double
    var inProcess: Double
}

@MainActor func measure(milliseconds: UInt64) throws -> [Result] {
    let ram = try GuestRAM.make(size: UInt64(ramBytes))
    let pages = try IoreqPages.make()
    let video = try SharedMemory(named: "video", size: videoBytes)
    let doorbell = try HostEvent()
    let (mine, theirs) = try MessageSocket.pair()
    let server = try ChildProcess(
        path: "/proc/self/exe", arguments: ["serve"],
        descriptors: [
            nil, nil, 2, ram.memory.descriptor.number, ram.codeMap.descriptor.number, pages.memory.descriptor.number,
            video.descriptor.number, doorbell.descriptor.number, theirs.descriptor.number,
        ], deathSignal: 9)
    defer {
        server.send(9)
        withExtendedLifetime(mine) {}
    }
    // Two processors, if there are: on one, each waits for the other to be scheduled.
    let processors = Affinity.read(0)
    if let first = processors.first, let last = processors.last, first != last {
        try Affinity.write(0, [first])
        try Affinity.write(server.pid, [last])
    }
    let board = makeBoard(ram, try IoreqPages.make(), video)
    let client = IoreqClient(pages, doorbell: doorbell.descriptor)
    var results: [Result] = []
    for (name, request) in accesses {
        _ = timed(milliseconds: milliseconds / 10) { _ = client.submit(request, vcpu: 0) }
        let trips = timed(milliseconds: milliseconds) { _ = client.submit(request, vcpu: 0) }
        let calls = timed(milliseconds: milliseconds / 4) { _ = board.handle(request) }
        results.append(
            Result(
                access: name, roundTrip: trips[trips.count / 2], fastest: trips[trips.count / 10],
                inProcess: calls[calls.count / 2]))
    }
    return results
}

let arguments = CommandLine.arguments.dropFirst()
do {
    if arguments.first == "serve" {
        try serve()
        exit(0)
    }
    let results = try measure(
        milliseconds: arguments.last.flatMap { UInt64($0) }.map { min(max(1, $0), 60_000) } ?? 1000)
    if arguments.contains("--json") {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
        print(String(decoding: try encoder.encode(results), as: UTF8.self))
    } else {
        print("One access, hot, nanoseconds       to the other process (fastest 10%)   in this process")
        for result in results {
            let name = result.access.padding(toLength: 30, withPad: " ", startingAt: 0)
            print(
                name + String(format: "%16.0f %18.0f %17.0f", result.roundTrip, result.fastest, result.inProcess))
        }
    }
} catch {
    FileHandle.standardError.write(Data("ioreq-bench: \(error)\n".utf8))
    exit(1)
}
