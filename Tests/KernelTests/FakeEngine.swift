import Foundation
import Processor
import Synchronization

/// An engine whose guest is a script, run on the vCPU's own thread.
final class FakeEngine: VCPUEngine, @unchecked Sendable {
    // Invariant: all but `log` is used by the vCPU's thread alone.
    let bus: any GuestBus
    let attention: UnsafeMutablePointer<UInt32>
    /// What `run` does; the engine comes back with its answer.
    var script: (FakeEngine) -> EngineExit = { _ in .halt }
    let log = Mutex<[String]>([])
    var canTakeInterrupt = true
    var wantsInterruptWindow = false
    var isLongMode = true
    var privilegeLevel = 0
    var registers = [UInt64](repeating: 0, count: 16)

    init(_ bus: any GuestBus, _ attention: UnsafeMutablePointer<UInt32>) {
        (self.bus, self.attention) = (bus, attention)
    }

    func note(_ line: String) { log.withLock { $0.append(line) } }
    func run() -> EngineExit { script(self) }
    func inject(vector: UInt8) { note("vector \(vector)") }
    func injectNMI() { note("nmi") }
    func startFlat(entry: UInt64, registers: [UInt64]) { note("flat \(entry)") }
    var timeStampCounter: UInt64 { 1000 }
    func reset(powerOn: Bool, isBootProcessor: Bool) { note("reset \(powerOn)") }
    func startup(vector: UInt8) { note("startup \(vector)") }
    func memoryMapChanged() { note("map") }
    func timeStoodStill(ticks: UInt64) { note("time stood still") }
    func codeChanged(at address: UInt64, bytes: UInt64) { note("code \(address) \(bytes)") }
    func physicalAddress(ofLinear address: UInt64) -> UInt64? { address < 1 << 20 ? address : nil }
    subscript(register register: Int) -> UInt64 {
        get { registers[register] }
        set { registers[register] = newValue }
    }

    /// Waits until `line` was noted; false after twenty seconds, which only a failure takes, or `within` milliseconds.
    func saw(_ line: String, within: Int = 20_000) -> Bool {
        for _ in 0..<within {
            if log.withLock({ $0.contains(line) }) { return true }
            usleep(1000)
        }
        return false
    }
}
