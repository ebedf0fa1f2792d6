// The state of one virtual CPU and the form of one decoded instruction.
//
// These are C structures so that their layout is fixed: the interpreter reaches
// them through one pointer, and a translator can address them by offset.
// Source: Intel SDM volumes 1-3, AMD APM volume 2.
#ifndef CPROCESSOR_H
#define CPROCESSOR_H

#include <stdint.h>
#include <stdbool.h>
#include <stddef.h>

#pragma clang assume_nonnull begin

typedef struct apus_vcpu apus_vcpu;
typedef struct apus_insn apus_insn;
typedef struct apus_spaces apus_spaces;

/// Executes one decoded instruction; the result is one of APUS_NEXT ... APUS_EXIT.
typedef uint32_t (*apus_handler)(apus_vcpu *, const apus_insn *);

enum {
    APUS_NEXT = 0,  ///< go on with the next instruction of the block
    APUS_JUMP = 1,  ///< `rip` has been set: look the next block up
    APUS_FAULT = 2, ///< `pending` describes an exception; `rip + insn->start` is its address
    APUS_EXIT = 3,  ///< `exit_reason` tells why the engine returns; `rip` has been set
    APUS_END = 4,   ///< the instruction is complete, but the block must end behind it
    APUS_RESUME = 6, ///< this was no instruction of the guest: translated code goes on
};

/// One decoded instruction, 64 bytes. A block is an array of these.
struct apus_insn {
    apus_handler handler;
    uint64_t imm;      ///< immediate, sign-extended to 64 bits where the instruction extends it
    int32_t disp;      ///< displacement; for RIP-relative operands already less `base` = RIP of the block
    uint16_t start;    ///< first byte, counted from the block's first byte
    uint16_t next;     ///< byte behind the instruction, counted the same way
    uint16_t opcode;   ///< map << 8 | opcode byte; maps as in APUS_MAP_*
    uint8_t modrm;     ///< ModRM byte as fetched
    uint8_t reg;       ///< ModRM.reg with REX.R / VEX.R
    uint8_t rm;        ///< ModRM.rm with REX.B, when `mod` == 3
    uint8_t base;      ///< base register, APUS_NO_REG, or APUS_RIP
    uint8_t index;     ///< index register, APUS_NO_REG, or APUS_FAR
    uint8_t scale;     ///< 0...3
    uint8_t segment;   ///< effective segment of the memory operand (APUS_ES ...)
    uint8_t op_size;   ///< operand size in bytes: 1, 2, 4, 8
    uint8_t addr_size; ///< address size in bytes: 2, 4, 8
    uint8_t prefixes;  ///< APUS_PREFIX_*
    uint8_t mem;       ///< 1 when ModRM names memory
    uint8_t vvvv;      ///< VEX.vvvv register
    uint8_t vex;       ///< 0, or 1 | VEX.L << 1 | VEX.W << 2
    uint8_t immediate; ///< of a vector instruction, whose `imm` holds something else
    uint8_t flat;      ///< 1: linear address = effective address, nothing to check
    uint8_t reg_at;    ///< byte offset of `reg` within `gpr`; AH...BH are odd
    uint8_t rm_at;     ///< the same for `rm`
    uint8_t vector;    ///< how it translates as it is: APUS_NATIVE_*
    uint64_t addr_mask; ///< what `addr_size` leaves of an effective address
    void *_Nullable extra; ///< native thunk, or whatever the handler keeps
};

enum {
    APUS_NATIVE_SSE = 1,     ///< works on XMM and general registers only
    APUS_NATIVE_CONTROL = 2, ///< LDMXCSR, STMXCSR
    APUS_NATIVE_VEX = 3,     ///< VEX on YMM, XMM and general registers
    APUS_NATIVE_ZERO = 4,    ///< VZEROUPPER
    APUS_NATIVE_GENERAL = 5, ///< BMI1, BMI2: VEX on general registers
    APUS_NATIVE_X87 = 6,     ///< x87, control words included
    APUS_NATIVE_MMX = 7,     ///< works on MMX registers, perhaps on others too
};

enum { APUS_MAP_1 = 0, APUS_MAP_0F = 1, APUS_MAP_0F38 = 2, APUS_MAP_0F3A = 3 };
/// Indices behind `gpr`, so that an effective address needs no test: `rip`, `no_register` and `far`.
enum { APUS_RIP = 16, APUS_NO_REG = 17, APUS_FAR = 18 };
enum {
    APUS_PREFIX_LOCK = 1, APUS_PREFIX_REPNE = 2, APUS_PREFIX_REP = 4, APUS_PREFIX_66 = 8,
    APUS_PREFIX_67 = 16, APUS_PREFIX_REX = 32, APUS_PREFIX_REXW = 64, APUS_PREFIX_SEGMENT = 128,
};

enum { APUS_RAX, APUS_RCX, APUS_RDX, APUS_RBX, APUS_RSP, APUS_RBP, APUS_RSI, APUS_RDI };
enum { APUS_ES, APUS_CS, APUS_SS, APUS_DS, APUS_FS, APUS_GS, APUS_LDTR, APUS_TR };

/// A segment register with its hidden part. `access` holds descriptor bits as
/// VMX's access rights do: 0-3 type, 4 S, 5-6 DPL, 7 P, 12 AVL, 13 L, 14 D/B, 15 G.
/// `limit` is in bytes, after scaling by G. A null selector has access == 0.
typedef struct apus_segment {
    uint64_t base;
    uint32_t limit;
    uint16_t selector;
    uint16_t access;
} apus_segment;

typedef struct apus_table { uint64_t base; uint32_t limit; } apus_table;

/// A soft TLB entry: `tag` is the linear page address; an empty one holds a page of another index.
/// `host` is where the page lies in this process, `distance` is `host` less `tag`.
typedef struct apus_tlb_entry {
    uint64_t tag;
    uint64_t host;
    uint64_t distance;
    uint64_t unused; ///< so that an entry's place is the shifted address
} apus_tlb_entry;

enum { APUS_TLB_ENTRIES = 4096 };

/// A run of decoded instructions, ended by one whose handler leaves the block.
typedef struct apus_block apus_block;
struct apus_block {
    apus_insn *insns;
    uint64_t physical;      ///< of the first byte
    uint64_t second;        ///< of an instruction that crosses pages: physical address of the second one, and bit 0
    uint32_t mode_key;
    uint32_t bytes;         ///< length of the code; 0 in a block that died
    uint32_t count;         ///< instructions, without the closing one
    apus_block *_Nullable next_hash; ///< chain of the lookup table
    apus_block *_Nullable next_page; ///< chain of the blocks of one page
    apus_block *_Nullable main; ///< this one only stands, in the second page, for a block that begins in another
    void *_Nullable native; ///< entry of the translation
    uint32_t heat;          ///< executions left until the block is translated; 0: it never is
    uint32_t lag;           ///< how far RIP in the vCPU is behind the block's first byte while its translation runs
    uint64_t plain;         ///< instructions that do without `near`, a bit each
    uint32_t trial;         ///< executions after which it is known which should; 0: it is. See `trials`
    uint32_t again;         ///< where its own loop comes back to, behind its translation's first byte; 0: to that
    uint32_t home;          ///< and the way from there to the first byte
};

/// How many blocks there are at most.
enum { APUS_BLOCKS = 1 << 17 };

/// One entry of the jump cache: linear address and mode to block.
typedef struct apus_jump {
    uint64_t linear;
    uint64_t key;                  ///< `mode_key` and `jump_generation` as they lie in the vCPU
    apus_block *_Nullable block;
    const void *_Nullable native;  ///< its translation, or the way back to the loop
} apus_jump;
/// Two an address may have, side by side in one line of the host's caches.
enum { APUS_JUMP_SETS = 16384, APUS_JUMP_WAYS = 2 };

/// A set of entries for each way to look at memory.
enum { APUS_TLB_SUPERVISOR = 0, APUS_TLB_USER = 1, APUS_TLB_SUPERVISOR_AC = 2, APUS_TLB_MODES = 3 };
/// One more, for loads and stores alike, stays empty: each access is looked at (breakpoints, alignment checks).
enum { APUS_TLB_WATCHED = APUS_TLB_MODES };

/// The page that the last access by one register led to, in front of the TLB; see `near_empty`.
typedef struct apus_near { uint64_t tag; uint64_t host; uint64_t distance; } apus_near;
enum { APUS_NEAR_SLOTS = 32, APUS_NEAR_SITES = 4096 };

/// Why the engine came back.
enum {
    APUS_EXIT_ATTENTION = 0, ///< somebody set `attention`
    APUS_EXIT_HALT = 1,      ///< HLT with nothing to deliver
    APUS_EXIT_SHUTDOWN = 2,  ///< triple fault
    APUS_EXIT_HYPERCALL = 3, ///< VMCALL or VMMCALL; `rip` is behind it
    APUS_EXIT_INTERRUPT_WINDOW = 4, ///< an interrupt was waiting and can be delivered now
    APUS_EXIT_FATAL = 5,     ///< the engine cannot go on; `exit_detail` holds a code
    APUS_EXIT_CRASH = 6,     ///< a PV guest did what its domain does not survive
    APUS_EXIT_LOST = 7,      ///< the process in which a program of the guest ran is gone, and its registers with it
};

/// XSAVE area in its standard form (SDM vol. 1 §13.4): x87/MMX at 32, XMM at 160, upper halves of YMM at 576.
/// Aligned to 16 only: Swift imports nothing that is aligned more strictly.
typedef struct apus_fpu { _Alignas(16) uint8_t bytes[1024]; } apus_fpu;

enum {
    APUS_DIRECT_OFF = 0,
    APUS_DIRECT_RESTING = 1, ///< they do from the kernel's next return to one
    APUS_DIRECT_ON = 2,
};

/// Bytes in front of a vCPU that belong to it: while translated code runs, RSP points to the vCPU, and what the host pushes
/// for a signal lies below.
enum { APUS_STACK_ROOM = 65536 };

struct apus_vcpu {
    uint64_t gpr[16];
    uint64_t rip;            ///< while a block runs: RIP of the block's first byte
    uint64_t no_register;    ///< always zero: stands for an absent base or index
    uint64_t far;            ///< always 4 GiB: added where a displacement from the block's RIP does not fit in 32 bits
    uint32_t arith_flags;    ///< CF PF AF ZF SF OF at their places in RFLAGS, no other bit
    uint32_t system_flags;   ///< every other bit of RFLAGS; bit 1 is always set
    apus_segment seg[8];

    // What handlers test often; kept by `updateMode` in the system part.
    uint32_t mode_key;       ///< all that decoding and handler choice depend on; part of the block key
    uint32_t jump_generation; ///< what the jump cache knows is valid with it: one of the next two
    uint32_t kernel_jumps;   ///< for supervisor code
    uint32_t user_jumps;     ///< for user code of the present address space
    uint8_t cpl;
    uint8_t code_size;       ///< default operand size of CS: 2, 4 or 8 (8: 64-bit mode)
    uint8_t stack_size;      ///< width of the stack pointer: 2, 4 or 8
    uint8_t tlb_mode;        ///< index of the TLB set in use
    bool protected_mode;     ///< CR0.PE and not virtual-8086
    bool long_mode;          ///< EFER.LMA
    bool paging;             ///< CR0.PG
    bool flat_data;          ///< DS, ES, SS: base 0, limit 4 GiB, writable (or 64-bit mode)

    uint64_t cr0, cr2, cr3, cr4, cr8, xcr0, efer;
    uint64_t dr[8];
    apus_table gdtr, idtr;
    uint64_t star, lstar, cstar, sfmask, kernel_gs_base;
    uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
    uint64_t tsc_offset, tsc_aux, pat, apic_base, misc_enable, xss, spec_ctrl;
    uint64_t mtrr_def_type, mtrr_fixed[11], mtrr_variable[16];
    uint64_t smi_count;

    // Exception being raised.
    uint8_t pending_vector;
    bool pending_has_error;
    uint8_t pending_kind;    ///< 0 fault, 1 trap (RIP already behind), 2 software INT, 3 INT3/INTO, 4 ICEBP
    uint32_t pending_error;
    uint64_t pending_cr2;
    uint64_t pending_dr6;

    bool interrupt_shadow;   ///< STI or MOV SS was just executed
    bool nmi_blocked;
    bool halted;
    bool nmi_pending;
    uint8_t exit_reason;
    uint8_t debug_hits;      ///< breakpoints that this instruction has met, as in DR6
    uint64_t exit_detail;

    /// Raised by other threads and processes to bring the vCPU out of its loop.
    volatile uint32_t *attention;
    /// Owner's reference, passed back to every callback.
    void *_Nullable context;

    const apus_insn *_Nullable native_insn; ///< where translated code left a block
    uint64_t native_target;    ///< of an indirect branch that is under way
    uint64_t native_flags;     ///< arithmetic flags as LAHF (bits 15-8) and SETO (bits 7-0) give them
    uint64_t vector_live;      ///< 1: the guest's XMM registers and MXCSR are in the host's, not in `fpu`
    uint32_t host_mxcsr;       ///< what the rest of the process runs with
    uint32_t upper_live;       ///< 1: the upper halves of the guest's YMM registers are in the host's, too
    uint32_t upper_zero;       ///< 1: the upper halves in `fpu` are stale: all are zero
    uint32_t x87_live;         ///< 1: the guest's x87 and MMX registers are in the host's
    uint64_t x87_block;        ///< while they are: RIP of the block with the last x87 instruction,
    uint32_t x87_last;         ///< where it starts in that block and, from bit 16, its FOP,
    uint32_t code_generation;  ///< counts blocks that died because they were written to
    uint64_t x87_data;         ///< and FDP
    uint64_t pdpte[4];         ///< of PAE paging, as loaded with CR3
    uint64_t host_stack;       ///< RSP of the loop while translated code runs
    uint64_t user_cr3;         ///< of a PV guest: the tables of its user mode; `cr3` has those of its kernel
    uint64_t paravirtual;      ///< 1: a PV guest, whose kernel runs at CPL 1; see Paravirtual.swift. Together these two put
                               ///< `fpu` and `scratch` at multiples of 64
    apus_tlb_entry *tlb_read;  ///< the active set, APUS_TLB_ENTRIES each; see `selectTLB`
    apus_tlb_entry *tlb_write;
    apus_tlb_entry *tlb_first; ///< tlb[0][0]
    uint32_t tlb_generation;   ///< counts flushes: what depends on linear addresses dies with it
    bool window_wanted;        ///< leave when an interrupt can be taken
    bool x87_error;            ///< FERR#: an x87 exception was reported to the machine and is not cleared
    apus_jump *jumps;          ///< jump_cache[0][0]
    apus_block *_Nullable current; ///< the block that runs
    uint64_t shared_distance[16]; ///< as in `near`, for accesses that share a look into the TLB, by base register
    uint64_t near_saved[2];    ///< while a slot of `near` is filled
    apus_spaces *spaces;       ///< the second level of the TLB
    uint32_t direct;           ///< whether programs run by themselves: APUS_DIRECT_OFF ...; see DirectExecution.swift
    uint32_t departures;       ///< counts system calls and exceptions of programs
    uint32_t direct_pages;     ///< 1: their process has pages of the guest, which are to be forgotten when they change
    uint32_t padding;
    uint64_t unused[5];        ///< keeps `fpu`, `scratch` and `jump_cache` at multiples of 64
    apus_near near_empty;      ///< what an empty slot holds: a page that no address is canonical in, by chance, and memory of no use
    uint16_t near_misses[APUS_NEAR_SITES]; ///< that places in translated code may still have, see Translator.swift
    apus_near near[APUS_TLB_MODES][2][APUS_NEAR_SLOTS]; ///< as `tlb`
    apus_fpu fpu;
    _Alignas(16) uint8_t scratch[256]; ///< operands of native thunks
    apus_tlb_entry tlb[APUS_TLB_MODES][2][APUS_TLB_ENTRIES]; ///< [mode][0 read, 1 write]
    apus_tlb_entry tlb_watched[APUS_TLB_ENTRIES]; ///< right behind `tlb`
    apus_jump jump_cache[APUS_JUMP_SETS][APUS_JUMP_WAYS]; ///< by `apus_jump_set`
    uint32_t trials[APUS_BLOCKS]; ///< executions left of blocks on trial, by number: many to a line of the host's caches
};

/// Where `seg` lies: Swift sees C arrays as tuples and takes pointers into them by offset.
enum { APUS_SEGMENTS_OFFSET = 160 };
_Static_assert(offsetof(apus_vcpu, seg) == APUS_SEGMENTS_OFFSET, "place of the segment registers");

/// An instruction without operands.
static inline apus_insn apus_empty_insn(apus_handler handler)
{
    return (apus_insn){.handler = handler, .base = APUS_NO_REG, .index = APUS_NO_REG};
}

/// Empties the slots in front of the TLB.
static inline void apus_clear_near(apus_vcpu *cpu)
{
    apus_near *slot = cpu->near[0][0];
    for (int i = 0; i < APUS_TLB_MODES * 2 * APUS_NEAR_SLOTS; i++) slot[i] = cpu->near_empty;
}

/// Whether a slot for stores leads to the page at `host`.
static inline bool apus_near_stores(const apus_vcpu *cpu, uint64_t host)
{
    for (int mode = 0; mode < APUS_TLB_MODES; mode++)
        for (int i = 0; i < APUS_NEAR_SLOTS; i++)
            if (cpu->near[mode][1][i].host == host) return true;
    return false;
}

/// Gives a place in translated code so many misses.
static inline void apus_allow_misses(apus_vcpu *cpu, uint32_t site, uint16_t number)
{
    cpu->near_misses[site % APUS_NEAR_SITES] = number;
}

static inline apus_tlb_entry *apus_first_entry(apus_vcpu *cpu) { return cpu->tlb[0][0]; }
/// Swift does not see arrays of so many elements.
static inline size_t apus_vcpu_bytes(void) { return sizeof(apus_vcpu); }
static inline size_t apus_trials_offset(void) { return offsetof(apus_vcpu, trials); }
/// Block `number` is on trial for so many executions from now on.
static inline void apus_start_trial(apus_vcpu *cpu, size_t number, uint32_t executions)
{
    cpu->trials[number % APUS_BLOCKS] = executions;
}
static inline size_t apus_jump_cache_offset(void) { return offsetof(apus_vcpu, jump_cache); }
static inline apus_jump *apus_first_jump(apus_vcpu *cpu) { return cpu->jump_cache[0]; }
_Static_assert(offsetof(apus_vcpu, jump_cache) % 64 == 0 && offsetof(apus_vcpu, fpu) % 64 == 0, "lines of the host's caches");

/// Where the jump cache has an address; translated code computes it, too.
enum { APUS_JUMP_FACTOR = 0x1E3779B1, APUS_JUMP_SHIFT = 18 };
static inline uint32_t apus_jump_set(uint64_t linear)
{
    return (uint32_t)linear * APUS_JUMP_FACTOR >> APUS_JUMP_SHIFT;
}
_Static_assert(1u << (32 - APUS_JUMP_SHIFT) == APUS_JUMP_SETS, "as many sets as indices");

#pragma clang assume_nonnull end
#endif
