import DomainConfig
import Foundation
import Host
import Ioreq
import PCBoard
import Testing

@Suite("device-model process") struct ProcessTests {
    /// The hypervisor's side of a domain directory.
    private final class Domain: @unchecked Sendable {
        // Invariant: made by the test, read by the model's thread, which ends before the test does.
        let directory: String
        let mine: MessageSocket
        let theirs: MessageSocket
        let pages: IoreqPages
        let ram: GuestRAM
        let video: SharedMemory
        let doorbell: HostEvent
        let ended = DispatchSemaphore(value: 0)
        let ready = DispatchSemaphore(value: 0)
        var failure: String?

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

        func start() {
            Thread.detachNewThread { [self] in
                do {
                    try DeviceModel(directory: directory, hypervisor: theirs).run { ready.signal() }
                } catch {
                    failure = "\(error)"
                    ready.signal()
                }
                ended.signal()
            }
        }
    }

    @Test("It says ready, serves requests, and ends with the hypervisor")
    func life() throws {
        var domain: Domain? = try Domain()
        let pages = try #require(domain?.pages)
        let doorbell = try #require(domain?.doorbell.descriptor)
        try domain?.hello()
        domain?.start()
        #expect(domain?.ready.wait(timeout: .now() + 10) == .success)
        #expect(domain?.failure == nil)
        let answer = try domain?.mine.receive()
        #expect(answer?.message == Array("r".utf8))
        let client = IoreqClient(pages, doorbell: doorbell)
        let request = Request(.pciConfig, address: 0, size: 4, isRead: true)
        #expect(client.submit(request, vcpu: 0) & 0xFFFF_FFFF == 0x1237_8086)
        let directory = try #require(domain?.directory)
        let vnc = try String(contentsOfFile: directory + "/vnc", encoding: .utf8).split(separator: " ")
        #expect(vnc.first == "127.0.0.1")
        let console = try FileManager.default.destinationOfSymbolicLink(atPath: directory + "/console")
        #expect(console.hasPrefix("/dev/pts/"))
        let status = try LineClient.request("{\"command\":\"status\"}", at: directory + "/device-model.sock")
        #expect(status.contains("\"ok\":true"))
        let unknown = try LineClient.request("{\"command\":\"dance\"}", at: directory + "/device-model.sock")
        #expect(unknown.contains("error"))
        shutdown(domain?.mine.descriptor.number ?? -1, Int32(SHUT_RDWR))
        #expect(domain?.ended.wait(timeout: .now() + 10) == .success)
        domain = nil
    }

    @Test("A missing image is one sentence")
    func missingImage() throws {
        let domain = try Domain {
            $0.disks = [.init(target: "/nowhere/x.iso", vdev: "hdc", readWrite: false, cdrom: true)]
        }
        try domain.hello()
        domain.start()
        #expect(domain.ended.wait(timeout: .now() + 10) == .success)
        #expect(domain.failure == "disk image /nowhere/x.iso does not exist")
    }
}
