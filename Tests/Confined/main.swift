// confined WHAT: confines itself as the device model does, then tries one thing. For the tests of `Confinement`.

import Glibc
import Host

func say(_ text: String) { try? HostFile.write(Array("\(text)\n".utf8), to: 1) }

func tryOut(_ what: String) {
    switch what {
    case "work":
        // What a process goes on doing: memory, a thread, time, and a file that is open.
        let block = [UInt8](repeating: 1, count: 64 << 20)
        let event = try? HostEvent()
        let thread = try? HostThread("other") { event?.ring() }
        let ready = event.map { HostFile.waitReadable([$0.descriptor.number], milliseconds: 5000) } ?? []
        say(thread != nil && !ready.isEmpty && block.last == 1 && monotonicNanoseconds() > 0 ? "works" : "broken")
    case "open": say((try? HostFile.open("/etc/passwd", .read)) == nil ? "refused \(errno)" : "opened")
    case "socket": say(socket(AF_INET, 1, 0) < 0 ? "refused \(errno)" : "made")
    case "fork": say((try? forkWorker()) == nil ? "refused \(errno)" : "forked")
    case "execute": execl("/bin/true")
    case "kill": kill(getpid(), 0)
    case "executable":
        let memory = mmap(nil, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        say(memory == MAP_FAILED ? "refused" : "mapped")
    case "abort": abort()
    default: say("what?")
    }
}

func execl(_ path: String) {
    var arguments: [UnsafeMutablePointer<CChar>?] = [strdup(path), nil]
    execv(path, &arguments)
}

do {
    let list = Confinement.living + .events + .conversation + .images
    try list.enter(as: "confined", descriptors: 64)
    tryOut(CommandLine.arguments.dropFirst().first ?? "")
    say("lives")
} catch { say("\(error)") }
