// network --directory DIR: the user networks of one domain (libslirp).
// Descriptor 3 takes status lines (JSON), 4 is the socket to the monitor, by which interfaces come.

import DomainProcess
import Host
import UserNetwork

let process = DomainProcess("network")
process.run {
    let network = UserNetwork(monitor: MessageSocket(Descriptor(owning: 4)), log: process.complain)
    try network.run { process.say(StatusLine(ready: true)) }
}
