// The process in which a guest's program runs by itself, and how a vCPU's thread drives it.
#define _GNU_SOURCE
#include "direct.h"

#include <asm/prctl.h>
#include <elf.h>
#include <errno.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { LIST_BYTES = APUS_DIRECT_BYTES - (APUS_DIRECT_LIST - APUS_DIRECT_CODE), CALL_WORDS = 8 };
/// The last word of the list: what the process has found out about its host.
enum { TRAPS_CPUID = LIST_BYTES / 8 - 1 };
enum { SIGNAL = SIGUSR1 };
enum { ARITHMETIC = 0x8D5, TRAP = 1 << 8, DIRECTION = 1 << 10, ALIGNMENT = 1 << 18, IDENTIFICATION = 1 << 21 };
/// Other bits of RFLAGS that a program can change: those, NT and AC.
enum { CHANGEABLE = TRAP | DIRECTION | 1 << 14 | ALIGNMENT | IDENTIFICATION };
/// Layout of an XSAVE image (SDM vol. 1 §13.4).
enum { LEGACY = 416, COMPONENTS = 512, UPPER = 576, UPPER_BYTES = 256 };

struct apus_direct {
    pid_t pid;
    int memory;
    bool is_stale;  ///< `registers` are newer than the process's
    bool is_called; ///< a signal came while it did something else
    bool is_alone;  ///< nothing of the host's lies among its addresses
    bool traps_cpuid;
    uint32_t count; ///< calls in `list`
    uint64_t *list; ///< shared with the process, which can only read it
    uint64_t fault;
    uint32_t number;   ///< odd while guest code runs
    uint32_t sleepers; ///< on `number`
    uint64_t cs, ss;
    uint64_t program_time, system_time; ///< of the process until it stopped last
    int host;          ///< the host's processor that it is to run on
    struct user_regs_struct registers;
    uint32_t state_bytes;
    _Alignas(64) uint8_t state[16384];
};

// Runs the list at RBX, counts in R12 what fails; then waits to be attached to, or, with R13 set, stops.
__asm__(".pushsection .rodata\n"
        ".globl apus_direct_code\n"
        ".globl apus_direct_code_end\n"
        "apus_direct_code:\n"
        "1: movq (%rbx), %rax\n"
        "   cmpq $-1, %rax\n"
        "   je 3f\n"
        "   movq 8(%rbx), %rdi\n"
        "   movq 16(%rbx), %rsi\n"
        "   movq 24(%rbx), %rdx\n"
        "   movq 32(%rbx), %r10\n"
        "   movq 40(%rbx), %r8\n"
        "   movq 48(%rbx), %r9\n"
        "   syscall\n"
        "   addq $64, %rbx\n"
        "   cmpq $-4096, %rax\n"
        "   jbe 1b\n"
        "   incq %r12\n"
        "   jmp 1b\n"
        "3: testq %r13, %r13\n"
        "   jz 4f\n"
        "   int3\n"
        ".globl apus_direct_code_wait\n"
        "apus_direct_code_wait:\n"
        "4: movl $34, %eax\n" // pause
        "   syscall\n"
        "   jmp 4b\n"
        "apus_direct_code_end:\n"
        ".popsection\n");
extern const uint8_t apus_direct_code[], apus_direct_code_wait[], apus_direct_code_end[];

// MARK: - The process

static void add(apus_direct *direct, uint64_t call, const uint64_t arguments[6]) {
    uint64_t *place = direct->list + direct->count * CALL_WORDS;
    memcpy(place + 1, arguments, 6 * sizeof *place);
    place[0] = call;
    place[CALL_WORDS] = UINT64_MAX;
    direct->count++;
}

/// What it does not allow is a signal: some hosts carry out calls to the page of old system calls when code there is run.
static long filter(void) {
#define ALLOW(call) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
    struct sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 4),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
        ALLOW(SYS_mmap), ALLOW(SYS_munmap), ALLOW(SYS_pause),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
    };
#undef ALLOW
    struct sock_fprog whole = {.len = sizeof program / sizeof *program, .filter = program};
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &whole);
}

static bool give_up(void) {
    struct rlimit none = {0, 0};
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];
    memset(data, 0, sizeof data);
    return setrlimit(RLIMIT_CORE, &none) == 0 && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           syscall(SYS_capset, &header, data) == 0;
}

/// Everything of it is the parent's copy, and only calls that need no lock are safe.
static void become(apus_direct *direct, int list, pid_t parent) {
    if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0 || getppid() != parent) _exit(1);
    prctl(PR_SET_NAME, "guest-program", 0, 0, 0);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    // Linux would write to where the C library has it look at each switch.
    extern const unsigned __rseq_size __attribute__((weak));
    extern const ptrdiff_t __rseq_offset __attribute__((weak));
    if (&__rseq_size && __rseq_size) {
        syscall(SYS_rseq, (char *)__builtin_thread_pointer() + __rseq_offset, 32, 1, 0x53053053);
    }
    char *code = mmap((void *)APUS_DIRECT_CODE, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    char *shared = mmap((void *)APUS_DIRECT_LIST, LIST_BYTES, PROT_READ, MAP_SHARED | MAP_FIXED_NOREPLACE, list, 0);
    if (code != (char *)APUS_DIRECT_CODE || shared != (char *)APUS_DIRECT_LIST) _exit(1);
    memcpy(code, apus_direct_code, (size_t)(apus_direct_code_end - apus_direct_code));
    if (mprotect(code, 4096, PROT_READ | PROT_EXEC) < 0) _exit(1);
    unsigned memory = (unsigned)direct->memory;
    if (memory > 0) syscall(SYS_close_range, 0, memory - 1, 0);
    syscall(SYS_close_range, memory + 1, ~0u, 0);
    direct->list[TRAPS_CPUID] = syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0) == 0;
    if (prctl(PR_SET_TSC, PR_TSC_SIGSEGV, 0, 0, 0) < 0 || !give_up() || filter() < 0) _exit(1);
    __asm__ volatile("xorl %%r12d, %%r12d\n xorl %%r13d, %%r13d\n jmp *%0"
                     :: "r"((uint64_t)APUS_DIRECT_CODE), "b"((uint64_t)APUS_DIRECT_LIST) : "memory");
    __builtin_unreachable();
}

static void unmap_between(apus_direct *direct, uint64_t start, uint64_t end) {
    if (start < end) apus_direct_unmap(direct, start, end - start);
}

/// Lists what leaves nothing but the process's own pages. Hosts may keep the page of system calls and what belongs to it.
static void list_everything(apus_direct *direct) {
    uint64_t first = APUS_DIRECT_CODE, behind = APUS_DIRECT_CODE + APUS_DIRECT_BYTES;
    uint64_t kept = getauxval(AT_SYSINFO_EHDR), around = 0x10000;
    unmap_between(direct, 4096, first);
    if (kept < behind + around) return unmap_between(direct, behind, APUS_DIRECT_END);
    unmap_between(direct, behind, kept - around);
    for (uint64_t page = kept - around; page < kept + around && page < APUS_DIRECT_END; page += 4096) {
        apus_direct_unmap(direct, page, 4096);
    }
    unmap_between(direct, kept + around, APUS_DIRECT_END);
}

apus_direct *apus_direct_start(int memory) {
    int list = memfd_create("apus-direct", MFD_CLOEXEC);
    if (list < 0) return NULL;
    apus_direct *direct = NULL;
    void *shared = ftruncate(list, LIST_BYTES) == 0
        ? mmap(NULL, LIST_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, list, 0) : MAP_FAILED;
    if (shared != MAP_FAILED) direct = aligned_alloc(64, sizeof *direct);
    if (direct) {
        memset(direct, 0, sizeof *direct);
        direct->memory = memory;
        direct->list = shared;
        direct->host = -1;
        list_everything(direct);
        pid_t parent = getpid();
        direct->pid = fork();
        if (direct->pid == 0) become(direct, list, parent);
    }
    close(list);
    if (direct && direct->pid > 0) return direct;
    if (shared != MAP_FAILED) munmap(shared, LIST_BYTES);
    free(direct);
    return NULL;
}

void apus_direct_end(apus_direct *direct) {
    kill(direct->pid, SIGKILL);
    waitpid(direct->pid, NULL, __WALL);
    munmap(direct->list, LIST_BYTES);
    free(direct);
}

int apus_direct_pid(const apus_direct *direct) { return direct->pid; }

static uint64_t clock_time(clockid_t clock) {
    struct timespec time;
    if (clock_gettime(clock, &time) < 0) return 0;
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

uint64_t apus_direct_time(const apus_direct *direct) { return clock_time((clockid_t)(~(unsigned)direct->pid << 3 | 2)); }
uint64_t apus_direct_program_time(const apus_direct *direct) { return direct->program_time; }
uint64_t apus_direct_system_time(const apus_direct *direct) { return direct->system_time; }

// MARK: - Driving it

/// Waits until the process stops; -1: it is gone.
static int stopped(apus_direct *direct) {
    int status;
    pid_t result;
    struct rusage usage;
    do result = wait4(direct->pid, &status, __WALL, &usage);
    while (result < 0 && errno == EINTR);
    if (result == direct->pid) {
        direct->program_time = (uint64_t)usage.ru_utime.tv_sec * 1000000000 + (uint64_t)usage.ru_utime.tv_usec * 1000;
        direct->system_time = (uint64_t)usage.ru_stime.tv_sec * 1000000000 + (uint64_t)usage.ru_stime.tv_usec * 1000;
    }
    return result == direct->pid && WIFSTOPPED(status) ? status >> 8 : -1;
}

static long request(apus_direct *direct, int what, uint64_t address, void *data) {
    return ptrace((enum __ptrace_request)what, direct->pid, address, data);
}

static bool transfer_state(apus_direct *direct, int what) {
    struct iovec all = {direct->state, direct->state_bytes ? direct->state_bytes : sizeof direct->state};
    if (request(direct, what, NT_X86_XSTATE, &all) < 0) return false;
    direct->state_bytes = (uint32_t)all.iov_len;
    return true;
}

bool apus_direct_attach(apus_direct *direct) {
    uint64_t options = PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL;
    if (request(direct, PTRACE_SEIZE, 0, (void *)options) < 0) return false;
    uint64_t ready = APUS_DIRECT_CODE + (uint64_t)(apus_direct_code_wait - apus_direct_code);
    for (int tries = 0;; tries++) {
        if (request(direct, PTRACE_INTERRUPT, 0, NULL) < 0 || stopped(direct) < 0) return false;
        if (request(direct, PTRACE_GETREGS, 0, &direct->registers) < 0) return false;
        if (direct->registers.rip - ready < 4096) break;
        if (tries == 1000 || request(direct, PTRACE_CONT, 0, NULL) < 0) return false;
        usleep(1000);
    }
    direct->count = 0;
    direct->is_alone = direct->registers.r12 == 0;
    direct->traps_cpuid = direct->list[TRAPS_CPUID] != 0;
    direct->cs = direct->registers.cs, direct->ss = direct->registers.ss;
    return transfer_state(direct, PTRACE_GETREGSET) && direct->state_bytes >= UPPER + UPPER_BYTES;
}

uint32_t apus_direct_room(const apus_direct *direct) { return APUS_DIRECT_CALLS - direct->count; }

void apus_direct_map(apus_direct *direct, uint64_t address, uint64_t bytes, uint32_t protection, uint64_t offset) {
    uint64_t flags = MAP_SHARED | MAP_FIXED | MAP_POPULATE;
    add(direct, SYS_mmap, (uint64_t[]){address, bytes, protection, flags, (uint64_t)direct->memory, offset});
}

void apus_direct_unmap(apus_direct *direct, uint64_t address, uint64_t bytes) {
    add(direct, SYS_munmap, (uint64_t[]){address, bytes, 0, 0, 0, 0});
}

bool apus_direct_change(apus_direct *direct) {
    if (direct->count == 0) return true;
    size_t bytes = direct->count * CALL_WORDS * sizeof *direct->list;
    struct user_regs_struct registers = direct->registers;
    registers.rip = APUS_DIRECT_CODE;
    registers.rbx = APUS_DIRECT_LIST;
    registers.r12 = 0;
    registers.r13 = 1;
    registers.eflags = 0x202;
    registers.orig_rax = UINT64_MAX;
    direct->count = 0;
    direct->is_stale = true;
    if (request(direct, PTRACE_SETREGS, 0, &registers) < 0) return false;
    for (;;) {
        if (request(direct, PTRACE_CONT, 0, NULL) < 0) return false;
        int status = stopped(direct);
        if (status == SIGTRAP) break;
        if (status < 0 || status == SIGSEGV) return false;
        direct->is_called = true;
    }
    // Programs can read the list, and have no business with where their pages lie.
    memset(direct->list, 0, bytes);
    return request(direct, PTRACE_GETREGS, 0, &registers) == 0 && registers.r12 == 0;
}

bool apus_direct_unmap_all(apus_direct *direct) {
    direct->count = 0;
    if (!direct->is_alone) {
        list_everything(direct);
        apus_direct_change(direct);
        return true;
    }
    unmap_between(direct, APUS_DIRECT_CODE + APUS_DIRECT_BYTES, APUS_DIRECT_END);
    return apus_direct_change(direct);
}

static bool has_upper(const apus_direct *direct) {
    uint8_t any = 0;
    for (size_t index = 0; index < UPPER_BYTES; index++) any |= direct->state[UPPER + index];
    return any != 0;
}

/// General register `number`, in hardware order, among those of ptrace.
static unsigned long long *general(struct user_regs_struct *registers, int number) {
#define AT(name) offsetof(struct user_regs_struct, name)
    static const uint8_t places[16] = {AT(rax), AT(rcx), AT(rdx), AT(rbx), AT(rsp), AT(rbp), AT(rsi), AT(rdi),
                                       AT(r8), AT(r9), AT(r10), AT(r11), AT(r12), AT(r13), AT(r14), AT(r15)};
#undef AT
    return (unsigned long long *)((char *)registers + places[number]);
}

/// Has the process run where this thread does: they take turns, and waking each other on another processor costs several times as much.
static void follow(apus_direct *direct) {
    int host = sched_getcpu();
    if (host < 0 || host == direct->host || host >= CPU_SETSIZE) return;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(host, &set);
    sched_setaffinity(direct->pid, sizeof set, &set);
    direct->host = host;
}

bool apus_direct_put(apus_direct *direct, const apus_vcpu *cpu) {
    follow(direct);
    struct user_regs_struct *to = &direct->registers;
    for (int number = 0; number < 16; number++) *general(to, number) = cpu->gpr[number];
    to->rip = cpu->rip;
    to->eflags = cpu->arith_flags | (cpu->system_flags & CHANGEABLE) | 0x202;
    to->fs_base = cpu->seg[APUS_FS].base;
    to->gs_base = cpu->seg[APUS_GS].base;
    to->orig_rax = UINT64_MAX;
    to->cs = direct->cs, to->ss = direct->ss;
    direct->is_stale = false;
    if (request(direct, PTRACE_SETREGS, 0, to) < 0) return false;
    memcpy(direct->state, cpu->fpu.bytes, LEGACY);
    if (cpu->upper_zero) memset(direct->state + UPPER, 0, UPPER_BYTES);
    else memcpy(direct->state + UPPER, cpu->fpu.bytes + UPPER, UPPER_BYTES);
    memset(direct->state + COMPONENTS, 0, 64);
    // Upper halves of zeros that count as used would have SSE run at a quarter of its speed.
    direct->state[COMPONENTS] = has_upper(direct) ? 7 : 3;
    return transfer_state(direct, PTRACE_SETREGSET);
}

void apus_direct_take(apus_direct *direct, apus_vcpu *cpu) {
    struct user_regs_struct *from = &direct->registers;
    for (int number = 0; number < 16; number++) cpu->gpr[number] = *general(from, number);
    cpu->rip = from->rip;
    cpu->arith_flags = from->eflags & ARITHMETIC;
    cpu->system_flags = (cpu->system_flags & ~(uint32_t)CHANGEABLE) | (from->eflags & CHANGEABLE);
    cpu->seg[APUS_FS].base = from->fs_base;
    cpu->seg[APUS_GS].base = from->gs_base;
    if (!transfer_state(direct, PTRACE_GETREGSET)) return;
    memcpy(cpu->fpu.bytes, direct->state, LEGACY);
    memcpy(cpu->fpu.bytes + UPPER, direct->state + UPPER, UPPER_BYTES);
    cpu->upper_zero = !has_upper(direct);
}

/// What a stop by a signal means.
static int meaning(apus_direct *direct, int signal) {
    siginfo_t information;
    struct user_regs_struct *registers = &direct->registers;
    if (request(direct, PTRACE_GETSIGINFO, 0, &information) < 0) return APUS_DIRECT_ATTENTION;
    // Whatever a process sends: this one is not the host's any more than the guest is.
    if (information.si_code <= 0) return APUS_DIRECT_ATTENTION;
    switch (signal) {
    case SIGSEGV:
        direct->fault = (uint64_t)information.si_addr;
        return information.si_code == SEGV_MAPERR || information.si_code == SEGV_ACCERR ? APUS_DIRECT_FAULT : APUS_DIRECT_REFUSED;
    case SIGSYS:
        // Such a call has returned already. It is the guest's to make.
        registers->rip = (uint64_t)information.si_call_addr;
        registers->rsp -= 8;
        direct->is_stale = true;
        return APUS_DIRECT_REFUSED;
    case SIGTRAP:
        if (registers->eflags & TRAP) return APUS_DIRECT_STEPPED;
        // INT3 and INT1 end behind themselves.
        registers->rip--;
        direct->is_stale = true;
        return APUS_DIRECT_REFUSED;
    default: return APUS_DIRECT_REFUSED;
    }
}

int apus_direct_run(apus_direct *direct) {
    struct user_regs_struct *registers = &direct->registers;
    if (direct->is_called) {
        direct->is_called = false;
        return APUS_DIRECT_ATTENTION;
    }
    if (direct->is_stale && request(direct, PTRACE_SETREGS, 0, registers) < 0) return APUS_DIRECT_LOST;
    direct->is_stale = false;
    if (request(direct, PTRACE_SYSEMU, 0, NULL) < 0) return APUS_DIRECT_LOST;
    int status = stopped(direct);
    if (status < 0 || request(direct, PTRACE_GETREGS, 0, registers) < 0) return APUS_DIRECT_LOST;
    if (registers->cs != direct->cs || registers->ss != direct->ss) {
        if (status == (SIGTRAP | 0x80)) registers->rip -= 2, registers->rax = registers->orig_rax;
        return APUS_DIRECT_MOVED;
    }
    if (status == (SIGTRAP | 0x80)) {
        // SYSCALL and INT 0x80 are two bytes each; the engine carries out whichever it is.
        registers->rip -= 2;
        registers->rax = registers->orig_rax;
        registers->orig_rax = UINT64_MAX;
        direct->is_stale = true;
        return APUS_DIRECT_CALLED;
    }
    if (status >> 8 != 0) return APUS_DIRECT_ATTENTION;
    return meaning(direct, status);
}

uint64_t apus_direct_fault(const apus_direct *direct) { return direct->fault; }
uint64_t apus_direct_rip(const apus_direct *direct) { return direct->registers.rip; }
uint16_t apus_direct_cs(const apus_direct *direct) { return direct->registers.cs == direct->cs ? 0 : (uint16_t)direct->registers.cs; }
uint16_t apus_direct_ss(const apus_direct *direct) { return direct->registers.ss == direct->ss ? 0 : (uint16_t)direct->registers.ss; }

uint32_t apus_direct_number(apus_direct *direct) { return __atomic_load_n(&direct->number, __ATOMIC_SEQ_CST); }

void apus_direct_advance(apus_direct *direct) {
    __atomic_fetch_add(&direct->number, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&direct->sleepers, __ATOMIC_SEQ_CST) != 0) {
        syscall(SYS_futex, &direct->number, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
    }
}

void apus_direct_await(apus_direct *direct, uint32_t number, uint64_t nanoseconds) {
    struct timespec limit = {(time_t)(nanoseconds / 1000000000), (long)(nanoseconds % 1000000000)};
    __atomic_fetch_add(&direct->sleepers, 1, __ATOMIC_SEQ_CST);
    syscall(SYS_futex, &direct->number, FUTEX_WAIT_PRIVATE, number, nanoseconds == UINT64_MAX ? NULL : &limit, NULL, 0);
    __atomic_fetch_sub(&direct->sleepers, 1, __ATOMIC_SEQ_CST);
}

uint64_t apus_direct_clock(void) { return clock_time(CLOCK_MONOTONIC); }
uint64_t apus_direct_thread_time(void) { return clock_time(CLOCK_THREAD_CPUTIME_ID); }

void apus_direct_interrupt(const apus_direct *direct) { kill(direct->pid, SIGNAL); }

// MARK: - Code

/// Whether what follows 0F is one of CPUID (unless that traps), SYSENTER, XGETBV, RDPKRU, WRPKRU, RDPID, RDSEED and the XSAVE family.
static bool tells(uint8_t opcode, uint8_t modrm, bool traps_cpuid) {
    bool is_memory = modrm < 0xC0;
    uint8_t reg = modrm >> 3 & 7;
    switch (opcode) {
    case 0x34: return true;
    case 0xA2: return !traps_cpuid;
    case 0x01: return modrm == 0xD0 || modrm == 0xEE || modrm == 0xEF;
    case 0xAE: return is_memory && reg >= 4 && reg <= 6;
    case 0xC7: return is_memory ? reg >= 3 && reg <= 5 : reg == 7;
    default: return false;
    }
}

bool apus_direct_traps_cpuid(const apus_direct *direct) { return direct->traps_cpuid; }

bool apus_direct_is_plain(const uint8_t *page, const uint8_t *_Nullable next, bool traps_cpuid) {
    enum { BYTES = 4096 };
    const uint8_t *at = page, *end = page + BYTES;
    while ((at = memchr(at, 0x0F, (size_t)(end - at)))) {
        size_t opcode = (size_t)(at - page) + 1, modrm = opcode + 1;
        if (modrm >= BYTES && !next) return false;
        uint8_t first = opcode < BYTES ? page[opcode] : next[0], second = modrm < BYTES ? page[modrm] : next[modrm - BYTES];
        if (tells(first, second, traps_cpuid)) return false;
        at++;
    }
    return true;
}
