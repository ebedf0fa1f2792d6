// 82441FX host bridge (i440FX "PMC").
// Source: Intel 82441FX datasheet 290549-001, §3.2.
// Modelled: identity, programmable attribute map. Not modelled: DRAM timing (registers hold what is written), SMRAM.
// Quirks: after power-on every segment of C0000-FFFFF is ROM.

public import Machine

/// Host bridge 00:00.0.
public enum I440FX {
    /// Reads and writes of one PAM segment go to RAM.
    public struct Shadow: Equatable, Sendable {
        public var read: Bool
        public var write: Bool
    }
    /// 0xC0000 + n * 16 KiB for 0...11, and 0xF0000 for 12.
    public static let segments = 13

    /// Function 0; `shadow` is told of each segment that changes.
    public static func function(
        on board: Board, memory: any DMA, shadow: @escaping (_ segment: Int, Shadow) -> Void
    ) -> PCIFunction {
        var identity = PCIIdentity(vendor: 0x8086, device: 0x1237, classCode: 0x060000, revision: 2)
        identity.command = [.memory, .busMaster]
        identity.writableCommand = [.parityResponse, .systemError]
        var last = Array(repeating: Shadow(read: false, write: false), count: segments)
        return PCIFunction(identity, registers: registers, on: board, memory: memory) { config in
            for segment in 0..<segments {
                let now = attributes(of: segment, in: config)
                guard now != last[segment] else { continue }
                last[segment] = now
                shadow(segment, now)
            }
        }
    }

    /// PAM0-PAM6, offsets 0x59-0x5F: four bits a segment, of which 0 enables reads and 1 writes (§3.2.13).
    static func attributes(of segment: Int, in config: ConfigSpace) -> Shadow {
        let nibble: UInt8
        if segment == 12 {
            nibble = config.byte(0x59) >> 4
        } else {
            nibble = config.byte(0x5A + segment / 2) >> (segment % 2 == 0 ? 0 : 4)
        }
        return Shadow(read: nibble & 1 != 0, write: nibble & 2 != 0)
    }

    static let registers =
        [
            ConfigRegister(0x50, size: 2, writable: 0xFFFF),  // PMCCFG
            ConfigRegister(0x53, size: 1, value: 0x80, writable: 0xFF),  // DBC
            ConfigRegister(0x54, size: 1, writable: 0xFF),  // AXC
            ConfigRegister(0x55, size: 2, writable: 0xFFFF),  // DRT
            ConfigRegister(0x57, size: 1, value: 0x01, writable: 0xFF),  // DRAMC
            ConfigRegister(0x58, size: 1, value: 0x10, writable: 0xFF),  // DRAMT
            ConfigRegister(0x59, size: 1, writable: 0x30),  // PAM0
        ] + (0x5A...0x5F).map { ConfigRegister($0, size: 1, writable: 0x33) }  // PAM1-PAM6
        + (0x60...0x67).map { ConfigRegister($0, size: 1, value: 0x01, writable: 0xFF) }  // DRB
        + [
            ConfigRegister(0x68, size: 1, writable: 0xC0),  // FDHC
            ConfigRegister(0x70, size: 1, value: 0x20, writable: 0xFF),  // MTT
            ConfigRegister(0x71, size: 1, value: 0x10, writable: 0xFF),  // CLT
            ConfigRegister(0x72, size: 1, value: 0x02),  // SMRAM, locked shut
            ConfigRegister(0x90, size: 1, writable: 0xFB),  // ERRCMD
            ConfigRegister(0x91, size: 1, clearedByOne: 0x11),  // ERRSTS
            ConfigRegister(0x93, size: 1),  // TRC: 0xCF9 is decoded by PIIX3
        ]
}
