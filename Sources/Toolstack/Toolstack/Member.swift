// One of a domain's processes, as its monitor sees it.
// Source: the contract of the programs: descriptor 3 is the status pipe, those from 4 on lead to others.
// Modelled: start, status lines, end.
// Quirks: the processes die with the monitor's main thread, which starts them.

internal import DomainProcess
internal import Foundation
internal import Host

final class Member {
    enum Program: String { case hypervisor, backend, bootloader, network, deviceModel = "device-model" }

    let program: Program
    let process: ChildProcess
    let status: Descriptor
    private(set) var isReady = false
    /// The sentence it gave for a failed set-up.
    private(set) var error: String?
    /// How the domain ended (hypervisor only).
    private(set) var exit: String?
    /// Where the guest finds xenstore and console (hypervisor only).
    private(set) var places: SpecialPlaces?
    private var pending: [UInt8] = []

    /// Starts the program beside `programs`' own executable, `peers` being its descriptors from 4 on. SIGKILL is 9.
    init(
        _ program: Program, programs: String, directory: DomainDirectory, peers: [Int32?], options: [String] = []
    ) throws(HostFailure) {
        let log = try HostFile.open(directory.log(of: program.rawValue), [.write, .create, .append])
        let pipe = try makePipe()
        self.program = program
        status = pipe.reading
        process = try ChildProcess(
            path: "\(programs)/\(program.rawValue)", arguments: ["--directory", directory.path] + options,
            descriptors: [nil, log.number, log.number, pipe.writing.number] + peers, deathSignal: 9)
    }

    /// Whether its end is our doing.
    private(set) var isKilled = false

    func kill() {
        isKilled = true
        process.send(9)
    }

    /// Takes what is in the status pipe; false at its end.
    func readStatus() -> Bool {
        guard let bytes = try? HostFile.readAvailable(status.number), !bytes.isEmpty else { return false }
        pending = (pending + bytes).suffix(1 << 16)
        while let end = pending.firstIndex(of: 10) {
            let line = Data(pending[..<end])
            pending.removeSubrange(...end)
            guard let message = try? JSONDecoder().decode(StatusLine.self, from: line) else { continue }
            if message.ready == true { isReady = true }
            if let known = message.places { places = known }
            if let sentence = message.error { error = error ?? sentence }
            if let reason = message.exit { exit = reason }
        }
        return true
    }
}
