// Integer arithmetic on the host's own unit, with the six arithmetic flags.
// Source: Intel SDM volume 2; flags in RFLAGS order as `arith_flags` keeps them.
// Each function computes one instruction and returns its result and the flags behind it.
// Flags that the SDM leaves undefined come out as the host leaves them.
#ifndef APUS_ALU_H
#define APUS_ALU_H

#include <stdint.h>
#include <stdbool.h>

#pragma clang assume_nonnull begin

#define APUS_INLINE static inline __attribute__((always_inline))

/// AX behind LAHF and SETO to flags.
APUS_INLINE uint32_t apus_flags_of(uint32_t ax) { return (ax >> 8 & 0xD5) | (ax & 1) << 11; }
/// Flags to AX, so that ADD AL, 0x7F and SAHF bring them back.
APUS_INLINE uint32_t apus_ax_of(uint32_t f) { return (f & 0xD5) << 8 | (f >> 11 & 1); }

#define APUS_TAKE "lahf\n\tseto %%al"
#define APUS_GIVE "addb $0x7f, %%al\n\tsahf\n\t"

/// An instruction's result and the flags behind it; by value, so that no local needs an address.
typedef struct apus_result8 { uint8_t value; uint32_t flags; } apus_result8;
typedef struct apus_result16 { uint16_t value; uint32_t flags; } apus_result16;
typedef struct apus_result32 { uint32_t value; uint32_t flags; } apus_result32;
typedef struct apus_result64 { uint64_t value; uint32_t flags; } apus_result64;

#define APUS_BINARY(name, op, bits, sfx, c)                                                                     \
    APUS_INLINE apus_result##bits apus_##name##bits(uint##bits##_t a, uint##bits##_t b)                         \
    {                                                                                                           \
        uint32_t ax;                                                                                            \
        __asm__(op sfx " %2, %0\n\t" APUS_TAKE                                                                  \
                : "+" c(a), "=&a"(ax) : c(b) : "cc");                                                           \
        return (apus_result##bits){a, apus_flags_of(ax)};                                                       \
    }
#define APUS_CARRY(name, op, bits, sfx, c)                                                                      \
    APUS_INLINE apus_result##bits apus_##name##bits(uint##bits##_t a, uint##bits##_t b, uint32_t f)             \
    {                                                                                                           \
        uint32_t ax;                                                                                            \
        __asm__("btl $0, %3\n\t" op sfx " %2, %0\n\t" APUS_TAKE                                                 \
                : "+" c(a), "=&a"(ax) : c(b), "r"(f) : "cc");                                                   \
        return (apus_result##bits){a, apus_flags_of(ax)};                                                       \
    }
#define APUS_STEP(name, op, bits, sfx, c)                                                                       \
    APUS_INLINE apus_result##bits apus_##name##bits(uint##bits##_t a, uint32_t f)                               \
    {                                                                                                           \
        uint32_t ax;                                                                                            \
        __asm__("btl $0, %2\n\t" op sfx " %0\n\t" APUS_TAKE                                                     \
                : "+" c(a), "=&a"(ax) : "r"(f) : "cc");                                                         \
        return (apus_result##bits){a, apus_flags_of(ax)};                                                       \
    }
#define APUS_SHIFT(name, op, bits, sfx, c)                                                                      \
    APUS_INLINE apus_result##bits apus_##name##bits(uint##bits##_t a, uint8_t count, uint32_t f)                \
    {                                                                                                           \
        uint32_t ax = apus_ax_of(f);                                                                            \
        __asm__(APUS_GIVE op sfx " %%cl, %0\n\t" APUS_TAKE                                                      \
                : "+" c(a), "+a"(ax) : "c"(count) : "cc");                                                      \
        return (apus_result##bits){a, apus_flags_of(ax)};                                                       \
    }
#define APUS_DOUBLE(name, op, bits, sfx)                                                                        \
    APUS_INLINE apus_result##bits apus_##name##bits(uint##bits##_t a, uint##bits##_t b, uint8_t count, uint32_t f)\
    {                                                                                                           \
        uint32_t ax = apus_ax_of(f);                                                                            \
        __asm__(APUS_GIVE op sfx " %%cl, %3, %0\n\t" APUS_TAKE                                                  \
                : "+r"(a), "+a"(ax) : "c"(count), "r"(b) : "cc");                                               \
        return (apus_result##bits){a, apus_flags_of(ax)};                                                       \
    }
/// BSF, BSR, TZCNT, LZCNT, POPCNT: `a` is the destination's old value.
#define APUS_SCAN(name, op, bits, sfx)                                                                          \
    APUS_INLINE apus_result##bits apus_##name##bits(uint##bits##_t a, uint##bits##_t b, uint32_t f)             \
    {                                                                                                           \
        uint32_t ax = apus_ax_of(f);                                                                            \
        __asm__(APUS_GIVE op sfx " %2, %0\n\t" APUS_TAKE                                                        \
                : "+r"(a), "+a"(ax) : "r"(b) : "cc");                                                           \
        return (apus_result##bits){a, apus_flags_of(ax)};                                                       \
    }

#define APUS_ALL(M, name, op) \
    M(name, op, 8, "b", "q") M(name, op, 16, "w", "r") M(name, op, 32, "l", "r") M(name, op, 64, "q", "r")
#define APUS_WIDE(M, name, op) M(name, op, 16, "w") M(name, op, 32, "l") M(name, op, 64, "q")

APUS_ALL(APUS_BINARY, add, "add")
APUS_ALL(APUS_BINARY, sub, "sub")
APUS_ALL(APUS_BINARY, and, "and")
APUS_ALL(APUS_BINARY, or, "or")
APUS_ALL(APUS_BINARY, xor, "xor")
APUS_ALL(APUS_CARRY, adc, "adc")
APUS_ALL(APUS_CARRY, sbb, "sbb")
APUS_ALL(APUS_STEP, inc, "inc")
APUS_ALL(APUS_STEP, dec, "dec")
APUS_ALL(APUS_STEP, neg, "neg")
APUS_ALL(APUS_SHIFT, rol, "rol")
APUS_ALL(APUS_SHIFT, ror, "ror")
APUS_ALL(APUS_SHIFT, rcl, "rcl")
APUS_ALL(APUS_SHIFT, rcr, "rcr")
APUS_ALL(APUS_SHIFT, shl, "shl")
APUS_ALL(APUS_SHIFT, shr, "shr")
APUS_ALL(APUS_SHIFT, sar, "sar")
APUS_WIDE(APUS_DOUBLE, shld, "shld")
APUS_WIDE(APUS_DOUBLE, shrd, "shrd")
APUS_WIDE(APUS_SCAN, bsf, "bsf")
APUS_WIDE(APUS_SCAN, bsr, "bsr")
APUS_WIDE(APUS_SCAN, tzcnt, "tzcnt")
APUS_WIDE(APUS_SCAN, lzcnt, "lzcnt")
APUS_WIDE(APUS_SCAN, popcnt, "popcnt")
APUS_WIDE(APUS_SCAN, imul, "imul")

/// MUL and IMUL of the accumulator.
#define APUS_PRODUCT(bits) \
    typedef struct apus_product##bits { uint##bits##_t low, high; uint32_t flags; } apus_product##bits;
APUS_PRODUCT(16)
APUS_PRODUCT(32)
APUS_PRODUCT(64)
#define APUS_MULTIPLY(name, op, bits, sfx, ax_)                                                                 \
    APUS_INLINE apus_product##bits apus_##name##bits(uint##bits##_t low, uint##bits##_t b)                      \
    {                                                                                                           \
        uint##bits##_t d, copy;                                                                                 \
        uint64_t ax = low;                                                                                      \
        __asm__(op sfx " %3\n\tmov " ax_ ", %2\n\t" APUS_TAKE                                                   \
                : "+a"(ax), "=&d"(d), "=&r"(copy) : "r"(b) : "cc");                                             \
        return (apus_product##bits){copy, d, apus_flags_of((uint32_t)ax)};                                      \
    }
APUS_MULTIPLY(mulwide, "mul", 16, "w", "%%ax")
APUS_MULTIPLY(mulwide, "mul", 32, "l", "%%eax")
APUS_MULTIPLY(mulwide, "mul", 64, "q", "%%rax")
APUS_MULTIPLY(imulwide, "imul", 16, "w", "%%ax")
APUS_MULTIPLY(imulwide, "imul", 32, "l", "%%eax")
APUS_MULTIPLY(imulwide, "imul", 64, "q", "%%rax")
/// The byte forms, AX = AL * b.
#define APUS_MULTIPLY8(name, op)                                                                                \
    APUS_INLINE apus_result16 apus_##name##8(uint8_t a, uint8_t b)                                              \
    {                                                                                                           \
        uint32_t ax = a;                                                                                        \
        uint16_t copy;                                                                                          \
        __asm__(op " %2\n\tmovw %%ax, %1\n\t" APUS_TAKE : "+a"(ax), "=&r"(copy) : "q"(b) : "cc");               \
        return (apus_result16){copy, apus_flags_of(ax)};                                                        \
    }
APUS_MULTIPLY8(mulwide, "mulb")
APUS_MULTIPLY8(imulwide, "imulb")

/// DIV of 128 by 64 bits; the caller has checked that the quotient fits.
APUS_INLINE uint64_t apus_div64(uint64_t high, uint64_t low, uint64_t by, uint64_t *remainder)
{
    uint64_t quotient;
    __asm__("divq %4" : "=a"(quotient), "=d"(*remainder) : "0"(low), "1"(high), "r"(by) : "cc");
    return quotient;
}

/// CMPXCHG on host memory: `*old` gets what was there; true if `new` was stored.
#define APUS_EXCHANGE(bits)                                                                                     \
    APUS_INLINE bool apus_cas##bits(void *p, uint##bits##_t *old, uint##bits##_t new_)                          \
    {                                                                                                           \
        uint##bits##_t expected = *old;                                                                         \
        bool done;                                                                                              \
        __asm__ volatile("lock cmpxchg %3, %1"                                                                  \
                         : "+a"(expected), "+m"(*(uint##bits##_t *)p), "=@ccz"(done) : "r"(new_) : "memory");   \
        *old = expected;                                                                                        \
        return done;                                                                                            \
    }
APUS_EXCHANGE(8)
APUS_EXCHANGE(16)
APUS_EXCHANGE(32)
APUS_EXCHANGE(64)

/// CMPXCHG16B on host memory, which is aligned.
APUS_INLINE bool apus_cas128(void *p, uint64_t *low, uint64_t *high, uint64_t new_low, uint64_t new_high)
{
    bool done;
    __asm__ volatile("lock cmpxchg16b %0"
                     : "+m"(*(__int128 *)p), "+a"(*low), "+d"(*high), "=@ccz"(done) : "b"(new_low), "c"(new_high)
                     : "memory");
    return done;
}

APUS_INLINE uint32_t apus_attention(const volatile uint32_t *p) { return *p; }
/// Calls a vCPU out of its loop without waking it: bit 1, since whoever finds bit 0 set leaves the waking to the one who
/// set it.
APUS_INLINE void apus_attend(volatile uint32_t *p) { __atomic_fetch_or(p, 2, __ATOMIC_SEQ_CST); }

/// Sets and clears bits of a byte that several vCPUs share; the old value.
APUS_INLINE uint8_t apus_atomic_or8(void *p, uint8_t bits)
{
    return __atomic_fetch_or((uint8_t *)p, bits, __ATOMIC_SEQ_CST);
}
APUS_INLINE uint8_t apus_atomic_and8(void *p, uint8_t bits)
{
    return __atomic_fetch_and((uint8_t *)p, bits, __ATOMIC_SEQ_CST);
}

/// A byte that one thread sets and others read. Setting it is a full barrier.
APUS_INLINE bool apus_flag(const uint8_t *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST) != 0; }
APUS_INLINE void apus_set_flag(uint8_t *p, bool on) { __atomic_store_n(p, on, __ATOMIC_SEQ_CST); }

APUS_INLINE void apus_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

APUS_INLINE uint64_t apus_pdep(uint64_t a, uint64_t mask)
{
    uint64_t r;
    __asm__("pdepq %2, %1, %0" : "=r"(r) : "r"(a), "r"(mask));
    return r;
}
APUS_INLINE uint64_t apus_pext(uint64_t a, uint64_t mask)
{
    uint64_t r;
    __asm__("pextq %2, %1, %0" : "=r"(r) : "r"(a), "r"(mask));
    return r;
}

#pragma clang assume_nonnull end
#endif
