// hypervisor --directory DIR [--backend] [--paused]: runs the vCPUs of one domain.
// Descriptor 3 takes status lines (JSON), 4 is the socket to the device model, 5 the one to the back ends.

import DomainProcess
import Glibc
import Host
import Kernel

let process = DomainProcess("hypervisor", options: ["--backend", "--paused"])
process.run {
    let deviceModel = MessageSocket(Descriptor(owning: 4))
    let backend = process.options.contains("--backend") ? MessageSocket(Descriptor(owning: 5)) : nil
    let hypervisor = try Hypervisor(directory: process.directory, deviceModel: deviceModel, backend: backend)
    let reason = try hypervisor.run(paused: process.options.contains("--paused")) { places in
        process.say(StatusLine(ready: true, places: places))
    }
    process.say(StatusLine(exit: reason.rawValue))
    // vCPU threads may still be on their way out; nothing they hold outlives the process.
    _exit(0)
}
