// The state of x87, MMX and SSE as a memory image, and what all instructions on it share.
// Source: Intel SDM volume 1 §8.1 (x87 state), §9.5 (MMX and x87), §10.5.1 (FXSAVE image).
// Modelled: power-on and FNINIT values, pending exceptions, FERR# (CR0.NE = 0), tag words. Not modelled: the wait for
// IGNNE#: as if it were there at once, the guest runs on until IRQ 13 arrives, and its exception flags stay.
// Quirks: the guest's registers always lie in FXSAVE64 form in `apus_vcpu.fpu`; slot n is ST(n), not R(n).

internal import CProcessor

/// Offsets in the FXSAVE image (SDM vol. 1 table 10-2).
enum FXSAVEOffset {
    static var control: Int { 0 }
    static var status: Int { 2 }
    static var tags: Int { 4 }
    static var opcode: Int { 6 }
    static var instruction: Int { 8 }
    static var data: Int { 16 }
    static var mxcsr: Int { 24 }
    static var mxcsrMask: Int { 28 }
    static var st: Int { 32 }
    static var xmm: Int { 160 }
    static var end: Int { 416 }
}

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// The guest's FXSAVE image.
    @inline(__always)
    var fpuImage: UnsafeMutableRawPointer {
        UnsafeMutableRawPointer(self) + (MemoryLayout<apus_vcpu>.offset(of: \.fpu) ?? 0)
    }

    @inline(__always) var x87Control: UInt16 {
        get { fpuImage.load(fromByteOffset: FXSAVEOffset.control, as: UInt16.self) }
        nonmutating set { fpuImage.storeBytes(of: newValue, toByteOffset: FXSAVEOffset.control, as: UInt16.self) }
    }
    @inline(__always) var x87Status: UInt16 {
        get { fpuImage.load(fromByteOffset: FXSAVEOffset.status, as: UInt16.self) }
        nonmutating set { fpuImage.storeBytes(of: newValue, toByteOffset: FXSAVEOffset.status, as: UInt16.self) }
    }
    /// One bit for each physical register that is not empty.
    @inline(__always) var x87Tags: UInt8 {
        get { fpuImage.load(fromByteOffset: FXSAVEOffset.tags, as: UInt8.self) }
        nonmutating set { fpuImage.storeBytes(of: newValue, toByteOffset: FXSAVEOffset.tags, as: UInt8.self) }
    }
    @inline(__always) var x87Top: Int { Int((x87Status >> 11) & 7) }

    /// Power-on values (SDM vol. 3 table 10-1): x87 control 0x40, MXCSR 0x1F80, registers zero.
    func resetFPU() {
        fpuImage.initializeMemory(as: UInt8.self, repeating: 0, count: MemoryLayout<apus_fpu>.size)
        pointee.upper_zero = 0
        if pointee.x87_error { withdrawX87Error() }
        x87Control = 0x0040
        x87Tags = 0xFF
        mxcsr = 0x1F80
    }

    /// FNINIT: control and status words, empty stack; register contents stay.
    func initializeX87() {
        let image = fpuImage
        rotateRegisters(to: 0)
        x87Control = 0x037F
        x87Status = 0
        x87Tags = 0
        image.storeBytes(of: 0, toByteOffset: FXSAVEOffset.opcode, as: UInt16.self)
        image.storeBytes(of: 0, toByteOffset: FXSAVEOffset.instruction, as: UInt64.self)
        image.storeBytes(of: 0, toByteOffset: FXSAVEOffset.data, as: UInt64.self)
        clearX87Error()
    }

    /// Whether an exception is flagged that the control word does not mask.
    @inline(__always) var hasPendingX87: Bool { x87Status & ~x87Control & 0x3F != 0 }

    /// Derives ES and B from flags and masks, after either was loaded (SDM vol. 1 §8.1.3.3).
    func updateX87Summary() {
        x87Status = hasPendingX87 ? x87Status | 0x8080 : x87Status & ~0x8080
        clearX87Error()
    }

    /// #MF before a waiting instruction; with CR0.NE clear the machine is told instead (SDM vol. 1 §8.7).
    @inline(__always) func checkPendingX87() throws(Fault) {
        if hasPendingX87 { try reportX87Error() }
    }

    @inline(never) private func reportX87Error() throws(Fault) {
        if pointee.cr0 & CR0.numericError != 0 { throw raise(Vector.floatingPoint) }
        guard !pointee.x87_error else { return }
        pointee.x87_error = true
        bus.signalFloatingPointError(true)
    }

    /// Takes FERR# back once nothing is pending any more.
    @inline(__always) func clearX87Error() {
        if pointee.x87_error, !hasPendingX87 { withdrawX87Error() }
    }

    @inline(never) private func withdrawX87Error() {
        pointee.x87_error = false
        bus.signalFloatingPointError(false)
    }

    /// An MMX instruction: TOP becomes 0 and all registers valid (SDM vol. 1 §9.5.1).
    @inline(__always) func enterMMX() throws(Fault) {
        try checkPendingX87()
        if x87Status & 0x3800 != 0 { rotateRegisters(to: 0) }
        x87Tags = 0xFF
    }

    /// Sets TOP and moves the slots so that each physical register keeps its contents.
    func rotateRegisters(to newTop: Int) {
        let shift = (newTop - x87Top) & 7
        x87Status = x87Status & ~0x3800 | UInt16(newTop & 7) << 11
        if shift == 0 { return }
        let slots = fpuImage + FXSAVEOffset.st
        withUnsafeTemporaryAllocation(byteCount: 128, alignment: 16) { copy in
            guard let start = copy.baseAddress else { return }
            start.copyMemory(from: slots, byteCount: 128)
            for slot in 0..<8 { (slots + 16 * slot).copyMemory(from: start + 16 * ((slot + shift) & 7), byteCount: 16) }
        }
    }

    /// The full tag word: 00 valid, 01 zero, 10 special, 11 empty, by physical register (SDM vol. 1 §8.1.7).
    var x87FullTags: UInt16 {
        var tags: UInt16 = 0
        for register in 0..<8 {
            let slot = fpuImage + FXSAVEOffset.st + 16 * ((register - x87Top) & 7)
            let significand = slot.load(as: UInt64.self)
            let exponent = slot.load(fromByteOffset: 8, as: UInt16.self) & 0x7FFF
            var tag: UInt16 = 2
            if x87Tags & 1 << register == 0 {
                tag = 3
            } else if exponent == 0, significand == 0 {
                tag = 1
            } else if exponent != 0, exponent != 0x7FFF, significand >> 63 != 0 {
                tag = 0
            }
            tags |= tag << (2 * register)
        }
        return tags
    }

    func setX87FullTags(_ tags: UInt16) {
        var short: UInt8 = 0
        for register in 0..<8 where (tags >> (2 * register)) & 3 != 3 { short |= 1 << register }
        x87Tags = short
    }
}
