// hypervisor --directory DIR [--paused]: runs the vCPUs of one HVM domain.
// Descriptor 3 takes status lines (JSON), descriptor 4 is the socket to the device model.

import Foundation
import Host
import Kernel

/// Writes one line of JSON to the monitor; that it has gone is not our concern.
func report(_ fields: [String: Any]) {
    guard let json = try? JSONSerialization.data(withJSONObject: fields) else { return }
    try? HostFile.write(Array(json) + [0x0A], to: 3)
}

signal(SIGPIPE, SIG_IGN)
let arguments = CommandLine.arguments
guard arguments.count >= 3, arguments[1] == "--directory", arguments.count == 3 || arguments[3...] == ["--paused"]
else {
    FileHandle.standardError.write(Data("usage: hypervisor --directory DIR [--paused]\n".utf8))
    exit(2)
}
do {
    let deviceModel = MessageSocket(Descriptor(owning: 4))
    let hypervisor = try Hypervisor(directory: arguments[2], deviceModel: deviceModel)
    let reason = try hypervisor.run(paused: arguments.count == 4) { report(["ready": true]) }
    report(["exit": reason.rawValue])
    // vCPU threads may still be on their way out; nothing they hold outlives the process.
    _exit(0)
} catch {
    report(["error": "\(error)"])
    FileHandle.standardError.write(Data("hypervisor: \(error)\n".utf8))
    exit(1)
}
