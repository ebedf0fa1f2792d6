// Speed of the software engine on a few hot loops, in nanoseconds a round; the best of five.
// Source: our own loops, assembled by hand; every one counts ECX down and ends in HLT.
// Measured: processor time of 32-bit flat code without paging. Not measured: translation of cold code, devices.
// Quirks: build with -c release; a debug build is 50 times slower.

import CProcessor
import Glibc
import Processor

/// A machine of RAM only.
final class BareBus: GuestBus {
    var taskPriority: UInt8 = 0
    var tscFrequency: UInt64 { 1_000_000_000 }
    func readPort(_ port: UInt16, size: Int) -> UInt32 { .max }
    func writePort(_ port: UInt16, size: Int, value: UInt32) {}
    func transferPort(_ port: UInt16, size: Int, count: Int, address: UInt64, isRead: Bool, descending: Bool) {}
    func readMemory(_ address: UInt64, size: Int) -> UInt64 { .max }
    func writeMemory(_ address: UInt64, size: Int, value: UInt64) {}
    func readMSR(_ number: UInt32) -> UInt64? { nil }
    func writeMSR(_ number: UInt32, _ value: UInt64) -> Bool { false }
    func cpuid(leaf: UInt32, subleaf: UInt32, _ own: CPUIDResult) -> CPUIDResult? { nil }
}

struct Loop {
    var name: String
    var code: String
    var rounds: UInt64
}

let loops = [
    Loop(name: "integer loop", code: "01c831c28d1c50c1e80301d84975f1f4", rounds: 10_000_000),
    Loop(name: "memory sums", code: "be00002000ba000400008b0601c3015e0483c6084a75f34975e6f4", rounds: 10_000),
    Loop(name: "calls", code: "51e805000000594975f6f45589e58b450801c05dc3", rounds: 5_000_000),
    Loop(name: "byte copy", code: "be00002000bf00002100ba001000008a06880746474a75f74975e5f4", rounds: 2_000),
    Loop(
        name: "branches", code: "69c06d4ec6410539300000a900000100740143a90000020075014a4975e2f4", rounds: 5_000_000),
    Loop(
        name: "SSE arithmetic", code: "0f2805000020000f58c80f59d0660fefd90f111d100020004975e5f4", rounds: 2_000_000),
    Loop(name: "x87 arithmetic", code: "dbe3d9e8d9e8d8c1dec94975f7f4", rounds: 1_000_000),
]

/// Real mode at 0x8000: LGDT, CR0.PE, far jump to 0x8100; the GDT is at 0x8040.
let boot =
    "2e0f011618000f20c00c0124fb0f22c066ea008100000800170040800000"
    + "000000000000000000000000000000000000000000000000000000000000"
    + "000000000000000000000000ffff0000009bcf00ffff00000093cf00"
/// Flat segments, a stack at 1 MiB, CR4.OSFXSR.
let entry = "66b810008ed88ec08ed0bc000010000f20e00d000600000f22e0"

func bytes(_ hex: String) -> [UInt8] {
    var digits = hex.utf8.makeIterator()
    var result: [UInt8] = []
    func value(_ digit: UInt8) -> UInt8 { digit < 0x3A ? digit - 0x30 : digit - 0x57 }
    while let high = digits.next(), let low = digits.next() { result.append(value(high) << 4 | value(low)) }
    return result
}

func seconds() -> Double {
    var now = timespec()
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now)
    return Double(now.tv_sec) + Double(now.tv_nsec) / 1e9
}

/// Nanoseconds of processor time that a round of a loop takes; nil when it did not come to its end.
func measure(_ loop: Loop) -> Double? {
    let size = 4 << 20
    let memory = UnsafeMutableRawPointer.allocate(byteCount: size, alignment: 4096)
    memory.initializeMemory(as: UInt8.self, repeating: 0, count: size)
    let codeMap = UnsafeMutablePointer<UInt8>.allocate(capacity: size >> 12)
    codeMap.initialize(repeating: 0, count: size >> 12)
    let attention = UnsafeMutablePointer<UInt32>.allocate(capacity: 1)
    attention.initialize(to: 0)
    defer {
        memory.deallocate()
        codeMap.deallocate()
        attention.deallocate()
    }
    let start = bytes(boot)
    (memory + 0x8000).copyMemory(from: start, byteCount: start.count)
    let body = bytes(entry + loop.code)
    (memory + 0x8100).copyMemory(from: body, byteCount: body.count)
    let map = PhysicalMap()
    map.replace(with: [
        PhysicalRegion(start: 0, bytes: UInt64(size), host: memory, isWritable: true, codeMap: codeMap)
    ])
    let engine = SoftwareCPU(index: 0, map: map, bus: BareBus(), attention: attention)
    engine.reset(powerOn: true, isBootProcessor: true)
    engine.startup(vector: 8)
    engine[register: 1] = loop.rounds
    let began = seconds()
    guard engine.run() == .halt, engine[register: 1] & 0xFFFF_FFFF == 0 else { return nil }
    return (seconds() - began) / Double(loop.rounds) * 1e9
}

for loop in loops {
    let padded = loop.name + String(repeating: " ", count: max(0, 16 - loop.name.count))
    let times = (0..<5).map { _ in measure(loop) }
    if let best = times.compactMap({ $0 }).min(), !times.contains(nil) {
        print("\(padded)\(Double(Int(best * 100)) / 100) ns")
    } else {
        print("\(padded)failed")
    }
}
