import Chips
import Machine

/// Collects what controllers send instead of carrying it anywhere.
final class Recorder: InterruptBus {
    var messages: [InterruptMessage] = []
    var ended: [UInt8] = []
    func deliver(_ message: InterruptMessage, from sender: Int?) { messages.append(message) }
    func endOfInterrupt(vector: UInt8) { ended.append(vector) }
}

extension Slot {
    func out(_ region: Int, _ offset: UInt64, _ value: UInt64, _ width: Width = .byte, at now: Instant = .zero) {
        write(value, Access(region: region, offset: offset, width: width), at: now)
    }
    func get(_ region: Int, _ offset: UInt64, _ width: Width = .byte, at now: Instant = .zero) -> UInt64 {
        read(Access(region: region, offset: offset, width: width), at: now)
    }
}

func microseconds(_ count: UInt64) -> Instant { Instant(nanoseconds: count * 1000) }
