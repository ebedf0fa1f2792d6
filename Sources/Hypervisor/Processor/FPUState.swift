// The state of x87, MMX and SSE as memory images: FXSAVE, XSAVE and the older environments.
// Source: Intel SDM volume 1 §8.1, §10.5, §13; volume 2 FXSAVE, FSAVE, FSTENV.
// Modelled: power-on and FNINIT values. Not modelled: nothing known.
// Quirks: the guest's registers always lie in FXSAVE64 form in `apus_vcpu.fpu`.

internal import CProcessor

/// Offsets in the FXSAVE image (SDM vol. 1 table 10-2).
enum FXSAVEOffset {
    static let control = 0
    static let status = 2
    static let tags = 4
    static let opcode = 6
    static let instruction = 8
    static let data = 16
    static let mxcsr = 24
    static let mxcsrMask = 28
    static let st = 32
    static let xmm = 160
    static let header = 512
}

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// The guest's FXSAVE image.
    @inline(__always)
    var fpuImage: UnsafeMutableRawPointer {
        UnsafeMutableRawPointer(self) + MemoryLayout<apus_vcpu>.offset(of: \.fpu).unsafelyUnwrapped
    }

    /// Power-on values (SDM vol. 3 table 10-1): x87 control 0x40, MXCSR 0x1F80, registers zero.
    func resetFPU() {
        fpuImage.initializeMemory(as: UInt8.self, repeating: 0, count: MemoryLayout<apus_fpu>.size)
        fpuImage.storeBytes(of: 0x0040, toByteOffset: FXSAVEOffset.control, as: UInt16.self)
        fpuImage.storeBytes(of: 0xFF, toByteOffset: FXSAVEOffset.tags, as: UInt8.self)
        fpuImage.storeBytes(of: 0x1F80, toByteOffset: FXSAVEOffset.mxcsr, as: UInt32.self)
    }
}
