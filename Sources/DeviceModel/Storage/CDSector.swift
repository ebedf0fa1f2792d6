// The 2352 bytes of a mode-1 CD-ROM sector around 2048 bytes of user data.
// Source: ECMA-130 §14 (layout, EDC), annex A (error correction code).
// Modelled: sync, header, EDC, P and Q parity. Not modelled: mode 2, scrambling (annex B; done by the disc, not seen).
// Quirk: none.

enum CDSector {
    static let bytes = 2352

    /// Minute, second and frame of a block; two seconds of lead-in come first.
    static func time(_ block: UInt64) -> [UInt8] {
        let frames = block &+ 150
        return [
            UInt8(truncatingIfNeeded: frames / 4500), UInt8(truncatingIfNeeded: frames / 75 % 60),
            UInt8(truncatingIfNeeded: frames % 75),
        ]
    }

    /// Whole sectors for blocks of user data, the first of them block `first`.
    static func frames(of data: [UInt8], first: UInt64) -> [UInt8] {
        (0..<(data.count / 2048)).flatMap { index in
            frame(Array(data[(index * 2048)..<(index * 2048 + 2048)]), block: first &+ UInt64(index))
        }
    }

    private static func frame(_ data: [UInt8], block: UInt64) -> [UInt8] {
        var sector: [UInt8] = [0] + [UInt8](repeating: 0xFF, count: 10) + [0]
        // Decimal digits, one nibble each (ECMA-130 §14.2).
        sector += time(block).map { ($0 / 10) << 4 | $0 % 10 } + [1]
        sector += data
        let check = sector.reduce(0 as UInt32) { ($0 >> 8) ^ edc[Int(UInt8(truncatingIfNeeded: $0) ^ $1)] }
        sector += [0, 8, 16, 24].map { UInt8(truncatingIfNeeded: check >> UInt32($0)) }
        sector += [UInt8](repeating: 0, count: bytes - sector.count)
        // P: 86 columns of 24 rows; Q: 52 diagonals of 43 (annex A, figures A.1 to A.3).
        parity(&sector, major: 86, minor: 24, step: 86, stride: 2, at: 2076)
        parity(&sector, major: 52, minor: 43, step: 88, stride: 86, at: 2248)
        return sector
    }

    private static func parity(
        _ sector: inout [UInt8], major: Int, minor: Int, step: Int, stride: Int, at target: Int
    ) {
        let size = major * minor
        for column in 0..<major {
            var index = (column >> 1) * stride + (column & 1)
            var (a, b): (UInt8, UInt8) = (0, 0)
            for _ in 0..<minor {
                let byte = sector[12 + index]
                index += step
                if index >= size { index -= size }
                a = double(a ^ byte)
                b ^= byte
            }
            a = divideByThree[Int(double(a) ^ b)]
            sector[target + column] = a
            sector[target + major + column] = a ^ b
        }
    }

    /// Times 2 in GF(2^8) modulo x^8 + x^4 + x^3 + x^2 + 1.
    private static func double(_ value: UInt8) -> UInt8 { value << 1 ^ (value & 0x80 != 0 ? 0x1D : 0) }

    private static let divideByThree: [UInt8] = {
        var table = [UInt8](repeating: 0, count: 256)
        for value in 0...255 as ClosedRange<UInt8> { table[Int(value ^ double(value))] = value }
        return table
    }()

    /// CRC of (x^16 + x^15 + x^2 + 1)(x^16 + x^2 + x + 1), least significant bit first.
    private static let edc: [UInt32] = (0..<256).map { index in
        (0..<8).reduce(UInt32(index)) { value, _ in value >> 1 ^ (value & 1 != 0 ? 0xD801_8001 : 0) }
    }
}
