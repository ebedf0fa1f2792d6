// Huge pages of the host.
#define _GNU_SOURCE
#include "hostmemory.h"

#include <stdlib.h>
#include <sys/mman.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 // Linux 6.1
#endif

static size_t whole(size_t bytes) { return (bytes + APUS_HUGE_PAGE - 1) & ~(size_t)(APUS_HUGE_PAGE - 1); }

void *_Nullable apus_huge_reserve(size_t bytes, int protection) {
    bytes = whole(bytes);
    char *room = mmap(NULL, bytes + APUS_HUGE_PAGE, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED) return NULL;
    size_t before = -(uintptr_t)room % APUS_HUGE_PAGE;
    if (before > 0) munmap(room, before);
    if (before < APUS_HUGE_PAGE) munmap(room + before + bytes, APUS_HUGE_PAGE - before);
    return room + before;
}

void *apus_huge_allocate(size_t bytes) {
    void *memory = apus_huge_reserve(bytes, PROT_READ | PROT_WRITE);
    if (!memory) abort();
    madvise(memory, whole(bytes), MADV_HUGEPAGE);
    return memory;
}

void apus_huge_free(void *memory, size_t bytes) { munmap(memory, whole(bytes)); }

bool apus_huge_collapse(void *page) {
    // One of the small pages is wanted before there can be a huge one.
    (void)*(volatile uint8_t *)page;
    return madvise(page, APUS_HUGE_PAGE, MADV_COLLAPSE) == 0;
}

void apus_huge_touch(void *address, void *start, size_t bytes) {
    uintptr_t page = (uintptr_t)address & ~(uintptr_t)(APUS_HUGE_PAGE - 1), first = (uintptr_t)start;
    if (page < first || page - first > bytes || bytes - (page - first) < APUS_HUGE_PAGE) return;
    apus_huge_collapse((void *)page);
}
