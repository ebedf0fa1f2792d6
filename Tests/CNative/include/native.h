// Runs a piece of user code on the host CPU from a given register state, and brings every register back.
#ifndef NATIVE_H
#define NATIVE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/// Registers before and after. `fx` is an FXSAVE64 image; `upper` are the upper halves of YMM0 to YMM15, if the host has
/// them.
typedef struct native_state {
    uint64_t gpr[16];
    uint64_t flags;
    /// Where the code ended: behind its INT3, or at the instruction that faulted.
    uint64_t rip;
    /// Vector of the exception that ended the code (INT3: 3).
    uint64_t vector;
    uint64_t fault_address;
    uint64_t has_upper;
    uint64_t padding[11];
    uint8_t fx[512];
    uint8_t upper[256];
} native_state;

/// The state that `native_run` starts from and leaves behind: 64-byte aligned.
native_state *_Nonnull native_registers(void);

/// Memory at a fixed address, readable, writable and, if asked, executable; NULL when it is taken.
void *_Nullable native_map(uint64_t address, size_t bytes, bool executable);

/// Gives memory of `native_map` back.
void native_unmap(void *_Nonnull start, size_t bytes);

/// Memory anywhere.
void *_Nullable native_memory(size_t bytes);

/// Runs the code at `address` until an exception; SIGTRAP, SIGSEGV, SIGBUS, SIGILL and SIGFPE are caught meanwhile.
void native_run(uint64_t address);

/// The same in compatibility mode: 32-bit code, the lower halves of the first eight registers.
void native_run32(uint32_t address);

/// Inflates a gzip file; the caller frees the result. NULL: no such file, or damaged.
uint8_t *_Nullable native_gunzip(const char *_Nonnull path, size_t *_Nonnull bytes);

#endif
