// SYSCALL and SYSRET as translated code has them.
#include "level.h"

enum { ARITHMETIC = 0x8D5, TRAP = 1 << 8, RESUME = 1 << 16, VIRTUAL = 1 << 17 };
/// Every bit that exists but VIF and VIP.
enum { IMPLEMENTED = ARITHMETIC | TRAP | 0x600 | 0x3000 | 1 << 14 | RESUME | VIRTUAL | 1 << 18 | 1 << 21 };

APUS_GENERAL static void set_flags(apus_vcpu *cpu, uint32_t flags)
{
    cpu->native_flags = (flags & 0xD5) << 8 | (flags >> 11 & 1);
    cpu->system_flags = (flags & ~ARITHMETIC) | 2;
}

APUS_GENERAL uint32_t apus_system_call(apus_vcpu *cpu, uint64_t next)
{
    uint32_t raw = (uint32_t)cpu->native_flags;
    uint32_t flags = cpu->system_flags | (raw >> 8 & 0xD5) | (raw & 1) << 11 | 2;
    uint32_t kept = flags & ~((uint32_t)cpu->sfmask | RESUME);
    if (!(cpu->efer & 1) || cpu->paravirtual || !apus_is_plain_level(cpu, kept)) return 0;
    cpu->departures++;
    cpu->gpr[APUS_RCX] = next;
    cpu->gpr[11] = flags & ~RESUME;
    cpu->rip = cpu->lstar;
    set_flags(cpu, kept);
    uint16_t code = (uint16_t)(cpu->star >> 32) & 0xFFFC;
    apus_set_flat(cpu, code, code + 8, 0, true);
    apus_enter_level(cpu);
    return 1;
}

APUS_GENERAL uint32_t apus_system_return(apus_vcpu *cpu, uint64_t next)
{
    (void)next;
    uint64_t target = cpu->gpr[APUS_RCX];
    uint32_t flags = (uint32_t)cpu->gpr[11] & IMPLEMENTED & ~(RESUME | VIRTUAL);
    if (cpu->direct != APUS_DIRECT_OFF || !(cpu->efer & 1) || cpu->paravirtual || cpu->cpl != 0 || !apus_is_plain_level(cpu, flags)) return 0;
    if ((uint64_t)((int64_t)(target << 16) >> 16) != target) return 0;
    cpu->rip = target;
    set_flags(cpu, flags);
    uint16_t code = (uint16_t)(cpu->star >> 48);
    apus_set_flat(cpu, code + 16, code + 8, 3, true);
    apus_enter_level(cpu);
    return 1;
}
