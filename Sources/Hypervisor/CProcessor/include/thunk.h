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

/// One memory file mapped twice: `writable` to emit, `executable` to run; never both at once.
typedef struct apus_code_buffer {
    uint8_t *_Nullable writable;
    uint8_t *_Nullable executable;
    size_t bytes;
} apus_code_buffer;

/// Maps a buffer of `bytes`; the pointers are NULL when the host refuses.
apus_code_buffer apus_code_buffer_make(size_t bytes);
void apus_code_buffer_free(apus_code_buffer buffer);

/// What thunks may use on this host.
enum {
    APUS_HOST_SSE3 = 1, APUS_HOST_SSSE3 = 2, APUS_HOST_SSE41 = 4, APUS_HOST_SSE42 = 8,
    APUS_HOST_AES = 16, APUS_HOST_PCLMUL = 32, APUS_HOST_SHA = 64,
};
uint32_t apus_host_features(void);
/// MXCSR bits the host implements.
uint32_t apus_host_mxcsr_mask(void);

#pragma clang assume_nonnull end
#endif
