// What a PV guest finds of Xen: one sentence a fact, on its console. A 64-bit kernel at 0xFFFFFFFF80000000.
// Source: Xen's public headers (numbers and layouts); xen/arch/x86 and xen/common for errors.
// Covered: each group of hypercalls that PV guests have, by the page and by bare SYSCALL; traps, events, programs, two vCPUs.
// Quirks: page tables are read-only before they are pinned, frames come from the list of frames: so it would run on Xen.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

#define SELF 0x7FF0
#define BASE 0xFFFFFFFF80000000ul
enum {
    SET_TRAP_TABLE, MMU_UPDATE, SET_GDT, STACK_SWITCH, SET_CALLBACKS, FPU_TASKSWITCH, SET_DEBUGREG = 8, GET_DEBUGREG,
    UPDATE_DESCRIPTOR, MEMORY_OP = 12, MULTICALL, UPDATE_VA_MAPPING, SET_TIMER_OP, XEN_VERSION = 17, CONSOLE_IO,
    GRANT_OP = 20, VM_ASSIST, VCPU_OP = 24, SET_SEGMENT_BASE, MMUEXT_OP, NMI_OP = 28, SCHED_OP, CALLBACK_OP,
    EVENT_OP = 32, PHYSDEV_OP,
};
enum { FAULT = -14, EXISTS = -17, INVALID = -22, NOSYS = -38, NOMEM = -12, PERM = -1 };
enum { RW = 0x63, RO = 0x61, TABLE = 0x67, USER = 0x67 };

struct start_info {
    char magic[32];
    u64 pages, shared_info;
    u32 flags, pad;
    u64 store, store_port, console;
    u32 console_port, pad2;
    u64 tables, table_count;
    u64 *frames;
    u64 module, module_bytes;
    char command_line[1024];
};
struct frame {
    u64 r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax, vector, error, rip, cs, flags, rsp, ss;
};
struct vcpu_info { volatile u8 pending, mask; u8 pad[6]; volatile u64 selector; volatile u64 cr2; u8 rest[40]; };

static struct start_info *info;
static int failures;
static u8 shared[4096] __attribute__((aligned(4096)));
static u8 pool[24][4096] __attribute__((aligned(4096)));
static u8 program_stack[4096] __attribute__((aligned(4096)));
static u8 second_stack[8192] __attribute__((aligned(16)));
static u8 context[5168] __attribute__((aligned(16)));
extern u8 hypercall_page[4096], program[], program_end[];
extern void enter_program(u64 instruction, u64 stack), leave_program(void), second_start(void);
extern void entry_2(void), entry_3(void), entry_6(void), entry_7(void), entry_11(void), entry_13(void), entry_14(void),
    entry_128(void), entry_256(void), entry_257(void), entry_258(void);

void *memset(void *to, int value, u64 count)
{
    u8 *byte = to;
    while (count--) *byte++ = value;
    return to;
}
void *memcpy(void *to, const void *from, u64 count)
{
    u8 *byte = to;
    for (const u8 *source = from; count--;) *byte++ = *source++;
    return to;
}

// MARK: hypercalls

static long bare(u64 number, u64 a, u64 b, u64 c, u64 d)
{
    long result;
    register u64 fourth asm("r10") = d;
    asm volatile("syscall" : "=a"(result), "+D"(a), "+S"(b), "+d"(c), "+r"(fourth) : "0"(number) : "rcx", "r11", "memory");
    return result;
}
static long through_page(u64 number, u64 a, u64 b)
{
    long result;
    asm volatile("call *%%rbx" : "=a"(result), "+D"(a), "+S"(b) : "b"(hypercall_page + number * 32) : "rcx", "r11", "memory");
    return result;
}
#define call(number, a, b) bare(number, (u64)(a), (u64)(b), 0, 0)
static long list(u64 number, u64 command, void *list) { return bare(number, command, (u64)list, 1, 0); }

// MARK: output

static long send(u32 port) { return call(EVENT_OP, 4, &port); }
static void say(const char *text)
{
    u8 *page = (u8 *)BASE + (info->console << 12);
    volatile u32 *consumed = (u32 *)(page + 3080), *produced = (u32 *)(page + 3084);
    for (; *text; text++) {
        while (*produced - *consumed >= 2048) asm volatile("pause");
        page[1024 + (*produced & 2047)] = *text;
        ++*produced;
    }
    send(info->console_port);
}
static void check(int holds, const char *sentence)
{
    say(holds ? "PASS " : "FAIL ");
    say(sentence);
    say("\n");
    failures += !holds;
}

// MARK: frames and tables

static u64 frame_of(const void *address) { return info->frames[((u64)address - BASE) >> 12]; }
static long map(const void *address, u64 entry) { return bare(UPDATE_VA_MAPPING, (u64)address, entry, 2, 0); }
static void protect(const void *page) { map(page, frame_of(page) << 12 | RO); }
static long update(u64 place, u64 value)
{
    struct { u64 place, value; } one = { place, value };
    return bare(MMU_UPDATE, (u64)&one, 1, 0, SELF);
}
static long extended(u32 command, u64 first, u64 second)
{
    struct { u32 command, pad; u64 first, second; } one = { command, 0, first, second };
    return bare(MMUEXT_OP, (u64)&one, 1, 0, SELF);
}
// The machine address of the entry for `address`, by the tables as they are.
static u64 entry_of(const void *address)
{
    u64 table = (u64)info->tables;
    for (int shift = 39; shift > 12; shift -= 9)
        table = BASE + (((u64 *)table)[(u64)address >> shift & 511] & 0xFFFFFFFFFF000);
    return table - BASE + ((u64)address >> 12 & 511) * 8;
}

// MARK: traps

static volatile u64 counts[259], recover;
static struct frame last;
static u64 said[4];
static u32 timer_port;
static struct vcpu_info *vcpu_info(void) { return (struct vcpu_info *)shared; }

void on_trap(struct frame *frame)
{
    counts[frame->vector]++;
    last = *frame;
    switch (frame->vector) {
    case 256:
        vcpu_info()->pending = 0;
        vcpu_info()->selector = 0;
        break;
    case 257:
        said[frame->rax & 3] = frame->rax == 1 ? frame->rdi : frame->rsi;
        if (frame->rax == 3) leave_program();
        frame->rax = 4711;
        break;
    case 13: case 14:
        // A program goes on behind what it may not do: 7 bytes of MOV, 1 of HLT.
        if ((frame->cs & 3) == 3 && frame->rip < BASE) {
            frame->rip += frame->vector == 14 ? 7 : 1;
            break;
        }
        // Fall through.
    default: if (recover) frame->rip = recover;
    }
    recover = 0;
}
// Does what faults, and goes on behind it.
#define FAULTS(instruction, ...) \
    asm volatile("movq $1f, %0\n" instruction "\n1:" : "=m"(recover) : __VA_ARGS__ : "memory", "rax")

static void test_start(void)
{
    check(info->magic[0] == 'x' && info->magic[14 - 1] == '4', "the start info says xen-3.0-x86_64");
    check(info->pages == 64 << 8, "it knows the domain's pages");
    check(info->command_line[0] == 'f' && info->command_line[3] == 0, "and the command line");
    check(*(u64 *)(0xFFFF800000000000ul + info->frames[300] * 8) == 300, "the machine-to-physical table is there");
}

static void test_calls(void)
{
    long version = call(XEN_VERSION, 0, 0);
    check(version >> 16 == 4, "a bare SYSCALL is a hypercall");
    check(through_page(XEN_VERSION, 0, 0) == version, "the hypercall page does the same");
    check(call(70, 0, 0) == NOSYS, "a call that does not exist is -ENOSYS");
    check(call(XEN_VERSION, 1, 0xDEAD0000) == FAULT, "an argument that is not mapped is -EFAULT");
    struct { u32 index, features; } f = { 0, 0 };
    check(call(XEN_VERSION, 6, &f) == 0 && !(f.features & 4), "features: not auto-translated");
    char text[1024];
    check(call(XEN_VERSION, 3, text) == 0 && text[0] == 'x' && text[4] == '3', "it is capable of xen-3.0");
    u64 hole;
    check(call(XEN_VERSION, 5, &hole) == 0 && hole == 0xFFFF800000000000ul, "Xen's hole begins where it should");
    struct { u64 number; long result; u64 arguments[6]; } calls[3] = {
        { XEN_VERSION, 1, { 0 } }, { 70, 1, { 0 } }, { MULTICALL, 1, { 0 } } };
    check(call(MULTICALL, calls, 3) == 0 && calls[0].result == version && calls[1].result == NOSYS && calls[2].result == PERM,
          "multicalls: each has its result, and none is in another");
    check(bare(CONSOLE_IO, 0, 20, (u64)"hello to Xen's log!\n", 0) == 20, "Xen's console takes a line");
}

static void set_traps(void)
{
    static struct { u8 vector, flags; u16 selector; u32 pad; u64 address; } traps[] = {
        { 2, 0, 0xE033, 0, (u64)entry_2 }, { 3, 3, 0xE033, 0, (u64)entry_3 }, { 6, 0, 0xE033, 0, (u64)entry_6 },
        { 7, 0, 0xE033, 0, (u64)entry_7 }, { 11, 0, 0xE033, 0, (u64)entry_11 }, { 13, 0, 0xE033, 0, (u64)entry_13 },
        { 14, 0, 0xE033, 0, (u64)entry_14 }, { 128, 3, 0xE033, 0, (u64)entry_128 }, { 0 } };
    check(call(SET_TRAP_TABLE, traps, 0) == 0, "a trap table is taken");
    check(bare(SET_CALLBACKS, (u64)entry_256, (u64)entry_258, (u64)entry_257, 0) == 0, "so are callbacks");
}

static void test_traps(void)
{
    asm volatile("int3");
    check(counts[3] == 1 && (last.cs & 3) != 3 && last.ss == 0xE02B, "INT3 gets to its handler, and back by iret");
    FAULTS("ud2");
    check(counts[6] == 1 && *(u16 *)last.rip == 0x0B0F, "UD2 does, with the place of the instruction");
    FAULTS("mov 0x123456789, %%al");
    check(counts[14] == 1 && vcpu_info()->cr2 == 0x123456789 && last.error == 0, "a page fault tells its address by vcpu_info");
    FAULTS("mov %%al, (%1)", "r"(0x123456000ul));
    check(counts[14] == 2 && last.error == 2, "and whether it was a write");
    FAULTS("hlt");
    check(counts[13] == 1, "HLT is not for the guest's kernel");
    asm volatile("int $128");
    check(counts[128] == 1, "a vector of programs is the kernel's as well");
    call(FPU_TASKSWITCH, 1, 0);
    FAULTS("fnop");
    check(counts[7] == 1, "after fpu_taskswitch the x87 faults");
    asm volatile("fnop");
    check(counts[7] == 1, "once");
    u32 r[4];
    asm volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(1), "c"(0));
    asm volatile("ud2a; .ascii \"xen\"; cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(0x40000000), "c"(0));
    check(r[1] == 0x566E6558 && counts[6] == 1, "the forced CPUID finds Xen's leaves");
    check(call(SET_DEBUGREG, 0, program) == 0 && call(GET_DEBUGREG, 0, 0) == (long)program && call(SET_DEBUGREG, 0, 0) == 0,
          "a debug register keeps what it is given");
    check(call(SET_DEBUGREG, 9, 0) == INVALID, "there is no ninth");
}

static void test_nmi(void)
{
    struct { u64 address, pad; } handler = { (u64)entry_2, 0 };
    check(call(NMI_OP, 0, &handler) == 0 && bare(VCPU_OP, 11, 0, 0, 0) == 0, "an NMI can be asked for");
    for (int i = 0; i < 1000 && !counts[2]; i++) call(SCHED_OP, 0, 0);
    check(counts[2] == 1, "and comes");
    struct { u16 type, flags; u32 pad; u64 address; } event = { 0, 0, 0, (u64)entry_256 };
    check(call(CALLBACK_OP, 0, &event) == 0, "callback_op registers a callback, too");
    event.type = 99;
    check(call(CALLBACK_OP, 0, &event) == NOSYS, "one that does not exist is -ENOSYS");
}

// MARK: tables

static void test_mappings(void)
{
    u64 *page = (u64 *)pool[0], *other = (u64 *)pool[1];
    page[0] = 1;
    other[0] = 2;
    u64 frame = frame_of(page), second = frame_of(other);
    check(map(page, second << 12 | RW) == 0 && *(volatile u64 *)page == 2, "update_va_mapping shows another page at once");
    check(map(page, frame << 12 | RW) == 0 && *(volatile u64 *)page == 1, "and the first again");
    check(map(page, (info->pages + 5000) << 12 | RW) == INVALID, "a frame that is not the domain's is refused");
    check(update(entry_of(page), second << 12 | RW) == 0 && extended(7, (u64)page, 0) == 0 && *(volatile u64 *)page == 2,
          "mmu_update and INVLPG do the same");
    check(update(entry_of(page) | 2, frame << 12 | 1) == 0 && extended(6, 0, 0) == 0
              && (*(u64 *)(BASE + entry_of(page)) & 0x62) == 0x60, "PRESERVE_AD keeps accessed and dirty");
    FAULTS("movq $0, (%1)", "r"(page));
    check(last.error == 3 && vcpu_info()->cr2 == (u64)page, "a write to what is read-only faults");
    map(page, frame << 12 | RW);
    check(update(frame << 12 | 1, 77) == 0 && *(u64 *)(0xFFFF800000000000ul + frame * 8) == 77,
          "the machine-to-physical table takes a new number");
    update(frame << 12 | 1, ((u64)page - BASE) >> 12);
    u64 mask = 1;
    check(extended(10, 0, 0) == 0 && extended(11, (u64)page, 0) == 0 && extended(8, 0, (u64)&mask) == 0
              && extended(9, (u64)page, (u64)&mask) == 0 && extended(12, 0, 0) == 0, "all kinds of flushes are there");
    check(extended(99, 0, 0) == NOSYS, "what is no command is -ENOSYS");
    other[5] = 55;
    check(extended(17, frame, second) == 0 && page[5] == 55, "a page is copied");
    check(extended(16, frame, 0) == 0 && page[5] == 0, "and cleared");
    struct { u64 place, value; } many[3] = { { frame << 12, 1 }, { frame << 12 | 4, 1 }, { frame << 12 | 8, 1 } };
    u32 done = 99;
    check(bare(MMU_UPDATE, (u64)many, 3, (u64)&done, SELF) == INVALID && done == 1 && page[0] == 1 && page[1] == 0,
          "a list stops where it is wrong, and tells");
}

// Tables in four pages that show `frame` at `address` to programs.
static u64 *make_tables(int first, u64 address, u64 frame, u64 second_frame)
{
    for (int level = 0; level < 4; level++) {
        u64 *table = (u64 *)pool[first + level];
        memset(table, 0, 4096);
        u64 index = address >> (39 - 9 * level) & 511;
        table[index] = (level < 3 ? frame_of(pool[first + level + 1]) : frame) << 12 | USER;
        if (level == 3) table[index + 1] = second_frame << 12 | USER;
    }
    for (int level = 0; level < 4; level++) protect(pool[first + level]);
    return (u64 *)pool[first];
}

static void test_tables(void)
{
    u64 *page = (u64 *)pool[0], address = 0x12345678000;
    u64 *top = make_tables(2, address, frame_of(page), 0), *own = (u64 *)info->tables;
    page[0] = 4242;
    check(extended(3, frame_of(top), 0) == 0, "a top-level table is pinned with those below it");
    check(update((frame_of(own) << 12) + (address >> 39) * 8, frame_of(pool[3]) << 12 | TABLE) == 0
              && *(volatile u64 *)address == 4242, "a table below it can be linked into another one");
    check(bare(UPDATE_VA_MAPPING, address, frame_of(pool[1]) << 12 | RW, 2, 0) == 0
              && *(volatile u64 *)address == *(u64 *)pool[1], "and changed there");
    *(volatile u64 *)&((u64 *)pool[5])[address >> 12 & 511] = frame_of(page) << 12 | RW;
    extended(7, address, 0);
    check(*(volatile u64 *)address == 4242, "the guest may write to an entry itself, though the table is read-only");
    update((frame_of(own) << 12) + (address >> 39) * 8, 0);
    extended(6, 0, 0);
    FAULTS("mov (%1), %%al", "r"(address));
    check(last.vector == 14 && vcpu_info()->cr2 == address, "what is no longer linked is gone");
    check(update((frame_of(own) << 12) + 256 * 8, 0) == INVALID, "Xen's own slots are not for the guest");
    // The same tables by another top: a copy of the kernel's.
    u64 *copy = (u64 *)pool[6];
    for (int i = 0; i < 512; i++) copy[i] = i < 256 || i >= 272 ? own[i] : 0;
    copy[address >> 39] = frame_of(pool[3]) << 12 | TABLE;
    protect(copy);
    check(extended(3, frame_of(copy), 0) == 0 && extended(5, frame_of(copy), 0) == 0 && *(volatile u64 *)address == 4242,
          "other tables can be gone to");
    check(extended(5, frame_of(own), 0) == 0 && extended(4, frame_of(copy), 0) == 0, "and left, and unpinned");
    map(copy, frame_of(copy) << 12 | RW);
    copy[0] = 1;
    check(extended(5, info->pages + 5000, 0) == INVALID, "what is no memory is no table");
}

// MARK: segments and programs

static void test_segments(void)
{
    u64 value;
    u64 *array = (u64 *)pool[0];
    array[0] = 777;
    check(call(SET_SEGMENT_BASE, 0, array) == 0, "FS takes a base");
    asm volatile("mov %%fs:0, %0" : "=r"(value));
    check(value == 777, "and has it");
    check(call(SET_SEGMENT_BASE, 2, array) == 0, "so does the kernel's GS");
    asm volatile("mov %%gs:0, %0" : "=r"(value));
    check(value == 777, "and has it");
    check(call(SET_SEGMENT_BASE, 0, 1ul << 62) == INVALID, "a base that is not canonical is refused");
    u64 *table = (u64 *)pool[7];
    memset(table, 0, 4096);
    table[2] = 0x00CFF3000000FFFF;
    protect(table);
    u64 frames[1] = { frame_of(table) };
    check(call(SET_GDT, frames, 512) == 0, "a descriptor table is taken");
    u32 selector = 2 << 3 | 3, read;
    asm volatile("mov %1, %%ds; mov %%ds, %0" : "=r"(read) : "r"(selector));
    check((u16)read == selector, "a selector of it can be loaded");
    check(call(UPDATE_DESCRIPTOR, (frames[0] << 12) + 16, 0x00CF73000000FFFF) == 0 && table[2] == 0x00CF73000000FFFF,
          "a descriptor is changed");
    FAULTS("mov %1, %%ds", "r"(selector));
    check(counts[11] == 1 && last.error == 16, "one that is not present faults by its selector");
    check(call(UPDATE_DESCRIPTOR, frame_of(pool[2]) << 12, 0) == INVALID, "a page table holds no descriptors");
    check(extended(13, (u64)table, 512) == 0, "a local table is taken");
    call(UPDATE_DESCRIPTOR, (frames[0] << 12) + 16, 0x00CFF3000000FFFF);
    selector = 2 << 3 | 4 | 3;
    asm volatile("mov %1, %%ds; mov %%ds, %0" : "=r"(read) : "r"(selector));
    check((u16)read == selector, "and has the same descriptor");
    asm volatile("mov %0, %%ds" : : "r"(0xE02B));
    check(extended(13, 0, 0) == 0 && call(SET_GDT, 0, 0) == 0, "both can be taken back");
}

static void test_programs(void)
{
    u64 address = 0x400000;
    memcpy(pool[8], program, program_end - program);
    u64 *top = make_tables(9, address, frame_of(pool[8]), frame_of(program_stack));
    check(extended(3, frame_of(top), 0) == 0 && extended(15, frame_of(top), 0) == 0, "programs have tables of their own");
    check(call(STACK_SWITCH, 0xE02B, program_stack + 2048) == 0, "the kernel says where its stack is");
    *(u64 *)program_stack = 31337;
    check(call(SET_SEGMENT_BASE, 1, address + 4096) == 0, "and where the programs' GS is");
    u64 faults = counts[14], protections = counts[13], calls = counts[257];
    enter_program(address, address + 4096 + 1024);
    check(counts[257] == calls + 3, "a program's SYSCALLs are the kernel's to answer");
    check(said[1] == 31337, "GS is the program's there");
    check(said[2] == 4711, "it gets its answer");
    check(counts[14] == faults + 1 && vcpu_info()->cr2 == 0xFFFFFFFF80100000, "it cannot read the kernel's memory");
    check(counts[13] == protections + 1, "nor stop the processor");
    check(counts[128] == 2, "its INT 128 comes through");
    check((last.cs & 3) == 3 && last.ss == 0xE02B, "frames tell that it was one");
    check(extended(15, 0, 0) == 0 && extended(4, frame_of(top), 0) == 0, "its tables go again");
}

// MARK: events

static u32 allocate(u16 remote)
{
    struct { u16 domid, remote; u32 port; } a = { SELF, remote, 0 };
    return call(EVENT_OP, 6, &a) ? 0 : a.port;
}
static u32 bind(u16 domid, u32 remote)
{
    struct { u16 domid, pad; u32 remote, local; } b = { domid, 0, remote, 0 };
    return call(EVENT_OP, 0, &b) ? 0 : b.local;
}
static struct { u16 domid, pad; u32 port, status, vcpu; u16 remote, pad2; u32 other; } seen;
static u32 status(u32 port)
{
    seen.domid = SELF;
    seen.port = port;
    return call(EVENT_OP, 5, &seen) ? 100 : seen.status;
}
static int is_pending(u32 port) { return shared[2048 + port / 8] >> port % 8 & 1; }
static void set_mask(u32 port, int masked)
{
    if (masked) shared[2560 + port / 8] |= 1 << port % 8;
    else shared[2560 + port / 8] &= ~(1 << port % 8);
}
static void clear(u32 port) { shared[2048 + port / 8] &= ~(1 << port % 8); }
static u64 now(void)
{
    volatile u32 *version = (u32 *)(shared + 32);
    u64 ticks, then, system;
    u32 before, multiplier;
    signed char shift;
    do {
        before = *version;
        then = *(volatile u64 *)(shared + 40);
        system = *(volatile u64 *)(shared + 48);
        multiplier = *(volatile u32 *)(shared + 56);
        shift = *(volatile signed char *)(shared + 60);
        u32 low, high;
        asm volatile("rdtsc" : "=a"(low), "=d"(high));
        ticks = ((u64)high << 32 | low) - then;
    } while (before & 1 || before != *version);
    ticks = shift < 0 ? ticks >> -shift : ticks << shift;
    return system + (u64)((unsigned __int128)ticks * multiplier >> 32);
}

static void test_events(void)
{
    u32 first = allocate(SELF), port = bind(SELF, first);
    check(first && port && status(first) == 2 && status(port) == 2, "two ports of the own domain are bound together");
    clear(port);
    clear(first);
    vcpu_info()->mask = 0;
    set_mask(port, 0);
    u64 before = counts[256];
    send(first);
    check(is_pending(port) && counts[256] == before + 1, "sending to one makes the other pending, and calls back");
    check((last.cs >> 32) == 0 && last.flags & 0x200, "the frame says that events were not masked");
    clear(port);
    set_mask(port, 1);
    send(first);
    check(is_pending(port) && counts[256] == before + 1, "a masked port waits");
    set_mask(port, 1);
    struct { u32 port; } one = { port };
    check(call(EVENT_OP, 9, &one) == 0 && counts[256] == before + 2, "until it is unmasked");
    clear(port);
    vcpu_info()->mask = 1;
    send(first);
    check(counts[256] == before + 2 && vcpu_info()->pending, "with all events masked the callback waits");
    vcpu_info()->mask = 0;
    call(XEN_VERSION, 0, 0);
    check(counts[256] == before + 3, "until the next look");
    clear(port);
    struct { u32 vcpu, port; } ipi = { 0, 0 };
    check(call(EVENT_OP, 7, &ipi) == 0 && status(ipi.port) == 5, "a port for IPIs");
    set_mask(ipi.port, 0);
    send(ipi.port);
    check(is_pending(ipi.port), "reaches its vCPU");
    clear(ipi.port);
    check(call(EVENT_OP, 3, &one) == 0 && status(port) == 0 && status(first) == 1, "a port is closed");
    struct { u32 port, vcpu; } wrong = { ipi.port, 99 };
    check(call(EVENT_OP, 8, &wrong) < 0, "there is no vCPU 99");
    check(send(4000) == INVALID, "sending to a port that is not bound is -EINVAL");
}

static void test_time(void)
{
    struct { u32 virq, vcpu, port; } timer = { 0, 0, 0 };
    check(call(EVENT_OP, 1, &timer) == 0 && status(timer.port) == 4, "the timer's virtual interrupt is bound");
    timer_port = timer.port;
    set_mask(timer_port, 0);
    u64 start = now();
    check(call(SET_TIMER_OP, start + 20000000, 0) == 0 && call(SCHED_OP, 1, 0) == 0, "set_timer_op, then block");
    check(is_pending(timer_port) && now() >= start + 20000000, "the vCPU sleeps until the timer is due");
    clear(timer_port);
    struct { u64 deadline; u32 flags, pad; } single = { now() + 10000000, 0, 0 };
    check(bare(VCPU_OP, 8, 0, (u64)&single, 0) == 0 && call(SCHED_OP, 1, 0) == 0 && is_pending(timer_port),
          "a single shot of vcpu_op does the same");
    clear(timer_port);
    u64 period = 5000000;
    check(bare(VCPU_OP, 6, 0, (u64)&period, 0) == 0, "a period is set");
    for (int i = 0; i < 3; i++) {
        call(SCHED_OP, 1, 0);
        clear(timer_port);
    }
    check(bare(VCPU_OP, 7, 0, 0, 0) == 0 && now() > single.deadline + 10000000, "its ticks come one by one");
    clear(timer_port);
    u32 port = timer_port;
    struct { u32 *ports; u32 count, pad; u64 deadline; } poll = { &port, 1, 0, now() + 10000000 };
    set_mask(timer_port, 1);
    check(call(SCHED_OP, 3, &poll) == 0 && now() >= poll.deadline, "a poll ends by its deadline");
    poll.deadline = 0;
    call(SET_TIMER_OP, now() + 10000000, 0);
    check(call(SCHED_OP, 3, &poll) == 0 && is_pending(timer_port), "or by its port, though that is masked");
    clear(timer_port);
    check(call(SCHED_OP, 0, 0) == 0, "yield");
    struct { u32 id, seconds; } dog = { 0, 60 };
    long id = call(SCHED_OP, 6, &dog);
    dog.id = id;
    check(id == 1 && call(SCHED_OP, 6, &dog) == 0, "a watchdog is taken, and set again");
    dog.seconds = 0;
    check(call(SCHED_OP, 6, &dog) == 0 && call(SCHED_OP, 6, &dog) == INVALID, "and freed, once");
    struct { int state; u64 since, time[4]; } run;
    check(bare(VCPU_OP, 4, 0, (u64)&run, 0) == 0 && run.state == 0 && run.time[2] > 20000000, "run states: time asleep counts");
}

static void test_fifo(void)
{
    struct { u64 frame; u32 offset, vcpu; u8 bits, pad[7]; } control = { frame_of(pool[14]), 0, 0, 0, { 0 } };
    u64 array = frame_of(pool[15]);
    volatile u32 *heads = (u32 *)(pool[14] + 8), *words = (u32 *)pool[15];
    memset(pool[14], 0, 8192);
    check(call(EVENT_OP, 11, &control) == 0 && control.bits == 17, "queues of events are asked for");
    check(call(EVENT_OP, 12, &array) == 0, "their words lie in a page of the guest's");
    u32 first = allocate(SELF), port = bind(SELF, first);
    vcpu_info()->mask = 1;
    words[port] &= ~0x40000000;
    send(first);
    check(words[port] >> 31, "an event marks its word");
    u32 entry = heads[7];
    while (entry && entry != port) entry = words[entry] & 0x1FFFF;
    check(*(volatile u32 *)pool[14] & 1 << 7 && entry == port, "and is in its queue");
    struct { u32 port, priority; } urgent = { port, 16 };
    check(call(EVENT_OP, 13, &urgent) == INVALID, "there are 16 priorities");
    urgent.priority = 0;
    check(call(EVENT_OP, 13, &urgent) == 0, "0 is the first of them");
    u16 self = SELF;
    status(info->console_port);
    u32 remote = seen.other;
    check(call(EVENT_OP, 10, &self) == 0 && status(port) == 0, "a reset closes all ports");
    info->console_port = bind(0, remote);
    check(info->console_port != 0, "the console's can be bound anew");
}

// MARK: vCPUs

static volatile u32 second_runs, second_ends;
void second(void)
{
    second_runs = 1;
    while (!second_ends) call(SCHED_OP, 0, 0);
    second_runs = 2;
    bare(VCPU_OP, 2, 1, 0, 0);
    second_runs = 3;
    for (;;) bare(VCPU_OP, 2, 1, 0, 0);
}

static void test_vcpus(void)
{
    *(u64 *)(context + 512) = 4;
    *(u64 *)(context + 520 + 128) = (u64)second_start;
    *(u64 *)(context + 520 + 136) = 0xE033;
    *(u64 *)(context + 520 + 144) = 0x202;
    *(u64 *)(context + 520 + 152) = (u64)(second_stack + sizeof second_stack);
    *(u64 *)(context + 520 + 160) = 0xE02B;
    *(u64 *)(context + 4976) = (u64)(second_stack + sizeof second_stack);
    *(u64 *)(context + 4984 + 24) = frame_of((void *)info->tables) << 12;
    check(bare(VCPU_OP, 3, 0, 0, 0) == 1 && bare(VCPU_OP, 3, 1, 0, 0) == 0, "the second vCPU is down at first");
    check(bare(VCPU_OP, 1, 1, 0, 0) == INVALID, "and cannot come up as it is");
    check(bare(VCPU_OP, 0, 1, (u64)context, 0) == 0 && bare(VCPU_OP, 1, 1, 0, 0) == 0, "it is given a start, and brought up");
    while (!second_runs) call(SCHED_OP, 0, 0);
    check(bare(VCPU_OP, 3, 1, 0, 0) == 1, "it runs");
    check(bare(VCPU_OP, 0, 1, (u64)context, 0) == EXISTS, "and is not started twice");
    second_ends = 1;
    while (bare(VCPU_OP, 3, 1, 0, 0)) call(SCHED_OP, 0, 0);
    check(second_runs == 2, "it goes down by itself");
    check(bare(VCPU_OP, 1, 1, 0, 0) == 0, "and comes up again");
    while (second_runs != 3) call(SCHED_OP, 0, 0);
    check(1, "where it was");
    check(bare(VCPU_OP, 3, 99, 0, 0) < 0, "there is no vCPU 99");
}

// MARK: memory and grants

struct reservation { u64 *list; u64 count; u32 order, flags; u16 domid, pad[3]; };

static void test_memory(void)
{
    u16 self = SELF;
    check(call(MEMORY_OP, 3, &self) == 64 << 8, "the domain has its memory");
    check(call(MEMORY_OP, 4, &self) == 80 << 8, "and may have more");
    check(call(MEMORY_OP, 2, 0) >= (long)info->pages - 1, "the highest frame is known");
    struct { u64 start, end, last; } table;
    check(call(MEMORY_OP, 12, &table) == 0 && table.start == 0xFFFF800000000000ul && table.end > table.start,
          "where the machine-to-physical table lies");
    struct { u32 count, pad; void *entries; } ranges = { 8, 0, pool[16] };
    check(call(MEMORY_OP, 9, &ranges) == 0 && ranges.count >= 1 && *(u32 *)(pool[16] + 16) == 1, "the map of memory");
    u64 frame = frame_of(pool[17]), given = frame, number = ((u64)pool[17] - BASE) >> 12;
    struct reservation one = { &given, 1, 0, 0, SELF, { 0 } };
    map(pool[17], 0);
    check(call(MEMORY_OP, 1, &one) == 1 && call(MEMORY_OP, 3, &self) == (64 << 8) - 1, "a page is given back");
    given = number;
    check(call(MEMORY_OP, 6, &one) == 1 && call(MEMORY_OP, 3, &self) == 64 << 8, "and taken again");
    info->frames[number] = given;
    check(map(pool[17], given << 12 | RW) == 0 && (*(volatile u64 *)pool[17] = 5) == 5, "it can be used");
    // Two pages for two that lie side by side.
    u64 in[2] = { frame_of(pool[18]), frame_of(pool[20]) }, out = ((u64)pool[18] - BASE) >> 12;
    struct { struct reservation in, out; u64 done; } exchange = {
        { in, 2, 0, 0, SELF, { 0 } }, { &out, 1, 1, 0, SELF, { 0 } }, 0 };
    map(pool[18], 0);
    map(pool[20], 0);
    check(call(MEMORY_OP, 11, &exchange) == 0 && exchange.done == 2, "pages are exchanged");
    check(!(out & 1) && map(pool[18], out << 12 | RW) == 0 && map(pool[20], (out + 1) << 12 | RW) == 0,
          "for two that lie side by side");
    *(volatile u64 *)pool[18] = 18;
    *(volatile u64 *)pool[20] = 20;
    check(*(volatile u64 *)pool[18] == 18
              && *(u64 *)(0xFFFF800000000000ul + out * 8) == ((u64)pool[18] - BASE) >> 12, "and are the guest's");
    exchange.out.order = 0;
    exchange.done = 0;
    check(call(MEMORY_OP, 11, &exchange) == INVALID, "for as many as were given");
    check(call(MEMORY_OP, 7, pool[16]) < 0, "a PV guest has no physmap");
}

static void test_grants(void)
{
    u64 frames[4];
    struct { u16 domid, pad; u32 count; short status; u16 more[3]; u64 *list; } setup = { SELF, 0, 1, 1, { 0 }, frames };
    check(bare(GRANT_OP, 2, (u64)&setup, 1, 0) == 0 && setup.status == 0, "the grant table is set up");
    u8 *table = pool[19];
    check(map(table, frames[0] << 12 | RW) == 0, "and mapped");
    struct { u16 domid, pad; u32 now, most; short status; } size = { SELF, 0, 0, 0, 1 };
    check(list(GRANT_OP, 6, &size) == 0 && size.status == 0 && size.most >= 32, "its size is known");
    struct { u16 flags, domid; u32 frame; } *entries = (void *)table;
    // A port that is bound to another of the domain's own tells its number.
    u32 port = bind(SELF, allocate(SELF));
    status(port);
    u16 self = seen.remote;
    u64 *page = (u64 *)pool[0], *window = (u64 *)pool[1];
    entries[20].frame = frame_of(page);
    entries[20].domid = self;
    entries[20].flags = 1;
    page[0] = 99;
    struct { u64 address; u32 flags, reference; u16 domid; short status; u32 handle; u64 bus; } m = {
        (u64)window, 2, 20, SELF, 1, 0, 0 };
    u64 before = frame_of(window);
    map(window, 0);
    check(list(GRANT_OP, 0, &m) == 0 && m.status == 0 && *(volatile u64 *)window == 99, "an own grant is mapped at an address");
    check(m.bus == frame_of(page) << 12 && entries[20].flags == (1 | 8 | 16), "and is marked as in use");
    *(volatile u64 *)window = 100;
    check(*(volatile u64 *)page == 100, "writes go through");
    struct { u64 address, bus; u32 handle; short status; } u = { (u64)window, 0, m.handle, 1 };
    check(list(GRANT_OP, 1, &u) == 0 && u.status == 0 && entries[20].flags == 1, "it is unmapped, and marked no longer");
    FAULTS("mov (%1), %%al", "r"(window));
    check(last.vector == 14 && vcpu_info()->cr2 == (u64)window, "it is gone from there");
    check(list(GRANT_OP, 1, &u) == 0 && u.status == -4, "a handle serves once");
    entries[20].flags = 1 | 4;
    m.status = 1;
    check(list(GRANT_OP, 0, &m) == 0 && m.status < 0, "a read-only grant is not mapped for writing");
    m.flags = 2 | 4 | 16;
    m.address = entry_of(window);
    check(list(GRANT_OP, 0, &m) == 0 && m.status == 0 && *(volatile u64 *)window == 100, "but for reading, by its entry");
    FAULTS("movq $0, (%1)", "r"(window));
    check(last.error == 3, "writes fault");
    u.address = m.address;
    u.handle = m.handle;
    check(list(GRANT_OP, 1, &u) == 0 && u.status == 0, "and unmapped by its entry");
    m.reference = 21;
    check(list(GRANT_OP, 0, &m) == 0 && m.status == -3, "an entry that grants nothing is refused");
    map(window, before << 12 | RW);
    entries[20].flags = 1;
    struct { u64 source; u16 source_domain, source_offset; u32 p1; u64 target; u16 target_domain, target_offset; u32 p2; u16 length, flags; short status; } c = {
        20, SELF, 0, 0, before, SELF, 0, 0, 8, 1, 1 };
    check(list(GRANT_OP, 5, &c) == 0 && c.status == 0 && window[0] == 100, "a copy by reference");
}

static void test_rest(void)
{
    check(call(VM_ASSIST, 0, 5) == 0 && call(VM_ASSIST, 0, 99) == INVALID, "assists that exist are taken");
    u32 level = 1;
    check(call(PHYSDEV_OP, 6, &level) == 0, "ports can be asked for");
    level = 7;
    check(call(PHYSDEV_OP, 6, &level) == INVALID, "with a level that there is");
}

// Ends after a second as the command line says, without any test: by a watchdog, or by its own wish.
static void end(char how)
{
    u32 reason = how == 'c' ? 3 : how == 'r' ? 1 : 0;
    struct { u32 id, seconds; } dog = { 0, 1 };
    struct { u32 *ports; u32 count, pad; u64 deadline; } poll = { 0, 0, 0, now() + 1000000000 };
    if (how == 'w') call(SCHED_OP, 6, &dog);
    while (how == 'w') call(SCHED_OP, 1, 0);
    call(SCHED_OP, 3, &poll);
    call(SCHED_OP, 2, &reason);
}

int main(struct start_info *start)
{
    info = start;
    map(shared, info->shared_info | RW);
    if (info->command_line[0] != 'f') end(info->command_line[0]);
    test_start();
    test_calls();
    set_traps();
    test_traps();
    test_nmi();
    test_mappings();
    test_tables();
    test_segments();
    test_programs();
    test_events();
    test_time();
    test_vcpus();
    test_memory();
    test_grants();
    test_rest();
    test_fifo();
    say(failures ? "PV-TESTS FAILED\n" : "PV-TESTS OK\n");
    for (volatile u32 *page = (u32 *)(BASE + (info->console << 12) + 3080); page[0] != page[1];) call(SCHED_OP, 0, 0);
    u32 poweroff = 0;
    call(SCHED_OP, 2, &poweroff);
    return 0;
}
