// What the back ends of a domain answer on their control socket: figures of rings and devices, and a disk's image.
// Source: the control protocol of a domain's processes: one JSON object a line.
// Modelled: "status" and "statistics", which are the same here; "block-attach", with the image's open files; "serves":
// whether a device that was taken away is still held by anybody, and how far the guest has come with its events.
// Quirks: a request of the guest's ring may stand for any number of events, and an event for any number of requests.

internal import BlockBackend
internal import Foundation
internal import Host
internal import Images
internal import XenStoreClient

/// A request and an answer of the control socket.
struct BackendFigures: Codable {
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

    private struct Request: Codable {
        var command: String
        /// An image, whose descriptors come with the request.
        var disk: ImageFiles.Delivery?
        /// A device's directory among the back ends.
        var target: String?
    }

    private struct Refusal: Codable { var error: String }
    private struct Service: Codable {
        var ok = true
        var serves: Bool
        var probeReads: UInt64?
    }

    private func answer(_ line: String) -> String {
        let request = try? JSONDecoder().decode(Request.self, from: Data(line.utf8))
        switch (request?.command, request?.disk) {
        case ("status", _), ("statistics", _): return Self.text(figures)
        case ("block-attach", let disk?):
            do throws(ImageFailure) {
                guard let files = try ImageFiles(disk.files, control?.enclosed ?? []) else {
                    return Self.text(Refusal(error: "the image's files did not come with the request"))
                }
                try attach(files, isDisc: disk.isDisc, number: disk.number)
                return #"{"ok":true}"#
            } catch { return Self.text(Refusal(error: "\(error)")) }
        case ("serves", _):
            guard let path = request?.target else { return Self.text(Refusal(error: "whom?")) }
            return Self.text(Service(serves: serves(path), probeReads: probeReads))
        default:
            return Self.text(Refusal(error: "the back ends know status, statistics, serves and block-attach only"))
        }
    }

    private static func text(_ reply: some Encodable) -> String {
        String(decoding: (try? JSONEncoder().encode(reply)) ?? Data(), as: UTF8.self)
    }
}

extension BlockBackend {
    /// `number`: the device's among the guest's.
    func figures(_ number: Int) -> BackendFigures.Device {
        let counted = statistics
        return BackendFigures.Device(
            kind: "vbd", number: number, state: device.state.text, reads: counted.reads, writes: counted.writes,
            flushes: counted.flushes, discards: counted.discards, readSectors: counted.readSectors,
            writtenSectors: counted.writtenSectors, failures: counted.failures)
    }
}
