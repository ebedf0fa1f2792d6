import Foundation
import Glibc
import Testing

extension Guests {
    /// Clients that people use, in real windows on a virtual X display.
    @Suite("VNC clients", .serialized) struct ViewerTests {
        /// What is started to look at a port.
        enum Client: String, CaseIterable {
            case gvncviewer, tigervnc, browser

            func command(port: Int) -> [String] {
                switch self {
                case .gvncviewer: ["/usr/bin/gvncviewer", "127.0.0.1:\(port - 5900)"]
                case .tigervnc: ["/usr/bin/xtigervncviewer", "-RemoteResize=0", "127.0.0.1::\(port)"]
                case .browser:
                    [
                        "/usr/bin/chromium", "--no-sandbox", "--no-first-run", "--disable-gpu",
                        "--user-data-dir=\(Site.run.path)/chromium",
                        "--app="
                            + "http://127.0.0.1:6080/vnc.html?host=127.0.0.1&port=\(port)&autoconnect=1&reconnect=0",
                    ]
                }
            }
        }

        @Test("A window shows the guest, and keys typed into it reach the guest", arguments: Client.allCases)
        func window(_ client: Client) throws {
            let domain = try Domain(
                client.rawValue, Guests.HVMTests.cdrom("/usr/lib/grub-rescue/grub-rescue-cdrom.iso", memory: 64))
            try domain.press(0x63, until: "grub>")  // c
            let display = ":\(90 + Int(getpid()) % 100)"
            let server = try start(["/usr/bin/Xvfb", display, "-screen", "0", "1024x768x24"], display: display)
            defer { end(server) }
            let pages = client == .browser ? try start(Self.pages, display: display) : nil
            defer { pages.map(end) }
            let isServed = try Site.eventually {
                try Self.inDisplay(display, ["xdpyinfo"]) == 0 && (pages == nil || Self.pagesAnswer())
            }
            #expect(isServed)
            let viewer = try start(client.command(port: domain.vncPort), display: display)
            defer { end(viewer) }
            let first = try look(display, client, until: "GRUB")
            #expect(first.contains("GRUB"), "the window showed: \(first)")
            try Self.inDisplay(display, ["xdotool", "mousemove", "400", "300", "click", "1"])
            if client == .tigervnc {
                // There is no window manager that would give the window the keyboard.
                let focus = "xdotool windowfocus $(xdotool getmouselocation --shell | sed -n s/WINDOW=//p)"
                try Self.inDisplay(display, ["sh", "-c", focus])
            }
            // A key that was pressed once too often on the way to the prompt stands there.
            try Self.inDisplay(display, ["xdotool", "key", "--delay", "150", "BackSpace", "BackSpace", "BackSpace"])
            try Self.inDisplay(display, ["xdotool", "type", "--delay", "150", "echo seventy-\"seven\""])
            try Self.inDisplay(display, ["xdotool", "key", "Return"])
            try domain.waitForScreen("seventy-seven", within: 30)
        }

        /// noVNC's pages; the connection itself goes to the domain's own port.
        private static let pages = [
            "/usr/bin/python3", "-m", "http.server", "--bind", "127.0.0.1", "-d", "/usr/share/novnc", "6080",
        ]

        private static func pagesAnswer() throws -> Bool {
            let curl = URL(fileURLWithPath: "/usr/bin/curl")
            return try Site.run(curl, ["-sfo", "/dev/null", "http://127.0.0.1:6080/vnc.html"]).status == 0
        }

        /// Looks at the display until its recognised text contains `words`; the text.
        private func look(_ display: String, _ client: Client, until words: String) throws -> String {
            let picture = Site.pictures.appendingPathComponent("\(client).png").path
            var text = ""
            for _ in 0..<30 where !text.contains(words) {
                usleep(2_000_000)
                try Self.inDisplay(display, ["import", "-window", "root", "-resize", "200%", picture])
                text = try Site.run(URL(fileURLWithPath: "/usr/bin/tesseract"), [picture, "-", "--psm", "6"]).output
            }
            return text
        }

        @discardableResult private static func inDisplay(_ display: String, _ command: [String]) throws -> Int32 {
            try Site.run(URL(fileURLWithPath: "/usr/bin/env"), ["DISPLAY=\(display)"] + command).status
        }

        /// Not every client heeds SIGTERM.
        private func end(_ process: Process) {
            kill(process.processIdentifier, SIGKILL)
            process.waitUntilExit()
        }

        private func start(_ command: [String], display: String) throws -> Process {
            let process = Process()
            process.executableURL = URL(fileURLWithPath: command[0])
            process.arguments = Array(command.dropFirst())
            process.environment = ProcessInfo.processInfo.environment.merging(["DISPLAY": display]) { $1 }
            process.standardOutput = FileHandle.nullDevice
            process.standardError = FileHandle.nullDevice
            try process.run()
            return process
        }
    }
}
