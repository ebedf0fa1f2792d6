// Memory for generated code, and what the host's units can do.
#define _GNU_SOURCE
#include "thunk.h"
#include "hostmemory.h"

#include <cpuid.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

_Static_assert(offsetof(apus_vcpu, tlb) < 512 << 10, "operands' places fit in what SIMD.swift keeps of them");
_Static_assert(offsetof(apus_vcpu, fpu) % 64 == 0, "XSAVE wants its image aligned");
_Static_assert(offsetof(apus_vcpu, tlb) % sizeof(apus_tlb_entry) == 0, "an entry lies in one line of the host's cache");

static const size_t huge = APUS_HUGE_PAGE;

/// Maps code at a multiple of a huge page, if it is large.
static void *map_code(int file, size_t bytes, int protection) {
    if (bytes < huge) return mmap(NULL, bytes, protection, MAP_SHARED, file, 0);
    void *room = apus_huge_reserve(bytes, PROT_NONE);
    if (!room) return MAP_FAILED;
    void *code = mmap(room, bytes, protection, MAP_SHARED | MAP_FIXED, file, 0);
    if (code == MAP_FAILED) munmap(room, bytes);
    return code;
}

apus_code_buffer apus_code_buffer_make(size_t bytes) {
    apus_code_buffer none = {NULL, NULL, 0};
    int file = memfd_create("apus-code", MFD_CLOEXEC);
    if (file < 0) return none;
    if (ftruncate(file, (off_t)bytes) != 0) {
        close(file);
        return none;
    }
    void *writable = map_code(file, bytes, PROT_READ | PROT_WRITE);
    void *executable = map_code(file, bytes, PROT_READ | PROT_EXEC);
    close(file);
    if (writable == MAP_FAILED || executable == MAP_FAILED) {
        if (writable != MAP_FAILED) munmap(writable, bytes);
        if (executable != MAP_FAILED) munmap(executable, bytes);
        return none;
    }
    apus_code_buffer made = {writable, executable, bytes};
    return made;
}

void apus_code_buffer_free(apus_code_buffer buffer) {
    if (buffer.writable) munmap(buffer.writable, buffer.bytes);
    if (buffer.executable) munmap(buffer.executable, buffer.bytes);
}

/// Puts a huge page behind both mappings at `offset`.
static bool collapse(apus_code_buffer buffer, size_t offset) {
    return offset % huge == 0 && offset + huge <= buffer.bytes && apus_huge_collapse(buffer.executable + offset) &&
           apus_huge_collapse(buffer.writable + offset);
}

size_t apus_code_buffer_populate(apus_code_buffer buffer, size_t offset) {
    offset &= ~(size_t)4095;
    if (offset >= buffer.bytes) return buffer.bytes + huge;
    if (collapse(buffer, offset)) return offset + huge;
    const size_t step = 256 << 10;
    size_t bytes = step < buffer.bytes - offset ? step : buffer.bytes - offset;
    madvise(buffer.writable + offset, bytes, MADV_POPULATE_WRITE);
    madvise(buffer.executable + offset, bytes, MADV_POPULATE_READ);
    return offset + bytes;
}

/// Whether the system saves YMM registers.
static bool has_ymm_state(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & 6) == 6;
}

static uint32_t find_host_features(void) {
    uint32_t a, b, c, d, found = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
    if (c & 1u << 0) found |= APUS_HOST_SSE3;
    if (c & 1u << 9) found |= APUS_HOST_SSSE3;
    if (c & 1u << 19) found |= APUS_HOST_SSE41;
    if (c & 1u << 20) found |= APUS_HOST_SSE42;
    if (c & 1u << 25) found |= APUS_HOST_AES;
    if (c & 1u << 1) found |= APUS_HOST_PCLMUL;
    if (c & 1u << 22) found |= APUS_HOST_MOVBE;
    if (c & 1u << 23) found |= APUS_HOST_POPCNT;
    if (c & 1u << 27) found |= APUS_HOST_XSAVE;
    bool avx = (c & 1u << 27) && (c & 1u << 28) && has_ymm_state();
    if (avx) found |= APUS_HOST_AVX;
    if (avx && (c & 1u << 12)) found |= APUS_HOST_FMA;
    if (avx && (c & 1u << 29)) found |= APUS_HOST_F16C;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
        if (b & 1u << 29) found |= APUS_HOST_SHA;
        if (b & 1u << 3) found |= APUS_HOST_BMI1;
        if (b & 1u << 8) found |= APUS_HOST_BMI2;
        if (b & 1u << 19) found |= APUS_HOST_ADX;
        if (c & 1u << 8) found |= APUS_HOST_GFNI;
        if (avx && (b & 1u << 5)) found |= APUS_HOST_AVX2;
        if (avx && (c & 1u << 9)) found |= APUS_HOST_VAES;
        if (avx && (c & 1u << 10)) found |= APUS_HOST_VPCLMUL;
    }
    if (__get_cpuid(0x80000001, &a, &b, &c, &d) && (c & 1u << 5)) found |= APUS_HOST_LZCNT;
    return found;
}

uint32_t apus_host_features(void) {
    static uint32_t known;
    uint32_t found = __atomic_load_n(&known, __ATOMIC_RELAXED);
    if (!found) {
        found = find_host_features() | 1u << 31;
        __atomic_store_n(&known, found, __ATOMIC_RELAXED);
    }
    return found;
}

static uint32_t find_mxcsr_mask(void) {
    _Alignas(16) uint8_t image[512];
    memset(image, 0, sizeof image);
    __asm__ volatile("fxsave %0" : "=m"(image));
    uint32_t mask;
    memcpy(&mask, image + 28, sizeof mask);
    return mask ? mask : 0xFFBF;
}

uint32_t apus_host_mxcsr_mask(void) {
    static uint32_t known;
    uint32_t found = __atomic_load_n(&known, __ATOMIC_RELAXED);
    if (!found) {
        found = find_mxcsr_mask();
        __atomic_store_n(&known, found, __ATOMIC_RELAXED);
    }
    return found;
}
