// What the system half of the engine needs and Swift cannot say: TLB set
// selection by offset, and the host's CPUID, time stamp counter and random numbers.
// Source: Intel SDM volume 2 (CPUID, RDTSC, RDRAND, RDSEED).
// RDRAND and RDSEED are only called when the host's CPUID offers them.
#ifndef APUS_SYSTEM_H
#define APUS_SYSTEM_H

#include "cprocessor.h"

#pragma clang assume_nonnull begin

/// Makes the TLB set `mode` (APUS_TLB_*) the one in use.
static inline void apus_select_tlb(apus_vcpu *cpu, uint8_t mode)
{
    cpu->tlb_mode = mode;
    cpu->tlb_read = cpu->tlb[mode][0];
    cpu->tlb_write = cpu->tlb[mode][1];
}

/// The set of TLB entries that stays empty.
static inline apus_tlb_entry *apus_watched_entries(apus_vcpu *cpu) { return cpu->tlb_watched; }

/// Makes each data access miss the TLB, so that it is looked at.
static inline void apus_select_watched(apus_vcpu *cpu)
{
    cpu->tlb_read = cpu->tlb_watched;
    cpu->tlb_write = cpu->tlb_watched;
}

/// The PDPTE of PAE paging that translates `linear`.
static inline uint64_t *apus_pdpte(apus_vcpu *cpu, uint64_t linear) { return &cpu->pdpte[linear >> 30 & 3]; }

/// Segment register `index` (APUS_ES ... APUS_TR; higher numbers wrap).
static inline apus_segment *apus_segment_at(apus_vcpu *cpu, uint32_t index)
{
    return &cpu->seg[index & 7];
}

/// General register `index` (wraps at 16).
static inline uint64_t *apus_gpr_at(apus_vcpu *cpu, uint32_t index)
{
    return &cpu->gpr[index & 15];
}

/// Fixed-range MTRR `index` (0-10; higher numbers give the last one).
static inline uint64_t *apus_mtrr_fixed_at(apus_vcpu *cpu, uint32_t index)
{
    return &cpu->mtrr_fixed[index < 11 ? index : 10];
}

/// Base (even) or mask (odd) of a variable-range MTRR.
static inline uint64_t *apus_mtrr_variable_at(apus_vcpu *cpu, uint32_t index)
{
    return &cpu->mtrr_variable[index & 15];
}

typedef struct apus_cpuid_result { uint32_t eax, ebx, ecx, edx; } apus_cpuid_result;

static inline apus_cpuid_result apus_host_cpuid(uint32_t leaf, uint32_t subleaf)
{
    apus_cpuid_result r;
    __asm__ volatile("cpuid" : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx) : "a"(leaf), "c"(subleaf));
    return r;
}

static inline uint64_t apus_host_tsc(void)
{
    uint32_t low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (uint64_t)high << 32 | low;
}

/// The host's RDRAND: false when it had no number to give.
static inline bool apus_host_rdrand(uint64_t *value)
{
    bool carry;
    __asm__ volatile(".byte 0x48, 0x0f, 0xc7, 0xf0" : "=a"(*value), "=@ccc"(carry));
    return carry;
}

/// The host's RDSEED: false when it had no number to give.
static inline bool apus_host_rdseed(uint64_t *value)
{
    bool carry;
    __asm__ volatile(".byte 0x48, 0x0f, 0xc7, 0xf8" : "=a"(*value), "=@ccc"(carry));
    return carry;
}

#pragma clang assume_nonnull end
#endif
