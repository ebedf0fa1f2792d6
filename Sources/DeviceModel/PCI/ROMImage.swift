// An expansion ROM: a card's firmware behind its ROM base address register.
// Source: PCI Local Bus Specification 2.1, §6.3.
// Modelled: reads. Not modelled: writing (there is no flash).
// Quirks: the image is padded with ones to the size the base address register decodes.

public import Machine

/// A read-only memory.
public final class ROMImage: Device {
    /// Nothing in a ROM changes.
    public struct State: DeviceState {
        public static let schema = Schema("rom", 1)
        public mutating func reset(_ cause: ResetCause) {}
    }
    private let bytes: [UInt8]
    public let regions: [Region]
    public var state = State()
    /// Bytes decoded: the image's, rounded up to a power of two of at least 2 KiB.
    public var size: UInt64 { UInt64(bytes.count) }

    public init(_ image: [UInt8]) {
        var size = 2048
        while size < image.count { size *= 2 }
        bytes = image + Array(repeating: 0xFF, count: size - image.count)
        regions = [Region("rom", .memory, 0...UInt64(size - 1), widths: [.byte, .word, .long, .quad])]
    }

    public func read(_ access: Access) throws(BusFault) -> UInt64 {
        var value: UInt64 = 0
        for index in 0..<access.width.rawValue {
            let position = Int(truncatingIfNeeded: access.offset) &+ index
            let byte = bytes.indices.contains(position) ? bytes[position] : 0xFF
            value |= UInt64(byte) << UInt64(index * 8)
        }
        return value
    }
    public func write(_ value: UInt64, _ access: Access) throws(BusFault) { throw .noRegister }
    public func settle() {}
}
