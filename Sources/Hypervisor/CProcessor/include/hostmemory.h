// Huge pages of the host: one entry of its TLB does for 2 MiB. Source: madvise(2).
#ifndef CPROCESSOR_HOSTMEMORY_H
#define CPROCESSOR_HOSTMEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#pragma clang assume_nonnull begin

enum { APUS_HUGE_PAGE = 2 << 20 };

/// Maps private memory of zeros, whole huge pages at a multiple of one; NULL if there is no room.
void *_Nullable apus_huge_reserve(size_t bytes, int protection);
/// The same to be read and written, in huge pages where the host has them; ends the process if there is none.
void *apus_huge_allocate(size_t bytes);
void apus_huge_free(void *memory, size_t bytes);

/// Puts a huge page behind the one at `page`, which some mapping of a memory file has; what lies there stays. false: the host does not.
/// Hosts give memory files none by themselves, unless an administrator wants that.
bool apus_huge_collapse(void *page);

/// The same for guest memory around `address`, if all of the huge page lies in [start, start + bytes).
void apus_huge_touch(void *address, void *start, size_t bytes);

#pragma clang assume_nonnull end
#endif
