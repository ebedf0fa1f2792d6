import Foundation
import Host
import Testing

/// Runs the program `confined`, which confines itself and tries one thing.
@Suite("Confinement") struct ConfinementTests {
    /// It lies where the tests lie, in the debug build.
    static let program = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
        .deletingLastPathComponent().appendingPathComponent(".build/debug/confined")

    private func outcome(_ what: String) throws -> (end: ProcessEnd?, output: String, complaint: String) {
        let (output, complaint) = (try makePipe(), try makePipe())
        let child = try ChildProcess(
            path: Self.program.path, arguments: [what],
            descriptors: [nil, output.writing.number, complaint.writing.number])
        let end = child.reap(wait: true)
        let texts = try [output, complaint].map { pipe in
            let ready = HostFile.waitReadable([pipe.reading.number], milliseconds: 0)
            return try ready.isEmpty ? "" : String(decoding: HostFile.readAvailable(pipe.reading.number), as: UTF8.self)
        }
        return (end, texts[0], texts[1])
    }

    @Test("A confined process goes on with memory, threads, time and open files") func work() throws {
        let outcome = try outcome("work")
        #expect(outcome.output == "works\nlives\n")
        #expect(outcome.end == .exit(0))
    }

    @Test("What C libraries try is refused with an error", arguments: ["open", "socket", "fork"])
    func refused(what: String) throws {
        let outcome = try outcome(what)
        #expect(outcome.output.hasPrefix("refused"))
        #expect(outcome.output.hasSuffix("lives\n"))
    }

    @Test(
        "A forbidden call ends the process and is named by its number",
        arguments: [("execute", 59), ("kill", 62), ("executable", 9)])
    func forbidden(what: String, number: Int) throws {
        let outcome = try outcome(what)
        #expect(outcome.end == .signal(31))
        #expect(outcome.end?.description == "was ended for a forbidden system call")
        #expect(outcome.output.isEmpty)
        #expect(outcome.complaint == "confined: forbidden system call \(number)\n")
    }

    @Test("A crash still ends as a crash") func crash() throws {
        #expect(try outcome("abort").end == .signal(6))
    }
}
