// The soft TLB's second level, what page walks found for all address spaces, and how the first one is filled from it.
// Source: our own design; AddressSpaces.swift is where both are described.
// Translated code calls `apus_refill` with the guest's vector registers in the host's: so none of this may use those.
#ifndef APUS_SPACES_H
#define APUS_SPACES_H

#include "cprocessor.h"

#pragma clang assume_nonnull begin

#define APUS_GENERAL __attribute__((target("general-regs-only")))

/// An entry of the second level: what walks to one page found.
typedef struct apus_far_entry {
    uint64_t page;     ///< linear address of the page
    uint64_t physical;
    uint32_t space;    ///< number of the address space; that of all, for a global page
    uint8_t rights;    ///< 1 << mode for loads, 8 << mode for stores, 64 for a supervisor's fetches, 128 for a user's
    bool is_writable;  ///< RAM, not ROM
    void *_Nullable host;
    uint8_t *_Nullable code; ///< the page's byte in the code map
} apus_far_entry;
enum { APUS_FAR_SLOTS = 8192 };

struct apus_spaces {
    apus_far_entry *far;
    uint32_t current;      ///< number of the present address space's translations
    uint32_t global;       ///< and of global pages'
    uint16_t *filled;      ///< places of the first level in use: of pages of this address space,
    uint16_t *globals;     ///< of global pages,
    uint8_t *listed;       ///< and what is listed as which: bits 0 and 1
    uint32_t filled_count;
    uint32_t global_count;
    uint32_t store_stamp;  ///< counts fillings for stores, and flushes; see WrittenCode.swift
    bool found_global;     ///< what was looked for last is a global page
};

APUS_GENERAL static inline apus_far_entry *apus_far_slot(const apus_spaces *spaces, uint64_t page, uint32_t space)
{
    return spaces->far + ((page >> 12 ^ page >> 25 ^ (uint64_t)space * 0x9E5) & (APUS_FAR_SLOTS - 1));
}

/// What is known of the page at `linear` and allows one of `rights`.
APUS_GENERAL static inline apus_far_entry *_Nullable apus_find_far(apus_spaces *spaces, uint64_t linear, uint8_t rights)
{
    uint64_t page = linear & ~0xFFFULL;
    apus_far_entry *own = apus_far_slot(spaces, page, spaces->current);
    spaces->found_global = false;
    if (own->page == page && own->space == spaces->current && own->rights & rights) return own;
    apus_far_entry *shared = apus_far_slot(spaces, page, spaces->global);
    if (shared->page != page || shared->space != spaces->global || !(shared->rights & rights)) return NULL;
    spaces->found_global = true;
    return shared;
}

/// Fills one place of the first level.
APUS_GENERAL static inline void apus_fill(apus_vcpu *cpu, uint64_t linear, const void *host, uint8_t mode, bool write)
{
    apus_spaces *spaces = cpu->spaces;
    uint32_t place = (mode * 2u + write) * APUS_TLB_ENTRIES + (linear >> 12 & (APUS_TLB_ENTRIES - 1));
    uint64_t page = linear & ~0xFFFULL, at = (uint64_t)host & ~0xFFFULL;
    cpu->tlb_first[place].tag = page;
    cpu->tlb_first[place].host = at;
    cpu->tlb_first[place].distance = at - page;
    if (write) spaces->store_stamp++;
    uint8_t bit = spaces->found_global ? 2 : 1;
    if (spaces->listed[place] & bit) return;
    spaces->listed[place] |= bit;
    if (spaces->found_global) spaces->globals[spaces->global_count++] = (uint16_t)place;
    else spaces->filled[spaces->filled_count++] = (uint16_t)place;
}

/// Fills the first level with what is known of a page that has memory: for loads, and for stores if those are allowed and
/// need not be looked at; whether they are.
APUS_GENERAL static inline bool apus_fill_known(apus_vcpu *cpu, uint64_t linear, const apus_far_entry *known, uint8_t mode)
{
    apus_fill(cpu, linear, known->host, mode, false);
    if (!(known->rights & 8 << mode) || !known->is_writable || (known->code && *known->code)) return false;
    apus_fill(cpu, linear, known->host, mode, true);
    return true;
}

/// Fills the first level from the second, for a load or a store (bit 0) in a mode (from bit 1); 0: that takes more.
uint32_t apus_refill(apus_vcpu *cpu, uint64_t linear, uint32_t access);
static inline uint64_t apus_refill_address(void) { return (uint64_t)&apus_refill; }

#pragma clang assume_nonnull end
#endif
