// network: the user networks of one domain (libslirp).
// Descriptor 3 takes status lines (JSON), 4 is the socket to the monitor, by which interfaces come.

import Foundation
import Host
import UserNetwork

/// Writes one line of JSON to the monitor; that it has gone is not our concern.
func report(_ fields: [String: Any]) {
    guard let json = try? JSONSerialization.data(withJSONObject: fields) else { return }
    try? HostFile.write(Array(json) + [0x0A], to: 3)
}

func complain(_ text: String) { FileHandle.standardError.write(Data("network: \(text)\n".utf8)) }

signal(SIGPIPE, SIG_IGN)
let arguments = CommandLine.arguments
guard arguments.count == 3, arguments[1] == "--directory" else {
    FileHandle.standardError.write(Data("usage: network --directory DIR\n".utf8))
    exit(2)
}
do {
    let network = UserNetwork(monitor: MessageSocket(Descriptor(owning: 4)), log: complain)
    try network.run { report(["ready": true]) }
} catch {
    report(["error": "\(error)"])
    complain("\(error)")
    exit(1)
}
