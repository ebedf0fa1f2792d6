// What several processors must agree on, tried from a Linux program: `smp-stress SECONDS` prints "SMP-STRESS OK" or what
// went wrong. Source: Intel SDM volume 3 §8.1 (locked operations), §8.1.3 (cross-modifying code), §8.2 (memory ordering),
// §4.10.4 (invalidation of translations). Not tried: anything that needs privilege.
#define _GNU_SOURCE
#include <cpuid.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static volatile int stop, failures;
#define LOAD(x) __atomic_load_n(&(x), __ATOMIC_ACQUIRE)
#define STORE(x, v) __atomic_store_n(&(x), (v), __ATOMIC_RELEASE)

static void fail(const char *what, uint64_t a, uint64_t b)
{
    if (__atomic_fetch_add(&failures, 1, __ATOMIC_SEQ_CST) < 5)
        printf("SMP-STRESS FAILED: %s (%lx, %lx)\n", what, (unsigned long)a, (unsigned long)b);
}

// 1. Counters that every thread adds to with LOCK ADD, XADD, CMPXCHG, CMPXCHG16B, LOCK BTS/BTC and split across lines.
static struct { _Alignas(64) uint64_t add, xadd, cas; _Alignas(16) uint64_t wide[2]; uint32_t bits; uint8_t lock; } sum;
static uint64_t plain, splits;
static _Alignas(4096) uint8_t split[8192];

static void *count(void *argument)
{
    uint64_t done = 0;
    while (!stop) {
        for (int i = 0; i < 500; i++, done++) {
            __asm__ volatile("lock addq $1, %0" : "+m"(sum.add)::"cc");
            __atomic_fetch_add(&sum.xadd, 1, __ATOMIC_SEQ_CST);
            uint64_t seen = LOAD(sum.cas);
            while (!__atomic_compare_exchange_n(&sum.cas, &seen, seen + 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {}
            uint64_t low = sum.wide[0], high = sum.wide[1];
            uint8_t ok;
            do {
                __asm__ volatile("lock cmpxchg16b %0; sete %1"
                                 : "+m"(sum.wide), "=q"(ok), "+a"(low), "+d"(high)
                                 : "b"(low + 1), "c"(high - 1) : "cc", "memory");
            } while (!ok);
            uint8_t taken = 1;
            do { __asm__ volatile("xchgb %0, %1" : "+q"(taken), "+m"(sum.lock)::"memory"); if (taken) sched_yield(); } while (taken);
            plain++;
            STORE(sum.lock, 0);
        }
        // Seldom: many hosts make split locks expensive on purpose.
        __atomic_fetch_add(&splits, 1, __ATOMIC_SEQ_CST);
        __asm__ volatile("lock addl $1, %0" : "+m"(*(uint32_t *)(split + 62))::"cc");
        __asm__ volatile("lock addl $1, %0" : "+m"(*(uint32_t *)(split + 4094))::"cc");
    }
    __atomic_fetch_add((uint64_t *)argument, done, __ATOMIC_SEQ_CST);
    return 0;
}

// 2. Message passing: what was written before a flag is seen by whoever sees the flag. Store buffering: with MFENCE
// between its store and its load, not both processors miss the other's store.
static struct { _Alignas(64) volatile uint64_t data[8]; _Alignas(64) volatile uint64_t flag; } message;
static struct { _Alignas(64) volatile uint32_t x; _Alignas(64) volatile uint32_t y; _Alignas(64) uint32_t round[2], saw[2]; } buffer;

static void *writer(void *unused)
{
    for (uint64_t n = 1; !stop; n++) {
        for (int i = 0; i < 8; i++) message.data[i] = n;
        message.flag = n;
        if ((n & 0xFFF) == 0) sched_yield();
    }
    return unused;
}
static void *reader(void *unused)
{
    while (!stop) {
        uint64_t flag = message.flag;
        for (int i = 7; i >= 0; i--) {
            uint64_t data = message.data[i];
            if (data < flag) fail("a message was not there behind its flag", data, flag);
        }
        if ((flag & 0xFFF) == 0) sched_yield();
    }
    return unused;
}
static void meet(int me, uint32_t round)
{
    STORE(buffer.round[me], round);
    while (LOAD(buffer.round[1 - me]) < round && !stop) sched_yield();
}
static void *fence(void *argument)
{
    int me = argument != 0;
    for (uint32_t round = 1; !stop;) {
        (me ? (volatile uint32_t *)&buffer.y : &buffer.x)[0] = round;
        __asm__ volatile("mfence" ::: "memory");
        buffer.saw[me] = me ? buffer.x : buffer.y;
        uint32_t mine = round;
        meet(me, ++round);
        if (!stop && !me && buffer.saw[0] < mine && buffer.saw[1] < mine)
            fail("both processors missed a fenced store", buffer.saw[0], buffer.saw[1]);
        meet(me, ++round);
    }
    return 0;
}

// 3. A page that is write-protected while others write it: once mprotect has returned, nothing changes.
static volatile uint64_t *guarded;
static __thread uint64_t faults;
static void trap(int number, siginfo_t *info, void *context)
{
    (void)number; (void)context;
    if ((uint64_t)info->si_addr >> 12 != (uint64_t)guarded >> 12) {
        static const char text[] = "SMP-STRESS FAILED: stray fault\n";
        if (write(1, text, sizeof text - 1) < 0) _exit(3);
        _exit(2);
    }
    faults++;
    sched_yield();
}
static void *scribble(void *argument)
{
    volatile uint64_t *mine = guarded + (uint64_t)argument;
    while (!stop) for (int i = 0; i < 1000; i++) ++*mine;
    return 0;
}
static void *protect(void *unused)
{
    while (!stop) {
        mprotect((void *)guarded, 4096, PROT_READ);
        uint64_t before[4], i;
        for (i = 0; i < 4; i++) before[i] = guarded[i];
        for (volatile int spin = 0; spin < 3000; spin++) {}
        for (i = 0; i < 4; i++) if (guarded[i] != before[i]) fail("a protected page was written", before[i], guarded[i]);
        mprotect((void *)guarded, 4096, PROT_READ | PROT_WRITE);
        for (volatile int spin = 0; spin < 3000; spin++) {}
    }
    return unused;
}

// 4. Code that one thread changes and another runs: MOV EAX, imm32; RET with an aligned immediate.
static uint8_t *code;
static volatile uint32_t published;
static void *patch(void *unused)
{
    for (uint32_t n = 1; !stop; n++) {
        *(volatile uint32_t *)(code + 4) = n;
        STORE(published, n);
        if ((n & 0xFF) == 0) sched_yield();
    }
    return unused;
}
static void *call(void *unused)
{
    uint32_t last = 0;
    while (!stop) {
        uint32_t known = LOAD(published), a, b, c, d;
        __cpuid(0, a, b, c, d);
        uint32_t found = ((uint32_t (*)(void))(code + 3))();
        if (found < known) fail("old code behind a serializing instruction", found, known);
        if (found < last) fail("code went back in time", found, last);
        last = found;
    }
    return unused;
}

// 5. Processes, pipes and copy on write.
static void *processes(void *unused)
{
    while (!stop) {
        int ends[2];
        uint64_t secret = (uint64_t)rand() << 20 | 1, answer = 0;
        volatile uint64_t local = secret;
        if (pipe(ends)) { fail("pipe", 0, 0); break; }
        pid_t child = fork();
        if (child == 0) {
            local += 5;
            uint64_t value = local;
            if (write(ends[1], &value, 8) != 8) _exit(1);
            _exit(0);
        }
        int status = 0;
        if (child < 0 || read(ends[0], &answer, 8) != 8 || waitpid(child, &status, 0) != child || status)
            fail("a child", status, answer);
        else if (answer != secret + 5 || local != secret) fail("a child's memory", answer, local);
        close(ends[0]); close(ends[1]);
    }
    return unused;
}

// 6. Clocks of all processors agree.
static void *clocks(void *unused)
{
    static uint64_t latest;
    while (!stop) {
        struct timespec t;
        uint64_t before = LOAD(latest);
        clock_gettime(CLOCK_MONOTONIC, &t);
        uint64_t now = (uint64_t)t.tv_sec * 1000000000 + t.tv_nsec;
        if (now < before) fail("time went back", before, now);
        while (before < now && !__atomic_compare_exchange_n(&latest, &before, now, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {}
    }
    return unused;
}

int main(int argc, char **argv)
{
    int seconds = argc > 1 ? atoi(argv[1]) : 5, used = 0;
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    struct sigaction action = {.sa_sigaction = trap, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGSEGV, &action, 0);
    guarded = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    code = mmap(0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memcpy(code + 3, "\xB8\0\0\0\0\xC3", 6);
    pthread_t threads[64];
    uint64_t total = 0;
    memset(split, 0, sizeof split);
#define START(body, argument) pthread_create(&threads[used++], 0, body, (void *)(argument))
    for (long i = 0; i < processors && i < 8; i++) START(count, &total);
    START(writer, 0); START(reader, 0); START(fence, 0); START(fence, 1); START(protect, 0);
    START(scribble, 0); START(scribble, 1); START(patch, 0); START(call, 0); START(call, 0);
    START(processes, 0); START(processes, 0); START(clocks, 0); START(clocks, 0);
    sleep(seconds);
    stop = 1;
    for (int i = 0; i < used; i++) pthread_join(threads[i], 0);
    if (sum.add != total || sum.xadd != total || sum.cas != total) fail("a locked counter", sum.add, total);
    if (sum.wide[0] != total || sum.wide[1] != 0 - total) fail("a wide counter", sum.wide[0], total);
    if (plain != total) fail("a counter behind a lock", plain, total);
    if (*(uint32_t *)(split + 62) != (uint32_t)splits) fail("a counter across lines", *(uint32_t *)(split + 62), splits);
    if (*(uint32_t *)(split + 4094) != (uint32_t)splits) fail("a counter across pages", *(uint32_t *)(split + 4094), splits);
    printf("SMP-STRESS %s processors=%ld rounds=%lu patches=%u\n", failures ? "BAD" : "OK", processors,
           (unsigned long)total, published);
    return failures != 0;
}
