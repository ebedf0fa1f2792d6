import DomainConfig
import Foundation
import Host
import Images
import Ioreq
import Testing

/// The program itself: it confines its whole process, so it cannot run within the tests'.
@Suite("device-model process") struct ProcessTests {
    /// It lies where the tests lie, in the debug build.
    private static let program = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
        .deletingLastPathComponent().appendingPathComponent(".build/debug/device-model").path

    /// The hypervisor's and the monitor's side of a domain directory.
    private final class Domain {
        let directory: String
        let mine: MessageSocket
        let theirs: MessageSocket
        let pages: IoreqPages
        let ram: GuestRAM
        let video: SharedMemory
        let doorbell: HostEvent

        init(_ change: (inout DomainConfig) -> Void = { _ in }) throws {
            directory = NSTemporaryDirectory() + "apus-test-" + UUID().uuidString
            try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: true)
            try Data([0x55, 0xAA, 4]).write(to: URL(filePath: directory + "/vgabios-stdvga.bin"))
            var config = DomainConfig(name: "t", uuid: "", domid: 1, kind: .hvm, memory: 16, vcpus: 1)
            config.firmwareDirectory = directory
            config.display.vncDisplay = 4000
            config.serial = ["pty"]
            change(&config)
            try JSONEncoder().encode(config).write(to: URL(filePath: directory + "/config.json"))
            (mine, theirs) = try MessageSocket.pair()
            ram = try GuestRAM.make(size: 16 << 20)
            pages = try IoreqPages.make()
            video = try SharedMemory(named: "video", size: 16 << 20)
            doorbell = try HostEvent()
        }
        deinit { try? FileManager.default.removeItem(atPath: directory) }

        func hello() throws {
            let descriptors = [ram.memory, ram.codeMap, pages.memory, video].map(\.descriptor.number)
            try mine.send(
                Array("{\"ramBytes\":\(16 << 20),\"vcpus\":1}".utf8),
                descriptors: descriptors + [doorbell.descriptor.number])
        }

        /// Starts the program; its status pipe.
        func start() throws -> (process: ChildProcess, status: Descriptor) {
            let pipe = try makePipe()
            let process = try ChildProcess(
                path: ProcessTests.program, arguments: ["--directory", directory],
                descriptors: [nil, 1, 2, pipe.writing.number, theirs.descriptor.number])
            return (process, pipe.reading)
        }
    }

    /// The next status line of the program, or what came before its end.
    private func line(_ status: Descriptor) throws -> String {
        var bytes: [UInt8] = []
        while bytes.last != 10 {
            let more = try HostFile.readAvailable(status.number)
            guard !more.isEmpty else { break }
            bytes += more
        }
        return String(decoding: bytes, as: UTF8.self)
    }

    @Test("It says ready, serves requests, and ends with the hypervisor")
    func life() throws {
        let domain = try Domain()
        let (process, status) = try domain.start()
        try domain.hello()
        #expect(try line(status) == "{\"ready\":true}\n")
        #expect(try domain.mine.receive()?.message == Array("r".utf8))
        let client = IoreqClient(domain.pages, doorbell: domain.doorbell.descriptor)
        let request = Request(.pciConfig, address: 0, size: 4, isRead: true)
        #expect(client.submit(request, vcpu: 0) & 0xFFFF_FFFF == 0x1237_8086)
        let vnc = try String(contentsOfFile: domain.directory + "/vnc", encoding: .utf8).split(separator: " ")
        #expect(vnc.first == "127.0.0.1")
        let console = try FileManager.default.destinationOfSymbolicLink(atPath: domain.directory + "/console")
        #expect(console.hasPrefix("/dev/pts/"))
        let socket = domain.directory + "/device-model.sock"
        #expect(try LineClient.request("{\"command\":\"status\"}", at: socket).contains("\"ok\":true"))
        #expect(try LineClient.request("{\"command\":\"dance\"}", at: socket).contains("error"))
        shutdown(domain.mine.descriptor.number, Int32(SHUT_RDWR))
        #expect(process.reap(wait: true) == .exit(0))
    }

    @Test("A missing image is one sentence")
    func missingImage() throws {
        let domain = try Domain {
            $0.disks = [.init(target: "/nowhere/x.iso", vdev: "hdc", readWrite: false, cdrom: true)]
        }
        let (process, status) = try domain.start()
        try domain.hello()
        #expect(try line(status) == "{\"error\":\"disk image \\/nowhere\\/x.iso does not exist\"}\n")
        #expect(process.reap(wait: true) == .exit(1))
    }
}
