// What translated code and the loop around it share: entry, flags between their two forms, the way out to handlers.
// Source: Intel SDM volume 2 (LAHF, SETcc); our own design.
#ifndef APUS_TRANSLATOR_H
#define APUS_TRANSLATOR_H

#include "cprocessor.h"

#pragma clang assume_nonnull begin

static inline void apus_give_flags(apus_vcpu *cpu)
{
    cpu->native_flags = (cpu->arith_flags & 0xD5) << 8 | (cpu->arith_flags >> 11 & 1);
}

static inline void apus_take_flags(apus_vcpu *cpu)
{
    uint32_t raw = (uint32_t)cpu->native_flags;
    cpu->arith_flags = (raw >> 8 & 0xD5) | (raw & 1) << 11;
}

/// Runs translated code from `code` on until it leaves; the status is a handler's.
static inline uint32_t apus_run_native(apus_vcpu *cpu, void *_Nullable entry, void *code)
{
    apus_give_flags(cpu);
    uint32_t status = ((uint32_t (*)(apus_vcpu *, void *))entry)(cpu, code);
    apus_take_flags(cpu);
    return status;
}

/// Runs instructions of a block by their handlers, for translated code: `packed` is the block and,
/// from bit 48, how many. 0: the translation goes on behind them; else the status to leave with.
uint32_t apus_run_handlers(apus_vcpu *cpu, const apus_insn *insn, uint64_t packed);
static inline uint64_t apus_run_handlers_address(void) { return (uint64_t)&apus_run_handlers; }

#pragma clang assume_nonnull end
#endif
