// The monitor's part in a boot loader's run: its terminal, its end, what comes of it.
// Source: libxl's boot loader interface: two terminals, what happens on one is copied to the other.
// Modelled: users at the menu (`xl console`), destruction while it runs, a fresh run at every reboot.
// Quirks: what nobody reads is dropped; files it made are removed once the hypervisor has read them.

internal import DomainConfig
internal import DomainProcess
internal import Foundation
internal import Host

extension Monitor {
    /// Runs the boot loader if the config names one, and puts what it found into the domain's config.
    func load() throws {
        let path = ProcessInfo.processInfo.environment["PATH"] ?? "/usr/bin:/bin"
        asConfigured = config
        guard let loader = try Bootloader(config, in: directory, path: path) else { return }
        isLoading = true
        let limit = deadline
        // A user may think about a menu for as long as they like.
        deadline = nil
        defer { deadline = limit.map { _ in monotonicNanoseconds() + 120_000_000_000 } }
        let (inner, outer) = (try PseudoTerminal(), try PseudoTerminal())
        try HostFile.link(directory.console, to: outer.path)
        defer { HostFile.remove(directory.console) }
        sayConsole()
        let process = try loader.start(on: inner.path)
        Self.log("domain \(record.domid): \(loader.program) looks for a kernel")
        copy(from: inner, to: outer)
        copy(from: outer, to: inner)
        var hasEnded = false
        reactor.watch(process.ended.number) { _ in hasEnded = true }
        while !hasEnded && !destroyed { reactor.turn() }
        for number in [inner.master.number, outer.master.number, process.ended.number] { reactor.unwatch(number) }
        if destroyed { process.send(9) }
        let end = process.reap(wait: true)
        guard !destroyed else { return }
        guard end == .exit(0) else {
            throw ToolstackError("bootloader failed: it \(end.map(\.description) ?? "ended")")
        }
        let found = try loader.result()
        (config.kernel, config.ramdisk) = (found.kernel, found.ramdisk)
        config.commandLine = found.commandLine
        try directory.write(config)
        isLoading = false
    }

    /// `xl create -c` shows the menu.
    private func sayConsole() {
        guard let report, let bytes = try? JSONEncoder().encode(StatusLine(console: true)) else { return }
        try? HostFile.write([UInt8](bytes) + [10], to: report.number)
    }

    private func copy(from source: PseudoTerminal, to target: PseudoTerminal) {
        reactor.watch(source.master.number) { _ in
            let bytes = NonBlocking.read(source.master.number, limit: 4096)
            _ = NonBlocking.write(bytes[...], to: target.master.number)
        }
    }

    /// The config as the user wrote it, for the next start.
    func unloaded(_ current: DomainConfig) -> DomainConfig {
        guard let asConfigured, asConfigured.bootloader != nil else { return current }
        var config = current
        (config.kernel, config.ramdisk) = (asConfigured.kernel, asConfigured.ramdisk)
        config.commandLine = asConfigured.commandLine
        return config
    }

    /// The hypervisor has read what the loader left.
    func removeLoaded() {
        if config.bootloader != nil { HostFile.remove(directory.path + "/bootloader.d") }
    }
}
