// Native thunks: short pieces of generated code that run one guest instruction on the host's own units.
#ifndef CPROCESSOR_THUNK_H
#define CPROCESSOR_THUNK_H

#include "cprocessor.h"

#pragma clang assume_nonnull begin

/// A thunk: `reg` and `rm` are where the operands lie. The result is RFLAGS, where the instruction sets flags.
typedef uint64_t (*apus_thunk)(void *reg, void *rm, apus_vcpu *cpu, uint64_t flags);

/// Calls the thunk that `insn->extra` points to.
static inline uint64_t apus_call_thunk(const apus_insn *insn, void *reg, void *rm, apus_vcpu *cpu) {
    return ((apus_thunk)insn->extra)(reg, rm, cpu, cpu->arith_flags);
}

/// A thunk of a VEX instruction has two more operands: where VEX.vvvv and the register in the immediate lie.
typedef uint64_t (*apus_wide_thunk)(void *reg, void *rm, apus_vcpu *cpu, uint64_t flags, void *third, void *fourth);

static inline uint64_t apus_call_wide_thunk(const apus_insn *insn, void *reg, void *rm, apus_vcpu *cpu, void *third,
                                            void *fourth) {
    return ((apus_wide_thunk)insn->extra)(reg, rm, cpu, cpu->arith_flags, third, fourth);
}

/// One memory file mapped twice: `writable` to emit, `executable` to run; never both at once.
typedef struct apus_code_buffer {
    uint8_t *_Nullable writable;
    uint8_t *_Nullable executable;
    size_t bytes;
} apus_code_buffer;

/// Maps a buffer of `bytes`; the pointers are NULL when the host refuses.
apus_code_buffer apus_code_buffer_make(size_t bytes);
void apus_code_buffer_free(apus_code_buffer buffer);
/// Has the host put memory behind both mappings from `offset` on: faults, page by page, take longer. Up to where it did; beyond the
/// buffer's end, past all that there is.
size_t apus_code_buffer_populate(apus_code_buffer buffer, size_t offset);

/// What thunks may use on this host.
enum {
    APUS_HOST_SSE3 = 1, APUS_HOST_SSSE3 = 2, APUS_HOST_SSE41 = 4, APUS_HOST_SSE42 = 8,
    APUS_HOST_AES = 16, APUS_HOST_PCLMUL = 32, APUS_HOST_SHA = 64, APUS_HOST_AVX = 128, APUS_HOST_AVX2 = 256,
    APUS_HOST_FMA = 512, APUS_HOST_F16C = 1024, APUS_HOST_VAES = 2048, APUS_HOST_VPCLMUL = 4096, APUS_HOST_GFNI = 8192,
    APUS_HOST_BMI1 = 1 << 14, APUS_HOST_BMI2 = 1 << 15, APUS_HOST_ADX = 1 << 16, APUS_HOST_LZCNT = 1 << 17,
    APUS_HOST_MOVBE = 1 << 18, APUS_HOST_POPCNT = 1 << 19, APUS_HOST_XSAVE = 1 << 20,
};
/// The same all the time: asked once.
uint32_t apus_host_features(void);
/// MXCSR bits the host implements.
uint32_t apus_host_mxcsr_mask(void);

#pragma clang assume_nonnull end
#endif
