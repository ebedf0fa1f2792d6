import Foundation
import Glibc

/// Where the programs and guests are, and one run directory for all tests of this process.
enum Site {
    static let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
        .deletingLastPathComponent()
    /// The programs under test, beside the test bundle unless `APUS_BIN` names another folder.
    static let programs =
        ProcessInfo.processInfo.environment["APUS_BIN"].map { URL(fileURLWithPath: $0) }
        ?? root.appendingPathComponent(".build/release")
    static let guests = root.appendingPathComponent(".build/guests")
    static let pictures = root.appendingPathComponent(".build/screens")
    static let run: URL = {
        let directory = URL(fileURLWithPath: "/tmp/apus-test-\(getpid())")
        try? FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
        return directory
    }()

    /// Runs a program to its end; exit code and what it printed.
    @discardableResult
    static func run(_ program: URL, _ arguments: [String]) throws -> (status: Int32, output: String, error: String) {
        let process = Process()
        process.executableURL = program
        process.arguments = arguments
        var environment = ProcessInfo.processInfo.environment
        environment["APUS_RUN_DIR"] = run.path
        process.environment = environment
        process.standardInput = FileHandle.nullDevice
        // Files, not pipes: a monitor that stays behind would keep a pipe open.
        let files = ["out", "err"].map { run.appendingPathComponent("\(UUID().uuidString).\($0)") }
        for file in files { try Data().write(to: file) }
        defer { for file in files { try? FileManager.default.removeItem(at: file) } }
        process.standardOutput = try FileHandle(forWritingTo: files[0])
        process.standardError = try FileHandle(forWritingTo: files[1])
        try process.run()
        process.waitUntilExit()
        let texts = try files.map { String(decoding: try Data(contentsOf: $0), as: UTF8.self) }
        return (process.terminationStatus, texts[0], texts[1])
    }

    /// An empty sparse disk image.
    static func makeDisk(_ name: String, bytes: UInt64) throws -> URL {
        let file = run.appendingPathComponent(name)
        try Data().write(to: file)
        try FileHandle(forWritingTo: file).truncate(atOffset: bytes)
        return file
    }

    /// A copy of the Linux CD whose kernel gets more parameters.
    static func linuxCD(_ parameters: String, named name: String) throws -> URL {
        var bytes = try Data(contentsOf: guests.appendingPathComponent("linux.iso"))
        let end = Data("panic=-1\n\(String(repeating: "#", count: 200))".utf8)
        guard let range = bytes.range(of: end) else { throw Domain.Failure(description: "the CD has no room") }
        let line = "panic=-1 \(parameters)\n"
        let rest = String(repeating: "#", count: end.count - line.utf8.count)
        bytes.replaceSubrange(range, with: Data((line + rest).utf8))
        let file = run.appendingPathComponent("\(name).iso")
        try bytes.write(to: file)
        return file
    }

    /// A TCP port of 127.0.0.1 that nobody has now.
    static func freePort() throws -> Int {
        let descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        defer { close(descriptor) }
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
        var size = socklen_t(MemoryLayout<sockaddr_in>.size)
        let named = withUnsafeMutablePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(descriptor, $0, size) == 0 && getsockname(descriptor, $0, &size) == 0
            }
        }
        guard named else { throw Domain.Failure(description: "no port is free") }
        return Int(UInt16(bigEndian: address.sin_port))
    }

    /// The processes that serve the domain of `directory`.
    static func processes(
        of directory: URL, _ names: [String] = ["hypervisor", "device-model", "backend"]
    ) throws -> [(id: pid_t, name: String)] {
        try FileManager.default.contentsOfDirectory(atPath: "/proc").compactMap { entry in
            guard let id = pid_t(entry), let line = FileManager.default.contents(atPath: "/proc/\(id)/cmdline")
            else {
                return nil
            }
            let words = line.split(separator: 0).map { String(decoding: $0, as: UTF8.self) }
            guard words.contains(directory.path), let program = words.first else { return nil }
            let name = URL(fileURLWithPath: program).lastPathComponent
            return names.contains(name) ? (id, name) : nil
        }
    }

    static func xl(_ arguments: String...) throws -> (status: Int32, output: String, error: String) {
        try run(programs.appendingPathComponent("xl"), arguments)
    }

    /// Looks until `condition` holds; whether it came to hold in time, which is long enough for a busy machine.
    static func eventually(within seconds: Int = 60, _ condition: () throws -> Bool) rethrows -> Bool {
        let end = Date().addingTimeInterval(Double(seconds))
        while try !condition() {
            guard Date() < end else { return false }
            usleep(100_000)
        }
        return true
    }
}

/// A domain created from a config text, destroyed when the test lets go of it.
final class Domain {
    struct Failure: Error, CustomStringConvertible {
        var description: String
    }
    let name: String
    let id: Int
    private let file: URL

    /// Writes `lines` and a name into a config file and runs `xl create` on it, in a network of its own if one is given.
    init(_ name: String, _ lines: String, in host: HostNamespace? = nil) throws {
        self.name = "\(name)-\(getpid())"
        file = Site.run.appendingPathComponent("\(name).cfg")
        try Data("name = '\(self.name)'\n\(lines)\n".utf8).write(to: file)
        let xl = Site.programs.appendingPathComponent("xl").path
        let created = try host?.run(xl, "create", file.path) ?? Site.xl("create", file.path)
        guard created.status == 0 else { throw Failure(description: created.error) }
        id = Int(try Site.xl("domid", self.name).output.trimmingCharacters(in: .whitespacesAndNewlines)) ?? -1
    }

    deinit { _ = try? Site.xl("destroy", name) }

    var directory: URL { Site.run.appendingPathComponent("domains/\(id)") }
    var isListed: Bool { (try? Site.xl("list", name).status) == 0 }

    /// Waits until `xl list` no longer shows it.
    func isGone(within seconds: Int = 60) -> Bool { Site.eventually(within: seconds) { !isListed } }

    /// The port its screen is on.
    var vncPort: Int {
        let text = (try? String(contentsOf: directory.appendingPathComponent("vnc"), encoding: .utf8)) ?? ""
        return text.split(whereSeparator: \.isWhitespace).last.flatMap { Int($0) } ?? 0
    }

    /// Waits for the domain that a reboot starts under the same name: its number, and where its console is.
    func successor() throws -> (number: String, console: String) {
        var found = (number: "", console: "")
        let isThere = try Site.eventually {
            found.number = try Site.xl("domid", name).output.trimmingCharacters(in: .whitespacesAndNewlines)
            found.console = Site.run.appendingPathComponent("domains/\(found.number)/console").path
            return Int(found.number).map { $0 != id } == true && FileManager.default.fileExists(atPath: found.console)
        }
        guard isThere else { throw Failure(description: "\(name) was not started again") }
        return found
    }

    func viewer() throws -> VNCClient { try VNCClient(port: vncPort) }

    /// Presses a key again and again until the screen shows `words`: prompts that wait only for seconds.
    func press(
        _ keysym: UInt32, control: Bool = false, then other: UInt32? = nil, until words: String,
        within seconds: Int = 120
    ) throws {
        let end = Date().addingTimeInterval(Double(seconds))
        while Date() < end {
            let viewer = try viewer()
            // Looking takes longer than some wait for a key; with Control it types nothing, so it may come again and again.
            for _ in 0..<(control ? 16 : 1) { try viewer.key(keysym, control: control) }
            if let other { try viewer.key(other) }
            usleep(700_000)
            try viewer.refresh()
            if try recognise(viewer).contains(words) { return }
        }
        try waitForScreen(words, within: 1)
    }

    /// Looks at the screen until its recognised text contains each of `words`; the text.
    @discardableResult
    func waitForScreen(_ words: String..., within seconds: Int = 120) throws -> String {
        let end = Date().addingTimeInterval(Double(seconds))
        var text = ""
        while Date() < end {
            let viewer = try viewer()
            try viewer.refresh()
            text = try recognise(viewer)
            let flat = text.lowercased().filter { !$0.isWhitespace }
            if words.allSatisfy({ flat.contains($0.lowercased().filter { !$0.isWhitespace }) }) { return text }
            guard isListed else { break }
            usleep(1_000_000)
        }
        throw Failure(
            description: "\(name): the screen never showed \(words); last seen:\n\(text)\nBIOS and hypervisor said:\n"
                + logTail())
    }

    /// The screen's text: letter by letter where the VGA font was used, and what tesseract makes of it besides.
    /// The picture stays under `.build/screens`.
    func recognise(_ viewer: VNCClient) throws -> String {
        try FileManager.default.createDirectory(at: Site.pictures, withIntermediateDirectories: true)
        let picture = Site.pictures.appendingPathComponent("\(name).ppm")
        try viewer.ppm(scale: 2).write(to: picture)
        let (exact, unknown) =
            GlyphReader()?.text(of: viewer.pixels, width: viewer.width, height: viewer.height) ?? ("", 0)
        // Linux' own font has some letters of another shape.
        guard exact.filter({ !$0.isWhitespace }).count < 40 || 1...9 ~= unknown else { return exact }
        return exact
            + (try Site.run(URL(fileURLWithPath: "/usr/bin/tesseract"), [picture.path, "-", "--psm", "6"]).output)
    }

    /// Keeps the last picture as `.build/screens/NAME.png`: the README's screenshot is made this way.
    func keepPicture(as name: String) throws {
        let picture = Site.pictures.appendingPathComponent("\(self.name).ppm").path
        let kept = Site.pictures.appendingPathComponent("\(name).png").path
        try Site.run(URL(fileURLWithPath: "/usr/bin/convert"), [picture, "-scale", "50%", kept])
    }

    private func logTail() -> String {
        ["bios.log", "hypervisor.log", "device-model.log"].map { file in
            let text = (try? String(contentsOf: directory.appendingPathComponent(file), encoding: .utf8)) ?? "none"
            return "\(file): \(text.split(separator: "\n").suffix(12).joined(separator: "\n"))"
        }.joined(separator: "\n")
    }

    /// The guest's serial console, opened as a terminal is.
    func console() throws -> Console { try Console(directory.appendingPathComponent("console").path) }

    /// Xen's console of a domain that has a serial one as well.
    func pvConsole() throws -> Console { try Console(directory.appendingPathComponent("pv-console").path) }
}

/// The host's end of the guest's COM1.
final class Console {
    private let descriptor: Int32
    /// What has come and nobody has waited for yet.
    private var text = ""

    init(_ path: String) throws {
        descriptor = open(path, O_RDWR | O_NOCTTY | O_NONBLOCK)
        guard descriptor >= 0 else { throw Domain.Failure(description: "cannot open \(path)") }
        var mode = termios()
        tcgetattr(descriptor, &mode)
        cfmakeraw(&mode)
        tcsetattr(descriptor, TCSANOW, &mode)
    }

    deinit { close(descriptor) }

    /// A command that waits for a file: Linux shows a device some time after its ends have met in the store.
    static func awaiting(_ path: String) -> String {
        "for i in $(seq 100); do [ -e \(path) ] && break; usleep 100000; done"
    }

    /// Waits for a Linux guest's shell. It forgets what is typed while it sets its terminal up, so it is asked until it answers.
    func waitForShell(within seconds: Int = 300) throws {
        let log = try wait(for: "guest#", within: seconds)
        for _ in 0..<30 {
            send("echo at its she''ll\n")
            if (try? wait(for: "at its shell", within: 2)) != nil { return }
        }
        throw Domain.Failure(description: "the shell does not answer; before it came:\n\(log.suffix(3000))")
    }

    func send(_ line: String) { _ = line.withCString { write(descriptor, $0, strlen($0)) } }

    /// Reads until `words` has come; what has come since the last call, with `words` at its end.
    @discardableResult
    func wait(for words: String, within seconds: Int = 120) throws -> String {
        let end = Date().addingTimeInterval(Double(seconds))
        while Date() < end {
            if let found = text.range(of: words) {
                defer { text.removeSubrange(..<found.upperBound) }
                return String(text[..<found.upperBound])
            }
            var bytes = [UInt8](repeating: 0, count: 4096)
            let got = read(descriptor, &bytes, bytes.count)
            if got > 0 { text += String(decoding: bytes.prefix(got), as: UTF8.self) } else { usleep(50_000) }
        }
        throw Domain.Failure(description: "the console never said '\(words)'; it said:\n\(text.suffix(3000))")
    }

    /// What has come and nobody has waited for.
    func rest() throws -> String {
        var bytes = [UInt8](repeating: 0, count: 65536)
        while case let got = read(descriptor, &bytes, bytes.count), got > 0 {
            text += String(decoding: bytes.prefix(got), as: UTF8.self)
        }
        defer { text = "" }
        return text
    }

    /// Types a command at a shell and returns what it printed.
    func run(_ command: String, within seconds: Int = 60) throws -> String {
        send("\(command); echo DONE-$?-EN''D\n")
        let output = try wait(for: "-END", within: seconds)
        return output
    }
    /// Lines of a Linux guest's log that tell of trouble. What it advises about the host's processor is none.
    func complaints() throws -> String {
        let log = try run("dmesg | grep -iE 'WARNING:|BUG:|Oops|stalls on|lockup' | grep -v admin-guide/hw-vuln")
        return log.split(whereSeparator: \.isNewline).filter { $0.prefixMatch(of: /\[ *[0-9]+\./) != nil }
            .joined(separator: "\n")
    }
}
