// A process that has nothing but the pages of one guest program, in which that program's code runs by itself.
// Source: ptrace(2) (PTRACE_SEIZE, PTRACE_SYSEMU), prctl(2) (PR_SET_TSC), seccomp(2); docs/decisions/0010.md.
// The thread that calls `apus_direct_attach` is the only one that may run it; any may call it out.
#ifndef APUS_DIRECT_H
#define APUS_DIRECT_H

#include "cprocessor.h"

#pragma clang assume_nonnull begin

typedef struct apus_direct apus_direct;

enum {
    APUS_DIRECT_CODE = 0x10000,    ///< where the process's own page of code lies,
    APUS_DIRECT_LIST = 0x11000,    ///< what it is to ask of the host,
    APUS_DIRECT_BYTES = 0x11000,   ///< and how much both are: guests get none of these addresses
    APUS_DIRECT_CALLS = 0x10000 / 64 - 1,
};
/// Behind what a guest's program can have.
#define APUS_DIRECT_END 0x7FFFFFFFF000ULL

/// Why the guest's code stopped.
enum {
    APUS_DIRECT_CALLED = 0,   ///< at a system call
    APUS_DIRECT_FAULT = 1,    ///< at an access to `apus_direct_fault`
    APUS_DIRECT_REFUSED = 2,  ///< at an instruction that is not for it, or that raises an exception
    APUS_DIRECT_STEPPED = 3,  ///< behind an instruction that RFLAGS.TF has trapped
    APUS_DIRECT_ATTENTION = 4, ///< somebody called it out
    APUS_DIRECT_MOVED = 5,    ///< with other code or stack segments than it began with
    APUS_DIRECT_LOST = 6,     ///< the process is gone
};

/// Starts the process, with `memory` the memory file of the guest's RAM; NULL: the host does not have what it takes. The caller's
/// other descriptors are closed in it, and all of its memory is gone.
apus_direct *_Nullable apus_direct_start(int memory);
/// Ends it.
void apus_direct_end(apus_direct *direct);
int apus_direct_pid(const apus_direct *direct);
/// Processor time it has used, in nanoseconds.
uint64_t apus_direct_time(const apus_direct *direct);
/// The guest's own part of that, and the host's, until it stopped last.
uint64_t apus_direct_program_time(const apus_direct *direct);
uint64_t apus_direct_system_time(const apus_direct *direct);

/// Makes the calling thread the one that runs it; false: the host does not allow that.
bool apus_direct_attach(apus_direct *direct);

/// Has the process map `bytes` of the memory file from `offset` on at `address`, in place of what is there; `protection` as in mmap.
/// To be called up to APUS_DIRECT_CALLS times before `apus_direct_change`.
void apus_direct_map(apus_direct *direct, uint64_t address, uint64_t bytes, uint32_t protection, uint64_t offset);
/// And forget what it has there.
void apus_direct_unmap(apus_direct *direct, uint64_t address, uint64_t bytes);
/// Calls of the two above until the list is full.
uint32_t apus_direct_room(const apus_direct *direct);
/// Carries that out; false: not all of it was possible.
bool apus_direct_change(apus_direct *direct);

/// Has it forget everything, and the list.
bool apus_direct_unmap_all(apus_direct *direct);

/// Gives the process the vCPU's registers; false: it cannot have these.
bool apus_direct_put(apus_direct *direct, const apus_vcpu *cpu);
/// Runs the guest's code until something stops it; APUS_DIRECT_*.
int apus_direct_run(apus_direct *direct);
/// Gives the vCPU the process's registers, but for those bits of RFLAGS that programs cannot change.
void apus_direct_take(apus_direct *direct, apus_vcpu *cpu);
/// The address of an access that the process has no page for, and where its code was then.
uint64_t apus_direct_fault(const apus_direct *direct);
uint64_t apus_direct_rip(const apus_direct *direct);
/// Its code and stack segments; 0: it has those that it began with.
uint16_t apus_direct_cs(const apus_direct *direct);
uint16_t apus_direct_ss(const apus_direct *direct);

/// Calls the guest's code out. From any thread.
void apus_direct_interrupt(const apus_direct *direct);

/// A number that is odd from when the guest's code begins to run until it is over: for a thread that calls it out.
uint32_t apus_direct_number(apus_direct *direct);
void apus_direct_advance(apus_direct *direct);
/// Sleeps while that is `number`, at most so long; may come back early.
void apus_direct_await(apus_direct *direct, uint32_t number, uint64_t nanoseconds);

/// CLOCK_MONOTONIC, and the calling thread's processor time, in nanoseconds.
uint64_t apus_direct_clock(void);
uint64_t apus_direct_thread_time(void);

/// Whether in a page of code none of those instructions begins, at whatever byte, that would tell a program of the host instead of the
/// guest. `next`: the page behind it; NULL: that is not known, so there may be one across both. `traps_cpuid`: CPUID is not among them.
bool apus_direct_is_plain(const uint8_t *page, const uint8_t *_Nullable next, bool traps_cpuid);
/// Whether the host traps CPUID for the process, as Intel's processors can (SDM vol. 3 "CPUID faulting"); known once it is attached to.
bool apus_direct_traps_cpuid(const apus_direct *direct);

#pragma clang assume_nonnull end
#endif
