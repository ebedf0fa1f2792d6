// backend --directory DIR: the PV back ends of one domain.
// Descriptor 3 takes status lines (JSON), 4 is the socket to the hypervisor, 5 the domain's connection to xenstored,
// 6 the back ends' own, 7 the socket to the monitor.

import DomainBackend
import DomainProcess
import Host

let process = DomainProcess("backend")
process.run {
    let backend = try DomainBackend(
        directory: process.directory, hypervisor: MessageSocket(Descriptor(owning: 4)),
        guestStore: Descriptor(owning: 5), store: Descriptor(owning: 6), monitor: MessageSocket(Descriptor(owning: 7)),
        log: process.complain)
    try backend.run { process.say(StatusLine(ready: true)) }
}
