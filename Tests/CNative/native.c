// The host CPU as a reference: register file in, register file out, exceptions as vectors.
#define _GNU_SOURCE
#include "native.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <zlib.h>

_Alignas(64) native_state native_current;
uint64_t native_host_stack;
static uint8_t native_signal_stack[65536];

_Static_assert(offsetof(native_state, fx) == 256 && offsetof(native_state, has_upper) == 160 &&
               offsetof(native_state, upper) == 768, "the assembly below knows these offsets");

#define NATIVE_LOAD_UPPER \
    "testb $1, native_current+160(%rip); jz 1f\n" \
    "vinsertf128 $1, native_current+768(%rip), %ymm0, %ymm0\n" \
    "vinsertf128 $1, native_current+784(%rip), %ymm1, %ymm1\n" \
    "vinsertf128 $1, native_current+800(%rip), %ymm2, %ymm2\n" \
    "vinsertf128 $1, native_current+816(%rip), %ymm3, %ymm3\n" \
    "vinsertf128 $1, native_current+832(%rip), %ymm4, %ymm4\n" \
    "vinsertf128 $1, native_current+848(%rip), %ymm5, %ymm5\n" \
    "vinsertf128 $1, native_current+864(%rip), %ymm6, %ymm6\n" \
    "vinsertf128 $1, native_current+880(%rip), %ymm7, %ymm7\n" \
    "vinsertf128 $1, native_current+896(%rip), %ymm8, %ymm8\n" \
    "vinsertf128 $1, native_current+912(%rip), %ymm9, %ymm9\n" \
    "vinsertf128 $1, native_current+928(%rip), %ymm10, %ymm10\n" \
    "vinsertf128 $1, native_current+944(%rip), %ymm11, %ymm11\n" \
    "vinsertf128 $1, native_current+960(%rip), %ymm12, %ymm12\n" \
    "vinsertf128 $1, native_current+976(%rip), %ymm13, %ymm13\n" \
    "vinsertf128 $1, native_current+992(%rip), %ymm14, %ymm14\n" \
    "vinsertf128 $1, native_current+1008(%rip), %ymm15, %ymm15\n" \
    "1:\n"

__asm__(
    ".text\n"
    "native_enter:\n"
    "push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
    "sub $8, %rsp; stmxcsr (%rsp); fnstcw 4(%rsp)\n"
    "mov %rsp, native_host_stack(%rip)\n"
    "mov %rdi, native_target(%rip)\n"
    "fxrstor64 native_current+256(%rip)\n"
    NATIVE_LOAD_UPPER
    "push native_current+128(%rip); popfq\n"
    "mov native_current+0(%rip), %rax; mov native_current+8(%rip), %rcx\n"
    "mov native_current+16(%rip), %rdx; mov native_current+24(%rip), %rbx\n"
    "mov native_current+32(%rip), %rsp; mov native_current+40(%rip), %rbp\n"
    "mov native_current+48(%rip), %rsi; mov native_current+56(%rip), %rdi\n"
    "mov native_current+64(%rip), %r8; mov native_current+72(%rip), %r9\n"
    "mov native_current+80(%rip), %r10; mov native_current+88(%rip), %r11\n"
    "mov native_current+96(%rip), %r12; mov native_current+104(%rip), %r13\n"
    "mov native_current+112(%rip), %r14; mov native_current+120(%rip), %r15\n"
    "jmp *native_target(%rip)\n"
    "native_leave:\n"
    "mov native_host_stack(%rip), %rsp\n"
    "testb $1, native_current+160(%rip); jz 1f; vzeroupper; 1:\n"
    "cld; fninit; ldmxcsr (%rsp); fldcw 4(%rsp); add $8, %rsp\n"
    "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
    "ret\n"
    "native_enter32:\n"
    "push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
    "sub $8, %rsp; stmxcsr (%rsp); fnstcw 4(%rsp)\n"
    "mov %rsp, native_host_stack(%rip)\n"
    "mov %edi, native_target(%rip); movl $0x23, native_target+4(%rip)\n"
    "mov $0x2B, %eax; mov %eax, %ds; mov %eax, %es\n"
    "fxrstor64 native_current+256(%rip)\n"
    NATIVE_LOAD_UPPER
    "push native_current+128(%rip); popfq\n"
    "mov native_current+0(%rip), %eax; mov native_current+8(%rip), %ecx\n"
    "mov native_current+16(%rip), %edx; mov native_current+24(%rip), %ebx\n"
    "mov native_current+32(%rip), %esp; mov native_current+40(%rip), %ebp\n"
    "mov native_current+48(%rip), %esi; mov native_current+56(%rip), %edi\n"
    "ljmp *native_target(%rip)\n"
    ".local native_target\n"
    ".comm native_target, 8, 8\n");

void native_enter(uint64_t address);
void native_enter32(uint64_t address);
extern char native_leave[];

native_state *native_registers(void) { return &native_current; }

/// Takes the interrupted registers over and continues at `native_leave` on the host's stack.
static void native_caught(int number, siginfo_t *info, void *opaque) {
    ucontext_t *context = opaque;
    greg_t *from = context->uc_mcontext.gregs;
    static const int order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    for (int i = 0; i < 16; i++) native_current.gpr[i] = (uint64_t)from[order[i]];
    native_current.flags = (uint64_t)from[REG_EFL];
    native_current.rip = (uint64_t)from[REG_RIP];
    native_current.vector = (uint64_t)from[REG_TRAPNO];
    native_current.fault_address = (uint64_t)info->si_addr;
    const uint8_t *area = (const uint8_t *)context->uc_mcontext.fpregs;
    memcpy(native_current.fx, area, sizeof native_current.fx);
    // FP_XSTATE_MAGIC1: an XSAVE area, whose header tells whether YMM registers are in use.
    uint32_t magic;
    memcpy(&magic, area + 464, sizeof magic);
    bool in_use = magic == 0x46505853 && (area[512] & 4);
    if (in_use) memcpy(native_current.upper, area + 576, sizeof native_current.upper);
    else memset(native_current.upper, 0, sizeof native_current.upper);
    from[REG_RIP] = (greg_t)native_leave;
    from[REG_RSP] = (greg_t)native_host_stack;
    from[REG_EFL] = 0x202;
    // Back to the 64-bit code segment, should the code have been 32-bit code.
    from[REG_CSGSFS] = (greg_t)(((uint64_t)from[REG_CSGSFS] & ~0xFFFFull) | 0x33);
    (void)number;
}

static void native_catching(void (*enter)(uint64_t), uint64_t address) {
    static const int signals[] = {SIGTRAP, SIGSEGV, SIGBUS, SIGILL, SIGFPE};
    struct sigaction action = {0}, old[5];
    stack_t stack = {.ss_sp = native_signal_stack, .ss_size = sizeof native_signal_stack}, old_stack;
    action.sa_sigaction = native_caught;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigfillset(&action.sa_mask);
    sigaltstack(&stack, &old_stack);
    for (int i = 0; i < 5; i++) sigaction(signals[i], &action, &old[i]);
    enter(address);
    for (int i = 0; i < 5; i++) sigaction(signals[i], &old[i], NULL);
    sigaltstack(&old_stack, NULL);
}

void native_run(uint64_t address) { native_catching(native_enter, address); }

void native_run32(uint32_t address) { native_catching(native_enter32, address); }

void *native_map(uint64_t address, size_t bytes, bool executable) {
    int protection = PROT_READ | PROT_WRITE | (executable ? PROT_EXEC : 0);
    void *made = mmap((void *)address, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    return made == MAP_FAILED ? NULL : made;
}

void native_unmap(void *start, size_t bytes) { munmap(start, bytes); }

void *native_memory(size_t bytes) {
    void *made = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return made == MAP_FAILED ? NULL : made;
}

uint8_t *native_gunzip(const char *path, size_t *bytes) {
    gzFile file = gzopen(path, "rb");
    if (!file) return NULL;
    size_t room = 1 << 20, used = 0;
    uint8_t *data = malloc(room);
    for (int got; data && (got = gzread(file, data + used, (unsigned)(room - used))) > 0;) {
        used += (size_t)got;
        if (used == room) data = realloc(data, room *= 2);
    }
    gzclose(file);
    *bytes = used;
    return data;
}
