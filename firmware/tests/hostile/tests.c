// A guest that means harm to its back ends: what it asks for makes no sense, and must cost nobody but itself.
// Source: Xen's public/io/blkif.h (32-bit packing), ring.h, xs_wire.h, console.h; what Linux's blkback answers.
// Covered: a disk's requests, grants, ring indices, handshake, endless requests; store and console rings.
// Quirks: it polls: no interrupt is set up. Each fact is a line; "NOTE" lines tell the test what goes on.
#include "../common/guest.h"

#define FRONT "device/vbd/768/"
enum { READ = 0, WRITE = 1, BARRIER = 2, FLUSH = 3, DISCARD = 5, INDIRECT = 6 };
enum { OKAY = 0, ERROR = -1, UNSUPPORTED = -2, NO_ANSWER = 99 };
enum { XS_READ = 2, XS_WRITE = 11, XS_WATCH_EVENT = 15 };
enum { INITIALISING = 1, INIT_WAIT = 2, INITIALISED = 3, CONNECTED = 4, CLOSING = 5, CLOSED = 6 };
// References: the ring, data that may be written, data that may only be read, a frame that is no memory.
enum { RING = 16, DATA = 17, CONSTANT = 18, NOWHERE = 19, LIST = 20 };
#define SLOTS 32

struct segment { u32 reference; u8 first, last; u16 pad; };
struct request {
    u8 operation, count;
    u16 handle;
    u64 id, sector;
    struct segment segments[11];
} __attribute__((packed));
struct indirect {
    u8 operation, transfer;
    u16 count;
    u64 id, sector;
    u16 handle, pad;
    u32 references[8];
} __attribute__((packed));
struct response { u64 id; u8 operation, pad; short status; } __attribute__((packed));
struct ring { volatile u32 requests, request_event, responses, response_event; u8 pad[48]; u8 slots[SLOTS][108]; };
_Static_assert(sizeof(struct request) == 108 && sizeof(struct response) == 12, "32-bit packing");

static union { struct ring ring; u8 bytes[4096]; } shared __attribute__((aligned(4096)));
static u8 data[4096] __attribute__((aligned(4096)));
static struct segment list[512] __attribute__((aligned(4096)));
static u32 table, port, taken, random_state = 12345;
static char answer[4097], backend[256];

static u64 now(void)
{
    u32 low, high;
    asm volatile("rdtsc" : "=a"(low), "=d"(high));
    return (u64)high << 32 | low;
}
// Some ten seconds of a processor of today.
#define PATIENCE 30000000000ull
static u32 any(void) { return (random_state = random_state * 1664525 + 1013904223) >> 8; }

void *memcpy(void *to, const void *from, unsigned size)
{
    for (u32 i = 0; i < size; i++) ((volatile u8 *)to)[i] = ((const u8 *)from)[i];
    return to;
}
void *memset(void *to, int value, unsigned size)
{
    for (u32 i = 0; i < size; i++) ((volatile u8 *)to)[i] = value;
    return to;
}
static u32 length(const char *text)
{
    u32 count = 0;
    while (text[count]) count++;
    return count;
}

// MARK: the store

static void store_put(const void *bytes, u32 count)
{
    for (u32 i = 0; i < count; i++) {
        for (u64 end = now() + PATIENCE; word(STORE + 2052) - word(STORE + 2048) >= 1024 && now() < end;) send(1);
        u32 produced = word(STORE + 2052);
        *(volatile u8 *)(STORE + (produced & 1023)) = ((const u8 *)bytes)[i];
        put(STORE + 2052, produced + 1);
    }
    send(1);
}

static int store_get(void *bytes, u32 count)
{
    u64 end = now() + PATIENCE;
    for (u32 i = 0; i < count; i++) {
        u32 consumed = word(STORE + 2056);
        while (word(STORE + 2060) == consumed) if (now() > end) return 0;
        ((u8 *)bytes)[i] = byte(STORE + 1024 + (consumed & 1023));
        put(STORE + 2056, consumed + 1);
        send(1);
    }
    return 1;
}

// The answer's type; its payload, with a NUL behind it, is in `answer`.
static u32 ask(u32 type, const char *payload, u32 count)
{
    struct { u32 type, request, transaction, length; } head = { type, 1, 0, count };
    store_put(&head, sizeof head);
    store_put(payload, count);
    do {
        if (!store_get(&head, sizeof head) || head.length > 4096 || !store_get(answer, head.length)) return 0;
    } while (head.type == XS_WATCH_EVENT);
    answer[head.length] = 0;
    return head.type;
}

static void join(char *to, const char *first, const char *second)
{
    memcpy(to, first, length(first));
    memcpy(to + length(first), second, length(second) + 1);
}

static void write_node(const char *name, const char *value)
{
    char payload[300];
    join(payload, FRONT, name);
    u32 start = length(payload) + 1;
    memcpy(payload + start, value, length(value));
    ask(XS_WRITE, payload, start + length(value));
}
static void write_number(const char *name, u32 value)
{
    char digits[12], *at = digits + 11;
    *at = 0;
    do *--at = '0' + value % 10; while (value /= 10);
    write_node(name, at);
}
static u32 backend_state(void)
{
    char path[300];
    join(path, backend, "/state");
    return ask(XS_READ, path, length(path) + 1) == XS_READ ? answer[0] - '0' : 0;
}
static int wait_for(u32 state)
{
    for (u64 end = now() + PATIENCE; now() < end;) if (backend_state() == state) return 1;
    return 0;
}

// MARK: grants and the ring

static void grant(u32 reference, u32 frame, u16 flags)
{
    put(table + reference * 8 + 4, frame);
    put(table + reference * 8, flags);
}

// Offers the ring as the nodes say; what the back end makes of it is its state.
static int offer(const char *name, u32 value, u32 expected)
{
    memset(&shared, 0, sizeof shared);
    shared.ring.request_event = shared.ring.response_event = 1;
    taken = 0;
    write_number("ring-ref", RING);
    write_number("event-channel", port);
    write_node("protocol", "x86_32-abi");
    write_node("ring-page-order", "0");
    write_node("multi-queue-num-queues", "1");
    if (name) write_number(name, value);
    write_number("state", INITIALISED);
    return wait_for(expected);
}
static int start_over(void)
{
    write_number("state", CLOSED);
    if (!wait_for(CLOSED)) return 0;
    // The back end has let go of the old port.
    struct { u32 port; } closing = { port };
    call(EVENT_OP, 3, &closing);
    port = allocate(0);
    write_number("state", INITIALISING);
    return wait_for(INIT_WAIT);
}

static void submit(const void *request)
{
    memcpy(shared.ring.slots[shared.ring.requests % SLOTS], request, 108);
    asm volatile("mfence" : : : "memory");
    shared.ring.requests++;
}
// The next answer's status.
static int answered(void)
{
    send(port);
    for (u64 end = now() + PATIENCE; shared.ring.responses == taken;) if (now() > end) return NO_ANSWER;
    struct response response;
    memcpy(&response, shared.ring.slots[taken++ % SLOTS], sizeof response);
    return response.status;
}
static int result(const void *request)
{
    submit(request);
    return answered();
}

static struct request transfer(u8 operation, u64 sector, u32 reference, u8 first, u8 last)
{
    struct request r = { operation, 1, 0, 7, sector, { { reference, first, last, 0 } } };
    return r;
}
// Whether the disk still does what it should: what was written is read again.
static int works(void)
{
    struct request r = transfer(WRITE, 100, DATA, 0, 7);
    u8 mark = any();
    memset(data, mark, 4096);
    if (result(&r) != OKAY) return 0;
    memset(data, ~mark, 4096);
    r.operation = READ;
    return result(&r) == OKAY && data[0] == mark && data[4095] == mark;
}

static void test_requests(void)
{
    static const struct { u8 operation, count; u64 sector; u32 reference; u8 first, last; int status; const char *what; } cases[] = {
        { READ, 1, 2048, DATA, 0, 7, ERROR, "a read behind the disk's end is an error" },
        { WRITE, 1, 2047, DATA, 0, 1, ERROR, "so is a write over it" },
        { READ, 1, ~0ull - 1, DATA, 0, 7, ERROR, "a sector whose sum overflows is an error" },
        { READ, 1, 1ull << 55, DATA, 0, 7, ERROR, "and one whose offset overflows" },
        { READ, 1, 0, DATA, 7, 0, ERROR, "a segment that ends before it starts is an error" },
        { READ, 1, 0, DATA, 0, 200, ERROR, "and one that is longer than its page" },
        { READ, 12, 0, DATA, 0, 7, ERROR, "more segments than a request has room for are an error" },
        { READ, 255, 0, DATA, 0, 7, ERROR, "255 are, too" },
        { READ, 1, 0, 5, 0, 7, ERROR, "a reference that grants nothing is an error" },
        { READ, 1, 0, 0xFFFFFFFF, 0, 7, ERROR, "so is one outside the table" },
        { READ, 1, 0, CONSTANT, 0, 7, ERROR, "a read into a page that may only be read is an error" },
        { READ, 1, 0, NOWHERE, 0, 7, ERROR, "a granted frame that is no memory is an error" },
        { 4, 1, 0, DATA, 0, 7, UNSUPPORTED, "the reserved operation is not supported" },
        { 200, 1, 0, DATA, 0, 7, UNSUPPORTED, "nor is one that does not exist" },
    };
    for (u32 i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct request r = transfer(cases[i].operation, cases[i].sector, cases[i].reference, cases[i].first, cases[i].last);
        r.count = cases[i].count;
        check(result(&r) == cases[i].status, cases[i].what);
    }
    struct request discard = transfer(DISCARD, ~0ull - 5, 0xFFFFFFFF, 255, 255);
    check(result(&discard) != OKAY, "a discard of what is not there does not succeed");
    check(works(), "the disk works after each of them");
}

static void test_indirect(void)
{
    struct indirect r = { INDIRECT, READ, 8, 9, 0, 0, 0, { LIST } };
    for (u32 i = 0; i < 512; i++) list[i] = (struct segment){ DATA, 0, 7, 0 };
    check(result(&r) == OKAY, "an indirect request is served");
    r.count = 4097;
    check(result(&r) == ERROR, "one with more segments than pages is an error");
    r.count = 257;
    check(result(&r) == ERROR, "and one with more than were offered");
    r.count = 8;
    r.references[0] = 0xDEADBEEF;
    check(result(&r) == ERROR, "and one whose list is granted nowhere");
    r.references[0] = LIST;
    r.transfer = INDIRECT;
    check(result(&r) == ERROR, "and one that holds another one");
    r.transfer = READ;
    list[7].reference = 0xDEADBEEF;
    check(result(&r) == ERROR, "and one whose last segment is granted nowhere");
    check(works(), "the disk works after each of them");
}

static void test_revoked(void)
{
    int answers = 0;
    for (u32 round = 0; round < 200; round++) {
        struct request r = transfer(READ, 0, DATA, 0, 7);
        r.count = 11;
        for (u32 i = 0; i < 11; i++) r.segments[i] = r.segments[0];
        submit(&r);
        send(port);
        grant(DATA, 0xFFFFFF, 0);
        answers += answered() != NO_ANSWER;
        grant(DATA, (u32)data >> 12, 1);
    }
    check(answers == 200, "grants that are taken back in the middle get an answer each");
    check(works(), "the disk works afterwards");
}

static void test_noise(void)
{
    u32 missing = 0;
    static const u32 references[] = { DATA, CONSTANT, NOWHERE, LIST, RING, 5, 0xFFFFFFFF };
    for (u32 round = 0; round < 100; round++) {
        u32 count = 1 + any() % SLOTS;
        for (u32 i = 0; i < count; i++) {
            struct request r;
            for (u32 byte = 0; byte < sizeof r; byte++) ((u8 *)&r)[byte] = any();
            r.operation %= 8;
            if (any() % 2) r.count %= 12;
            if (any() % 2) r.sector %= 4096;
            for (u32 segment = 0; segment < 11; segment++) {
                // The ring itself is no target: the guest would only overwrite its own requests.
                r.segments[segment].reference = references[any() % 7];
                if (r.segments[segment].reference == RING) r.segments[segment].reference = any();
                if (any() % 2) r.segments[segment].last %= 8, r.segments[segment].first %= 8;
            }
            submit(&r);
        }
        for (u32 i = 0; i < count; i++) missing += answered() == NO_ANSWER;
        if (missing) break;
    }
    check(missing == 0, "requests made of noise get an answer each");
    check(works(), "the disk works afterwards");
}

static void test_endless(void)
{
    say("NOTE endless requests\n");
    struct request r = transfer(READ, 0, DATA, 0, 7);
    u32 answers = 0;
    r.count = 11;
    for (u32 i = 0; i < 11; i++) r.segments[i] = r.segments[0];
    for (u64 end = now() + PATIENCE / 3; now() < end;) {
        while (shared.ring.requests - taken < SLOTS) {
            r.operation = any() % 4 ? READ : FLUSH;
            r.count = r.operation == READ ? 11 : 0;
            submit(&r);
            send(port);
        }
        answers += answered() != NO_ANSWER;
    }
    while (shared.ring.requests != taken) answers += answered() != NO_ANSWER;
    check(answers > 100, "endless requests are served for as long as they come");
    say("NOTE no more of them\n");
    check(works(), "the disk works afterwards");
}

static void test_indices(void)
{
    static const u32 steps[] = { SLOTS + 1, 1000000, 0x80000000, 0xFFFFFFFF };
    for (u32 i = 0; i < 4; i++) {
        shared.ring.requests += steps[i];
        send(port);
        for (u64 end = now() + PATIENCE / 100; now() < end;) asm volatile("pause");
        check(start_over() && offer(0, 0, CONNECTED) && works(), "a ring whose indices make no sense can be offered anew");
    }
}

static void test_handshake(void)
{
    static const struct { const char *name; u32 value; } cases[] = {
        { "ring-ref", 0xFFFFFFFF }, { "ring-ref", CONSTANT }, { "ring-ref", NOWHERE }, { "ring-ref", 5 },
        { "event-channel", 0 }, { "event-channel", 1023 }, { "event-channel", 0xFFFFFFFF }, { "protocol", 64 },
        { "ring-page-order", 4000000000u }, { "multi-queue-num-queues", 0 }, { "multi-queue-num-queues", 1000000 },
    };
    for (u32 i = 0; i < sizeof cases / sizeof *cases; i++) {
        check(start_over() && offer(cases[i].name, cases[i].value, CLOSING), cases[i].name);
    }
    check(start_over() && offer(0, 0, CONNECTED) && works(), "a handshake that makes sense is welcome after all of them");
}

static void test_console(void)
{
    u32 produced = word(CONSOLE + 3084);
    put(CONSOLE + 3084, produced + 1000000);
    send(2);
    for (u64 end = now() + PATIENCE / 100; now() < end;) asm volatile("pause");
    check(works(), "a console whose indices make no sense leaves the disk alone");
}

static void test_store(void)
{
    char path[64];
    check(ask(99, "x", 1) == 16 && ask(XS_READ, "no NUL", 6) == 16, "requests that make no sense are errors");
    join(path, "/local/domain/0/", "name");
    check(ask(XS_WRITE, path, length(path) + 1) == 16, "Domain-0's nodes are not for guests to write");
    struct { u32 type, request, transaction, length; } head = { XS_WRITE, 1, 0, 0xFFFFFFF0 };
    store_put(&head, sizeof head);
    for (u64 end = now() + PATIENCE / 100; now() < end;) asm volatile("pause");
    put(STORE + 2052, word(STORE + 2052) + 100000);
    send(1);
    check(works(), "a store ring that makes no sense leaves the disk alone");
}

int main(void)
{
    fill_hypercall_page();
    table = config(platform_device() << 3, 0x14) & ~0xFu;
    check(place(0, 0, SHARED) == 0 && place(1, 0, table) == 0, "shared info and grant table are there");
    out16(0x10, 1);
    grant(RING, (u32)&shared >> 12, 1);
    grant(DATA, (u32)data >> 12, 1);
    grant(CONSTANT, (u32)data >> 12, 1 | 4);
    grant(NOWHERE, 0xF8000, 1);
    grant(LIST, (u32)list >> 12, 1);
    port = allocate(0);
    check(ask(XS_READ, FRONT "backend", length(FRONT "backend") + 1) == XS_READ, "the disk's back end is in the store");
    memcpy(backend, answer, length(answer) < 255 ? length(answer) : 255);
    check(offer(0, 0, CONNECTED), "it connects");
    write_number("state", CONNECTED);
    check(works(), "it writes and reads");
    test_requests();
    test_indirect();
    test_revoked();
    test_noise();
    test_endless();
    test_indices();
    test_handshake();
    test_console();
    test_store();
    say(failures ? "HOSTILE-TESTS FAILED\n" : "HOSTILE-TESTS OK\n");
    u32 poweroff = 0;
    call(SCHED_OP, 2, &poweroff);
    return 0;
}
