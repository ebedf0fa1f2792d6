// What flat 32-bit test guests of Xen share: ports, facts said one a line, hypercalls, events, parameters.
// Source: Xen's public headers (numbers and layouts).
// Quirks: a 32-bit guest: 1024 ports, the pending bits at 2048, the masks at 2176. Not every guest uses everything.
#pragma GCC diagnostic ignored "-Wunused-function"

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define SELF 0x7FF0
#define SHARED 0x200000u
#define OTHER 0x300000u
#define TABLE 0x400000u
#define STORE 0xFEFFC000u
#define CONSOLE 0xFEFFF000u
#define LOCAL 0xFEE00000u
enum { MEMORY_OP = 12, XEN_VERSION = 17, GRANT_OP = 20, SCHED_OP = 29, EVENT_OP = 32, HVM_OP = 34 };
enum { CALLBACK_IRQ = 0, STORE_PFN = 1, STORE_PORT = 2, CONSOLE_PFN = 17, CONSOLE_PORT = 18 };

static int failures;
static u8 page[4096] __attribute__((aligned(4096)));

static void out8(u16 port, u8 value) { asm volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
static void out16(u16 port, u16 value) { asm volatile("outw %0, %1" : : "a"(value), "Nd"(port)); }
static void out32(u16 port, u32 value) { asm volatile("outl %0, %1" : : "a"(value), "Nd"(port)); }
static u8 in8(u16 port) { u8 value; asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port)); return value; }
static u16 in16(u16 port) { u16 value; asm volatile("inw %1, %0" : "=a"(value) : "Nd"(port)); return value; }
static u32 in32(u16 port) { u32 value; asm volatile("inl %1, %0" : "=a"(value) : "Nd"(port)); return value; }
static u32 word(u32 address) { return *(volatile u32 *)address; }
static u8 byte(u32 address) { return *(volatile u8 *)address; }
static void put(u32 address, u32 value) { *(volatile u32 *)address = value; }

static void say(const char *text) { while (*text) out8(0xE9, *text++); }

static void check(int holds, const char *sentence)
{
    say(holds ? "PASS " : "FAIL ");
    say(sentence);
    say("\n");
    failures += !holds;
}

static void leaf(u32 number, u32 sub, u32 r[4])
{
    asm volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(number), "c"(sub));
}

#define CALL(how) \
    asm volatile(how : "=a"(result) : "0"(number), "b"(a), "c"(b), "d"(c), "r"(entry) : "memory")

static int through_page(u32 number, u32 a, u32 b, u32 c)
{
    int result;
    register u32 entry asm("edi") = (u32)page + number * 32;
    CALL("call *%%edi");
    return result;
}
static int by_vmcall(u32 number, u32 a, u32 b, u32 c)
{
    int result;
    register u32 entry asm("edi") = 0;
    CALL("vmcall");
    return result;
}
static int by_vmmcall(u32 number, u32 a, u32 b, u32 c)
{
    int result;
    register u32 entry asm("edi") = 0;
    CALL("vmmcall");
    return result;
}
static int call(u32 number, u32 command, void *argument) { return through_page(number, command, (u32)argument, 0); }

static int place(u32 space, u32 index, u32 address)
{
    struct { u16 domid, size; u32 space, index, frame; } place = { SELF, 0, space, index, address >> 12 };
    return call(MEMORY_OP, 7, &place);
}

static int set_parameter(u32 index, u64 value)
{
    struct { u16 domid, pad; u32 index; u64 value; } p = { SELF, 0, index, value };
    return call(HVM_OP, 0, &p);
}
static u64 parameter(u32 index)
{
    struct { u16 domid, pad; u32 index; u64 value; } p = { SELF, 0, index, ~0ull };
    return call(HVM_OP, 1, &p) ? ~0ull : p.value;
}

// Event channels. Masks begin at 2048 + 1024 / 8.
static int send(u32 port) { return call(EVENT_OP, 4, &port); }
static int is_pending(u32 port) { return byte(SHARED + 2048 + port / 8) >> port % 8 & 1; }
static void clear(u32 port)
{
    *(volatile u8 *)(SHARED + 2048 + port / 8) &= ~(1 << port % 8);
    put(SHARED + 4, 0);
    *(volatile u8 *)SHARED = 0;
}
static u32 bind(u16 domid, u32 remote)
{
    struct { u16 domid, pad; u32 remote, local; } b = { domid, 0, remote, 0 };
    return call(EVENT_OP, 0, &b) ? 0 : b.local;
}
static u32 allocate(u16 remote)
{
    struct { u16 domid, remote; u32 port; } a = { SELF, remote, 0 };
    return call(EVENT_OP, 6, &a) ? 0 : a.port;
}
struct status { u16 domid, pad; u32 port, status, vcpu; u16 remote, pad2; u32 other; };
static struct status status(u32 port)
{
    struct status s = { SELF, 0, port, 99, 0, 0, 0, 0 };
    if (call(EVENT_OP, 5, &s)) s.status = 100;
    return s;
}

static u32 config(u32 devfn, u32 offset)
{
    out32(0xCF8, 0x80000000 | devfn << 8 | offset);
    return in32(0xCFC);
}
// The slot of Xen's platform device, 5853:0001; 32 if there is none.
static u32 platform_device(void)
{
    u32 device = 0;
    while (device < 32 && config(device << 3, 0) != 0x00015853) device++;
    return device;
}

static void fill_hypercall_page(void)
{
    asm volatile("wrmsr" : : "c"(0x40000000), "a"((u32)page), "d"(0) : "memory");
}
