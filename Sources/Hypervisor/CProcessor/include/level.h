// Changes of the privilege level within 64-bit mode, quicker than by deriving everything anew.
// Source: Intel SDM volume 2 (SYSCALL, SYSRET); Mode.swift and FastCalls.swift say what follows from a level in general.
// Translated code calls `apus_system_call` and `apus_system_return` with the guest's vector registers in the host's.
#ifndef APUS_LEVEL_H
#define APUS_LEVEL_H

#include "spaces.h"
#include "system.h"

#pragma clang assume_nonnull begin

/// Bits of `mode_key` that depend on the code segment, the privilege level or RFLAGS; see `ModeKey`.
enum {
    APUS_KEY_WIDTHS = 0xF,          ///< all of them: code and stack of 64 bits
    APUS_KEY_USER = 1 << 4,
    APUS_KEY_PROTECTED = 1 << 5,
    APUS_KEY_TRAP = 1 << 7,
    APUS_KEY_FLAT_DATA = 1 << 8,
    APUS_KEY_ALIGNMENT = 1 << 14,
    APUS_KEY_LONG = 1 << 16,
    APUS_KEY_FLAT_CODE = 1 << 17,
    APUS_KEY_USER_ACCESS = 1 << 18,
    APUS_KEY_MIDDLE = 1 << 25,
};

/// Whether all that changes between two levels of 64-bit code is what `apus_enter_level` changes: RFLAGS as they will be have
/// neither TF nor AC, no breakpoint is set, and the code that runs is of 64 bits.
APUS_GENERAL static inline bool apus_is_plain_level(const apus_vcpu *cpu, uint32_t system_flags)
{
    uint32_t wanted = APUS_KEY_WIDTHS | APUS_KEY_PROTECTED | APUS_KEY_LONG | APUS_KEY_FLAT_DATA | APUS_KEY_FLAT_CODE;
    return (cpu->mode_key & (wanted | APUS_KEY_TRAP)) == wanted && !(system_flags & (1u << 8 | 1u << 17 | 1u << 18));
}

/// Goes from 64-bit code to such of level 0 or 3; `cpl`, CS and SS are set already, and the level is plain.
APUS_GENERAL static inline void apus_enter_level(apus_vcpu *cpu)
{
    bool user = cpu->cpl == 3;
    cpu->mode_key = (cpu->mode_key & ~(uint32_t)(APUS_KEY_USER | APUS_KEY_ALIGNMENT | APUS_KEY_USER_ACCESS | APUS_KEY_MIDDLE)) |
                    (user ? APUS_KEY_USER : 0);
    cpu->jump_generation = user ? cpu->user_jumps : cpu->kernel_jumps;
    apus_select_tlb(cpu, user ? APUS_TLB_USER : APUS_TLB_SUPERVISOR);
}

/// Loads CS and SS with the fixed, flat descriptors of fast system calls; `long_code`: 64 bits, not 32.
APUS_GENERAL static inline void apus_set_flat(apus_vcpu *cpu, uint16_t code, uint16_t stack, uint8_t cpl, bool long_code)
{
    uint16_t level = (uint16_t)(cpl << 5);
    cpu->seg[APUS_CS].base = 0;
    cpu->seg[APUS_CS].limit = UINT32_MAX;
    cpu->seg[APUS_CS].selector = (code & 0xFFFC) | cpl;
    cpu->seg[APUS_CS].access = (uint16_t)(0x809B | level | 1 << (long_code ? 13 : 14));
    cpu->seg[APUS_SS].base = 0;
    cpu->seg[APUS_SS].limit = UINT32_MAX;
    cpu->seg[APUS_SS].selector = (stack & 0xFFFC) | cpl;
    cpu->seg[APUS_SS].access = (uint16_t)(0xC093 | level);
    cpu->cpl = cpl;
}

/// SYSCALL of 64-bit code, and SYSRET to such; `next` is the address behind it. 0: that takes more, and nothing was done.
/// Arithmetic flags are in `native_flags`.
uint32_t apus_system_call(apus_vcpu *cpu, uint64_t next);
uint32_t apus_system_return(apus_vcpu *cpu, uint64_t next);
static inline uint64_t apus_system_call_address(void) { return (uint64_t)&apus_system_call; }
static inline uint64_t apus_system_return_address(void) { return (uint64_t)&apus_system_return; }

#pragma clang assume_nonnull end
#endif
