import Glibc
import Host
import Rings
import TestSupport
import Testing
import VNC
import XenStoreClient

@testable import DisplayBackend

/// A guest with a frame buffer and a keyboard, and their back ends.
private final class DisplayBench {
    static let screenPath = "/local/domain/0/backend/vfb/5/0"
    static let keyboardPath = "/local/domain/0/backend/vkbd/5/0"
    let shared = LocalTransport.Shared()
    let tools: StoreClient
    let client: StoreClient
    let domain: FakeDomain
    let ports = FakePorts()
    let picture: GuestPicture
    let screen: FrameBufferBackend
    let keyboard: KeyboardBackend
    var reports: [String] = []

    init() throws {
        tools = StoreClient(LocalTransport(shared))
        client = StoreClient(LocalTransport(shared))
        domain = try FakeDomain()
        for (path, kind) in [(Self.screenPath, "vfb"), (Self.keyboardPath, "vkbd")] {
            try tools.write("\(path)/frontend", "/local/domain/5/device/\(kind)/0")
            try tools.write("\(path)/online", "1")
            try tools.write("/local/domain/5/device/\(kind)/0/state", "1")
        }
        picture = GuestPicture(memory: domain.memory)
        screen = FrameBufferBackend(
            Self.screenPath, store: client, memory: domain.memory, ports: ports, picture: picture)
        keyboard = KeyboardBackend(
            Self.keyboardPath, store: client, memory: domain.memory, grants: domain.grants, ports: ports)
        for device in [screen.device, keyboard.device] { device.onReport = { [unowned self] in reports.append($0) } }
        try screen.start()
        try keyboard.start()
        client.pump()
    }

    func set(_ kind: String, _ values: [String: String]) throws {
        for (key, value) in values where key != "state" {
            try tools.write("/local/domain/5/device/\(kind)/0/\(key)", value)
        }
        if let state = values["state"] { try tools.write("/local/domain/5/device/\(kind)/0/state", state) }
        client.pump()
    }
    func node(_ path: String, _ key: String) throws -> String? { try tools.read("\(path)/\(key)") }

    func put(_ frame: Int, _ offset: Int, _ word: UInt32) {
        domain.page(frame).storeBytes(of: word, toByteOffset: offset, as: UInt32.self)
    }
    func word(_ frame: Int, _ offset: Int) -> UInt32 {
        domain.page(frame).load(fromByteOffset: offset, as: UInt32.self)
    }

    /// 64 x 48 pixels of 32 bits in frames 100, 102, 104...: no two side by side.
    func connectScreen(depth: UInt8 = 32, bytes: UInt32 = 64 * 48 * 4) throws {
        let words: [UInt32] = [64, 48, 256, bytes]
        for (index, value) in words.enumerated() { put(10, 16 + index * 4, value) }
        domain.page(10)[32] = depth
        domain.page(10).storeBytes(of: 11, toByteOffset: 40, as: UInt64.self)
        for index in 0..<3 {
            domain.page(11).storeBytes(of: UInt64(100 + index * 2), toByteOffset: index * 8, as: UInt64.self)
        }
        try set("vfb", ["page-ref": "10", "event-channel": "7", "protocol": "x86_64-abi", "state": "3"])
    }
    func pixel(_ x: Int, _ y: Int) -> UInt32 { picture.frame.long((y * picture.width + x) * 4) }
    func resize(_ values: UInt32...) {
        let index = word(10, 12)
        put(10, 2048 + Int(index % 51) * 40, 3)
        for (place, value) in values.enumerated() { put(10, 2048 + Int(index % 51) * 40 + 4 + place * 4, value) }
        put(10, 12, index &+ 1)
        ports.bound[7]?.onEvent()
        _ = screen.turn()
    }
}

@Suite struct DisplayTests {
    @Test func `a frame buffer in scattered pages is shown`() throws {
        let bench = try DisplayBench()
        #expect(try bench.node(DisplayBench.screenPath, "state") == "2")
        #expect(try bench.node(DisplayBench.screenPath, "feature-resize") == "1")
        try bench.connectScreen()
        #expect(try bench.node(DisplayBench.screenPath, "state") == "4" && bench.reports.isEmpty)
        var update = bench.picture.refresh()
        #expect(update.isResized && update.changed == [Rectangle(x: 0, y: 0, width: 64, height: 48)])
        // Line 16 begins the second page.
        bench.put(102, 5 * 4, 0xFF12_3456)
        update = bench.picture.refresh()
        #expect(!update.isResized && update.changed == [Rectangle(x: 0, y: 16, width: 64, height: 16)])
        #expect(bench.pixel(5, 16) & 0xFF_FFFF == 0x12_3456)
        #expect(bench.picture.refresh().changed.isEmpty)
        bench.resize(32, 24, 256, 32, 64 * 4)
        update = bench.picture.refresh()
        #expect(update.isResized && bench.picture.width == 32 && bench.pixel(5, 15) & 0xFF_FFFF == 0x12_3456)
        try bench.set("vfb", ["state": "5"])
        try bench.set("vfb", ["state": "6"])
        #expect(try bench.node(DisplayBench.screenPath, "state") == "6" && bench.ports.bound[7]?.isClosed == true)
        #expect(bench.picture.refresh().changed.count == 1 && bench.pixel(5, 15) == 0)
    }

    @Test(arguments: [(UInt8(16), UInt32(0xF81F), UInt32(0xFF00FF)), (8, 0xE0, 0xFC_0000), (24, 0x01_0203, 0x01_0203)])
    func `pixels of other depths come as 24 bits`(depth: UInt8, value: UInt32, colour: UInt32) throws {
        let bench = try DisplayBench()
        try bench.connectScreen(depth: depth)
        bench.put(100, 0, value)
        _ = bench.picture.refresh()
        #expect(bench.pixel(0, 0) & 0xFF_FFFF == colour)
    }

    @Test func `what makes no sense is refused in words`() throws {
        let wrong: [(DisplayBench) throws -> Void] = [
            { try $0.connectScreen(bytes: 64 * 48 * 4 - 1) }, { try $0.connectScreen(depth: 7) },
            { try $0.connectScreen(bytes: .max) }, { try $0.connectScreen(bytes: 0) },
            { try $0.set("vfb", ["page-ref": "99999999", "event-channel": "7", "state": "3"]) },
            { try $0.set("vfb", ["page-ref": "10", "event-channel": "70000", "state": "3"]) },
            { try $0.set("vfb", ["page-ref": "-1", "state": "3"]) }, { try $0.set("vfb", ["state": "3"]) },
        ]
        for (index, attempt) in wrong.enumerated() {
            let bench = try DisplayBench()
            try attempt(bench)
            #expect(try bench.node(DisplayBench.screenPath, "state") == "5", "\(index)")
            #expect(bench.reports.count == 1)
            #expect(try bench.node("/local/domain/0/error/backend/vfb/5/0", "error")?.isEmpty == false)
            _ = bench.picture.refresh()
        }
        let bench = try DisplayBench()
        try bench.connectScreen()
        for shape in [
            [0, 24, 256, 32, 0], [64, 49, 256, 32, 0], [64, 48, 255, 32, 0], [64, 48, 256, 32, 1],
            [.max, .max, .max, 32, .max],
        ] as [[UInt32]] {
            bench.resize(shape[0], shape[1], shape[2], shape[3], shape[4])
            #expect(bench.picture.width == 64 || bench.picture.width == 640)
        }
        #expect(bench.reports.count == 5)
        bench.put(10, 12, 0x8000_0000)
        bench.ports.bound[7]?.onEvent()
        #expect(!bench.screen.turn() && bench.reports.count == 6)
    }

    @Test func `keys and pointer reach the guest as it asked`() throws {
        let bench = try DisplayBench()
        #expect(try bench.node(DisplayBench.keyboardPath, "feature-abs-pointer") == "1")
        bench.domain.grant(9, frame: 20)
        try bench.set(
            "vkbd",
            ["page-ref": "21", "page-gref": "9", "event-channel": "8", "request-abs-pointer": "1", "state": "3"])
        #expect(try bench.node(DisplayBench.keyboardPath, "state") == "4")
        func event(_ index: Int) -> [UInt8] {
            Array(bench.domain.page(20)[(1024 + index * 40)..<(1024 + index * 40 + 16)])
        }
        bench.keyboard.key(0x1E, isDown: true)
        #expect(bench.word(20, 4) == 1 && bench.ports.bound[8]?.notifications == 1)
        #expect(event(0) == [3, 1, 0, 0, 30, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
        // An arrow key, and one that no Linux knows.
        bench.keyboard.key(0x80 | 0x48, isDown: false)
        bench.keyboard.key(0xFF, isDown: true)
        #expect(event(1)[..<8] == [3, 0, 0, 0, 103, 0, 0, 0] && bench.word(20, 4) == 2)
        bench.keyboard.screen = { (101, 201) }
        bench.keyboard.pointer(dx: 3, dy: 0, wheel: 1, buttons: 1, x: 16_384, y: 32_767)
        #expect(event(2) == [4, 0, 0, 0, 50, 0, 0, 0, 200, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF])
        #expect(event(3)[..<8] == [3, 1, 0, 0, 0x10, 1, 0, 0])
        // A guest that does not read loses what has no room, and no more.
        for _ in 0..<100 { bench.keyboard.key(0x1E, isDown: true) }
        #expect(bench.word(20, 4) == 51)
        bench.put(20, 0, 51)
        bench.keyboard.key(0x1E, isDown: false)
        #expect(bench.word(20, 4) == 52 && event(0)[1] == 0)
        bench.put(20, 0, 1000)
        bench.keyboard.key(0x1E, isDown: true)
        #expect(bench.reports.count == 1)
        try bench.set("vkbd", ["state": "6"])
        #expect(bench.domain.grants.count == 0 && bench.ports.bound[8]?.isClosed == true)
    }

    @Test func `a front end without a grant names a frame, and one without tablet gets motion`() throws {
        let bench = try DisplayBench()
        try bench.set("vkbd", ["page-ref": "21", "event-channel": "8", "state": "3"])
        bench.keyboard.pointer(dx: -2, dy: 5, wheel: 0, buttons: 0, x: 0, y: 0)
        let event = Array(bench.domain.page(21)[1024..<1040])
        #expect(event == [1, 0, 0, 0, 0xFE, 0xFF, 0xFF, 0xFF, 5, 0, 0, 0, 0, 0, 0, 0])
    }

    @Test(arguments: 1...4) func `no frame buffer of random numbers harms`(seed: Int) throws {
        var random = Seeded(UInt64(seed))
        for _ in 0..<60 {
            let bench = try DisplayBench()
            for offset in stride(from: 0, to: 1024, by: 4) {
                let kind = Int.random(in: 0..<4, using: &random)
                bench.put(
                    10, offset,
                    kind == 0 ? .max : kind == 1 ? 0 : UInt32.random(in: 0...(kind == 2 ? 600 : .max), using: &random))
            }
            for index in 0..<512 where Bool.random(using: &random) {
                let number = UInt64.random(in: 0...520, using: &random)
                bench.domain.page(11).storeBytes(of: number, toByteOffset: index * 8, as: UInt64.self)
            }
            if Bool.random(using: &random) { try bench.connectScreen() }
            try bench.set("vfb", ["page-ref": "10", "event-channel": "7", "state": "3"])
            for _ in 0..<10 {
                bench.resize(
                    UInt32.random(in: 0...70, using: &random), UInt32.random(in: 0...60, using: &random),
                    UInt32.random(in: 0...300, using: &random), [8, 16, 24, 32].randomElement(using: &random) ?? 8,
                    UInt32.random(in: 0...6000, using: &random))
                _ = bench.picture.refresh()
            }
        }
    }
}
