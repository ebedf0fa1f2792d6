// device-model --directory DIR: the PC hardware of one HVM domain.
// Descriptor 3 takes status lines (JSON), 4 is the socket to the hypervisor, those from 5 on are network cards' ports.

import Foundation
import Host
import PCBoard

/// Writes one line of JSON to the monitor; that it has gone is not our concern.
func report(_ fields: [String: Any]) {
    guard let json = try? JSONSerialization.data(withJSONObject: fields) else { return }
    try? HostFile.write(Array(json) + [0x0A], to: 3)
}

signal(SIGPIPE, SIG_IGN)
let arguments = CommandLine.arguments
guard arguments.count == 3, arguments[1] == "--directory" else {
    FileHandle.standardError.write(Data("usage: device-model --directory DIR\n".utf8))
    exit(2)
}
do {
    let hypervisor = MessageSocket(Descriptor(owning: 4))
    let model = try DeviceModel(directory: arguments[2], hypervisor: hypervisor) {
        Descriptor(owning: Int32(5 + $0))
    }
    try model.run { report(["ready": true]) }
} catch {
    report(["error": "\(error)"])
    FileHandle.standardError.write(Data("device-model: \(error)\n".utf8))
    exit(1)
}
