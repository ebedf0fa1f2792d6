// The way from translated code to the handlers of the interpreter, and back.
#include "translator.h"

uint32_t apus_run_handlers(apus_vcpu *cpu, const apus_insn *insn, uint64_t packed)
{
    apus_block *block = (apus_block *)(packed & 0xFFFFFFFFFFFF);
    uint64_t left = packed >> 48;
    // Without a number, the instruction is none of the block's.
    uint64_t lag = left ? block->lag : 0;
    uint32_t key = cpu->mode_key, jumps = cpu->jump_generation, tlb = cpu->tlb_generation,
             code = cpu->code_generation, status;
    cpu->rip += lag;
    cpu->current = block;
    apus_take_flags(cpu);
    for (;;) {
        status = insn->handler(cpu, insn);
        if (status == APUS_RESUME) {
            apus_give_flags(cpu);
            cpu->rip -= lag;
            return 0;
        }
        if (status != APUS_NEXT) break;
        if (cpu->mode_key != key || cpu->jump_generation != jumps || cpu->tlb_generation != tlb ||
            cpu->code_generation != code || cpu->window_wanted || cpu->nmi_pending) {
            // What was decoded or translated may hold no longer.
            cpu->rip += insn->next;
            status = APUS_JUMP;
            break;
        }
        if (--left == 0) {
            apus_give_flags(cpu);
            cpu->rip -= lag;
            return 0;
        }
        insn++;
    }
    cpu->native_insn = insn;
    apus_give_flags(cpu);
    return status;
}
