// xl: the command line.
// Source: xl(1).
// Modelled: see CommandTable.swift. The hidden command `.monitor` is the process that stays behind of `xl create`.
// Quirks: the other programs are looked for beside this one.

import Foundation
import Host
import Toolstack

let arguments = Array(CommandLine.arguments.dropFirst())
let executable = (try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")) ?? "/usr/bin/xl"
let programs = URL(fileURLWithPath: executable).deletingLastPathComponent().path

func say(_ text: String, to descriptor: Int32) {
    do { try HostFile.write(Array(text.utf8), to: descriptor) } catch { exit(1) }
}

if arguments.first == ".monitor", arguments.count >= 2 {
    exit(Monitor.main(directory: arguments[1], paused: arguments.contains("--paused"), programs: programs))
}
do {
    let environment = ProcessInfo.processInfo.environment
    let session = Session(
        run: try RunDirectory(environment: environment), programs: programs, environment: environment,
        print: { say($0, to: 1) }, complain: { say($0 + "\n", to: 2) })
    exit(XL.main(arguments, session))
} catch {
    say("xl: \(error.message)\n", to: 2)
    exit(error.exitCode)
}
