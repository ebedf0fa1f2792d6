import Foundation
public import Machine
internal import TestSupport
public import Testing

/// The rules every device keeps. A new device gets all of them by one line.
/// - Parameter survivesReset: the device has a battery; what it holds outlives a reset.
public func expectContract<D: Device>(
    seed: UInt64 = 42, accesses: Int = 2_000, survivesReset: Bool = false,
    sourceLocation: SourceLocation = #_sourceLocation, of make: () -> D
) throws {
    let device = make()
    let slot = Slot("it", device)
    var random = Seeded(seed)
    var now: UInt64 = 0
    for _ in 0..<accesses where !device.regions.isEmpty {
        let region = Int.random(in: 0..<device.regions.count, using: &random)
        let size = device.regions[region].range.upperBound - device.regions[region].range.lowerBound
        let width = [Width.byte, .word, .long, .quad].randomElement(using: &random) ?? .byte
        let access = Access(region: region, offset: .random(in: 0...size, using: &random), width: width)
        now += .random(in: 0...2_000_000, using: &random)
        if Bool.random(using: &random) {
            slot.write(.random(in: 0 ... .max, using: &random), access, at: Instant(nanoseconds: now))
        } else {
            _ = slot.read(access, at: Instant(nanoseconds: now))
        }
    }
    let before = device.state
    device.settle()
    #expect(device.state == before, "settle changes no state", sourceLocation: sourceLocation)
    let saved = try JSONEncoder().encode(device.state)
    #expect(
        try JSONDecoder().decode(D.State.self, from: saved) == device.state, "a saved state loads as it was",
        sourceLocation: sourceLocation)
    if survivesReset { return }
    device.state.reset(.powerOn)
    #expect(device.state == make().state, "reset is the power-on value", sourceLocation: sourceLocation)
}
