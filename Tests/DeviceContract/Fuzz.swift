import Foundation
public import TestSupport
public import Testing

/// Random input, round after round, each round from a seed of its own.
///
/// A moment of it belongs to the tests; `make fuzz` goes on for APUS_FUZZ_SECONDS a target. A trap ends the process: the seed
/// under way stands in `.build/fuzz/TARGET`, and APUS_FUZZ_SEED=N tries that one alone.
/// - Parameters:
///   - target: what is tried, as in the file's name.
///   - limit: processor time that one round may take; more means that a guest can keep a device busy.
///   - round: makes something new, treats it badly and checks what must hold.
public func fuzz(
    _ target: String, limit: Duration = .seconds(20), sourceLocation: SourceLocation = #_sourceLocation,
    round: (inout Seeded) throws -> Void
) throws {
    let environment = ProcessInfo.processInfo.environment
    let only = environment["APUS_FUZZ_SEED"].flatMap { UInt64($0) }
    let seconds = environment["APUS_FUZZ_SECONDS"].flatMap { Double($0) }
    let clock = ContinuousClock()
    let end = clock.now + .seconds(seconds ?? 0.5)
    let record = try seedRecord(target)
    var seed = only ?? 1
    repeat {
        try record.seek(toOffset: 0)
        try record.write(contentsOf: Data("\(seed)\n".utf8))
        var random = Seeded(seed)
        let before = processorTime()
        try round(&random)
        #expect(processorTime() - before < limit, "\(target), seed \(seed)", sourceLocation: sourceLocation)
        seed += 1
    } while only == nil && clock.now < end
    if seconds != nil { print("\(target): \(seed - (only ?? 1)) rounds") }
}

/// What this thread has used so far: a busy machine makes no round slow.
private func processorTime() -> Duration {
    var time = timespec()
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time)
    return .seconds(time.tv_sec) + .nanoseconds(time.tv_nsec)
}

/// Where the seed under way is written down.
private func seedRecord(_ target: String) throws -> FileHandle {
    let directory = URL(fileURLWithPath: ".build/fuzz")
    try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
    let file = directory.appendingPathComponent(target)
    try Data().write(to: file)
    return try FileHandle(forWritingTo: file)
}

extension Seeded {
    public mutating func number(_ range: ClosedRange<Int>) -> Int { .random(in: range, using: &self) }
    /// True once in `count`.
    public mutating func once(in count: Int) -> Bool { number(1...count) == 1 }
    public mutating func bytes(_ count: Int) -> [UInt8] {
        var bytes = [UInt8]()
        bytes.reserveCapacity(count + 8)
        while bytes.count < count {
            let word = next()
            for shift in stride(from: UInt64(0), to: 64, by: 8) {
                bytes.append(UInt8(truncatingIfNeeded: word >> shift))
            }
        }
        bytes.removeLast(bytes.count - count)
        return bytes
    }
    /// A value as drivers write them, and as they do not: small, a single bit, an address below `memory`, anything.
    public mutating func value(memory: Int = 1 << 16) -> UInt64 {
        switch number(0...5) {
        case 0: return UInt64(number(0...255))
        case 1: return 1 << UInt64(number(0...31))
        case 2: return UInt64(number(0...(memory - 1))) & ~0xF
        case 3: return UInt64(UInt32.max) >> UInt64(number(0...31))
        default: return next()
        }
    }
}
