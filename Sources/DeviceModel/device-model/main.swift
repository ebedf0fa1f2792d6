// device-model --directory DIR: the PC hardware of one HVM domain.
// Descriptor 3 takes status lines (JSON), 4 is the socket to the hypervisor, those from 5 on are network cards' ports.

import DomainProcess
import Host
import PCBoard

let process = DomainProcess("device-model")
process.run {
    let hypervisor = MessageSocket(Descriptor(owning: 4))
    let model = try DeviceModel(directory: process.directory, hypervisor: hypervisor) {
        Descriptor(owning: Int32(5 + $0))
    }
    try model.run { process.say(StatusLine(ready: true)) }
}
