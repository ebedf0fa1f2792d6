// What firmware says on its debug ports, as a file.
// Source: none needed.
// Modelled: lines are written as they end. Not modelled: rotation.
// Quirks: at 4 MiB it stops, so that a guest cannot fill the host's disk.

internal import Host

/// bios.log of a domain.
final class BIOSLog {
    private let file: Descriptor
    private var line: [UInt8] = []
    private var written = 0
    private static let limit = 4 << 20

    init(_ path: String) throws(HostFailure) { file = try HostFile.open(path, [.write, .create, .append]) }

    func write(_ byte: UInt8) {
        line.append(byte)
        if byte == 0x0A || line.count >= 512 { flush() }
    }

    private func flush() {
        if written < Self.limit {
            written += line.count
            try? HostFile.write(line, to: file.number)
        }
        line.removeAll(keepingCapacity: true)
    }
}
