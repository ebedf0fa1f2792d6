// A boot loader on the host: it finds kernel, ramdisk and command line on the domain's first disk.
// Source: arguments and output format "simple0" of libxl's boot loader interface; pygrub of Xen 4.17 (xen-utils-4.17).
// Modelled: arguments, output file and directory, terminal, log. Not modelled: loaders for image formats but raw.
// Quirks: it runs as the user who runs xl: pygrub reads a file without mounting it, so no root is needed.

internal import DomainConfig
internal import Foundation
internal import Host

/// One run of the loader that a config names.
struct Bootloader {
    /// What it found.
    struct Found: Equatable {
        var kernel: String
        var ramdisk: String?
        var commandLine: String?
    }

    let program: String
    let arguments: [String]
    let output: String
    let folder: String
    let log: String

    /// nil if `config` needs none.
    init?(_ config: DomainConfig, in directory: DomainDirectory, path: String) throws(ToolstackError) {
        guard config.kind != .hvm, let name = config.bootloader, !name.isEmpty else { return nil }
        guard let disk = config.disks.first, disk.format != .empty else {
            throw ToolstackError("cannot run the bootloader with no boot disk")
        }
        guard disk.format == .raw else {
            throw ToolstackError("the bootloader cannot read a \(disk.format.rawValue) image: raw it can")
        }
        guard let program = Self.find(name, path: path) else {
            throw ToolstackError("bootloader `\(name)' is not found (pygrub is in Debian's xen-utils-4.17)")
        }
        self.program = program
        output = directory.path + "/bootloader.out"
        folder = directory.path + "/bootloader.d"
        log = directory.log(of: "bootloader")
        var arguments: [String] = []
        if let kernel = config.kernel { arguments.append("--kernel=\(kernel)") }
        if let ramdisk = config.ramdisk { arguments.append("--ramdisk=\(ramdisk)") }
        if let line = config.commandLine, !line.isEmpty { arguments.append("--args=\(line)") }
        arguments += ["--output=\(output)", "--output-format=simple0", "--output-directory=\(folder)/"]
        self.arguments = arguments + (config.bootloaderArguments ?? []) + [disk.target]
    }

    /// Where Xen's packages put their private programs.
    private static let folders = ["/usr/lib/xen-4.17/bin", "/usr/libexec/xen/bin", "/usr/lib/xen/bin"]

    /// The program of that name; old configs have paths that no package uses any more.
    static func find(_ name: String, path: String) -> String? {
        let isExecutable = { FileManager.default.isExecutableFile(atPath: $0) }
        if name.hasPrefix("/"), isExecutable(name) { return name }
        guard let base = name.split(separator: "/").last else { return nil }
        let all = folders + path.split(separator: ":").map(String.init)
        return all.map { "\($0)/\(base)" }.first(where: isExecutable)
    }

    /// Makes what it writes to, and starts it on a terminal.
    func start(on terminal: String) throws -> ChildProcess {
        HostFile.remove(folder)
        try HostFile.makeDirectory(folder)
        _ = try HostFile.open(output, [.write, .create, .truncate])
        let slave = try HostFile.open(terminal, [.readWrite, .noTerminal])
        let errors = try HostFile.open(log, [.write, .create, .append])
        var environment = ProcessInfo.processInfo.environment
        environment["TERM"] = "vt100"
        return try ChildProcess(
            path: program, arguments: arguments, environment: environment.map { "\($0.key)=\($0.value)" },
            descriptors: [slave.number, slave.number, errors.number], deathSignal: 9, newSession: true)
    }

    /// What it has written: strings of a word, a blank and a value, each ended by a zero byte.
    func result() throws -> Found {
        guard let found = Self.parse(try HostFile.read(output, limit: 1 << 16)) else {
            throw ToolstackError("the bootloader named no kernel")
        }
        for file in [found.kernel, found.ramdisk].compactMap({ $0 }) { _ = try HostFile.status(file) }
        return found
    }

    static func parse(_ bytes: [UInt8]) -> Found? {
        var found = Found(kernel: "")
        for entry in bytes.split(separator: 0) {
            let text = String(decoding: entry, as: UTF8.self).drop { $0.isNewline }
            let halves = text.split(separator: " ", maxSplits: 1, omittingEmptySubsequences: false)
            guard halves.count == 2 else { continue }
            let value = String(halves[1])
            switch halves[0].lowercased() {
            case "kernel": found.kernel = value
            case "ramdisk": found.ramdisk = value
            case "args": found.commandLine = value
            default: break
            }
        }
        return found.kernel.isEmpty ? nil : found
    }
}
