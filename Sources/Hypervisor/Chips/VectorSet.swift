/// The 256 bits of IRR, ISR or TMR.
public struct VectorSet: Codable, Equatable, Sendable {
    private var a: UInt64 = 0
    private var b: UInt64 = 0
    private var c: UInt64 = 0
    private var d: UInt64 = 0
    public init() {}

    public subscript(vector: UInt8) -> Bool {
        get { self[quad: Int(vector >> 6)] >> UInt64(vector & 63) & 1 != 0 }
        set {
            let bit = UInt64(1) << UInt64(vector & 63)
            if newValue { self[quad: Int(vector >> 6)] |= bit } else { self[quad: Int(vector >> 6)] &= ~bit }
        }
    }

    /// The highest vector, which has the highest priority.
    public var highest: UInt8? {
        if d != 0 { return 255 - UInt8(d.leadingZeroBitCount) }
        if c != 0 { return 191 - UInt8(c.leadingZeroBitCount) }
        if b != 0 { return 127 - UInt8(b.leadingZeroBitCount) }
        if a != 0 { return 63 - UInt8(a.leadingZeroBitCount) }
        return nil
    }

    /// Register `index` (0-7) of 32 bits.
    public func word(_ index: Int) -> UInt32 {
        UInt32(truncatingIfNeeded: self[quad: index >> 1 & 3] >> (index & 1 == 0 ? 0 : 32))
    }

    private subscript(quad index: Int) -> UInt64 {
        get {
            switch index {
            case 0: return a
            case 1: return b
            case 2: return c
            default: return d
            }
        }
        set {
            switch index {
            case 0: a = newValue
            case 1: b = newValue
            case 2: c = newValue
            default: d = newValue
            }
        }
    }
}
