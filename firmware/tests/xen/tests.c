// What an HVM guest finds of Xen: one sentence a fact, on port 0xE9. Runs in flat 32-bit mode without paging.
// Source: Xen's public headers (numbers and layouts); docs/misc/hvm-emulated-unplug.pandoc; what Windows' drivers do.
// Covered: leaves, hypercalls, shared info, parameters, callbacks, event channels, store, console, grants, unplugging.

#include "../common/guest.h"

static u8 granted[4096] __attribute__((aligned(4096)));
static u8 copied[4096] __attribute__((aligned(4096)));
static struct { u16 low, selector; u8 zero, type; u16 high; } __attribute__((packed)) idt[256];
static volatile u32 vectors, locals, lines, pins;

static void wait(void)
{
    for (int i = 0; i < 2000; i++) asm volatile("sti; nop; nop; cli" : : : "memory");
}

void on_vector(void) { vectors++; *(volatile u8 *)SHARED = 0; }
void on_local(void) { locals++; *(volatile u8 *)SHARED = 0; put(LOCAL + 0xB0, 0); }
static void end_of_interrupt(u8 irq)
{
    if (irq >= 8) out8(0xA0, 0x20);
    out8(0x20, 0x20);
}
void on_line(void) { lines++; *(volatile u8 *)SHARED = 0; end_of_interrupt(5); }
void on_pin(void) { pins++; *(volatile u8 *)SHARED = 0; end_of_interrupt(11); }
extern void on_vector_entry(void), on_local_entry(void), on_line_entry(void), on_pin_entry(void);

static void gate(u8 vector, void (*handler)(void))
{
    idt[vector].low = (u32)handler;
    idt[vector].selector = 8;
    idt[vector].type = 0x8E;
    idt[vector].high = (u32)handler >> 16;
}

static void configure(u32 devfn, u32 offset, u8 value)
{
    out32(0xCF8, 0x80000000 | devfn << 8 | (offset & ~3));
    out8(0xCFC + (offset & 3), value);
}

// IRQ 0-7 at vector 0x20, IRQ 8-15 at 0x28; all masked but 2, 5 and 11, which are level-triggered.
static void set_up_interrupts(void)
{
    struct { u16 limit; u32 base; } __attribute__((packed)) pointer = { sizeof idt - 1, (u32)idt };
    gate(0xF3, on_vector_entry);
    gate(0x80, on_local_entry);
    gate(0x25, on_line_entry);
    gate(0x2B, on_pin_entry);
    asm volatile("lidt %0" : : "m"(pointer));
    out8(0x20, 0x11); out8(0x21, 0x20); out8(0x21, 4); out8(0x21, 1);
    out8(0xA0, 0x11); out8(0xA1, 0x28); out8(0xA1, 2); out8(0xA1, 1);
    out8(0x4D0, 0x20); out8(0x4D1, 0x08);
    out8(0x21, 0xDB); out8(0xA1, 0xF7);
    put(LOCAL + 0xF0, 0x1FF);
    put(LOCAL + 0x350, 0x700);
}

static void test_leaves(void)
{
    u32 r[4];
    leaf(0x40000000, 0, r);
    check(r[1] == 0x566E6558 && r[2] == 0x65584D4D && r[3] == 0x4D4D566E && r[0] >= 0x40000004, "Xen's leaves are there");
    leaf(0x40000001, 0, r);
    check(r[0] >> 16 == 4, "the version is Xen 4's");
    leaf(0x40000002, 0, r);
    check(r[0] == 1 && r[1] == 0x40000000, "one hypercall page, its MSR 0x40000000");
    leaf(0x40000004, 0, r);
    check((r[0] & 0x18) == 0x18 && r[1] == 0, "the HVM leaf has the ids of vCPU and domain");
}

static void test_hypercalls(void)
{
    fill_hypercall_page();
    check(page[0] == 0xB8 && page[32] == 0xB8 && page[32 * 17 + 1] == 17, "the hypercall page is filled in");
    int version = through_page(XEN_VERSION, 0, 0, 0);
    check(version >> 16 == 4, "a call through the page answers");
    check(by_vmcall(XEN_VERSION, 0, 0, 0) == version, "bare vmcall answers the same");
    check(by_vmmcall(XEN_VERSION, 0, 0, 0) == version, "bare vmmcall answers the same");
    check(through_page(70, 0, 0, 0) == -38, "a call that does not exist is -ENOSYS");
    struct { u32 index, features; } f = { 0, 0 };
    check(call(XEN_VERSION, 6, &f) == 0 && (f.features & 0x304) == 0x304,
          "features: auto-translated, callback vector, safe pvclock");
    check(call(XEN_VERSION, 6, (void *)0xF0000000) == -14, "an argument that is no memory is -EFAULT");
}

static void test_shared_info(void)
{
    put(SHARED + 16, 0x12345678);
    check(place(0, 0, SHARED) == 0, "shared info goes where the guest wants it");
    check(word(SHARED + 16) != 0x12345678 && byte(SHARED + 1) == 1, "it covers RAM, upcalls start masked");
    check(place(0, 0, OTHER) == 0 && word(SHARED + 16) == 0x12345678 && byte(OTHER + 1) == 1,
          "it lies in one place only, and RAM comes back");
    struct { u16 domid, pad; u32 frame; } gone = { SELF, 0, OTHER >> 12 };
    check(call(MEMORY_OP, 15, &gone) == 0 && byte(OTHER + 1) == 0, "it can be taken out of memory");
    check(place(0, 0, SHARED) == 0 && byte(SHARED + 1) == 1, "and put in again");
    check(place(0, 1, SHARED) == -22, "there is one such page");
    *(volatile u8 *)(SHARED + 1) = 0;
}

static void test_parameters(void)
{
    check(parameter(STORE_PFN) == STORE >> 12 && parameter(CONSOLE_PFN) == CONSOLE >> 12, "rings lie at Xen's frames");
    check(parameter(STORE_PORT) == 1 && parameter(CONSOLE_PORT) == 2, "their ports are 1 and 2");
    check(set_parameter(STORE_PFN, 5) < 0 && parameter(STORE_PFN) == STORE >> 12, "a guest cannot move them");
    check(parameter(200) == ~0ull, "a parameter that does not exist is an error");
}

// An event from one port for another, and its end.
static void raise(u32 from, u32 port)
{
    send(from);
    wait();
    clear(port);
    wait();
}

static void test_callbacks(void)
{
    u32 first = allocate(SELF), port = bind(SELF, first);
    check(first > 2 && port > first && is_pending(port), "a port bound to another of the own is pending at first");
    clear(port);
    set_parameter(CALLBACK_IRQ, 2ull << 56 | 0xF3);
    raise(first, port);
    check(vectors == 1, "callback by vector: one send, one interrupt");
    set_parameter(CALLBACK_IRQ, 5);
    raise(first, port);
    check(lines > 0 && vectors == 1, "callback by line 5 reaches the PIC");
    u32 seen = lines;
    wait();
    check(lines == seen, "the line falls with the pending flag");
    u32 device = platform_device();
    configure(1 << 3, 0x60 + ((device + 3) & 3), 11);
    set_parameter(CALLBACK_IRQ, 1ull << 56 | (device << 3) << 8);
    raise(first, port);
    check(pins > 0 && lines == seen, "callback by the platform device's INTA reaches the PIC by its link");
    u32 others = pins + lines + vectors;
    set_parameter(CALLBACK_IRQ, 0);
    raise(first, port);
    check(pins + lines + vectors == others, "callback 0: no interrupt");
    struct { u32 vcpu; u8 vector; u8 pad[3]; } upcall = { 0, 0x80, { 0 } };
    set_parameter(CALLBACK_IRQ, 5);
    check(call(HVM_OP, 23, &upcall) == 0, "a vector of the vCPU's own is taken");
    raise(first, port);
    check(locals == 1 && lines == seen, "it goes before the line, through the local APIC");
    upcall.vector = 3;
    check(call(HVM_OP, 23, &upcall) == -22, "a vector below 16 is refused");
    set_parameter(CALLBACK_IRQ, 0);
}

static void test_channels(void)
{
    struct status s = status(1);
    check(s.status == 2 && s.remote == 0, "the store's port leads to domain 0");
    u32 store = s.other, console = status(2).other;
    u16 self = SELF;
    check(call(EVENT_OP, 10, &self) == 0 && status(1).status == 0, "a reset closes all ports");
    u32 spare = allocate(0), port = bind(0, store);
    check(spare == 1 && port == 2, "the store's port can be bound anew");
    check(bind(0, store) == 0 && bind(0, 999) == 0, "but once, and only where something waits");
    check(set_parameter(STORE_PORT, port) == 0 && parameter(STORE_PORT) == port, "the parameter takes the new port");
    port = bind(0, console);
    check(port != 0 && set_parameter(CONSOLE_PORT, port) == 0, "and so it is with the console's");
    check(send(900) == -22, "sending to a port that is not bound is -EINVAL");
}

// XS_READ of "domid" through the ring: requests at 0, answers at 1024, indices from 2048 on.
static void test_store(void)
{
    struct { u32 type, request, transaction, length; char path[6]; } read = { 2, 7, 0, 6, "domid" };
    u32 produced = word(STORE + 2052), consumed = word(STORE + 2056), port = parameter(STORE_PORT), r[4];
    for (u32 i = 0; i < 22; i++) ((volatile u8 *)STORE)[(produced + i) & 1023] = ((u8 *)&read)[i];
    put(STORE + 2052, produced + 22);
    send(port);
    for (int i = 0; i < 20000000 && word(STORE + 2060) - consumed < 17; i++) asm volatile("pause");
    leaf(0x40000004, 0, r);
    check(word(STORE + 2060) - consumed >= 17 && word(STORE + 1024 + (consumed & 1023)) == 2
              && byte(STORE + 1024 + ((consumed + 15 + word(STORE + 1024 + ((consumed + 12) & 1023))) & 1023)) == '0' + r[2] % 10,
          "the store answers over the new port");
    check(is_pending(port), "and sends an event");
    clear(port);
}

static void test_console(void)
{
    const char *text = "hello from the test guest\n";
    u32 produced = word(CONSOLE + 3084), port = parameter(CONSOLE_PORT);
    while (*text) *(volatile u8 *)(CONSOLE + 1024 + (produced++ & 2047)) = *text++;
    put(CONSOLE + 3084, produced);
    send(port);
    for (int i = 0; i < 20000000 && word(CONSOLE + 3080) != produced; i++) asm volatile("pause");
    check(word(CONSOLE + 3080) == produced, "the console takes what is written");
}

struct grant_copy { u32 source; u16 source_domain, source_offset; u32 target; u16 target_domain, target_offset, length, flags; short status; };

static void test_grants(u16 self)
{
    u32 bar = config(platform_device() << 3, 0x14) & ~0xFu;
    check(bar != 0 && word(bar) == 0, "memory of the platform device is there");
    struct { u16 domid, pad; u32 now, most; short status; } size = { SELF, 0, 0, 0, 1 };
    check(through_page(GRANT_OP, 6, (u32)&size, 1) == 0 && size.status == 0 && size.most >= 32, "the table's size");
    check(place(1, 0, bar) == 0, "a frame of the table goes there");
    check(word(bar) == 1 && word(bar + 4) == CONSOLE >> 12 && word(bar + 12) == STORE >> 12,
          "entries 0 and 1 grant console and store to domain 0");
    for (int i = 0; i < 4096; i++) granted[i] = i * 7;
    put(bar + 80 + 4, (u32)granted >> 12);
    put(bar + 80, 1 | 4 | (u32)self << 16);
    struct grant_copy c = { 10, self, 0, (u32)copied >> 12, self, 0, 4096, 1, 1 };
    check(through_page(GRANT_OP, 5, (u32)&c, 1) == 0 && c.status == 0 && copied[1000] == (u8)7000, "a copy by reference");
    check(word(bar + 80) == (1 | 4 | (u32)self << 16), "leaves no mark behind");
    struct grant_copy back = { (u32)copied >> 12, self, 0, 10, self, 0, 8, 2, 1 };
    check(through_page(GRANT_OP, 5, (u32)&back, 1) == 0 && back.status < 0, "a read-only grant takes no writes");
    c.source = 11;
    check(through_page(GRANT_OP, 5, (u32)&c, 1) == 0 && c.status == -3, "an entry that grants nothing is refused");
    c.source = 1 << 30;
    check(through_page(GRANT_OP, 5, (u32)&c, 1) == 0 && c.status == -3, "so is one outside the table");
    c.source = 10;
    c.source_offset = 1;
    check(through_page(GRANT_OP, 5, (u32)&c, 1) == 0 && c.status == -10, "and a copy over the page's end");
}

static u8 drive(u16 base, u8 unit)
{
    out8(base + 6, 0xA0 | unit << 4);
    return in8(base + 7);
}

static void test_unplug(void)
{
    const char *text = "the test guest was here\n";
    check(drive(0x1F0, 0) == 0x50, "the emulated disk is there");
    check(in16(0x10) == 0x49D2 && in8(0x12) == 1, "unplugging is offered, version 1");
    out16(0x12, 0xFFFF);
    out32(0x10, 1);
    check(in16(0x10) == 0x49D2, "a product and its build are welcome");
    while (*text) out8(0x12, *text++);
    out16(0x10, 2 | 4);
    check(drive(0x1F0, 0) == 0x50, "network cards and auxiliary disks: the first disk stays");
    out16(0x10, 1);
    check(drive(0x1F0, 0) == 0, "disks: it is gone");
    drive(0x170, 0);
    out8(0x177, 0xA1);
    for (int i = 0; i < 1000 && in8(0x177) & 0x80; i++) asm volatile("pause");
    check(in8(0x177) & 8, "the CD drive answers still");
}

int main(void)
{
    u32 r[4];
    asm volatile("mov %%cr4, %%eax; or $0x600, %%eax; mov %%eax, %%cr4" : : : "eax");
    test_leaves();
    test_hypercalls();
    test_shared_info();
    test_parameters();
    set_up_interrupts();
    test_callbacks();
    test_channels();
    test_store();
    test_console();
    leaf(0x40000004, 0, r);
    test_grants(r[2]);
    test_unplug();
    say(failures ? "XEN-TESTS FAILED\n" : "XEN-TESTS OK\n");
    u32 poweroff = 0;
    call(SCHED_OP, 2, &poweroff);
    return 0;
}
