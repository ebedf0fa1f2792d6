// The way from translated code to the second level of the soft TLB.
#include "spaces.h"

APUS_GENERAL uint32_t apus_refill(apus_vcpu *cpu, uint64_t linear, uint32_t access)
{
    uint8_t mode = (uint8_t)(access >> 1);
    bool write = access & 1;
    const apus_far_entry *known = apus_find_far(cpu->spaces, linear, (write ? 8 : 1) << mode);
    if (!known || !known->host) return 0;
    return apus_fill_known(cpu, linear, known, mode) || !write;
}
