// Talking to a domain's processes.
// Source: the control protocol of hypervisor, device-model and monitor: one JSON object a line.
// Modelled: requests with a deadline.
// Quirks: a process that does not answer is as good as dead, and said to be.

internal import Foundation
internal import Host

/// What a process is asked.
public struct ControlRequest: Codable, Equatable, Sendable {
    public var command: String
    public var vdev: String?
    public var target: String?
    public var vcpu: Int?
    public init(_ command: String, vdev: String? = nil, target: String? = nil, vcpu: Int? = nil) {
        (self.command, self.vdev, self.target, self.vcpu) = (command, vdev, target, vcpu)
    }
}

/// What it answers; which fields are there depends on the command.
public struct ControlReply: Codable, Equatable, Sendable {
    public struct Processor: Codable, Equatable, Sendable {
        public var cpuSeconds: Double?
        public var state: String?
        /// false while the guest has switched it off.
        public var online: Bool?
    }
    public struct Address: Codable, Equatable, Sendable {
        public var address: String?
        public var port: Int?
    }
    public var ok: Bool?
    public var error: String?
    /// "r" running, "b" blocked, "p" paused.
    public var state: String?
    public var cpuSeconds: Double?
    public var vcpus: [Processor]?
    public var memoryKiB: Int?
    public var vnc: Address?
    public var console: String?
    /// A virtual device and what it has done (back ends).
    public struct Device: Codable, Equatable, Sendable {
        public var kind: String?
        public var number: Int?
        /// Requests that waited for a free slot.
        public var waits: Int?
        public var reads: Int?
        public var writes: Int?
        public var readSectors: Int?
        public var writtenSectors: Int?
    }
    public var devices: [Device]?
    /// A virtual interface and what the guest has sent and received by it (back ends).
    public struct Interface: Codable, Equatable, Sendable {
        public var number: Int?
        public var sentBytes: Int?
        public var receivedBytes: Int?
    }
    public var interfaces: [Interface]?
    /// Events between guest and back ends, both ways (back ends).
    public var eventsReceived: Int?
    public var eventsSent: Int?
    /// How often vCPUs left guest code.
    public var exits: Int?
    /// Whether somebody has to do with a device still (back ends).
    public var serves: Bool?
    /// How often the guest has read control/sysrq, if it watches it (back ends).
    public var probeReads: UInt64?
    /// How the domain ended (monitor).
    public var reason: String?
    public init(ok: Bool? = nil, error: String? = nil) { (self.ok, self.error) = (ok, error) }
}

/// A question to one of a domain's processes: sent when it is made, answered later.
public struct ControlQuestion {
    private let question: LineQuestion
    private let name: String

    /// Asks the process that serves `socket`; `descriptors` go with the question.
    public init(_ socket: String, _ request: some Encodable, descriptors: [Int32] = []) throws(ToolstackError) {
        let program = URL(fileURLWithPath: socket).deletingPathExtension().lastPathComponent
        name = program == "control" ? "hypervisor" : program
        do {
            let line = String(decoding: try JSONEncoder().encode(request), as: UTF8.self)
            question = try LineQuestion(line, descriptors: descriptors, at: socket)
        } catch { throw ToolstackError("\(name) does not answer: \(error)") }
    }

    public func answer(seconds: Double = 5) throws(ToolstackError) -> ControlReply {
        do {
            let answer = try question.answer(seconds: seconds)
            let reply = try JSONDecoder().decode(ControlReply.self, from: Data(answer.utf8))
            if let error = reply.error { throw ToolstackError("\(name): \(error)") }
            return reply
        } catch let error as ToolstackError {
            throw error
        } catch is DecodingError {
            throw ToolstackError("\(name) gave an answer that makes no sense")
        } catch {
            throw ToolstackError("\(name) does not answer: \(error)")
        }
    }
}

public enum Control {
    /// Asks, and waits for the answer.
    public static func ask(
        _ socket: String, _ request: some Encodable, descriptors: [Int32] = [], seconds: Double = 5
    ) throws(ToolstackError) -> ControlReply {
        try ControlQuestion(socket, request, descriptors: descriptors).answer(seconds: seconds)
    }
}
