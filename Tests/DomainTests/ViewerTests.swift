import Foundation
import Glibc
import Testing

extension Guests {
    /// The client that the guide names, in a real window on a virtual X display.
    @Suite("gvncviewer", .serialized) struct ViewerTests {
        @Test("gvncviewer connects and shows the guest") func gvncviewer() throws {
            let domain = try Domain(
                "viewer", Guests.HVMTests.cdrom("/usr/lib/memtest86+/memtest86+x64.iso", memory: 64))
            try domain.waitForScreen("Memtest86+")
            let display = ":\(90 + Int(getpid()) % 100)"
            let server = try start("/usr/bin/Xvfb", [display, "-screen", "0", "1024x768x24"], display: display)
            defer { server.terminate() }
            usleep(2_000_000)
            let viewer = try start(
                "/usr/bin/gvncviewer", ["127.0.0.1:\(domain.vncPort - 5900)"], display: display)
            defer { viewer.terminate() }
            let picture = Site.pictures.appendingPathComponent("gvncviewer.png").path
            var text = ""
            for _ in 0..<20 where !text.contains("Memtest") {
                usleep(2_000_000)
                try Site.run(
                    URL(fileURLWithPath: "/usr/bin/env"),
                    ["DISPLAY=\(display)", "import", "-window", "root", "-resize", "200%", picture])
                text = try Site.run(URL(fileURLWithPath: "/usr/bin/tesseract"), [picture, "-", "--psm", "6"]).output
            }
            #expect(text.contains("Memtest"), "the window showed: \(text)")
        }

        private func start(_ program: String, _ arguments: [String], display: String) throws -> Process {
            let process = Process()
            process.executableURL = URL(fileURLWithPath: program)
            process.arguments = arguments
            process.environment = ProcessInfo.processInfo.environment.merging(["DISPLAY": display]) { $1 }
            process.standardOutput = FileHandle.nullDevice
            process.standardError = FileHandle.nullDevice
            try process.run()
            return process
        }
    }
}
