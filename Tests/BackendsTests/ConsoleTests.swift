import Host
import Rings
import TestSupport
import Testing

@testable import ConsoleBackend

@Suite struct ConsoleTests {
    private func make() throws -> (FakeDomain, FakePort, ConsoleBackend) {
        let (domain, port) = (try FakeDomain(), FakePort())
        let console = try #require(ConsoleBackend(memory: domain.memory, frame: 40, port: port))
        return (domain, port, console)
    }
    private func word(_ domain: FakeDomain, _ offset: Int) -> UInt32 {
        domain.page(40).load(fromByteOffset: offset, as: UInt32.self)
    }
    private func set(_ domain: FakeDomain, _ offset: Int, _ value: UInt32) {
        domain.page(40).storeBytes(of: value, toByteOffset: offset, as: UInt32.self)
    }
    /// The guest writes: out[2048] at 1024, out_prod at 3084.
    private func write(_ domain: FakeDomain, _ text: String) {
        var index = word(domain, 3084)
        for byte in text.utf8 {
            domain.page(40)[1024 + Int(index & 2047)] = byte
            index &+= 1
        }
        set(domain, 3084, index)
    }

    @Test func `what the guest writes is shown and kept`() throws {
        let (domain, port, console) = try make()
        var shown: [UInt8] = []
        console.onOutput = { shown += $0 }
        set(domain, 3080, 0xFFFF_FF00)
        set(domain, 3084, 0xFFFF_FF00)
        for line in 0..<120 {
            write(domain, "line \(line)\n")
            #expect(!console.turn())
        }
        let text = (0..<120).map { "line \($0)\n" }.joined()
        #expect(String(decoding: shown, as: UTF8.self) == text)
        #expect(console.history.bytes == shown && port.notifications == 120)
        #expect(word(domain, 3080) == word(domain, 3084))
    }

    @Test func `typing waits until the guest reads`() throws {
        let (domain, port, console) = try make()
        console.type((0..<3000).map { UInt8(truncatingIfNeeded: $0) })
        _ = console.turn()
        #expect(word(domain, 3076) == 1024 && port.notifications == 1)
        _ = console.turn()
        #expect(word(domain, 3076) == 1024 && port.notifications == 1)
        set(domain, 3072, 1000)
        _ = console.turn()
        #expect(word(domain, 3076) == 2024)
        #expect(domain.page(40)[1023] == 255 && domain.page(40)[0] == 0 && domain.page(40)[999] == UInt8(2023 & 0xFF))
    }

    @Test func `garbage indices are ignored until they are put right`() throws {
        let (domain, port, console) = try make()
        set(domain, 3084, 2049)
        console.type([1])
        #expect(!console.turn() && !console.isSane && port.notifications == 0)
        set(domain, 3084, 0)
        set(domain, 3076, 5000)
        #expect(!console.turn() && !console.isSane)
        set(domain, 3076, 0)
        #expect(!console.turn() && console.isSane && port.notifications == 1)
        #expect(ConsoleBackend(memory: domain.memory, frame: 4_000_000, port: port) == nil)
    }

    @Test func `no random page harms, and a turn ends`() throws {
        let (domain, _, console) = try make()
        var random = Seeded(11)
        for _ in 0..<1000 {
            set(domain, 3072 + 4 * Int.random(in: 0..<4, using: &random), UInt32(truncatingIfNeeded: random.next()))
            if Bool.random(using: &random) {
                set(domain, 3084, word(domain, 3080) &+ UInt32.random(in: 0...3000, using: &random))
            }
            if Bool.random(using: &random) { console.type([7, 8, 9]) }
            _ = console.turn()
        }
        #expect(console.history.bytes.count <= 1 << 16)
    }

    @Test func `scroll-back begins at a line`() {
        var history = ScrollBack(limit: 10)
        history.append(Array("abc\n".utf8))
        #expect(history.bytes == Array("abc\n".utf8))
        history.append(Array("defg\nhijk\n".utf8))
        #expect(history.bytes == Array("hijk\n".utf8))
        history.append([UInt8](repeating: 65, count: 1000))
        #expect(history.bytes.count == 10)
    }

    @Test func `several readers see the same, latecomers what was before`() throws {
        let path = "/tmp/apus-console-test-\(ownProcess())"
        let reactor = try Reactor()
        let readers = try ConsoleReaders(socket: path, reactor: reactor)
        defer { readers.close() }
        var typed: [UInt8] = []
        readers.onInput = { typed += $0 }
        readers.history = { Array("before\n".utf8) }
        let clients = try (0..<3).map { _ in try StreamSocket.connect(path) }
        for _ in 0..<3 { reactor.turn() }
        readers.show(Array("now\n".utf8))
        for client in clients {
            #expect(try String(decoding: HostFile.readAvailable(client.number), as: UTF8.self) == "before\nnow\n")
        }
        let terminal = try HostFile.open(readers.terminal.path, [.readWrite, .noTerminal])
        #expect(try HostFile.readAvailable(terminal.number) == Array("now\n".utf8))
        try HostFile.write(Array("x".utf8), to: terminal.number)
        reactor.turn()
        try HostFile.write(Array("y".utf8), to: clients[1].number)
        reactor.turn()
        #expect(typed == Array("xy".utf8))
        // Nobody reads the terminal: the last bytes stay.
        for _ in 0..<100 { readers.show([UInt8](repeating: 66, count: 4096)) }
    }

    @Test func `the log turns over at its limit`() throws {
        let path = "/tmp/apus-console-log-\(ownProcess())"
        defer { for name in [path, path + ".1"] { HostFile.remove(name) } }
        let log = try ConsoleLog(path, limit: 100)
        log.append([UInt8](repeating: 65, count: 90))
        log.append([UInt8](repeating: 66, count: 20))
        #expect(try HostFile.read(path) == [UInt8](repeating: 66, count: 20))
        #expect(try HostFile.read(path + ".1").count == 90)
    }
}
