import Foundation
import Glibc
import Host
import Testing

@Suite("Pages over HTTP") struct PageServerTests {
    @Test("Places are ports of this host or paths, and nothing else")
    func places() {
        #expect(PageServer.Place("9100") == .port(9100))
        #expect(PageServer.Place("127.0.0.1:9100") == .port(9100))
        #expect(PageServer.Place("localhost:1") == .port(1))
        #expect(PageServer.Place("unix:metrics") == .path("metrics"))
        #expect(PageServer.Place("/run/metrics") == .path("/run/metrics"))
        for wrong in ["", "unix:", "0.0.0.0:9100", "[::]:9100", "70000", "host:1", "-1"] {
            #expect(PageServer.Place(wrong) == nil, "\(wrong)")
        }
    }

    /// Sends bytes to the server's socket and reads the answer.
    private func ask(_ path: String, _ request: String) throws -> String {
        let client = try StreamSocket.connect(path)
        try HostFile.write(Array(request.utf8), to: client.number)
        shutdown(client.number, Int32(SHUT_WR))
        var bytes: [UInt8] = []
        while let more = try? HostFile.readAvailable(client.number), !more.isEmpty { bytes += more }
        return String(decoding: bytes, as: UTF8.self)
    }

    @Test(
        "Requests and what they get",
        arguments: [
            ("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "200 OK"), ("GET /metrics?x=1 HTTP/1.0\n\n", "200 OK"),
            ("GET / HTTP/1.1\r\n\r\n", "404 Not Found"), ("POST /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
            ("hello\r\n\r\n", "400 Bad Request"), ("", "400 Bad Request"),
            (String(repeating: "x", count: 20_000), "400 Bad Request"),
        ])
    func answers(request: String, status: String) throws {
        let path = "/tmp/apus-page-\(UUID().uuidString.prefix(8))"
        let server = try PageServer(.path(path))
        nonisolated(unsafe) let shared = server
        let done = DispatchSemaphore(value: 0)
        Thread.detachNewThread {
            shared.serveOne { $0 == "/metrics" ? "one 1\n" : nil }
            done.signal()
        }
        let answer = try ask(path, request)
        done.wait()
        #expect(answer.hasPrefix("HTTP/1.1 \(status)\r\n"), "\(answer)")
        #expect(status != "200 OK" || answer.hasSuffix("Content-Length: 6\r\nConnection: close\r\n\r\none 1\n"))
    }

    @Test("A free port of 127.0.0.1 is found; a taken one is an error")
    func ports() throws {
        let server = try PageServer(.port(0))
        let port = try #require(server.port)
        #expect(port > 0)
        #expect(throws: HostFailure.self) { try PageServer(.port(port)) }
    }
}
