// hypervisor --directory DIR [--backend] [--paused]: runs the vCPUs of one domain.
// Descriptor 3 takes status lines (JSON), 4 is the socket to the device model, 5 the one to the back ends.

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
let options = Set(arguments.dropFirst(3))
guard arguments.count >= 3, arguments[1] == "--directory", options.isSubset(of: ["--backend", "--paused"]) else {
    FileHandle.standardError.write(Data("usage: hypervisor --directory DIR [--backend] [--paused]\n".utf8))
    exit(2)
}
do {
    let deviceModel = MessageSocket(Descriptor(owning: 4))
    let backend = options.contains("--backend") ? MessageSocket(Descriptor(owning: 5)) : nil
    let hypervisor = try Hypervisor(directory: arguments[2], deviceModel: deviceModel, backend: backend)
    let reason = try hypervisor.run(paused: options.contains("--paused")) { places in
        var line: [String: Any] = ["ready": true]
        if let places {
            line["places"] = [
                "storeFrame": places.storeFrame, "storePort": places.storePort,
                "consoleFrame": places.consoleFrame, "consolePort": places.consolePort,
            ]
        }
        report(line)
    }
    report(["exit": reason.rawValue])
    // vCPU threads may still be on their way out; nothing they hold outlives the process.
    _exit(0)
} catch {
    report(["error": "\(error)"])
    FileHandle.standardError.write(Data("hypervisor: \(error)\n".utf8))
    exit(1)
}
