// backend --directory DIR: the PV back ends of one domain.
// Descriptor 3 takes status lines (JSON), 4 is the socket to the hypervisor, 5 the domain's connection to xenstored,
// 6 one of Domain-0's, 7 the socket to the monitor.

import DomainBackend
import Foundation
import Host

/// Writes one line of JSON to the monitor; that it has gone is not our concern.
func report(_ fields: [String: Any]) {
    guard let json = try? JSONSerialization.data(withJSONObject: fields) else { return }
    try? HostFile.write(Array(json) + [0x0A], to: 3)
}

func complain(_ text: String) { FileHandle.standardError.write(Data("backend: \(text)\n".utf8)) }

signal(SIGPIPE, SIG_IGN)
let arguments = CommandLine.arguments
guard arguments.count == 3, arguments[1] == "--directory" else {
    FileHandle.standardError.write(Data("usage: backend --directory DIR\n".utf8))
    exit(2)
}
do {
    let backend = try DomainBackend(
        directory: arguments[2], hypervisor: MessageSocket(Descriptor(owning: 4)), guestStore: Descriptor(owning: 5),
        store: Descriptor(owning: 6), monitor: MessageSocket(Descriptor(owning: 7)), log: complain)
    try backend.run { report(["ready": true]) }
} catch {
    report(["error": "\(error)"])
    complain("\(error)")
    exit(1)
}
