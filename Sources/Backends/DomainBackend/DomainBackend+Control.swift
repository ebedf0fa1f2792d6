// What the back ends of a domain answer on their control socket: figures of rings and devices.
// Source: the control protocol of a domain's processes: one JSON object a line.
// Modelled: "status" and "statistics", which are the same here.
// Quirks: a request of the guest's ring may stand for any number of events, and an event for any number of requests.

internal import BlockBackend
internal import Foundation
internal import Host
internal import XenStoreClient

/// A request and an answer of the control socket.
struct BackendFigures: Codable {
    struct Request: Codable { var command: String }

    struct Device: Codable {
        var kind: String
        var number: Int
        /// XenbusState of this end.
        var state: String
        var reads: UInt64
        var writes: UInt64
        var flushes: UInt64
        var discards: UInt64
        var readSectors: UInt64
        var writtenSectors: UInt64
        /// Requests that were answered with an error.
        var failures: UInt64
    }
    struct Interface: Codable {
        var number: Int
        /// XenbusState of this end.
        var state: String
        /// As the guest sees it: sent is what came from it.
        var sentFrames: UInt64
        var sentBytes: UInt64
        var receivedFrames: UInt64
        var receivedBytes: UInt64
        /// Packets that could not be sent, and frames that the guest could not take or did not want.
        var sendErrors: UInt64
        var dropped: UInt64
    }
    var ok = true
    var devices: [Device]
    var interfaces: [Interface]?
    /// Events from the guest and to it, of all devices, the console and the store.
    var eventsReceived: UInt64
    var eventsSent: UInt64
}

extension DomainBackend {
    /// Serves the socket `backend.sock` in `directory`.
    func serveControl(in directory: String, on reactor: Reactor) throws(HostFailure) -> LineServer {
        try LineServer(path: directory + "/backend.sock", reactor: reactor) { [unowned self] line, answer in
            answer(self.answer(line))
        }
    }

    private func answer(_ line: String) -> String {
        guard let request = try? JSONDecoder().decode(BackendFigures.Request.self, from: Data(line.utf8)),
            ["status", "statistics"].contains(request.command)
        else { return #"{"error":"the back ends know status and statistics only"}"# }
        let json = (try? JSONEncoder().encode(figures)) ?? Data()
        return String(decoding: json, as: UTF8.self)
    }
}

extension BlockBackend {
    /// `number`: the device's among the guest's.
    func figures(_ number: Int) -> BackendFigures.Device {
        let counted = statistics
        return BackendFigures.Device(
            kind: "vbd", number: number, state: state.text, reads: counted.reads, writes: counted.writes,
            flushes: counted.flushes, discards: counted.discards, readSectors: counted.readSectors,
            writtenSectors: counted.writtenSectors, failures: counted.failures)
    }
}
